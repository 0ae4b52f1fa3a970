"""The arguments of `train_accelerate.py`, and the sizes a model can have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .atomic_files import require_free
from .command_line import argument, check_numbers
from .initial_weights import SIZES, stored_sizes
from .mixture import parse_mixture

CONFIG_NAME = "train_config.json"

# Sizes of Radford et al. 2019, table 2, and one for a laptop core.
MODEL_SIZES = {
    "tiny": {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 256},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "n_positions": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "n_positions": 1024},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "n_positions": 1024},
}

# Fields by their range.
POSITIVE = (
    *("n_layer", "n_head", "n_embd", "n_positions", "sequence_length", "total_batch_tokens"),
    *("max_steps", "learning_rate", "muon_learning_rate", "max_grad_norm", "log_every"),
    *("eval_tokens", "eval_tasks_limit", "data_cache_gb", "data_retry_seconds"),
    *("decay_steps", "max_skipped_steps", "timeout_minutes", "peak_tflops"),
    *("expect_processes", "expect_parameters"),
)
NON_NEGATIVE = (
    *("min_learning_rate", "warmup_steps", "weight_decay", "dropout", "seed", "eval_every"),
    *("eval_tasks_every", "save_every", "keep_checkpoints", "keep_every", "shuffle_shards"),
    "spike_threshold",
)
AUTO = "auto"
EVAL_TASKS = ("lambada", "hellaswag")
TRACKERS = ("wandb", "tensorboard", "trackio")


@dataclass(frozen=True)
class TrainConfig:
    """Every argument of this script. Saved as `train_config.json`."""

    data: str = argument(
        "directory made by prepare_data.py, or its address (hf://datasets/USER/NAME, s3://, "
        "https://), or several with their shares: A:0.7,B:0.3"
    )
    output_dir: str = argument("directory of the run, new unless resumed")
    model: Literal["tiny", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = argument(
        "sizes to start from", default="gpt2"
    )
    n_layer: int | None = argument("blocks, instead of the model's", default=None)
    n_head: int | None = argument("attention heads, instead of the model's", default=None)
    n_embd: int | None = argument("channels, instead of the model's", default=None)
    n_positions: int | None = argument("longest input, instead of the model's", default=None)
    sequence_length: int | None = argument("tokens per row; n_positions if not given", default=None)
    total_batch_tokens: int = argument(
        "tokens per step, all processes and micro-steps together", default=524_288
    )
    micro_batch_size: str = argument(
        "rows per process and micro-step, or auto for the most that fit in memory", default="16"
    )
    max_steps: int = argument("optimizer updates", default=19_073)
    optimizer: Literal["adamw", "muon"] = argument(
        "muon: Muon for the matrices of the blocks, AdamW for everything else", default="adamw"
    )
    learning_rate: float = argument("peak", default=6e-4)
    muon_learning_rate: float | None = argument(
        "peak for Muon's matrices; learning_rate if not given", default=None
    )
    schedule: Literal["cosine", "wsd", "constant"] = argument(
        "of the learning rate after its warmup; wsd stays at the peak and decays at the end",
        default="cosine",
    )
    decay_steps: int | None = argument(
        "last optimizer updates, over which wsd decays; a fifth of max_steps if not given",
        default=None,
    )
    min_learning_rate: float | None = argument(
        "at the last step; a tenth of the peak if not given", default=None
    )
    warmup_steps: int | None = argument(
        "optimizer updates of linear warmup; a twenty-fifth of max_steps if not given", default=None
    )
    weight_decay: float = argument("of matrices and embeddings", default=0.1)
    max_grad_norm: float = argument("gradients are clipped to it", default=1.0)
    dropout: float = argument("everywhere in the model; 0 for one epoch", default=0.0)
    seed: int = argument("of weights, data order and dropout", default=0)
    shuffle_shards: int | None = argument(
        "shards of a group within which rows are shuffled, 0 for all together; if not given, 0 for "
        "local and 8 for remote data",
        default=None,
    )
    document_mask: bool = argument("documents of a row do not see each other", default=False)
    verify: Literal["fast", "full"] = argument(
        "before the first step: sizes and headers of all shards, or checksums and ids as well",
        default="fast",
    )
    data_cache: str | None = argument(
        "directory for shards of remote data; HF_HOME/gpt2scratch if not given", default=None
    )
    data_cache_gb: float = argument("its size at most, in 10^9 bytes", default=50)
    data_retry_seconds: float = argument(
        "how long remote data are asked for again before a run ends", default=600
    )
    init_from: str | None = argument(
        "directory or Hub name of a GPT-2 whose weights training starts from; sizes are then its",
        default=None,
    )
    eval_every: int = argument("steps between validations, 0 for never", default=250)
    eval_tokens: int = argument("validation tokens at most, always the same", default=10_485_760)
    eval_tasks: list[str] = argument(
        "benchmarks scored during training: lambada, hellaswag", default_factory=list
    )
    eval_tasks_every: int = argument(
        "steps between these, 0 for after the last step only", default=0
    )
    eval_tasks_limit: int | None = argument("examples of each, all if not given", default=None)
    lambada_data: str | None = argument("local file in place of the Hub's", default=None)
    hellaswag_data: str | None = argument("local file in place of the Hub's", default=None)
    save_every: int = argument("steps between checkpoints, 0 for the last only", default=1000)
    keep_checkpoints: int = argument("newest checkpoints to keep, 0 for all", default=3)
    keep_every: int = argument(
        "checkpoints of every so many steps are kept for good, 0 for none", default=0
    )
    save_in_background: bool = argument("train on while a checkpoint is written", default=True)
    log_every: int = argument("steps between log lines", default=10)
    resume: str = argument("none, auto (newest checkpoint of output_dir) or a DIR", default="none")
    max_skipped_steps: int = argument(
        "steps in a row without a finite loss and gradient, which are skipped, before the run ends",
        default=10,
    )
    spike_threshold: float = argument(
        "standard deviations above the recent losses that make a loss a spike, 0 for none",
        default=8.0,
    )
    rollback_on_spike: bool = argument(
        "return to the last checkpoint after a spike, and leave its data out", default=False
    )
    timeout_minutes: float = argument(
        "how long a process waits for another before the run ends", default=30.0
    )
    preflight: bool = argument(
        "try forward, backward, save and validation on one batch before the first step",
        default=True,
    )
    expect_processes: int | None = argument("refuse another number of processes", default=None)
    expect_parameters: int | None = argument("refuse another number of parameters", default=None)
    report_to: list[str] = argument(
        "trackers beside metrics.jsonl: wandb, tensorboard, trackio", default_factory=list
    )
    project: str = argument("of the run in its trackers", default="gpt2scratch")
    strict: bool = argument(
        "end the run where it would go on without a tracker or without compilation", default=False
    )
    mixed_precision: Literal["auto", "no", "bf16", "fp8"] = argument(
        "auto: the Accelerate configuration's, else bf16 where the device has it", default="auto"
    )
    tf32: bool = argument("multiply float32 matrices in TF32 on GPUs that can", default=True)
    compile: Literal["no", "model", "blocks"] = argument(
        "torch.compile the whole model, or each block, which takes less time", default="no"
    )
    activation_checkpointing: bool = argument(
        "compute activations of the blocks again on the way back, to save memory", default=False
    )
    peak_tflops: float | None = argument(
        "dense peak of one device, for its utilisation; from a table if not given", default=None
    )
    profile: bool = argument("write a trace of a few steps to output_dir/profile", default=False)
    overwrite: bool = argument("delete the run in output_dir first", default=False)

    def __post_init__(self):
        sizes = stored_sizes(self.init_from) if self.init_from else MODEL_SIZES[self.model]
        for name, size in sizes.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, size)
            elif self.init_from:
                _refuse_another_size(self, name, size)
        if self.sequence_length is None:
            object.__setattr__(self, "sequence_length", self.n_positions)
        if self.min_learning_rate is None:
            object.__setattr__(self, "min_learning_rate", self.learning_rate / 10)
        if self.warmup_steps is None:
            object.__setattr__(self, "warmup_steps", self.max_steps // 25)
        if self.muon_learning_rate is None:
            object.__setattr__(self, "muon_learning_rate", self.learning_rate)
        if self.decay_steps is None:
            object.__setattr__(self, "decay_steps", max(1, self.max_steps // 5))
        object.__setattr__(self, "micro_batch_size", _micro_batch_size(self.micro_batch_size))
        _check_choices(self, "eval_tasks", EVAL_TASKS)
        _check_choices(self, "report_to", TRACKERS)
        parse_mixture(self.data, flag="--data")
        check_numbers(self, positive=POSITIVE, non_negative=NON_NEGATIVE)
        if self.sequence_length > self.n_positions:
            raise ValueError(
                f"expected --sequence_length of at most n_positions={self.n_positions}, "
                f"found {self.sequence_length}; lower it or raise --n_positions"
            )
        if self.n_embd % self.n_head:
            raise ValueError(
                f"expected --n_embd divisible by --n_head, found {self.n_embd} and {self.n_head}"
            )
        if self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"expected --warmup_steps below --max_steps={self.max_steps}, "
                f"found {self.warmup_steps}"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"expected --min_learning_rate of at most --learning_rate={self.learning_rate}, "
                f"found {self.min_learning_rate}"
            )
        if self.dropout >= 1:
            raise ValueError(f"expected --dropout below 1, found {self.dropout}")
        if self.resume == "none":
            require_free(Path(self.output_dir), marker=CONFIG_NAME, overwrite=self.overwrite)

    def identity(self) -> dict:
        """What decides the loss curve apart from the data and the schedule.

        It may not change within a run.
        """
        return {
            "model": {name: getattr(self, name) for name in SIZES},
            "init_from": self.init_from,
            "sequence_length": self.sequence_length,
            "total_batch_tokens": self.total_batch_tokens,
            "dropout": self.dropout,
            "seed": self.seed,
        }


def _refuse_another_size(config: TrainConfig, name: str, stored: int) -> None:
    """Weights have the size that they have; only positions can be left out."""
    found = getattr(config, name)
    if found != stored and not (name == "n_positions" and found < stored):
        bound = f"of at most {stored}" if name == "n_positions" else f"of {stored}"
        raise ValueError(
            f"expected --{name} {bound}, as in --init_from {config.init_from}, found {found}; "
            f"leave it out"
        )


def _micro_batch_size(value: str | int) -> str | int:
    """The number that the text says, or "auto"; the parser knows no field of two types."""
    if value == AUTO:
        return AUTO
    if not str(value).isdecimal() or int(value) == 0:
        raise ValueError(f"expected --micro_batch_size above 0 or {AUTO}, found {value}")
    return int(value)


def _check_choices(config: TrainConfig, name: str, known: tuple[str, ...]) -> None:
    """Refuses a list with a word that is not known; "none" alone stands for an empty list."""
    values = getattr(config, name)
    if values == ["none"]:
        values = []
        object.__setattr__(config, name, values)
    for value in values:
        if value not in known:
            raise ValueError(f"expected --{name} among {', '.join(known)}, found {value!r}")
