"""The model of a training run: freshly initialized, or from the weights of an earlier one."""

import dataclasses
import math
import os
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from modeling_gpt2scratch.common.command_line import ArgumentError
from modeling_gpt2scratch.common.sampling import SAMPLING
from modeling_gpt2scratch.configuration_gpt2scratch import GPT2ScratchConfig
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.distributed.processes import LaunchError
from modeling_gpt2scratch.hardware.devices import (
    GIB,
    available_memory,
    counts_memory,
    free_swap,
    total_memory,
)
from modeling_gpt2scratch.modeling_gpt2scratch import GPT2ScratchForCausalLM

from .configuration import TrainConfig
from .initial_weights import load_initial_model, starting_config

BYTES_PER_WEIGHT = 4  # float32, as all that is trained


def make_model(
    config: TrainConfig,
    checkpoint: Path | None = None,
    *,
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
) -> GPT2ScratchForCausalLM:
    """The model to train, for the vocabulary of the data; its random weights are torch's seed's.

    Args:
        checkpoint: from which the run goes on; the source of `config.init_from` may have gone.
        tokenizer: of the data; it learns the longest input.

    Raises:
        InitialWeightsError: if `config.init_from` does not fit the data.
    """
    tokenizer.model_max_length = config.n_positions
    if config.init_from is not None:
        model = load_initial_model(
            str(checkpoint or config.init_from),
            n_positions=config.n_positions,
            dropout=config.dropout,
            manifest=manifest,
            tokenizer=tokenizer,
        )
    else:
        model = GPT2ScratchForCausalLM(_fresh_config(config, manifest))
    model.set_attn_implementation(config.attention)
    # Programs that serve models take a request's temperature only of a model that samples.
    model.generation_config.update(**SAMPLING, pad_token_id=manifest.end_of_text_id)
    return model


def require_memory(
    config: TrainConfig, manifest: Manifest, *, device: torch.device, is_sharded: bool
) -> None:
    """Refuses a model that is too large, before it is made: nothing warns of the end of memory.

    Every process makes the weights in the machine's memory. The gradient and the optimizer's
    moments join them there, or on its GPU. Activations are not counted.

    Args:
        device: of this process.
        is_sharded: whether processes share all but the first weights out among them.

    Raises:
        LaunchError: with what is needed and what is there.
    """
    n_parameters = _n_parameters(config, manifest)
    n_copies = 3 if config.optimizer == "muon" else 4  # weights, gradient, one moment or two
    is_made_only = is_sharded or counts_memory(device)  # and then trained elsewhere
    n_on_host = int(os.environ.get("LOCAL_WORLD_SIZE") or 1) * (1 if is_made_only else n_copies)
    rooms = [("free on this machine", n_on_host, available_memory() + free_swap())]
    if counts_memory(device) and not is_sharded:
        rooms.append((f"on {device}", n_copies, total_memory(device)))
    for place, n_copies_there, found in rooms:
        needed = BYTES_PER_WEIGHT * n_parameters * n_copies_there
        if needed > found:
            raise LaunchError(
                f"expected at least {needed / GIB:.1f} GiB for {n_copies_there} copies (weights, "
                f"gradient, moments) of {n_parameters:,} parameters, found {found / GIB:.1f} GiB "
                f"{place}; choose a smaller model"
            )


def sum_of_weights(model: GPT2ScratchForCausalLM) -> int:
    """The sum of all weights' bits, taken as whole numbers: equal where all weights are."""
    dtypes = {2: torch.int16, 4: torch.int32}
    tensors = (parameter.detach() for parameter in model.parameters())
    return sum(int(t.view(dtypes[t.element_size()]).sum(dtype=torch.int64)) for t in tensors)


def with_max_steps(config: TrainConfig, manifest: Manifest) -> TrainConfig:
    """The configuration with the steps that `tokens_per_parameter` asks for, if it does.

    The tokens are rounded up to whole steps. All parameters count, tied ones once.

    Args:
        manifest: of the data, whose vocabulary decides the size of the embeddings.

    Raises:
        LaunchError: if the warmup or the decay do not fit the steps.
    """
    if config.tokens_per_parameter is None:
        return config
    n_tokens = config.tokens_per_parameter * _n_parameters(config, manifest)
    n_steps = math.ceil(n_tokens / config.total_batch_tokens)
    try:
        return dataclasses.replace(config, max_steps=n_steps, tokens_per_parameter=None)
    except ArgumentError as error:
        raise LaunchError(f"--tokens_per_parameter makes {n_steps:,} steps: {error}") from error


def _n_parameters(config: TrainConfig, manifest: Manifest) -> int:
    """Parameters of the model to train, tied ones once."""
    with torch.device("meta"):  # takes no memory
        return GPT2ScratchForCausalLM(_first_config(config, manifest)).num_parameters()


def _first_config(config: TrainConfig, manifest: Manifest) -> GPT2ScratchConfig:
    """The configuration of the model to train, of which the sizes count."""
    if config.init_from is None:
        return _fresh_config(config, manifest)
    _, start = starting_config(config.init_from, resume=config.resume, output_dir=config.output_dir)
    start.n_positions = config.n_positions
    return start


def _fresh_config(config: TrainConfig, manifest: Manifest) -> GPT2ScratchConfig:
    """The configuration of a model that knows nothing yet."""
    return GPT2ScratchConfig(
        vocab_size=manifest.vocab_size,
        n_positions=config.n_positions,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        bos_token_id=manifest.end_of_text_id,
        eos_token_id=manifest.end_of_text_id,
    )
