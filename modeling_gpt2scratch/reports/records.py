"""What a run recorded about itself, without names and paths of the machine it ran on.

Only what is known to be harmless passes: numbers, choices between fixed words, names of the Hub.
What is made from these records can be published.
"""

import glob
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from huggingface_hub.utils import HFValidationError, validate_repo_id

from modeling_gpt2scratch.checkpoints.checkpoint import find_checkpoint
from modeling_gpt2scratch.checkpoints.retention import STATE_NAME
from modeling_gpt2scratch.common.addresses import split_revision
from modeling_gpt2scratch.common.console import warn
from modeling_gpt2scratch.common.errors import MendableError, json_problem
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import Manifest, Split
from modeling_gpt2scratch.data.sources.dataset_argument import NAMED_CORPORA
from modeling_gpt2scratch.data.sources.mixture import parse_mixture
from modeling_gpt2scratch.data.sources.readers import COMPRESSIONS, READERS
from modeling_gpt2scratch.data.tokens.names import BYTES, GPT2, TRAINED_PREFIX
from modeling_gpt2scratch.tracking.metrics import METRICS_NAME, read_metrics
from modeling_gpt2scratch.training.configuration import RUN_CONFIG_NAME, TrainConfig
from modeling_gpt2scratch.training.directory import (
    DATA_MANIFEST_NAME,
    DATA_MANIFEST_OF_SOURCE,
    ENVIRONMENT_NAME,
)

from .record_checks import check_arguments, check_environment

# What is always there.
ARGUMENT_KEYS = ("max_steps", "total_batch_tokens")
ROW_KEYS = ("step", "loss", "tokens_per_second")
LOCAL = " (local)"  # behind the last part of a path, which may be `gpt2` too
TOTALS = ("n_tokens", "n_documents", "n_bytes")  # of a split


@dataclass(frozen=True)
class SourceRecord:
    """One of the sources that a run's data set was made from."""

    name: str
    is_named: bool  # one of `NAMED_CORPORA`
    is_on_hub: bool
    subset: str | None
    weight: float | None  # share of the text; None if it is the only one, taken whole or not known


@dataclass(frozen=True)
class DataRecord:
    """The data set of a run."""

    sources: tuple[SourceRecord, ...]
    tokenizer: str  # "gpt2", "bpe:N", or the name of another
    splits: dict[str, Split]
    is_weighted: bool  # several data sets, of which some may be read more often than others


@dataclass(frozen=True)
class RunRecords:
    """What is known of a run, fit to be published."""

    sizes: dict[str, int]  # "parameters", and the config's "n_layer", "n_positions" and so on
    arguments: dict[str, Any]  # of the training; empty if there was none
    environment: dict[str, str | int]  # device, processes, precision, versions
    metrics: list[dict[str, float]]  # one per logged step
    data: DataRecord | None
    results: dict | None  # of evaluate/compare.py
    best_step: int | None = None  # with the lowest validation loss, as far as that is known

    @property
    def tokens_seen(self) -> int | None:
        """Training tokens, repeated ones counted again."""
        if not self.arguments:
            return None
        return self.steps * self.arguments["total_batch_tokens"]

    @property
    def tokens_of_weights(self) -> int | None:
        """Those of `tokens_seen` that the model's weights have read."""
        if self.arguments.get("final") != "best" or self.validated is None:
            return self.tokens_seen
        return self.validated["step"] * self.arguments["total_batch_tokens"]

    @property
    def steps(self) -> int:
        """Optimizer updates; a run may have ended early for want of progress."""
        return self.metrics[-1]["step"] if self.metrics else self.arguments["max_steps"]

    @property
    def passes(self) -> float | None:
        """How often the training split was read, None if that is no one number."""
        if self.tokens_seen is None or self.data is None or self.data.is_weighted:
            return None
        return self.tokens_seen / self.data.splits["train"].n_tokens

    @property
    def validated(self) -> dict[str, float] | None:
        """The last validation of the model's weights, None if there was none.

        With `--final best` they are not the last ones.
        """
        rows = [row for row in self.metrics if "eval_loss" in row]
        if self.arguments.get("final") == "best":
            if self.best_step is not None:
                return next((row for row in rows if row["step"] == self.best_step), None)
            return min(rows, key=lambda row: row["eval_loss"], default=None)
        return rows[-1] if rows else None


class RecordsError(MendableError, ValueError):
    """Records that cannot be read, or that do not belong to the model beside them."""


def read_training(
    run: Path, *, sizes: dict[str, int], logged: Sequence[dict] | None = None
) -> RunRecords:
    """The records of a run's training, as far as it has come, without results.

    Args:
        run: output directory of the training script.
        sizes: of the model, by name.
        logged: the lines of its `metrics.jsonl`, if they have been read already.

    Raises:
        RecordsError: if a file cannot be read.
    """
    arguments = _read_arguments(run / RUN_CONFIG_NAME)
    return RunRecords(
        sizes=sizes,
        arguments=_public_arguments(arguments),
        environment=_read_environment(run / ENVIRONMENT_NAME),
        metrics=_public_metrics(read_metrics(run / METRICS_NAME) if logged is None else logged),
        data=_read_data(run, arguments),
        results=None,
        best_step=_best_step(run),
    )


def public_name(name: str) -> str:
    """The name of a tokenizer or data set of the Hub, or the last part of a path."""
    return name if name in NAMED_CORPORA or is_hub_name(name) else Path(name).name


def is_hub_name(name: str) -> bool:
    """Whether a name leads to the Hub, by the rules of `dataset_argument.py`."""
    is_file = Path(name).suffix in (*READERS, *COMPRESSIONS) or Path(name).exists()
    if name in NAMED_CORPORA or is_file or glob.has_magic(name):
        return False
    try:
        repository, revision = split_revision(name)
        validate_repo_id(repository)
        if repository != name:
            validate_repo_id(revision)  # whose rules are stricter, and let no path pass
            return "/" not in revision
    except HFValidationError:
        return False
    return True


def is_source_on_hub(source: dict) -> bool:
    """Whether a source of a manifest is a data set of the Hub: a path may have such a name, too.

    Files of the Hub have a revision, and what is streamed from there has no size.
    """
    is_local = bool(source.get("bytes")) and not source.get("revision")
    return not is_local and is_hub_name(str(source["name"]))


def run_manifests(run: Path) -> list[Manifest]:
    """The run's copies of its data's manifests, one for each source of `--data`, in their order.

    Raises:
        ShardError: if one cannot be read.
    """
    if (run / DATA_MANIFEST_NAME).exists():
        return [Manifest.load(run, DATA_MANIFEST_NAME)]
    names = map(DATA_MANIFEST_OF_SOURCE.format, itertools.count(1))
    found = itertools.takewhile(lambda name: (run / name).exists(), names)
    return [Manifest.load(run, name) for name in found]


def sources_of(manifest: Manifest) -> list[dict]:
    """What a data set was made from; other programs' files and pipelines name only a data set.

    Raises:
        KeyError: if it does not say.
    """
    named = {"name": manifest.arguments["dataset"]} if not manifest.sources else {}
    return manifest.sources or [manifest.arguments | named]


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
        RecordsError: if there is none in it.
        FileNotFoundError: if there is no file.
    """
    if path.exists() and not path.is_file():  # a pipe would not end
        raise RecordsError(f"{path}: expected a JSON file, found something else")
    if found := json_problem(path):
        raise RecordsError(f"{path}: expected a JSON object, found {found}")
    return json.loads(path.read_bytes())


def _marked_name(name: str, *, is_on_hub: bool) -> str:
    """The name on the Hub, or the last part of a path, marked as local."""
    return name if is_on_hub else f"{Path(name).name.removesuffix(LOCAL)}{LOCAL}"


def _read_arguments(path: Path) -> dict:
    """Arguments of the training, empty if there is no file."""
    if not path.is_file():
        return {}
    arguments = read_json(path)
    for key in ARGUMENT_KEYS:
        if not isinstance(arguments.get(key), int):
            raise RecordsError(f"{path}: expected a number for {key}, found {arguments.get(key)!r}")
    try:
        for name in check_arguments(arguments):
            warn(f"{path}: expected arguments of this version, found {name}; it is left out")
    except ValueError as error:
        raise RecordsError(f"{path}: {error}") from error
    return arguments


def _read_environment(path: Path) -> dict:
    """Where the run took place, empty if there is no file."""
    if not path.is_file():
        return {}
    environment = read_json(path)
    try:
        check_environment(environment)
    except ValueError as error:
        raise RecordsError(f"{path}: {error}") from error
    return environment


def _public_arguments(arguments: dict) -> dict:
    """Arguments without free text, which could be a path; of a model's, the last part stays."""
    known = get_type_hints(TrainConfig)
    choices = {name for name, kind in known.items() if get_origin(kind) is Literal}
    public = {
        name: value
        for name, value in arguments.items()
        if name in choices or (name in known and isinstance(value, int | float))
    }
    if name := arguments.get("init_from"):
        is_on_hub = is_hub_name(name) and not arguments.get("init_from_is_local")
        public["init_from"] = _marked_name(name, is_on_hub=is_on_hub)
    return public


def _public_metrics(rows: Iterable[dict]) -> list[dict]:
    """The finite numbers of each logged step, without its sample of text."""
    return [
        {key: value for key, value in row.items() if isinstance(value, int | float)}
        for row in rows
        if all(key in row for key in ROW_KEYS)
    ]


def _best_step(run: Path) -> int | None:
    """What the newest checkpoint says of it; the log also has lines of weights that are gone."""
    if (checkpoint := find_checkpoint(run)) is None:
        return None
    best = read_json(checkpoint / STATE_NAME).get("best")
    step = best.get("step") if isinstance(best, dict) else None
    return step if isinstance(step, int) else None


def _read_data(run: Path, arguments: dict) -> DataRecord | None:
    """The data of the run, None if the run has no copy of a manifest.

    Raises:
        RecordsError: if there is one that cannot be read.
    """
    try:
        manifests = run_manifests(run)
        shares = _shares(arguments, len(manifests))
        return _data_record(manifests, shares) if manifests else None
    except ShardError as error:
        raise RecordsError(str(error)) from error
    except KeyError:  # somebody wrote it, and it does not say what it was made from
        return None


def _shares(arguments: dict, n_sources: int) -> list[float | None]:
    """The weight of each source in a mixture, None where each is taken as large as it is."""
    try:
        weights = [weight for _, weight in parse_mixture(str(arguments["data"]), flag="--data")]
    except (LookupError, ValueError):
        weights = []
    return weights if len(weights) == n_sources else [None] * n_sources


def _data_record(manifests: Sequence[Manifest], shares: Sequence[float | None]) -> DataRecord:
    """What one data set, or several with these shares, are made from."""
    sources = [
        SourceRecord(
            name=public_name(str(source["name"])),
            is_named=source["name"] in NAMED_CORPORA,
            is_on_hub=is_source_on_hub(source),
            subset=source.get("subset"),
            weight=weight,
        )
        for manifest, share in zip(manifests, shares, strict=True)
        for source, weight in _weighted(sources_of(manifest), share, is_alone=len(manifests) == 1)
    ]
    splits = {name: None for manifest in manifests for name in manifest.splits}
    for name in splits:
        parts = [manifest.splits[name] for manifest in manifests if name in manifest.splits]
        totals = (sum(getattr(part, total) for part in parts) for total in TOTALS)
        splits[name] = Split(*totals, shards=())
    tokenizer = manifests[0].tokenizer["name"]  # the same for all
    is_known = tokenizer in (GPT2, BYTES) or tokenizer.startswith(TRAINED_PREFIX)
    return DataRecord(
        sources=tuple(sources),
        tokenizer=_marked_name(tokenizer, is_on_hub=is_known or is_hub_name(tokenizer)),
        splits=splits,
        is_weighted=shares != [None] * len(shares),
    )


def _weighted(
    sources: Sequence[dict], share: float | None, *, is_alone: bool
) -> Iterator[tuple[dict, float | None]]:
    """A data set's sources, each with its share of all text; None where that is not known."""
    for source in sources:
        weight = source.get("weight")
        if weight is None and len(sources) == 1:
            weight = 1.0
        if not is_alone:
            weight = None if share is None or weight is None else share * weight
        elif len(sources) == 1:
            weight = None  # the only one
        yield source, weight
