"""The model of a column with its tokenizer, or one line that says why it cannot be measured."""

import difflib
import hashlib
import json
import re
import textwrap
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modeling_gpt2scratch.checkpoints.checkpoint import find_checkpoint
from modeling_gpt2scratch.checkpoints.weight_files import conversion_of, naming_damaged_files
from modeling_gpt2scratch.common.addresses import leads_nowhere, redacted, split_revision
from modeling_gpt2scratch.common.hub_requests import cache_without_hub
from modeling_gpt2scratch.data.tokens.tokenizer import problem_of_files, refuse_unusable
from modeling_gpt2scratch.distributed.device import available_device

from .adapters import add_adapter, base_of_adapter
from .processes import ProcessGroup
from .scorer import CausalScorer
from .shared_scorer import SharedScorer

NO_TOKENIZER = "expected a tokenizer beside the model, found none{}; save it there"
LAYER = re.compile(r"(^|\.)(h|layers|blocks)\.\d+\.")  # in the names of tensors
# What earlier versions of transformers saved beside the weights of a layer.
OLD_BUFFERS = (".masked_bias", ".attn.bias", ".attention.bias", ".inv_freq")
# Names that are easily mistyped, beside those of the directories at hand.
WELL_KNOWN = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")


def load_scorer(
    name: str,
    *,
    device: str,
    dtype: str,
    batch_tokens: int | Literal["auto"],
    trust_remote_code: bool,
    processes: ProcessGroup,
) -> CausalScorer:
    """The model and its tokenizer on the device of this process.

    Args:
        name: a directory, or a model of the Hub, perhaps with @REVISION.
        device: as torch calls it, or "auto".
        dtype: of weights and activations, as torch calls it.
        trust_remote_code: whether code that comes with the model may run.
        processes: that share out the batches.

    Raises:
        ValueError: if there is no such model, its weights are damaged, or no tokenizer fits it.
        Exception: of many kinds, from what transformers finds in its files.
    """
    model, tokenizer = load_model(
        name, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
    )
    accelerator = processes.accelerator
    if accelerator is not None and device in ("auto", "cpu"):
        place = accelerator.device
    else:
        place = available_device() if device == "auto" else torch.device(device)
    model = model.to(place)
    if accelerator is None:
        return CausalScorer(model, tokenizer, batch_tokens=batch_tokens)
    return SharedScorer(model, tokenizer, accelerator, batch_tokens=batch_tokens)


def load_model(
    name: str, *, dtype: torch.dtype | Literal["auto"], trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with the tokenizer beside it; of an adapter, its model with the adapter on it.

    Raises:
        ValueError: if there is no such model, its weights are damaged or incomplete, or no
            tokenizer fits it.
        Exception: of many kinds, from what transformers finds in its files.
    """
    with cache_without_hub(name):
        base = base_of_adapter(name)
    place = base or name
    trust_remote_code &= base is None  # nobody named the repository that an adapter names
    repository, revision = split_revision(place)
    with cache_without_hub(place), naming_damaged_files(place):
        require_model(place, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(place, trust_remote_code=trust_remote_code)
        model, report = AutoModelForCausalLM.from_pretrained(
            repository,
            revision=revision,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            use_kernels=False,  # compiled code of the Hub; transformers 5.25 would run it
        )
        require_fitting(tokenizer, model)
    if missing := sorted(report["missing_keys"]):
        # transformers alone would make them random, and warn of it.
        raise ValueError(f"expected all tensors of {type(model).__name__}, found no {missing[0]}")
    # Outside of layers they may be of another program's head.
    spare = [name for name in report["unexpected_keys"] if LAYER.search(name)]
    if spare := sorted(name for name in spare if not name.endswith(OLD_BUFFERS)):
        raise ValueError(
            f"expected config.json to be that of the weights, found {spare[0]}, for which this "
            f"{type(model).__name__} has no place; copy both from the same model"
        )
    if base is not None:
        with cache_without_hub(name):
            add_adapter(model, name)
    return model, tokenizer


def require_model(name: str, *, trust_remote_code: bool) -> None:
    """Refuses a name behind which there is no model.

    Raises:
        ValueError: with the nearest name, if it is like another's.
    """
    if Path(name).is_dir():
        if not Path(name, "config.json").is_file():
            newest = find_checkpoint(Path(name))
            unfinished = f"the run has not finished; its newest checkpoint is {newest}"
            hint = unfinished if newest else conversion_of(Path(name))
            raise ValueError(
                f"expected a model, found a directory without config.json{'; ' * bool(hint)}{hint}"
            )
        return
    expected = "expected a model directory"
    if Path(name).is_file():
        todo = conversion_of(Path(name)) or "name its directory"
        if Path(name).suffix == ".gguf":
            todo = "convert it to a directory with config.json and model.safetensors first"
        raise ValueError(f"{expected}, found a file; {todo}")
    if leads_nowhere(name):
        raise ValueError(f"{expected}, found none{_nearest(name)}")
    repository, revision = split_revision(name)
    try:
        AutoConfig.from_pretrained(
            repository, revision=revision, trust_remote_code=trust_remote_code
        )
    except OSError as error:
        if isinstance(error.__cause__, RevisionNotFoundError):
            raise ValueError(
                f"expected a branch, tag or commit of {repository}, found no {revision}; its page "
                f"on the Hub lists them"
            ) from error
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise ValueError(
                f"{expected}, a copy in the cache, or {redacted(constants.ENDPOINT)} in reach and "
                f"HF_HUB_OFFLINE unset, found none of them{_nearest(name)}"
            ) from error
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise ValueError(
                f"{expected} or a model of the Hub, found neither{_nearest(name)}"
            ) from error
        raise


def load_tokenizer(name: str, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        ValueError: if there is none.
    """
    try:
        repository, revision = split_revision(name)
        tokenizer = AutoTokenizer.from_pretrained(
            repository, revision=revision, trust_remote_code=trust_remote_code
        )
        # transformers makes one of no files that knows special tokens alone.
        has_words = bool(tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys())
    except Exception as error:  # tokenizers raises nothing more special for a broken file
        reason = textwrap.shorten(problem_of_files(name, error), 200)
        raise ValueError(NO_TOKENIZER.format(f" that loads ({reason})")) from error
    if not has_words:
        raise ValueError(NO_TOKENIZER.format(""))
    refuse_unusable(name, tokenizer)
    return tokenizer


def require_fitting(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Refuses a tokenizer that may give ids for which the model has no embedding.

    Tokens that were added to the vocabulary do not count: no text but their names gives them, and
    some models (Gemma 3 of 1B) come with one too many.

    Raises:
        ValueError: with both sizes.
    """
    n_embeddings = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > n_embeddings:
        raise ValueError(
            f"expected a tokenizer of at most the model's {n_embeddings:,} entries, found "
            f"{tokenizer.vocab_size:,}: is this the model's tokenizer?"
        )


def describe_model(scorer: CausalScorer) -> dict[str, Any]:
    """Class, size and precision of a model, under the keys of lm-evaluation-harness.

    `vocabulary_sha256` is ours. It is that of the tokens, whatever their ids; special tokens, which
    no text gives, do not count.
    """
    model, tokenizer = scorer.model, scorer.tokenizer
    tokens = sorted(tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys())
    return {
        "model_class": type(model).__name__,
        "model_num_parameters": model.num_parameters(),
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "max_length": scorer.context_tokens,
        "vocabulary_sha256": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
    }


def _nearest(name: str) -> str:
    """The name that was perhaps meant, in a few words; empty if there is none."""
    if name in WELL_KNOWN:
        return ""
    parent = Path(name).parent
    folders = {path.name: str(path) for path in parent.glob("*/")} if parent.is_dir() else {}
    known = folders | {own: own for own in WELL_KNOWN}
    near = difflib.get_close_matches(Path(name).name, known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""
