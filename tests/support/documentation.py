"""The shell and Python blocks of README, CONTRIBUTING and the pages in docs/."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from support.paths import REPOSITORY

PAGES = [
    *(REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
RUN_LANGUAGES = ("bash", "python")
SHOWN_LANGUAGES = ("text", "json", "toml", "yaml")
BLOCK = re.compile(
    r"(?:^ *<!-- (?P<comment>[^\n]*) -->\n)?"
    r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
SNIPPET = re.compile(r"^--8<--\n(.*)\n--8<--$", re.MULTILINE)  # a file that the site shows here
NOT_RUN, IN_GATE = "not run: ", "run in the gate"


@dataclass(frozen=True)
class Block:
    """One block of code, and the comment on the line before it."""

    page: str  # path in the repository
    line: int
    language: str
    text: str
    comment: str | None

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether a test runs it."""
        return self.language in RUN_LANGUAGES and not (self.comment or "").startswith(NOT_RUN)


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in its order, with the files that they include."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=page.relative_to(REPOSITORY).as_posix(),
            line=text.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            text=SNIPPET.sub(_content, textwrap.dedent(found["text"])),
            comment=found["comment"],
        )
        for found in BLOCK.finditer(text)
    ]


def _content(snippet: re.Match) -> str:
    path = REPOSITORY / snippet[1]
    return path.read_text(encoding="utf-8") if path.is_file() else f"expected a file {snippet[1]}"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
