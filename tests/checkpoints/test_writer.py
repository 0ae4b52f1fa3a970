"""The writer of checkpoints: what it writes, what fails, and what a kill at any moment leaves."""

import errno
import os
import resource
import shutil
import signal
import threading

import pytest
import torch
from safetensors.torch import load_file
from support.processes import PATIENCE
from support.tiny_models import random_ids, tiny_model, tiny_tokenizer

from modeling_gpt2scratch.checkpoints import retention as checkpoint_retention
from modeling_gpt2scratch.checkpoints import snapshot as checkpoint_snapshot
from modeling_gpt2scratch.checkpoints import writer as writing
from modeling_gpt2scratch.checkpoints.checkpoint import find_checkpoint, verify_checkpoint
from modeling_gpt2scratch.checkpoints.writer import CheckpointWriter
from modeling_gpt2scratch.common import atomic_files
from modeling_gpt2scratch.optim.optimizer import make_optimizer


@pytest.fixture
def parts():
    """What a checkpoint is made of, after one step."""
    model = tiny_model().train()
    optimizer = make_optimizer(model, learning_rate=0.01, weight_decay=0.1)
    parts = {"model": model, "tokenizer": tiny_tokenizer(), "optimizer": optimizer}
    train(parts)
    return parts


def train(parts, *, seed=0):
    """One step."""
    ids = random_ids(2, 16, seed=seed)
    parts["model"](ids, labels=ids).loss.backward()
    parts["optimizer"].step()
    parts["optimizer"].zero_grad()


def make_writer(output_dir, **changes):
    """A writer that keeps all, without a background."""
    options = {"keep_checkpoints": 0, "keep_every": 0, "in_background": False}
    return CheckpointWriter(output_dir, **options | changes)


def names(directory):
    """What is in a directory."""
    return {path.name for path in directory.iterdir()}


def files_of(directory):
    """The files in a directory and in its folders, by their paths there."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path for path in files}


def test_it_holds_what_save_pretrained_writes_and_no_more_than_needed(tmp_path, parts):
    make_writer(tmp_path / "run").save(**parts, state={"step": 1})
    parts["model"].save_pretrained(tmp_path / "reference")
    parts["tokenizer"].save_pretrained(tmp_path / "reference")
    written, reference = tmp_path / "run" / "checkpoint-1", tmp_path / "reference"
    for file in reference.iterdir():
        assert (written / file.name).read_bytes() == file.read_bytes(), file.name
    more = {"optimizer/state.safetensors", "training_state.json", "checksums.json"}
    assert files_of(written).keys() == names(reference) | more
    assert (tmp_path / "run" / "latest").read_text() == "checkpoint-1\n"


def test_a_background_save_has_the_tensors_as_they_were(tmp_path, parts, monkeypatch):
    may_write = threading.Event()
    write = checkpoint_snapshot.Snapshot.write

    def write_later(*arguments):
        assert may_write.wait(timeout=PATIENCE)
        return write(*arguments)

    make_writer(tmp_path / "reference").save(**parts, state={"step": 1})
    monkeypatch.setattr(checkpoint_snapshot.Snapshot, "write", write_later)
    writer = make_writer(tmp_path / "run", in_background=True)
    writer.save(**parts, state={"step": 1})
    train(parts, seed=1)
    assert not (tmp_path / "run" / "checkpoint-1").exists()
    may_write.set()
    writer.save(**parts, state={"step": 2})  # waits for the first, and reuses its memory
    train(parts, seed=2)
    writer.wait()
    writer.close()
    written = files_of(tmp_path / "run" / "checkpoint-1")
    reference = files_of(tmp_path / "reference" / "checkpoint-1")
    assert written.keys() == reference.keys() > {"optimizer/state.safetensors"}
    for name, file in reference.items():
        assert written[name].read_bytes() == file.read_bytes()
    verify_checkpoint(tmp_path / "run" / "checkpoint-2")


def test_making_and_rehearsing_leave_random_numbers_and_the_disk_alone(tmp_path, parts):
    before = torch.get_rng_state()
    writer = make_writer(tmp_path / "run", in_background=True)
    writer.rehearse(**parts, state={"step": 0})
    assert names(tmp_path / "run") == set()
    assert torch.equal(torch.get_rng_state(), before)
    writer.close()


def test_a_failure_in_the_background_is_seen_at_once_and_raised_once(tmp_path, parts, monkeypatch):
    def disk_full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "state.safetensors")

    writer = make_writer(tmp_path, in_background=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_snapshot, "write_slices", disk_full)
        writer.save(**parts, state={"step": 1})
        writer._thread.join()
    assert (
        "checkpoint-1: state.safetensors: expected to read or write it, found No space"
        in writer.problem
    )
    with pytest.raises(OSError, match="checkpoint-1: .* No space left on device; mend"):
        writer.save(**parts, state={"step": 2})
    assert names(tmp_path) == set()
    writer.save(**parts, state={"step": 2})
    writer.wait()
    assert names(tmp_path) == {"checkpoint-2", "latest"}
    writer.close()


def test_bits_that_the_disk_changed_are_noticed_before_anything_is_published(
    tmp_path, parts, monkeypatch
):
    def flip(path):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(checkpoint_snapshot, "drop_from_cache", flip)
    with pytest.raises(OSError, match="as it was written, found other bits"):
        make_writer(tmp_path).save(**parts, state={"step": 1})
    assert names(tmp_path) == set()


def test_a_disk_that_is_full_at_any_byte_leaves_the_last_checkpoint(tmp_path, parts):
    make_writer(tmp_path).save(**parts, state={"step": 1})
    written = files_of(tmp_path / "checkpoint-1")
    sizes = sorted(file.stat().st_size for file in written.values())
    for n_bytes in {sizes[0] // 2, sizes[-3] + 1, sizes[-2] - 1, sizes[-1] - 1}:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
            try:
                make_writer(tmp_path).save(**parts, state={"step": 2})
            except OSError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert names(tmp_path) == {"checkpoint-1", "latest"}
    make_writer(tmp_path).save(**parts, state={"step": 2})


# Every call by which a save changes what is on the disk under a name.
BOOKKEEPING = [
    *((atomic_files.os, name) for name in ("replace", "rename")),
    *((shutil, name) for name in ("rmtree",)),
    *((checkpoint_snapshot, name) for name in ("write_slices", "save_pretrained", "_read_back")),
    *((writing, name) for name in ("write_checksums", "publish_directory", "write_file", "prune")),
    (checkpoint_retention.Path, "rename"),
]


def die_at(call_number: int) -> None:
    """Makes the process kill itself before that call of the bookkeeping, counted from 0."""
    n_calls = 0

    def with_kill(function):
        def counted(*args, **kwargs):
            nonlocal n_calls
            if n_calls == call_number:
                os.kill(os.getpid(), signal.SIGKILL)
            n_calls += 1
            return function(*args, **kwargs)

        return counted

    for module, name in BOOKKEEPING:
        setattr(module, name, with_kill(getattr(module, name)))


def save_until_killed(output_dir, parts, *, step: int, call_number: int) -> bool:
    """Saves in a child that dies at this call; whether it came to that."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            writer = make_writer(output_dir, keep_checkpoints=2, in_background=True)
            die_at(call_number)
            writer.save(**parts, state={"step": step})
            writer.wait()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.gate
@pytest.mark.parametrize("step", [3, 2], ids=["a new checkpoint", "one that exists"])
def test_a_kill_before_any_call_of_a_save_leaves_a_good_checkpoint(
    tmp_path, parts, monkeypatch, step
):
    # Unlike a power cut, a kill loses nothing that was not flushed.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    template = tmp_path / "template"
    for number in (1, 2):
        make_writer(template).save(**parts, state={"step": number})
    for call_number in range(200):
        run = tmp_path / str(call_number)
        shutil.copytree(template, run)
        was_killed = save_until_killed(run, parts, step=step, call_number=call_number)
        latest = (run / "latest").read_text().strip()
        assert latest in ("checkpoint-2", f"checkpoint-{step}")
        found = find_checkpoint(run)
        verify_checkpoint(found)
        assert load_file(found / "optimizer" / "state.safetensors").keys()
        if step == 3:
            assert found.name == latest
        # The next start clears up, and the same save succeeds.
        make_writer(run, keep_checkpoints=2).save(**parts, state={"step": step})
        kept = (
            {"checkpoint-2", f"checkpoint-{step}"}
            if step == 3
            else {"checkpoint-1", "checkpoint-2"}
        )
        assert names(run) == kept | {"latest"}
        for name in kept:
            verify_checkpoint(run / name)
        shutil.rmtree(run)
        if not was_killed:
            break
    assert not was_killed and call_number > 20


def test_too_small_a_disk_is_refused_before_the_first_step(tmp_path, parts, monkeypatch):
    parts["optimizer"].state.clear()  # the moments that will come are counted as well
    n_weights = sum(p.numel() * 4 for p in parts["model"].parameters())
    usage = type("Usage", (), {"free": 4 * 3 * n_weights - 1})
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: usage)
    parts |= {"state": {"step": 0}, "save_every": 10}
    for keep, last_step, remedy in (
        (3, 100, " or lower --keep_checkpoints"),
        (0, 40, " or give --keep_checkpoints 3"),
    ):
        message = (
            rf"^{tmp_path}.*: expected (\S+) GB free for 4 more checkpoints of \S+ GB, found \1; "
            f"free some{remedy}$"
        )
        with pytest.raises(OSError, match=message):
            make_writer(tmp_path, keep_checkpoints=keep).rehearse(**parts, last_step=last_step)
        make_writer(tmp_path, keep_checkpoints=keep).rehearse(**parts, last_step=30)
    make_writer(tmp_path, keep_checkpoints=2).rehearse(**parts, last_step=100)


def test_a_directory_that_cannot_be_written_is_refused_before_the_first_step(tmp_path, parts):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        make_writer(tmp_path / "file" / "run").rehearse(**parts, state={"step": 0})
