"""The page of a day, in Markdown, from its JSON."""

from collections.abc import Callable
from typing import Any

from tabulate import tabulate

GOALS = {
    "steps": "Goals: at least 500,000 tokens/s, and at least 1.0 times the best peer.",
    "training": "Goal: more than 16.03 % on `lambada_standard`.",
}
HEADINGS = {
    "machine": "The machine and its tests",
    "data": "The data",
    "steps": "The training step, 124M",
    "losses": "The loss alone",
    "training": "A training of a few minutes",
    "scoring": "Evaluation and generation",
    "larger_steps": "The training step, 355M",
}
TITLE = "# A day on a GPU"
SMOKE = "> A smoke test with tiny sizes: the numbers say nothing.\n"


def page(content: dict[str, Any]) -> str:
    """All parts that ran, as Markdown."""
    device = content["parts"].get("machine", {}).get("results", {}).get("device")
    lines = [TITLE, ""] + ([SMOKE] if content["smoke"] else [])
    if device:
        lines += [f"Measured on: {device}.", ""]
    for name, part in content["parts"].items():
        lines += [f"## {HEADINGS[name]}", ""]
        if name in GOALS:
            lines += [GOALS[name], ""]
        if part["status"] != "finished":
            lines += [f"This part did not finish: {part['status']}.", ""]
        if part["results"]:
            lines += [SECTIONS[name](part["results"]), ""]
    return "\n".join(lines)


def rows_of(values: dict[str, Any]) -> str:
    """Names and values."""
    return tabulate(
        [(name, _shown(value)) for name, value in values.items()], ["", ""], "pipe", stralign="left"
    )


def table_of(rows: dict[str, dict[str, Any]], corner: str) -> str:
    """A row for each name, a column for each kind of value."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    cells = [[name, *(_shown(row.get(key)) for key in columns)] for name, row in rows.items()]
    header = [corner, *(key.replace("_", " ") for key in columns)]
    return tabulate(cells, header, "pipe", disable_numparse=True)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nothing"
    return " ".join(str(value).replace("|", "\\|").split())


def _machine(results: dict) -> str:
    tests = results.get("tests", {})
    values = {name: results.get(name) for name in ("device", "lacks", "memory_gib", "torch")}
    values |= {f"tests {name}": n for name, n in tests.items() if name != "output"}
    text = rows_of(values | results.get("doctor", {}))
    return text + (f"\n\n```text\n{tests['output']}\n```" if "output" in tests else "")


def _steps(results: dict) -> str:
    parts = []
    if "contestants" in results:
        n_steps = results.get("rounds", 0) + 1  # one of them when it is made
        parts.append(table_of(results["contestants"], "contestant"))
        parts.append(f"Timed steps of each: {n_steps}.")
    if problems := results.get("problems"):
        parts.append("\n".join(f"- {name}: {problem}" for name, problem in problems.items()))
    return "\n\n".join(parts)


def _losses(results: dict) -> str:
    return f"{rows_of(results['sizes'])}\n\n{table_of(results.get('losses', {}), 'loss')}"


def _training(results: dict) -> str:
    values = {name: value for name, value in results.items() if name != "scores"}
    scores = {
        name: {"": ", ".join(f"{k} {_shown(v)}" for k, v in score.items() if _is_estimate(k))}
        for name, score in results.get("scores", {}).items()
    }
    return rows_of(values) + (f"\n\n{table_of(scores, 'task')}" if scores else "")


def _is_estimate(key: str) -> bool:
    """Whether this is worth a cell: neither a name nor a standard error."""
    return key != "alias" and "stderr" not in key


def _scoring(results: dict) -> str:
    parts = []
    if "scoring" in results:
        parts.append(table_of(results["scoring"], "requests"))
    if "generation" in results:
        speeds = {way: {"tokens/s": speed} for way, speed in results["generation"].items()}
        parts.append(table_of(speeds, "generation"))
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[[dict], str]] = {
    **{"machine": _machine, "data": lambda results: rows_of(results["tokens"])},
    **{"steps": _steps, "losses": _losses, "training": _training},
    **{"scoring": _scoring, "larger_steps": _steps},
}
