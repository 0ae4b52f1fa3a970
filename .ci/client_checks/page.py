"""The table of clients in the documentation."""

from datetime import date

from client_checks.comparison import FORMS
from client_checks.forms import REPOSITORY

PAGE = REPOSITORY / "docs" / "reference" / "clients.md"
NOT_RUN = "not run"


def with_row(page: str, row: dict[str, str], day: date) -> str:
    """The page with one client's row in place of its old one."""
    first = first_cell(row["client"])
    lines = page.splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.startswith(first)]
    if len(places) != 1:
        raise ValueError(f"{PAGE}: expected one row of {row['client']}, found {len(places)}")
    cells = [row["title"], row["versions"], day.isoformat(), *(row[form] for form in FORMS)]
    lines[places[0]] = f"{first} {' | '.join(cells)} |\n"
    return "".join(lines)


def first_cell(client: str) -> str:
    """How a client's row begins."""
    return f"| `{client}` |"
