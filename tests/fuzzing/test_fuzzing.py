"""Whatever becomes of a file: the same result, or one line that names it.

Each mutation of a file goes through the command that reads it. Allowed are the same result as
without it, an exit code of 1 or 2 with one line that names the file, or a result beside such a
line. What no program could notice, because nothing else says what the file held, is listed with the
target, by field and with the reason.
"""

import fnmatch
import functools
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from random import Random

import pytest
from fuzzing import workshop
from fuzzing.attempts import Attempt, attempt, name_of_signal
from fuzzing.mutations import differences
from fuzzing.server import servers
from fuzzing.targets import COMMANDS, TARGETS, Target

LISTED, SAID, SAME, REFUSED = "listed", "said", "same", "refused"
ALLOWED = {SAME, REFUSED, SAID, LISTED}
OUT_OF_MEMORY = ("MemoryError", "allocate memory", "Cannot allocate", "bad_alloc")
LEAST = 2_000
N_AT_ONCE = 2


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Connections to the server that nobody uses, and the directory of sound files."""
    directory = tmp_path_factory.mktemp("fuzzing") / "sound"
    directory.mkdir()
    with servers(N_AT_ONCE) as connections:
        workshop.make(connections[0], directory)
        idle = SimpleQueue()
        for connection in connections:
            idle.put(connection)
        yield idle, directory


@pytest.fixture(scope="module")
def on_sound_files(bench, tmp_path_factory):
    """What the command of a target says of sound files, and its result, the same twice."""
    known = {}

    def find(target: Target):
        if target.command not in known:
            place = tmp_path_factory.mktemp("sound")
            expected, again = (_try(*bench, target, place / str(n), None) for n in range(2))
            assert expected == again and expected[0].code == 0, expected
            known[target.command] = expected
        return known[target.command]

    return find


@pytest.mark.gate
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_damage_is_without_effect_or_named(
    bench, on_sound_files, target, tmp_path, record_property
):
    expected = on_sound_files(target)
    try_one = functools.partial(_try, *bench, target)
    original = (bench[1] / target.file).read_bytes()
    mutations = [_mutation(original, target, number) for number in range(target.n)]
    places = [tmp_path / str(number) for number in range(target.n)]
    with ThreadPoolExecutor(N_AT_ONCE) as pool:
        contents = [content for _, content in mutations]
        results = list(pool.map(try_one, places, contents))
    counts, wrong = Counter(), []
    for (name, content), result in zip(mutations, results, strict=True):
        outcome, detail = _judge(target, original, content, expected, result)
        counts[outcome] += 1
        if outcome not in ALLOWED:
            wrong.append(f"{name}: {outcome}: {detail}")
            (tmp_path / f"wrong-{len(wrong)}").write_bytes(content)
    record_property("fuzzing", [str(target), dict(counts)])
    assert not wrong, "\n".join([f"{len(wrong)} of {target.n}", *wrong])


def test_there_are_enough_mutations():
    assert sum(target.n for target in TARGETS) >= LEAST


def _mutation(original: bytes, target: Target, number: int) -> tuple[str, bytes]:
    """One that changes something, and its name."""
    random = Random(f"{target} {number}")
    while True:
        name, content = random.choice(target.families)(original, random)
        if content != original:
            return name, content


def _try(idle: SimpleQueue, sound: Path, target: Target, place: Path, content: bytes | None):
    """What the command says, and its result, with that content in place of the file."""
    command = COMMANDS[target.command]
    place.mkdir()
    for name in command.inputs:
        copy = shutil.copytree if (sound / name).is_dir() else shutil.copy2
        copy(sound / name, place / name)
    for name in command.without:
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path = place / target.file
    if content is not None:
        times = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    server = idle.get()
    ended = attempt(server, place, command.words, draws=command.draws)
    idle.put(server)
    here = str(place)
    ended = Attempt(
        ended.code, ended.out.replace(here, ""), ended.err.replace(here, ""), ended.is_unexpected
    )
    files = sorted(file for pattern in command.outputs for file in place.glob(pattern))
    result = [(str(file.relative_to(place)), file.read_bytes()) for file in files if file.is_file()]
    result = [(name, held.replace(here.encode(), b"")) for name, held in result]
    shutil.rmtree(place)
    return _Ended(ended, result if command.outputs else ended.out)


class _Ended(tuple):
    """An attempt and its result, which are equal if the results are."""

    __slots__ = ()

    def __new__(cls, ended: Attempt, result):
        return super().__new__(cls, (ended, result))

    def __eq__(self, other):
        return self[0].code == other[0].code and self[1] == other[1]

    __hash__ = None


def _judge(target: Target, original: bytes, content: bytes, expected, found) -> tuple[str, str]:
    """The outcome in a word, and what there is to say about it."""
    ended = found[0]
    said = f"{ended.out}\n{ended.err}"
    lines = [line for line in said.splitlines() if line.strip()]
    last = f"exit code {ended.code}: " + "\n    ".join(lines[-6:])[-900:]
    if any(sign in said for sign in OUT_OF_MEMORY):
        return "memory", last
    if ended.code is None or ended.code < 0:
        return "hang" if ended.code in (-9, -24) else name_of_signal(ended.code), last
    if ended.is_unexpected or "Traceback (most recent call last)" in said:
        return "traceback", last
    names = (Path(target.file).name, *target.names)
    known = set(f"{expected[0].out}\n{expected[0].err}".splitlines())
    own = [line for line in lines if line not in known and any(name in line for name in names)]
    if ended.code:
        n_errors = sum("error:" in line for line in ended.err.splitlines())
        outcome = "several lines" if n_errors > 1 else REFUSED if own else "unnamed"
        return outcome, last
    if found == expected:
        return SAME, ""
    if any("expected" in line or "warning" in line for line in own):
        return SAID, own[0]
    places = differences(original, content, target.header_bytes)
    if places and all(any(fnmatch.fnmatch(p, known) for known in target.unnoticed) for p in places):
        return LISTED, ""
    others = [name for name, _ in {*found[1]} ^ {*expected[1]}] if type(found[1]) is list else []
    return "silent", f"{sorted(places)[:4]} changed {sorted({*others})} {last[-200:]}"
