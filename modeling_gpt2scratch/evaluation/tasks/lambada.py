"""Tasks `lambada` and `lambada_standard`: does the model know the last word of a passage?

The first is OpenAI's version of the LAMBADA test set, the second the original one, tokenized and in
lower case; both have 5,153 passages. Numbers of the two never belong beside each other, nor those
of two protocols:

- `lambada`, `lambada_standard`: `lambada_openai` and `lambada_standard` of lm-evaluation-harness.
  The text as it is, no token before it but what the tokenizer adds; right if each token of the
  word is the argmax; perplexity is per word, not per token.
- `:bos`: the same after one beginning-of-text token, whether or not the tokenizer adds it.
- `:openai-preprocessing`: the same with all double quotes made straight and a line feed in front.
- `:last-token`: only the last token of the text counts, all others are given. A diagnosis: of a
  long word the model must know only the end.
- `:stopword-filter`: the model writes the word, and if that is a stop word, another one, whose
  first token may not spell a stop word. So the 50 passages of OpenAI's file whose last word is one,
  or one with more behind a line feed, are lost. The GPT-2 paper's 45.99 % for the small model is
  with such a filter, of which nothing else is published.
- `:generate`: the model writes, and must stop the word where the passage does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from modeling_gpt2scratch.evaluation.scoring.encoding import (
    encode_pairs,
    encode_texts,
    prefix_token,
)
from modeling_gpt2scratch.evaluation.scoring.written_words import (
    begins_with_stop_word,
    begins_with_words,
    stop_word_ids,
    written_texts,
)

from .samples import SampleData, Selection
from .task import TaskResult, mean_estimate, perplexity_estimate

if TYPE_CHECKING:  # torch comes with it, and a command line needs none
    from transformers import PreTrainedTokenizerBase

    from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer

HUB_NAME = "EleutherAI/lambada_openai"
OPENAI = SampleData(
    argument="lambada_data",
    file="lambada_test.jsonl",
    hub_name=HUB_NAME,
    sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
    n_samples=5153,
)
STANDARD = SampleData(
    argument="lambada_standard_data",
    file="lambada_test_plain_text.txt",
    hub_name="cimec/lambada",
    sha256="4ab6062b68422bf2e83653d367c9765d42404f7ec21b8b59b6518b45606aaef2",
    n_samples=5153,
)


@dataclass(frozen=True)
class LambadaTask:
    """Passages whose last word is to be predicted."""

    protocol: ClassVar[str] = "lambada_openai"
    version: ClassVar[int] = 3
    samples: ClassVar[str] = "passages"
    metrics: ClassVar[dict[str, bool]] = {"acc": True, "perplexity": False}
    data: ClassVar[SampleData] = OPENAI

    texts: Sequence[str]

    @classmethod
    def load(cls, selection: Selection) -> Self:
        """The first `selection.limit` passages."""
        return cls(read_texts(cls.data.source(selection), limit=selection.limit, data=cls.data))

    @property
    def sha256(self) -> str:
        """Digest of the passages used, as the lines of the official file, .jsonl or plain text.

        All 5,153 give the checksum of that file, from wherever they were read.
        """
        digest = hashlib.sha256()
        for text in self.texts:
            line = text if self.data is STANDARD else json.dumps({"text": text})
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()

    @property
    def data_status(self) -> str:
        """Whether these are the official passages."""
        return self.data.status(self.sha256, len(self.texts))

    def pairs(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
        """Each passage and its last word."""
        return [split_last_word(text) for text in self.texts]

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """Accuracy (a fraction) and perplexity of the last words."""
        pairs = self.pairs(scorer.tokenizer)
        scores = scorer.score_continuations(pairs, description=self.protocol)
        return TaskResult(
            n_samples=len(pairs),
            estimates={
                "acc": mean_estimate(scores.is_greedy),
                "perplexity": perplexity_estimate(mean_estimate(-scores.log_probs)),
            },
            details={
                "n_target_tokens": int(scores.n_tokens.sum()),
                "n_truncated": int(scores.is_truncated.sum()),
            },
            samples={"acc": scores.is_greedy.astype(np.float64), "perplexity": -scores.log_probs},
        )


class BosTask(LambadaTask):
    """Each passage after one beginning-of-text token."""

    protocol: ClassVar[str] = "lambada_openai:bos"

    def pairs(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
        """The token stands in the text by its name, if the tokenizer does not add it of itself."""
        pairs = super().pairs(tokenizer)
        bos = prefix_token(tokenizer)
        if encode_texts(tokenizer, [pairs[0][0]])[0][:1] == [bos]:
            return pairs
        return [(tokenizer.decode(bos) + context, word) for context, word in pairs]


class OpenaiPreprocessingTask(LambadaTask):
    """Passages with straight quotes, after a line feed."""

    protocol: ClassVar[str] = "lambada_openai:openai-preprocessing"

    def pairs(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
        """Each prepared passage and its last word."""
        return [split_last_word(straighten_quotes(text)) for text in self.texts]


class LastTokenTask(LambadaTask):
    """The last token of each passage after all others."""

    protocol: ClassVar[str] = "lambada_openai:last-token"
    metrics: ClassVar[dict[str, bool]] = {"acc": True}

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """How often the argmax is that token."""
        rows = [before + word for before, word in _encode(scorer, self.texts)]
        contexts = [row[:-1] for row in rows]
        scorer.count_unknown(np.array([row[-1:] for row in rows]))
        written, n_truncated = _write(scorer, contexts, n_tokens=1, description=self.protocol)
        is_right = [ids == row[-1:] for ids, row in zip(written, rows, strict=True)]
        return _accuracy(is_right, n_truncated)


class GenerateTask(LambadaTask):
    """The last word as the model writes it."""

    protocol: ClassVar[str] = "lambada_openai:generate"
    metrics: ClassVar[dict[str, bool]] = {"acc": True}

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """How often the model writes this word and no longer one."""
        encoded = _encode(scorer, self.texts)
        contexts = [before for before, _ in encoded]
        # One more than the longest word has, to see whether the model ends it there.
        n_tokens = max(len(word) for _, word in encoded) + 1
        texts, n_truncated = self.write(scorer, contexts, n_tokens=n_tokens)
        words = [split_last_word(text)[1] for text in self.texts]
        is_right = [self.is_right(text, word) for text, word in zip(texts, words, strict=True)]
        return _accuracy(is_right, n_truncated)

    def write(
        self, scorer: CausalScorer, contexts: Sequence[list[int]], **options: Any
    ) -> tuple[list[str], int]:
        """The text that the model writes after each context, and how many of these were cut."""
        written, n_truncated = _write(scorer, contexts, description=self.protocol, **options)
        return written_texts(scorer.tokenizer, written), n_truncated

    def is_right(self, text: str, word: str) -> bool:
        """Whether `text`, written by the model, begins with `word`."""
        return begins_with_words(text, word)


class StopwordFilterTask(GenerateTask):
    """The last word as the model writes it if it may not write a stop word."""

    protocol: ClassVar[str] = "lambada_openai:stopword-filter"
    version: ClassVar[int] = 4

    def write(
        self, scorer: CausalScorer, contexts: Sequence[list[int]], **options: Any
    ) -> tuple[list[str], int]:
        """The same; where the text begins with a stop word, another one, which does not."""
        texts, n_truncated = super().write(scorer, contexts, **options)
        again = [index for index, text in enumerate(texts) if begins_with_stop_word(text)]
        if again:
            options["first_excluded"] = stop_word_ids(scorer.tokenizer)
            others, _ = super().write(scorer, [contexts[index] for index in again], **options)
            for index, text in zip(again, others, strict=True):
                texts[index] = text
        return texts, n_truncated

    def is_right(self, text: str, word: str) -> bool:
        """Whether `text` begins with `word`, capital letters or not; never for a stop word."""
        is_stop_word = begins_with_stop_word(word)
        return not is_stop_word and begins_with_words(text.lower(), word.lower())


def _on_standard_file(task: type[LambadaTask]) -> type[LambadaTask]:
    """The same protocol on the other file."""
    protocol = task.protocol.replace("lambada_openai", "lambada_standard")
    return type(f"Standard{task.__name__}", (task,), {"protocol": protocol, "data": STANDARD})


_PROTOCOLS = (
    *(LambadaTask, BosTask, OpenaiPreprocessingTask),
    *(LastTokenTask, StopwordFilterTask, GenerateTask),
)
TASKS: dict[str, type[LambadaTask]] = {
    task.protocol.replace("lambada_openai", "lambada"): task
    for task in (*_PROTOCOLS, *map(_on_standard_file, _PROTOCOLS))
}


def split_last_word(text: str) -> tuple[str, str]:
    """The passage and its last word with the space before it, cut at the last space character.

    Only a space cuts: seven of the test set's last words contain a newline.
    """
    context, _, word = text.rpartition(" ")
    return context, " " + word


def straighten_quotes(text: str) -> str:
    """The passage with one kind of double quotes, after a line feed, no white space at its ends.

    Source: what OpenAI's authors said of their evaluation, in issue 131 of openai/gpt-2.
    """
    for quote in ("“", "”", "''", "``"):
        text = text.replace(quote, '"')
    return "\n" + text.strip()


def read_texts(source: str, *, limit: int | None, data: SampleData = OPENAI) -> list[str]:
    """The first `limit` passages of `source`.

    Args:
        source: a .jsonl file with a field `text`, a .txt file with a passage on each line, or a Hub
            data set with a column `text` and a split `test`.
        limit: passages to read, None for all.
        data: which of the two files it is.

    Raises:
        ValueError: for a line or a column that is not as above, a passage that does not end in a
            word, or no passage at all.
    """
    texts = []
    for place, row in data.rows(source, columns={"text": str}, limit=limit):
        if not split_last_word(row["text"])[1].strip():
            raise ValueError(
                f"{place}: expected a passage that ends in a word, found {row['text'][-20:]!r}"
            )
        texts.append(row["text"])
    if not texts:
        raise ValueError(f"{source}: expected at least one passage, found none")
    return texts


def _encode(scorer: CausalScorer, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each passage and of its last word."""
    pairs = [split_last_word(text) for text in texts]
    return list(encode_pairs(scorer.tokenizer, pairs))


def _accuracy(is_right: Sequence[bool], n_truncated: int) -> TaskResult:
    """The result of a protocol that has no perplexity."""
    samples = np.array(is_right, dtype=np.float64)
    return TaskResult(
        n_samples=len(samples),
        estimates={"acc": mean_estimate(samples)},
        details={"n_truncated": n_truncated},
        samples={"acc": samples},
    )


def _write(
    scorer: CausalScorer, contexts: Sequence[list[int]], **options: Any
) -> tuple[list[list[int]], int]:
    """What `greedy_continuations` returns; only a task that writes needs torch."""
    from modeling_gpt2scratch.evaluation.scoring.greedy import greedy_continuations

    return greedy_continuations(scorer, contexts, **options)
