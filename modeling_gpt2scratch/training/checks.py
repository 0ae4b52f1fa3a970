"""What the arguments of `train_accelerate.py` must be to each other, and to the machine."""

import os
from pathlib import Path
from typing import Any

from modeling_gpt2scratch.checkpoints.retention import STATE_NAME, checkpoints_by_step
from modeling_gpt2scratch.common.argument_parser import shown
from modeling_gpt2scratch.common.command_line import ArgumentError, check_numbers
from modeling_gpt2scratch.common.output_directory import (
    REPLACE,
    Marker,
    OutputError,
    is_in_use,
    output_directory,
    resolved,
)
from modeling_gpt2scratch.data.shards.manifest import MANIFEST_NAME
from modeling_gpt2scratch.data.sources.mixture import parse_mixture

# Fields by their range.
POSITIVE = (
    *("n_layer", "n_head", "n_embd", "n_positions", "sequence_length", "total_batch_tokens"),
    *("max_steps", "learning_rate", "muon_learning_rate", "log_every"),
    *("eval_tokens", "eval_tasks_limit", "data_cache_gb", "data_retry_seconds"),
    *("decay_steps", "max_skipped_steps", "timeout_minutes", "peak_tflops"),
    *("expect_processes", "expect_parameters", "tokens_per_parameter"),
)
NON_NEGATIVE = (
    *("min_learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "dropout", "seed"),
    "eval_every",
    *("eval_tasks_every", "save_every", "keep_checkpoints", "keep_every", "shuffle_shards"),
    *("spike_threshold", "patience", "push_every"),
)
LEAST_MINUTES = 0.1  # that processes wait for each other; they need seconds to meet
# What none can want, and why.
AT_MOST = {
    "learning_rate": (1.0, "an update of Adam moves every weight by about this much"),
    "muon_learning_rate": (1.0, "an update of Muon moves a matrix by about this much"),
    "weight_decay": (10.0, "weights shrink by learning_rate x weight_decay a step"),
    "timeout_minutes": (44_640.0, "that is a month"),
    "n_layer": (1_000, "no machine has room for more"),
    "n_embd": (2**20, "no machine has room for more"),
    "n_positions": (2**30, "no machine has room for more"),
}
MAX_TOKENS = 2**53  # of a whole run; beyond, floating-point numbers cannot count
CONTENTS = (MANIFEST_NAME, "config.json", STATE_NAME)  # of directories that a run reads
# What shapes the steps and may change within a run.
MAY_CHANGE = (
    *("learning_rate", "muon_learning_rate", "schedule", "warmup_steps", "decay_steps"),
    *("min_learning_rate", "weight_decay", "max_grad_norm", "mixed_precision"),
)
MEASURED_WITH = ("eval_tokens", "eval_tasks_limit")  # losses and scores
EVAL_TASKS = ("lambada", "hellaswag", "blimp")
TRACKERS = ("wandb", "tensorboard", "trackio")


def check_arguments(config: Any) -> None:
    """Refuses a TrainConfig whose run would fail, or be another one than was asked for.

    Args:
        config: with every default filled in.

    Raises:
        ArgumentError: at the first problem.
    """
    check_numbers(config, positive=POSITIVE, non_negative=NON_NEGATIVE)
    for name, (bound, reason) in AT_MOST.items():
        _require(getattr(config, name) <= bound, config, name, f"of at most {bound}: {reason}")
    is_met = config.timeout_minutes >= LEAST_MINUTES
    bound = f"of at least {LEAST_MINUTES}, because processes need seconds to find each other"
    _require(is_met, config, "timeout_minutes", bound)
    _require(config.dropout < 1, config, "dropout", "below 1")
    _check_choices(config, "eval_tasks", EVAL_TASKS)
    _check_choices(config, "report_to", TRACKERS)
    _check_sizes(config)
    _check_schedule(config)
    _check_checkpoints(config)
    _check_data(config)


def check_output_dir(config: Any, marker: Marker) -> Path:
    """The directory of the run, which is new, or may be continued or replaced, and written to.

    Args:
        marker: by which the directory of a run is known.

    Raises:
        ArgumentError: if it must not be written to, or cannot.
    """
    try:
        place = resolved(config.output_dir)
        if is_in_use(place):
            raise OutputError(in_use_message(place))
        resume = "" if config.resume in ("none", "auto") else config.resume
        is_continued = config.resume == "auto" or bool(resume and is_own(Path(resume), place))
        has_checkpoints = bool(checkpoints_by_step(place))
        if config.overwrite and is_continued:
            problem = f"expected --resume {config.resume} or --overwrite, found both; leave one out"
            raise ArgumentError("overwrite", "resume", problem=problem)
        read = [name for name, _ in parse_mixture(config.data, flag="--data")]
        read += [config.init_from, config.lambada_data]
        read += [config.hellaswag_data, config.blimp_data]
        read += [] if is_continued else [resume]
        return output_directory(
            config.output_dir,
            marker=marker,
            overwrite=config.overwrite,
            # Whoever goes on deletes nothing, and checkpoints are a run's as well.
            is_ours=is_continued and (has_checkpoints or marker.difference(place) is None),
            # What is not there, or nothing of its kind, is refused where it is read.
            inputs=filter(_can_be_read, read),
            kept=[*read, config.data_cache],
            is_renamed=False,
            remedy=_remedy(has_checkpoints),
        )
    except OutputError as error:
        raise ArgumentError("output_dir", problem=str(error)) from None


def is_own(checkpoint: Path | None, output_dir: Path) -> bool:
    """Whether a checkpoint, if there is one, is of the run in `output_dir`, or that run itself."""
    place = checkpoint and checkpoint.resolve()
    return place is not None and output_dir.resolve() in (place, place.parent)


def in_use_message(output_dir: Path) -> str:
    """What to say of a directory in which a run is at work."""
    return (
        f"expected no other run in {output_dir}, found one that is still going on; wait for it, "
        f"stop it, or choose another --output_dir"
    )


def _remedy(has_checkpoints: bool) -> str:
    """What to do if a run is in the directory, and is neither continued nor replaced."""
    if _is_restarted():  # which refuses --overwrite
        return "add --resume auto"
    go_on = "add --resume auto to go on with it, or --overwrite to delete it"
    return go_on if has_checkpoints else REPLACE


def _is_restarted() -> bool:
    """Whether the launcher has started this run again, after an attempt that failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def _require(is_met: bool, config: Any, name: str, expected: str, *others: str) -> None:
    """Refuses the value of `name`, which does not go with the others."""
    if not is_met:
        problem = f"expected {name} {expected}, found {shown(getattr(config, name))}"
        raise ArgumentError(name, *others, problem=problem)


def _check_choices(config: Any, name: str, known: tuple[str, ...]) -> None:
    """Refuses a list with a word that is not known, or twice."""
    values = getattr(config, name)
    for value in values:
        if value not in known:
            problem = f"expected some of {', '.join(known)}, or only none, found {value!r}"
            raise ArgumentError(name, problem=problem)
        if values.count(value) > 1:
            raise ArgumentError(name, problem=f"expected each word once, found {value!r} again")


def _check_sizes(config: Any) -> None:
    """Rows fit the model, and steps consist of whole rows."""
    n_positions, n_head, length = config.n_positions, config.n_head, config.sequence_length
    given_by = "init_from" if config.init_from else "n_positions"
    bound = f"of at most n_positions = {n_positions}"
    _require(length <= n_positions, config, "sequence_length", bound, given_by)
    divisor = f"divisible by n_head = {n_head}"
    _require(config.n_embd % n_head == 0, config, "n_embd", divisor, "n_head")
    if config.total_batch_tokens % length:
        nearest = max(1, round(config.total_batch_tokens / length)) * length
        expected = f"divisible by sequence_length = {length}, such as {nearest}"
        _require(False, config, "total_batch_tokens", expected, "sequence_length")


def _check_schedule(config: Any) -> None:
    """The run ends, warmup and decay fit it, and the rate does not rise at its end."""
    peak, max_steps = config.learning_rate, config.max_steps
    bound = f"of at most learning_rate = {peak}"
    is_met = config.min_learning_rate <= peak
    _require(is_met, config, "min_learning_rate", bound, "learning_rate")
    if config.tokens_per_parameter is not None:
        if max_steps is not None:
            problem = "expected max_steps or tokens_per_parameter, found both; leave one out"
            raise ArgumentError("tokens_per_parameter", "max_steps", problem=problem)
        return  # the rest is checked once the number of steps is known
    n_tokens = max_steps * config.total_batch_tokens
    bound = "that make at most 2^53 tokens with total_batch_tokens"
    _require(n_tokens <= MAX_TOKENS, config, "max_steps", bound, "total_batch_tokens")
    bound = f"below max_steps = {max_steps}"
    _require(config.warmup_steps < max_steps, config, "warmup_steps", bound, "max_steps")
    if config.schedule == "wsd":
        left = max_steps - config.warmup_steps
        bound = f"of at most the {left} steps after the warmup"
        is_met = config.decay_steps <= left
        _require(is_met, config, "decay_steps", bound, "max_steps", "warmup_steps")


def _check_checkpoints(config: Any) -> None:
    """Checkpoints that are to be kept, or returned to, will exist."""
    every = config.save_every
    for name in ("keep_every", "push_every"):
        chosen = getattr(config, name)
        is_met = not chosen or (every > 0 and chosen % every == 0)
        reason = (
            f"to be a multiple of save_every = {every}, because no other checkpoints are written"
        )
        _require(is_met, config, name, reason, "save_every")
    _check_push(config)
    _check_overwrite(config)
    reason = "true for final = best, which is that checkpoint"
    is_met = config.keep_best or config.final != "best"
    _require(is_met, config, "keep_best", reason, "final")
    wanted = {"final": config.final == "best", "keep_best": config.keep_best}
    for name, is_wanted in (wanted | {"patience": config.patience > 0}).items():
        if is_wanted:
            reason = f"above 0, because {name} = {shown(getattr(config, name))} needs validations"
            _require(config.eval_every > 0, config, "eval_every", reason, name)
    if config.rollback_on_spike:
        reason = "above 0 for rollback_on_spike"
        _require(every > 0, config, "save_every", reason, "rollback_on_spike")
        is_found = config.spike_threshold > 0
        _require(is_found, config, "spike_threshold", reason, "rollback_on_spike")


def _check_overwrite(config: Any) -> None:
    """A run is not replaced by its own second attempt."""
    if config.overwrite and _is_restarted():
        problem = (
            "expected --resume auto where the launcher starts a run again, found --overwrite, "
            "which would delete the checkpoints of the attempt before"
        )
        raise ArgumentError("overwrite", problem=problem)


def _check_push(config: Any) -> None:
    """What is sent to the Hub has a place there, and the place is for something."""
    if config.push_to_hub is not None:
        from modeling_gpt2scratch.common.hub_requests import check_repository

        check_repository(config.push_to_hub, flag="--push_to_hub")
    if bool(config.push_every) != (config.push_to_hub is not None):
        given = ("push_every", "push_to_hub")
        name, other = given if config.push_every else given[::-1]
        problem = f"expected {other} with {name}, found none; give both or neither"
        raise ArgumentError(name, problem=problem)


def _check_data(config: Any) -> None:
    """Sources can be told apart, files are there, and a stall is not taken for a dead process."""
    try:
        sources = parse_mixture(config.data, flag="--data")
    except ValueError as error:
        raise ArgumentError("data", problem=str(error)) from None
    for name in ("lambada_data", "hellaswag_data", "blimp_data"):
        path, takes_directory = getattr(config, name), name == "blimp_data"
        if path and not (Path(path).is_file() or (takes_directory and Path(path).is_dir())):
            kind = "file or directory" if takes_directory else "file"
            raise ArgumentError(name, problem=f"expected an existing {kind}, found none: {path}")
    is_remote = any("://" in address for address, _ in sources)
    if is_remote and config.timeout_minutes * 60 <= config.data_retry_seconds:
        problem = (
            f"expected timeout_minutes above data_retry_seconds / 60 = "
            f"{config.data_retry_seconds / 60:g}, found {config.timeout_minutes:g}; while one "
            f"process waits for data, the others wait for it"
        )
        raise ArgumentError("timeout_minutes", "data_retry_seconds", problem=problem)


def _can_be_read(name: str | None) -> bool:
    """Whether this is a directory of data, of a model or of a run."""
    return name is not None and any(Path(name, content).is_file() for content in CONTENTS)
