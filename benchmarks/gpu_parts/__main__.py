"""Runs one part: `python -m gpu_parts NAME PLAN`, where PLAN is JSON; see `plan.py`."""

import importlib
import json
import sys

from gpu_parts.plan import Plan, Record


def main() -> None:
    """Runs the part, which writes its own results."""
    name, plan = sys.argv[1], Plan(**json.loads(sys.argv[2]))
    importlib.import_module(f"gpu_parts.{name}").run(plan, Record(plan.result_of(name)))


if __name__ == "__main__":
    main()
