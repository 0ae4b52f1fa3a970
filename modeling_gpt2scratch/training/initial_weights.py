"""The weights of a trained GPT-2 from which training starts: OpenAI's, or those of an own run."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from modeling_gpt2scratch.checkpoints.checkpoint import find_checkpoints
from modeling_gpt2scratch.checkpoints.weight_files import (
    CONFIG_NAME,
    WeightsError,
    conversion_of,
    naming_damaged_files,
)
from modeling_gpt2scratch.common.addresses import leads_nowhere, split_revision
from modeling_gpt2scratch.common.errors import MendableError, named, one_line
from modeling_gpt2scratch.common.hub_requests import cache_without_hub
from modeling_gpt2scratch.configuration_gpt2scratch import AUTO_MAP, GPT2ScratchConfig
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.tokens.names import TokenizerError
from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer
from modeling_gpt2scratch.modeling_gpt2scratch import GPT2ScratchForCausalLM

MODEL_TYPES = ("gpt2", GPT2ScratchConfig.model_type)


class InitialWeightsError(MendableError, ValueError):
    """Weights from which training cannot start."""


def starting_config(
    init_from: str, *, resume: str, output_dir: str
) -> tuple[str, GPT2ScratchConfig]:
    """Where the weights are to start from, or to go on from, and their configuration.

    The arguments are those of TrainConfig.

    Raises:
        InitialWeightsError: unless it is a GPT-2 that can be reached.
    """
    run = output_dir if resume == "auto" else resume
    checkpoints = [] if run == "none" else find_checkpoints(Path(run))
    problem = None
    for source in (*map(str, checkpoints), init_from):
        try:
            return source, stored_config(source)
        except InitialWeightsError as error:
            problem = error
    raise problem


def stored_config(name: str) -> GPT2ScratchConfig:
    """The configuration of the checkpoint `name`.

    Raises:
        InitialWeightsError: unless it is a GPT-2 that can be reached.
    """
    _require_directory_or_hub_name(name)
    try:
        repository, revision = split_revision(name)
        with cache_without_hub(name):
            stored, _ = PreTrainedConfig.get_config_dict(repository, revision=revision)
            if stored.get("model_type") not in MODEL_TYPES:
                raise ValueError(f"model_type {stored.get('model_type')!r}")
            return GPT2ScratchConfig.from_pretrained(
                repository, revision=revision, trust_remote_code=False
            )
    except Exception as error:  # also of kinds that are no ValueError, at a value of another type
        raise InitialWeightsError(_refusal(name, "a config.json", error)) from error


def load_initial_model(
    name: str,
    *,
    n_positions: int,
    dropout: float,
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
) -> GPT2ScratchForCausalLM:
    """The model of the checkpoint `name`, in float32 and ready to be trained.

    Args:
        name: directory or Hub name (perhaps with @REVISION) of a checkpoint in our layout or that
            of transformers' `gpt2`.
        n_positions: how many of its positions are kept, the first ones.
        dropout: everywhere in the model, in place of the checkpoint's.

    Raises:
        InitialWeightsError: if its vocabulary is another one than the data's, or its weights are
            damaged or incomplete.
    """
    _refuse_another_vocabulary(name, stored_config(name), manifest, tokenizer)
    try:
        with cache_without_hub(name), naming_damaged_files(name):
            repository, revision = split_revision(name)
            model = GPT2ScratchForCausalLM.from_pretrained(
                repository,
                revision=revision,
                trust_remote_code=False,
                dtype=torch.float32,  # whatever it was stored in, optimizers need the digits
                **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
            )
    except WeightsError as error:
        raise InitialWeightsError(str(error)) from error
    except Exception as error:  # transformers passes on whatever its readers raise
        raise InitialWeightsError(_refusal(name, "its weights", error)) from error
    model.config.auto_map = dict(AUTO_MAP)  # the run saves our code, not what the checkpoint named
    embedding = model.transformer.wpe
    if n_positions < embedding.num_embeddings:
        embedding.weight = nn.Parameter(embedding.weight.detach()[:n_positions].clone())
        embedding.num_embeddings = n_positions
        model.config.n_positions = n_positions
    return model.train()  # from_pretrained leaves it as for generation


def _require_directory_or_hub_name(name: str) -> None:
    """Refuses files, and paths that lead nowhere, of which the Hub would speak as names."""
    found, conversion = None, conversion_of(Path(name))
    if Path(name).is_file():
        found = f"a file; {conversion or 'name the directory that it is in'}"
    elif conversion and not Path(name, CONFIG_NAME).exists():
        found = f"a directory without {CONFIG_NAME}; {conversion}"
    elif leads_nowhere(name):
        found = "no directory of that name; look for a wrong letter"
    if found is not None:
        raise InitialWeightsError(
            f"{name}: expected the directory of a gpt2 or gpt2scratch checkpoint, or a Hub name "
            f"(OWNER/NAME), found {found}"
        )


def _refusal(name: str, expected: str, error: Exception) -> str:
    """One line, where transformers writes several."""
    is_unexplained = isinstance(error, (AttributeError, LookupError, TypeError))
    hint = "" if Path(name).exists() else "; there is no directory of that name, either"
    return (
        f"{name}: expected a gpt2 or gpt2scratch checkpoint with {expected}, in a directory or on "
        f"the Hub, found {named(error) if is_unexplained else one_line(error)}{hint}"
    )


def _refuse_another_vocabulary(
    name: str, config: GPT2ScratchConfig, manifest: Manifest, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The checkpoint must mean by every id what the data mean by it."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    data = f"the data's tokenizer {manifest.tokenizer['name']}"
    remedy = "prepare the data with --tokenizer of that checkpoint"
    if config.vocab_size != manifest.vocab_size or manifest.end_of_text_id not in ends:
        raise InitialWeightsError(
            f"{name}: expected a checkpoint for --init_from with the vocabulary of {data}, "
            f"{manifest.vocab_size} entries with end of text {manifest.end_of_text_id}, found "
            f"{config.vocab_size} with {config.eos_token_id}; {remedy}"
        )
    try:
        own = load_tokenizer(name).get_vocab()
    except TokenizerError:
        return  # a checkpoint may come without one
    # transformers makes an empty tokenizer where there are no files of one.
    if len(own) == config.vocab_size and own != tokenizer.get_vocab():
        raise InitialWeightsError(
            f"{name}: expected a checkpoint for --init_from with the vocabulary of {data}, found "
            f"other tokens for the same ids; {remedy}"
        )
