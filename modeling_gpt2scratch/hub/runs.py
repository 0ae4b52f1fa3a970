"""A run as one commit of the Hub: model, tokenizer, model card and records."""

import tempfile
from functools import partial
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from transformers import PreTrainedTokenizerBase

from modeling_gpt2scratch.checkpoints.checkpoint import WEIGHTS_NAME, save_model
from modeling_gpt2scratch.checkpoints.retention import STATE_NAME
from modeling_gpt2scratch.common.atomic_files import write_file, write_json, write_json_lines
from modeling_gpt2scratch.common.console import activity
from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.common.hub_requests import (
    DEFAULT_RETRIES,
    PUSH_HINTS,
    answered,
    make_repository,
    require_login,
    with_retries,
)
from modeling_gpt2scratch.common.output_directory import making
from modeling_gpt2scratch.data.tokens.tokenizer import TOKENIZER_NAME, vocabulary_of
from modeling_gpt2scratch.interchange.conversion import read_run
from modeling_gpt2scratch.reports.loss_plot import PlotError, draw_losses
from modeling_gpt2scratch.reports.measured_records import RESULTS_NAME, read_records
from modeling_gpt2scratch.reports.model_card import PICTURE_NAME, model_card
from modeling_gpt2scratch.reports.records import RunRecords, run_manifests
from modeling_gpt2scratch.reports.scores import FOLDER, PREFIX, eval_result_files
from modeling_gpt2scratch.tracking.metrics import METRICS_NAME
from modeling_gpt2scratch.training.configuration import RUN_CONFIG_NAME

from .configuration import PublishConfig

MODEL_FILES = ("config.json", WEIGHTS_NAME, "tokenizer.json", "tokenizer_config.json")
RECORD_FILES = (RUN_CONFIG_NAME, METRICS_NAME, RESULTS_NAME, PICTURE_NAME)  # some runs have them
# Of an earlier model in the repository, which would decide what is loaded.
OUTDATED_FILES = ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja")
OUTDATED_FILES += ("special_tokens_map.json", "added_tokens.json")
OWN_EVAL_RESULTS = f"{FOLDER}/{PREFIX}"
SIZES = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")


def publish(config: PublishConfig) -> str:
    """Uploads a finished run, or writes what would be uploaded.

    Returns:
        The address of the repository, or with `dry_run` the directory.

    Raises:
        SourceError: if there is no login, or the Hub refuses or cannot be reached.
        ConversionError, RecordsError, TokenizerError: as `write_repository`.
        OSError: if the files cannot be read or written.
    """
    run, results = Path(config.run), Path(config.results) if config.results else None
    card = {"license": config.license, "language": config.language, "results": results}
    if config.dry_run is not None:
        with making(Path(config.dry_run), flag="--dry_run") as folder:
            write_repository(run, folder, config.repository, **card)
        return config.dry_run
    require_login()
    with tempfile.TemporaryDirectory() as directory:
        write_repository(run, Path(directory), config.repository, **card)
        with activity("uploading"):
            return upload(Path(directory), config.repository, private=config.private)


def write_repository(
    run: Path,
    folder: Path,
    repository: str,
    *,
    license: str | None,
    language: str | None,
    results: Path | None,
) -> None:
    """Writes what the repository is to hold into an empty directory.

    Raises:
        SourceError, ConversionError, RecordsError, TokenizerError: if the run is not complete, or
            model and tokenizer cannot be loaded.
    """
    if (run / STATE_NAME).is_file():
        raise SourceError(
            f"{run}: expected a finished run, found a checkpoint, which does not know how it was "
            f"trained; publish the directory of the run"
        )
    missing = [name for name in MODEL_FILES if not (run / name).is_file()]
    if missing:
        raise SourceError(f"{run}: expected a finished run, found no {', '.join(missing)}")
    model, tokenizer = read_run(run)
    save_model(model, tokenizer, folder)
    records = read_records(
        run,
        repository=repository,
        sizes={"parameters": model.num_parameters()}
        | {name: getattr(model.config, name) for name in SIZES},
        results=results,
    )
    _require_tokenizer_of_data(run, tokenizer)
    _write_records(records, folder)
    card = model_card(
        records,
        repository=repository,
        license=license,
        language=language,
        has_picture=_draw(run, records, folder),
    )
    card.save(folder / "README.md")
    for name, text in eval_result_files(records.results, repository).items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_file(folder / name, text.encode())


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Makes one commit of the folder and returns the address of the repository.

    Files of an earlier commit stay, but for records that this run does not have, and for what would
    change the model that is loaded.

    Raises:
        SourceError: if the Hub refuses or cannot be reached.
    """
    api = HfApi()
    call = partial(with_retries, what=repository, retries=DEFAULT_RETRIES, hints=PUSH_HINTS)
    try:
        url = call(partial(make_repository, repository, repo_type="model", private=private))
        paths = (path for path in folder.rglob("*") if path.is_file())
        names = sorted(path.relative_to(folder).as_posix() for path in paths)

        def commit() -> None:
            # Listed at each try: one whose answer was lost may have been made.
            outdated = [
                name
                for name in api.list_repo_files(repository)
                if (name in (*RECORD_FILES, *OUTDATED_FILES) or name.startswith(OWN_EVAL_RESULTS))
                and name not in names
            ]
            operations = [CommitOperationAdd(name, folder / name) for name in names]
            operations += [CommitOperationDelete(name) for name in outdated]
            message = "Publish a run of GPT2Scratch"
            # Not `upload_folder`, which makes several commits of a large folder.
            api.create_commit(repository, operations, commit_message=message)

        call(commit)
    except SourceError:
        raise
    except (ValueError, RuntimeError) as error:  # metadata that the Hub refuses, or its uploader
        raise SourceError(f"{repository}: {answered(error)}") from error
    return url


def _require_tokenizer_of_data(run: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that gives other ids than those that the model was trained on.

    Raises:
        SourceError: if the run has a copy of its data's manifest, and that knows another one.
    """
    for manifest in run_manifests(run)[:1]:  # all sources of a mixture have the same
        expected = manifest.vocabulary
        if (found := vocabulary_of(tokenizer)) != expected:
            raise SourceError(
                f"{run / TOKENIZER_NAME}: expected the tokenizer of the run's data, with entries, "
                f"end of text and fingerprint {expected}, found {found}; copy it from the data or "
                f"from a checkpoint"
            )


def _write_records(records: RunRecords, folder: Path) -> None:
    """The public part of what the run wrote down."""
    if records.arguments:
        write_json(folder / RUN_CONFIG_NAME, records.arguments)
    if records.metrics:
        write_json_lines(folder / METRICS_NAME, records.metrics)
    if records.results:
        write_json(folder / RESULTS_NAME, records.results)


def _draw(run: Path, records: RunRecords, folder: Path) -> bool:
    """Whether there is a picture of the losses, drawn from the run's records in the folder."""
    if not records.metrics:
        return False
    try:
        draw_losses([folder], folder / PICTURE_NAME)
    except PlotError:
        print(f"without {PICTURE_NAME}: {run / METRICS_NAME} has no losses")
        return False
    return True
