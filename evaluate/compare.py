"""Compare language models on tasks: one Markdown table on stdout, one results.json.

    python evaluate/compare.py --models out/export gpt2 --tasks val lambada --val_data data/shards

Exit code 0 if every model has every number, 1 if a cell of the table says why it has none, 2 for
bad arguments.
"""

import sys
from collections.abc import Sequence

from modeling_gpt2scratch.evaluation.configuration import parse_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a whole comparison; `argv` defaults to the command line."""
    config, output_dir = parse_arguments(argv, description=__doc__)
    from modeling_gpt2scratch.evaluation.comparison import run_comparison  # and torch with it

    return run_comparison(config, output_dir)


if __name__ == "__main__":
    sys.exit(main())
