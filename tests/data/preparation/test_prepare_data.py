"""The script: its arguments, its directory, and what it says as a process of its own."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.prepared_data import documents_of, manifest_of, names_in
from support.processes import PATIENCE, run_process, started, wait_until
from support.servers import fake_hub
from support.tiny_corpus import fables, write_jsonl

import prepare_data
from modeling_gpt2scratch.data.preparation import prepare as preparation

SCRIPT = Path(prepare_data.__file__)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ("--tokenizer", "bpe:abc"),
            "bpe:abc: expected bpe:N with N from 257 to 65536, found 'abc'",
        ),
        (("--tokenizer", "bpe:10"), "bpe:10: expected bpe:N with N from 257 to 65536, found '10'"),
        (("--shard_tokens", "0"), "--shard_tokens: expected a number above 0, found 0"),
        (("--num_workers", "-1"), "--num_workers: expected a number above 0, found -1"),
        (("--limit_documents", "0"), "--limit_documents: expected a number above 0, found 0"),
        (("--limit_documents", "ten"), "--limit_documents: expected a whole number, found 'ten'"),
        (("--seed", "-1"), "--seed: expected a number of at least 0, found -1"),
        (("--val_fraction", "1"), "--val_fraction: expected a number in [0, 1), found 1.0"),
        (("--val_fraction", "-0.1"), "--val_fraction: expected a number in [0, 1), found -0.1"),
        (("--val_fraction", "nan"), "--val_fraction: expected a number in [0, 1), found nan"),
        (("--dataset", "a:0.7,b:0.2"), "weights of --dataset that sum to 1, found a sum of 0.9"),
        (("--shard_token", "5"), "--shard_token"),
        (("--colour", "red"), "--colour"),
        # A shard counts its tokens in an int32.
        (("--shard_tokens", str(2**31)), "--shard_tokens"),
        (("--output_dir", "."), "--output_dir"),
        (("--output_dir", ""), "--output_dir"),
    ],
)
def test_bad_arguments_end_in_one_line_before_any_work(
    tmp_path, run_script, monkeypatch, flags, expected
):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(30))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, (error,) = run_script(tmp_path / "out", dataset, "--tokenizer", "bpe:300", *flags)
    assert code == 2
    assert error.startswith("prepare_data.py: error: ")
    assert expected in error
    assert names_in(tmp_path) == ["empty", "fables.jsonl"]
    assert names_in(tmp_path / "empty") == []


def test_a_pattern_that_the_shell_replaced_is_named(tmp_path, run_script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    code, (error,) = run_script("out", "a.txt", "b.txt")  # of `--dataset *.txt`
    assert (code, names_in(tmp_path)) == (2, ["a.txt", "b.txt"])
    assert "found 'b.txt'; if the shell expanded a pattern, quote it" in error


def test_an_existing_data_directory_is_kept_unless_it_may_be_overwritten(
    tmp_path, prepared, run_script
):
    out = tmp_path / "out"
    prepared(out, write_jsonl(tmp_path / "old.jsonl", fables(30)), "--val_fraction", "0")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    new = write_jsonl(tmp_path / "new.jsonl", fables(20, seed=1))

    code, (error,) = run_script(out, new, "--tokenizer", "bpe:300", "--val_fraction", "0")
    assert code == 2
    assert error == (
        f"prepare_data.py: error: expected a new directory, found manifest.json in {out}; "
        f"choose another or add --overwrite"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    prepared(out, new, "--val_fraction", "0", "--overwrite", "--no_shuffle")
    assert documents_of(out, "train") == fables(20, seed=1)
    assert names_in(tmp_path) == ["new.jsonl", "old.jsonl", "out"]


def test_the_same_command_again_has_nothing_to_do(tmp_path, prepared, run_script):
    out, dataset = tmp_path / "out", write_jsonl(tmp_path / "fables.jsonl", fables(30))
    flags = ("--tokenizer", "bpe:300", "--val_fraction", "0")
    os.utime(dataset, (tomorrow := time.time() + 86_400, tomorrow))  # as a wrong clock wrote it
    assert run_script(out, dataset, *flags) == (0, [])
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    for more in ((), ("--num_workers", "1")):
        assert run_script(out, dataset, *flags, *more) == (0, [])
        assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before

    code, (error,) = run_script(out, dataset, *flags, "--seed", "1")
    assert code == 2 and "expected a new directory, found manifest.json in " in error
    dataset.chmod(0o444)  # which changes nothing of the text
    assert run_script(out, dataset, *flags) == (0, [])
    dataset.chmod(0o644)
    write_jsonl(dataset, fables(30))
    code, (error,) = run_script(out, dataset, *flags)
    assert code == 1 and "found that their input has changed since" in error
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert run_script(out, dataset, *flags, "--overwrite") == (0, [])
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} != before


def test_another_commit_of_a_data_set_is_another_input(tmp_path, run_script, monkeypatch):
    out, dataset = tmp_path / "out", write_jsonl(tmp_path / "fables.jsonl", fables(30))
    flags = ("--tokenizer", "bpe:300", "--val_fraction", "0")
    assert run_script(out, dataset, *flags) == (0, [])
    (source,) = manifest_of(out)["sources"]
    now = source | {"revision": "b" * 40}
    monkeypatch.setattr(preparation, "describe_sources", lambda sources: [now])
    code, (error,) = run_script(out, dataset, *flags)
    assert code == 1 and "found that their input has changed since" in error


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (lambda out: (out / "train_000000.bin").unlink(), 1, "train_000000.bin: "),
        (lambda out: os.truncate(out / "train_000000.bin", 99), 1, "train_000000.bin: "),
        (lambda out: (out / "tokenizer.json").unlink(), 1, "tokenizer"),
        (lambda out: (out / "manifest.json").unlink(), 2, "expected "),
        (lambda out: edit_manifest(out, splits={}), 2, "expected a new directory, found manifest"),
    ],
    ids=["no shard", "a cut shard", "no tokenizer", "no manifest", "a manifest of nothing"],
)
def test_damaged_data_are_not_taken_for_made_before(
    tmp_path, prepared, run_script, damage, code, message
):
    out, dataset = tmp_path / "out", write_jsonl(tmp_path / "fables.jsonl", fables(30))
    prepared(out, dataset, "--val_fraction", "0")
    damage(out)
    flags = ("--tokenizer", "bpe:300", "--val_fraction", "0")
    found, (error,) = run_script(out, dataset, *flags)
    assert found == code and message in error
    assert "--overwrite" in error or "choose another" in error


def edit_manifest(out, **changes):
    content = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(content | changes))


def test_a_failed_attempt_to_overwrite_keeps_the_old_data(tmp_path, prepared, run_script):
    out = tmp_path / "out"
    prepared(out, write_jsonl(tmp_path / "old.jsonl", fables(30)), "--val_fraction", "0")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    # A directory as the tokenizer, so that nothing reads the bad line before shards are written.
    new = write_jsonl(tmp_path / "new.jsonl", fables(2000))
    new.write_text(new.read_text() + "{oops\n")
    flags = ("--tokenizer", out, "--shard_tokens", "1000", "--overwrite")
    code, (error,) = run_script(out, new, *flags)
    assert code == 1
    assert f"{new}:2001: expected one JSON object per line" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert names_in(tmp_path) == ["new.jsonl", "old.jsonl", "out"]


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_a_directory_with_other_content_is_never_touched(tmp_path, run_script, flags):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(30))
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    code, (error,) = run_script(out, dataset, "--tokenizer", "bpe:300", *flags)
    assert code == 2
    assert error == (
        f"prepare_data.py: error: expected {out} to be new or to hold manifest.json, "
        f"found other content; choose another"
    )
    assert (out / "thesis.txt").read_text() == "years of work"
    assert names_in(tmp_path) == ["fables.jsonl", "out"]


def test_a_file_in_the_place_of_the_directory_is_never_touched(tmp_path, run_script):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(30))
    code, (error,) = run_script(dataset, dataset, "--tokenizer", "bpe:300", "--overwrite")
    assert code == 2
    assert f"expected --output_dir {dataset} to be new" in error
    assert len(dataset.read_text().splitlines()) == 30


def test_an_empty_directory_is_filled(tmp_path, prepared):
    documents = fables(20)
    (tmp_path / "out").mkdir()
    dataset = write_jsonl(tmp_path / "fables.jsonl", documents)
    out = prepared(tmp_path / "out", dataset, "--val_fraction", "0", "--no_shuffle")
    assert documents_of(out, "train") == documents


@contextlib.contextmanager
def file_size_limit(n_bytes):
    """Lets no file grow beyond so many bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource", reason="needs limits of a Unix process")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Without this, a limit met while Python caches a compiled module would truncate the cache.
    dont_write_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = dont_write_bytecode


@pytest.mark.parametrize(
    ("shard_tokens", "n_bytes"), [(100_000, 5_000), (1_000, 5_000)], ids=["shard", "tokenizer"]
)
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(
    tmp_path, run_script, saved_tokenizer, shard_tokens, n_bytes
):
    # A shard of 1,000 tokens has 3,024 bytes; tokenizer.json is larger than 5,000.
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(300))
    flags = ("--tokenizer", saved_tokenizer, "--shard_tokens", shard_tokens, "--num_workers", 1)
    with file_size_limit(n_bytes):
        code, errors = run_script(tmp_path / "out", dataset, *flags, "--val_fraction", "0")
    assert code == 1
    assert len(errors) == 1
    assert "File too large" in errors[0]
    assert names_in(tmp_path) == ["fables.jsonl"]


# The script as a process of its own


def command_line(*arguments):
    """The script with these arguments, for a process of its own."""
    return [str(part) for part in (sys.executable, SCRIPT, *arguments)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "streams", ["<&- >&- 2>&-", pytest.param("2>/dev/full", marks=pytest.mark.gate)]
)
def test_a_preparation_needs_nobody_who_reads_its_messages(tmp_path, saved_tokenizer, streams):
    if "full" in streams and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    (tmp_path / "one.txt").write_text("\n".join(fables(30)))
    flags = ("--tokenizer", saved_tokenizer, "--num_workers", "2", "--output_dir", "out")
    command = command_line("--dataset", "one.txt", *flags)
    finished = run_process(["sh", "-c", f'"$@" {streams}', "sh", *command], cwd=tmp_path)
    assert finished.returncode == 0
    assert set(manifest_of(tmp_path / "out")["splits"]) == {"train", "val"}


@pytest.mark.gate
def test_the_script_says_what_it_made_or_what_is_wrong_and_nothing_else(tmp_path):
    documents = fables(50)
    dataset = write_jsonl(tmp_path / "fables.jsonl", documents)
    flags = ("--tokenizer", "bpe:300", "--val_fraction", "0.2", "--output_dir", "out")
    flags += ("--shard_tokens", "100")
    command = command_line("--dataset", dataset.name, *flags)
    good = run_process(command, cwd=tmp_path)
    assert good.returncode == 0
    assert "error" not in good.stderr
    splits = manifest_of(tmp_path / "out")["splits"]
    assert good.stdout.splitlines() == [
        f"{name}: {split['n_tokens']:,} tokens, {split['n_documents']:,} documents, "
        f"{len(split['shards'])} shards in out"
        for name, split in splits.items()
    ]

    dataset.write_bytes(dataset.read_bytes() + b"{oops\n")
    command = command_line("--dataset", dataset.name, *flags, "--overwrite")
    bad = run_process(command, cwd=tmp_path)
    assert bad.returncode == 1
    assert bad.stdout == ""
    assert "Traceback" not in bad.stderr
    assert [line for line in bad.stderr.splitlines() if "error:" in line] == [
        "prepare_data.py: error: fables.jsonl:51: expected one JSON object per line, found "
        "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    ]
    assert manifest_of(tmp_path / "out")["splits"] == splits


@pytest.mark.gate
def test_a_killed_run_leaves_no_data_directory_and_the_same_command_then_succeeds(
    tmp_path, run_script, saved_tokenizer
):
    documents = fables(4000)
    dataset = write_jsonl(tmp_path / "fables.jsonl", documents)
    out = tmp_path / "out"
    flags = ("--tokenizer", saved_tokenizer, "--shard_tokens", "200", "--val_fraction", "0")
    flags += ("--no_shuffle", "--shuffle_buffer_tokens", "1000")
    command = command_line("--dataset", dataset, "--output_dir", out, *flags)
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: any(tmp_path.glob(".out.preparing/data/train_*.bin")), process)
        process.kill()
    assert process.returncode != 0
    assert not out.exists()
    assert ".out.preparing" in names_in(tmp_path)

    assert run_script(out, dataset, *flags) == (0, [])
    assert documents_of(out, "train") == documents
    assert names_in(tmp_path) == ["fables.jsonl", "out"]


@pytest.mark.gate
def test_ctrl_c_ends_in_one_line_and_the_same_command_then_succeeds(
    tmp_path, run_script, saved_tokenizer
):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(6000))
    out = tmp_path / "out"
    flags = ("--tokenizer", saved_tokenizer, "--shuffle_buffer_tokens", "1000")
    command = command_line("--dataset", dataset, "--output_dir", out, *flags)
    options = {
        "start_new_session": True,  # all of its processes get the signal, as those of a terminal do
        # A shell that runs the tests in the background lets them, and what they start, ignore it.
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    }
    with started(command, stderr=subprocess.PIPE, **options) as process:
        wait_until(lambda: any(tmp_path.glob(".out.preparing/data/.train_*.partial")), process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in errors
    typed = shlex.join(["python", *command[1:]])
    line = f"prepare_data.py: interrupted; to go on, run again: {typed}"
    assert errors.splitlines()[-1] == line
    assert run_script(out, dataset, *flags) == (0, [])
    assert len(documents_of(out, "train") + documents_of(out, "val")) == 6000


@pytest.mark.slow
def test_prepared_data_is_pushed_and_read_back_from_the_hub(tmp_path, saved_tokenizer):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(300))
    flags = ("--tokenizer", saved_tokenizer, "--val_fraction", "0.2", "--shard_tokens", "2000")
    command = command_line("--dataset", dataset, "--output_dir", tmp_path / "out", *flags)
    with fake_hub.serve("aesop/tokens", {}) as hub:
        environment = os.environ | hub.environment(tmp_path) | {"HF_TOKEN": "hf_secret"}
        finished = run_process(
            [*command, "--push_to_hub", "aesop/tokens"],
            env=environment,
        )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1].endswith("datasets/aesop/tokens")
    local = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    shards = [name for name in local if name.endswith(".bin")]
    assert len(shards) > 2
    assert all(hub.files[name] == local[name] for name in shards)
    assert (
        json.loads(hub.files["manifest.json"])["splits"] == manifest_of(tmp_path / "out")["splits"]
    )
    published = b"".join(hub.files.values())
    assert b"hf_secret" not in published
    assert str(tmp_path).encode() not in published
