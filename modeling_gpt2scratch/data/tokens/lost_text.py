"""Text that a tokenizer leaves out, without even an unknown token in its place.

A BPE that has neither an unknown token nor bytes to spell with drops each character that is not in
its vocabulary. A model would read a text without it and pay nothing for it, so its likelihood would
be that of another text. What a normalizer takes away, as accents or capitals, is no such loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_NAMED = 5  # characters in a message
# Together their UTF-8 has each byte that there is in any text.
EVERY_BYTE = [chr(code) for code in (*range(0x800), *range(0x800, 0x110000, 0x800))]
EVERY_BYTE = [character for character in EVERY_BYTE if not "\ud800" <= character <= "\udfff"]


def refuse_lost_text(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    split_special_tokens: bool = False,
    **_: bool,
) -> None:
    """Refuses texts with characters that the tokenizer drops.

    Args:
        tokenizer: of the model.
        texts: to be encoded.
        split_special_tokens: whether the name of a special token is text like any other.

    Raises:
        ValueError: that names the first of these characters.
    """
    alphabet = _alphabet_of(tokenizer)
    if alphabet is None:
        return
    for text in texts:
        if not alphabet.lost_in(text):
            continue
        # The name of an added token is one token, whatever its letters.
        for token in tokenizer.added_tokens_decoder.values():
            if not (split_special_tokens and token.special):
                text = text.replace(token.content, "")
        if lost := alphabet.lost_in(text):
            shown = ", ".join(map(repr, lost[:MAX_NAMED]))
            more = f" and {len(lost) - MAX_NAMED:,} more" if len(lost) > MAX_NAMED else ""
            raise ValueError(
                f"expected a tokenizer that knows the text, found that it leaves out {shown}"
                f"{more}; measure the model on text of its own alphabet"
            )


def drops_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether there are characters for which the tokenizer makes no token."""
    return _alphabet_of(tokenizer) is not None


class _Alphabet:
    """Which characters the BPE of a tokenizer drops, each looked up once."""

    def __init__(self, backend: Any) -> None:
        self._normalizer, self._pre_tokenizer = backend.normalizer, backend.pre_tokenizer
        self._model = backend.model
        self._is_lost: dict[str, bool] = {}

    def lost_in(self, text: str) -> list[str]:
        """Characters of a text that make no token, sorted."""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        characters = set(text)
        for character in characters - self._is_lost.keys():
            self._is_lost[character] = not all(map(self._is_known, self._parts_of(character)))
        return sorted(character for character in characters if self._is_lost[character])

    def has_all_bytes(self) -> bool:
        """Whether the text reaches the model as bytes, each of which it knows."""
        if not self._parts_of("é").endswith("Ã©"):
            return False
        return all(self._is_known(p) for text in EVERY_BYTE for p in self._parts_of(text))

    def _parts_of(self, character: str) -> str:
        """What the model sees of a character, as the names of its bytes; nothing of some spaces."""
        if self._pre_tokenizer is None:
            return character
        return "".join(piece for piece, _ in self._pre_tokenizer.pre_tokenize_str(character))

    def _is_known(self, part: str) -> bool:
        """Whether the model has a token to begin with, be it within a word or at its end."""
        prefix = self._model.continuing_subword_prefix or ""
        suffix = self._model.end_of_word_suffix or ""
        names = (part, prefix + part, part + suffix, prefix + part + suffix)
        if any(self._model.token_to_id(name) is not None for name in names):
            return True
        spelled = [f"<0x{byte:02X}>" for byte in part.encode()]
        has_bytes = all(self._model.token_to_id(name) is not None for name in spelled)
        return self._model.byte_fallback and has_bytes


@lru_cache(maxsize=4)
def _alphabet_of(tokenizer: PreTrainedTokenizerBase) -> _Alphabet | None:
    """None for a tokenizer that drops nothing: one with an unknown token, or with all bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = getattr(backend, "model", None)
    # The other models have an unknown token, or an error.
    if type(model).__name__ != "BPE" or model.unk_token is not None:
        return None
    alphabet = _Alphabet(backend)
    return None if alphabet.has_all_bytes() else alphabet
