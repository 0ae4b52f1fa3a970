"""Text that a tokenizer leaves out, or puts its unknown token in the place of.

A BPE that has neither an unknown token nor bytes to spell with drops each character that is not in
its vocabulary. A model would read a text without it and pay nothing for it, so its likelihood would
be that of another text. What a normalizer takes away, as accents or capitals, is no such loss. The
unknown token has a price, but not that of the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_NAMED = 5  # characters in a message
# Together their UTF-8 has each byte that there is in any text.
EVERY_BYTE = [chr(code) for code in (*range(0x800), *range(0x800, 0x110000, 0x800))]
EVERY_BYTE = [character for character in EVERY_BYTE if not "\ud800" <= character <= "\udfff"]
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # that spells a character for which there is no token


def refuse_lost_text(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    split_special_tokens: bool = False,
    **_: bool,
) -> None:
    """Refuses texts with characters that the tokenizer drops.

    Args:
        split_special_tokens: whether the name of a special token is text like any other.

    Raises:
        ValueError: that names the first of these characters.
    """
    pieces = _pieces_of(tokenizer)
    if pieces is None:
        return
    added = {
        index
        for index, token in tokenizer.added_tokens_decoder.items()
        if not (split_special_tokens and token.special)
    }
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    for text in texts:
        found = tokenizer(text, split_special_tokens=split_special_tokens, **options)
        start, lost = 0, set()
        places = zip(found["input_ids"], found["offset_mapping"], strict=True)
        borders = [place for index, place in places if index in added]
        for before, after in (*borders, (len(text), len(text))):
            lost |= pieces.lost_in(text[start:before])
            start = after
        if lost:
            shown = ", ".join(map(repr, sorted(lost)[:MAX_NAMED]))
            more = f" and {len(lost) - MAX_NAMED:,} more" if len(lost) > MAX_NAMED else ""
            raise ValueError(
                f"expected a tokenizer that knows the text, found that it leaves out {shown}"
                f"{more}; measure the model on text of its own alphabet"
            )


def drops_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether there are characters for which the tokenizer makes no token."""
    return _pieces_of(tokenizer) is not None


def unknown_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the token that stands for text without a token of its own; None if there is none.

    GPT-2's `unk_token` is none: its `bos`, `eos` and `unk` are one token, and no text becomes it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        unknown = getattr(tokenizer, "unk_token_id", None)
        return None if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id) else unknown
    model = json.loads(backend.model.__getstate__())
    if model["type"] == "Unigram":
        return model["unk_id"]
    return backend.token_to_id(model["unk_token"]) if model["unk_token"] else None


def replaces_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether there are characters of which the tokenizer makes its unknown token."""
    unknown = unknown_token(tokenizer)
    if unknown is None:
        return False
    ids = tokenizer("".join(EVERY_BYTE), add_special_tokens=False, verbose=False)["input_ids"]
    return unknown in ids


class _Pieces:
    """What the BPE of a tokenizer makes of the pieces that a text is cut into, each tried once."""

    def __init__(self, backend):
        self._normalizer, self._pre_tokenizer = backend.normalizer, backend.pre_tokenizer
        self._model = backend.model
        self._is_whole: dict[str, bool] = {}

    def lost_in(self, text: str) -> set[str]:
        """Characters without a token, in a text without added tokens; else pieces that lose one."""
        broken = {piece for piece in self._cut(text) if not self._keeps(piece)}
        if not broken:
            return broken
        return {one for one in set(text) if self._is_never_kept(one)} or broken

    def _cut(self, text: str) -> list[str]:
        """The pieces that the model sees one by one, normalized."""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        if self._pre_tokenizer is None:
            return [text] if text else []
        return [piece for piece, _ in self._pre_tokenizer.pre_tokenize_str(text)]

    def _keeps(self, piece: str) -> bool:
        """Whether the model's tokens spell the piece."""
        if piece not in self._is_whole:
            self._is_whole[piece] = self._kept_of(piece) == piece.encode()
        return self._is_whole[piece]

    def _is_never_kept(self, character: str) -> bool:
        """Whether no place within a word has a token for the character."""
        names = "".join(self._cut(character)).encode()
        return names not in b"".join(map(self._kept_of, self._cut(3 * character)))

    def _kept_of(self, piece: str) -> bytes:
        """What the model's tokens spell of a piece, in UTF-8."""
        tokens = self._model.tokenize(piece)
        spelled = b"".join(self._spelled(n, token.value) for n, token in enumerate(tokens))
        return spelled.removesuffix((self._model.end_of_word_suffix or "").encode())

    def _spelled(self, number: int, token: str) -> bytes:
        """The UTF-8 that a token stands for, the last one with the mark of a word's end."""
        byte = BYTE_TOKEN.fullmatch(token) if self._model.byte_fallback else None
        if byte:
            return bytes.fromhex(byte[1])
        prefix = self._model.continuing_subword_prefix or ""
        return (token.removeprefix(prefix) if number else token).encode()


@lru_cache(maxsize=4)
def _pieces_of(tokenizer: PreTrainedTokenizerBase) -> _Pieces | None:
    """None for a tokenizer that drops nothing: one with an unknown token, or with all bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = getattr(backend, "model", None)
    # The other models have an unknown token, or an error.
    if type(model).__name__ != "BPE" or model.unk_token is not None:
        return None
    pieces = _Pieces(backend)
    # Three times, as a BPE may name its letters otherwise within a word and at its end.
    return pieces if any(pieces.lost_in(3 * one) for one in EVERY_BYTE) else None
