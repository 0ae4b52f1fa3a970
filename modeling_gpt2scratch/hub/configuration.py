"""The arguments of a publication."""

from dataclasses import dataclass
from typing import ClassVar

from modeling_gpt2scratch.common.command_line import argument
from modeling_gpt2scratch.common.output_directory import output_directory


@dataclass(frozen=True)
class PublishConfig:
    """Every argument of `gpt2scratch publish`."""

    run: str = argument("output directory of a finished run")
    repository: str = argument("OWNER/NAME on the Hub, made if needed; its README.md is replaced")
    private: bool = argument("make the repository private", default=False)
    license: str | None = argument("licence of the weights, by the Hub's name for it", default=None)
    language: str | None = argument(
        "language of the training text, as an ISO 639 code", default=None
    )
    results: str | None = argument(
        "results.json of evaluate/compare.py; the one in the run if not given", default=None
    )
    dry_run: str | None = argument("write the files to this new directory instead", default=None)

    written: ClassVar = "dry_run"  # where no recipe must be

    def __post_init__(self):
        from modeling_gpt2scratch.common.hub_requests import (
            check_language,
            check_license,
            check_repository,
        )

        check_repository(self.repository, flag="--repository")
        check_license(self.license)
        check_language(self.language)
        if self.dry_run is not None:
            inputs = [self.run, self.results]
            place = output_directory(self.dry_run, inputs=inputs, flag="--dry_run")
            object.__setattr__(self, "dry_run", str(place))
