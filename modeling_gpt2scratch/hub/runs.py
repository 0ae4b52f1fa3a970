"""Publishes a run: `python -m modeling_gpt2scratch.hub.runs --run DIR --repository you/my-gpt2`.

Model, tokenizer, a model card and the run's records become one commit on the Hugging Face Hub. The
repository is made if it is not there; an existing README.md is replaced. Log in before, with
`hf auth login` or HF_TOKEN. `--dry_run DIR` only writes the files, and needs neither login nor
network.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HTTPError  # of httpx or its successor, by version
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging as transformers_logging

from modeling_gpt2scratch.checkpoints.checkpoint import WEIGHTS_NAME, save_model
from modeling_gpt2scratch.common.atomic_files import new_directory, write_file, write_json
from modeling_gpt2scratch.common.command_line import argument, parse_config
from modeling_gpt2scratch.data.tokens.tokenizer import TokenizerError
from modeling_gpt2scratch.interchange.conversion import ConversionError, read_run
from modeling_gpt2scratch.reports.loss_plot import PlotError, draw_losses
from modeling_gpt2scratch.reports.model_card import PICTURE_NAME, model_card
from modeling_gpt2scratch.reports.records import (
    RESULTS_NAME,
    RecordsError,
    RunRecords,
    read_records,
)
from modeling_gpt2scratch.reports.scores import FOLDER, PREFIX, eval_result_files
from modeling_gpt2scratch.tracking.metrics import METRICS_NAME
from modeling_gpt2scratch.training.configuration import CONFIG_NAME

MODEL_FILES = ("config.json", WEIGHTS_NAME, "tokenizer.json", "tokenizer_config.json")
RECORD_FILES = (CONFIG_NAME, METRICS_NAME, RESULTS_NAME, PICTURE_NAME)  # some runs have them
OWN_EVAL_RESULTS = f"{FOLDER}/{PREFIX}"
SIZES = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
HINTS = {
    401: "the login is not valid; run `hf auth login`",
    403: "this login may not write there; use a token with write access to the repository",
    404: "there is no such user or organization, or this login may not see it",
}


@dataclass(frozen=True)
class PublishConfig:
    """Every argument of this script."""

    run: str = argument("output directory of a finished run")
    repository: str = argument("OWNER/NAME on the Hub, made if needed; its README.md is replaced")
    private: bool = argument("make the repository private", default=False)
    license: str | None = argument("of the weights, by the Hub's name for it", default=None)
    language: str = argument("of the training text, by its ISO 639 code", default="en")
    results: str | None = argument(
        "results.json of evaluate/compare.py; the one in the run if not given", default=None
    )
    dry_run: str | None = argument("write the files to this new directory instead", default=None)

    def __post_init__(self):
        validate_repo_id(self.repository)
        if "/" not in self.repository:
            raise ValueError(f"expected --repository OWNER/NAME, found {self.repository!r}")
        if self.dry_run is not None and (
            not Path(self.dry_run).name or Path(self.dry_run).exists()
        ):
            raise ValueError(f"expected --dry_run to name a new directory, found {self.dry_run!r}")


class PublishError(Exception):
    """A run that cannot be published."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, publishes, and turns what is wrong into one line and an exit code."""
    config = parse_config(PublishConfig, description=__doc__, argv=argv)
    transformers_logging.set_verbosity_error()  # its reports come before our one line
    transformers_logging.disable_progress_bar()
    try:
        publish(config)
    except (PublishError, ConversionError, RecordsError, TokenizerError, OSError) as error:
        sys.exit(f"publishing.py: error: {' '.join(str(error).split())}")


def publish(config: PublishConfig) -> None:
    """Writes the files of the repository and, unless it is a dry run, uploads them."""
    if config.dry_run is not None:
        with new_directory(Path(config.dry_run)) as folder:
            write_repository(config, folder)
        print(f"written, not uploaded: {config.dry_run}")
        return
    if get_token() is None:
        raise PublishError("expected a login at the Hub, found none; run `hf auth login`")
    with tempfile.TemporaryDirectory() as directory:
        write_repository(config, Path(directory))
        url = upload(config, Path(directory))
    print(f"published: {url}")


def write_repository(config: PublishConfig, folder: Path) -> None:
    """Writes what the repository is to hold into an empty directory.

    Raises:
        PublishError, ConversionError, RecordsError, TokenizerError: if the run is not complete, or
            model and tokenizer cannot be loaded.
    """
    run = Path(config.run)
    missing = [name for name in MODEL_FILES if not (run / name).is_file()]
    if missing:
        raise PublishError(f"{run}: expected a finished run, found no {', '.join(missing)}")
    model, tokenizer = read_run(run)
    save_model(model, tokenizer, folder)
    records = read_records(
        run,
        repository=config.repository,
        sizes={"parameters": model.num_parameters()}
        | {name: getattr(model.config, name) for name in SIZES},
        results=Path(config.results) if config.results else None,
    )
    _write_records(records, folder)
    card = model_card(
        records,
        repository=config.repository,
        license=config.license,
        language=config.language,
        has_picture=_draw(records, folder),
    )
    card.save(folder / "README.md")
    for name, text in eval_result_files(records.results, config.repository).items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_file(folder / name, text.encode())


def upload(config: PublishConfig, folder: Path) -> str:
    """Makes one commit of the folder and returns the address of the repository.

    Files of an earlier commit stay, but for records that this run does not have.

    Raises:
        PublishError: if the Hub refuses or cannot be reached.
    """
    api = HfApi()
    repository = config.repository
    try:
        url = api.create_repo(repository, private=config.private or None, exist_ok=True)
        if config.private and api.model_info(repository).private is False:
            raise PublishError(
                f"{repository}: expected a private repository, found a public one; change it in "
                f"its settings or leave out --private"
            )
        paths = (path for path in folder.rglob("*") if path.is_file())
        names = sorted(path.relative_to(folder).as_posix() for path in paths)
        outdated = [
            name
            for name in api.list_repo_files(repository)
            if (name in RECORD_FILES or name.startswith(OWN_EVAL_RESULTS)) and name not in names
        ]
        # Not `upload_folder`, which makes several commits of a large folder.
        api.create_commit(
            repository,
            [CommitOperationAdd(name, folder / name) for name in names]
            + [CommitOperationDelete(name) for name in outdated],
            commit_message="Publish a run of GPT2Scratch",
        )
    except HTTPError as error:
        raise PublishError(f"{repository}: {_reason(error)}") from error
    except (ValueError, RuntimeError) as error:  # metadata that the Hub refuses, or its uploader
        raise PublishError(f"{repository}: {error}") from error
    return str(url)


def _write_records(records: RunRecords, folder: Path) -> None:
    """The public part of what the run wrote down."""
    if records.arguments:
        write_json(folder / CONFIG_NAME, records.arguments)
    if records.metrics:
        lines = "".join(json.dumps(row) + "\n" for row in records.metrics)
        write_file(folder / METRICS_NAME, lines.encode())
    if records.results:
        write_json(folder / RESULTS_NAME, records.results)


def _draw(records: RunRecords, folder: Path) -> bool:
    """Whether there is a picture of the losses, drawn from the records in the folder."""
    if not records.metrics:
        return False
    try:
        draw_losses([folder], folder / PICTURE_NAME)
    except PlotError as error:
        print(f"without {PICTURE_NAME}: {error}")
        return False
    return True


def _reason(error: HTTPError) -> str:
    """What the Hub answered, or why it did not, and what to do about it."""
    response = getattr(error, "response", None)
    if response is None:
        return f"the Hub cannot be reached: {error}"
    status = response.status_code
    answer = getattr(error, "server_message", None) or response.reason_phrase
    hint = "the Hub has a problem, try again later" if status >= 500 else HINTS.get(status)
    return f"the Hub answered {status} {answer}" + (f"; {hint}" if hint else "")


if __name__ == "__main__":
    main()
