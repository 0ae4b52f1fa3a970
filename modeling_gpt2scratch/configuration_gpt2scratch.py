"""Configuration of GPT2Scratch. Travels inside every checkpoint beside the modeling file."""

import dataclasses
import difflib
import math

from huggingface_hub.dataclasses import strict
from transformers import GPT2Config, PreTrainedConfig

# What a process without this package needs to find the classes in the files beside the weights.
# transformers itself records only the class being saved, so `AutoModel` on a language model's
# checkpoint would not resolve.
AUTO_MAP = {
    "AutoConfig": "configuration_gpt2scratch.GPT2ScratchConfig",
    "AutoModel": "modeling_gpt2scratch.GPT2ScratchModel",
    "AutoModelForCausalLM": "modeling_gpt2scratch.GPT2ScratchForCausalLM",
}
# Each `activation_function`, and the `approximate` of `nn.GELU` that it stands for. OpenAI's
# checkpoints say the first; the last is what nanoGPT trains.
GELU_APPROXIMATION = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}
ALMOST_THE_SAME = 0.9  # two names, by difflib's ratio: n_layers and n_layer are
MAX_LAYERS = 1000  # ten times those of GPT-3; making the blocks of a mistyped number takes for ever
# Switches that transformers' `gpt2` has and GPT-2 never used: the value that means "not used".
GPT2_SWITCHES = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "sliding_window": None,  # which transformers' caches would keep to, and the model not
}


# What other projects call these fields. They would be kept as attributes without effect.
OTHER_NAMES = {
    **dict.fromkeys(("block_size", "n_ctx", "max_seq_len"), ("n_positions",)),
    **dict.fromkeys(("d_model", "embed_dim"), ("n_embd",)),
    **dict.fromkeys(("num_heads", "num_key_value_heads"), ("n_head",)),
    "num_layers": ("n_layer",),
    "intermediate_size": ("n_inner",),
    "hidden_act": ("activation_function",),
    "layer_norm_eps": ("layer_norm_epsilon",),
    "attention_dropout": ("attn_pdrop",),
    "hidden_dropout": ("resid_pdrop", "embd_pdrop"),
    "dropout": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
}


@strict
class GPT2ScratchConfig(PreTrainedConfig):
    """Sizes and switches of a GPT-2, under GPT-2's own field names. The defaults are GPT-2 small.

    A `model_type: gpt2` configuration, such as OpenAI's, loads as one of these.

    Args:
        vocab_size: rows of the token embedding, exactly the tokenizer's vocabulary.
        n_positions: longest sequence the model can read, in tokens.
        n_embd: channels of the residual stream.
        n_layer: blocks.
        n_head: attention heads; divides `n_embd`.
        n_inner: hidden channels of the MLP, 4 * n_embd if None.
        activation_function: "gelu_new", the tanh approximation that GPT-2 was trained with (also
            spelt "gelu_pytorch_tanh"), or "gelu", the exact one.
        resid_pdrop: dropout after each residual projection.
        embd_pdrop: dropout after the embeddings.
        attn_pdrop: dropout on the attention probabilities.
        layer_norm_epsilon: added to the variance in each LayerNorm.
        initializer_range: standard deviation of the initial weights.
        use_cache: keep keys and values for generation.
        tie_word_embeddings: share the token embedding with the LM head. GPT-2 does; without this
            field transformers 5 would untie them and turn 124M parameters into 163M.

    Raises:
        ValueError: if a size is not positive, `n_head` does not divide `n_embd`, there are more
            than 1,000 blocks, a dropout is outside [0, 1), a number is negative or infinite, the
            activation is none of GPT-2's, or a name is almost one of these.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
    """

    model_type = "gpt2scratch"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    # How transformers shards modules, by name: first tensor parallelism, then FSDP2.
    base_model_tp_plan = {
        "wte": "embedding_rowwise",
        "h.*.attn.qkv_proj": "colwise_gather_output",  # queries, keys and values in one
        "h.*.attn.o_proj": "rowwise_split_input",
        "h.*.mlp.up_proj": "colwise",
        "h.*.mlp.down_proj": "rowwise",
    }
    base_model_fsdp_plan = {
        "wte": "free_full_weight",
        "wpe": "free_full_weight",
        "h.*": "free_full_weight",
        "ln_f": "keep_full_weight",
    }

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    attn_pdrop: float | int = 0.0
    layer_norm_epsilon: float | int = 1e-5
    initializer_range: float | int = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = None
    auto_map: dict | None = None

    def __post_init__(self, **kwargs):
        # transformers would keep any name as an attribute without effect.
        inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
        own = {field.name for field in dataclasses.fields(self)} - inherited | {*self.attribute_map}
        for name in kwargs.keys() - own:
            if near := difflib.get_close_matches(name, own, n=1, cutoff=ALMOST_THE_SAME):
                raise ValueError(f"{name}: expected a known name, found none; {near[0]} is one")
        _refuse_switches(kwargs, "config")
        if kwargs.get("model_type", self.model_type) != self.model_type:
            raise ValueError(
                f"model_type: expected {self.model_type}, found {kwargs['model_type']}; "
                f"GPT2ScratchConfig.from_pretrained also reads gpt2"
            )
        if self.auto_map is None:
            self.auto_map = dict(AUTO_MAP)
        super().__post_init__(**kwargs)  # which sets those of other names, such as hidden_size
        for name, fields in OTHER_NAMES.items():
            if name in kwargs and any(kwargs[name] != getattr(self, field) for field in fields):
                raise ValueError(
                    f"{name}: expected a known name, found none; give {' and '.join(fields)}"
                )
        # transformers calls it too, but wraps the error in one that is no ValueError.
        self.validate_architecture()

    def validate_architecture(self):
        """Refuses values that make no GPT-2; transformers calls it again before it saves."""
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")
        if self.n_layer > MAX_LAYERS:
            raise ValueError(f"n_layer: expected at most {MAX_LAYERS:,}, found {self.n_layer:,}")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd: expected a multiple of n_head={self.n_head}, found {self.n_embd}"
            )
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 <= p < 1, found {getattr(self, name)}")
        for name in ("layer_norm_epsilon", "initializer_range"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, found {getattr(self, name)}")
        if self.activation_function not in GELU_APPROXIMATION:
            raise ValueError(
                f"activation_function: expected one of {', '.join(GELU_APPROXIMATION)}, "
                f"found {self.activation_function!r}"
            )

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """The stored configuration; one of `model_type: gpt2` is translated to ours.

        Raises:
            ValueError: if a switch is on that makes it another architecture.
        """
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config.get("model_type") != "gpt2":
            return config, kwargs
        config = GPT2Config.from_dict(config).to_dict()  # with its own defaults, which are not ours
        _refuse_switches(config, pretrained_model_name_or_path)
        known = {field.name for field in dataclasses.fields(cls)} - {"architectures", "auto_map"}
        return {name: value for name, value in config.items() if name in known}, kwargs


def _refuse_switches(config: dict, source: str) -> None:
    """Refuses a switch that makes it another architecture."""
    for name, expected in GPT2_SWITCHES.items():
        if config.get(name, expected) != expected:
            raise ValueError(
                f"{source}: expected {name}={expected} as in GPT-2, found {config[name]}; load it "
                f"with transformers' own GPT2LMHeadModel"
            )
    if config.get("bias", True) is not True:  # of nanoGPT
        raise ValueError(
            f"{source}: expected bias=True as in GPT-2, found {config['bias']}; the layers always "
            f"have biases"
        )


__all__ = ["GPT2ScratchConfig"]
