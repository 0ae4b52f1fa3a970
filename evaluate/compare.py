"""Compare language models on tasks: one Markdown table on stdout, one results.json.

    python evaluate/compare.py --models out/export gpt2 --tasks val lambada --val_data data/shards

Exit code 0 if every model has every number, 1 if a cell of the table says why it has none, 2 for
bad arguments.
"""

import sys

from modeling_gpt2scratch.evaluation.compare import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__))
