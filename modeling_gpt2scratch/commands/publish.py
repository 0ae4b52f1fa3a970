"""Publishes a run: `gpt2scratch publish --run DIR --repository you/my-gpt2`.

Model, tokenizer, a model card and the run's records become one commit on the Hugging Face Hub. The
repository is made if it is not there; an existing README.md is replaced. Log in before, with
`hf auth login` or HF_TOKEN. `--dry_run DIR` only writes the files, and needs neither login nor
network.
"""

from collections.abc import Sequence

from modeling_gpt2scratch.common.command_line import parse_config
from modeling_gpt2scratch.common.errors import ending_in_one_line
from modeling_gpt2scratch.common.interruptions import Interruptible
from modeling_gpt2scratch.hub.configuration import PublishConfig

PROGRAM = "gpt2scratch publish"


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, publishes, and turns what is wrong into one line and an exit code."""
    config = parse_config(PublishConfig, description=__doc__, argv=argv, program=PROGRAM)
    with Interruptible(PROGRAM) as ctrl_c, ctrl_c.ending_at_once():
        from modeling_gpt2scratch.distributed.processes import quiet_transformers
        from modeling_gpt2scratch.hub.runs import publish

    quiet_transformers()
    with ending_in_one_line(PROGRAM):
        place = publish(config)
        print(f"{'published' if config.dry_run is None else 'written, not uploaded'}: {place}")
