"""Task `lambada`: is the last word of a passage the model's first choice, and how likely is it?

Protocol `lambada_openai` of lm-evaluation-harness: OpenAI's version of the LAMBADA test set (5,153
passages), text as it is, no beginning-of-text token, no stop-word filter. The last word counts as
right if each of its tokens is the argmax; perplexity is per word, not per token. The GPT-2 paper's
45.99 % for the small model is another protocol (with a filter): here that model has 32.56 %.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from sample_files import read_rows
from scoring import CausalScorer, TaskResult, perplexity_estimate, ratio_estimate

if TYPE_CHECKING:
    from compare import CompareConfig

HUB_NAME = "EleutherAI/lambada_openai"


@dataclass(frozen=True)
class LambadaTask:
    """Passages whose last word is to be predicted."""

    protocol: ClassVar[str] = "lambada_openai"
    version: ClassVar[int] = 1
    samples: ClassVar[str] = "passages"
    metrics: ClassVar[dict[str, bool]] = {"acc": True, "perplexity": False}

    texts: Sequence[str]

    @classmethod
    def from_config(cls, config: CompareConfig) -> LambadaTask:
        """The first `config.limit` passages of `config.lambada_data`."""
        return cls(read_texts(config.lambada_data, limit=config.limit))

    @property
    def sha256(self) -> str:
        """Digest of the passages used, as the lines of a .jsonl file.

        All 5,153 give 4aa8d02c..., the checksum of OpenAI's file, from wherever they were read.
        """
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(json.dumps({"text": text}).encode() + b"\n")
        return digest.hexdigest()

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """Accuracy (a fraction) and perplexity of the last words."""
        pairs = [split_last_word(text) for text in self.texts]
        scores = scorer.score_continuations(pairs, description=self.protocol)
        ones = np.ones(len(pairs))
        return TaskResult(
            n_samples=len(pairs),
            estimates={
                "acc": ratio_estimate(scores.is_greedy, ones),
                "perplexity": perplexity_estimate(ratio_estimate(-scores.log_probs, ones)),
            },
            details={"n_target_tokens": int(scores.n_tokens.sum())},
            samples={
                "acc": scores.is_greedy.astype(np.float64),
                "perplexity": -scores.log_probs,
            },
        )


def split_last_word(text: str) -> tuple[str, str]:
    """The passage and its last word with the space before it, cut at the last space character.

    Only a space cuts: seven of the test set's last words contain a newline.
    """
    context, _, word = text.rpartition(" ")
    return context, " " + word


def read_texts(source: str, *, limit: int | None) -> list[str]:
    """The first `limit` passages of `source`.

    Args:
        source: a .jsonl file with a field `text`, or a Hub data set with a column `text` and a
            split `test`.
        limit: passages to read, None for all.

    Raises:
        ValueError: for a line or a column that is not as above, or no passage at all.
    """
    rows = read_rows(source, columns={"text": str}, split="test", limit=limit, revision=None)
    texts = [row["text"] for _, row in rows]
    if not texts:
        raise ValueError(f"{source}: expected at least one passage, found none")
    return texts
