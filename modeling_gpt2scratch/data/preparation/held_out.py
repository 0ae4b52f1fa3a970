"""Which text is held out for validation: documents by what they say, or the tail of everything.

By documents: a hash of a document's text decides, so that it stays on its side when others are
added, and copies stay together. That takes some documents. The tail is the end of the text as it
lies there, files in the order of their names, in whole documents or cut in a long one: it takes
nothing but text, and is what nanoGPT holds out. Which of the two it is, and where the tail begins,
is settled before the first token, by reading as much of the text as that takes.
"""

import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from modeling_gpt2scratch.common.console import progress_bar, tell
from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources.document_stream import DocumentStream
from modeling_gpt2scratch.data.tokens.encoder import document_digest, is_held_out
from modeling_gpt2scratch.data.tokens.workers import DocumentBatch

from .configuration import AUTO, DOCUMENTS, TAIL, PrepareConfig
from .progress import SeenDocuments, WorkingDirectory

# A bar that counts the characters that were looked at.
LOOKING = {"desc": "looking at the text", "unit": " characters", "unit_scale": True, "leave": False}
MIN_DOCUMENTS = 8  # of each split on average, or there are too few to choose from
WINDOW_CHARACTERS = 64  # of the smallest models; less text has no part that can be held out
# What a tail that nobody asked for has at least, a window of larger models, unless that is more
# than a tenth of the text.
TAIL_CHARACTERS = 1024


@dataclass(frozen=True)
class HeldOut:
    """What is held out; the progress has it all."""

    split: str | None = None  # DOCUMENTS, TAIL, or None for nothing
    # Where the tail begins in the order of reading: behind so many documents, those that are left
    # out among them, and behind so many characters of the next.
    n_documents: int = 0
    n_characters: int = 0
    # Of what is not left out.
    tail_characters: int = 0
    all_characters: int = 0

    def in_manifest(self) -> dict:
        """What the manifest says."""
        sizes = {"tail_characters": self.tail_characters, "all_characters": self.all_characters}
        return {"split": self.split} | (sizes if self.split == TAIL else {}) if self.split else {}


class SplitStream:
    """The batches of a `DocumentStream` without what is too short, and with the tail marked.

    Args:
        stream: in the order of the files' names if there is a tail.
        held_out: where the tail begins, if there is one.
        min_characters: shorter documents are left out.
        seed: of digests.
    """

    def __init__(
        self, stream: DocumentStream, held_out: HeldOut, *, min_characters: int, seed: int
    ):
        self._stream, self._held_out = stream, held_out
        self._min_characters, self._seed = min_characters, seed
        self.release, self.close = stream.release, stream.close

    def __iter__(self) -> Iterator[DocumentBatch]:
        for batch in self._stream:
            n_before = batch.position["n_documents"] - len(batch.documents)
            kept: list[tuple[str, int]] = []
            n_train = None if self._held_out.split != TAIL else 0
            cut_digest = None
            rows = batch.rows[: len(batch.documents)]  # a limit may have cut the documents alone
            for place, (text, row) in enumerate(zip(batch.documents, rows, strict=True)):
                if len(text) < self._min_characters:
                    continue
                if n_train is None:
                    kept.append((text, row))
                    continue
                n_first = self._characters_before_tail(n_before + place, text)
                n_train += n_first > 0
                if 0 < n_first < len(text):
                    cut_digest = document_digest(text, self._seed)
                kept += [(part, row) for part in (text[:n_first], text[n_first:]) if part]
            yield replace(
                batch,
                documents=[text for text, _ in kept],
                rows=[row for _, row in kept],
                n_too_short=sum(len(text) < self._min_characters for text in batch.documents),
                n_train=n_train,
                cut_digest=cut_digest,
            )

    @property
    def used_up(self) -> str | None:
        """As in `DocumentStream`."""
        return self._stream.used_up

    def _characters_before_tail(self, number: int, text: str) -> int:
        """How many characters of the document with this number the tail does not have."""
        if number < self._held_out.n_documents:
            return len(text)
        return self._held_out.n_characters if number == self._held_out.n_documents else 0


def settle(
    config: PrepareConfig,
    open_stream: Callable[..., DocumentStream],
    working: WorkingDirectory,
) -> HeldOut:
    """What will be held out; one line on stderr says so if it is the tail.

    Args:
        open_stream: the documents, in the order of the files' names with `in_order=True`.

    Raises:
        SourceError: if the text has no documents, or too little to hold a part of it out.
    """
    if not config.val_fraction:
        return HeldOut()
    n_documents = {"train": 0, "val": 0}
    if config.split != TAIL:
        with closing(open_stream()) as stream:
            must_be = config.split == DOCUMENTS or config.max_tokens is not None
            least = 0 if must_be else MIN_DOCUMENTS
            is_enough = _count(stream, config, working, n_documents, least=least)
        is_possible = min(n_documents.values()) > 0
        if is_enough:
            return HeldOut(DOCUMENTS)
        if must_be:
            raise none_in(n_documents, config)
    with closing(open_stream(in_order=True)) as stream:
        lengths = _lengths(stream, config, working)
    least = TAIL_CHARACTERS if config.split == AUTO else 0
    held_out = tail_of(lengths, config.val_fraction, least=least)
    if held_out is None:
        if config.split == AUTO and is_possible:
            return HeldOut(DOCUMENTS)
        if not any(lengths):
            raise none_in(n_documents, config)
        raise SourceError(
            f"{config.dataset}: expected more text than a window of {WINDOW_CHARACTERS} characters "
            f"and a tail of --val_fraction {config.val_fraction}, found {sum(lengths)} characters; "
            f"give more text or another fraction (0 holds none out)"
        )
    few = f"; there are too few documents to choose from ({len(lengths):,})"
    tell(
        f"held out for validation: the last {held_out.tail_characters:,} of "
        f"{held_out.all_characters:,} characters{few * (config.split == AUTO)}",
        file=sys.stderr,
    )
    return held_out


def tail_of(lengths: array, fraction: float, *, least: int = 0) -> HeldOut | None:
    """The last `fraction` of the characters; None if that leaves nothing, or nothing else.

    It begins with a document if that changes its size by a quarter at most, else inside of one.

    Args:
        lengths: int64, characters of each document in order; 0 for those that will be left out.
        fraction: of all characters.
        least: characters that it has at least, but for a tenth of all.
    """
    starts = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, dtype=np.int64))])
    n_all = int(starts[-1])
    n_tail = int(n_all * fraction)
    if n_tail == 0 or n_all - n_tail < WINDOW_CHARACTERS:
        return None
    n_tail = max(n_tail, min(least, n_all // 10))
    start = n_all - n_tail
    document = int(np.searchsorted(starts, start, side="right")) - 1  # in which the tail begins
    borders = starts[document : document + 2].tolist()  # of that document
    inner = [border for border in borders if 0 < border < n_all]
    nearest = min(inner, key=lambda border: abs(border - start), default=start)
    if 4 * abs(nearest - start) <= n_tail:
        start = nearest
        document = int(np.searchsorted(starts, start, side="right")) - 1
    return HeldOut(TAIL, document, start - int(starts[document]), n_all - start, n_all)


def none_in(n_documents: dict[str, int], config: PrepareConfig) -> SourceError:
    """The error for text of which nothing can be held out, or nothing else is left."""
    n_all = sum(n_documents.values())
    if n_all == 0:
        return SourceError(f"{config.dataset}: expected documents, found none")
    split = "val" if n_documents["val"] == 0 else "train"
    remedies = [f"{'raise' if split == 'val' else 'lower'} --val_fraction", "change --seed"]
    remedies += ["add --split tail"] * (config.split == DOCUMENTS)
    remedies += ["leave out --max_tokens"] * (config.split == AUTO and bool(config.max_tokens))
    remedies += ["raise --limit_documents"] * bool(config.limit_documents)
    return SourceError(
        f"{config.dataset}: expected documents in both splits, found 0 of {n_all} in {split!r}; "
        f"{', '.join(remedies)} or give more documents; --val_fraction 0 holds none out"
    )


def _count(
    stream: DocumentStream,
    config: PrepareConfig,
    working: WorkingDirectory,
    n_documents: dict[str, int],
    *,
    least: int,
) -> bool:
    """Counts documents by split until there are enough, and says whether there are.

    Enough is one of each, and `least` of each by the share of the validation split.
    """
    share = min(config.val_fraction, 1 - config.val_fraction)
    with progress_bar(**LOOKING) as bar, _looking_for_copies(config, working) as is_copy:
        for text in _texts(stream, bar):
            if len(text) < config.min_characters:
                continue
            digest = document_digest(text, config.seed)
            if is_copy(digest):
                continue
            split = "val" if is_held_out(digest, config.val_fraction) else "train"
            n_documents[split] += 1
            is_enough = share * sum(n_documents.values()) >= least
            if is_enough and min(n_documents.values()) > 0:
                return True
    return False


def _lengths(stream: DocumentStream, config: PrepareConfig, working: WorkingDirectory) -> array:
    """The characters of each document; 0 for those that are left out."""
    lengths = array("q")
    with progress_bar(**LOOKING) as bar, _looking_for_copies(config, working) as is_copy:
        for text in _texts(stream, bar):
            is_left_out = len(text) < config.min_characters or (
                config.deduplicate and is_copy(document_digest(text, config.seed))
            )
            lengths.append(0 if is_left_out else len(text))
    return lengths


@contextmanager
def _looking_for_copies(
    config: PrepareConfig, working: WorkingDirectory
) -> Iterator[Callable[[bytes], bool]]:
    """Whether a document of this digest came before; without `--deduplicate` none has."""
    if not config.deduplicate:
        yield lambda digest: False
        return
    path = working.path / "counted.sqlite"
    path.unlink(missing_ok=True)  # of a look that was interrupted
    with closing(SeenDocuments(path, n_blocks=0)) as seen:
        yield lambda digest: not seen.is_new(digest, 0)
    path.unlink()


def _texts(stream: DocumentStream, bar: tqdm) -> Iterator[str]:
    """All documents, while a bar counts their characters."""
    for batch in stream:
        yield from batch.documents
        bar.update(sum(map(len, batch.documents)))
