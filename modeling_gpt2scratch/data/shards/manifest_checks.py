"""What a manifest may say: every value of its type, and nothing that contradicts the rest.

It is read before any shard is; which files are there, `directory.py` knows.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import PureWindowsPath
from typing import Any

from modeling_gpt2scratch.common.errors import printable
from modeling_gpt2scratch.data.tokens.ids import token_dtype

from .format import HEADER_BYTES, LAYOUTS, MAX_SHARD_TOKENS, ShardError

# Of shards in our format, and of other programs' files, whose entries say their layout. Readers
# that know nothing of layouts refuse the second.
OWN_FORMAT, ADOPTED_FORMAT = "gpt2scratch-shards", "gpt2scratch-adopted-shards"
VERSION = 1
# The words of a file's name, in small letters, that say its split.
# Letters before or behind make another word of it.
SPLITS = {
    split: re.compile(rf"(?<![a-z])(?:{words})(?:set)?(?![a-z])")
    for split, words in {"train": "train(?:ing)?", "val": "val(?:id(?:ation|ate)?)?"}.items()
}
# The words of names of data that no model should be trained on.
HELD_OUT = re.compile(
    r"(?<![a-z])(?:test(?:s|ing)?|dev|eval(?:s|uation)?|h[eo]ld[-_ ]?out)(?:set)?(?![a-z])"
)
CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # between its words
FORMATS = ("gpt2scratch", "llm.c", "npy", "nanogpt")  # see `token_files.py`
ENTRY_KEYS = {
    OWN_FORMAT: ("file", "n_tokens", "sha256"),
    ADOPTED_FORMAT: ("file", "n_tokens", "sha256", "format", "dtype", "header_bytes"),
}
KINDS = {int: "a whole number", str: "a text", dict: "an object", list: "a list"}
MAX_COUNT = 2**63 - 1
MAX_NPY_HEADER_BYTES = 2**20
AGAIN = "copy it again or prepare the data again"


class ManifestError(ShardError):
    """A manifest that cannot be true."""


def is_printable(value: Any) -> bool:
    """Whether it is a line of text that moves no cursor, which the name of a source must be."""
    return isinstance(value, str) and printable(value) == value and len(value.splitlines()) < 2


def is_file_name(text: str) -> bool:
    """Whether it names a file in a directory, on any system; hidden ones are unfinished."""
    # Separators, drives and what leads upwards leave another name, or none.
    is_name = text != "" and PureWindowsPath(text).name == text
    return is_name and not text.startswith(".") and text.isprintable()


def splits_named(file: str) -> list[str]:
    """The splits that the name of a file says it belongs to."""
    return [split for split, words in SPLITS.items() if words.search(_words_of(file))]


def says_held_out(file: str) -> bool:
    """Whether the name of a file says that it is for validation or tests, or its nearest folder."""
    for name in reversed(PureWindowsPath(file).parts):
        splits = splits_named(name)
        is_held_out = HELD_OUT.search(_words_of(name)) is not None
        if splits or is_held_out:
            return "train" not in splits
    return False


def check_content(content: dict) -> None:
    """Refuses a manifest, as JSON values, of which a part is missing, impossible or contradicted.

    Raises:
        ManifestError: with the first fault; the message does not name the file.
    """
    is_own = content["format"] == OWN_FORMAT
    _value(content, "version", int)  # which true is not
    vocab_size = _number(content, "vocab_size", least=1, most=2**31 - 1)
    end_of_text_id = _value(content, "end_of_text_id", int)
    if not 0 <= end_of_text_id < vocab_size:
        raise ManifestError(
            f"expected an end-of-text id below {vocab_size}, found {end_of_text_id}; {AGAIN}"
        )
    if is_own:
        layout = {"dtype": token_dtype(vocab_size), "header_bytes": HEADER_BYTES}
        found = {key: content.get(key) for key in layout}
        if found != layout or type(found["header_bytes"]) is not int:
            raise ManifestError(f"expected {layout}, found {found}; {AGAIN}")
    tokenizer = _value(content, "tokenizer", dict)
    for name in ("name", "fingerprint"):
        _value(tokenizer, name, str, " of the tokenizer")
    _value(content, "arguments", dict)
    _check_origin(content)
    splits = _value(content, "splits", dict)
    if "train" not in splits or {*splits} - {*SPLITS}:
        raise _incomplete("splits train and perhaps val", list(splits))
    for name in splits:
        _check_split(_value(splits, name, dict, " of the splits"), name, is_own)
    files = [entry["file"] for split in splits.values() for entry in split["shards"]]
    if len({*files}) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise ManifestError(f"expected each shard once, found {twice} again; {AGAIN}")
    for name, split in splits.items():
        n_tokens = sum(entry["n_tokens"] for entry in split["shards"])
        if n_tokens != split["n_tokens"]:
            raise ManifestError(
                f"expected {split['n_tokens']} tokens in split {name!r}, found {n_tokens} in the "
                f"list of its shards; {AGAIN}"
            )
        if 0 < n_tokens < split["n_documents"]:  # each has a token that says so
            raise ManifestError(
                f"expected at most {n_tokens} documents in split {name!r}, found "
                f"{split['n_documents']}; {AGAIN}"
            )


def _words_of(name: str) -> str:
    """A name in small letters, with a blank between the words of `camelCase`."""
    return CAMEL_CASE.sub(" ", name).lower()


def _check_origin(content: dict) -> None:
    """What was read, left out and held out, which not all manifests say."""
    for source in _value(content, "sources", list) if "sources" in content else []:
        if not isinstance(source, dict) or not isinstance(source.get("name"), str):
            raise _incomplete("each of the sources with its name", source)
        _require_type(source, ("name", "subset", "revision"), is_printable, "a printable text")
        _require_type(source, ("weight",), _is_share, "a number")
    if "held_out" in content:
        _value(content, "held_out", dict)
    left_out = _value(content, "left_out", dict) if "left_out" in content else {}
    for reason in left_out:
        _number(left_out, reason, " of left_out")


def _require_type(source: dict, keys: Sequence[str], is_right: Callable, wanted: str) -> None:
    """Refuses entries that a source has and that are of another type; None passes."""
    for key in keys:
        if source.get(key) is not None and not is_right(source[key]):
            raise _incomplete(f"{wanted} as {key} of each of the sources", source[key])


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _check_split(split: dict, name: str, is_own: bool) -> None:
    """A split counts, and lists, what it holds."""
    for count in ("n_tokens", "n_documents", "n_bytes"):
        _number(split, count, f" of split {name!r}")
    _refuse_unknown(split, ("n_tokens", "n_documents", "n_bytes", "shards"), f"split {name!r}")
    for entry in _value(split, "shards", list, f" of split {name!r}"):
        if not isinstance(entry, dict):
            raise _incomplete(f"an object for each shard of split {name!r}", entry)
        _check_entry(entry, name, is_own)


def _check_entry(entry: dict, split: str, is_own: bool) -> None:
    """One shard: the name of a file beside the manifest, its size and checksum."""
    file = _value(entry, "file", str, f" of a shard of split {split!r}")
    if not is_file_name(file):
        raise ManifestError(
            f"expected the name of a file in its directory, found {_shown(file)}; {AGAIN}"
        )
    said = splits_named(file)
    is_elsewhere = len(said) == 1 and said != [split]
    # Of other programs' files, the user may have chosen any to hold out.
    if is_elsewhere and (is_own or split == "train"):
        raise ManifestError(
            f"expected shards of split {split!r} in its list, found {file}; {AGAIN}"
        )
    _refuse_unknown(entry, ENTRY_KEYS[OWN_FORMAT if is_own else ADOPTED_FORMAT], file)
    sha256 = _value(entry, "sha256", str, f" of {file}")
    if not re.fullmatch("[0-9a-f]{64}", sha256):  # it will be a file's name in a cache
        raise ManifestError(f"expected a sha256 for {file}, found {_shown(sha256)}; {AGAIN}")
    most = MAX_SHARD_TOKENS
    if not is_own:
        _check_layout(entry)
        most = MAX_SHARD_TOKENS if entry["format"] in FORMATS[:2] else MAX_COUNT
    _number(entry, "n_tokens", f" of {file}", least=1, most=most)


def _check_layout(entry: dict) -> None:
    """Where the tokens of another program's file begin, and their type."""
    file = entry["file"]
    format = _value(entry, "format", str, f" of {file}")
    dtype = _value(entry, "dtype", str, f" of {file}")
    header_bytes = _number(entry, "header_bytes", f" of {file}", most=MAX_NPY_HEADER_BYTES)
    is_integer = re.fullmatch("[<>][iu][248]|[|][iu]1", dtype) is not None
    fits = {
        "npy": is_integer and header_bytes > 0,
        "nanogpt": (dtype, header_bytes) == ("<u2", 0),
    }.get(format, dtype in LAYOUTS and header_bytes == HEADER_BYTES)
    if format not in FORMATS or not fits:
        raise ManifestError(
            f"expected a format, type and header of {file} that go together, found {format}, "
            f"{dtype} and {header_bytes} bytes; adopt the directory again"
        )


def _value(entry: dict, name: str, kind: type, of: str = "") -> Any:
    """A value that must be there; true is no number, and neither is 3.0 a whole one."""
    if name not in entry:
        raise _incomplete(f"{name}{of}", None)
    if type(entry[name]) is not kind:
        raise _incomplete(f"{KINDS[kind]} as {name}{of}", entry[name])
    return entry[name]


def _number(entry: dict, name: str, of: str = "", *, least: int = 0, most: int = MAX_COUNT) -> int:
    """A whole number within bounds."""
    value = _value(entry, name, int, of)
    if not least <= value <= most:
        raise ManifestError(f"expected {name}{of} from {least} to {most}, found {value}; {AGAIN}")
    return value


def _refuse_unknown(entry: dict, known: tuple[str, ...], what: str) -> None:
    if unknown := {*entry} - {*known}:
        raise ManifestError(
            f"expected {', '.join(known)} for {what}, found {_shown(min(unknown))} beside them"
        )


def _incomplete(expected: str, found: Any) -> ManifestError:
    words = "none" if found is None else _shown(found)
    return ManifestError(f"incomplete manifest: expected {expected}, found {words}; {AGAIN}")


def _shown(value: Any) -> str:
    """A value as it stands there, cut if it is long."""
    if isinstance(value, dict | list):
        return KINDS[type(value)]
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."
