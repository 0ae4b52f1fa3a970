"""Rows of text files: plain text, JSON lines and CSV, each read from front to back.

Memory holds one piece of the file at a time, and a piece has a limit: a compressed file of a few KB
may hold gigabytes without a line end.
"""

import codecs
import contextlib
import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import AnyStr

from modeling_gpt2scratch.common.errors import SourceError, one_line
from modeling_gpt2scratch.data.tokens.text import END_OF_TEXT, parse_json, well_formed

from .decompression import decompressed
from .filters import shown_columns
from .rows import CHUNK_BYTES, MAX_ROW_BYTES, MAX_TEXT_BYTES, Reading, Rows, not_utf8, too_long

# A byte that is not UTF-8 becomes half a surrogate pair, and so is found with its row.
# What UTF-16 has between letters of Latin, Greek, Cyrillic and others; text has no such characters.
BETWEEN_LETTERS = re.compile("[\\0-\\x08\\x0e]")
ESCAPES = re.compile(r"\x1b\$[@B]")  # with which ISO-2022 begins an alphabet of its own
MOST_BETWEEN_LETTERS = 0.2  # of the characters of a text
NULS = "zero bytes, as in UTF-16; convert the file to UTF-8 first"
BYTE_ORDER_MARK = "\ufeff"  # also in the middle of files that were joined
UTF8 = {"encoding": "utf-8", "errors": "surrogateescape"}


def read_txt(reading: Reading) -> Rows:
    """The file as one document, or the pieces between `END_OF_TEXT` marks if it has them."""
    unit, limit = ("line", MAX_ROW_BYTES) if reading.by_lines else ("document", MAX_TEXT_BYTES)
    with _open(reading) as file:
        pieces = _lines_of(file) if reading.by_lines else _pieces_of(file)
        for number, text in enumerate(pieces, start=1):
            place = f"{reading.name}: {unit} {number}"
            if number <= reading.skip_rows:
                continue
            if text is None:
                yield number, too_long(place, limit)
                continue
            document = reading.document({reading.text_column: text}, reading.name)
            if document is not None:
                document = _decoded(document, place)
                if isinstance(document, str) and (found := _other_encoding(text)):
                    problem = f"expected text in UTF-8, found control characters, as in {found}"
                    document = SourceError(f"{place}: {problem}; convert the file first")
                yield number, document


def read_jsonl(reading: Reading) -> Rows:
    """The text column of JSON objects, one per line."""
    with _open(reading) as file:
        lines = itertools.islice(_limited(file.readline, b"\n"), reading.skip_rows, None)
        for number, line in enumerate(lines, start=reading.skip_rows + 1):
            place = f"{reading.name}:{number}"
            if line is None:
                yield number, too_long(place)
            elif not line.isspace():
                document = _document_of_json(line, reading, place)
                if document is not None:
                    yield number, document


def read_csv(reading: Reading) -> Rows:
    """The text column of a CSV file whose first row names the columns."""
    csv.field_size_limit(MAX_ROW_BYTES)  # documents are longer than the default of 128 KiB
    with _open(reading) as file, io.TextIOWrapper(file, **UTF8, newline="") as text:
        lines = _CsvLines(text, reading.name)
        parser = csv.reader(lines, strict=True)
        columns: list[str] | None = None
        number = n_named = 0  # rows, and columns up to the last one that has a name
        for cells in _records(parser, lines, reading.name):
            place = f"{reading.name}:{parser.line_num}"
            if columns is None:
                columns = _header(cells, reading, place)
                n_named = max(n for n, name in enumerate(columns, start=1) if name)
                continue
            number += 1
            if number <= reading.skip_rows:
                continue
            if len(cells) < n_named or any(cells[len(columns) :]):  # empty ones do no harm
                found = f"{len(cells)} for {n_named} in the header"
                problem = f"{place}: expected as many cells as columns, found {found}"
                hint = (
                    "put cells with commas or line breaks in quotes, fill up short rows with commas"
                )
                yield number, SourceError(f"{problem}; {hint}")
                continue
            row = dict(zip(columns, cells, strict=False))
            # An empty cell is the null of CSV; in the text column it is an empty document.
            nulls = {column: cell or None for column, cell in row.items()}
            document = reading.document(row, place, seen_as=nulls)
            if document is not None:
                yield number, _decoded(document, place)


def _other_encoding(text: str) -> str | None:
    """The encoding whose signs stand between the letters of a text that was read as UTF-8."""
    if len(BETWEEN_LETTERS.findall(text)) > MOST_BETWEEN_LETTERS * len(text):
        return "UTF-16"
    return "ISO-2022" if ESCAPES.search(text) else None


@contextlib.contextmanager
def _open(reading: Reading) -> Iterator[io.BufferedReader]:
    """The bytes of a text file, decompressed by its ending."""
    with (
        decompressed(reading.path, PurePath(reading.name.lower()).suffix) as raw,
        io.BufferedReader(raw, CHUNK_BYTES) as file,
    ):
        if file.peek(3).startswith(codecs.BOM_UTF8):  # Windows marks UTF-8 with it
            file.read(3)
        yield file


def _limited(readline: Callable[[int], AnyStr], end: AnyStr | tuple[str, ...]) -> Iterator[AnyStr]:
    """The lines of a file; None in the place of one beyond `MAX_ROW_BYTES`."""
    while line := readline(MAX_ROW_BYTES + 1):
        is_whole = len(line) <= MAX_ROW_BYTES or line.endswith(end)
        yield line if is_whole else None
        while not (is_whole or line.endswith(end)):
            line = readline(CHUNK_BYTES)
            is_whole = not line


def _lines_of(file: io.BufferedReader) -> Iterator[str | None]:
    """The lines of a text file, each with one line feed at its end."""
    return _limited(io.TextIOWrapper(file, **UTF8).readline, "\n")


def _pieces_of(file: io.BufferedReader) -> Iterator[str | None]:
    """What stands between the marks, with line feeds for line ends, one piece at a time.

    In the place of one beyond `MAX_TEXT_BYTES` comes None.
    """
    utf8 = codecs.getincrementaldecoder(UTF8["encoding"])(UTF8["errors"])
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    n_kept = len(END_OF_TEXT) - 1  # may be the beginning of a mark that the next chunk completes
    parts, n_bytes, is_too_long, end = [], 0, False, ""
    while chunk := file.read(CHUNK_BYTES):
        first, *others = (end + decoder.decode(chunk)).split(END_OF_TEXT)
        for piece in others:
            if not is_too_long:
                yield _trimmed("".join((*parts, first)))
            parts, n_bytes, is_too_long, first = [], 0, False, piece
        parts.append(first[:-n_kept])
        end = first[-n_kept:]
        n_bytes += len(chunk)
        if n_bytes > MAX_TEXT_BYTES:
            parts.clear()
            if not is_too_long:
                is_too_long = True
                yield None
    if not is_too_long:
        yield _trimmed("".join((*parts, end, decoder.decode(b"", final=True))))


def _trimmed(text: str) -> str:
    """Without white space at both ends, nor the byte order mark of a file within a file."""
    return text.strip().removeprefix(BYTE_ORDER_MARK).lstrip()


def _document_of_json(line: bytes, reading: Reading, place: str) -> str | SourceError | None:
    """The document of a line, what is wrong with it, or None if a condition leaves it out."""
    try:
        content = line.decode()
    except UnicodeDecodeError as error:
        return not_utf8(place, error.object[error.start])
    try:
        row = parse_json(content.removeprefix(BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        found = NULS if "\0" in content else one_line(error)
        return SourceError(f"{place}: expected one JSON object per line, found {found}")
    document = reading.document(row, place)
    return well_formed(document) if isinstance(document, str) else document


class _CsvLines(Iterator[str]):
    """Lines for `csv.reader`, of which one record may hold only so many characters.

    Beyond it nobody knows any more where the next row begins: most often a quote is not closed.
    """

    def __init__(self, file: io.TextIOWrapper, name: str):
        self._lines = enumerate(_limited(file.readline, ("\n", "\r")), start=1)
        self._name = name
        self._n_characters = 0

    def begin_record(self) -> None:
        """Says that what follows belongs to another record."""
        self._n_characters = 0

    def __next__(self) -> str:
        number, line = next(self._lines)
        self._n_characters += len(line or "")
        if line is None or self._n_characters > MAX_ROW_BYTES:
            raise too_long(f"{self._name}:{number}", hint="close its quotes, or ")
        return line


def _records(parser: Iterator[list[str]], lines: _CsvLines, name: str) -> Iterator[list[str]]:
    """The rows of a CSV file, blank ones aside.

    Raises:
        SourceError: at a quote in the wrong place, after which nobody knows where the next row
            begins.
    """
    while True:
        lines.begin_record()
        try:
            cells = next(parser)
        except StopIteration:
            return
        except csv.Error as error:
            raise SourceError(
                f"{name}:{parser.line_num}: expected CSV, found {error}; double each quote within "
                f"quotes"
            ) from None
        if cells:
            yield cells


def _header(cells: list[str], reading: Reading, place: str) -> list[str]:
    """The names of the columns, if the text column is among them."""
    header = _decoded("".join(cells), place)
    if isinstance(header, SourceError):
        raise header
    if "\0" in header:
        raise SourceError(f"{place}: expected the names of columns, found {NULS}")
    if len(cells) == 1 and any(separator in cells[0] for separator in ";\t"):
        found = shown_columns(dict.fromkeys(cells))
        raise SourceError(
            f"{place}: expected columns separated by commas, found {found}; write the table again "
            f"with commas"
        )
    if reading.text_column not in cells:
        raise reading.no_text(place, shown_columns(dict.fromkeys(cells)))
    if twice := next((name for name in cells if name and cells.count(name) > 1), None):
        raise SourceError(f"{place}: expected columns of different names, found {twice!r} twice")
    return cells


def _decoded(document: str | SourceError, place: str) -> str | SourceError:
    """The document, unless it has a byte that is not UTF-8."""
    if isinstance(document, SourceError):
        return document
    try:
        document.encode()
    except UnicodeEncodeError as error:
        return not_utf8(place, ord(document[error.start]) - 0xDC00)
    return document
