"""Token ids of texts, contexts and continuations, and how many of them a model takes.

All as lm-evaluation-harness has them, for whatever a tokenizer adds of itself: that of Llama begins
each text with a beginning-of-text token, that of GPT-2 adds nothing. The exception is a tokenizer
that ends each text with a token, as `</s>`: cut as the harness cuts it, a continuation would lose
its first token to the end of the context, and the end of the text would be scored in its place.

The harness differs from the preparation of data in one thing: where a text spells the name of a
special token, such as `<|endoftext|>`, the harness makes that one special token of it, the
preparation letters. The protocols of the harness keep the harness's rules; `encode_document` takes
others, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from modeling_gpt2scratch.data.tokens.lost_text import refuse_lost_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# Where lm-evaluation-harness looks in a config, and what it takes where nothing says a length.
LENGTH_NAMES = ("n_positions", "max_position_embeddings", "n_ctx")
DEFAULT_CONTEXT_TOKENS = 2048
UNKNOWN_LENGTH = int(1e30)  # of a tokenizer that has no length of its own, in transformers


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Most input tokens the model accepts: its config's word, the tokenizer's, or 2,048.

    Models without position embeddings, as BLOOM or Mamba, have no length in their configs.

    Source: `resolve_max_length` of lm_eval 0.4.13, `models/utils.py`.
    """
    config = getattr(config, "text_config", None) or config
    for name in LENGTH_NAMES:
        value = getattr(config, name, None)
        if value is not None and value > 0:  # XLNet has -1
            return int(value)
    length = tokenizer.model_max_length
    return DEFAULT_CONTEXT_TOKENS if length in (None, UNKNOWN_LENGTH) else int(length)


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of each (context, continuation), as lm-evaluation-harness splits them.

    Context and continuation are encoded as one text and cut after as many tokens as the context
    has by itself. Spaces at the end of the context count as the continuation's first: byte-level
    tokens begin with their space. An empty context becomes the tokenizer's `bos` or `eos` token.
    What a tokenizer adds after each text is left out, of context and continuation.

    Args:
        pairs: contexts and continuations.

    Raises:
        ValueError: for a context of white space only, if it has no token left, an empty one if the
            tokenizer has neither token, or text that the tokenizer leaves out.

    Source: `TemplateLM._encode_pair` and `loglikelihood` in lm_eval 0.4.13, `api/model.py`.
    """
    contexts = [context.rstrip() for context, _ in pairs]
    unique = list(dict.fromkeys(contexts))
    context_ids = encode_texts(tokenizer, unique, keeps_end=False)
    ids_of = dict(zip(unique, context_ids, strict=True))
    wholes = [context + after for context, after in pairs if context]
    whole_ids = iter(encode_texts(tokenizer, wholes, keeps_end=False))
    alone = [after for context, after in pairs if not context]
    refuse_lost_text(tokenizer, alone)
    alone_ids = iter(encode_plain(tokenizer, alone))
    for (context, _), stripped in zip(pairs, contexts, strict=True):
        before = ids_of[stripped]
        if not context:
            prefix, ids = prefix_token(tokenizer), next(alone_ids)
            yield ([prefix], ids) if ids[:1] != [prefix] else (ids[:1], ids[1:])
        elif not before:
            raise ValueError(f"expected a context with a token, found {context!r}")
        else:
            yield before, next(whole_ids)[len(before) :]


def encode_document(
    tokenizer: PreTrainedTokenizerBase, text: str, *, options: Mapping[str, bool] | None = None
) -> list[int]:
    """Token ids of a text after the tokenizer's `bos` or `eos` token, from which all are predicted.

    In the harness, where the tokenizer begins each text with that token itself, there are two of
    them, and the second counts as a token of the text.

    Args:
        options: of the tokenizer; None encodes as the harness does.

    Raises:
        ValueError: if the tokenizer has neither token, or leaves out a part of the text.

    Source: `HFLM.loglikelihood_rolling` in lm_eval 0.4.13, `models/huggingface.py`.
    """
    if options is None:
        (ids,) = encode_texts(tokenizer, [text])
    else:
        (ids,) = _encode([text], tokenizer, **options)
        if ids:
            refuse_lost_text(tokenizer, [text], **options)
    return [prefix_token(tokenizer), *ids]


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, keeps_end: bool = True
) -> list[list[int]]:
    """Token ids of each text, with what the tokenizer adds of itself, at its end if `keeps_end`.

    Nothing is added to a text that begins with the `bos` token (or, if there is none, `eos`) by
    its name.

    Raises:
        ValueError: for text that the tokenizer leaves out.

    Source: `HFLM.tok_encode` in lm_eval 0.4.13, `models/huggingface.py`.
    """
    refuse_lost_text(tokenizer, texts)
    prefix = _prefix_token_or_none(tokenizer)
    name = None if prefix is None else tokenizer.decode(prefix)
    is_begun = [name is not None and text.startswith(name) for text in texts]
    others = [text for text, begun in zip(texts, is_begun, strict=True) if not begun]
    begun_texts = [text for text, begun in zip(texts, is_begun, strict=True) if begun]
    n_after = 0 if keeps_end else _n_added_after(tokenizer)
    other_ids = (ids[: len(ids) - n_after] for ids in _encode(others, tokenizer))
    begun_ids = iter(encode_plain(tokenizer, begun_texts))
    return [next(begun_ids if begun else other_ids) for begun in is_begun]


def encode_plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, nothing added."""
    return _encode(texts, tokenizer, add_special_tokens=False)


def prefix_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that stands for the beginning of a text: `bos`, or `eos` if there is none.

    Raises:
        ValueError: if the tokenizer has neither.
    """
    prefix = _prefix_token_or_none(tokenizer)
    if prefix is None:
        raise ValueError("expected a tokenizer with a bos or eos token, found none")
    return prefix


def _prefix_token_or_none(tokenizer: PreTrainedTokenizerBase) -> int | None:
    bos = tokenizer.bos_token_id
    return tokenizer.eos_token_id if bos is None else bos


def _n_added_after(tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the tokenizer adds after each text."""
    (whole,), (plain,) = _encode(["a"], tokenizer), encode_plain(tokenizer, ["a"])
    n_most = len(whole) - len(plain)
    return next((n_most - n for n in range(n_most) if whole[n : n + len(plain)] == plain), 0)


def _encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, **options: bool
) -> list[list[int]]:
    """Token ids of each text; `verbose` would warn of texts over the context."""
    if not texts:
        return []
    return tokenizer(list(texts), return_attention_mask=False, verbose=False, **options)[
        "input_ids"
    ]
