"""Rows of a benchmark: from local .jsonl or text files, or from a data set of the Hub.

Their texts are well formed, as those of `prepare_data.py`: half a surrogate pair, which JSON can
smuggle in and no tokenizer takes, is U+FFFD.
"""

import hashlib
import itertools
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from modeling_gpt2scratch.common.checksums import file_sha256
from modeling_gpt2scratch.common.errors import content_instead
from modeling_gpt2scratch.data.tokens.text import parse_json, well_formed

TEXT_SUFFIXES = (".txt", ".raw", ".tokens")
OTHER_SUFFIXES = (".parquet", ".csv", ".tsv", ".gz", ".zst", ".bz2", ".xz", ".arrow", ".md", ".py")
# What no data set of the Hub is called.
FILE_SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".json", ".zip", *OTHER_SUFFIXES)
MAX_LINE_BYTES = 1 << 27  # more is no benchmark, and would fill the memory
# What is known of samples.
OFFICIAL = "official"
NOT_OFFICIAL = "not the official file"
NO_CHECKSUM = "no official checksum is known"
UNCHECKED = "samples, unchecked"  # after "9 of 5153"
WEB_PAGE = "a web page"  # as `content_instead` says
IN_PLACE_OF = ", in place of"  # before the official data set


@dataclass(frozen=True)
class Selection:
    """Which samples a task reads.

    Args:
        place: a file or a Hub data set in place of the usual one.
        data_dir: searched for the official file, with the directories below it.
        limit: of samples, None for all.
    """

    place: str | None = None
    data_dir: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class SampleData:
    """Where a benchmark's official samples are, and what they are known by.

    Args:
        argument: field of the command line that names another place.
        file: its official name, by which a directory is searched for it; of one's own, its kind.
        hub_name: data set of the Hub; None where none is certain to hold the official file.
        split: of the data set.
        subset: of the data set, None where it has but one.
        files: patterns of the split's files, for a data set that does not name its subsets.
        revision: commit of the data set, None for the newest.
        sha256: checksum of the official file; None if unknown.
        n_samples: how many they are.
        is_own: whether these are the user's own, measured only where `argument` names them.
    """

    argument: str
    file: str
    hub_name: str | None = None
    split: str = "test"
    subset: str | None = None
    files: tuple[str, ...] = ()
    revision: str | None = None
    sha256: str | None = None
    n_samples: int | None = None
    is_own: bool = False

    @property
    def help(self) -> str:
        """What `argument` takes, for the command line."""
        if self.is_own:
            return f"a file of your own: {self.file}"
        usual = f"{self.file} in --data_dir"
        if self.hub_name is None:
            return f"file or directory [default: {usual}]"
        return f"file, directory or Hub data set [default: {usual}; without it, {self.hub_name}]"

    def source(self, selection: Selection) -> str:
        """The place that is named, else that in `data_dir`, else the Hub.

        A directory is searched for the official file, and so are those below it.

        Raises:
            FileNotFoundError: if the file is not there.
            ValueError: if there is no such place, a directory where one's own file is meant, or a
                file that holds something else in place of data.
        """
        source = self._find(selection)
        path = Path(source)
        found = content_instead(path) if path.is_file() and path.stat().st_size else None
        if found and not (self.is_own and WEB_PAGE in found):  # a text of one's own may be HTML
            raise ValueError(f"{path}: expected {self.file}, found {found}")
        return source

    def _find(self, selection: Selection) -> str:
        """As `source`, whatever is in the file."""
        given = selection.place or selection.data_dir
        if self.is_own and given is not None and Path(given).is_dir():
            raise ValueError(f"{given}: expected a file, found a directory; name the file")
        if given is None and self.hub_name is None:
            raise ValueError(
                f"expected {self.file} in --data_dir or a file as --{self.argument}, found neither"
            )
        if given is None or not Path(given).is_dir():
            return given or self.hub_name
        if (path := Path(given) / self.file).is_file():
            return str(path)
        if found := sorted(p for p in Path(given).rglob(self.file) if p.is_file()):
            return str(found[0])
        raise FileNotFoundError(f"{given}: expected {self.file} in it, found none")

    def rows(
        self, source: str, *, columns: dict[str, type], limit: int | None
    ) -> Iterator[tuple[str, dict]]:
        """Each of the first `limit` rows, after the name of its place, for an error message.

        Args:
            source: a file of JSON lines (.jsonl, .json or no suffix), a directory or an archive
                (.zip) of .jsonl files, a text file (.txt, .raw, .tokens) whose lines are the rows
                of one column `text`, or the name of a Hub data set.
            columns: what a row must have, with its type; a file may have others beside them.
            limit: rows to read, None for all.

        Raises:
            FileNotFoundError: for the name of a file that is not there.
            ValueError: for a file of another kind, and a line or a row that is not as above.
        """
        path = Path(source)
        suffix = path.suffix.lower()
        if suffix in FILE_SUFFIXES and not path.exists():
            raise FileNotFoundError(f"expected a file {path}, found none")
        if suffix in TEXT_SUFFIXES:
            rows = _read_lines(path, limit)
        elif path.is_dir():
            files = sorted(path.glob("*.jsonl"))
            rows = islice(chain.from_iterable(map(_read_jsonl, files)), limit)
        elif suffix == ".zip":
            rows = islice(_read_zip(path), limit)
        elif path.is_file():
            if suffix in OTHER_SUFFIXES:
                raise ValueError(
                    f"{path}: expected .jsonl, .txt or .zip, found {path.suffix}; unpack or "
                    f"convert it"
                )
            rows = islice(_read_jsonl(path), limit)
        else:
            rows = self._read_hub(source, limit)
        for place, row in rows:
            if not isinstance(row, dict):
                raise ValueError(
                    f"{place}: expected an object with {', '.join(columns)}, "
                    f"found {type(row).__name__}"
                )
            for name, kind in columns.items():
                if not isinstance(value := row.get(name), kind):
                    found = f"a `{name}` of {type(value).__name__}: {value!r:.80}"
                    if value is None:
                        null = f", with null as `{name}`" if name in row else ""
                        found = f"{sorted(row)}{null}"
                    raise ValueError(
                        f"{place}: expected an object with a {kind.__name__} `{name}`, "
                        f"found {found}"
                    )
            yield place, _well_formed(row)

    def status(self, sha256: str, n_samples: int) -> str:
        """What is known of samples with this digest; other samples are measured all the same.

        Where no checksum is known, their number must do.
        """
        if self.sha256 is not None and sha256 == self.sha256:
            return OFFICIAL
        if self.n_samples is not None and n_samples < self.n_samples:
            return f"{n_samples} of {self.n_samples} {UNCHECKED}"
        if self.sha256 is not None or self.n_samples not in (None, n_samples):
            return NOT_OFFICIAL
        return NO_CHECKSUM

    def source_status(self, source: str, n_samples: int) -> str:
        """What is known of the place itself, for samples whose digest is not that of a file."""
        path = Path(source)
        if not path.is_file():
            usual = f"{IN_PLACE_OF} {self.hub_name}" if self.hub_name not in (None, source) else ""
            return f"from the Hub, {source}{usual}"
        if self.sha256 is None:
            return self.status("", n_samples)
        return OFFICIAL if file_sha256(path) == self.sha256 else NOT_OFFICIAL

    def problem(self, status: str, *, limit: int | None) -> str | None:
        """Why samples of this status are not the official ones; None if nothing says so.

        Args:
            limit: of samples to read, None for all: fewer are the beginning of a cut file.
        """
        if status == NOT_OFFICIAL and self.sha256 is not None:
            return f"expected {self.file} with sha256 {self.sha256[:12]}…, found another file"
        if IN_PLACE_OF in status:
            return f"expected {self.hub_name}, found data {status.partition(IN_PLACE_OF)[0]}"
        if status == NOT_OFFICIAL:
            return f"expected {self.file} with {self.n_samples:,} samples, found more"
        n_samples = status.partition(" ")[0]
        if status.endswith(UNCHECKED) and (limit is None or int(n_samples) < limit):
            return f"expected {self.file} with {self.n_samples:,} samples, found {int(n_samples):,}"
        return None

    def _read_hub(self, name: str, limit: int | None) -> Iterator[tuple[str, object]]:
        """The first `limit` rows; subset, files and revision are those of `hub_name` alone."""
        from datasets import load_dataset  # takes a second, which a local file need not pay

        options: dict = {}
        if name == self.hub_name:
            options = {"name": self.subset, "revision": self.revision}
            if self.files:
                options["data_files"] = {self.split: list(self.files)}
        rows = load_dataset(name, split=self.split, **options)
        for number, row in enumerate(islice(rows, limit), start=1):
            yield f"{name}, row {number}", row


def digest_of_rows(rows: Iterable[object]) -> str:
    """Digest of rows, from wherever they were read: the JSON of each on a line of its own."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def numbered_lines(file: IO[bytes], name: str) -> Iterator[tuple[str, str]]:
    """The lines of the file that is called `name`, each after its place; none fills the memory."""
    for number in itertools.count(1):
        line, place = file.readline(MAX_LINE_BYTES + 1), f"{name}, line {number}"
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            expected = f"expected a line of at most {MAX_LINE_BYTES:,} bytes"
            raise ValueError(f"{place}: {expected}, found more")
        try:  # Windows marks the beginning of a file, and so line 1
            yield place, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: expected UTF-8: {error}") from error


def _well_formed(value: Any) -> Any:
    """The same value with every text in it well formed."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {name: _well_formed(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_well_formed(part) for part in value]
    return value


def _read_lines(path: Path, limit: int | None) -> Iterator[tuple[str, dict]]:
    """The first `limit` lines without their ends, those of Unix or Windows; no other ends one."""
    with path.open("rb") as file:
        for place, line in islice(numbered_lines(file, str(path)), limit):
            yield place, {"text": line.removesuffix("\n").removesuffix("\r")}


def _read_zip(path: Path) -> Iterator[tuple[str, object]]:
    """What is in the lines of each .jsonl file of an archive, by the files' names."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".jsonl"):
                    with archive.open(name) as lines:
                        yield from _read_json_lines(f"{path}, {name}", lines)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: expected a zip archive: {error}") from error


def _read_jsonl(path: Path) -> Iterator[tuple[str, object]]:
    """What is in the lines."""
    with path.open("rb") as lines:
        yield from _read_json_lines(str(path), lines)


def _read_json_lines(name: str, file: IO[bytes]) -> Iterator[tuple[str, object]]:
    """What is in the lines of the file that is called `name`."""
    for place, line in numbered_lines(file, name):
        if line.isspace():
            continue
        try:
            yield place, parse_json(line)
        except (ValueError, RecursionError) as error:
            if line.strip() in ("[", "{"):
                found = "the beginning of a longer value; write each object on a line of its own"
                raise ValueError(f"{place}: expected JSON, found {found}") from error
            raise ValueError(f"{place}: expected JSON: {error}") from error
