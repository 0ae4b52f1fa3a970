"""From text to a data directory: every document arrives once, and a failure leaves nothing."""

import contextlib
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from support import fake_hub
from support.paths import SHARED_DATA
from support.processes import PATIENCE, run_process, started, wait_until
from support.tiny_corpus import fables, write_jsonl
from transformers import AutoTokenizer

# Scripts are no part of the installed package.
import prepare_data
from modeling_gpt2scratch.data.sources.local_files import read_documents
from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer

SCRIPT = Path(prepare_data.__file__)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs main() with these flags and returns its exit code, 0 for none, and its error lines.

    A string given to sys.exit is printed by the interpreter, with exit code 1.
    """
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")

    def run(output_dir, dataset, *flags):
        command = ["prepare_data.py", *("--output_dir", output_dir, "--dataset", dataset), *flags]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        capsys.readouterr()
        try:
            prepare_data.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code
        errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        if isinstance(code, str):
            errors += code.splitlines()
            code = 1
        return code, errors

    return run


@pytest.fixture
def prepare(run):
    """Runs main() with a small trained tokenizer and requires it to succeed."""

    def prepare(output_dir, dataset, *flags):
        code, errors = run(output_dir, dataset, "--tokenizer", "bpe:300", *flags)
        assert (code, errors) == (0, [])
        return output_dir

    return prepare


@pytest.fixture(scope="module")
def saved_tokenizer(tmp_path_factory):
    """A directory with a small tokenizer."""
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(fables(30), 300).save_pretrained(directory)
    return directory


def manifest_of(directory):
    """The manifest as plain JSON."""
    return json.loads((directory / "manifest.json").read_text())


def documents_of(directory, split, decode=None):
    """The documents of a split, read back from the files alone, and checked against the manifest.

    Args:
        directory: what prepare_data.py made.
        split: "train" or "val".
        decode: ids to text; without it, the tokenizer saved in the directory.
    """
    manifest = manifest_of(directory)
    decode = decode or AutoTokenizer.from_pretrained(directory).decode
    entry = manifest["splits"][split]
    stream = []
    for shard in entry["shards"]:
        content = (directory / shard["file"]).read_bytes()
        tokens = np.frombuffer(content[1024:], "<u2").tolist()
        header = np.frombuffer(content[:16], "<i4").tolist()
        assert header == [20240520, 1, len(tokens), manifest["vocab_size"]]
        assert shard["n_tokens"] == len(tokens)
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        stream += tokens
    starts = [i for i, token in enumerate(stream) if token == manifest["end_of_text_id"]]
    assert starts[:1] == [0]
    documents = [
        decode(stream[start + 1 : stop])
        for start, stop in zip(starts, [*starts[1:], len(stream)], strict=True)
    ]
    assert entry["n_tokens"] == len(stream)
    assert entry["n_documents"] == len(documents)
    assert entry["n_bytes"] == sum(len(text.encode()) for text in documents)
    return documents


def names_in(directory):
    """Everything there, hidden files included."""
    return sorted(path.name for path in directory.iterdir())


# What is made


def test_every_document_is_in_exactly_one_split_and_in_the_order_of_the_input(tmp_path, prepare):
    documents = fables(300)
    dataset = write_jsonl(tmp_path / "fables.jsonl", documents)
    flags = ("--val_fraction", "0.2", "--shard_tokens", "999", "--no_shuffle")
    out = prepare(tmp_path / "out", dataset, *flags)
    train, val = documents_of(out, "train"), documents_of(out, "val")
    held_out = set(val)
    assert val == [text for text in documents if text in held_out]
    assert train == [text for text in documents if text not in held_out]
    # 60 expected with a standard deviation of 7.
    assert 30 < len(val) < 90


def test_the_manifest_names_the_tokenizer_the_arguments_and_every_shard(tmp_path, prepare):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(100))
    flags = ("--val_fraction", "0.2", "--shard_tokens", "500", "--seed", "7")
    out = prepare(tmp_path / "out", dataset, *flags)
    manifest = manifest_of(out)
    assert (manifest["vocab_size"], manifest["end_of_text_id"]) == (300, 299)
    assert manifest["tokenizer"]["name"] == "bpe:300"
    assert len(bytes.fromhex(manifest["tokenizer"]["fingerprint"])) == 32
    named = {"dataset": str(dataset), "shard_tokens": 500, "seed": 7, "shuffle": True}
    assert named.items() <= manifest["arguments"].items()
    assert manifest["sources"] == [
        {
            "name": str(dataset),
            "subset": None,
            "revision": None,
            "weight": None,
            "files": 1,
            "bytes": dataset.stat().st_size,
        }
    ]
    shards = {
        split: [shard["file"] for shard in entry["shards"]]
        for split, entry in manifest["splits"].items()
    }
    assert len(shards["train"]) > 1
    for split, files in shards.items():
        assert files == [f"{split}_{index:06d}.bin" for index in range(len(files))]
        sizes = [shard["n_tokens"] for shard in manifest["splits"][split]["shards"]]
        assert sizes[:-1] == [500] * (len(sizes) - 1)
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json"}
    assert set(names_in(out)) == {
        "manifest.json",
        *shards["train"],
        *shards["val"],
        *tokenizer_files,
    }
    assert names_in(tmp_path) == ["fables.jsonl", "out"]


def test_copies_of_a_document_stay_on_one_side(tmp_path, prepare):
    distinct = fables(60)
    dataset = write_jsonl(tmp_path / "fables.jsonl", distinct * 3)
    out = prepare(tmp_path / "out", dataset, "--val_fraction", "0.3")
    train, val = documents_of(out, "train"), documents_of(out, "val")
    assert len(train) + len(val) == 180
    assert set(train).isdisjoint(val)
    assert set(train) | set(val) == set(distinct)
    assert {train.count(text) for text in train} == {val.count(text) for text in val} == {3}


def test_a_document_stays_held_out_when_others_are_added(tmp_path, prepare):
    old, new = fables(150), fables(150, seed=1)
    flags = ("--val_fraction", "0.2", "--num_workers")
    before = prepare(tmp_path / "1", write_jsonl(tmp_path / "1.jsonl", old), *flags, "1")
    mixed = write_jsonl(tmp_path / "2.jsonl", [*new[:70], *reversed(old), *new[70:]])
    after = prepare(tmp_path / "2", mixed, *flags, "3")
    held_out = set(documents_of(after, "val"))
    assert held_out & set(old) == set(documents_of(before, "val"))
    assert held_out & set(new)


def test_the_same_command_gives_the_same_files_for_any_number_of_workers(tmp_path, prepare):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(200))
    flags = ("--val_fraction", "0.2", "--shard_tokens", "700", "--num_workers")
    contents = []
    for name, num_workers in (("a", 1), ("b", 1), ("c", 3)):
        out = prepare(tmp_path / name, dataset, *flags, num_workers)
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1] == contents[2]


def test_another_seed_holds_out_other_documents(tmp_path, prepare):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(200))
    flags = ("--val_fraction", "0.2", "--seed")
    first, second = (
        set(documents_of(prepare(tmp_path / seed, dataset, *flags, seed), "val"))
        for seed in ("0", "1")
    )
    # About a fifth of each is in the other.
    assert len(first & second) < len(first) / 2


def test_a_larger_share_holds_out_the_same_documents_and_more(tmp_path, prepare):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(200))
    small, large = (
        set(documents_of(prepare(tmp_path / share, dataset, "--val_fraction", share), "val"))
        for share in ("0.1", "0.3")
    )
    assert small < large


def test_nothing_is_held_out_when_the_share_is_zero(tmp_path, prepare):
    documents = fables(20)
    dataset = write_jsonl(tmp_path / "fables.jsonl", documents)
    out = prepare(tmp_path / "out", dataset, "--val_fraction", "0", "--no_shuffle")
    assert list(manifest_of(out)["splits"]) == ["train"]
    assert documents_of(out, "train") == documents


def test_only_the_first_documents_are_read_when_a_limit_is_set(tmp_path, prepare):
    documents = fables(50)
    dataset = write_jsonl(tmp_path / "fables.jsonl", documents)
    flags = ("--val_fraction", "0", "--limit_documents", "20", "--no_shuffle")
    assert documents_of(prepare(tmp_path / "out", dataset, *flags), "train") == documents[:20]


def test_a_tokenizer_is_trained_on_the_training_documents_only(tmp_path, prepare):
    documents = fables(200)
    held_out = prepare(
        tmp_path / "all",
        write_jsonl(tmp_path / "all.jsonl", documents),
        *("--val_fraction", "0.3"),
    )
    train = documents_of(held_out, "train")
    alone = prepare(
        tmp_path / "train",
        write_jsonl(tmp_path / "train.jsonl", train),
        *("--val_fraction", "0"),
    )
    assert manifest_of(alone)["tokenizer"] == manifest_of(held_out)["tokenizer"]


def test_the_tokenizer_of_another_data_directory_can_be_used_again(tmp_path, prepare, run):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(100))
    first = prepare(tmp_path / "first", dataset, "--val_fraction", "0.2")
    flags = ("--val_fraction", "0.2", "--tokenizer", first)
    assert run(tmp_path / "second", dataset, *flags) == (0, [])
    second = manifest_of(tmp_path / "second")
    assert second["splits"] == manifest_of(first)["splits"]
    assert second["tokenizer"]["fingerprint"] == manifest_of(first)["tokenizer"]["fingerprint"]


def test_real_web_pages_come_back_from_their_gpt2_tokens(tmp_path, run, monkeypatch):
    dataset = SHARED_DATA / "corpus" / "fineweb_sample.jsonl.zst"
    cache = SHARED_DATA / "tiktoken_cache"
    if not (dataset.is_file() and cache.is_dir()):
        pytest.skip(f"needs {dataset} and {cache}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    flags = ("--tokenizer", "gpt2", "--limit_documents", "200", "--val_fraction", "0.1")
    out = tmp_path / "out"
    assert run(out, dataset, *flags, "--shard_tokens", "50000", "--num_workers", "2") == (0, [])

    documents = [text for _, text in itertools.islice(read_documents(dataset), 200)]
    decode = tiktoken.get_encoding("gpt2").decode
    train, val = documents_of(out, "train", decode), documents_of(out, "val", decode)
    assert set(train).isdisjoint(val)
    assert sorted(train + val) == sorted(documents)
    assert manifest_of(out)["vocab_size"] == 50257
    assert manifest_of(out)["end_of_text_id"] == 50256


# What is refused


def test_an_existing_data_directory_is_kept_unless_it_may_be_overwritten(tmp_path, prepare, run):
    out = tmp_path / "out"
    prepare(out, write_jsonl(tmp_path / "old.jsonl", fables(30)), "--val_fraction", "0")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    new = write_jsonl(tmp_path / "new.jsonl", fables(20, seed=1))

    code, (error,) = run(out, new, "--tokenizer", "bpe:300", "--val_fraction", "0")
    assert code == 2
    assert error == (
        f"prepare_data.py: error: expected a new directory, found manifest.json in {out}; "
        f"choose another or add --overwrite"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    prepare(out, new, "--val_fraction", "0", "--overwrite", "--no_shuffle")
    assert documents_of(out, "train") == fables(20, seed=1)
    assert names_in(tmp_path) == ["new.jsonl", "old.jsonl", "out"]


def test_a_failed_attempt_to_overwrite_keeps_the_old_data(tmp_path, prepare, run):
    out = tmp_path / "out"
    prepare(out, write_jsonl(tmp_path / "old.jsonl", fables(30)), "--val_fraction", "0")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    # A directory as the tokenizer, so that nothing reads the bad line before shards are written.
    new = write_jsonl(tmp_path / "new.jsonl", fables(2000))
    new.write_text(new.read_text() + "{oops\n")
    flags = ("--tokenizer", out, "--shard_tokens", "1000", "--overwrite")
    code, (error,) = run(out, new, *flags)
    assert code == 1
    assert f"{new}:2001: expected one JSON object per line" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert names_in(tmp_path) == ["new.jsonl", "old.jsonl", "out"]


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_a_directory_with_other_content_is_never_touched(tmp_path, run, flags):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(30))
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    code, (error,) = run(out, dataset, "--tokenizer", "bpe:300", *flags)
    assert code == 2
    assert error == (
        f"prepare_data.py: error: expected {out} to be new or to hold manifest.json, "
        f"found other content; choose another"
    )
    assert (out / "thesis.txt").read_text() == "years of work"
    assert names_in(tmp_path) == ["fables.jsonl", "out"]


def test_a_file_in_the_place_of_the_directory_is_never_touched(tmp_path, run):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(30))
    code, (error,) = run(dataset, dataset, "--tokenizer", "bpe:300", "--overwrite")
    assert code == 2
    assert f"expected {dataset} to be new" in error
    assert len(dataset.read_text().splitlines()) == 30


def test_an_empty_directory_is_filled(tmp_path, prepare):
    documents = fables(20)
    (tmp_path / "out").mkdir()
    dataset = write_jsonl(tmp_path / "fables.jsonl", documents)
    out = prepare(tmp_path / "out", dataset, "--val_fraction", "0", "--no_shuffle")
    assert documents_of(out, "train") == documents


GOOD = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in fables(30))


@pytest.mark.parametrize("tokenizer", ["trained", "given"])
@pytest.mark.parametrize(
    ("name", "content", "flags", "expected"),
    [
        ("a.jsonl", None, (), "{path}: expected a file or glob, found nothing there"),
        ("a.pdf", GOOD, (), "{path}: expected a file ending in .txt, .jsonl, .csv, .parquet"),
        ("a.jsonl", b"", (), "{path}: expected documents, found none"),
        ("a.txt", b" \n", (), "{path}: expected documents, found none"),
        ("a.jsonl", GOOD + b'{"text": "\xe9"}\n', (), "{path}: expected UTF-8, found byte 0xe9"),
        ("a.jsonl", GOOD + b"{oops\n", (), "{path}:31: expected one JSON object per line"),
        ("a.jsonl.gz", GOOD, (), "{path}: cannot be read: Not a gzipped file"),
        ("a.parquet", GOOD, (), "{path}: expected a parquet file, found "),
        (
            "a.jsonl",
            GOOD,
            ("--text_column", "story"),
            "{path}:1: expected text in column 'story', found columns ['text']; see --text_column",
        ),
        (
            "a.jsonl",
            GOOD,
            ("--val_fraction", "1e-9"),
            "{path}: expected documents in both splits, found none of 30 in 'val' at "
            "--val_fraction 1e-09; change it, --seed, or give more documents",
        ),
        (
            "a.jsonl",
            GOOD,
            ("--val_fraction", "0.999999999"),
            "{path}: expected documents in both splits, found none of 30 in 'train'",
        ),
    ],
    ids=[
        *("missing", "unknown kind", "empty", "blank", "not UTF-8", "not JSON", "not gzip"),
        *("not parquet", "no column", "empty val", "empty train"),
    ],
)
def test_bad_data_ends_in_one_line_and_leaves_nothing(
    tmp_path, run, saved_tokenizer, tokenizer, name, content, flags, expected
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    before = names_in(tmp_path)
    tokenizer = "bpe:300" if tokenizer == "trained" else saved_tokenizer
    defaults = ("--tokenizer", tokenizer, "--val_fraction", "0.3")
    code, (error,) = run(tmp_path / "out", path, *defaults, *flags)
    assert code == 1
    assert error.startswith("prepare_data.py: error: " + expected.format(path=path))
    assert names_in(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--tokenizer", "bpe:abc"), "expected bpe:N with N from 257 to 65536 entries, found 'bpe"),
        (("--tokenizer", "bpe:10"), "expected bpe:N with N from 257 to 65536 entries, found 'bpe"),
        (("--shard_tokens", "0"), "--shard_tokens: expected a number above 0, found 0"),
        (("--num_workers", "-1"), "--num_workers: expected a number above 0, found -1"),
        (("--limit_documents", "0"), "--limit_documents: expected a number above 0, found 0"),
        (("--limit_documents", "ten"), "--limit_documents: expected int, found 'ten'"),
        (("--seed", "-1"), "--seed: expected a number of at least 0, found -1"),
        (("--val_fraction", "1"), "expected --val_fraction in [0, 1), found 1.0"),
        (("--val_fraction", "-0.1"), "expected --val_fraction in [0, 1), found -0.1"),
        (("--val_fraction", "nan"), "expected --val_fraction in [0, 1), found nan"),
        (("--shard_token", "5"), "--shard_token"),
        (("--colour", "red"), "--colour"),
        # A shard counts its tokens in an int32.
        (("--shard_tokens", str(2**31)), "--shard_tokens"),
        (("--output_dir", "."), "--output_dir"),
        (("--output_dir", ""), "--output_dir"),
    ],
)
def test_bad_arguments_end_in_one_line_before_any_work(tmp_path, run, monkeypatch, flags, expected):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(30))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, (error,) = run(tmp_path / "out", dataset, "--tokenizer", "bpe:300", *flags)
    assert code == 2
    assert error.startswith("prepare_data.py: error: ")
    assert expected in error
    assert names_in(tmp_path) == ["empty", "fables.jsonl"]
    assert names_in(tmp_path / "empty") == []


def test_an_unknown_tokenizer_ends_in_one_line_and_leaves_nothing(tmp_path, run):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(30))
    code, (error,) = run(tmp_path / "out", dataset, "--tokenizer", tmp_path / "none")
    assert code == 1
    assert error.startswith(
        f"prepare_data.py: error: {tmp_path / 'none'}: expected gpt2, bpe:N, or a directory or Hub "
    )
    assert names_in(tmp_path) == ["fables.jsonl"]


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
    tmp_path, run, saved_tokenizer, shard_tokens, n_bytes
):
    # A shard of 1,000 tokens has 3,024 bytes; tokenizer.json is larger than 5,000.
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(300))
    flags = ("--tokenizer", saved_tokenizer, "--shard_tokens", shard_tokens, "--num_workers", 1)
    with file_size_limit(n_bytes):
        code, errors = run(tmp_path / "out", dataset, *flags, "--val_fraction", "0")
    assert code == 1
    assert len(errors) == 1
    assert "File too large" in errors[0]
    assert names_in(tmp_path) == ["fables.jsonl"]


# The script as a process of its own


def command_line(*arguments):
    """The script with these arguments, for a process of its own."""
    return [str(part) for part in (sys.executable, SCRIPT, *arguments)]


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_killed_run_leaves_no_data_directory_and_the_same_command_then_succeeds(
    tmp_path, run, saved_tokenizer
):
    documents = fables(4000)
    dataset = write_jsonl(tmp_path / "fables.jsonl", documents)
    out = tmp_path / "out"
    flags = ("--tokenizer", saved_tokenizer, "--shard_tokens", "200", "--val_fraction", "0")
    flags += ("--no_shuffle", "--shuffle_buffer_tokens", "1000")
    command = command_line("--dataset", dataset, "--output_dir", out, *flags)
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: any(tmp_path.glob(".out.partial/data/train_*.bin")), process)
        process.kill()
    assert process.returncode != 0
    assert not out.exists()
    assert ".out.partial" in names_in(tmp_path)

    assert run(out, dataset, *flags) == (0, [])
    assert documents_of(out, "train") == documents
    assert names_in(tmp_path) == ["fables.jsonl", "out"]


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_and_the_same_command_then_succeeds(tmp_path, run, saved_tokenizer):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(20_000))
    out = tmp_path / "out"
    flags = ("--tokenizer", saved_tokenizer, "--shuffle_buffer_tokens", "1000")
    command = command_line("--dataset", dataset, "--output_dir", out, *flags)
    options = {
        "start_new_session": True,  # all of its processes get the signal, as those of a terminal do
        # A shell that runs the tests in the background lets them, and what they start, ignore it.
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    }
    with started(command, stderr=subprocess.PIPE, **options) as process:
        wait_until(lambda: any(tmp_path.glob(".out.partial/data/.train_*.partial")), process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == (
        "prepare_data.py: interrupted; run the same command again to go on"
    )
    assert run(out, dataset, *flags) == (0, [])
    assert len(documents_of(out, "train") + documents_of(out, "val")) == 20_000


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
