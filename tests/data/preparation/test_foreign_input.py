"""Input from elsewhere: valid text is read, whatever stands around it, and bad rows are counted."""

import json
import sys

import numpy as np
import pytest
from support.paths import SHARED_DATA, TIKTOKEN_CACHE
from support.prepared_data import contents, documents_of, manifest_of
from support.processes import run_process
from support.table_files import jsonl, written
from support.tiny_corpus import fables
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from modeling_gpt2scratch.data.preparation import blocks
from modeling_gpt2scratch.data.preparation.prepare import prepare
from modeling_gpt2scratch.data.preparation.progress import ProgressError, WorkingDirectory

CASES = SHARED_DATA / "cases"
EVERYTHING = ("--val_fraction", "0", "--no_shuffle", "--num_workers", "1")


@pytest.fixture
def case():
    """The directory of a case of that name."""

    def find(name):
        if not (CASES / name).is_dir():
            pytest.skip(f"needs {CASES / name}")
        return CASES / name

    return find


# The cases


def test_a_document_of_a_million_spaces_has_the_ids_of_tokenizers(
    case, run_script, tmp_path, monkeypatch
):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_CACHE))
    dataset, out = case("long_whitespace"), tmp_path / "out"
    assert run_script(out, dataset, "--tokenizer", "gpt2", *EVERYTHING) == (0, [])
    [shard] = manifest_of(out)["splits"]["train"]["shards"]
    ids = np.frombuffer((out / shard["file"]).read_bytes()[1024:], "<u2")
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    good = json.loads((dataset / "good.jsonl").read_text())["text"]
    expected = [[50256, *tokenizer.encode(text).ids] for text in (good, f"a{' ' * 1_000_000}b")]
    assert len(ids) == 1_000_006
    assert np.array_equal(ids, np.concatenate(expected))


def test_a_frame_of_zstd_with_a_window_of_2_gib_is_read(case, prepared, tmp_path):
    out = prepared(tmp_path / "out", case("zstd_long_window"), *EVERYTHING)
    assert manifest_of(out)["splits"]["train"]["n_documents"] == 3000


def test_half_a_surrogate_pair_is_one_replacement_character(case, prepared, tmp_path):
    dataset = case("lone_surrogate")
    rows = (dataset / "surr.jsonl").read_text().splitlines()
    out = prepared(tmp_path / "out", dataset, *EVERYTHING)
    texts = documents_of(out, "train")
    expected = [json.loads(row)["text"].encode(errors="replace").decode() for row in rows]
    assert [text.replace("\ufffd", "?") for text in texts] == expected
    assert "\ufffd" in "".join(texts)


def test_an_integer_of_5000_digits_does_not_hide_the_text_beside_it(case, prepared, tmp_path):
    dataset = case("big_integer")
    out = prepared(tmp_path / "out", dataset, *EVERYTHING)
    read = json.JSONDecoder(parse_int=str).decode
    lines = (dataset / "bigint.jsonl").read_text().splitlines()
    assert documents_of(out, "train") == [read(line)["text"] for line in lines]


def test_a_byte_that_is_not_utf8_stops_at_its_row_or_is_counted(
    case, prepared, run_script, tmp_path
):
    dataset = case("parquet_bad_utf8")
    code, [line] = run_script(tmp_path / "out", dataset, "--tokenizer", "bpe:300", *EVERYTHING)
    assert code == 1
    path = dataset / "bad.parquet"
    assert line == (
        f"prepare_data.py: error: {path}: row 1: expected UTF-8, found byte 0xff; convert the "
        f"file first"
    )
    out = prepared(tmp_path / "out", dataset, *EVERYTHING, "--on_bad_row", "skip")
    assert manifest_of(out)["left_out"]["bad_rows"] == 1
    assert len(documents_of(out, "train")) == 1


# Bad rows


def damaged_corpus(directory):
    """Six files of 300 rows, of which every seventh is bad, with the 1,542 documents of the rest.

    The last rows of each file are bad, too.
    """
    directory.mkdir()
    kept = []
    for i in range(6):
        rows = []
        for n, text in enumerate(fables(300, seed=i)):
            is_bad = n % 7 == 0 or n > 297
            rows.append(b"{oops\n" if is_bad else jsonl([text]))
            kept += [] if is_bad else [text]
        written(directory / f"{i}.jsonl", b"".join(rows))
    return kept


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("n_saves", [2, 4, 7])
def test_bad_rows_are_counted_once_though_the_preparation_was_interrupted(
    configure, tmp_path, monkeypatch, num_workers, n_saves
):
    kept = damaged_corpus(tmp_path / "corpus")
    options = {"dataset": str(tmp_path / "corpus"), "on_bad_row": "skip"}
    whole = prepare(configure(**options, output_dir=str(tmp_path / "whole")))
    assert whole.left_out["bad_rows"] == 6 * 300 - len(kept)
    texts = [documents_of(tmp_path / "whole", split) for split in ("train", "val")]
    assert sorted(sum(texts, [])) == sorted(kept)

    save, calls = WorkingDirectory.save, []

    def interrupted(self, progress):
        calls.append(progress)
        if len(calls) == n_saves:
            raise KeyboardInterrupt
        save(self, progress)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(WorkingDirectory, "save", interrupted)
        prepare(configure(**options, num_workers=num_workers))
    if n_saves > 2:  # a block is safe
        with pytest.raises(ProgressError, match="--on_bad_row skip instead of stop"):
            prepare(configure(**options | {"on_bad_row": "stop"}))
    prepare(configure(**options, num_workers=num_workers))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_tokenizer_is_trained_on_the_rows_that_can_be_read(prepared, tmp_path, capsys):
    kept = damaged_corpus(tmp_path / "corpus")
    out = prepared(tmp_path / "out", tmp_path / "corpus", *EVERYTHING, "--on_bad_row", "skip")
    assert manifest_of(out)["splits"]["train"]["n_documents"] == len(kept)
    assert manifest_of(out)["left_out"]["bad_rows"] == 1800 - len(kept)


# Many short documents


def test_a_block_holds_only_so_many_documents(configure, tmp_path, monkeypatch):
    path = written(tmp_path / "short.jsonl", jsonl([f"{n % 7}" for n in range(5000)]))
    saves = []
    save = WorkingDirectory.save
    monkeypatch.setattr(
        WorkingDirectory, "save", lambda self, p: (saves.append(p.n_blocks), save(self, p))
    )
    monkeypatch.setattr(blocks, "MAX_BLOCK_DOCUMENTS", 1000)
    options = {"dataset": str(path), "shuffle_buffer_tokens": 10**6, "val_fraction": 0}
    prepare(configure(**options))
    # A batch holds up to 1,024 documents.
    assert max(saves) == 5
    texts = documents_of(tmp_path / "out", "train")
    assert sorted(texts) == sorted(f"{n % 7}" for n in range(5000))


PREPARE_AND_MEASURE = """
import re, sys
from pathlib import Path
from modeling_gpt2scratch.data.preparation import blocks
from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
from modeling_gpt2scratch.data.preparation.prepare import prepare
blocks.MAX_BLOCK_DOCUMENTS = int(sys.argv[4])
# Not the peak that getrusage knows, which begins with that of the parent.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
manifest = prepare(PrepareConfig(
    dataset=sys.argv[1], output_dir=sys.argv[2], tokenizer=sys.argv[3], num_workers=1,
))
print(sum(split.n_documents for split in manifest.splits.values()), peak() - before)
"""


@pytest.mark.gate
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from /proc")
def test_documents_of_one_character_are_never_all_in_memory(tmp_path, saved_tokenizer):
    n_of_block = 1 << 16
    n_documents = 4 * n_of_block
    path = written(tmp_path / "short.jsonl", jsonl("ab") * (n_documents // 2))
    command = [sys.executable, "-c", PREPARE_AND_MEASURE, path, tmp_path / "out", saved_tokenizer]
    finished = run_process([str(part) for part in [*command, n_of_block]], check=True)
    n_found, grown_kib = map(int, finished.stdout.split())
    assert n_found == n_documents
    assert grown_kib * 1024 < 1200 * n_of_block


def test_a_row_that_cannot_be_read_is_named_once_though_the_text_is_read_three_times(
    configure, tmp_path, capsys
):
    damaged_corpus(tmp_path / "corpus")
    options = {"tokenizer": "bpe:300", "split": "tail", "on_bad_row": "skip"}
    prepare(configure(dataset=str(tmp_path / "corpus"), **options))
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out: " in line]
    assert len(lines) == len(set(lines)) >= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "this tokenizer leaves out"), ({"unk_token": "?"}, "this tokenizer has one unknown")],
)
def test_a_tokenizer_that_does_not_keep_all_characters_is_named(
    configure, tmp_path, capsys, options, message
):
    vocabulary = {letter: number for number, letter in enumerate("abc ?")}
    letters = Tokenizer(models.BPE(vocab=vocabulary, merges=[], **options))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "letters")
    corpus = str(written(tmp_path / "a.jsonl", jsonl(["abc äöü", "cab"])))
    options = {"dataset": corpus, "val_fraction": 0}
    prepare(configure(**options, tokenizer=str(tmp_path / "letters")))
    assert f"{tmp_path / 'letters'}: {message}" in capsys.readouterr().err
    prepare(configure(**options, tokenizer="bytes", output_dir=str(tmp_path / "bytes")))
    assert "this tokenizer" not in capsys.readouterr().err
