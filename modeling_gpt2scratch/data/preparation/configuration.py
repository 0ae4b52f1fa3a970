"""The arguments of `prepare_data.py`."""

import dataclasses
import os
from dataclasses import dataclass
from typing import ClassVar, Literal

from modeling_gpt2scratch.common.addresses import redact_fields, split_revision
from modeling_gpt2scratch.common.command_line import GIVEN, ArgumentError, argument, check_numbers
from modeling_gpt2scratch.common.hub_requests import check_repository
from modeling_gpt2scratch.common.output_directory import as_given, output_directory, resolved
from modeling_gpt2scratch.data.shards.format import MAX_SHARD_TOKENS
from modeling_gpt2scratch.data.shards.manifest import DATA_MARKER
from modeling_gpt2scratch.data.sources.docstrings import DOCSTRINGS
from modeling_gpt2scratch.data.sources.filters import parse_condition
from modeling_gpt2scratch.data.sources.hub_files import PRESETS
from modeling_gpt2scratch.data.sources.mixture import parse_mixture
from modeling_gpt2scratch.data.sources.url_files import URL_PRESETS
from modeling_gpt2scratch.data.tokens.names import GPT2, trained_vocab_size

from .progress import WorkingDirectory

DOCSTRINGS_TOKENIZER = "bpe:4096"  # a vocabulary that a small model can afford
# What does not change the shards, and may change before an unfinished preparation goes on.
NOT_RECORDED = (
    *("output_dir", "num_workers", "overwrite", "ignore_free_space", "push_to_hub", "private"),
)

AUTO, DOCUMENTS, TAIL = "auto", "documents", "tail"  # values of --split

MAX_WORKERS = 1_024

# Headings of `--help`.
OUTPUT, TEXT, TOKENS = "output", "text", "tokens"
ORDER, HUB = "order and validation split", "Hugging Face Hub"


@dataclass(frozen=True)
class PrepareConfig:
    """Every argument of this script."""

    main: ClassVar = "dataset"

    output_dir: str = argument("directory to make", group=OUTPUT)
    dataset: str = argument(
        f"docstrings; a preset ({', '.join([*URL_PRESETS, *PRESETS])}); a local file, folder or "
        "glob (txt, jsonl, csv, each also .gz .zst .xz; parquet); a Hub name, also with its subset "
        "(user/name/subset); or several with weights (a:0.7,b:0.3)",
        group=TEXT,
        default=DOCSTRINGS,
    )
    subset: str | None = argument(
        "configuration of a Hub data set, such as sample-10BT", group=TEXT, default=None
    )
    text_column: str = argument("field that holds the document", group=TEXT, default="text")
    where: list[str] = argument(
        "conditions that a row must meet: 'language == en' 'score >= 3'",
        group=TEXT,
        default_factory=list,
    )
    min_characters: int = argument("shorter documents are left out", group=TEXT, default=0)
    on_bad_row: Literal["stop", "skip"] = argument(
        "at a row that cannot be read: stop, or leave it out and count it in the manifest",
        group=TEXT,
        default="stop",
    )
    deduplicate: bool = argument(
        "leave out exact copies of earlier documents", group=TEXT, default=False
    )
    tokenizer: str | None = argument(
        "gpt2; bytes, for characters; bpe:N to train one of N entries on this text; or a directory "
        f"or Hub name; without it {DOCSTRINGS_TOKENIZER} for docstrings, else gpt2",
        group=TOKENS,
        default=None,
    )
    shard_tokens: int = argument("tokens per shard", group=OUTPUT, default=100_000_000)
    val_fraction: float = argument(
        "share of the text held out, 0 for none", group=ORDER, default=0.01
    )
    split: Literal["auto", "documents", "tail"] = argument(
        "what is held out; documents: chosen by a hash of their text; tail: the end of the text in "
        "file order (the text is read twice); auto: documents if there are enough, else tail",
        group=ORDER,
        default=AUTO,
    )
    shuffle: bool = argument("shuffle files and documents", group=ORDER, default=True)
    shuffle_buffer_tokens: int = argument(
        "tokens per block; documents are shuffled within a block; a restart continues after the "
        "last complete block",
        group=ORDER,
        default=50_000_000,
    )
    num_workers: int | None = argument(
        "processes that tokenize, at most four per core; by default one per core, or a single one "
        "for a small text",
        group=TOKENS,
        default=None,
    )
    limit_documents: int | None = argument(
        "maximum number of documents to read", group=TEXT, default=None
    )
    max_tokens: int | None = argument(
        "stop after the document with which there are so many tokens", group=OUTPUT, default=None
    )
    seed: int = argument(
        "seed of the shuffle and of the choice of validation documents", group=ORDER, default=0
    )
    overwrite: bool = argument("replace an existing data directory", group=OUTPUT, default=False)
    ignore_free_space: bool = argument(
        "start even if the disk looks too small", group=OUTPUT, default=False
    )
    push_to_hub: str | None = argument(
        "data set repository to upload the result to", group=HUB, default=None
    )
    private: bool = argument("make the repository of push_to_hub private", group=HUB, default=False)

    written: ClassVar = "output_dir"  # where no recipe must be
    only_with: ClassVar = {"private": ("push_to_hub", GIVEN), "split": ("val_fraction", GIVEN)}

    def __post_init__(self):
        redact_fields(self, but=("where", "text_column"))
        check_numbers(
            self,
            positive=(
                *("shard_tokens", "shuffle_buffer_tokens", "num_workers"),
                *("limit_documents", "max_tokens"),
            ),
            non_negative=("seed", "min_characters"),
        )
        if self.shard_tokens > MAX_SHARD_TOKENS:
            problem = f"expected at most {MAX_SHARD_TOKENS}, found {self.shard_tokens}"
            raise ArgumentError("shard_tokens", problem=problem)
        if self.num_workers is not None and self.num_workers > MAX_WORKERS:
            problem = f"expected at most {MAX_WORKERS} processes, found {self.num_workers}"
            raise ArgumentError("num_workers", problem=problem)
        if not 0 <= self.val_fraction < 1:
            problem = f"expected a number in [0, 1), found {self.val_fraction}"
            raise ArgumentError("val_fraction", problem=problem)
        if self.split == TAIL and self.max_tokens is not None:
            raise ArgumentError(
                *("split", "max_tokens"),
                problem="expected no --max_tokens, because the tail is that of the whole text; "
                "use --limit_documents instead",
            )
        for condition in self.where:
            parse_condition(condition)
        inputs = [name for name, _ in parse_mixture(self.dataset, flag="--dataset")]
        if self.tokenizer is None:
            default = DOCSTRINGS_TOKENIZER if self.dataset == DOCSTRINGS else GPT2
            object.__setattr__(self, "tokenizer", default)
        trained_vocab_size(self.tokenizer)
        split_revision(self.tokenizer)  # refuses a directory with a revision
        if self.push_to_hub is not None:
            check_repository(self.push_to_hub, flag="--push_to_hub")
        self._check_output_dir(inputs)

    def _check_output_dir(self, inputs: list[str]) -> None:
        """Refuses a place that must not be written to, and takes the links out of another."""
        place = resolved(self.output_dir)
        output_dir = as_given(self.output_dir, place)
        working = WorkingDirectory(place) if place.name else None  # a root has no name
        if working is None or not self._is_made(working):
            is_of_old_data = os.path.realpath(self.tokenizer) == str(place)
            output_dir = output_directory(
                self.output_dir,
                marker=DATA_MARKER,
                overwrite=self.overwrite,
                inputs=inputs,
                # The new data have a copy of it, too.
                kept=[] if is_of_old_data else [self.tokenizer],
            )
        object.__setattr__(self, "output_dir", str(output_dir))

    def _is_made(self, working: WorkingDirectory) -> bool:
        """Whether the same command was here before, and has left nothing to do."""
        arguments = self.recorded()
        return working.is_published(arguments) or (
            not self.overwrite and working.finished(arguments) is not None
        )

    def recorded(self) -> dict:
        """The arguments that decide the shards, as the manifest names them."""
        arguments = dataclasses.asdict(self)
        return {name: arguments[name] for name in arguments if name not in NOT_RECORDED}
