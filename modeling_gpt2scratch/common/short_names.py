"""The shortest names that tell paths apart, for columns of a table and keys of a picture."""

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath


def short_names(names: Iterable[str]) -> dict[str, str]:
    """For each name as many of its last parts as make it different from the others.

    `runs/a/final` and `runs/b/final` are `a/final` and `b/final`. A name that has no more parts to
    add stays whole.
    """
    parts = {name: PurePath(name).parts or (name,) for name in names}
    lengths = dict.fromkeys(parts, 1)
    while True:
        short = {name: PurePath(*own[-lengths[name] :]).as_posix() for name, own in parts.items()}
        counts = Counter(short.values())
        longer = [n for n, own in parts.items() if counts[short[n]] > 1 and lengths[n] < len(own)]
        if not longer:
            break
        for name in longer:
            lengths[name] += 1
    # Two spellings of one path, such as `a` and `./a`, have the same parts.
    return {name: text if counts[text] == 1 else name for name, text in short.items()}
