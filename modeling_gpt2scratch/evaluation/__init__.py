"""Scores of causal language models, ours and others', by published protocols.

In: models and the names of tasks. Out: estimates with standard errors, one table, results.json.
`scoring` computes log-likelihoods, `tasks` are the benchmarks, `results` turns scores into files.
"""

import importlib

_HOME_OF = {
    "CausalScorer": "scoring.scorer",
    "CompareConfig": "configuration",
    "DocumentsTask": "tasks.documents",
    "Estimate": "tasks.task",
    "MultipleChoiceTask": "tasks.multiple_choice",
    "Question": "tasks.multiple_choice",
    "SampleData": "tasks.samples",
    "Selection": "tasks.samples",
    "TASKS": "tasks.registry",
    "Task": "tasks.task",
    "TaskResult": "tasks.task",
}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    """Imports a public name on first use, so that tasks need no torch before they run."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
