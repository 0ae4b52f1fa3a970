"""Configuration of GPT2Scratch. Travels inside every checkpoint beside the modeling file."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# What a process without this package needs to find the classes in the files beside the weights.
# transformers itself records only the class being saved, so `AutoModel` on a language model's
# checkpoint would not resolve.
AUTO_MAP = {
    "AutoConfig": "configuration_gpt2scratch.GPT2ScratchConfig",
    "AutoModel": "modeling_gpt2scratch.GPT2ScratchModel",
    "AutoModelForCausalLM": "modeling_gpt2scratch.GPT2ScratchForCausalLM",
}


@strict
class GPT2ScratchConfig(PreTrainedConfig):
    """Sizes and switches of a GPT-2, under GPT-2's own field names. The defaults are GPT-2 small.

    The activation is always the tanh-approximated GELU and normalisation always comes first in a
    block: these define GPT-2 and are no options here.

    Args:
        vocab_size: rows of the token embedding, exactly the tokenizer's vocabulary.
        n_positions: longest sequence the model can read, in tokens.
        n_embd: channels of the residual stream.
        n_layer: blocks.
        n_head: attention heads; divides `n_embd`.
        n_inner: hidden channels of the MLP, 4 * n_embd if None.
        resid_pdrop: dropout after each residual projection.
        embd_pdrop: dropout after the embeddings.
        attn_pdrop: dropout on the attention probabilities.
        layer_norm_epsilon: added to the variance in each LayerNorm.
        initializer_range: standard deviation of the initial weights.
        use_cache: keep keys and values for generation.
        tie_word_embeddings: share the token embedding with the LM head. GPT-2 does; without this
            field transformers 5 would untie them and turn 124M parameters into 163M.

    Raises:
        StrictDataclassClassValidationError: if `n_head` does not divide `n_embd`.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
    """

    model_type = "gpt2scratch"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
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
        if self.auto_map is None:
            self.auto_map = dict(AUTO_MAP)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict` validation: the heads must share the channels evenly."""
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be divisible by n_head ({self.n_head})")


__all__ = ["GPT2ScratchConfig"]
