"""Checkpoints of nanoGPT, build-nanogpt and llm.c, read as models of ours.

All three hold a GPT-2 whose projections are laid out as ours are, so weights get our names and keep
their bits. Rows of the embedding that only pad the vocabulary are left out.
"""

import functools
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from modeling_gpt2scratch.checkpoints.weight_files import (
    cut_archive,
    not_finite,
    unpickling_problem,
)
from modeling_gpt2scratch.common.errors import MendableError, content_instead, one_line
from modeling_gpt2scratch.configuration_gpt2scratch import GPT2ScratchConfig
from modeling_gpt2scratch.data.sources.readers import kind_of_file
from modeling_gpt2scratch.loading_gpt2scratch import GPT2_NAMES
from modeling_gpt2scratch.modeling_gpt2scratch import GPT2ScratchForCausalLM

GPT2_VOCAB_SIZE = 50257
GPT2_END_OF_TEXT_ID = 50256
PADDED_GPT2_VOCAB_SIZE = 50304  # the next multiple of 64

# The parameters of a block in the order of an llm.c file, their shapes in multiples of n_embd.
BLOCK_SHAPES = {
    **{"ln_1.weight": (1,), "ln_1.bias": (1,)},
    **{"attn.qkv_proj.weight": (3, 1), "attn.qkv_proj.bias": (3,)},
    **{"attn.o_proj.weight": (1, 1), "attn.o_proj.bias": (1,)},
    **{"ln_2.weight": (1,), "ln_2.bias": (1,)},
    **{"mlp.up_proj.weight": (4, 1), "mlp.up_proj.bias": (4,)},
    **{"mlp.down_proj.weight": (1, 4), "mlp.down_proj.bias": (1,)},
}

NANOGPT_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
NANOGPT_SETTINGS = {*NANOGPT_SIZES, "bias", "dropout"}
BUILD_NANOGPT_CONFIGS = ("__main__.GPTConfig", "train_gpt2.GPTConfig")
FLOAT_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}

LLMC_MAGIC = 20240326
LLMC_HEADER_WORDS = 256  # int32
LLMC_DTYPES = {3: torch.float32, 5: torch.bfloat16}  # by version of the file


class ConversionError(MendableError, ValueError):
    """A file or directory that cannot be converted."""


def from_nanogpt(
    path: Path,
    *,
    n_head: int | None = None,
    activation: str | None = None,
    vocab_size: int | None = None,
) -> GPT2ScratchForCausalLM:
    """The model of a checkpoint of nanoGPT or build-nanogpt, or of a bare state dict of theirs.

    Biases that were switched off become zeros, which is the same function.

    Args:
        path: file that `torch.save` wrote.
        n_head: attention heads, for a bare state dict.
        activation: if None, "gelu" for nanoGPT and "gelu_new" for build-nanogpt. Before June 2023
            nanoGPT's was "gelu_new" as well.
        vocab_size: rows of the embedding to keep; if None, 50,257 of 50,304, and else all.

    Raises:
        ConversionError: if the file is something else, or would have to execute code.
        OSError: if it cannot be read.

    Source: model.py and train.py of karpathy/nanoGPT, train_gpt2.py of karpathy/build-nanogpt.
    """
    checkpoint = _load_without_code(path)
    tensors = _nanogpt_tensors(path, checkpoint)
    settings = _nanogpt_settings(path, checkpoint, tensors)
    if n_head is not None and n_head != settings.get("n_head", n_head):
        raise ConversionError(
            f"{path}: expected no other number of heads than that of the file, "
            f"{settings['n_head']}, found --n_head {n_head}; leave it out"
        )
    n_head = settings.get("n_head", n_head)
    activation = activation or settings.get("activation")
    if n_head is None or activation is None:
        raise ConversionError(
            f"{path}: expected nanoGPT's model_args or build-nanogpt's config, found only weights; "
            f"add --n_head and --activation"
        )
    n_rows = settings["vocab_size"]
    shapes = _shapes(settings["n_layer"], settings["n_embd"], settings["block_size"], n_rows)
    if vocab_size is None:
        vocab_size = GPT2_VOCAB_SIZE if n_rows == PADDED_GPT2_VOCAB_SIZE else n_rows
    return _our_model(
        path,
        _matched(path, tensors, shapes),
        vocab_size=vocab_size,
        n_head=n_head,
        activation=activation,
        dropout=settings.get("dropout", 0.0),
    )


def from_llmc(path: Path) -> GPT2ScratchForCausalLM:
    """The model of a checkpoint of llm.c: a header, and then all weights in a row.

    Raises:
        ConversionError: if the file is something else, or of another size than its header says.
        OSError: if it cannot be read.

    Source: train_gpt2.py (write_model, write_tensors) and train_gpt2.cu (gpt2_write_to_checkpoint)
        of karpathy/llm.c.
    """
    _require_file(path)
    header = np.fromfile(path, dtype="<i4", count=LLMC_HEADER_WORDS).tolist()
    if len(header) < LLMC_HEADER_WORDS or header[0] != LLMC_MAGIC:
        found = content_instead(path) or f"{len(header)} words {header[:1]}"
        raise ConversionError(
            f"{path}: expected a model of llm.c, a header of {LLMC_HEADER_WORDS} words that begins "
            f"with {LLMC_MAGIC}, found {found}"
        )
    version, n_positions, vocab_size, n_layer, n_head, n_embd, n_rows = header[1:8]
    if version not in LLMC_DTYPES or min(header[2:8]) < 1:
        raise ConversionError(
            f"{path}: expected version 3 (float32) or 5 (bfloat16) and sizes above 0, found "
            f"version {version} and {header[2:8]}; write the file with a newer llm.c"
        )
    dtype = LLMC_DTYPES[version]
    n_block = sum(math.prod(size * n_embd for size in shape) for shape in BLOCK_SHAPES.values())
    n_values = (n_rows + n_positions + 2) * n_embd + n_layer * n_block
    n_bytes = 4 * LLMC_HEADER_WORDS + n_values * dtype.itemsize
    if path.stat().st_size != n_bytes:
        raise ConversionError(
            f"{path}: expected {n_bytes:,} bytes for {n_layer} layers of {n_embd} channels, found "
            f"{path.stat().st_size:,}; copy the file again"
        )
    # Mapped copy-on-write because torch warns of read-only memory; nothing here writes to it.
    content = np.memmap(path, dtype=np.uint8, mode="c", offset=4 * LLMC_HEADER_WORDS)
    shapes = dict(_shapes(n_layer, n_embd, n_positions, n_rows))
    parts = torch.from_numpy(content).view(dtype).split([math.prod(s) for s in shapes.values()])
    tensors = {
        name: part.view(shape).clone()
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    return _our_model(
        path, tensors, vocab_size=vocab_size, n_head=n_head, activation="gelu_new", dropout=0.0
    )


def gpt2_name(name: str) -> str:
    """OpenAI's name, which nanoGPT uses too, of a parameter of ours."""
    for ours, openai in GPT2_NAMES.items():
        name = name.replace(f".{ours}.", f".{openai}.")
    return name


def assemble(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, tensors: dict[str, Tensor]
) -> PreTrainedModel:
    """A model around exactly these tensors, without initializing or copying any."""
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    return model.eval()


def require_finite(path: Path, model: PreTrainedModel) -> None:
    """Refuses a model that can compute nothing.

    Raises:
        ConversionError: naming the file or directory and the first damaged tensor.
    """
    if damaged := not_finite(model):
        raise ConversionError(
            f"{path}: expected finite weights, found nan or infinity in {damaged}; take an earlier "
            f"checkpoint"
        )


class _InertConfig:
    """Stands in for build-nanogpt's pickled configuration: attributes, and no code."""


def _load_without_code(path: Path) -> dict:
    """What `torch.save` wrote, if that is tensors, plain values and build-nanogpt's config."""
    allowed = [(_InertConfig, name) for name in BUILD_NANOGPT_CONFIGS]
    _require_file(path)
    with open(path, "rb"):  # an error here names the file, torch's would not
        pass
    try:
        _require_checksums(path)
        with torch.serialization.safe_globals(allowed):
            checkpoint = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except ConversionError:
        raise
    except Exception as error:  # a file that is no checkpoint can fail in any way
        raise ConversionError(
            f"{path}: expected a checkpoint of tensors and plain values, found "
            f"{content_instead(path) or cut_archive(path) or unpickling_problem(error)}"
        ) from error
    weights = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict):
        raise ConversionError(f"{path}: expected a dict of weights, found no dict")
    return checkpoint


def _require_file(path: Path) -> None:
    """Refuses what cannot be read twice, or never ends."""
    if kind := kind_of_file(path):
        raise ConversionError(
            f"{path}: expected a regular file, found {kind}; name the file of the checkpoint"
        )


def _require_checksums(path: Path) -> None:
    """Compares a zip archive with the checksums in it, which torch writes and does not look at."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ConversionError(
                f"{path}: expected the checksums in it, found another one of {damaged}; "
                f"copy or download it again"
            )


def _nanogpt_tensors(path: Path, checkpoint: dict) -> dict[str, Tensor]:
    """The weights by name, without what torch.compile and DDP put in front.

    The masks that early versions kept in buffers are left out.
    """
    tensors = {}
    for key, tensor in checkpoint.get("model", checkpoint).items():
        name = re.sub(r"^((_orig_mod|module)\.)+", "", str(key))
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOAT_DTYPES:
            raise ConversionError(
                f"{path}: expected a tensor of floats under {name!r}, found "
                f"{getattr(tensor, 'dtype', type(tensor).__name__)}"
            )
        tensors[name] = tensor
    return tensors


def _nanogpt_settings(path: Path, checkpoint: dict, tensors: dict[str, Tensor]) -> dict:
    """The sizes and, unless there are only weights, heads, dropout and activation."""
    if isinstance(checkpoint.get("model_args"), dict):
        settings, activation = checkpoint["model_args"], "gelu"
    elif isinstance(checkpoint.get("config"), _InertConfig):
        settings, activation = vars(checkpoint["config"]), "gelu_new"
    else:
        return _sizes_of(path, tensors)
    if unknown := settings.keys() - NANOGPT_SETTINGS:
        # A fork's switch may stand for another function of the same weights.
        raise ConversionError(
            f"{path}: expected the settings of nanoGPT, found also {sorted(map(str, unknown))}"
        )
    for name in NANOGPT_SIZES:
        if type(settings.get(name)) is not int or settings[name] < 1:
            raise ConversionError(f"{path}: expected {name} above 0, found {settings.get(name)}")
    return settings | {"activation": activation}


def _sizes_of(path: Path, tensors: dict[str, Tensor]) -> dict:
    """The sizes that show in the shapes: all but the number of heads."""
    embeddings = [tensors.get(f"transformer.{name}.weight") for name in ("wte", "wpe")]
    if any(embedding is None or embedding.ndim != 2 for embedding in embeddings):
        raise ConversionError(f"{path}: expected a GPT-2, found {sorted(tensors)[:3]} …")
    (vocab_size, n_embd), (block_size, _) = (embedding.shape for embedding in embeddings)
    n_layer = len({name.split(".")[2] for name in tensors if name.startswith("transformer.h.")})
    return dict(vocab_size=vocab_size, n_embd=n_embd, block_size=block_size, n_layer=n_layer)


def _shapes(
    n_layer: int, n_embd: int, n_positions: int, n_rows: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each parameter of ours, in the order of an llm.c file."""
    yield "transformer.wte.weight", (n_rows, n_embd)
    yield "transformer.wpe.weight", (n_positions, n_embd)
    for name, shape in BLOCK_SHAPES.items():
        for layer in range(n_layer):
            yield f"transformer.h.{layer}.{name}", tuple(size * n_embd for size in shape)
    yield "transformer.ln_f.weight", (n_embd,)
    yield "transformer.ln_f.bias", (n_embd,)


def _matched(
    path: Path, tensors: dict[str, Tensor], shapes: Iterator[tuple[str, tuple[int, ...]]]
) -> dict[str, Tensor]:
    """nanoGPT's tensors under our names and in one dtype, after checking that all are there."""
    has_biases = any(name.endswith(".bias") for name in tensors)
    left = dict(tensors)
    matched = {}
    for name, shape in shapes:
        tensor = left.pop(gpt2_name(name), None)
        if tensor is None and name.endswith(".bias") and not has_biases:
            tensor = torch.zeros(shape)
        _require_shape(path, gpt2_name(name), tensor, shape)
        matched[name] = tensor
    embedding = matched["transformer.wte.weight"]
    matched["lm_head.weight"] = left.pop("lm_head.weight", embedding)
    _require_shape(path, "lm_head.weight", matched["lm_head.weight"], embedding.shape)
    if left:
        raise ConversionError(f"{path}: expected nothing but a GPT-2, found also {min(left)}")
    # Where dtypes differ, this is the narrowest that holds the values of all.
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    return {name: tensor.to(dtype) for name, tensor in matched.items()}


def _require_shape(path: Path, name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    found = "none" if tensor is None else tuple(tensor.shape)
    if found != tuple(shape):
        raise ConversionError(f"{path}: expected {name} of shape {tuple(shape)}, found {found}")


def _our_model(
    path: Path,
    tensors: dict[str, Tensor],
    *,
    vocab_size: int,
    n_head: int,
    activation: str,
    dropout: float,
) -> GPT2ScratchForCausalLM:
    """A model of ours from tensors under our names; the head may be missing."""
    embedding = tensors["transformer.wte.weight"]
    if vocab_size > len(embedding):
        raise ConversionError(
            f"{path}: expected a vocabulary of at most {len(embedding):,}, found {vocab_size:,}"
        )
    embedding = embedding[:vocab_size]
    head = tensors.get("lm_head.weight", embedding)[:vocab_size]
    end_of_text_id = GPT2_END_OF_TEXT_ID if vocab_size == GPT2_VOCAB_SIZE else None
    try:
        config = GPT2ScratchConfig(
            vocab_size=vocab_size,
            n_positions=len(tensors["transformer.wpe.weight"]),
            n_embd=embedding.shape[1],
            n_layer=sum(name.endswith(".ln_1.weight") for name in tensors),
            n_head=n_head,
            activation_function=activation,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            tie_word_embeddings=torch.equal(head, embedding),
            bos_token_id=end_of_text_id,
            eos_token_id=end_of_text_id,
        )
    except (StrictDataclassError, ValueError) as error:
        raise ConversionError(f"{path}: {one_line(error)}") from error
    tensors = tensors | {"transformer.wte.weight": embedding, "lm_head.weight": head}
    model = assemble(GPT2ScratchForCausalLM, config, tensors)
    require_finite(path, model)
    model.generation_config.pad_token_id = end_of_text_id
    return model
