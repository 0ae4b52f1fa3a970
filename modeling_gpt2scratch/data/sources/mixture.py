"""Several sources in one argument, with their shares: "a:0.7,b:0.3"."""

import math
import os
import re

TOLERANCE = 1e-6  # of the sum of the weights
SMALLEST = 0.0001  # what can be kept exactly in 10,000 rows
# In `http://localhost:8000` the number is a port; behind a path it is a weight.
HOST_AND_PORT = re.compile(r"https?://[^/]+:\d+")


def parse_mixture(text: str, *, flag: str) -> list[tuple[str, float | None]]:
    """The sources in `text` with their weights, all None if none is given.

    Args:
        text: comma-separated names, each with an optional `:weight`. What follows a name's last
            colon is a weight if it is a number, so `hf://datasets/x` and `C:\\data` are names. A
            path that is there is one name, whatever it holds.
        flag: the argument that `text` was given to, for messages.

    Raises:
        ValueError: if a name is empty or stands twice, a path also in another spelling, if only
            some have weights, or if the weights are below 0.0001 or do not sum to 1.
    """
    if os.path.exists(text):
        return [(text, None)]
    sources = [_name_and_weight(part.strip()) for part in text.split(",")]
    places = [os.path.realpath(name) if os.path.exists(name) else name for name, _ in sources]
    for (name, _), place in zip(sources, places, strict=True):
        if not name:
            raise ValueError(f"expected {flag} as NAME or NAME:WEIGHT,NAME:WEIGHT, found {text!r}")
        if (count := places.count(place)) > 1:
            raise ValueError(
                f"expected each source of {flag} once, found {name} {count} times; "
                f"raise its weight instead"
            )
    bare = [name for name, weight in sources if weight is None]
    if len(bare) == len(sources):
        return sources
    if bare:
        raise ValueError(
            f"expected weights for all sources of {flag} or for none, found none for "
            f"{', '.join(bare)}; write {bare[0]}:WEIGHT"
        )
    for name, weight in sources:
        if not SMALLEST <= weight < math.inf:
            raise ValueError(
                f"expected weights of at least {SMALLEST} in {flag}, found {weight:g} for {name}; "
                f"leave it out or give it a share"
            )
    total = math.fsum(weight for _, weight in sources)
    if abs(total - 1) > TOLERANCE:
        shares = ",".join(f"{name}:{weight / total:.7g}" for name, weight in sources)
        raise ValueError(
            f"expected weights of {flag} that sum to 1, found a sum of {total:.6g}; "
            f"write {shares} for the same shares"
        )
    return sources


def _name_and_weight(part: str) -> tuple[str, float | None]:
    """The two sides of the last colon, or the whole if no number follows it."""
    name, colon, weight = part.rpartition(":")
    if not colon or HOST_AND_PORT.fullmatch(part):
        return part, None
    try:
        return name.rstrip(), float(weight)
    except ValueError:
        return part, None
