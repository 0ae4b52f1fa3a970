"""The training step of GPT-2 medium, in what time is left at the end."""

from gpu_parts.plan import Plan, Record
from gpu_parts.steps import ENTRIES, measure


def run(plan: Plan, record: Record) -> None:
    """As for GPT-2 small, what need not be compiled first: that takes seconds, and may be all."""
    names = sorted(ENTRIES, key=lambda name: ENTRIES[name].is_compiled)
    measure(plan, record, "gpt2-medium", names=names)
