"""GPT-2 written from scratch as a transformers model. Travels inside every checkpoint.

Only torch, transformers and the three files beside this one may be imported here: a process that
loads a checkpoint with `trust_remote_code=True` has nothing else.

Shapes: B sequences, T tokens, S keys (T plus what the cache holds), H heads, D head size,
C = H * D channels, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_gpt2scratch import GELU_APPROXIMATION, GPT2ScratchConfig
from .loading_gpt2scratch import (
    CACHE_NAME,
    CompleteLoadingMixin,
    LimitedGenerationMixin,
    pop_cache,
    pop_loss_kwargs,
    prepared_mask,
    refuse_other_masks,
    refuse_other_shapes,
    refuse_unread_arguments,
)
from .loss_gpt2scratch import linear_cross_entropy, takes_hidden_states


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention spelled out, for reading and for `output_attentions`.

    Args:
        query: (B, H, T, D); key and value are (B, H, S, D).
        attention_mask: (B, 1, T, S), added to the scores.

    Returns:
        The attended values (B, T, H, D) and the probabilities (B, H, T, S).
    """
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    dtype = torch.promote_types(scores.dtype, torch.float32)
    probabilities = F.softmax(scores, dim=-1, dtype=dtype).to(query.dtype)
    probabilities = F.dropout(probabilities, p=dropout, training=module.training)
    return (probabilities @ value).transpose(1, 2), probabilities


class GPT2ScratchAttention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPT2ScratchConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.n_embd // config.n_head
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.qkv_proj = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.o_proj = nn.Linear(config.n_embd, config.n_embd)
        self.o_proj.is_residual = True  # for `_init_weights`; quantizers want nn.Linear itself
        self.attn_dropout = nn.Dropout(config.attn_pdrop)  # the attention function applies it
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from each of T tokens to itself and all before it.

        Returns:
            The new hidden states (B, T, C), and the probabilities (B, H, T, S) in eager mode.
        """
        query, key, value = (
            channels.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H, T, D)
            for channels in self.qkv_proj(hidden_states).chunk(3, dim=-1)
        )
        if past_key_values is not None:
            # (B, H, S, D); a paged cache also tells the attention function where to find them.
            key, value = past_key_values.update(key, value, self.layer_idx, kwargs=kwargs)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attn_dropout.p if self.training else 0.0
        attended, probabilities = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )  # (B, T, H, D), and (B * T, C) or whatever else from functions of other programs
        attended = attended.reshape(*hidden_states.shape[:-1], -1)  # (B, T, C)
        return self.resid_dropout(self.o_proj(attended)), probabilities


class GPT2ScratchMLP(nn.Module):
    """Two projections around a GELU, in GPT-2 the tanh approximation of it."""

    def __init__(self, config: GPT2ScratchConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.n_embd, config.n_inner or 4 * config.n_embd)
        self.gelu = nn.GELU(approximate=GELU_APPROXIMATION[config.activation_function])
        self.down_proj = nn.Linear(self.up_proj.out_features, config.n_embd)
        self.down_proj.is_residual = True
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.resid_dropout(self.down_proj(self.gelu(self.up_proj(hidden_states))))


class GPT2ScratchBlock(GradientCheckpointingLayer):
    """Attention, then MLP, each on normalized input and added to the residual stream."""

    def __init__(self, config: GPT2ScratchConfig, layer_idx: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2ScratchAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2ScratchMLP(config)

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        """(B, T, C) -> (B, T, C); keyword arguments go to the attention."""
        hidden_states = hidden_states + self.attn(self.ln_1(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class GPT2ScratchPreTrainedModel(CompleteLoadingMixin, PreTrainedModel):
    """What both models share: loading, saving and initialization."""

    config_class = GPT2ScratchConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPT2ScratchBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": GPT2ScratchBlock, "attentions": GPT2ScratchAttention}

    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights of `initializer_range`, zero biases, unit norms; smaller residual ones.

        The residual stream is a sum of 2 * n_layer projections, attention's and the MLP's. Scaling
        each by 1 / sqrt(2 * n_layer) keeps its variance independent of depth.

        Source: Radford et al. 2019, section 2.3.
        """
        super()._init_weights(module)
        if getattr(module, "is_residual", False):
            std = self.config.initializer_range / math.sqrt(2 * self.config.n_layer)
            init.normal_(module.weight, mean=0.0, std=std)


class GPT2ScratchModel(GPT2ScratchPreTrainedModel):
    """Embeddings, blocks and the final norm: token ids to hidden states."""

    _input_embed_layer = "wte"

    def __init__(self, config: GPT2ScratchConfig):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.embd_dropout = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(GPT2ScratchBlock(config, i) for i in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Hidden states (B, T, C) after the final norm, and the cache if there is one.

        Args:
            input_ids: (B, T) token ids; exactly one of this and `inputs_embeds`.
            attention_mask: (B, S) with 0 for padding, or (B, 1, T, S); see `prepared_mask`.
            position_ids: (T,) or (B, T); if None, after the cached tokens, skipping padding.
                Where they do not go on by one, a new document begins, and documents do not see each
                other (not beside an `attention_mask`, a static cache or one with content, nor in
                FlashAttention with more than one row).
            past_key_values: keys and values of the tokens before these; since 5.24, `cache` too.
            inputs_embeds: (B, T, C) in place of the token embeddings.
            use_cache: return a cache. In training mode none is made, and one that is given is used.
            **kwargs: what transformers' decorators and the attention function read.

        Raises:
            TypeError: at an argument that nothing reads.
            ValueError: unless there is exactly one of the two inputs, and one cache at most; if the
                tokens reach beyond `n_positions`; on a CPU, if an id is outside the vocabulary.
        """
        refuse_unread_arguments(self, kwargs, are_packed=position_ids is not None)
        past_key_values = pop_cache(past_key_values, kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            found = "neither" if input_ids is None else "both"
            raise ValueError(f"expected exactly one of input_ids and inputs_embeds, found {found}")
        if inputs_embeds is None:
            inputs_embeds = _rows(self.wte, input_ids, "input_ids")
        shape = tuple(inputs_embeds.shape)
        if len(shape) != 3 or 0 in shape or shape[-1] != self.config.n_embd:
            raise ValueError(f"expected (B, T) tokens, embedded (B, T, n_embd), found {shape}")
        if position_ids is not None:
            position_ids = torch.atleast_2d(position_ids)
            refuse_other_shapes(shape[:2], position_ids=position_ids.expand(shape[0], -1))
        mask = self._causal_mask(inputs_embeds, attention_mask, past_key_values, position_ids)
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache(config=self.config)

        if (positions := position_ids) is None:
            positions = self._next_positions(inputs_embeds, attention_mask, past_key_values)
        position_embeds = _rows(self.wpe, positions, "position_ids")  # (T, C) or (B, T, C)
        hidden_states = self.embd_dropout(inputs_embeds + position_embeds.to(inputs_embeds.device))
        for block in self.h[: self.config.n_layer]:  # fewer while a draft exits early
            hidden_states = block(
                hidden_states,
                attention_mask=mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPast(self.ln_f(hidden_states), past_key_values)

    def _causal_mask(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        position_ids: Tensor | None,
    ) -> object:
        """What the attention function takes as its mask, None for plain rows.

        Plain rows need the causal flag alone. transformers does not see them under `torch.compile`,
        nor where documents begin beside a cache, even an empty one.
        """
        cache = past_key_values
        if isinstance(cache, Cache) and not (cache.is_compileable or cache.get_seq_length()):
            past_key_values = None
        is_sdpa = self.config._attn_implementation == "sdpa"
        if is_sdpa and attention_mask is None and position_ids is None and past_key_values is None:
            return None
        refuse_other_masks(attention_mask, *inputs_embeds.shape[:2], cache)
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 4:
            return prepared_mask(attention_mask, None if is_sdpa else inputs_embeds.dtype)
        return create_causal_mask(
            self.config, inputs_embeds, attention_mask, past_key_values, position_ids=position_ids
        )

    def _next_positions(
        self, inputs_embeds: Tensor, attention_mask: Tensor | None, past_key_values: Cache | None
    ) -> Tensor:
        """Positions (T,) after what the cache holds, or (B, T) that skip the padding."""
        n_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        n_new = inputs_embeds.shape[1]
        # A static cache counts in a tensor; reading it here would break a compiled graph.
        if not isinstance(n_past, Tensor) and n_past + n_new > self.config.n_positions:
            raise ValueError(
                f"expected at most n_positions={self.config.n_positions} tokens, "
                f"found {n_past + n_new}; shorten the input"
            )
        columns = torch.arange(n_new, device=inputs_embeds.device) + n_past
        if attention_mask is None or len(attention_mask.shape) != 2:
            return columns
        return (attention_mask.to(columns.device).bool().cumsum(-1) - 1).clamp(min=0)[:, columns]


class GPT2ScratchForCausalLM(GPT2ScratchPreTrainedModel, LimitedGenerationMixin, GenerationMixin):
    """GPT-2 with its language-modelling head, tied to the token embedding."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: GPT2ScratchConfig):
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # which transformers reads from the name of the class
        self.transformer = GPT2ScratchModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), and the mean cross-entropy in nats per token if there are labels.

        Args:
            input_ids: (B, T); see `GPT2ScratchModel.forward` for it, the next four, and errors.
            labels: (B, T) the same tokens as `input_ids`; shifted by one in here. -100 is ignored.
            use_cache: as in `GPT2ScratchModel`, but True makes a cache in training mode as well.
            logits_to_keep: compute logits for the last N positions only, 0 means all; or at
                indices, (N,) for all rows or (B, N) for each; or where a (B, T) mask is True.
            **kwargs: `shift_labels` (B, T) is the token that follows each input token. The loss
                then comes back without logits, which never exist all at once. The summed loss is
                divided by `num_items_in_batch`, which makes gradient accumulation exact.
        """
        # No argument of its own: a Trainer would take it for a second column of labels.
        shift_labels = kwargs.pop("shift_labels", None)
        loss_kwargs = pop_loss_kwargs(self, kwargs)
        refuse_unread_arguments(self, kwargs, are_packed=position_ids is not None)
        makes_cache = use_cache and not self.transformer.gradient_checkpointing
        if self.training and makes_cache and past_key_values is None and "cache" not in kwargs:
            past_key_values = DynamicCache(config=self.config)
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=False if self.training and use_cache is None else use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state  # (B, T, C)
        loss = logits = None
        needs_logits = labels is not None or loss_kwargs or shift_labels is None
        if not needs_logits and takes_hidden_states(self, hidden_states.device):
            n_items = kwargs.get("num_items_in_batch")
            loss = linear_cross_entropy(hidden_states, self.lm_head.weight, shift_labels, n_items)
        else:
            logits = self.lm_head(_kept(hidden_states, logits_to_keep))  # (B, T, V)
            if labels is not None or shift_labels is not None:
                refuse_other_shapes(logits.shape[:-1], labels=labels, shift_labels=shift_labels)
                loss = self.loss_function(
                    logits=logits,
                    labels=labels,
                    shift_labels=None if shift_labels is None else shift_labels.contiguous(),
                    vocab_size=self.config.vocab_size,
                    **kwargs | loss_kwargs,
                )
        cache, states = getattr(outputs, CACHE_NAME), outputs.hidden_states
        return CausalLMOutputWithPast(loss, logits, cache, states, outputs.attentions)


def _kept(hidden_states: Tensor, places: int | Tensor) -> Tensor:
    """(B, T, C) -> (B, N, C), or of a mask (N, C); as transformers' `slice_logits_to_keep`."""
    if isinstance(places, int):
        return hidden_states[:, slice(-places, None)]
    if places.ndim == 1:
        return hidden_states[:, places]
    if places.dtype == torch.bool:
        return hidden_states[places]
    return hidden_states.take_along_dim(places[..., None], dim=1)


def _rows(embedding: nn.Embedding, ids: Tensor, name: str) -> Tensor:
    """Rows of an embedding: ids (...) -> (..., C)."""
    try:
        return embedding(ids)
    except IndexError as error:  # raised on CPUs; a GPU can only stop the process
        found = f"{ids.min().item()} to {ids.max().item()}"
        most = embedding.num_embeddings - 1
        raise ValueError(f"{name}: expected 0 to {most}, found {found}") from error


# By this list a Trainer knows whose labels it has to shift for its label smoothing.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[GPT2ScratchConfig.model_type] = GPT2ScratchForCausalLM.__name__

__all__ = ["GPT2ScratchForCausalLM", "GPT2ScratchModel", "GPT2ScratchPreTrainedModel"]
