"""What any causal language model of transformers says of token ids: hidden states and logits.

Where the logits are a head's, applied to the last hidden states, the states pass through the model,
and through the head only where a token is scored. Other models (Gemma 2 caps its logits, Granite
divides them) give their own logits in place of the states, and nothing is applied to them.
"""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from modeling_gpt2scratch.common.errors import named
from modeling_gpt2scratch.loading_gpt2scratch import CACHE_NAME

from .token_scores import head_product

logger = logging.getLogger(__name__)
PROBE_TOKENS = 8
# The same operations on the same numbers give the same result in any precision. In float32 the
# experts of a mixture may round the last digit otherwise, if they get another number of tokens.
SAME = 1e-6
# How far a probe moves a token towards another. After a short way a mixture asks the same experts.
SHARES = (1 / 2, 1 / 8, 1 / 32)


# Shapes: B rows, T tokens of each, C channels, V vocabulary entries, N positions.
class CausalModel:
    """A causal language model in evaluation mode.

    Args:
        model: any causal LM of transformers. A short forward pass finds out whether its logits are
            `get_output_embeddings()` applied to the last hidden state of `base_model`.
        context_tokens: most input tokens of a row.

    Raises:
        ValueError: for a model whose logits are not finite, or whose tokens see later ones.
    """

    def __init__(self, model: PreTrainedModel, *, context_tokens: int) -> None:
        self.model = model.eval()
        self.context_tokens = context_tokens
        self._n_embeddings = model.get_input_embeddings().weight.shape[0]
        # None: the model's own logits take the place of its hidden states.
        self._head: Callable[[torch.Tensor], torch.Tensor] | None = None
        if model.base_model is not model:
            self._head = model.get_output_embeddings()
        takes = inspect.signature(model.base_model.forward).parameters
        self._cache_name = "cache" if "cache" in takes else "past_key_values"
        self._first_position = n_reserved_positions(model) if "position_ids" in takes else None
        self._short_rope_tokens = short_rope_tokens(model.config.get_text_config())
        # Between rows and a tree, relative differences up to this are the rounding of a precision.
        self._tolerance = max(1e-3, 4 * torch.finfo(model.dtype).eps)
        self._check_head()

    @torch.no_grad()
    def next_logits(self, row_ids: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        """Logits of what comes after each row, and a cache to go on from: (B, T) -> (B, V) float32.

        Args:
            row_ids: of whole rows.
            cache: from the pass before, of all but the last token of each row. It is None where the
                model gives none, and then all are computed again.
        """
        n_tokens = row_ids.shape[1]
        if self._short_rope_tokens == n_tokens - 1:  # whose positions are those of other factors
            cache = None
        inputs: dict[str, Any] = {}
        if cache is not None:
            inputs[self._cache_name] = cache
            if self._first_position is not None:  # some models would begin to count again
                place = self._first_position + n_tokens - 1
                inputs["position_ids"] = row_ids.new_full((len(row_ids), 1), place)
            row_ids = row_ids[:, -1:]
        outputs = self._outputs(row_ids, use_cache=True, **inputs)
        logits = self._logits_of(outputs[0][:, -1]).float()
        return logits, getattr(outputs, CACHE_NAME, None)

    def _hidden_states(self, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """What the head sees: (B, T) -> (B, T, C); if there is none, logits: (B, T, V)."""
        return self._outputs(input_ids, **({"use_cache": False} | inputs))[0]

    def _outputs(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        """What the base model makes of (B, T) ids, or the whole model if there is no head."""
        model = self.model if self._head is None else self.model.base_model
        return model(input_ids=input_ids.to(self.model.device), **inputs)

    def _logits_of(self, states: torch.Tensor) -> torch.Tensor:
        """(N, C) -> (N, V)."""
        return states if self._head is None else head_product(self._head, states)

    def _checked(self, token_ids: np.ndarray) -> torch.Tensor:
        """The ids as int64, each of which has an embedding."""
        if token_ids.max(initial=0) >= self._n_embeddings:
            # On CUDA the embedding itself would stop the whole process instead.
            raise ValueError(
                f"expected token ids below the model's {self._n_embeddings} embeddings, "
                f"found {token_ids.max()}: is this the model's tokenizer?"
            )
        return torch.from_numpy(token_ids.astype(np.int64))

    @torch.no_grad()
    def _check_head(self) -> None:
        """Drop the head if with it a few tokens have other logits than the model's own.

        Scored without what some architectures do after the head, they would give plausible, wrong
        numbers.
        """
        n_tokens = min(PROBE_TOKENS, self.context_tokens, self._n_embeddings)
        input_ids = torch.arange(n_tokens, device=self.model.device)[None]
        expected = self._logits_of_model(input_ids)
        if not torch.isfinite(expected).all():
            raise ValueError(
                f"{type(self.model).__name__}: expected finite logits, found nan or infinity"
            )
        self._require_causal(input_ids, expected)
        found = self._without_head(input_ids, expected)
        if found is None:
            return
        self._head = None
        logger.warning(
            "%s: expected get_output_embeddings() on the last hidden state to give the logits, "
            "found %s; the model's own logits are taken of every token, which is slower",
            type(self.model).__name__,
            found,
        )

    def _require_causal(self, input_ids: torch.Tensor, expected: torch.Tensor) -> None:
        """Refuses a model, such as BERT's kind, that knows a token before it is asked for it."""
        if input_ids.shape[1] == 1:
            return
        other = input_ids.clone()
        other[:, -1] = other[:, 0]
        found = self._logits_of_model(other)
        if _is_close(expected[:, :-1], found[:, :-1], tolerance=SAME):
            return
        tolerance = self._tolerance_of(input_ids, expected)
        for share in SHARES:
            found = self._with_last_moved(input_ids, share)
            is_moved = not torch.equal(expected[:, -1], found[:, -1])
            if is_moved and _is_close(expected[:, :-1], found[:, :-1], tolerance=tolerance):
                return
        raise ValueError(
            f"{type(self.model).__name__}: expected a model whose tokens see only what comes "
            f"before them, found one whose tokens see later ones; it gives a text no likelihood"
        )

    def _with_last_moved(self, input_ids: torch.Tensor, share: float) -> torch.Tensor:
        """Logits where the embedding of the last token is moved a part of the way to the first."""

        def move(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            moved = output.clone()
            moved[:, -1] += share * (output[:, 0] - output[:, -1])
            return moved

        hook = self.model.get_input_embeddings().register_forward_hook(move)
        try:
            return self._logits_of_model(input_ids)
        finally:
            hook.remove()

    def _tolerance_of(self, input_ids: torch.Tensor, expected: torch.Tensor) -> float:
        """`SAME`, or more for a model whose own logits differ from one call to the next."""
        again = self._logits_of_model(input_ids)
        return max(SAME, 4 * float((expected - again).abs().max() / expected.abs().max()))

    def _logits_of_model(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The model's own logits, head and all: (B, T) -> (B, T, V) float32."""
        return self.model(input_ids=input_ids, use_cache=False).logits.float()

    def _without_head(self, input_ids: torch.Tensor, expected: torch.Tensor) -> str | None:
        """Why the head on the hidden states of (1, T) ids cannot be used; None if it can."""
        if self._head is None:
            return "no base model beside it"
        try:
            found = self._head(self._hidden_states(input_ids)).float()
        except Exception as error:  # of any kind, from whatever the model is
            return named(error)
        # A cap that bends small logits by less than a step of bfloat16 bends large ones far more.
        if _is_close(expected, found, tolerance=SAME):
            return None
        tolerance = self._tolerance_of(input_ids, expected)
        return None if _is_close(expected, found, tolerance=tolerance) else "other logits"


def n_reserved_positions(model: PreTrainedModel) -> int:
    """Position embeddings that no token has: those up to that of padding, in RoBERTa's kind."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def short_rope_tokens(config: PreTrainedConfig) -> int | None:
    """Most tokens for which `longrope` takes the factors of a short text; None without it."""
    rope = getattr(config, "rope_parameters", None) or {}
    # One dictionary, or one for each kind of layers.
    for own in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if own.get("rope_type") == "longrope":
            return own["original_max_position_embeddings"]
    return None


def _is_close(expected: torch.Tensor, found: torch.Tensor, *, tolerance: float) -> bool:
    """Whether two results of a model differ by at most this part of the largest of them."""
    if expected.shape != found.shape:
        return False
    return bool((expected - found).abs().max() <= tolerance * expected.abs().max())
