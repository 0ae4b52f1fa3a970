"""The table of clients in the documentation, and the list of their answers below it."""

import re
import textwrap
from datetime import date

from client_checks.comparison import FORMS
from client_checks.forms import REPOSITORY

PAGE = REPOSITORY / "docs" / "reference" / "clients.md"
WIDTH = 120
CONDITION = "only with"  # in the verdict on a client that needs more than the checkpoint


def with_row(page: str, row: dict[str, str], day: date) -> str:
    """The page with one client's row and answer in place of its old ones."""
    title = row["title"]
    cells = [title, *(in_a_word(row[form]) for form in FORMS), row["versions"]]
    in_table = rf"^\| {re.escape(title)} \|.*\n"
    in_list = rf"^- \*\*{re.escape(title)}\*\*.*\n(?:  .*\n)*"
    for pattern, new in ((in_table, f"| {' | '.join(cells)} |\n"), (in_list, answer(row, day))):
        found = re.findall(pattern, page, re.MULTILINE)
        if len(found) != 1:
            raise ValueError(f"{PAGE}: expected one row of {row['client']}, found {len(found)}")
        page = page.replace(found[0], new)
    return page


def in_a_word(verdict: str) -> str:
    """A verdict as a cell of the table."""
    if verdict.startswith("refused"):
        return "no"
    if verdict.startswith(("no result", "not run")):
        return verdict.partition(":")[0]
    return "yes" if verdict.startswith("equal") and CONDITION not in verdict else "see note"


def answer(row: dict[str, str], day: date) -> str:
    """What a client made of both forms, as an entry of the list."""
    verdicts = {form: row[form] for form in FORMS}
    if len(set(verdicts.values())) == 1:
        verdicts = {"both": row["run"]}
    names = {"run": "The run", "gpt2": "Stock `gpt2`", "both": "Both"}
    parts = [f"{names[form]}: {verdict}" for form, verdict in verdicts.items()]
    return (
        textwrap.fill(
            f"**{row['title']}** ({day.isoformat()}). {'. '.join(parts)}.",
            WIDTH,
            initial_indent="- ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        ).rstrip()
        + "\n"
    )
