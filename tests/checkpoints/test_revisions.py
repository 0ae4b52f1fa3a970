"""Checkpoints sent to a Hub on this machine, which fails, changes its mind and names checksums."""

import errno
import hashlib
import json
import math
import os
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from support.processes import PATIENCE
from support.servers import fake_hub

from modeling_gpt2scratch.checkpoints import pusher, revisions
from modeling_gpt2scratch.checkpoints.checkpoint import WEIGHTS_NAME
from modeling_gpt2scratch.checkpoints.outbox import Outbox
from modeling_gpt2scratch.checkpoints.pusher import RevisionPusher
from modeling_gpt2scratch.checkpoints.revisions import prepare_repository, push_revision
from modeling_gpt2scratch.common.checksums import checksum, write_checksums
from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.common.retries import Retries
from modeling_gpt2scratch.distributed.processes import LaunchError

REPOSITORY = "someone/tiny"
TOKEN = "hf_secret"
BEFORE = {".gitattributes": b"*.safetensors filter=lfs", WEIGHTS_NAME: b"the final weights"}
SENT = {WEIGHTS_NAME, "config.json", "modeling_gpt2scratch.py", "metrics.jsonl", "checksums.json"}
QUICK = Retries(first_wait_seconds=0.0, longest_wait_seconds=0.0, give_up_after_seconds=-1.0)
PATIENT = Retries(first_wait_seconds=0.001, longest_wait_seconds=0.01, give_up_after_seconds=5.0)
COMMIT = f"POST /api/models/{REPOSITORY}/commit/step-"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub whose main branch has got other weights since its first commit."""
    with fake_hub.serve(REPOSITORY, {".gitattributes": b"*"}, kind="models") as hub:
        hub.use_here(monkeypatch, tmp_path)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.files, hub.commit = dict(BEFORE), "7" * 40
        disable_progress_bars()  # as a run does
        yield hub
        enable_progress_bars()


def checkpoint(run, step, weights=None):
    """A complete checkpoint of a run, with the line of its step in the metrics."""
    path = run / f"checkpoint-{step}"
    (path / "optimizer").mkdir(parents=True)
    contents = {
        WEIGHTS_NAME: weights or f"weights of step {step}".encode(),
        "config.json": b"{}",
        "modeling_gpt2scratch.py": b"pass\n",
        "training_state.json": b'{"config": {"output_dir": "/home/somebody"}}',
        "optimizer/state.safetensors": b"moments",
    }
    for name, content in contents.items():
        (path / name).write_bytes(content)
    write_checksums(path, {name: checksum(path / name) for name in contents})
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "loss": 1.5, "sample": "a text"}) + "\n")
    return path


@pytest.fixture
def run_dir(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    return directory


class Pushing:
    """A pusher for a run, and the events that it notes."""

    def __init__(self, run_dir, *, retries=PATIENT, step=100):
        self.events = []
        self.pusher = RevisionPusher(
            run_dir,
            REPOSITORY,
            private=False,
            metrics=run_dir / "metrics.jsonl",
            step=step,
            record=lambda event, step, **values: self.events.append((event, step, values)),
            retries=retries,
        )

    def send(self, *checkpoints):
        """Sends them, and the rest of earlier pushers, and waits."""
        with self.pusher:
            for path in checkpoints:
                self.pusher.hold(path)
            self.pusher.finish()
        return [(event, step) for event, step, _ in self.events]


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_branch_holds_its_own_step_and_nothing_of_main_or_of_the_optimizer(hub, run_dir):
    paths = [checkpoint(run_dir, step) for step in (4, 8)]
    assert Pushing(run_dir).send(*paths) == [("pushed", 4), ("pushed", 8)]
    assert hub.files == BEFORE
    for step in (4, 8):
        files = hub.revisions[f"step-{step}"]
        assert files.keys() == SENT | {".gitattributes"}
        assert files[WEIGHTS_NAME] == f"weights of step {step}".encode()
        rows = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
        assert rows == [{"step": n, "loss": 1.5} for n in (4, 8) if n <= step]
        checksums = json.loads(files["checksums.json"])
        assert checksums.keys() == SENT - {"checksums.json"}
        for name, entry in checksums.items():
            assert entry["sha256"] == hashlib.sha256(files[name]).hexdigest()
    assert not (run_dir / "to_push").exists()


def test_nothing_is_copied_and_the_checkpoint_stays_as_it_was(hub, run_dir):
    path = checkpoint(run_dir, 4)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    Outbox(run_dir).add(path)
    held = run_dir / "to_push" / "step-4"
    assert os.path.samefile(held / WEIGHTS_NAME, path / WEIGHTS_NAME)
    assert Pushing(run_dir).send() == [("pushed", 4)]
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("answer", [500, 429, "drop", "reset"])
@pytest.mark.parametrize("place", ["commit/step-4", "branch/step-4", "preupload/step-4", "refs"])
def test_a_failure_is_tried_again_until_the_branch_is_whole(hub, run_dir, answer, place, capsys):
    hub.fail(f"[A-Z]+ /api/models/{REPOSITORY}/{place}", answer, times=3)
    assert Pushing(run_dir).send(checkpoint(run_dir, 4)) == [("pushed", 4)]
    assert hub.revisions["step-4"].keys() == SENT | {".gitattributes"}
    assert len(hub.branch_commits["step-4"]) == 1
    assert TOKEN not in "".join(capsys.readouterr())


def test_weights_that_break_off_on_their_way_are_sent_again(hub, run_dir):
    hub.fail("PUT /lfs/.*", "drop", times=9)
    assert Pushing(run_dir).send(checkpoint(run_dir, 4)) == [("pushed", 4)]
    assert hub.revisions["step-4"][WEIGHTS_NAME] == b"weights of step 4"


def test_what_fails_for_good_is_one_line_and_an_event_and_waits_for_the_next(hub, run_dir, capsys):
    hub.fail(f"{COMMIT}4", 403, times=math.inf, headers={"X-Error-Message": "No right."})
    pushing = Pushing(run_dir)
    assert set(pushing.send(checkpoint(run_dir, 4))) == {("push_failed", 4)}
    *lines, last = capsys.readouterr().err.splitlines()
    reason = (
        f"{REPOSITORY}@step-4: the Hub answered 403 No right.; this login may not write there; "
        f"use a token with write access to the repository"
    )
    assert pushing.events[0][2] == {"message": reason}
    assert set(lines) == {f"warning: {reason}; the run is not affected"}
    assert last == (
        f"warning: {REPOSITORY}: expected all checkpoints there, found that step-4 could not be "
        f"sent; the same command with --resume auto tries again"
    )
    hub.forgive()
    assert Pushing(run_dir).send() == [("pushed", 4)]


def test_what_has_failed_goes_after_another_one_has_arrived(hub, run_dir):
    hub.fail(f"{COMMIT}4", 403)
    pushing = Pushing(run_dir)
    with pushing.pusher:
        pushing.pusher.hold(checkpoint(run_dir, 4))
        wait_for(lambda: pushing.events)
        pushing.pusher.hold(checkpoint(run_dir, 8))
        wait_for(lambda: len(pushing.events) == 3)
    assert [event[:2] for event in pushing.events] == [
        *(("push_failed", 4), ("pushed", 8), ("pushed", 4)),
    ]


def test_weights_that_are_there_are_left_alone_and_others_are_replaced(hub, run_dir):
    path = checkpoint(run_dir, 4)
    assert Pushing(run_dir).send(path) == [("pushed", 4)]
    again = Pushing(run_dir)
    assert again.send(path) == [("pushed", 4)]
    assert again.events[0][2]["commit"] is None
    assert len(hub.branch_commits["step-4"]) == 1 and len(hub.objects) == 1

    hub.revisions["step-4"] |= {WEIGHTS_NAME: b"the final weights", "pytorch_model.bin": b"old"}
    assert Pushing(run_dir).send(path) == [("pushed", 4)]
    assert hub.revisions["step-4"].keys() == SENT | {".gitattributes"}
    assert hub.revisions["step-4"][WEIGHTS_NAME] == b"weights of step 4"


def test_a_hub_that_has_other_weights_afterwards_is_not_believed(hub, run_dir):
    outbox = Outbox(run_dir)
    outbox.add(checkpoint(run_dir, 4))
    folder = outbox.take(4)
    digest = hashlib.sha256(b"weights of step 4").hexdigest()

    class Careless(dict):
        def __getitem__(self, oid):
            return b"the final weights" if oid == digest else super().__getitem__(oid)

    hub.objects = Careless(hub.objects)
    with pytest.raises(SourceError, match=f"step-4: expected {WEIGHTS_NAME} with the checksum"):
        push_revision(folder, REPOSITORY, "step-4")


def test_a_file_that_is_damaged_here_is_not_sent(hub, run_dir):
    outbox = Outbox(run_dir)
    outbox.add(checkpoint(run_dir, 4))
    folder = outbox.take(4)
    (folder / WEIGHTS_NAME).write_bytes(b"WEIGHTS of step 4")
    with pytest.raises(SourceError, match="expected sha256"):
        push_revision(folder, REPOSITORY, "step-4")
    assert "step-4" not in hub.revisions


def test_what_the_checksums_do_not_list_is_not_sent(hub, run_dir, tmp_path):
    outbox = Outbox(run_dir)
    outbox.add(checkpoint(run_dir, 4))
    folder = outbox.take(4)
    (tmp_path / "id_rsa").write_text("a key")
    (folder / "notes.txt").symlink_to(tmp_path / "id_rsa")
    push_revision(folder, REPOSITORY, "step-4")
    assert "notes.txt" not in hub.revisions["step-4"] and WEIGHTS_NAME in hub.revisions["step-4"]


def test_a_pruned_checkpoint_still_arrives(hub, run_dir):
    path = checkpoint(run_dir, 4)
    pushing = Pushing(run_dir, step=0)  # its line is not yet written
    with pushing.pusher:
        pushing.pusher.hold(path)
        shutil.rmtree(path)
        assert not hub.requests
        pushing.pusher.finish()
    assert hub.revisions["step-4"][WEIGHTS_NAME] == b"weights of step 4"


def test_what_a_killed_process_was_sending_is_sent_by_the_next(hub, run_dir):
    outbox = Outbox(run_dir)
    for step in (4, 8):
        outbox.add(checkpoint(run_dir, step))
    outbox.take(4)
    partial = run_dir / "to_push" / ".step-12.partial"
    partial.mkdir()
    assert outbox.steps() == [8]
    assert Pushing(run_dir).send() == [("pushed", 4), ("pushed", 8)]
    assert not (run_dir / "to_push").exists()


def test_neither_the_training_nor_its_end_waits_for_the_hub(hub, run_dir):
    is_heard = threading.Event()
    hub.fail(f"{COMMIT}4", is_heard)
    pushing = Pushing(run_dir)
    with pushing.pusher:
        for step in (4, 8):
            pushing.pusher.hold(checkpoint(run_dir, step))
    assert "step-4" not in hub.revisions or WEIGHTS_NAME not in hub.revisions["step-4"]
    assert Outbox(run_dir).steps()[-1] == 8
    is_heard.set()
    pushing.pusher._thread.join()  # before this Hub is gone
    assert pushing.events == []


def test_a_full_disk_gives_up_what_has_waited_longest(hub, run_dir, monkeypatch, capsys):
    pushing = Pushing(run_dir, step=0)
    free = iter([10**9, 0, 10**9])
    monkeypatch.setattr(pusher.shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free)))
    for step in (4, 8):
        pushing.pusher.hold(checkpoint(run_dir, step))
    assert Outbox(run_dir).steps() == [8]
    assert [event[:2] for event in pushing.events] == [("push_failed", 4)]
    assert "step-4: the disk is full, so it will not be sent" in capsys.readouterr().err


def test_an_error_of_the_file_system_is_waited_out(hub, run_dir, monkeypatch, capsys):
    monkeypatch.setattr(pusher, "PAUSE_SECONDS", 0.01)
    failures = {"take": 2, "give_back": 2}
    functions = {name: getattr(Outbox, name) for name in failures}

    def fail_at_first(name, *arguments):
        failures[name] -= 1
        if failures[name] >= 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        return functions[name](*arguments)

    monkeypatch.setattr(Outbox, "take", lambda *a: fail_at_first("take", *a))
    monkeypatch.setattr(Outbox, "give_back", lambda *a: fail_at_first("give_back", *a))
    hub.fail(f"{COMMIT}4", 500, times=1)
    pushing = Pushing(run_dir, retries=QUICK)
    with pushing.pusher:
        pushing.pusher.hold(checkpoint(run_dir, 4))
        wait_for(lambda: pushing.events)
        pushing.pusher.finish()
    assert [event[:2] for event in pushing.events] == [("pushed", 4)]
    assert failures["take"] < 0 and failures["give_back"] < 0
    assert capsys.readouterr().err.count("Stale file handle; the run goes on, and sending is") == 1


@pytest.mark.gate
def test_an_error_of_the_file_system_that_stays_does_not_keep_a_run_from_its_end(
    hub, run_dir, monkeypatch, capsys
):
    def fail(self, step):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Outbox, "take", fail)
    assert Pushing(run_dir).send(checkpoint(run_dir, 4)) == []
    error = capsys.readouterr().err
    assert error.count("Read-only") == 1 and "step-4 could not be sent" in error


def test_a_run_is_refused_without_a_login_a_right_or_a_place_of_its_own(hub, monkeypatch, capsys):
    def problem(repository=REPOSITORY, *, private=False):
        with pytest.raises(LaunchError) as error:
            prepare_repository(repository, private=private, is_own=False)
        return str(error.value)

    prepare_repository(REPOSITORY, private=False, is_own=False)
    assert "expected a private repository, found a public one" in problem(private=True)
    assert "there is no such user or organization" in problem("nobody/tiny")
    hub.revisions["step-4"] = {}
    assert problem() == (
        f"{REPOSITORY}: expected no branches of another run, found step-4; name another "
        f"repository, or delete these branches"
    )
    prepare_repository(REPOSITORY, private=False, is_own=True)
    monkeypatch.setenv("HF_TOKEN", "hf_status_403")
    assert "use a token with write access to the repository" in problem()
    monkeypatch.setenv("HF_TOKEN", "“hf_quoted”")
    assert problem().startswith("expected a token of letters and digits, such as hf_..., found one")
    monkeypatch.delenv("HF_TOKEN")
    assert problem().startswith("expected a login at the Hub, found none")


def test_a_hub_that_is_down_keeps_no_run_from_its_start(hub, monkeypatch, capsys):
    monkeypatch.setattr(revisions, "AT_START", QUICK)
    monkeypatch.setenv("HF_TOKEN", "hf_status_503")
    prepare_repository(REPOSITORY, private=False, is_own=False)
    assert "checkpoints are kept until the Hub answers" in capsys.readouterr().err
