"""Reading weights: our own layout, OpenAI's, and no incomplete ones. Travels inside checkpoints."""

import contextlib
from collections.abc import Iterator

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming

# Our projections, and their names in OpenAI's checkpoints, which store these four transposed.
GPT2_NAMES = {
    "attn.qkv_proj": "attn.c_attn",
    "attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}


class CompleteLoadingMixin:
    """`from_pretrained` for a PreTrainedModel, which leaves no tensor to chance."""

    # The causal masks that OpenAI's checkpoints carry.
    _keys_to_ignore_on_load_unexpected = [r"attn\.(masked_)?bias$"]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """Loads checkpoints in our layout, and in that of transformers' `gpt2`.

        Raises:
            RuntimeError: if a tensor has another shape, and `ignore_mismatched_sizes` is off.
            ValueError: if the checkpoint lacks a tensor, which transformers alone would fill with
                random numbers; `output_loading_info=True` leaves the judgement to the caller.
        """
        with _gpt2_layout_accepted(cls.config_class.model_type):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *args,
                ignore_mismatched_sizes=True,  # transformers' own error names no tensor
                output_loading_info=True,
                **kwargs,
            )
        model._weight_conversions = []  # what it saves is in our own layout, however it was loaded
        if info["mismatched_keys"] and not ignore_mismatched_sizes:
            name, found, expected = min(info["mismatched_keys"])
            raise RuntimeError(
                f"{pretrained_model_name_or_path}: expected {name} of shape {tuple(expected)}, "
                f"found {tuple(found)}; ignore_mismatched_sizes=True would make it random"
            )
        if output_loading_info:
            return model, info
        if info["missing_keys"] and pretrained_model_name_or_path is not None:
            raise ValueError(
                f"{pretrained_model_name_or_path}: expected all tensors of {cls.__name__}, found "
                f"none for {', '.join(sorted(info['missing_keys']))}"
            )
        return model


@contextlib.contextmanager
def _gpt2_layout_accepted(model_type: str) -> Iterator[None]:
    """Lets transformers read OpenAI's names for this type of model, in this block only.

    Left on, the same mapping would turn everything that is saved into OpenAI's layout, and a
    Trainer could not resume from that.
    """
    mapping = [
        transform
        for ours, theirs in GPT2_NAMES.items()
        for transform in (
            WeightConverter(f"{theirs}.weight", f"{ours}.weight", operations=[Transpose(0, 1)]),
            WeightRenaming(f"{theirs}.bias", f"{ours}.bias"),
        )
    ]
    register_checkpoint_conversion_mapping(model_type, mapping, overwrite=True)
    try:
        yield
    finally:
        register_checkpoint_conversion_mapping(model_type, [], overwrite=True)
