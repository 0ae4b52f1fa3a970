"""Compare language models on tasks: one Markdown table on stdout, one results.json.

    python evaluate/compare.py --models runs/quickstart --tasks val --val_data data/docstrings

Exit code 0 if every model has every number, 1 if a cell of the table says why it has none, 2 for
bad arguments.
"""

import sys
from collections.abc import Sequence

PROGRAM = "compare.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a whole comparison; `argv` defaults to the command line."""
    from modeling_gpt2scratch.common.console import activity, readable_output
    from modeling_gpt2scratch.common.interruptions import Interruptible, started_as
    from modeling_gpt2scratch.common.threads import let_waiting_threads_rest

    with readable_output(), Interruptible(PROGRAM) as ctrl_c:
        let_waiting_threads_rest()  # before numpy is loaded
        # `--help` and mistakes need not wait for torch.
        from modeling_gpt2scratch.common.output_directory import OutputError
        from modeling_gpt2scratch.evaluation.configuration import parse_arguments, refuse

        command = started_as()
        ctrl_c.advice = lambda: f"go on with: {command}"
        config, output_dir = parse_arguments(argv, description=__doc__)
        with ctrl_c.ending_at_once(), activity("loading torch and transformers"):
            from modeling_gpt2scratch.distributed.processes import LaunchError
            from modeling_gpt2scratch.evaluation.comparison import run_comparison

        try:
            return run_comparison(config, output_dir)
        except (OutputError, LaunchError) as error:
            refuse(str(error))


if __name__ == "__main__":
    sys.exit(main())
