"""Other programs' token files: which split each belongs to, and which tokenizer made its ids."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from modeling_gpt2scratch.common.console import warn
from modeling_gpt2scratch.data.tokens.ids import vocab_size_of
from modeling_gpt2scratch.data.tokens.names import GPT2
from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer

from .format import ShardError
from .manifest_checks import is_file_name, says_held_out, splits_named
from .token_files import FEWEST_JUDGED, TOKENS_JUDGED, TokenFile, read_token_file, token_files

PICKLE_NAME = "meta.pkl"  # nanoGPT's table of characters, which is never read: pickles are programs
TOKENS_AT_END = 1024
TOKENS_DECODED, MOST_CONTROLS = 2**14, 0.05
NAME_IT = "name the tokenizer that wrote it with --tokenizer"


class ForeignTokenizer:
    """The tokenizer that made some files, and what its ids count for.

    Args:
        name: of the tokenizer, None if the files must say.
        splits: of files, with headers that may say.

    Raises:
        ShardError: if neither says, if the ids cannot be its, or if it is not byte-level.
        TokenizerError: if it cannot be had.
    """

    def __init__(self, name: str | None, splits: Mapping[str, Sequence[TokenFile]]):
        is_assumed, files = name is None, [file for split in splits.values() for file in split]
        self.name = _name_in(files) if name is None else name
        self.tokenizer = load_tokenizer(self.name)
        self.vocab_size = vocab_size_of(self.tokenizer)
        self.end_of_text_id = self.tokenizer.eos_token_id
        self._token_bytes = byte_lengths(self.tokenizer, self.name)
        for file in files:
            file.check_vocabulary(self.vocab_size, tokenizer=self.name)
            if 0 not in self.tokenizer.all_special_ids:  # with which a file may be filled up
                _refuse_empty_end(file)
        self._refuse_unlikely(files, is_assumed)

    def count(self, file: TokenFile, tokens: np.ndarray) -> tuple[int, int]:
        """Documents that begin or end in a piece of a file, and bytes of its text.

        Raises:
            ShardError: if an id is not the tokenizer's.
        """
        file.check_ids(tokens, self.vocab_size, tokenizer=self.name)
        n_documents = int(np.count_nonzero(tokens == self.end_of_text_id))
        return n_documents, int(self._token_bytes[tokens].sum())

    def _refuse_unlikely(self, files: Sequence[TokenFile], is_assumed: bool) -> None:
        """Refuses files none of which looks like the tokenizer's: perhaps they hold characters."""
        lengths, problem = self._token_bytes, None
        for file in files:
            tokens = file.tokens[:TOKENS_JUDGED]
            n_documents, _ = self.count(file, tokens)
            highest = int(tokens.max())
            are_bytes = lengths.max() > 1 and lengths[tokens].max() <= 1
            share = self.vocab_size // (4 if is_assumed else 50)  # to which no long text keeps
            are_low = highest < (share if is_assumed else min(share, len(tokens)))
            are_no_text = not self._are_text(tokens[:TOKENS_DECODED])
            if n_documents or not (are_bytes or are_low or are_no_text):
                return
            if problem is None and len(tokens) >= FEWEST_JUDGED:
                found = "single bytes alone" if are_bytes else f"none above {highest}"
                found = "control characters" if are_no_text else found
                problem = (
                    f"{file.path}: expected ids of the tokenizer {self.name}, found {found} and no "
                    f"end of text among {len(tokens):,}; {_advice(file)}"
                )
        if problem is not None:
            raise ShardError(problem)

    def _are_text(self, tokens: np.ndarray) -> bool:
        """Whether next to all characters are what people write; ids of characters give others."""
        text = self.tokenizer.decode(tokens.tolist())
        n_controls = sum(
            unicodedata.category(char) == "Cc" and char not in "\n\r\t" for char in text
        )
        return n_controls <= MOST_CONTROLS * len(text)


def files_by_split(
    paths: Sequence[Path], val: Sequence[Path], format: str | None, *, may_be_silent: bool = False
) -> dict[str, list[TokenFile]]:
    """The files of each split that has any, with their layouts checked.

    Args:
        paths: each belongs to the split that its name says.
        val: of the validation split, whatever their names; the others may then have any.
        may_be_silent: a name that says nothing makes a file of the training split.

    Raises:
        ShardError: if a file is damaged, of no clear split or badly named, or none is for training.
    """
    # By their places, so that none counts twice in two ways to its folder.
    of_val, of_both = (
        {path.parent.resolve() / path.name: path for path in given} for given in (val, paths)
    )
    for path in (*of_val.values(), *of_both.values()):
        if not is_file_name(path.name):  # which would stand in the manifest
            raise ShardError(
                f"{path.parent}: expected files that are not hidden, with names that any system "
                f"can hold, found {path.name!r}; rename it"
            )
    splits = {"train": [], "val": list(of_val.values())}
    for place, path in of_both.items():
        if place in of_val:
            continue
        if not path.exists():
            raise ShardError(f"{path}: expected a token file, found No such file or directory")
        says = splits_named(path.name)
        if not says and says_held_out(path.name):
            raise ShardError(
                f"{path}: expected files of training and validation, found one whose name says "
                f"that it is held out; name it after --val, or move it elsewhere"
            )
        if len(says) != 1 and not ((val or may_be_silent) and not says):
            raise ShardError(
                f"{path}: expected the word train or val in the name of the file, found "
                f"{' and '.join(says) or 'neither'}; name the files of the validation split after "
                f"--val, or rename it"
            )
        splits[says[0] if says else "train"].append(path)
    if not splits["train"]:
        raise ShardError(
            f"{', '.join(map(str, paths or val))}: expected training files among them, found none; "
            f"a name with train in it makes one"
        )
    _say_what_is_missing(sorted(of_both.values()))
    return {
        split: [read_token_file(path, format=format) for path in members]
        for split, members in splits.items()
        if members
    }


def files_of(directory: Path) -> list[Path]:
    """The token files of a foreign directory, or a ShardError."""
    if files := token_files(directory):
        return files
    raise ShardError(f"{directory}: expected .bin or .npy files, found none; name another")


def dataset_name(verb: str, file: str, n_files: int) -> str:
    """What a manifest says of other programs' files; with blanks, for it is no name of the Hub."""
    return f"{verb} {file}" + " and others" * (n_files > 1)


def byte_lengths(tokenizer: PreTrainedTokenizerBase, name: str) -> np.ndarray:
    """UTF-8 bytes that each id of a byte-level vocabulary stands for, int64 of shape (ids,).

    In such a vocabulary a character stands for a byte. Special tokens are no text and count 0.

    Raises:
        ShardError: if the tokenizer is not byte-level, so that a token alone has no length.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    decoder = state["decoder"] or {}
    steps = [step["type"] for step in decoder.get("decoders", [decoder]) if step]
    if "ByteLevel" not in steps:
        raise ShardError(
            f"{name}: expected a byte-level tokenizer like GPT-2's, whose tokens have a number of "
            f"bytes each, found {steps or 'none'}; prepare the text with prepare_data.py instead"
        )
    lengths = np.zeros(vocab_size_of(tokenizer), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = len(token)
    for token in state["added_tokens"]:
        lengths[token["id"]] = 0 if token["special"] else len(token["content"].encode())
    return lengths


def _say_what_is_missing(paths: Sequence[Path]) -> None:
    """Warns of each gap between files that are numbered, as where a download has ended early."""
    numbered = [re.fullmatch(r"(.*\D)(\d{2,9})(\.\w+)", path.name) for path in paths]
    for before, after in pairwise(match for match in numbered if match):
        n_missing = int(after[2]) - int(before[2]) - 1
        if before[1] == after[1] and 0 < n_missing < len(paths):
            warn(
                f"{before[0]} and {after[0]}: expected the files between them, found {n_missing} "
                f"missing; the others are used"
            )


def _refuse_empty_end(file: TokenFile) -> None:
    """Refuses a file that has its whole size before it is filled, as nanoGPT's, and was not."""
    end = file.tokens[-TOKENS_AT_END:]
    if len(end) == TOKENS_AT_END and not end.any():
        raise ShardError(
            f"{file.path}: expected text to the end, found the id 0 alone in the last "
            f"{TOKENS_AT_END:,} tokens, as in a file that was never completed; run the program "
            f"that wrote it again"
        )


def _name_in(files: Sequence[TokenFile]) -> str:
    """The tokenizer that all files say they are of: GPT-2, for whose ids llm.c has its header."""
    for file in files:
        if file.format != "llm.c" or file.tokens.dtype.str != "<u2":
            raise ShardError(
                f"{file.path}: expected --tokenizer, as a file of format {file.format} does not "
                f"say what its ids mean, found none; {_advice(file)}"
            )
    return GPT2


def _advice(file: TokenFile) -> str:
    """What to do about a file of an unknown tokenizer."""
    if (file.path.parent / PICKLE_NAME).exists():
        return (
            f"{PICKLE_NAME} beside it is nanoGPT's table of characters, of which no tokenizer here "
            f"has the ids: prepare the text itself, with prepare_data.py --tokenizer bytes"
        )
    return NAME_IT
