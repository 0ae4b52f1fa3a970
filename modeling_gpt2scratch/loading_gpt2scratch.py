"""What transformers alone lets pass: incomplete weights, unread arguments, text without positions.

Weights are read in our own layout and in OpenAI's. Travels inside every checkpoint.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import TransformersKwargs, logging

logger = logging.get_logger(__name__)

# Our projections, and their names in OpenAI's checkpoints, which store these four transposed.
GPT2_NAMES = {
    "attn.qkv_proj": "attn.c_attn",
    "attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}

# What transformers calls the keys and values of earlier tokens: `cache`, since version 5.24.
CACHE_NAME = "past_key_values"
if "cache" in BaseModelOutputWithPast.__dataclass_fields__:
    CACHE_NAME = "cache"

# What transformers' decorators, attention functions and losses read of any model's arguments. There
# are no experts here whose choice could be returned.
READ_BY_TRANSFORMERS = frozenset(TransformersKwargs.__annotations__) - {"output_router_logits"}
READ_BY_TRANSFORMERS |= {"debug_io", "debug_io_dir", "prune_layers", CACHE_NAME}
# What `generate` reads itself, for `stop_strings`, and leaves among the others.
READ_BY_TRANSFORMERS |= {"tokenizer", "assistant_tokenizer"}
# What its continuous batching says beside a paged cache; the last two in version 5.17.
READ_WITH_PAGED_CACHE = {"cache", "block_table", "logits_indices", "logits_processor_args"}
READ_WITH_PAGED_CACHE |= {"read_index", "write_index", "max_seqlen_q", "max_seqlen_k"}
# What the model itself gives to an attention function, and to a loss.
GIVEN_TO_ATTENTION = {"module", "query", "key", "value", "attention_mask", "dropout", "scaling"}
GIVEN_TO_LOSS = {"logits", "labels", "shift_labels", "vocab_size", "kwargs"}
# They say where documents begin, but only to some of the attention functions.
PACKING_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
LIKENESS = 0.75  # of a name that was perhaps meant, from 0 to 1

# What the pipeline "text-generation" asks for where nobody has said a number.
PIPELINE_NEW_TOKENS = 256


class CompleteLoadingMixin:
    """`from_pretrained` for a PreTrainedModel, which leaves no tensor to chance."""

    # The causal masks that OpenAI's checkpoints carry.
    _keys_to_ignore_on_load_unexpected = [r"attn\.(masked_)?bias$"]

    def __init__(self, config, *args, **kwargs):
        if getattr(config, "model_type", "gpt2") == "gpt2":  # its switches would be passed over
            raise ValueError(
                f"config: expected a GPT2ScratchConfig, found a {type(config).__name__}; leave it "
                f"out, or load it with GPT2ScratchConfig.from_pretrained"
            )
        config.validate_architecture()  # as values may have been set since it was made
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        output_loading_info: bool = False,
        trust_remote_code: bool | None = False,
        **kwargs,
    ):
        """Loads checkpoints in our layout, and in that of transformers' `gpt2`.

        One thread at a time may load: transformers changes functions and a default of the whole
        process meanwhile. Others may save.

        Raises:
            RuntimeError: if a tensor has another shape, and `ignore_mismatched_sizes` is off.
            ValueError: if the checkpoint lacks a tensor, which transformers alone would fill with
                random numbers; `output_loading_info=True` leaves the judgement to the caller.
        """
        kwargs.setdefault("use_kernels", False)  # of the Hub, True since 5.25
        model, info = super().from_pretrained(
            pretrained_model_name_or_path,
            *args,
            output_loading_info=True,
            trust_remote_code=bool(trust_remote_code),  # None would ask on the terminal
            **kwargs,
        )
        model._weight_conversions = []  # what it saves is in our own layout, however it was loaded
        _note_untied_head(model)
        # Beside an adapter's weights, `info` no longer has those of the model that it names.
        missing_in_base = vars(model).pop("_missing_in_base", set())
        missing = {*info["missing_keys"], *missing_in_base}
        if output_loading_info:
            return model, info | {"missing_keys": missing}
        if model.base_model is not model:  # a head that somebody adds begins at random
            own = (f"{model.base_model_prefix}.", "lm_head.")
            missing = {name for name in missing if name.startswith(own)}
        has_weights = pretrained_model_name_or_path is not None or kwargs.get("state_dict")
        if missing and has_weights:
            source = pretrained_model_name_or_path or "state_dict"
            what, remedy = "all tensors", "output_loading_info=True makes them at random"
            if not missing & missing_in_base:
                what = "an adapter that transformers can load"
                remedy = "load it with peft.PeftModel.from_pretrained"
            raise ValueError(
                f"{source}: expected {what} of {cls.__name__}, found none for "
                f"{', '.join(sorted(missing))}; {remedy}"
            )
        return model

    @staticmethod
    def _finalize_model_loading(model, *args):
        """Remembers what a model lacks; an adapter's weights are not loaded by way of this."""
        info = super(CompleteLoadingMixin, type(model))._finalize_model_loading(model, *args)
        model._missing_in_base = {*info.missing_keys}
        return info

    @classmethod
    def _load_pretrained_model(cls, model, state_dict, checkpoint_files, load_config, **kwargs):
        """Reads the weights, in OpenAI's layout too, and refuses those of another shape.

        transformers finds conversions in a registry that belongs to the whole process: what another
        thread saves meanwhile would be converted as well. Here they belong to this one load.
        """
        is_adapter = "expected_keys" in kwargs  # of PEFT, which comes here for its own weights
        if not is_adapter:
            mapping = [*(load_config.weight_mapping or []), *_from_gpt2_layout()]
            load_config = dataclasses.replace(load_config, weight_mapping=mapping)
        found = super()._load_pretrained_model(
            model=model,
            state_dict=state_dict,
            checkpoint_files=checkpoint_files,
            load_config=load_config,
            **kwargs,
        )
        # Before memory is taken for what is missing; transformers' own error names no tensor.
        mismatched = found[0].mismatched_keys
        if mismatched and not load_config.ignore_mismatched_sizes and not is_adapter:
            name, found_shape, expected_shape = min(mismatched)
            raise RuntimeError(
                f"{load_config.pretrained_model_name_or_path}: expected {name} of shape "
                f"{tuple(expected_shape)}, found {tuple(found_shape)}; "
                f"ignore_mismatched_sizes=True would make it random"
            )
        return found


class LimitedGenerationMixin:
    """`generate` for a GenerationMixin, which ends with the last position.

    The last new token needs no position itself.
    """

    def _prepare_generated_length(self, generation_config, *args, input_ids_length: int, **kwargs):
        """Lets a pipeline fill all positions, where its own number of new tokens does not fit.

        Callers who name another number are told instead.

        Raises:
            ValueError: if a prompt of embeddings, which transformers does not count, is too long.
        """
        prepared = super()._prepare_generated_length(
            generation_config, *args, input_ids_length=input_ids_length, **kwargs
        )
        limit = self.config.n_positions + 1
        if kwargs.get("model_input_name") == "inputs_embeds":
            n_embedded = kwargs["inputs_tensor"].shape[1]
            n_new = prepared.max_length - input_ids_length
            if n_embedded + n_new > limit:
                raise ValueError(
                    f"expected prompt and new tokens to fit n_positions={limit - 1} + 1, found "
                    f"{n_embedded} embeddings and {n_new} new tokens; lower max_new_tokens"
                )
        is_default = prepared.max_new_tokens == PIPELINE_NEW_TOKENS
        if is_default and prepared.max_length > limit > input_ids_length:
            logger.warning_once(
                f"n_positions={limit - 1}: generating at most {limit - input_ids_length} new "
                f"tokens in place of {PIPELINE_NEW_TOKENS}"
            )
            prepared.max_length = limit
        return prepared

    def _validate_generated_length(self, generation_config, input_ids_length: int, *args) -> None:
        """Refuses to generate beyond the last position, also after what is in a cache.

        Nor does it generate where layers would be given no cache, and tokens not see those before.
        """
        is_checkpointing = self.training and self.transformer.gradient_checkpointing
        if is_checkpointing and generation_config.use_cache:
            raise ValueError(
                "expected a model in evaluation mode, found one that trains with activation "
                "checkpointing, where layers have no cache; call eval() first, or generate with "
                "use_cache=False"
            )
        # An attention mask also covers the tokens in the cache.
        n_before = max(input_ids_length, getattr(generation_config, "_mask_length", None) or 0)
        limit, n_new = self.config.n_positions, generation_config.max_length - input_ids_length
        if n_before + n_new > limit + 1:
            remedy = "lower max_new_tokens" if n_before <= limit else "shorten the prompt"
            raise ValueError(
                f"expected prompt and new tokens to fit n_positions={limit} + 1, found a prompt of "
                f"{n_before} tokens, padding included, and max_length={n_before + n_new}; {remedy} "
                f"or leave padding out"
            )
        super()._validate_generated_length(generation_config, input_ids_length, *args)

    def generate_batch(self, inputs, generation_config=None, *args, **kwargs):
        """As transformers' own, where one request that does not fit would fail all others.

        Without a number of new tokens, all get as many as the longest prompt leaves room for.

        Raises:
            ValueError: if a prompt and its new tokens do not fit the positions.
        """
        chosen = generation_config or self.generation_config
        n_new = kwargs.get("max_new_tokens") or chosen.max_new_tokens
        longest, limit = max(map(len, inputs), default=0), self.config.n_positions
        if longest + (n_new or 1) > limit + 1:
            raise ValueError(
                f"expected prompts and new tokens to fit n_positions={limit} + 1, found a prompt "
                f"of {longest} tokens and max_new_tokens={n_new or 1}; "
                + ("lower max_new_tokens" if longest <= limit else "shorten the prompt")
            )
        kwargs["max_new_tokens"] = n_new or limit + 1 - longest
        return super().generate_batch(inputs, generation_config, *args, **kwargs)

    def _get_candidate_generator(self, *args, **kwargs):
        """Candidates of assisted decoding, no more than there are positions for."""
        generator = super()._get_candidate_generator(*args, **kwargs)
        propose, limit = generator.get_candidates, self.config.n_positions
        assistant = getattr(generator, "assistant_model", None)  # none in prompt lookup
        of_assistant = getattr(getattr(assistant, "config", None), "max_position_embeddings", limit)

        def propose_within_limit(input_ids: torch.Tensor, *args, **kwargs):
            if assistant is not None:
                n_ahead = input_ids.shape[1] + generator.num_assistant_tokens
                if min(n_ahead, generator.main_model_max_length - 1) > of_assistant + 1:
                    return input_ids, None  # it cannot look that far
            candidate_ids, logits = propose(input_ids, *args, **kwargs)
            n_left = max(0, limit - input_ids.shape[1])
            candidate_ids = candidate_ids[:, : input_ids.shape[1] + n_left]
            return candidate_ids, logits[:, :n_left] if logits is not None and n_left else None

        generator.get_candidates = propose_within_limit
        return generator


def pop_cache(past_key_values: Any, arguments: dict[str, Any]) -> Any:
    """The cache under either of its names, taken out of the other arguments.

    Raises:
        ValueError: if there are two.
    """
    if CACHE_NAME != "cache" or arguments.get("cache") is None:
        return past_key_values  # a paged cache, which an older attention function reads, stays
    if past_key_values is not None:
        raise ValueError("expected past_key_values or cache, found both; leave one out")
    return arguments.pop("cache")


def pop_loss_kwargs(model, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments that the loss alone reads, such as `ignore_index`, taken out of the others."""
    unread = {name for name in arguments if name not in READ_BY_TRANSFORMERS}
    if not unread:
        return {}
    read = inspect.signature(model.loss_function).parameters.keys() - GIVEN_TO_LOSS
    return {name: arguments.pop(name) for name in read & unread}


def prepared_mask(mask: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A (B, 1, T, S) mask as an attention function takes it; transformers passes it on as it is.

    Args:
        mask: not 0 where a key may be seen, or of floats, to be added to the scores.
        dtype: of the scores, where the function can only add a mask to them; else None.
    """
    if mask.is_floating_point():
        return mask
    if dtype is None:
        return mask.bool()
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, torch.finfo(dtype).min)


def refuse_other_masks(mask: Any, n_rows: int, n_new: int, cache: Any) -> None:
    """Refuses a tensor that does not say for each token, also in the cache, if it is padding.

    Beside a static cache it may have a column for each place there. A mask of (B, 1, T, S) needs a
    row for each new token: one row for all would show them what follows.

    Raises:
        ValueError: with both shapes.
    """
    n_past = 0 if cache is None else cache.get_seq_length()
    if not isinstance(mask, torch.Tensor) or isinstance(n_past, torch.Tensor):
        return
    expected, found = (n_rows, n_past + n_new), tuple(mask.shape)
    n_spare = found[-1] - expected[-1] if getattr(cache, "is_compileable", False) else 0
    fits = found == (n_rows, expected[-1] + max(0, n_spare))
    if not fits and (mask.ndim != 4 or found[-2] != n_new or found[-1] < n_new):
        raise ValueError(
            f"attention_mask: expected the shape {expected}, {n_past} columns for the cache and "
            f"{n_new} for new tokens, or (B, 1, T, S), found {found}"
        )


def refuse_other_shapes(expected: tuple[int, ...], **given: torch.Tensor | None) -> None:
    """Refuses what is not one for each token: sums broadcast it, and cross-entropy flattens it.

    Raises:
        ValueError: with the name of the argument and both shapes.
    """
    for name, tensor in given.items():
        if tensor is not None and tensor.shape != expected:
            found = tuple(tensor.shape)
            raise ValueError(f"{name}: expected the shape {tuple(expected)}, found {found}")


def refuse_unread_arguments(model, arguments: Mapping[str, Any], *, are_packed: bool) -> None:
    """Refuses arguments of `forward` that nothing reads, which `**kwargs` takes without a word.

    An argument is read if transformers does so for all models (`TransformersKwargs`), or if the
    model's attention function has a parameter of that name: programs that serve models, such as
    vLLM, register functions of their own and pass them arguments in this way.

    Args:
        model: whose `forward` was called.
        arguments: by name, those for which `forward` has no parameter. None says nothing.
        are_packed: whether `position_ids` say where documents begin.

    Raises:
        TypeError: at the first that is not read, with the nearest name that is.
        ValueError: if documents are packed by lengths alone: positions, which are learned here,
            would go on from one document to the next.
    """
    given = [name for name, value in arguments.items() if value is not None]
    unread = [name for name in given if name not in READ_BY_TRANSFORMERS]
    if unread and type(arguments.get("cache")).__name__ == "PagedAttentionCache":
        unread = [name for name in unread if name not in READ_WITH_PAGED_CACHE]
    for name in unread:
        if not _is_read_by_attention(model.config._attn_implementation, name):
            raise TypeError(_unread_message(type(model), name))
    packing = [name for name in PACKING_ARGUMENTS if name in given]
    if packing and not are_packed:
        raise ValueError(
            f"expected position_ids beside {packing[0]}, found none; give positions that begin at "
            f"0 in each document"
        )


def _note_untied_head(model) -> None:
    """Says in the configuration what transformers found: a head of its own is tied no more.

    Else `resize_token_embeddings` would put the embedding in its place.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        devices = {head.weight.device, embedding.weight.device}
        if len(devices) == 1 and torch.device("meta") not in devices:  # else they may be copies
            model.config.tie_word_embeddings = False


def _from_gpt2_layout() -> list[WeightConverter | WeightRenaming]:
    """From OpenAI's names and transposed projections to ours; made anew, as it keeps tensors."""
    return [
        transform
        for ours, theirs in GPT2_NAMES.items()
        for transform in (
            WeightConverter(f"{theirs}.weight", f"{ours}.weight", operations=[Transpose(0, 1)]),
            WeightRenaming(f"{theirs}.bias", f"{ours}.bias"),
        )
    ]


@torch.compiler.assume_constant_result
def _is_read_by_attention(implementation: str, name: str) -> bool:
    """Whether the attention function has a parameter of this name, beside those all have."""
    if name == "kernel_options":
        return implementation == "flex_attention"
    function = ALL_ATTENTION_FUNCTIONS.get(implementation)
    is_of_transformers = getattr(function, "__module__", "").startswith("transformers.")
    # Of transformers' own, the cache is a paged one only.
    known = GIVEN_TO_ATTENTION | ({"cache"} if is_of_transformers else set())
    return function is not None and name in inspect.signature(function).parameters.keys() - known


def _unread_message(cls: type, name: str) -> str:
    """What was found, and the nearest name, or all names if there is none like it."""
    known = [key for key in inspect.signature(cls.forward).parameters if key != "kwargs"][1:]
    if "labels" in known:
        known.append("shift_labels")
    near = difflib.get_close_matches(name, [*known, *READ_BY_TRANSFORMERS], 1, cutoff=LIKENESS)
    remedy = f"did you mean {near[0]}?" if near else f"leave it out, or give {', '.join(known)}"
    return f"{cls.__name__}: expected arguments that it reads, found {name}; {remedy}"
