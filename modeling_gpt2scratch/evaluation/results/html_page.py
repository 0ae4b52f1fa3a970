"""A page that is one file, asks no other place for anything, and shows every text as text."""

import html
import json
from collections.abc import Iterable, Sequence

# The browser itself refuses whatever would leave the page.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem }
table.plain { border-collapse: collapse }
table.plain td { border-bottom: 1px solid #ddd; padding: .2rem 1rem .2rem 0; vertical-align: top }
pre { background: #f5f5f5; overflow-x: auto; padding: .7rem; white-space: pre-wrap }
"""


def html_page(title: str, *parts: str, style: str = "") -> bytes:
    """The file.

    Args:
        title: plain text.
        parts: HTML, one after another; whoever made it has escaped what was text.
        style: more CSS.
    """
    head = f"<title>{html.escape(title)}</title>\n<style>{STYLE}{style}</style>"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    lines = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        policy,
        f"{head}\n</head>\n<body>",
        f"<h1>{html.escape(title)}</h1>",
        *parts,
        "</body>\n</html>\n",
    ]
    return "\n".join(lines).encode(errors="replace")  # half a surrogate pair has no bytes


def html_table(rows: Iterable[Sequence[object]]) -> str:
    """A small table without a head; every cell is shown as text."""
    cells = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    return f'<table class="plain">{"".join(f"<tr>{row}</tr>" for row in cells)}</table>'


def script_json(value: object) -> str:
    """JSON to stand in a script element, which no text in it can end.

    Raises:
        ValueError: for NaN and infinities, which JSON has no words for.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
