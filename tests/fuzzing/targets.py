"""Which files are damaged, how, which command reads them, and what its result is."""

import dataclasses
from dataclasses import dataclass, field

from fuzzing.mutations import (
    BINARY,
    JSON,
    JSON_LINES,
    SAFETENSORS,
    TEXT_LINES,
    YAML,
    Family,
)
from fuzzing.workshop import CHECKPOINT, PREPARATION, TRAINING

from modeling_gpt2scratch.training.configuration import TrainConfig

CARD = ("--repository", "me/mine", "--dry_run", "out")


@dataclass(frozen=True)
class Command:
    """Words of a shell, and the files that are its result; without any it is what is printed."""

    words: tuple[str, ...]
    inputs: tuple[str, ...]  # what it reads, of all that there is
    outputs: tuple[str, ...] = ()
    without: tuple[str, ...] = ()  # files that are not there before: others would be read instead
    draws: bool = False  # pictures; they take longer than all the rest


@dataclass(frozen=True)
class Target:
    """A file, the command that reads it, and what may happen to it."""

    file: str
    command: str
    families: tuple[Family, ...]
    n: int  # mutations
    # What cannot be noticed: fields, lines or bytes, and why.
    unnoticed: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()  # what a message may name in place of the file
    header_bytes: int = 0  # that say what the other bytes are; nothing of them changes unnoticed

    def __str__(self) -> str:
        return f"{self.command} < {self.file}"


def _python(script: str, *words: str) -> tuple[str, ...]:
    return ("python", script, *words)


def _ours(*words: str) -> tuple[str, ...]:
    return ("gpt2scratch", *words)


def _adopt(directory: str) -> Command:
    words = _ours("shards", "adopt", directory, "--tokenizer", "data")
    return Command(words, ("data", directory), (f"{directory}/manifest.json",))


def _prepare(file: str) -> Command:
    words = _python("prepare_data.py", "prepare.yaml", "--dataset", file)
    return Command(words, ("data", "prepare.yaml", file), ("out/*.bin", "out/tokenizer*"))


# What cannot be noticed, because nothing else says what the file held, and why.
NO_CHECKSUM = "text carries no checksum: other text is other documents"
TEXT = dict.fromkeys(("bytes", "lines", "text", "twice"), NO_CHECKSUM)
COMPRESSED = {"twice": "compressed files one behind the other are one file of both, by the formats"}
WISH = "what a recipe says is what the user wants; another value is another run"
IDS = {"bytes": "the format has no checksum: another id of the vocabulary is another token"}
RAW_IDS = IDS | {"twice": "a file without a header has as many ids as it has room for"}
FLOATS = {"bytes": "the format has no checksum: another number is another weight"}
TENSORS = {
    "tensors": "safetensors have no checksum: another number is another weight",
    "header.*.data_offsets.*": "two tensors of one shape that change places are two other tensors",
}
NO_RECORD = "a log has no checksum: a number may be another, and a line or a number may be missing"
LOGGED = dict.fromkeys(
    (
        *(
            "lines",
            "step",
            "sample",
            "loss",
            "eval_loss",
            "grad_norm",
            "learning_rate",
            "tokens",
            "elapsed_seconds",
        ),
        *("tokens_per_second", "data_wait", "peak_resident_memory_gib", "save_stall_seconds"),
    ),
    NO_RECORD,
) | {"another name": "a log may hold other numbers: the scores of any task have its name"}
MACHINE = dict.fromkeys(
    (
        *("accelerate", "commit", "device", "gpt2scratch", "mixed_precision", "processes"),
        *("python", "torch", "transformers"),
    ),
    "nothing else says on what machine a run was",
)
ARGUMENTS = dict.fromkeys(
    {field.name for field in dataclasses.fields(TrainConfig)},
    "nothing else says with what arguments a run was started",
)
MEASURED = "nothing else says what was measured, and how"
RECORD = {
    "models.*.results.*.*,none": MEASURED,
    "models.*.results.*.sample_len": "n-samples says it, too",
    "models.*.n-samples.*": MEASURED,
    "models.*.higher_is_better.*": MEASURED,
    "models.*.config.*": MEASURED,
    "models.*.model_sha256*": "the card does not need the files of other models",
    "*date": MEASURED,
}
RECORD |= {f"models.*.configs.*.{key}": MEASURED for key in ("data_status", "num_fewshot")}
RECORD |= {f"models.*.configs.*.{key}": MEASURED for key in ("dataset_path", "dataset_revision")}
RECORD |= {f"models.*.configs.*.{key}": MEASURED for key in ("official_dataset", "protocol")}
RECORD |= {f"models.*.configs.*.{key}": MEASURED for key in ("samples", "sha256", "metadata")}
RECORD |= {f"arguments.{key}": MEASURED for key in ("tasks", "tasks.*", "limit", "batch_tokens")}
RECORD |= {f"arguments.{key}": MEASURED for key in ("device", "dtype", "val_data")}
RECORD |= {f"{program}_version": MEASURED for program in ("python", "torch", "transformers")}
COUNTS = {
    "splits.*.n_bytes": "the bytes of the text are not in the shards",
    "splits.val": "data may have no validation split; `verify` finds shards that nobody lists",
    "tokenizer.name": "a name is any text; the fingerprint decides",
    "arguments.*": "nothing else says with what arguments the data were prepared",
}
UNREAD = {"*.sha256": "only `verify` and a training with --verify full read all of the shards"}
UNREAD |= {"tokenizer.fingerprint": "`inspect` loads no tokenizer"} | COUNTS
UNREAD |= {"splits.*.n_documents": "only `verify` counts the documents"}
ANOTHER_MODEL = "any program may read a model, which has no checksum; this one is another model"
CONFIG = dict.fromkeys(
    ("activation_function", "bos_token_id", "dtype", "eos_token_id", "initializer_range"),
    ANOTHER_MODEL,
)
CONFIG |= dict.fromkeys(
    ("layer_norm_epsilon", "n_head", "pad_token_id", "*_pdrop", "use_cache"), ANOTHER_MODEL
)
ANOTHER_TOKENIZER = {
    "model.vocab.*": "nothing else says what tokenizer it was; this one is another",
    "post_processor.*": "what it adds to a text is not asked for",
}
# What stands in a message for the file.
BY_ARGUMENT, BY_TOKENIZER = (": --",), ("tokenizer beside the shards",)
BY_NAME = (*BY_ARGUMENT, "gpt2: ")  # which is the tokenizer where a recipe names none
BY_SHARDS = (".bin: ", *BY_TOKENIZER)  # where these contradict the manifest

RESULT_OF_TRAINING = ("run/model.safetensors", "run/tokenizer.json")
LATER = ("run/checkpoint-2", "run/model.safetensors", "run/results.json", "run/latest")
TRAIN = (
    _python("train_accelerate.py", "train.yaml", "--output_dir", "new", "--max_steps", "1"),
    ("data", "train.yaml"),
)
NEW = ("new/model.safetensors",)
VAL = ("--tasks", "val", "--val_data", "data", "--no_cache", "--output_dir", "out")
COMMANDS = {
    "verify": Command(_ours("shards", "verify", "data"), ("data",)),
    "inspect": Command(_ours("shards", "inspect", "data"), ("data",)),
    "inspect npy": Command(
        _ours("shards", "inspect", "npy", "--tokenizer", "data"), ("data", "npy")
    ),
    "inspect llm.c": Command(
        _ours("shards", "inspect", "llm.c", "--tokenizer", "data"), ("data", "llm.c")
    ),
    "data to llm.c": Command(
        _ours("shards", "convert", "data", "out", "--to", "llm.c"), ("data",), ("out/*",)
    ),
    "npy to ours": Command(
        _ours("shards", "convert", "npy", "out", "--to", "ours", "--tokenizer", "data"),
        ("data", "npy"),
        ("out/*",),
    ),
    "adopt npy": _adopt("npy"),
    "adopt llm.c": _adopt("llm.c"),
    "adopt nanogpt": _adopt("nanogpt"),
    "publish data": Command(
        _ours("shards", "publish", "--data", "data", *CARD), ("data",), ("out/*",)
    ),
    "train": Command(*TRAIN, NEW),
    "train full": Command((*TRAIN[0], "--verify", "full"), TRAIN[1], NEW),
    "train from stock": Command((*TRAIN[0], "--init_from", "stock"), (*TRAIN[1], "stock"), NEW),
    "resume": Command(
        _python("train_accelerate.py", "train.yaml", "--resume", "auto"),
        ("data", "run", "train.yaml"),
        RESULT_OF_TRAINING,
        LATER,
    ),
    "prepare": _prepare("texts.jsonl"),
    "prepare txt": _prepare("texts.txt"),
    "prepare csv": _prepare("texts.csv"),
    "prepare parquet": _prepare("texts.parquet"),
    "prepare gz": _prepare("texts.jsonl.gz"),
    "prepare xz": _prepare("texts.jsonl.xz"),
    "prepare zst": _prepare("texts.jsonl.zst"),
    "to gpt2": Command(_ours("convert", "to-gpt2", "run", "out"), ("run",), ("out/*",)),
    "from nanoGPT": Command(
        _ours("convert", "from-nanogpt", "nanogpt.pt", "out", "--tokenizer", "none"),
        ("nanogpt.pt",),
        ("out/*",),
    ),
    "from llm.c": Command(
        _ours("convert", "from-llmc", "llmc.bin", "out", "--tokenizer", "none"),
        ("llmc.bin",),
        ("out/*",),
    ),
    "sample": Command(_ours("sample", "run", "--prompt", "the", "--max_new_tokens", "4"), ("run",)),
    "compare": Command(_python("evaluate/compare.py", "--models", "run", *VAL), ("data", "run")),
    "report": Command(_ours("report", "--run", "run"), ("run",), ("run/report.md",)),
    "plot": Command(
        _ours("plot", "--runs", "run", "--output", "loss.png"), ("run",), ("loss.png",), draws=True
    ),
    "publish": Command(_ours("publish", "--run", "run", *CARD), ("run",), ("out/*",)),
}

TARGETS = (
    # Data of ours.
    Target("data/train_000000.bin", "verify", BINARY, 90),
    Target("data/val_000000.bin", "train full", BINARY, 10),
    Target("data/train_000000.bin", "data to llm.c", BINARY, 35),
    Target("data/train_000000.bin", "publish data", BINARY, 20),
    Target("data/manifest.json", "verify", JSON, 125, COUNTS, BY_SHARDS),
    Target("data/manifest.json", "train", JSON, 25, UNREAD, BY_SHARDS),
    Target("data/manifest.json", "inspect", JSON, 55, UNREAD, BY_SHARDS),
    Target("data/manifest.json", "data to llm.c", JSON, 55, COUNTS, BY_SHARDS),
    Target("data/manifest.json", "publish data", JSON, 55, COUNTS, BY_SHARDS),
    Target("data/tokenizer.json", "verify", JSON, 55, names=BY_TOKENIZER),
    Target("data/tokenizer.json", "inspect npy", JSON, 35, ANOTHER_TOKENIZER, BY_TOKENIZER),
    Target("data/tokenizer.json", "prepare", JSON, 35, ANOTHER_TOKENIZER, BY_TOKENIZER),
    Target("data/tokenizer_config.json", "train", JSON, 10, names=BY_TOKENIZER),
    # Other programs' data.
    Target("npy/edufineweb_train_000000.npy", "inspect npy", BINARY, 55, IDS, header_bytes=64),
    Target("npy/edufineweb_train_000000.npy", "npy to ours", BINARY, 55, IDS, header_bytes=64),
    Target("npy/edufineweb_train_000000.npy", "adopt npy", BINARY, 35, IDS, header_bytes=64),
    Target("llm.c/fineweb_train_000000.bin", "inspect llm.c", BINARY, 55, IDS, header_bytes=16),
    Target("llm.c/fineweb_train_000000.bin", "adopt llm.c", BINARY, 55, IDS, header_bytes=16),
    Target("nanogpt/train.bin", "adopt nanogpt", BINARY, 35, RAW_IDS),
    # Recipes and texts.
    Target("train.yaml", "train", YAML, 35, dict.fromkeys(TRAINING, WISH), BY_ARGUMENT),
    Target("prepare.yaml", "prepare", YAML, 90, dict.fromkeys(PREPARATION, WISH), BY_NAME),
    Target("texts.jsonl", "prepare", JSON_LINES, 70, TEXT),
    Target("texts.txt", "prepare txt", TEXT_LINES, 20, TEXT),
    Target("texts.csv", "prepare csv", TEXT_LINES, 55, TEXT),
    Target("texts.parquet", "prepare parquet", BINARY, 90),
    Target("texts.jsonl.gz", "prepare gz", BINARY, 55, COMPRESSED),
    Target("texts.jsonl.xz", "prepare xz", BINARY, 35, COMPRESSED),
    Target("texts.jsonl.zst", "prepare zst", BINARY, 55, COMPRESSED),
    # Checkpoints.
    Target(f"{CHECKPOINT}/model.safetensors", "resume", SAFETENSORS, 10),
    Target(f"{CHECKPOINT}/optimizer/state.safetensors", "resume", SAFETENSORS, 10),
    Target(f"{CHECKPOINT}/config.json", "resume", JSON, 10),
    Target(f"{CHECKPOINT}/training_state.json", "resume", JSON, 20),
    Target(f"{CHECKPOINT}/checksums.json", "resume", JSON, 20),
    Target("run/metrics.jsonl", "resume", JSON_LINES, 15, LOGGED),
    Target("run/train_config.json", "resume", JSON, 10, ARGUMENTS),
    # Models.
    Target(
        "run/model.safetensors",
        "to gpt2",
        SAFETENSORS,
        60,
        TENSORS,
        ("config.json", "tensors of", "finite weights"),
    ),
    Target(
        "run/model.safetensors",
        "sample",
        SAFETENSORS,
        15,
        TENSORS,
        ("config.json", "tensors of", "finite weights"),
    ),
    Target(
        "run/model.safetensors",
        "publish",
        SAFETENSORS,
        15,
        TENSORS,
        ("config.json", "tensors of", "finite weights"),
    ),
    Target("run/config.json", "to gpt2", JSON, 60, CONFIG),
    Target("run/config.json", "sample", JSON, 30, CONFIG, ("tensors of",)),
    Target("run/config.json", "compare", JSON, 20, CONFIG),
    Target("run/tokenizer.json", "sample", JSON, 30),
    Target("run/tokenizer.json", "publish", JSON, 30),
    Target("stock/config.json", "train from stock", JSON, 15, CONFIG),
    Target(
        "stock/model.safetensors",
        "train from stock",
        SAFETENSORS,
        15,
        TENSORS,
        ("config.json", "tensors of", "the weights"),
    ),
    Target("nanogpt.pt", "from nanoGPT", BINARY, 105),
    Target("llmc.bin", "from llm.c", BINARY, 70, FLOATS),
    # Records.
    Target("run/metrics.jsonl", "report", JSON_LINES, 50, LOGGED),
    Target("run/metrics.jsonl", "plot", JSON_LINES, 20, LOGGED),
    Target("run/train_config.json", "report", JSON, 30, ARGUMENTS),
    Target("run/environment.json", "publish", JSON, 30, MACHINE),
    Target("run/results.json", "publish", JSON, 40, RECORD),
    Target("run/data_manifest.json", "publish", JSON, 30, COUNTS),
    Target("run/results.json", "compare", JSON, 5, RECORD),
)
