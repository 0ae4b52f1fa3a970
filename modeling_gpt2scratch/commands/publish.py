"""Publishes a run: `gpt2scratch publish --run DIR --repository you/my-gpt2`.

Model, tokenizer, a model card and the run's records become one commit on the Hugging Face Hub. The
repository is made if it is not there; an existing README.md is replaced. Log in before, with
`hf auth login` or HF_TOKEN. `--dry_run DIR` only writes the files, and needs neither login nor
network.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from modeling_gpt2scratch.common.command_line import argument, parse_config
from modeling_gpt2scratch.common.output_directory import making, output_directory

PROGRAM = "gpt2scratch publish"


@dataclass(frozen=True)
class PublishConfig:
    """Every argument of this command."""

    run: str = argument("output directory of a finished run")
    repository: str = argument("OWNER/NAME on the Hub, made if needed; its README.md is replaced")
    private: bool = argument("make the repository private", default=False)
    license: str | None = argument("of the weights, by the Hub's name for it", default=None)
    language: str = argument("of the training text, by its ISO 639 code", default="en")
    results: str | None = argument(
        "results.json of evaluate/compare.py; the one in the run if not given", default=None
    )
    dry_run: str | None = argument("write the files to this new directory instead", default=None)

    written: ClassVar = "dry_run"  # where no recipe must be

    def __post_init__(self):
        from modeling_gpt2scratch.common.hub_requests import check_repository

        check_repository(self.repository, flag="--repository")
        if self.dry_run is not None:
            inputs = [self.run, self.results]
            place = output_directory(self.dry_run, inputs=inputs, flag="--dry_run")
            object.__setattr__(self, "dry_run", str(place))


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, publishes, and turns what is wrong into one line and an exit code."""
    config = parse_config(PublishConfig, description=__doc__, argv=argv, program=PROGRAM)
    from transformers.utils import logging as transformers_logging

    from modeling_gpt2scratch.common.errors import file_problem
    from modeling_gpt2scratch.data.tokens.names import TokenizerError
    from modeling_gpt2scratch.hub.runs import PublishError, push_run, write_repository
    from modeling_gpt2scratch.interchange.conversion import ConversionError
    from modeling_gpt2scratch.reports.records import RecordsError

    transformers_logging.set_verbosity_error()  # its reports come before our one line
    transformers_logging.disable_progress_bar()
    run, results = Path(config.run), Path(config.results) if config.results else None
    card = {"license": config.license, "language": config.language, "results": results}
    try:
        if config.dry_run is None:
            print(f"published: {push_run(run, config.repository, private=config.private, **card)}")
            return
        with making(Path(config.dry_run)) as folder:
            write_repository(run, folder, config.repository, **card)
        print(f"written, not uploaded: {config.dry_run}")
    except (PublishError, ConversionError, RecordsError, TokenizerError) as error:
        sys.exit(f"{PROGRAM}: error: {' '.join(str(error).split())}")
    except OSError as error:
        sys.exit(f"{PROGRAM}: error: {file_problem(error)}")
