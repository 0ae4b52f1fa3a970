"""Which tasks a command line asks for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

ALL = "all"


def resolve_tasks(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The tasks called `names`, "task" or "task:protocol"; `all` is every one of them.

    Raises:
        ValueError: for an unknown name, with the nearest, or one that occurs twice.
    """
    if list(names) == [ALL]:
        return list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"--tasks: {_unknown(name, known)}")
    if len(set(names)) != len(names):
        raise ValueError(f"--tasks: expected each once, found {' '.join(names)}")
    return list(names)


def _unknown(name: str, known: Sequence[str]) -> str:
    """What is wrong with a name, and which was perhaps meant."""
    if name == ALL:
        return f"expected {ALL} alone, found it among others"
    task, colon, protocol = name.partition(":")
    protocols = [other for other in known if other.startswith(f"{task}:")]
    if colon and task in known:
        if not protocols:
            return f"expected {task} without a protocol, of which it has one only, found {name!r}"
        names = [other.partition(":")[2] for other in protocols]
        near = difflib.get_close_matches(protocol, names, n=1, cutoff=0.4)
        meant = f"; did you mean {task}:{near[0]}?" if near else ""
        return f"expected {task} or one of {', '.join(protocols)}, found {name!r}{meant}"
    near = difflib.get_close_matches(name, [*known, ALL], n=1, cutoff=0.4)
    if near:
        return f"expected {ALL} or names of tasks, found {name!r}; did you mean {near[0]}?"
    return f"expected {ALL} or some of {', '.join(known)}, found {name!r}"
