"""Task `blimp`: which of two sentences that barely differ is English?

BLiMP (Warstadt et al. 2020): 67 paradigms of 1,000 minimal pairs, which belong to 12 phenomena.
Protocol `blimp` of lm-evaluation-harness (its version 1.0): each sentence by its log-likelihood as
a whole, with a space before it, after the token that begins a text. A pair is right if the
grammatical sentence has the higher one. Equal ones are wrong here and counted; the harness takes
the first, which is the grammatical one. Seven official pairs are twice the same sentence. Chance
is 0.5.

`--limit N` takes the paradigms in turn, so that every one has its share.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .multiple_choice import MultipleChoiceTask, Question, have_text
from .samples import SampleData, Selection
from .task import TaskResult, mean_estimate, responses_of

if TYPE_CHECKING:  # torch comes with it, and a command line needs none
    from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer

FIRST_FILE = "adjunct_island.jsonl"  # by which the directory of the 67 files is known
# Two paradigms bear another name in the files than in the paper's tables.
PHENOMENA = {"s-selection": "argument_structure"}


@dataclass(frozen=True)
class PairsData(SampleData):
    """An archive with a .jsonl file for each paradigm, or the directory of these files."""

    def source(self, selection: Selection) -> str:
        """As `SampleData.source`; unpacked files come before an archive."""
        given = selection.place or selection.data_dir
        if given is not None and Path(given).is_dir():
            for found in sorted(Path(given).rglob(FIRST_FILE)):
                return str(found.parent)
        return super().source(selection)


@dataclass(frozen=True)
class MinimalPair(Question):
    """The grammatical sentence and the other, as the two answers to nothing."""

    paradigm: str
    phenomenon: str


class BlimpTask(MultipleChoiceTask):
    """Minimal pairs of all paradigms in turn."""

    protocol: ClassVar[str] = "blimp"
    version: ClassVar[int] = 2
    samples: ClassVar[str] = "pairs"
    metrics: ClassVar[dict[str, bool]] = {"acc": True}
    columns: ClassVar[dict[str, type]] = {
        "sentence_good": str,
        "sentence_bad": str,
        "UID": str,
        "linguistics_term": str,
    }
    data: ClassVar[SampleData] = PairsData(
        argument="blimp_data",
        file="blimp.zip",
        hub_name="nyu-mll/blimp",
        split="train",
        # As for the Children's Book Test: the Hub's own copy, all subsets as one.
        revision="refs/convert/parquet",
        files=("*/train/*.parquet", "*/*train*.parquet"),
        sha256="28fb2cbeb0c451d61bf3db44ce9c829bd05dfa0640b26b9a077902146613e90f",
        n_samples=67_000,
    )

    @classmethod
    def question(cls, place: str, row: dict) -> MinimalPair:
        """The two sentences of a row."""
        sentences = (row["sentence_good"], row["sentence_bad"])
        if not have_text(sentences):
            raise ValueError(f"{place}: expected two sentences with text, found {sentences}")
        phenomenon = PHENOMENA.get(row["linguistics_term"], row["linguistics_term"])
        return MinimalPair("", sentences, 0, paradigm=row["UID"], phenomenon=phenomenon)

    @classmethod
    def read(cls, source: str, *, limit: int | None) -> list[MinimalPair]:
        """The first `limit` pairs: the first of each paradigm, by name, then the second of each."""
        paradigms = defaultdict(list)
        for pair in super().read(source, limit=None):
            paradigms[pair.paradigm].append(pair)
        turns = zip_longest(*(paradigms[name] for name in sorted(paradigms)))
        return [pair for pair in chain.from_iterable(turns) if pair is not None][:limit]

    @property
    def data_status(self) -> str:
        """Whether these are the official pairs, from wherever they were read."""
        return self.data.status(self.sha256, len(self.questions))

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """Accuracy, a fraction; in `details` also by phenomenon and by paradigm."""
        choices = [[" " + sentence for sentence in pair.answers] for pair in self.questions]
        scores = scorer.score_choices([""] * len(choices), choices, description=self.protocol)
        good, bad = scores.log_probs.reshape(-1, 2).T
        # A sentence that is there twice may be scored twice, a rounding error apart.
        is_same = np.array([a == b for a, b in choices])
        is_right = ((good > bad) & ~is_same).astype(np.float64)
        details: dict[str, float] = {
            "n_target_tokens": int(scores.n_tokens.sum()),
            "n_ties": int(((good == bad) | is_same).sum()),
        }
        groups = defaultdict(list)
        for pair, right in zip(self.questions, is_right, strict=True):
            groups[pair.phenomenon].append(right)
            groups[f"{pair.phenomenon}/{pair.paradigm}"].append(right)
        details |= {f"acc_of_{name}": float(np.mean(own)) for name, own in sorted(groups.items())}
        return TaskResult(
            n_samples=len(is_right),
            estimates={"acc": mean_estimate(is_right)},
            details=details,
            samples={"acc": is_right},
            responses=responses_of(scores, [2] * len(choices)),
        )


TASKS: dict[str, type[MultipleChoiceTask]] = {BlimpTask.protocol: BlimpTask}
