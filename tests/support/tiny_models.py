"""Tiny models and a tokenizer for them, for the tests of what transformers and others do with them.

Imported by its bare name, as a file beside the tests.
"""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer

CORPUS = [
    "the cat sat on the mat, and the dog sat on the cat.",
    "on the mat the cat and the dog sat and sat; the end of the dog was the cat",
] * 3
END_OF_TEXT = 269
TOKENS = {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SIZES = {"vocab_size": 270, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}
FIELDS = SIZES | TOKENS | NO_DROPOUT


def tiny_tokenizer() -> GPT2Tokenizer:
    """A byte-level BPE of exactly `SIZES["vocab_size"]` entries, which pads with the last one."""
    tokenizer = train_tokenizer(CORPUS, SIZES["vocab_size"])
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    return tokenizer


def tiny_model(**changes) -> GPT2ScratchForCausalLM:
    """Our model with GPT-2's initial weights, in evaluation mode."""
    torch.manual_seed(0)
    return GPT2ScratchForCausalLM(GPT2ScratchConfig(**FIELDS | changes)).eval()


def tiny_stock_model(**changes) -> GPT2LMHeadModel:
    """transformers' GPT-2 with weights that all matter and make its choices clear."""
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(**FIELDS | changes, initializer_range=0.2)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.generation_config.pad_token_id = END_OF_TEXT
    return model


def tiny_twins(directory: Path, **changes) -> tuple[GPT2ScratchForCausalLM, GPT2LMHeadModel]:
    """Our model and transformers' with the same weights, by way of a stock gpt2 directory."""
    theirs = tiny_stock_model(**changes)
    theirs.save_pretrained(directory)
    return GPT2ScratchForCausalLM.from_pretrained(directory).eval(), theirs


def random_ids(*shape: int, seed: int = 2) -> torch.Tensor:
    """Token ids without the end of text."""
    return torch.randint(END_OF_TEXT, shape, generator=torch.Generator().manual_seed(seed))


# Makes the package unknown to a process, whichever way it is installed.
WITHOUT_PACKAGE = """
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name == "modeling_gpt2scratch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nowhere())
"""
