"""Our models for other programs, and other programs' models as ours; weights keep their bits."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from modeling_gpt2scratch.checkpoints.checkpoint import open_to_readers
from modeling_gpt2scratch.checkpoints.weight_files import (
    ADAPTER_NAME,
    CONFIG_NAME,
    WeightsError,
    naming_damaged_files,
)
from modeling_gpt2scratch.common.atomic_files import write_json
from modeling_gpt2scratch.common.errors import json_problem, named
from modeling_gpt2scratch.common.output_directory import CONVERTED_MODEL
from modeling_gpt2scratch.configuration_gpt2scratch import AUTO_MAP, GPT2ScratchConfig
from modeling_gpt2scratch.data.tokens.ids import vocab_size_of
from modeling_gpt2scratch.data.tokens.names import GPT2, TokenizerError
from modeling_gpt2scratch.data.tokens.tokenizer import (
    GPT2_MERGES_SHA256,
    load_tokenizer,
    save_tokenizer,
)
from modeling_gpt2scratch.modeling_gpt2scratch import GPT2ScratchForCausalLM

from .foreign_checkpoints import (
    GPT2_VOCAB_SIZE,
    ConversionError,
    assemble,
    gpt2_name,
    require_finite,
)

NO_TOKENIZER = "none"

# What a stock gpt2 configuration calls by the same names, and where it refuses an int.
GPT2_FIELDS = (
    *("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "use_cache"),
    *("activation_function", "resid_pdrop", "embd_pdrop", "attn_pdrop", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
GPT2_FLOAT_FIELDS = ("layer_norm_epsilon", "initializer_range")


def read_run(path: Path) -> tuple[GPT2ScratchForCausalLM, PreTrainedTokenizerBase | None]:
    """The model of a run or of one of its checkpoints, and its tokenizer if it has one.

    Raises:
        ConversionError: if it is no model of ours, or not a whole and finite one.
        TokenizerError: if the tokenizer cannot be loaded.
    """
    try:
        with naming_damaged_files(path):
            model, report = _load_ours(path)
    except WeightsError as error:
        raise ConversionError(str(error)) from error
    for problem in ("missing_keys", "unexpected_keys"):
        if report[problem]:
            raise ConversionError(
                f"{path}: expected the tensors of its config.json, found "
                f"{problem.replace('_', ' ')}: {', '.join(sorted(map(str, report[problem]))[:3])}"
            )
    require_finite(path, model)
    model.config.auto_map = dict(AUTO_MAP)  # our code is saved with it, not what the run names
    has_tokenizer = (path / "tokenizer_config.json").is_file()
    return model, load_tokenizer(str(path.absolute())) if has_tokenizer else None


def to_gpt2(model: GPT2ScratchForCausalLM) -> GPT2LMHeadModel:
    """The same model in transformers' own class, whose projections keep their weights transposed.

    Both share their memory.
    """
    fields = {name: getattr(model.config, name) for name in GPT2_FIELDS}
    fields |= {name: float(getattr(model.config, name)) for name in GPT2_FLOAT_FIELDS}
    head, embedding = model.lm_head.weight, model.transformer.wte.weight
    fields["tie_word_embeddings"] = head is embedding
    fields["n_ctx"] = model.config.n_positions  # an old name, which llama.cpp's converter reads
    tensors = {}
    for name, tensor in model.state_dict().items():
        is_projection = gpt2_name(name) != name and name.endswith(".weight")
        tensors[gpt2_name(name)] = tensor.t() if is_projection else tensor
    stock = assemble(GPT2LMHeadModel, GPT2Config(**fields), tensors)
    stock.generation_config = model.generation_config
    return stock


def give_tokenizer(
    model: GPT2ScratchForCausalLM, name: str | None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer of this name, whose end-of-text id the model then knows.

    Args:
        model: one that came without a tokenizer.
        name: "gpt2", a directory, a repository of the Hub, or "none"; None takes GPT-2's for a
            vocabulary of its size, and says so if there is none.

    Raises:
        TokenizerError: if it cannot be had, or has more entries than the model.
    """
    tokenizer = _tokenizer_for(model.config.vocab_size, name)
    if tokenizer is not None:
        tokenizer.model_max_length = model.config.n_positions
        for config in (model.config, model.generation_config):
            config.bos_token_id = tokenizer.bos_token_id
            config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.eos_token_id
    return tokenizer


def save_converted(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, directory: Path
) -> None:
    """Writes model and tokenizer into an empty directory, as `from_pretrained` reads them.

    Raises:
        OSError: if they cannot be written.
    """
    try:
        model.save_pretrained(directory)
    except (SafetensorError, ValueError) as error:
        raise OSError(f"{directory}: expected to write the model, found {error}") from error
    if tokenizer is not None:
        save_tokenizer(tokenizer, directory)
        if isinstance(model, GPT2LMHeadModel):
            _save_classic_vocabulary(tokenizer, directory)
    write_json(directory / CONVERTED_MODEL.name, CONVERTED_MODEL.content())
    open_to_readers(directory.iterdir())


def limits_in_llama_cpp(model: GPT2LMHeadModel, directory: Path) -> list[str]:
    """What llama.cpp will refuse in a stock model that was saved here, a line for each."""
    found, config = [], model.config
    merges = directory / "merges.txt"
    content = merges.read_bytes() if merges.is_file() else b""
    has_tokenizer = (directory / "tokenizer_config.json").is_file()
    if has_tokenizer and hashlib.sha256(content).hexdigest() != GPT2_MERGES_SHA256:
        problem = (
            "llama.cpp: expected GPT-2's tokenizer, found another, of which its converter may say "
            '"BPE pre-tokenizer was not recognized"'
        )
        remedy = "; docs/how-to/other-formats.md has a script that converts it"
        found.append(problem + remedy * merges.is_file())  # which says that its rules are GPT-2's
    if config.n_inner not in (None, 4 * config.n_embd):
        found.append(
            f"llama.cpp: expected n_inner of {4 * config.n_embd} (4 * n_embd), found "
            f"{config.n_inner}; it converts this model, but does not load it"
        )
    return found


def _load_ours(path: Path) -> tuple[GPT2ScratchForCausalLM, dict]:
    """The model in a directory, and transformers' report about its tensors."""
    if found := json_problem(path / CONFIG_NAME):
        raise ConversionError(f"{path / CONFIG_NAME}: expected a JSON object, found {found}")
    try:
        model_type = json.loads((path / CONFIG_NAME).read_bytes()).get("model_type")
    except FileNotFoundError as error:
        raise ConversionError(
            f"{path}: expected a finished run or one of its checkpoint-N, found no {CONFIG_NAME}"
        ) from error
    if model_type != GPT2ScratchConfig.model_type:
        raise ConversionError(
            f"{path / CONFIG_NAME}: expected a {GPT2ScratchConfig.model_type} model, found "
            f"{str(model_type)[:99]}"
        )
    if (path / ADAPTER_NAME).is_file():
        raise ConversionError(
            f"{path}: expected a model alone, found {ADAPTER_NAME} beside it; merge the adapter "
            f"into the weights (merge_and_unload) or remove it"
        )
    try:
        return GPT2ScratchForCausalLM.from_pretrained(
            path.absolute(), dtype="auto", output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # transformers passes on whatever its readers raise
        raise ConversionError(
            f"{path / CONFIG_NAME}: cannot be loaded with the weights beside it: {named(error)}"
        ) from error


def _tokenizer_for(vocab_size: int, name: str | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of this name; if None, GPT-2's for a vocabulary of its size."""
    if name is None and vocab_size != GPT2_VOCAB_SIZE:
        print(f"no tokenizer known for {vocab_size:,} entries; --tokenizer names one")
        return None
    if name == NO_TOKENIZER:
        return None
    try:
        tokenizer = load_tokenizer(GPT2 if name is None else name)
    except TokenizerError as error:
        raise TokenizerError(f"{error}; or --tokenizer {NO_TOKENIZER}") from error
    if (n_entries := vocab_size_of(tokenizer)) > vocab_size:
        raise TokenizerError(
            f"{name}: expected at most {vocab_size:,} entries as in the model, found "
            f"{n_entries:,}; name another tokenizer, or {NO_TOKENIZER}"
        )
    return tokenizer


def _save_classic_vocabulary(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """OpenAI's vocab.json and merges.txt, for tools and older transformers that read only these.

    They describe a byte-level BPE with GPT-2's pre-tokenization, and no other tokenizer.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    pre_tokenizer = state["pre_tokenizer"] or {}
    is_plain = pre_tokenizer.get("type") == "ByteLevel" and not state["normalizer"]
    if state["model"]["type"] == "BPE" and is_plain:
        tokenizer.backend_tokenizer.model.save(str(directory))
