"""Token ids of contexts and continuations, and how many of them a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
        if (value := getattr(config, name, None)) is not None:
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

    Raises:
        ValueError: for a context of white space only, which has no token left.

    Source: `TemplateLM._encode_pair` and `loglikelihood` in lm_eval 0.4.13, `api/model.py`.
    """
    contexts = [context.rstrip() for context, _ in pairs]
    unique = list(dict.fromkeys(contexts))
    context_ids = dict(zip(unique, encode_texts(tokenizer, unique), strict=True))
    whole_ids = encode_texts(tokenizer, [context + continuation for context, continuation in pairs])
    for (context, _), stripped, whole in zip(pairs, contexts, whole_ids, strict=True):
        before = context_ids[stripped]
        if not context:
            bos = tokenizer.bos_token_id
            prefix = tokenizer.eos_token_id if bos is None else bos
            yield ([prefix], whole) if whole[:1] != [prefix] else (whole[:1], whole[1:])
        elif not before:
            raise ValueError(f"expected a context with a token, found {context!r}")
        else:
            yield before, whole[len(before) :]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, nothing added; `verbose` would warn of texts over the context."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
