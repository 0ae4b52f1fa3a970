"""The directory of a run: continued, branched off, replaced, or left alone."""

import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from filelock import FileLock
from support.paths import REPOSITORY
from support.processes import PATIENCE, started, wait_until
from support.training_runs import (
    curve,
    events_of,
    flags,
    launch,
    launcher_of,
    our_launcher_of,
    refusal,
    run_here,
)

from modeling_gpt2scratch.training import directory, loop
from modeling_gpt2scratch.training.directory import OutputLock
from modeling_gpt2scratch.training.progress import BestValidation

BY_SIGNAL = "128 and its number"  # in place of an exit code


@pytest.mark.gate
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("launcher", "code"),
    # torchrun calls every signal a failure, even if its processes ended well.
    [
        (launcher_of("cpu_2proc.yaml"), 1),
        (our_launcher_of("cpu.yaml"), 0),
        (our_launcher_of("cpu_2proc.yaml"), BY_SIGNAL),
    ],
    ids=["two processes", "our launcher, one", "our launcher, two"],
)
def test_a_signal_finishes_the_step_saves_and_exits(
    small_data, tmp_path, hang_up_is_heard, launcher, code, number
):
    output_dir = tmp_path / "stopped"
    arguments = flags(small_data, output_dir, max_steps=100_000, eval_every=0, save_every=0)
    command = [sys.executable, *launcher, "train_accelerate.py", *arguments]
    with started(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        wait_until(lambda: len(curve(output_dir)) >= 3, process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == (128 + number if code == BY_SIGNAL else code)
    last = max(curve(output_dir))
    assert f"stopped after step {last}; continue with --resume auto" in output
    assert (output_dir / f"checkpoint-{last}" / "training_state.json").exists()
    assert not (output_dir / "model.safetensors").exists()


@pytest.mark.gate
def test_ctrl_c_on_one_machine_ends_the_other_as_well(small_data, tmp_path):
    output_dir = tmp_path / "stopped"
    arguments = flags(small_data, output_dir, max_steps=100_000, eval_every=0, save_every=0)
    command = [sys.executable, "train_accelerate.py", *arguments]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    options = {"cwd": REPOSITORY, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ranks = [group | {"RANK": str(rank), "LOCAL_RANK": "0"} for rank in range(2)]
    with (
        started(command, env=os.environ | ranks[0], **options) as first,
        started(command, env=os.environ | ranks[1], **options) as second,
    ):
        wait_until(lambda: len(curve(output_dir)) >= 3, first)
        second.send_signal(signal.SIGINT)
        outputs = [process.communicate(timeout=PATIENCE) for process in (first, second)]
    assert (first.returncode, second.returncode) == (130, 130)
    last = max(curve(output_dir))
    for _, error in outputs:
        assert "Traceback" not in error and f"stopped after step {last}" in error
    assert (output_dir / f"checkpoint-{last}" / "training_state.json").exists()


@pytest.mark.gate
def test_a_full_disk_ends_in_one_line_with_the_last_checkpoint_intact(
    run_copy, small_data, monkeypatch
):
    # A file-size limit between the weights and the optimizer's state stands in for the disk.
    n_bytes = (run_copy / "model.safetensors").stat().st_size + 20_000
    optimizer_file = run_copy / "checkpoint-8" / "optimizer" / "state.safetensors"
    assert n_bytes < optimizer_file.stat().st_size

    def limit_file_size():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    # The rehearsal would find out before the first step.
    arguments = flags(small_data, run_copy, resume="auto", preflight=False)
    process = launch(*arguments, preexec_fn=limit_file_size)
    assert process.returncode == 1
    errors = [line for line in process.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1 and "checkpoint-12" in errors[0] and "large" in errors[0]
    assert not list(run_copy.glob(".*")) and not (run_copy / "checkpoint-12").exists()
    assert run_here(monkeypatch, *arguments) == 0
    assert (run_copy / "checkpoint-12").exists()


def test_a_finished_run_is_not_trained_on(finished, small_data, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert run_here(monkeypatch, *flags(small_data, copy, resume="auto")) == 0
    assert curve(copy) == curve(finished)


def test_resume_auto_starts_a_run_that_has_no_checkpoint_yet(small_data, tmp_path, monkeypatch):
    arguments = flags(small_data, tmp_path / "new", resume="auto", max_steps=1)
    assert run_here(monkeypatch, *arguments) == 0
    assert len(curve(tmp_path / "new")) == 1


@pytest.mark.gate
def test_another_directory_can_continue_from_a_checkpoint(
    finished, small_data, tmp_path, monkeypatch
):
    branch = tmp_path / "branch"
    arguments = flags(small_data, branch, resume=finished / "checkpoint-8")
    assert run_here(monkeypatch, *arguments) == 0
    assert curve(branch) == {step: curve(finished)[step] for step in range(9, 13)}


@pytest.mark.gate
def test_overwrite_with_a_foreign_checkpoint_leaves_nothing_of_the_old_run(
    finished, run_copy, small_data, monkeypatch
):
    # `run_copy` is to become a branch of `finished`.
    arguments = flags(small_data, run_copy, resume=finished / "checkpoint-8", save_every=0)
    assert run_here(monkeypatch, *arguments, "--overwrite") == 0
    assert [path.name for path in run_copy.glob("checkpoint-*")] == ["checkpoint-12"]
    assert curve(run_copy).keys() == set(range(9, 13))


def test_overwrite_replaces_a_run_and_nothing_else(
    run_copy, small_data, tmp_path, monkeypatch, capsys
):
    arguments = flags(small_data, run_copy, max_steps=1)
    code, error = refusal(monkeypatch, capsys, *arguments)
    go_on = f"{run_copy}; add --resume auto to go on with it"
    assert code == 2 and error.endswith(f"{go_on}, or --overwrite to delete it")
    with monkeypatch.context() as patch:  # where --overwrite is refused
        patch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        code, error = refusal(patch, capsys, *arguments)
    assert code == 2 and error.endswith("; add --resume auto")
    assert run_here(monkeypatch, *arguments, "--overwrite") == 0
    assert sorted(path.name for path in run_copy.glob("checkpoint-*")) == ["checkpoint-1"]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    arguments = flags(small_data, other, max_steps=1)
    code, error = refusal(monkeypatch, capsys, *arguments, "--overwrite")
    assert code == 2 and "found other content" in error


def test_a_checkpoint_is_not_continued_on_data_of_another_tokenizer(
    run_copy, small_data, tmp_path, monkeypatch, capsys
):
    data = shutil.copytree(small_data, tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["tokenizer"]["fingerprint"] = "0" * 64
    (data / "manifest.json").write_text(json.dumps(manifest))
    code, error = refusal(monkeypatch, capsys, *flags(data, run_copy, resume="auto"))
    assert code == 1 and "expected tokenizer.fingerprint = " in error
    # Without a checkpoint, the tokenizer's own files give the swap away.
    code, error = refusal(monkeypatch, capsys, *flags(data, tmp_path / "new"))
    assert code == 1 and "expected a tokenizer of (entries, end-of-text id, fingerprint)" in error


def test_a_resumed_run_may_not_end_before_its_checkpoint(run_copy, small_data, monkeypatch, capsys):
    arguments = flags(small_data, run_copy, resume="auto", max_steps=5)
    code, error = refusal(monkeypatch, capsys, *arguments)
    assert code == 2 and "expected --max_steps of at least 8" in error


def test_a_run_is_not_deleted_by_its_own_second_attempt(run_copy, small_data, monkeypatch, capsys):
    for resume in ("auto", run_copy, run_copy / "checkpoint-8"):
        arguments = flags(small_data, run_copy, resume=resume, overwrite=True)
        code, error = refusal(monkeypatch, capsys, *arguments)
        assert code == 2 and f"expected --resume {resume} or --overwrite, found both" in error
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    code, error = refusal(monkeypatch, capsys, *flags(small_data, run_copy, overwrite=True))
    assert code == 2 and "expected --resume auto where the launcher starts a run again" in error
    assert (run_copy / "checkpoint-8" / "model.safetensors").exists()


def test_a_directory_in_which_a_run_is_going_on_is_refused(
    run_copy, small_data, monkeypatch, capsys
):
    lock = OutputLock(run_copy)
    lock.acquire()
    for more in ({"resume": "auto"}, {"overwrite": True}):
        arguments = flags(small_data, run_copy, **more)
        code, error = refusal(monkeypatch, capsys, *arguments)
        assert code == 2 and "found one that is still going on; wait for it" in error
    assert (run_copy / "checkpoint-8" / "model.safetensors").exists()
    lock.close()
    assert run_here(monkeypatch, *flags(small_data, run_copy, resume="auto")) == 0


def test_a_signal_after_the_last_line_does_not_change_how_the_run_ended(
    small_data, tmp_path, monkeypatch
):
    class Late(loop.StopRequest):
        def __exit__(self, *error):
            super().__exit__(*error)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "StopRequest", Late)
    options = {"max_steps": 1, "eval_every": 0, "preflight": False}
    assert run_here(monkeypatch, *flags(small_data, tmp_path / "run", **options)) != 0
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status == {"status": "finished", "step": 1}


def test_a_run_within_another_is_not_deleted_with_it(
    run_copy, small_data, tmp_path, monkeypatch, capsys
):
    inner = shutil.copytree(run_copy, run_copy / "inner")
    arguments = flags(small_data, run_copy, overwrite=True)
    code, error = refusal(monkeypatch, capsys, *arguments)
    expected = f"expected no other run in {run_copy}, found {inner}; choose another --output_dir"
    assert code == 2 and error.endswith(expected)
    (inner / "train_config.json").unlink()
    with FileLock(inner / "run.lock"):
        assert expected in refusal(monkeypatch, capsys, *arguments)[1]
    assert (run_copy / "checkpoint-8").is_dir() and (inner / "checkpoint-8").is_dir()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_directory_that_is_deleted_ends_the_run_in_one_line(
    small_data, tmp_path, monkeypatch, capsys, is_replaced
):
    output_dir = tmp_path / "run"
    train_step = loop.train_step

    def delete_and_step(run, *arguments):
        if run.progress.step == 5:
            run.writer.wait()  # else checkpoint-4 may come and go under `rmtree`
            shutil.rmtree(output_dir)
            if is_replaced:
                output_dir.mkdir()
                (output_dir / "run.lock").touch()
        return train_step(run, *arguments)

    monkeypatch.setattr(loop, "train_step", delete_and_step)
    code, error = refusal(monkeypatch, capsys, *flags(small_data, output_dir))
    assert code == 1 and "found that it was deleted or replaced while the run went on" in error
    left = [path.name for path in output_dir.iterdir()] if output_dir.exists() else None
    assert left == (["run.lock"] if is_replaced else None)


@pytest.mark.gate
def test_damaged_logs_do_not_block_a_run_whose_checkpoint_is_sound(
    run_copy, small_data, monkeypatch, capsys
):
    metrics, events = run_copy / "metrics.jsonl", run_copy / "events.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([*lines[:2], b"\xff{oops\n", *lines[3:5], lines[5][:9]]))
    events.write_text('{"event": "spike", "step": 3}\n{"time": "2026-11-29T20:')
    assert run_here(monkeypatch, *flags(small_data, run_copy, resume="auto")) == 0
    printed = capsys.readouterr()
    assert f"warning: {metrics}:3: expected a JSON object, found \ufffd{{oops;" in printed.err
    assert f"warning: {metrics}:6: expected a JSON object, found " in printed.err
    assert f"warning: {events}:2: expected a complete line, found " in printed.err
    assert (
        f"{metrics}: expected a line for step 8, where checkpoint-8 is, found the last one for "
        f"step 5; the lines between are lost"
    ) in printed.out
    assert curve(run_copy).keys() == {1, 2, 4, 5, 9, 10, 11, 12}
    spike, gap = events_of(run_copy)
    assert spike == {"event": "spike", "step": 3}
    assert (gap["event"], gap["step"], gap["from_step"]) == ("gap", 8, 5)
    # A file that is gone altogether is a gap as well; a branch has none.
    metrics.unlink()
    assert run_here(monkeypatch, *flags(small_data, run_copy, resume="auto")) == 0
    assert "found the last one for step 0" in capsys.readouterr().out


def test_the_next_command_says_that_the_last_process_was_killed(
    run_copy, small_data, monkeypatch, capsys
):
    (run_copy / "status.json").write_text('{"status": "running", "step": 8}')
    assert run_here(monkeypatch, *flags(small_data, run_copy, resume="auto")) == 0
    assert f"{run_copy}: the last process of this run left no status" in capsys.readouterr().out
    assert json.loads((run_copy / "status.json").read_text()) == {"status": "finished", "step": 12}


def test_a_file_system_that_does_not_answer_takes_no_directory_away(tmp_path, monkeypatch):
    lock = OutputLock(tmp_path / "run")
    lock.acquire()
    stat = os.stat

    def unreachable(path, *arguments, **options):
        if str(path) == str(tmp_path / "run" / "run.lock"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return stat(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(directory.os, "stat", unreachable)
        assert not lock.is_lost
    shutil.rmtree(tmp_path / "run")
    assert lock.is_lost


def test_a_checkpoint_whose_successor_never_came_is_gone_on_from(
    small_data, tmp_path, monkeypatch, capsys
):
    output_dir = tmp_path / "run"
    options = {"eval_every": 0, "save_every": 4, "dropout": 0, "resume": "auto"}
    assert run_here(monkeypatch, *flags(small_data, output_dir, **options, max_steps=4)) == 0
    # What a kill leaves between the two renames that replace a checkpoint.
    (output_dir / "checkpoint-4").rename(output_dir / ".checkpoint-4.old")
    capsys.readouterr()
    assert run_here(monkeypatch, *flags(small_data, output_dir, **options, max_steps=6)) == 0
    assert "4 to 6, " in capsys.readouterr().out
    assert sorted(curve(output_dir)) == [1, 2, 3, 4, 5, 6]


def test_a_validation_that_is_made_again_is_no_further_loss(small_data, tmp_path, monkeypatch):
    output_dir = tmp_path / "run"
    options = {"eval_every": 2, "save_every": 2, "patience": 3, "keep_checkpoints": 0}
    with monkeypatch.context() as patch:
        patch.setattr(
            "modeling_gpt2scratch.training.loop.validate", lambda *_, **__: {"eval_loss": 9}
        )
        assert run_here(patch, *flags(small_data, output_dir, **options, max_steps=6)) == 0
        resumed = ["--resume", str(output_dir / "checkpoint-4")]
        assert (
            run_here(patch, *flags(small_data, output_dir, **options, max_steps=4), *resumed) == 0
        )
    state = json.loads((output_dir / "checkpoint-4" / "training_state.json").read_text())
    assert state["best"] == {"step": 2, "loss": 9, "n_since": 1, "last_step": 4}


@pytest.mark.gate
def test_only_losses_of_the_same_windows_and_checkpoints_of_the_same_run_are_compared(
    small_data, tmp_path, monkeypatch
):
    first = tmp_path / "first"
    options = {"eval_every": 2, "save_every": 2, "max_steps": 4, "keep_best": True}
    assert run_here(monkeypatch, *flags(small_data, first, **options)) == 0

    def best_after(output_dir, **changes) -> int:
        arguments = flags(small_data, output_dir, **options | {"max_steps": 6} | changes)
        resumed = ["--resume", str(first / "checkpoint-4")]
        with monkeypatch.context() as patch:
            patch.setattr(BestValidation, "add", lambda self, step, loss: False)
            assert run_here(patch, *arguments, *resumed) == 0
        state = json.loads((output_dir / "checkpoint-6" / "training_state.json").read_text())
        return state["best"]["step"]

    assert best_after(first) == 4
    assert best_after(first, eval_tokens=1024) is None
    other = tmp_path / "other"  # the same rows for training, others held out
    shutil.copytree(small_data, other)
    manifest = json.loads((other / "manifest.json").read_text())
    last = manifest["splits"]["train"]["shards"][-1]
    shutil.copyfile(other / last["file"], other / "val_000000.bin")
    held_out = manifest["splits"]["val"]
    held_out |= {"shards": [last | {"file": "val_000000.bin"}], "n_tokens": last["n_tokens"]}
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert best_after(first, data=other) is None
    shutil.copytree(first, second := tmp_path / "second")
    assert best_after(second, overwrite=True) is None
