"""What perplexity tasks share: nats of whole documents, divided by their words or bytes.

Each document begins after a beginning- or end-of-text token and is cut into windows of the model's
context that have one token in common, as lm-evaluation-harness does. Words and bytes are those of
the original document, so that a tokenizer or a de-tokenizer changes the nats and never the divisor.
The documents are the samples of the standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from modeling_gpt2scratch.evaluation.scoring.encoding import encode_document

from .samples import SampleData
from .task import Estimate, TaskResult, perplexity_estimate, ratio_estimate

if TYPE_CHECKING:  # torch comes with it, and a command line needs none
    from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer


@dataclass(frozen=True)
class Document:
    """What the model reads, and the size of the original."""

    text: str
    n_words: int
    n_bytes: int


@dataclass(frozen=True)
class DocumentsTask:
    """Perplexity of documents; a subclass says where they come from."""

    protocol: ClassVar[str]
    version: ClassVar[int] = 2
    samples: ClassVar[str] = "documents"
    metrics: ClassVar[dict[str, bool]]  # names that `_estimate` knows
    data: ClassVar[SampleData]
    # Of the tokenizer; None encodes as lm-evaluation-harness does, with all that a tokenizer adds.
    encoding: ClassVar[dict[str, bool] | None] = None

    documents: Sequence[Document]
    sha256: str  # of the originals

    @property
    def data_status(self) -> str:
        """Whether these are the official documents."""
        return self.data.status(self.sha256, len(self.documents))

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """Every metric, per original word or byte."""
        windows, n_scored, owners = [], [], []
        for index, document in enumerate(self.documents):
            ids = encode_document(scorer.tokenizer, document.text, options=self.encoding)
            if len(ids) < 2 and document.text.strip():  # which would cost nothing
                raise ValueError(
                    f"expected a tokenizer that knows the text, found no token of it in document "
                    f"{index}: {document.text[:20]!r}"
                )
            for window, n in rolling_windows(ids, scorer.context_tokens):
                windows.append(window)
                n_scored.append(n)
                owners.append(index)
        nats = np.zeros(len(self.documents))
        for index, window_nats in scorer.score_windows(windows, description=self.protocol):
            nats[owners[index]] += window_nats[-n_scored[index] :].sum(dtype=np.float64)
        return TaskResult(
            n_samples=len(nats),
            estimates={metric: self._estimate(metric, nats) for metric in self.metrics},
            details={
                "n_target_tokens": sum(n_scored),
                "n_target_words": sum(document.n_words for document in self.documents),
                "n_target_bytes": sum(document.n_bytes for document in self.documents),
            },
            samples=dict.fromkeys(self.metrics, nats),
        )

    def sizes(self, metric: str) -> list[int]:
        """What the nats of each document are divided by: its words, or its bytes."""
        if metric == "word_perplexity":
            return [document.n_words for document in self.documents]
        return [document.n_bytes for document in self.documents]

    def _estimate(self, metric: str, nats: np.ndarray) -> Estimate:
        """One metric from the nats of each document."""
        sizes = self.sizes(metric)
        if metric in ("word_perplexity", "byte_perplexity"):
            return perplexity_estimate(ratio_estimate(nats, sizes))
        return ratio_estimate(nats / math.log(2), sizes)  # bits per byte, or ASCII character


def rolling_windows(token_ids: Sequence[int], context_tokens: int) -> list[tuple[np.ndarray, int]]:
    """Windows over a document, and how many of the last ids of each are to be scored.

    All ids but the first are scored once. The last window begins early enough to be a full one.

    Args:
        token_ids: of the document, after the one that stands for its beginning.
        context_tokens: most inputs of a window, which has one id more.

    Source: `get_rolling_token_windows` of lm_eval 0.4.13, with `context_len=1`.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    ends = [*range(context_tokens, len(ids) - 1, context_tokens), len(ids) - 1]
    return [
        (ids[max(0, end - context_tokens) : end + 1], end - start)
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
        if end > start
    ]
