"""Where documents come from: docstrings on this machine, local files, data sets of the Hub.

Every source is an iterable of strings that can be read more than once, always in the same order.
"""

import ast
import contextlib
import csv
import doctest
import glob
import io
import itertools
import json
import lzma
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

DOCSTRINGS = "docstrings"
# Fixed, so that the corpus depends on the pinned versions and not on what else is installed.
DOCUMENTED_PACKAGES = (
    "accelerate",
    "datasets",
    "fsspec",
    "huggingface_hub",
    "networkx",
    "numpy",
    "pandas",
    "sympy",
    "torch",
    "transformers",
)
UNDOCUMENTED_FOLDERS = {"_vendor", "idlelib", "lib2to3", "site-packages", "test", "tests"}
MIN_DOCSTRING_CHARACTERS = 100
COMPRESSIONS = (".gz", ".zst", ".xz")


class SourceError(ValueError):
    """Input that cannot be read; the message names the file, and the line where there is one."""


def open_source(
    dataset: str, *, subset: str | None = None, text_column: str = "text", num_workers: int = 1
) -> Iterable[str]:
    """The documents of a data set, empty ones left out.

    Args:
        dataset: "docstrings"; a local file or glob of .txt, .jsonl, .csv (each also .gz, .zst, .xz)
            or .parquet; or the name of a data set on the Hub, whose training split is streamed.
        subset: configuration of a Hub data set, such as "sample-10BT".
        text_column: the field that holds the document; text files have none.
        num_workers: processes that parse source files for "docstrings".

    Raises:
        SourceError: if there is no such file or data set. Bad content raises it while reading.
    """
    if dataset == DOCSTRINGS:
        return docstrings(num_workers)
    if Path(dataset).is_file():  # even if its name has brackets
        return _LocalFiles([Path(dataset)], text_column)
    looks_local = glob.has_magic(dataset) or _reader_of(Path(dataset)) is not None
    if looks_local or Path(dataset).exists():
        files = [Path(name) for name in sorted(glob.glob(dataset, recursive=True))]
        if not files:
            raise SourceError(f"{dataset}: expected a file or glob, found nothing there")
        return _LocalFiles(files, text_column)
    return _HubDataset(dataset, subset, text_column)


def docstrings(num_workers: int) -> list[str]:
    """The distinct docstrings of the standard library and `DOCUMENTED_PACKAGES`, in path order.

    They are read from the source files with `ast`; nothing is imported. Interactive examples are
    cut out, which leaves the prose; less of it than `MIN_DOCSTRING_CHARACTERS` does not count.
    """
    roots = [Path(sysconfig.get_path("stdlib"))]
    roots += [Path(sysconfig.get_path("purelib")) / name for name in DOCUMENTED_PACKAGES]
    files = [
        file
        for root in roots
        for file in sorted(root.rglob("*.py"))
        if UNDOCUMENTED_FOLDERS.isdisjoint(file.relative_to(root).parts)
    ]
    with ProcessPoolExecutor(num_workers) as pool:
        per_file = pool.map(_docstrings_of, files, chunksize=64)
        progress = tqdm(per_file, total=len(files), desc="reading docstrings", unit=" files")
        found = dict.fromkeys(itertools.chain.from_iterable(progress))
    return [text for text in found if len(text) >= MIN_DOCSTRING_CHARACTERS]


def _docstrings_of(file: Path) -> list[str]:
    """Docstrings of one source file, in the order of `ast.walk`; none if it does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escape sequences
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree) if isinstance(node, documented))
    texts = (ast.get_docstring(node) for node in nodes)
    return [_well_formed(_without_examples(text)) for text in texts if text]


def _without_examples(docstring: str) -> str:
    """The docstring without its `>>>` examples and their output."""
    try:
        parts = doctest.DocTestParser().parse(docstring)
    except ValueError:  # an example that is none
        return docstring
    return "".join(part for part in parts if isinstance(part, str)).strip()


class _LocalFiles:
    """Documents of local files, in the order of their names."""

    def __init__(self, files: list[Path], text_column: str):
        self._readers: list[Callable[[], Iterator[str]]] = []
        for file in files:
            reader = _reader_of(file)
            if reader is None or not file.is_file():
                raise SourceError(
                    f"{file}: expected a file ending in {', '.join(READERS)} (text formats also "
                    f"with {', '.join(COMPRESSIONS)}); give a file or a glob"
                )
            self._readers.append(partial(reader, file, text_column))

    def __iter__(self) -> Iterator[str]:
        for read in self._readers:
            yield from (_well_formed(text) for text in read() if text)


class _HubDataset:
    """Documents of the training split of a data set on the Hub, streamed."""

    def __init__(self, name: str, subset: str | None, text_column: str):
        self._name, self._subset, self._text_column = name, subset, text_column

    def __iter__(self) -> Iterator[str]:
        # Only this source needs the library, which takes a second to import.
        import datasets

        try:
            rows = datasets.load_dataset(self._name, self._subset, split="train", streaming=True)
            for row in rows:
                text = row.get(self._text_column)
                if not isinstance(text, str):
                    raise SourceError(_no_column(self._name, self._text_column, row))
                if text:
                    yield text
        except SourceError:
            raise
        except Exception as error:  # of the network, the file system, or any file format
            raise SourceError(
                f"{self._name}: expected a local file, a glob or a data set of the Hub that can be "
                f"read, found {type(error).__name__}: {_one_line(error)}"
            ) from error


def _read_txt(file: Path, text_column: str) -> Iterator[str]:
    """The file as one document, or the pieces between `<|endoftext|>` marks if it has them."""
    with _open_text(file) as lines:
        content = lines.read()
    yield from (piece.strip() for piece in content.split("<|endoftext|>"))


def _read_jsonl(file: Path, text_column: str) -> Iterator[str]:
    with _open_text(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(
                    f"{file}:{number}: expected one JSON object per line, found {error}"
                ) from None
            text = row.get(text_column) if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise SourceError(_no_column(f"{file}:{number}", text_column, row))
            yield text


def _read_csv(file: Path, text_column: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # documents are longer than the default of 128 KiB
    with _open_text(file, newline="") as lines:
        rows = csv.DictReader(lines, strict=True)
        try:
            for row in rows:
                text = row.get(text_column)
                if not isinstance(text, str):
                    raise SourceError(_no_column(f"{file}:{rows.line_num}", text_column, row))
                yield text
        except csv.Error as error:
            raise SourceError(f"{file}:{rows.line_num}: expected CSV, found {error}") from None


def _read_parquet(file: Path, text_column: str) -> Iterator[str]:
    try:
        with pq.ParquetFile(file) as table:
            if text_column not in table.schema_arrow.names:
                columns = dict.fromkeys(table.schema_arrow.names)
                raise SourceError(_no_column(str(file), text_column, columns))
            for batch in table.iter_batches(batch_size=1024, columns=[text_column]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str):
                        raise SourceError(_no_column(str(file), text_column, {text_column: text}))
                    yield text
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{file}: expected a parquet file, found {_one_line(error)}") from None


READERS = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _reader_of(file: Path) -> Callable[[Path, str], Iterator[str]] | None:
    """The reader for a file's ending, a compression's ending set aside."""
    stem = file.with_suffix("") if file.suffix in COMPRESSIONS else file
    return READERS.get(stem.suffix)


@contextlib.contextmanager
def _open_text(file: Path, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """A text file, decompressed by its ending; what is wrong with it is said with its name.

    Broken compression and broken UTF-8 show only while reading, so the reading stands inside.
    """
    try:
        if file.suffix == ".zst":
            raw = pa.input_stream(file, compression="zstd")  # Python < 3.14 has none itself
        else:
            raw = fsspec.filesystem("file").open(str(file), "rb", compression="infer")
        # utf-8-sig is UTF-8 that may begin with the mark that Windows writes.
        with io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline) as lines:
            yield lines
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{file}: expected UTF-8, found byte {error.object[error.start]:#04x}; "
            f"convert the file first"
        ) from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise SourceError(f"{file}: cannot be read: {error}") from None


def _no_column(place: str, text_column: str, row: object) -> str:
    """The message for a row without the text column."""
    found = f"columns {sorted(map(str, row))}" if isinstance(row, dict) else type(row).__name__
    if isinstance(row, dict) and text_column in row:
        found = f"a {type(row[text_column]).__name__} there"
    return f"{place}: expected text in column {text_column!r}, found {found}; see --text_column"


def _one_line(error: Exception) -> str:
    """The message of an error of any library, without its line breaks."""
    return " ".join(str(error).split())


def _well_formed(text: str) -> str:
    """The text with unpaired surrogates, which JSON can smuggle in, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
