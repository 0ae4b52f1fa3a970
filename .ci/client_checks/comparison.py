"""What a client wrote, beside what this package writes; needs nothing but Python."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FORMS = {"run": "the run, with its code", "gpt2": "stock `gpt2`"}
NO_RESULT = "no result"
LONGEST_REASON = 160  # characters


@dataclass(frozen=True)
class Answer:
    """What a client wrote after each prompt.

    Args:
        tokens: the new ids, a list for each prompt.
        nll: mean negative log-likelihood of the expected ids, in nats, for each prompt.
        note: what else is true of this client.
    """

    tokens: list[list[int]]
    nll: list[float] | None = None
    note: str = ""


def verdict_on(expected: dict, answer: Answer) -> str:
    """ "equal, 4 of 4", or where the first prompt that differs does so."""
    pairs = list(zip(expected["tokens"], answer.tokens, strict=True))
    same = [found == wanted for wanted, found in pairs]
    parts = [f"equal, {sum(same)} of {len(same)}"]
    if not all(same):
        wanted, found = pairs[same.index(False)]
        n_equal = next(
            (i for i, both in enumerate(zip(wanted, found, strict=False)) if both[0] != both[1]),
            min(len(wanted), len(found)),
        )
        parts = [
            f"{sum(same)} of {len(same)} equal",
            f"prompt {same.index(False) + 1} differs from token {n_equal + 1} on",
        ]
    if answer.nll is not None:
        gap = max(abs(a - b) for a, b in zip(answer.nll, expected["nll"], strict=True))
        parts.append(f"NLL within {rounded_up(gap)}")
    return "; ".join(parts + ([answer.note] if answer.note else []))


def rounded_up(gap: float) -> str:
    """The next power of ten, and nothing finer than 1e-06: a weekly table should not flicker."""
    return "nan" if math.isnan(gap) else f"1e{math.ceil(math.log10(max(gap, 1e-6))):+03d}"


def complete(verdicts: dict[str, str]) -> dict[str, str]:
    """A verdict for each form, also for one that a client said nothing of."""
    return {form: verdicts.get(form, NO_RESULT) for form in FORMS}


def one_line(error: BaseException | str) -> str:
    """An error as a cell of a table."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"


def check(answer: Callable[[Path, dict], Answer]) -> None:
    """Main function of a client: asks it for each form, and prints the verdicts."""
    directory = Path(sys.argv[1])
    expected = json.loads((directory / "expected.json").read_text())
    verdicts = {}
    for form in FORMS:
        try:
            verdicts[form] = verdict_on(expected, answer(directory / form, expected))
        except (Exception, SystemExit) as error:  # whatever a client says no with is a result
            # Paths of this machine do not belong into the table.
            verdicts[form] = f"refused: {one_line(error).replace(f'{directory}/', '')}"
    print(json.dumps(verdicts), flush=True)
