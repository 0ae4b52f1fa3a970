"""Pre-trains a GPT-2: `accelerate launch train_accelerate.py recipes/quickstart.yaml`.

The same script runs on one CPU core, one GPU or many nodes, with replicas or with shards of the
model; only the Accelerate configuration differs. Without dropout, losses do not depend on the
number of processes. A run can be stopped at any moment and continued with `--resume auto`.
"""

import os
import sys
from pathlib import Path

PROGRAM = "train_accelerate.py"


def main() -> None:
    """Parses, trains, and turns what is wrong with the input into one line and an exit code."""
    from modeling_gpt2scratch.common.console import activity, readable_output, tell
    from modeling_gpt2scratch.common.interruptions import Interruptible
    from modeling_gpt2scratch.common.threads import let_waiting_threads_rest

    with readable_output(), Interruptible(PROGRAM) as ctrl_c:
        let_waiting_threads_rest()  # before numpy is loaded
        # `--help` and mistakes need not wait for torch.
        from modeling_gpt2scratch.common.command_line import parse_config, with_place
        from modeling_gpt2scratch.common.errors import MendableError, in_words
        from modeling_gpt2scratch.training.configuration import TrainConfig
        from modeling_gpt2scratch.training.continuation import continuing_command

        config = parse_config(TrainConfig, description=__doc__)
        command = continuing_command(config)
        ctrl_c.advice = lambda: f"go on with: {command()}"
        with ctrl_c.ending_at_once(), activity("loading torch and transformers"):
            from modeling_gpt2scratch.distributed.processes import LaunchError
            from modeling_gpt2scratch.reports.run_page import report_at_end
            from modeling_gpt2scratch.training.loop import train

        try:
            end = train(config)
        except (MendableError, OSError) as error:
            if not ctrl_c.was_pressed and is_speaker(error):
                tell(f"{PROGRAM}: error: {with_place(in_words(error))}", file=sys.stderr)
            sys.exit(2 if isinstance(error, LaunchError) else 1)
        if end == "finished" and os.environ.get("RANK", "0") == "0":
            with activity("writing the report"):
                line = report_at_end(Path(config.output_dir))
            tell(line)


def is_speaker(error: Exception) -> bool:
    """Whether this process tells the user about an error that others have, too."""
    # Before the processes have found each other, one of each machine speaks.
    return getattr(error, "is_first", os.environ.get("LOCAL_RANK", "0") == "0")


if __name__ == "__main__":
    main()
