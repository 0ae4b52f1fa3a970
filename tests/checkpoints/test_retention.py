"""Which checkpoints stay, which is the newest, and what becomes of leftovers."""

import errno
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_gpt2scratch.checkpoints.checkpoint import find_checkpoint, find_checkpoints
from modeling_gpt2scratch.checkpoints.retention import (
    clear_leftovers,
    expired,
    most_to_come,
    prune,
)


def make(output_dir, *steps):
    """Directories that look like complete checkpoints."""
    for step in steps:
        (output_dir / f"checkpoint-{step}").mkdir(parents=True)
        (output_dir / f"checkpoint-{step}" / "training_state.json").write_text("{}")


def names(directory):
    """What is in a directory."""
    return {path.name for path in directory.iterdir()}


def saved(steps, *, here=(), **rule) -> tuple[list[int], int]:
    """What is left of checkpoints saved one after the other, and the most there were at a time."""
    here, most, before = [*here], len(here), max(here, default=None)
    for step in steps:
        here.append(step)
        most = max(most, len(here))
        gone = expired(here, written=step, before=before, **rule)
        here, before = [step for step in here if step not in gone], step
    return here, most


@settings(deadline=None)
@given(
    *(st.integers(0, 5), st.integers(0, 3), st.integers(0, 4)),
    *(st.integers(1, 40), st.integers(0, 40)),
)
def test_the_space_that_is_asked_for_is_that_of_the_checkpoints_to_come(
    save_every, n_apart, keep, last_step, stopped_at
):
    rule = {"keep_checkpoints": keep, "keep_every": save_every * n_apart}
    every = save_every or last_step
    steps = [step for step in range(1, last_step + 1) if step % every == 0 or step == last_step]
    made = [step for step in steps if step <= stopped_at]
    here, _ = saved(made, **rule)
    _, most = saved([step for step in steps if step > stopped_at], here=here, **rule)
    plan = {"step": max(made, default=0), "last_step": last_step, "save_every": save_every}
    found = most_to_come(here, **plan, **rule, keep_best=False)
    assert max(1, found) - max(1, most - len(here)) in (0, 1)


def test_the_best_checkpoint_is_one_more():
    rule = {"step": 0, "last_step": 100, "save_every": 10, "keep_checkpoints": 3, "keep_every": 0}
    assert [most_to_come([], **rule, keep_best=best) for best in (False, True)] == [4, 5]


def test_where_all_are_kept_each_validation_may_be_one_more():
    rule = {"last_step": 100, "save_every": 40, "keep_checkpoints": 0, "keep_every": 0}
    for step, n_scheduled in ((0, 3), (50, 2), (99, 1), (100, 0)):
        plan = rule | {"step": step, "eval_every": 20}
        assert most_to_come([], **plan, keep_best=False) == n_scheduled
        # At 20, (40), 60, (80): those in brackets are saved anyway; the last comes with the end.
        n_more = len([at for at in (20, 60) if at > step])
        assert most_to_come([], **plan, keep_best=True) == n_scheduled + n_more


STEPS = st.integers(0, 60)


MAYBE = st.none() | STEPS


@settings(deadline=None)
@given(st.sets(STEPS), STEPS, MAYBE, MAYBE, st.integers(0, 5), st.integers(0, 9))
def test_expired_checkpoints_are_old_no_multiples_and_not_the_best(
    steps, written, before, best, keep, every
):
    rule = {"best": best, "keep_checkpoints": keep, "keep_every": every}
    gone = expired(steps, written=written, before=before, **rule)
    past = {step for step in steps if step <= written} | {written}
    assert set(gone) <= steps - {written, best}
    assert gone == sorted(set(gone)) and set(gone) <= past
    if keep == 0:
        assert gone == []
        return
    # Of a continuation that was left, and is passed now.
    left = {step for step in past if before is not None and before < step < written}
    own = past - left
    # Everything else goes, so that a disk with room for these does not fill.
    multiples = {step for step in own if every and step % every == 0}
    assert past - set(gone) == {*sorted(own)[-keep:], written} | multiples | ({best} & past)


@settings(deadline=None)
@given(st.sets(STEPS, min_size=1), st.integers(1, 4), st.integers(0, 9))
def test_a_run_keeps_the_newest_and_the_multiples_whenever_it_saves(steps, keep, every):
    on_disk, before = set(), None
    for step in sorted(steps):
        on_disk.add(step)
        rule = {"keep_checkpoints": keep, "keep_every": every}
        on_disk -= set(expired(on_disk, written=step, before=before, **rule))
        before = step
    multiples = {step for step in steps if every and step % every == 0}
    assert on_disk == set(sorted(steps)[-keep:]) | multiples


def test_pruning_leaves_foreign_directories_alone(tmp_path):
    make(tmp_path, 2, 4, 6)
    (tmp_path / "checkpoint-3").mkdir()  # no state in it
    (tmp_path / "checkpoint-best").mkdir()
    prune(tmp_path, written=6, before=4, keep_checkpoints=1, keep_every=4)
    assert names(tmp_path) == {"checkpoint-3", "checkpoint-4", "checkpoint-6", "checkpoint-best"}


def test_what_a_continuation_left_goes_when_the_run_has_passed_it(tmp_path):
    make(tmp_path, 10, 15, 20, 25)
    prune(tmp_path, written=20, before=10, keep_checkpoints=3, keep_every=5)
    assert names(tmp_path) == {"checkpoint-10", "checkpoint-20", "checkpoint-25"}


def test_the_newest_is_what_latest_names_and_then_what_came_before(tmp_path):
    assert find_checkpoint(tmp_path) is None
    make(tmp_path, 9, 10, 12)
    assert find_checkpoint(tmp_path).name == "checkpoint-12"
    (tmp_path / "latest").write_text("checkpoint-10\n")
    found = [path.name for path in find_checkpoints(tmp_path)]
    assert found == ["checkpoint-10", "checkpoint-9", "checkpoint-12"]
    assert find_checkpoint(tmp_path / "checkpoint-9") == tmp_path / "checkpoint-9"


@pytest.mark.parametrize("content", [b"checkpoint-11\n", b"", b"\xff\xfe"])
def test_a_latest_that_names_nothing_is_passed_over(tmp_path, content):
    make(tmp_path, 9, 10)
    (tmp_path / "latest").write_bytes(content)
    assert find_checkpoint(tmp_path).name == "checkpoint-10"


def keep_everything(patch):
    """Nothing can be deleted, as where another machine has it open."""

    def fail(path):
        raise OSError(errno.EBUSY, "Device or resource busy", path)

    patch.setattr(os, "rmdir", lambda path, **options: fail(path))
    patch.setattr(os, "unlink", lambda path, **options: fail(path))


def test_a_leftover_that_cannot_be_deleted_keeps_no_run_from_its_start(
    tmp_path, monkeypatch, capsys
):
    make(tmp_path, 8)
    for name in (".checkpoint-4.pruned", ".checkpoint-4.partial", ".checkpoint-8.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training_state.json").touch()
    with monkeypatch.context() as patch:
        keep_everything(patch)
        clear_leftovers(tmp_path)
    warning = f"warning: {tmp_path}/.checkpoint-4.pruned: expected to delete what an earlier"
    assert warning in capsys.readouterr().err
    # Under names that no save uses.
    left = {".checkpoint-4.pruned", ".checkpoint-4.2.pruned", ".checkpoint-8.pruned"}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-8", *left}
    clear_leftovers(tmp_path)
    assert names(tmp_path) == {"checkpoint-8"}


def test_a_checkpoint_is_pruned_beside_what_is_left_of_one_of_its_step(tmp_path, monkeypatch):
    for _ in range(3):
        make(tmp_path, 2, 4)
        with monkeypatch.context() as patch:
            keep_everything(patch)
            prune(tmp_path, written=4, before=2, keep_checkpoints=1, keep_every=0)
        shutil.rmtree(tmp_path / "checkpoint-4")
    hidden = {f".checkpoint-2{number}.pruned" for number in ("", ".2", ".3")}
    assert names(tmp_path) == hidden
    clear_leftovers(tmp_path)
    assert names(tmp_path) == set()


def test_leftovers_go_and_an_old_checkpoint_without_successor_returns(tmp_path):
    make(tmp_path, 8)
    for name in (".checkpoint-8.old", ".checkpoint-4.pruned", ".checkpoint-9.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / ".checkpoint-12.old").mkdir()
    (tmp_path / ".latest.partial").write_text("check")
    (tmp_path / "notes.txt").write_text("mine")
    clear_leftovers(tmp_path)
    assert names(tmp_path) == {"checkpoint-8", "checkpoint-12", "notes.txt"}
