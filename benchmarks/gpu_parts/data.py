"""The data of the day: one folder that travels, and the shards that are made of it there.

The folder holds `text/` (compressed documents), `tokenizer/` and `official/` (files of benchmarks).
"""

import json
import lzma
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from evaluation import WORDS

from gpu_parts.plan import Plan, Record
from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
from modeling_gpt2scratch.data.preparation.prepare import prepare
from modeling_gpt2scratch.data.sources.dataset_argument import open_sources
from modeling_gpt2scratch.data.sources.document_stream import DocumentStream
from modeling_gpt2scratch.data.tokens.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

MEGABYTE = 10**6
BLOCK_BYTES = 8 * MEGABYTE  # of text, compressed as one: xz looks back so far


def run(plan: Plan, record: Record) -> None:
    """Tokenises the text of the folder."""
    folder = Path(plan.data)
    manifest = prepare(
        PrepareConfig(
            dataset=str(folder / "text"),
            output_dir=plan.shards,
            tokenizer=str(folder / "tokenizer"),
            val_fraction=0.1 if plan.is_smoke else 0.005,
            num_workers=1 if plan.is_smoke else None,
            overwrite=True,
        )
    )
    record(tokens={name: split.n_tokens for name, split in manifest.splits.items()})


def make_folder(
    folder: Path, *, text: list[str], official: list[str], megabytes: float, tokenizer: str = "gpt2"
) -> int:
    """Writes the folder, and returns its bytes.

    Args:
        folder: does not exist yet.
        text: as `--dataset` of prepare_data.py, each; the last gives way to the limit.
        official: files of benchmarks, under the names that `compare.py --data_dir` knows.
        megabytes: the folder's limit, in millions of bytes.
        tokenizer: as `--tokenizer` of prepare_data.py.

    Raises:
        FileExistsError: if the folder is there already.
    """
    folder.mkdir(parents=True)
    (folder / "official").mkdir()
    for name in official:
        shutil.copy(name, folder / "official")
    save_tokenizer(load_tokenizer(tokenizer), folder / "tokenizer")
    (folder / "text").mkdir()
    for number, name in enumerate(text):
        left = megabytes * MEGABYTE - size_of(folder)
        _write_documents(folder / "text" / f"{number:02d}.jsonl.xz", documents_of(name), left)
    return size_of(folder)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def documents_of(name: str) -> Iterator[str]:
    """The documents of a source, in its own order."""
    with tempfile.TemporaryDirectory() as downloads:
        for batch in DocumentStream(open_sources(name), seed=None, downloads=Path(downloads)):
            yield from batch.documents


def _write_documents(path: Path, documents: Iterator[str], n_bytes: float) -> None:
    """As many blocks of documents as a compressed file of so many bytes holds; none for none."""
    for block in _blocks(documents):
        compressed = lzma.compress(block, preset=6)
        n_bytes -= len(compressed)
        if n_bytes < 0:
            return
        with open(path, "ab") as file:
            file.write(compressed)


def _blocks(documents: Iterator[str]) -> Iterator[bytes]:
    """Rows of some `BLOCK_BYTES` together."""
    rows, size = [], 0
    for document in documents:
        rows.append((json.dumps({"text": document}, ensure_ascii=False) + "\n").encode())
        size += len(rows[-1])
        if size >= BLOCK_BYTES:
            yield b"".join(rows)
            rows, size = [], 0
    if rows:
        yield b"".join(rows)


def make_smoke_folder(folder: Path) -> None:
    """A folder of the same shape with next to nothing in it."""
    texts = [_sentences(start) for start in range(60)]
    for name in ("text", "official/blimp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_documents(folder / "text" / "00.jsonl.xz", iter(texts), MEGABYTE)
    save_tokenizer(train_tokenizer(texts, 300), folder / "tokenizer")
    official = folder / "official"
    passages = [_sentences(start)[:80].rpartition(" ")[0] for start in range(4)]
    official.joinpath("lambada_test_plain_text.txt").write_text("\n".join(passages) + "\n")
    _write_rows(official / "lambada_test.jsonl", [{"text": text} for text in passages])
    official.joinpath("wiki.test.raw").write_text(" \n = The Cat = \n \n The cat sat . \n \n")
    pair = {"sentence_good": "The cat sat.", "sentence_bad": "The cat sit.", "UID": "adjunct"}
    _write_rows(
        official / "blimp" / "adjunct_island.jsonl",
        [pair | {"linguistics_term": "island_effects"}] * 2,
    )


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _sentences(start: int) -> str:
    """Some words in an order of their own."""
    words = [WORDS[(start * step + step * step) % len(WORDS)] for step in range(1, 400)]
    return " ".join(words)
