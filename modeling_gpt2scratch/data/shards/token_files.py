"""Token files of this project and of others, read with checks and without copies.

    format        file                                   tokens
    gpt2scratch   header with a vocabulary size          uint16, or uint32 beyond 65,536 entries
    llm.c         the same header, that word zero        uint16 (GPT-2) or uint32 (Llama 3)
    npy           numpy's format, one dimension          any integer type
    nanogpt       no header; train.bin, val.bin          uint16

`llm.c` is also what modded-nanogpt reads, and `npy` what build-nanogpt writes. The layout of the
header stands in `format.py`. Nothing here executes pickled code.

Sources: dev/data/data_common.py of llm.c, fineweb.py of build-nanogpt, data/openwebtext/prepare.py
of nanoGPT.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeling_gpt2scratch.common.errors import content_instead, one_line
from modeling_gpt2scratch.data.tokens.ids import token_dtype

from .format import HEADER_BYTES, HEADER_INTS, LAYOUTS, SUFFIXES, ShardError, first_stranger
from .manifest import FileLayout

NANOGPT = "nanogpt"
# Of a file's first tokens: as many as are looked at, and so many that look strange are not of it.
TOKENS_JUDGED, FEWEST_JUDGED = 2**20, 100
NANOGPT_NAMES = ("train.bin", "val.bin")
NPY_MAGIC = b"\x93NUMPY"
LLMC_EVALUATION_MAGIC = 20240522  # HellaSwag and MMLU: multiple choice, no stream of tokens
TOKENS_PER_READ = 2**22
COPY_AGAIN = "copy it again, or write it again with the program that made it"


@dataclass(frozen=True)
class TokenFile:
    """A token file whose layout has been checked; its ids have not."""

    path: Path
    format: str  # as in the table above
    dtype: np.dtype  # of its tokens
    vocab_size: int | None  # what the header says, if it says
    header_bytes: int  # before the first token

    @property
    def tokens(self) -> np.ndarray:
        """The tokens, (n,), read-only; mapped on use, because a process may open so many files."""
        tokens = np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.header_bytes)
        return tokens.view(np.ndarray)

    @property
    def layout(self) -> FileLayout:
        """What a manifest says of the file."""
        return FileLayout(self.format, self.dtype.str, self.header_bytes)

    def chunks(self) -> Iterator[np.ndarray]:
        """The tokens in pieces, so that memory does not depend on the size of the file."""
        tokens = self.tokens
        for start in range(0, len(tokens), TOKENS_PER_READ):
            yield tokens[start : start + TOKENS_PER_READ]

    def check_vocabulary(self, vocab_size: int, *, tokenizer: str) -> None:
        """Refuses a tokenizer that is not the one of the header, as far as that says anything.

        Args:
            vocab_size: entries of the tokenizer.
            tokenizer: its name.

        Raises:
            ShardError: with both sizes.
        """
        if self.vocab_size not in (None, vocab_size):
            raise ShardError(
                f"{self.path}: expected a vocabulary of {vocab_size} entries as in the tokenizer "
                f"{tokenizer}, found {self.vocab_size}; name its own with --tokenizer"
            )
        if token_dtype(vocab_size) == "<u4" and self.dtype.itemsize < 4:
            raise ShardError(
                f"{self.path}: expected 4 bytes per id of the tokenizer {tokenizer}, which has "
                f"{vocab_size:,}, found {self.dtype.itemsize}; name its own with --tokenizer, or "
                f"save the ids as a .npy file of numpy.uint32"
            )

    def check_ids(self, tokens: np.ndarray, vocab_size: int, *, tokenizer: str) -> None:
        """Refuses ids that the tokenizer does not have.

        Args:
            tokens: a piece of the file.
            vocab_size: entries of the tokenizer.
            tokenizer: its name, for the message.

        Raises:
            ShardError: at the first id below 0 or not below `vocab_size`.
        """
        if (position := first_stranger(tokens, vocab_size)) is not None:
            raise ShardError(
                f"{self.path}: expected ids from 0 to {vocab_size - 1} as in the tokenizer "
                f"{tokenizer}, found {tokens[position]}; name the tokenizer that wrote it with "
                f"--tokenizer"
            )


def read_token_file(path: Path, *, format: str | None = None) -> TokenFile:
    """Recognizes and opens a token file.

    Args:
        format: what it is said to be. Only "nanogpt" decides, as such a file has no header.

    Raises:
        ShardError: if it is no token file, empty, truncated or of a type that is not integer.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would not end
        raise ShardError(f"{path}: expected a token file, found something else; name a file")
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
            n_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ShardError(f"{path}: expected a token file, found {error.strerror}") from None
    if found := content_instead(path):
        raise ShardError(f"{path}: expected tokens, found {found}")
    magic = int.from_bytes(head[:4], "little")
    has_header = magic in {known for known, _ in LAYOUTS.values()}
    if format == NANOGPT:
        if has_header or head.startswith(NPY_MAGIC):
            raise ShardError(
                f"{path}: expected ids without a header, as nanoGPT writes, found one of another "
                f"format; leave out --format"
            )
        return _read_nanogpt(path, n_bytes)
    if head.startswith(NPY_MAGIC):
        return _read_npy(path, n_bytes)
    if has_header:
        return _read_with_header(path, head, n_bytes)
    if magic == LLMC_EVALUATION_MAGIC:
        raise ShardError(
            f"{path}: expected a stream of tokens, found llm.c's multiple-choice evaluation data; "
            f"name the files of the training data"
        )
    if path.suffix == ".npy":
        raise ShardError(
            f"{path}: expected a .npy file, found other content (pickled data is never read); "
            f"write it again with numpy.save"
        )
    if path.name in NANOGPT_NAMES:
        return _read_nanogpt(path, n_bytes)
    known = " or ".join(str(known) for known, _ in LAYOUTS.values())
    is_unknown = "if it is a headerless uint16 file as nanoGPT writes, say so with --format nanogpt"
    raise ShardError(
        f"{path}: expected a .npy file or a header with magic {known}, found {magic}; "
        f"{COPY_AGAIN if format else is_unknown}"
    )


def token_files(directory: Path) -> list[Path]:
    """The `.bin` and `.npy` files of a directory by name; hidden ones are unfinished."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _read_with_header(path: Path, head: bytes, n_bytes: int) -> TokenFile:
    """A shard of ours or of llm.c, which differ in the fourth word of the header."""
    if len(head) < HEADER_BYTES:
        raise ShardError(
            f"{path}: expected a header of {HEADER_BYTES} bytes, found {len(head)}; {COPY_AGAIN}"
        )
    header = np.frombuffer(head, dtype="<i4", count=HEADER_INTS)
    magic, version, n_tokens, vocab_size = header[:4].tolist()
    dtype, known_version = next((d, v) for d, (m, v) in LAYOUTS.items() if m == magic)
    if version != known_version:
        raise ShardError(
            f"{path}: expected version {known_version} with magic {magic}, found {version}; "
            f"write it again with a current version of its program"
        )
    expected_bytes = HEADER_BYTES + n_tokens * np.dtype(dtype).itemsize
    if n_tokens <= 0 or n_bytes != expected_bytes:
        expected = f"{expected_bytes} bytes for {n_tokens} tokens" if n_tokens > 0 else "tokens"
        found = n_bytes if n_tokens > 0 else n_tokens
        raise ShardError(f"{path}: expected {expected}, found {found}; {COPY_AGAIN}")
    if vocab_size < 0 or (vocab_size and token_dtype(vocab_size) != dtype):
        raise ShardError(
            f"{path}: expected a vocabulary size that fits {np.dtype(dtype).name}, "
            f"found {vocab_size}; {COPY_AGAIN}"
        )
    format = "gpt2scratch" if vocab_size else "llm.c"
    return TokenFile(path, format, np.dtype(dtype), vocab_size or None, HEADER_BYTES)


def _read_npy(path: Path, n_bytes: int) -> TokenFile:
    """What `numpy.save` wrote, if it is one dimension of integers."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        end = array.offset + array.nbytes
    except Exception as error:  # of many kinds: numpy reads the header as Python's literals
        # Python objects among them: numpy says that it cannot map them, and reads none.
        raise ShardError(
            f"{path}: expected a whole .npy file of integers, found {one_line(error)}; {COPY_AGAIN}"
        ) from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ShardError(
            f"{path}: expected one dimension of integers, found {array.dtype} of shape "
            f"{array.shape}; save the stream of ids as numpy.uint16"
        )
    if len(array) == 0 or end != n_bytes:
        found = f"{n_bytes} bytes" if len(array) else "none"
        expected = f"{end} bytes" if len(array) else "tokens"
        raise ShardError(f"{path}: expected {expected}, found {found}; {COPY_AGAIN}")
    return TokenFile(path, "npy", array.dtype, None, array.offset)


def _read_nanogpt(path: Path, n_bytes: int) -> TokenFile:
    """Nothing but little-endian uint16."""
    if n_bytes % 2:
        raise ShardError(
            f"{path}: expected two bytes per token, found an odd number of bytes, {n_bytes}; "
            f"{COPY_AGAIN}"
        )
    file = TokenFile(path, NANOGPT, np.dtype("<u2"), None, 0)
    if n_bytes >= 2 * FEWEST_JUDGED and not file.tokens[1:TOKENS_JUDGED:2].any():
        raise ShardError(
            f"{path}: expected ids of two bytes, found 0 in the place of every second one, as in a "
            f"file of int32 or int64; save them as numpy.uint16"
        )
    return file
