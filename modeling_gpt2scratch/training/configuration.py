"""The arguments of `train_accelerate.py`, which it reads before it loads torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from modeling_gpt2scratch.common.addresses import redact_fields, split_revision
from modeling_gpt2scratch.common.command_line import ADDRESS, GIVEN, ArgumentError, argument
from modeling_gpt2scratch.common.output_directory import Marker

from .checks import EVAL_TASKS, check_arguments, check_output_dir
from .sizes import MODEL_SIZES, SIZES

RUN_CONFIG_NAME = "train_config.json"
RUN_MARKER = Marker(RUN_CONFIG_NAME, "gpt2scratch-run")

AUTO = "auto"
MAX_STEPS = 19_073  # 10^10 tokens of the default batch
# Headings of `--help`.
RUN, MODEL, DATA, OPTIMIZATION = "run", "model", "data", "optimization"
EVALUATION, CHECKPOINTS, TRACKERS = "evaluation", "checkpoints", "trackers"
HARDWARE, GUARD_RAILS = "hardware", "guard rails"


@dataclass(frozen=True)
class TrainConfig:
    """Every argument of this script. Saved as `train_config.json`."""

    data: str = argument(
        "directory made by prepare_data.py, or its address (hf://datasets/USER/NAME, s3://, "
        "https://), or several with their shares: A:0.7,B:0.3",
        group=RUN,
    )
    output_dir: str = argument("directory of the run, new unless resumed", group=RUN)
    resume: str = argument(
        "none; auto, the newest checkpoint in output_dir; or the directory of a run or of one of "
        "its checkpoints",
        group=RUN,
        default="none",
    )
    overwrite: bool = argument("delete the run in output_dir first", group=RUN, default=False)

    model: Literal["tiny", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = argument(
        "GPT-2's sizes, or 4 layers of 128 channels for tiny", group=MODEL, default="gpt2"
    )
    n_layer: int | None = argument("blocks, instead of the model's", group=MODEL, default=None)
    n_head: int | None = argument(
        "attention heads, instead of the model's", group=MODEL, default=None
    )
    n_embd: int | None = argument("channels, instead of the model's", group=MODEL, default=None)
    n_positions: int | None = argument(
        "longest input, instead of the model's", group=MODEL, default=None
    )
    dropout: float = argument(
        "dropout rate everywhere in the model; use 0 for one epoch", group=MODEL, default=0.0
    )
    init_from: str | None = argument(
        "directory or Hub name (OWNER/NAME or OWNER/NAME@REVISION) of a GPT-2 whose weights "
        "training starts from; its sizes replace --model",
        group=MODEL,
        default=None,
    )

    sequence_length: int | None = argument(
        "tokens per row; n_positions if not given", group=DATA, default=None
    )
    document_mask: bool = argument(
        "documents of a row do not attend to each other", group=DATA, default=False
    )
    shuffle_shards: int | None = argument(
        "shards of a group within which rows are shuffled, 0 for all together; if not given, 0 for "
        "local and 8 for remote data",
        group=DATA,
        default=None,
    )
    verify: Literal["fast", "full"] = argument(
        "before the first step: sizes and headers of all shards, or checksums and ids as well",
        group=DATA,
        default="fast",
    )
    data_cache: str | None = argument(
        "directory for shards of remote data; HF_HOME/gpt2scratch if not given",
        group=DATA,
        default=None,
    )
    data_cache_gb: float = argument(
        "largest size of data_cache, in 10^9 bytes", group=DATA, default=50
    )
    data_retry_seconds: float = argument(
        "seconds to retry remote data before the run ends", group=DATA, default=600
    )

    total_batch_tokens: int = argument(
        "tokens per step of all processes and micro-steps", group=OPTIMIZATION, default=524_288
    )
    max_steps: int | None = argument(
        f"steps (optimizer updates); {MAX_STEPS:,} if not given", group=OPTIMIZATION, default=None
    )
    tokens_per_parameter: float | None = argument(
        "sets max_steps: tokens to read per parameter; about 20 is compute-optimal",
        group=OPTIMIZATION,
        default=None,
    )
    optimizer: Literal["adamw", "muon"] = argument(
        "muon: Muon for the matrices of the blocks, AdamW for everything else",
        group=OPTIMIZATION,
        default="adamw",
    )
    learning_rate: float = argument("peak learning rate", group=OPTIMIZATION, default=6e-4)
    muon_learning_rate: float | None = argument(
        "peak rate of Muon's matrices; learning_rate if not given", group=OPTIMIZATION, default=None
    )
    schedule: Literal["cosine", "wsd", "constant"] = argument(
        "learning rate after warmup; wsd stays at the peak and decays at the end",
        group=OPTIMIZATION,
        default="cosine",
    )
    warmup_steps: int | None = argument(
        "steps of linear warmup; a twenty-fifth of max_steps if not given",
        group=OPTIMIZATION,
        default=None,
    )
    decay_steps: int | None = argument(
        "steps at the end over which wsd decays; a fifth of max_steps if not given",
        group=OPTIMIZATION,
        default=None,
    )
    min_learning_rate: float | None = argument(
        "learning rate at the end, a tenth of the peak if not given; muon_learning_rate falls by "
        "the same factor",
        group=OPTIMIZATION,
        default=None,
    )
    weight_decay: float = argument(
        "weight decay of matrices and embeddings", group=OPTIMIZATION, default=0.1
    )
    max_grad_norm: float = argument(
        "clip the gradient norm to this, 0 for no clipping", group=OPTIMIZATION, default=1.0
    )
    seed: int = argument(
        "random seed of weights, data order and dropout", group=OPTIMIZATION, default=0
    )

    eval_every: int = argument(
        "steps between validations, 0 for never", group=EVALUATION, default=250
    )
    eval_tokens: int = argument(
        "validation tokens to read at most, and at least one row of each source; always the same",
        group=EVALUATION,
        default=10_485_760,
    )
    patience: int = argument(
        "end the run after this many validations without a lower loss, 0 for never",
        group=EVALUATION,
        default=0,
    )
    eval_tasks: list[str] = argument(
        "benchmarks scored during training: lambada, hellaswag, blimp",
        group=EVALUATION,
        default_factory=list,
    )
    eval_tasks_every: int = argument(
        "steps between benchmark scores; 0 scores only at the end", group=EVALUATION, default=0
    )
    eval_tasks_limit: int | None = argument(
        "examples of each benchmark, all if not given", group=EVALUATION, default=None
    )
    lambada_data: str | None = argument(
        "local file instead of the Hub's", group=EVALUATION, default=None
    )
    hellaswag_data: str | None = argument(
        "local file instead of the Hub's", group=EVALUATION, default=None
    )
    blimp_data: str | None = argument(
        "blimp.zip, or the directory of its files, instead of the Hub's",
        group=EVALUATION,
        default=None,
    )

    save_every: int = argument(
        "steps between checkpoints, 0 saves only at the end", group=CHECKPOINTS, default=1000
    )
    keep_checkpoints: int = argument(
        "newest checkpoints to keep, 0 for all", group=CHECKPOINTS, default=3
    )
    keep_every: int = argument(
        "keep each checkpoint whose step is a multiple of this, 0 for none",
        group=CHECKPOINTS,
        default=0,
    )
    keep_best: bool | None = argument(
        "also keep the checkpoint with the lowest validation loss; true for --final best",
        group=CHECKPOINTS,
        default=None,
    )
    final: Literal["last", "best"] = argument(
        "weights in output_dir at the end: the last, or those with the lowest validation loss",
        group=CHECKPOINTS,
        default="last",
    )
    save_in_background: bool = argument(
        "keep training while a checkpoint is written", group=CHECKPOINTS, default=True
    )
    push_to_hub: str | None = argument(
        "OWNER/NAME on the Hub, made if needed, to which push_every uploads checkpoints",
        group=CHECKPOINTS,
        default=None,
    )
    push_every: int = argument(
        "upload a checkpoint every so many steps, and the last one, each as branch step-N; a "
        "multiple of save_every, 0 for none",
        group=CHECKPOINTS,
        default=0,
    )
    private: bool = argument(
        "make the repository of push_to_hub private", group=CHECKPOINTS, default=False
    )

    log_every: int = argument("steps between log lines", group=TRACKERS, default=10)
    report_to: list[str] = argument(
        "trackers beside metrics.jsonl: wandb, tensorboard, trackio",
        group=TRACKERS,
        default_factory=list,
    )
    project: str = argument("project name in the trackers", group=TRACKERS, default="gpt2scratch")

    micro_batch_size: str = argument(
        "rows per process and micro-step, or auto for the most that fit in memory (on a CPU up to "
        "4,096 tokens); FSDP2 and DeepSpeed need a number",
        group=HARDWARE,
        default="16",
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16", "fp8"] = argument(
        "auto: as the Accelerate configuration says, else bf16 on accelerators that have it and "
        "float32 on CPUs",
        group=HARDWARE,
        default="auto",
    )
    tf32: bool = argument(
        "multiply float32 matrices in TF32 on GPUs that support it", group=HARDWARE, default=True
    )
    compile: Literal["no", "model", "blocks"] = argument(
        "torch.compile the whole model, or each block, which compiles faster",
        group=HARDWARE,
        default="no",
    )
    attention: Literal["sdpa", "eager"] = argument(
        "torch's fused attention, or the same in separate steps", group=HARDWARE, default="sdpa"
    )
    activation_checkpointing: bool = argument(
        "recompute activations in the backward pass, to save memory", group=HARDWARE, default=False
    )
    peak_tflops: float | None = argument(
        "dense peak of one device in TFLOP/s, for MFU; from a table if not given",
        group=HARDWARE,
        default=None,
    )
    profile: bool = argument(
        "write a trace of a few steps to output_dir/profile", group=HARDWARE, default=False
    )

    preflight: bool = argument(
        "try forward, backward, save, validation and benchmarks once before the first step",
        group=GUARD_RAILS,
        default=True,
    )
    expect_processes: int | None = argument(
        "stop unless the launch has exactly this many processes", group=GUARD_RAILS, default=None
    )
    expect_parameters: int | None = argument(
        "stop unless the model has exactly this many parameters", group=GUARD_RAILS, default=None
    )
    max_skipped_steps: int = argument(
        "steps without a finite loss and gradient are skipped; this many in a row end the run",
        group=GUARD_RAILS,
        default=10,
    )
    spike_threshold: float = argument(
        "a loss this many standard deviations above the mean of the last 128 is a spike; 0: none",
        group=GUARD_RAILS,
        default=8.0,
    )
    rollback_on_spike: bool = argument(
        "after a spike, return to the last checkpoint and skip the data since then",
        group=GUARD_RAILS,
        default=False,
    )
    timeout_minutes: float = argument(
        "how long a process waits for another before the run ends", group=GUARD_RAILS, default=30.0
    )
    strict: bool = argument(
        "end the run instead of continuing without a tracker or without compilation",
        group=GUARD_RAILS,
        default=False,
    )

    written: ClassVar = "output_dir"  # where no recipe must be
    # What has an effect only beside certain values of another argument, and is refused elsewhere.
    only_with: ClassVar = {
        "model": ("init_from", (None,)),
        **dict.fromkeys(("data_cache", "data_cache_gb", "data_retry_seconds"), ("data", ADDRESS)),
        "muon_learning_rate": ("optimizer", ("muon",)),
        "decay_steps": ("schedule", ("wsd",)),
        "min_learning_rate": ("schedule", ("cosine", "wsd")),
        "eval_tokens": ("eval_every", GIVEN),
        "eval_tasks_every": ("eval_tasks", EVAL_TASKS),
        "eval_tasks_limit": ("eval_tasks", EVAL_TASKS),
        "lambada_data": ("eval_tasks", ("lambada",)),
        "hellaswag_data": ("eval_tasks", ("hellaswag",)),
        "blimp_data": ("eval_tasks", ("blimp",)),
        "keep_every": ("keep_checkpoints", GIVEN),
        "private": ("push_to_hub", GIVEN),
        "project": ("report_to", ("wandb", "trackio")),
    }
    # What a recipe says of its own model holds for no other, and there is one length of a run.
    only_until: ClassVar = {
        **dict.fromkeys(("max_steps", "warmup_steps", "decay_steps"), ("tokens_per_parameter",)),
        "tokens_per_parameter": ("max_steps",),
        "muon_learning_rate": ("learning_rate",),  # who tries another rate means the matrices
        "expect_parameters": ("model", "init_from", *SIZES),
        **dict.fromkeys(("n_layer", "n_head", "n_embd"), ("model", "init_from")),
        "n_positions": ("model",),
    }

    # What a recipe derives from other values gives way to those that were given after it.
    gives_way: ClassVar = ("warmup_steps", "decay_steps", "min_learning_rate", "keep_every")

    def __post_init__(self):
        redact_fields(self)
        self._set(micro_batch_size=_micro_batch_size(self.micro_batch_size))
        for name in ("eval_tasks", "report_to"):
            if getattr(self, name) == ["none"]:
                self._set(**{name: []})
        self._fill_in(keep_best=self.final == "best")
        if self.init_from:
            split_revision(self.init_from)  # refuses a directory with a revision
        sizes = _initial_sizes(self) if self.init_from else MODEL_SIZES[self.model]
        self._fill_in(**sizes, min_learning_rate=self.learning_rate / 10)
        self._fill_in(sequence_length=self.n_positions, muon_learning_rate=self.learning_rate)
        if self.tokens_per_parameter is None:  # else it takes the vocabulary to know the steps
            self._fill_in(max_steps=MAX_STEPS)
            self._fill_in(
                warmup_steps=self.max_steps // 25, decay_steps=max(1, self.max_steps // 5)
            )
        check_arguments(self)
        self._set(output_dir=str(check_output_dir(self, RUN_MARKER)))

    def _set(self, **values) -> None:
        """Values in place of those that were given, before anybody has seen them."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _fill_in(self, **values) -> None:
        """Values for what was not given."""
        self._set(**{name: value for name, value in values.items() if getattr(self, name) is None})

    def identity(self) -> dict:
        """What decides the loss curve apart from the data and the schedule, fixed within a run."""
        return {
            "model": {name: getattr(self, name) for name in SIZES},
            "init_from": True if self.init_from else None,  # from where no longer matters
            "sequence_length": self.sequence_length,
            "total_batch_tokens": self.total_batch_tokens,
            "dropout": self.dropout,
            "seed": self.seed,
            "optimizer": None if self.optimizer == "adamw" else self.optimizer,
        }


def _initial_sizes(config: TrainConfig) -> dict[str, int]:
    """Sizes of the weights to start from, or to go on from; only positions can be left out."""
    from .initial_weights import InitialWeightsError, starting_config  # loads torch

    try:
        source, start = starting_config(
            config.init_from, resume=config.resume, output_dir=config.output_dir
        )
    except InitialWeightsError as error:
        raise ArgumentError("init_from", problem=str(error)) from None
    sizes = {name: getattr(start, name) for name in SIZES}
    for name, stored in sizes.items():
        found = getattr(config, name)
        if found not in (None, stored) and not (name == "n_positions" and found < stored):
            bound = "of at most" if name == "n_positions" else "of"
            problem = f"expected {name} {bound} {stored}, as in config.json of {source}, found"
            raise ArgumentError(name, "init_from", problem=f"{problem} {found}; leave it out")
    return sizes


def _micro_batch_size(value: str | int) -> str | int:
    """The number that the text says, or "auto"; the parser knows no field of two types."""
    if value != AUTO and (not str(value).isdecimal() or int(value) == 0):
        problem = f"expected a number above 0 or {AUTO}, found {value}"
        raise ArgumentError("micro_batch_size", problem=problem)
    return value if value == AUTO else int(value)
