"""The tokenizer of a data set: GPT-2's own, bytes, one trained on the text, or any of the Hub.

Whichever it is, it is a transformers fast tokenizer that is saved beside the shards and again
beside the weights, and whose `<|endoftext|>` stands before every document.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tiktoken.load import read_file_cached
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import cached_file

from modeling_gpt2scratch.common.addresses import leads_nowhere, split_revision
from modeling_gpt2scratch.common.errors import json_problem, named
from modeling_gpt2scratch.common.hub_requests import cache_without_hub

from .ids import vocab_size_of
from .names import BYTES, GPT2, KNOWN_NAMES, TokenizerError
from .text import END_OF_TEXT, LONG_CHARACTERS, cut_between_words

GPT2_N_POSITIONS = 1024
LONGEST_WORD = 1000  # characters, when a tokenizer is trained
TOKENIZER_NAME = "tokenizer.json"
SETTINGS_NAME = "tokenizer_config.json"
TOKENIZER_FILES = (SETTINGS_NAME, "special_tokens_map.json", TOKENIZER_NAME)
# Tables of a vocabulary have a row for each id up to its highest. The largest public ones have a
# quarter of this.
MAX_VOCAB_SIZE = 2**22
LIKENESS = 0.65  # of a name that was perhaps meant, from 0 to 1
# By which BPE and Unigram choose at random how to part a word, as a model may be trained on it.
RANDOM_SETTINGS = ("dropout", "alpha", "nbest_size")
# Address and sha256 of OpenAI's two files; tiktoken fetches the same.
GPT2_FILES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
GPT2_VOCABULARY_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


def absolute_name(name: str) -> str:
    """The name of a tokenizer as it holds wherever one stands: of files, their whole path."""
    is_path = name not in (GPT2, BYTES) and Path(name).exists()
    return str(Path(name).resolve()) if is_path else name


def load_tokenizer(name: str, *, known: str = KNOWN_NAMES) -> PreTrainedTokenizerBase:
    """The fast tokenizer of this name: "gpt2", "bytes", a directory or a repository of the Hub.

    A `tokenizer.json` may be named itself. A message about an unknown name says what is `known`.

    Raises:
        TokenizerError: if it cannot be had, has no end-of-text token, or ids that no table holds.
    """
    if name == GPT2:
        return _load_gpt2()
    if name == BYTES:
        return byte_tokenizer()
    _refuse_huge_ids(name, _highest_id_in(_main_file(name)))
    try:
        with cache_without_hub(name):
            tokenizer = _from_files(name)
    except Exception as error:  # tokenizers raises nothing more special for a broken file
        raise TokenizerError(problem_of_files(name, error, known) + _meant(name, known)) from error
    if tokenizer.eos_token is None and END_OF_TEXT in tokenizer.get_added_vocab():
        tokenizer.eos_token = END_OF_TEXT  # of which a tokenizer.json alone does not say so
    settings = Path(name, SETTINGS_NAME)
    place = settings if settings.is_file() else name
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"{place}: expected a fast tokenizer, found the slow {type(tokenizer).__name__}; name "
            f"one that has a {TOKENIZER_NAME}"
        )
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"{place}: expected an end-of-sequence token or the special token {END_OF_TEXT}, found "
            f"neither; save the tokenizer with one: "
            f"PreTrainedTokenizerFast(tokenizer_file=..., eos_token=...).save_pretrained(...)"
        )
    refuse_unusable(name, tokenizer)
    return tokenizer


def problem_of_files(name: str, error: Exception, known: str = KNOWN_NAMES) -> str:
    """In one line, which file of a tokenizer is the reason for an error at loading it."""
    is_file = Path(name).is_file()
    for path in [Path(name)] if is_file else [Path(name, file) for file in TOKENIZER_FILES]:
        if found := json_problem(path):
            return f"{path}: expected a JSON object, found {found}"
    path = _main_file(name)
    if path.is_file():
        beside = [file for file in (SETTINGS_NAME, "config.json") if Path(name, file).is_file()]
        fitting = f" that fits {' and '.join(beside)}" if beside else ""
        return f"{path}: expected a tokenizer{fitting}, found {named(error)}; save it again"
    nothing = "no directory of that name; look for a wrong letter"
    return f"{name}: expected {known}, found {nothing if leads_nowhere(name) else named(error)}"


def refuse_unusable(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses ids for which no table has room, and those that differ from one time to the next.

    Raises:
        TokenizerError: naming the tokenizer and what was found.
    """
    _refuse_huge_ids(name, vocab_size_of(tokenizer) - 1)
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    for setting in RANDOM_SETTINGS:
        if found := getattr(model, setting, None):
            raise TokenizerError(
                f"{name}: expected a tokenizer that gives a text the same ids each time, found "
                f"{setting} {found:.3g}; set it to null in {TOKENIZER_NAME}"
            )


def byte_tokenizer() -> GPT2Tokenizer:
    """The 256 bytes, whose ids are their values, and `<|endoftext|>`, 256: for characters.

    It is GPT-2's tokenizer without a merge, and so is known wherever that is.
    """
    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    return GPT2Tokenizer(vocab=vocabulary | {END_OF_TEXT: 256}, merges=[])


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> GPT2Tokenizer:
    """A byte-level BPE with GPT-2's pre-tokenization, trained on these documents.

    Its last entry is `<|endoftext|>`, as in GPT-2. Little text may give fewer entries than asked.
    """
    bpe = Tokenizer(models.BPE())
    # The trainer's time grows with the square of a word's length, as of a text without spaces.
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.FixedLength(LONGEST_WORD),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = (piece for text in documents for piece in cut_between_words(text, LONG_CHARACTERS))
    bpe.train_from_iterator(pieces, trainer)
    learnt = json.loads(bpe.to_str())["model"]
    vocabulary = learnt["vocab"] | {END_OF_TEXT: len(learnt["vocab"])}
    merges = [tuple(pair) for pair in learnt["merges"]]
    return GPT2Tokenizer(vocab=vocabulary, merges=merges)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """The tokenizer's files, without what they said about code to execute.

    Raises:
        OSError: if they cannot be written; the tokenizers library raises a bare Exception.
    """
    tokenizer.init_kwargs.pop("auto_map", None)
    try:
        # Several chat templates would be a folder, where only files are expected.
        tokenizer.save_pretrained(
            directory, save_jinja_files=not isinstance(tokenizer.chat_template, dict)
        )
    except Exception as error:
        raise OSError(f"{directory}: cannot be written: {error}") from error


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A sha256 of vocabulary, merges and added tokens: of what each id stands for.

    It survives saving and loading, and other versions of the libraries, which rewrite the files.
    How a text is normalized and parted into words is not in it.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    pairs = state["model"].get("merges", [])  # strings in older versions; Unigram has none
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    added = {token["content"]: token["id"] for token in state["added_tokens"]}
    content = json.dumps([state["model"]["vocab"], merges, added], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, str]:
    """What decides which token an id stands for: ids, that of the end of text, and fingerprint."""
    return vocab_size_of(tokenizer), tokenizer.eos_token_id, fingerprint(tokenizer)


def manifest_entries(name: str, tokenizer: PreTrainedTokenizerBase) -> dict:
    """What a manifest says of the tokenizer called `name`, as arguments of `Manifest`."""
    vocab_size, end_of_text_id, sha256 = vocabulary_of(tokenizer)
    return {
        "vocab_size": vocab_size,
        "end_of_text_id": end_of_text_id,
        "tokenizer": {"name": name, "fingerprint": sha256},
    }


def tokenizer_spec(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a `DocumentEncoder` needs to know of a tokenizer: "gpt2", "bytes", or its JSON."""
    return name if name in (GPT2, BYTES) else tokenizer.backend_tokenizer.to_str()


def _refuse_huge_ids(name: str, highest: int) -> None:
    """Refuses them before a tokenizer is made of them, which would take the memory."""
    if highest >= MAX_VOCAB_SIZE:
        raise TokenizerError(
            f"{name}: expected ids below {MAX_VOCAB_SIZE:,}, found {highest} in tokenizer.json; "
            f"name another tokenizer or copy this one again"
        )


def _meant(name: str, known: str) -> str:
    """The name that was perhaps meant, in a few words; empty if there is none."""
    names = {"bpe:n": "bpe:N", GPT2: GPT2, BYTES: BYTES}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=LIKENESS)
    is_missing = not Path(name).exists()
    is_known = is_missing and near and near[0] in known.lower()
    return f"; did you mean {names[near[0]]}?" if is_known else ""


def _main_file(name: str) -> Path:
    """The `tokenizer.json` that this name means, if it is one of files here."""
    return Path(name) if Path(name).is_file() else Path(name, TOKENIZER_NAME)


def _from_files(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that its `tokenizer.json` says; without one, that of transformers.

    transformers 5 makes the tokenizers that it knows from vocabulary and merges, and its own rules
    take the place of those in the file.
    """
    if Path(name).is_file():
        return PreTrainedTokenizerFast(tokenizer_file=name)
    repository, revision = split_revision(name)
    tokenizer = AutoTokenizer.from_pretrained(
        repository, revision=revision, trust_remote_code=False
    )
    try:
        file = cached_file(repository, TOKENIZER_NAME, revision=revision)
    except OSError:
        return tokenizer
    own = Tokenizer.from_file(file)
    if not tokenizer.is_fast or _rules_of(tokenizer.backend_tokenizer) == _rules_of(own):
        return tokenizer
    # Settings may leave it to the class which tokens have a role.
    roles = {
        role: token
        for role, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str) and own.token_to_id(token) is not None
    }
    return PreTrainedTokenizerFast.from_pretrained(
        repository, revision=revision, trust_remote_code=False, **roles
    )


def _rules_of(tokenizer: Tokenizer) -> list:
    """What decides, beside vocabulary and merges, the ids of a text and the text of ids.

    Files of the same rules differ in what has no effect there: "" for none, and offsets.
    """
    state = json.loads(tokenizer.to_str(), object_hook=lambda part: part | {"trim_offsets": None})
    options = {*state["model"]} - {"vocab", "merges"}
    model = {key: state["model"][key] for key in options if state["model"][key]}
    decoder = state["decoder"] or {}
    if decoder.get("type") == "ByteLevel":  # whose options are for encoding
        decoder = "ByteLevel"
    return [model, state["normalizer"], state["pre_tokenizer"], decoder]


def _load_gpt2() -> GPT2Tokenizer:
    """GPT-2's tokenizer from the files that tiktoken keeps."""
    try:
        merges = read_file_cached(GPT2_FILES + "vocab.bpe", GPT2_MERGES_SHA256)
        vocabulary = read_file_cached(GPT2_FILES + "encoder.json", GPT2_VOCABULARY_SHA256)
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"gpt2: expected tiktoken's vocab.bpe and encoder.json, found "
            f"{type(error).__name__}; on a machine without a network, set TIKTOKEN_CACHE_DIR to a "
            f"copy of the cache of a machine where tiktoken.get_encoding('gpt2') has run"
        ) from error
    # The first line of vocab.bpe names its version.
    pairs = [tuple(line.split()) for line in merges.decode().splitlines()[1:] if line]
    return GPT2Tokenizer(
        vocab=json.loads(vocabulary), merges=pairs, model_max_length=GPT2_N_POSITIONS
    )


def _highest_id_in(path: Path) -> int:
    """The highest id that a tokenizer.json names; -1 for another file or none.

    Loading one makes tables of that size, so it has to be known before.
    """
    try:
        content = json.loads(path.read_bytes())
        vocabulary = content["model"]["vocab"]
        ids = [len(vocabulary) - 1, *(token["id"] for token in content["added_tokens"])]
        ids += vocabulary.values() if isinstance(vocabulary, dict) else ()
        return max(id_ for id_ in ids if isinstance(id_, int))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return -1  # loading it will say what is wrong
