"""What happens to files: bits flip, copies stop half-way, somebody edits them by hand.

A family makes one mutation of a file from a random number generator. It returns a few words about
it, and the content that the file now has. The same generator gives the same mutation.
"""

import json
import re
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

Mutation = tuple[str, bytes]
Family = Callable[[bytes, Random], Mutation]

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 548105171\n"
WEB_PAGE = b"<!DOCTYPE html><html><body>404: not found</body></html>"
REPLACEMENTS = {
    "empty": b"",
    "Git-LFS pointer": LFS_POINTER,
    "web page": WEB_PAGE,
    "one line feed": b"\n",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "binary": bytes(range(256)) * 8,
    "UTF-16": "text: in another encoding\n".encode("utf-16"),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 20_000,
    "JSON null": b"null",
    "JSON list": b"[]",
    "JSON object": b"{}",
    "JSON text": b'"text"',
    "JSON number": b"1" * 5_000,
}
# Values of other types, and numbers at the ends of what formats can say.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32, 2**53),
    *(2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, -1.5),
    *(float("nan"), float("inf"), float("-inf"), "", "0", "1e9", "text", "é狐\u2028", "\ud800"),
    *("\x00", "../../etc/passwd", "/dev/zero", "/nowhere/file", "~", "a" * 100_000, "{}"),
    *([], [None], [[]], [1, 2, 3], ["a", "b"], {}, {"a": 1}, {"a": {"a": {}}}, [0] * 10_000),
)


def bytes_changed(content: bytes, random: Random) -> Mutation:
    """A bit, a byte or a piece is another."""
    start = random.randrange(len(content))
    length = min(random.choice((1, 1, 2, 4, 8, 64, 512)), len(content) - start)
    stop = start + length
    kind = random.choice(("bit", "bit", "byte", "number", "zeros", "ones", "noise"))
    if kind == "bit":
        stop, new = start + 1, bytes([content[start] ^ 1 << random.randrange(8)])
    elif kind == "byte":
        stop, new = start + 1, bytes([random.randrange(256)])
    elif kind == "number":
        value = random.choice((0, 1, -1, 2**31 - 1, -(2**31), 65_536))
        new = struct.pack("<i", value)
        stop = start + len(new)
    else:
        new = {"zeros": bytes(length), "ones": b"\xff" * length}.get(kind)
        new = random.randbytes(length) if new is None else new
    return f"{kind} at {start}", content[:start] + new + content[stop:]


def start_changed(content: bytes, random: Random) -> Mutation:
    """A number within the first bytes, where most formats keep their sizes, is another."""
    name, new = bytes_changed(content[: random.choice((16, 64, 1024))], random)
    return f"{name} of the start", new + content[len(new) :]


def moved(content: bytes, random: Random) -> Mutation:
    """A part is missing, stands twice or elsewhere, or something stands between."""
    start, stop = sorted(random.randrange(len(content) + 1) for _ in range(2))
    piece = content[start:stop]
    kind = random.choice(("cut", "cut short", "removed", "twice", "first", "between", "behind"))
    return f"{kind} {start}:{stop}", {
        "cut": content[:start],
        "cut short": content[: -random.choice((1, 2, 3, 4, 8))],
        "removed": content[:start] + content[stop:],
        "twice": content[:stop] + piece + content[stop:],
        "first": piece + content[:start] + content[stop:],
        "between": content[:start] + random.randbytes(7) + content[start:],
        "behind": content + random.choice((b"\0", b"\n", b"junk", content, random.randbytes(999))),
    }[kind]


def replaced(content: bytes, random: Random) -> Mutation:
    """Something else is in its place."""
    name = random.choice(sorted(REPLACEMENTS))
    return name, REPLACEMENTS[name]


def fields_changed(content: bytes, random: Random) -> Mutation:
    """JSON with a field that is removed, renamed or swapped, or has another value."""
    tree = json.loads(content)
    name = _change_field(tree, random)
    return name, json.dumps(tree).encode()


def lines_changed(content: bytes, random: Random) -> Mutation:
    """Lines are missing, stand twice, change places, are cut or hold what is no text."""
    lines = content.splitlines(keepends=True)
    n = random.randrange(len(lines))
    line = lines[n]
    kind = random.choice(("removed", "twice", "swapped", "cut", "binary", "no break", "empty"))
    m = random.randrange(len(lines))
    if kind == "swapped":
        lines[n], lines[m] = lines[m], lines[n]
    else:
        middle = random.randrange(len(line))
        lines[n] = {
            "removed": b"",
            "twice": line + line,
            "cut": line[:middle] + b"\n",
            "binary": line[:middle]
            + random.choice((b"\0", b"\xff\xfe", b"\x1b[2J"))
            + line[middle:],
            "no break": line.rstrip(b"\r\n"),
            "empty": b"\n" + line,
        }[kind]
    return f"line {n + 1} {kind}", b"".join(lines)


def fields_of_lines_changed(content: bytes, random: Random) -> Mutation:
    """JSON lines, of which one has another field."""
    lines = content.splitlines()
    n = random.randrange(len(lines))
    name, lines[n] = fields_changed(lines[n], random)
    return f"line {n + 1}: {name}", b"\n".join(lines) + b"\n"


def entries_changed(content: bytes, random: Random) -> Mutation:
    """A YAML recipe with an entry that is removed, doubled, renamed or has another value."""
    lines = content.decode().splitlines()
    n = random.randrange(len(lines))
    key, _, value = lines[n].partition(": ")
    other = random.choice(
        ("[]", "{}", "[1, [2]]", "{a: 1}", "*a", "&a [*a]", "!!python/none", "|", "'")
    )
    other = random.choice((other, json.dumps(random.choice(VALUES))))
    kind = random.choice(
        ("removed", "twice", "renamed", "value", "value", "value", "indented", "tab")
    )
    lines[n] = {
        "removed": "",
        "twice": f"{lines[n]}\n{lines[n]}",
        "renamed": f"{key}s: {value}",
        "value": f"{key}: {other}",
        "indented": f"  {lines[n]}",
        "tab": f"{key}:\t{value}\t",
    }[kind]
    what = f" {other[:20]}" if kind == "value" else ""
    return f"{key} {kind}{what}", "\n".join([*lines, ""]).encode("utf-8", "surrogatepass")


def header_changed(content: bytes, random: Random) -> Mutation:
    """A safetensors file whose header, of the right length, has another field."""
    (length,) = struct.unpack("<Q", content[:8])
    name, header = fields_changed(content[8 : 8 + length], random)
    header += b" " * (-len(header) % 8)
    return f"header: {name}", struct.pack("<Q", len(header)) + header + content[8 + length :]


def differences(original: bytes, changed: bytes, header_bytes: int = 0) -> set[str]:
    """The places of JSON (a.b.0), of its lines or of YAML where two files differ, else `bytes`.

    It is `twice` for a file that stands behind itself. Numbers of lines are left out, so that a
    place names a field, and a field that no line of the original has is `another name`.
    """
    if changed == original * 2:
        return {"twice"}
    if changed[:header_bytes] != original[:header_bytes]:
        return {"header"}
    for read in (json.loads, _recipe):
        try:
            return set(_differences(read(original), read(changed), ""))
        except (ValueError, RecursionError, yaml.YAMLError):
            pass
    if len(original) > 8 and original[8:9] == b"{":
        return _differences_of_tensors(original, changed)
    try:
        left, right = ([json.loads(line) for line in c.splitlines()] for c in (original, changed))
    except (ValueError, RecursionError):
        return {"bytes"}
    if len(left) != len(right):
        return {"lines"}
    names = {name for line in left for name in line}
    places = [re.sub(r"^\d+\.", "", place) for place in _differences(left, right, "")]
    return {
        place if place.isdigit() or place.split(".")[0] in names else "another name"
        for place in places
    }


def _recipe(content: bytes) -> dict[str, str]:
    """The entries of a YAML recipe."""
    entries = yaml.load(content.decode(), Loader=yaml.BaseLoader)
    if not isinstance(entries, dict):
        raise ValueError("no recipe")
    return entries


def _differences_of_tensors(original: bytes, changed: bytes) -> set[str]:
    """Where two safetensors files differ: fields of the header, `tensors`, or `bytes` of others."""
    headers, tensors = [], []
    for content in (original, changed):
        stop = 8 + int.from_bytes(content[:8], "little")
        try:
            headers.append(json.loads(content[8:stop]))
        except ValueError:
            return {"bytes"}
        tensors.append(content[stop:])
    found = {f"header.{place}" for place in _differences(*headers, "")}
    return found | ({"tensors"} if tensors[0] != tensors[1] else set())


def _differences(left: Any, right: Any, place: str):
    """Where two trees differ."""
    if type(left) is not type(right) or not isinstance(left, (dict, list)):
        if repr(left) != repr(right):
            yield place.rstrip(".") or "all"
        return
    pairs = [dict(enumerate(tree)) if isinstance(tree, list) else tree for tree in (left, right)]
    for key in {**pairs[0], **pairs[1]}:
        if key not in pairs[0] or key not in pairs[1]:
            yield f"{place}{key}"
        else:
            yield from _differences(pairs[0][key], pairs[1][key], f"{place}{key}.")


def _change_field(tree: Any, random: Random) -> str:
    """Changes something in a tree, and says what."""
    parents = list(_containers(tree))
    while True:
        parent, place = random.choice(parents)
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        if keys:
            break
    key = random.choice(keys)
    kind = random.choice(("removed", "renamed", "swapped", "value", "value", "value", "number"))
    if kind == "removed":
        del parent[key]
    elif kind == "renamed" and isinstance(parent, dict):
        parent[f"{key}s"] = parent.pop(key)
    elif kind == "swapped":
        other = random.choice(keys)
        parent[key], parent[other] = parent[other], parent[key]
    elif kind == "number" and type(parent[key]) in (int, float):
        parent[key] += random.choice((1, -1, 0.5))
    else:
        parent[key] = random.choice(VALUES)
        kind = f"= {str(parent[key])[:20]!r}"
    return f"{place}{key} {kind}"


def _containers(tree: Any, place: str = ""):
    """All objects and lists of a tree, with their places."""
    if isinstance(tree, (dict, list)):
        yield tree, place
        items = tree.items() if isinstance(tree, dict) else list(enumerate(tree))[:20]
        for key, value in items:
            yield from _containers(value, f"{place}{key}.")


BINARY = (bytes_changed, start_changed, moved, replaced)
JSON = (
    fields_changed,
    fields_changed,
    fields_changed,
    fields_changed,
    bytes_changed,
    moved,
    replaced,
)
JSON_LINES = (fields_of_lines_changed, fields_of_lines_changed, lines_changed, moved, replaced)
TEXT_LINES = (lines_changed, bytes_changed, moved, replaced)
YAML = (entries_changed, entries_changed, entries_changed, bytes_changed, moved, replaced)
SAFETENSORS = (header_changed, header_changed, *BINARY)
