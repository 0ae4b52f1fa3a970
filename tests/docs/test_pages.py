"""What the pages name exists: links, files, tests; and the arguments are those of the code."""

import dataclasses
import importlib.util
import re

import pytest
from support.documentation import PAGES
from support.paths import REPOSITORY

from modeling_gpt2scratch.training.configuration import TrainConfig

LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)\s]*)?\)")
ANCHOR = re.compile(r"\]\((?!https?:)([^)#\s]*\.md)?#([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+?)\s*$", re.MULTILINE)
FILE = re.compile(
    r"`((?:tests|modeling_gpt2scratch|recipes|benchmarks|accelerate_configs|launch)/[^`*\s…]+)`"
)
CODE = re.compile(r"```.*?```", re.DOTALL)
PAGE_NAMES = [page.relative_to(REPOSITORY).as_posix() for page in PAGES]


@pytest.fixture(scope="module")
def hooks():
    """What mkdocs runs on each page."""
    spec = importlib.util.spec_from_file_location("docs_hooks", REPOSITORY / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_what_a_page_links_to_and_names_is_there(name):
    page = REPOSITORY / name
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    links = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    files = [file for file in FILE.findall(text) if not (REPOSITORY / file).exists()]
    assert (links, files) == ([], [])


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_a_link_into_a_page_leads_to_one_of_its_headings(name):
    slugify = pytest.importorskip("markdown.extensions.toc").slugify  # as the site does
    page = REPOSITORY / name
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for place, anchor in ANCHOR.findall(text):
        target = (page.parent / place).resolve() if place else page
        headings = HEADING.findall(CODE.sub("", target.read_text(encoding="utf-8")))
        assert anchor in {slugify(heading, "-") for heading in headings}, f"{place}#{anchor}"


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_the_rows_of_a_table_have_as_many_cells_as_its_head(name):
    text = CODE.sub("", (REPOSITORY / name).read_text(encoding="utf-8"))
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, *rows = (len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines())
        assert rows == [head] * len(rows), table


def test_every_argument_is_in_a_table_with_its_default_and_help(hooks):
    marked = "before\n<!-- arguments: modeling_gpt2scratch.training.configuration:TrainConfig -->\n"
    text = hooks.on_page_markdown(marked)
    rows = [line for line in text.splitlines() if line.startswith("| `--")]
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    assert sorted(re.match(r"\| `--(\w+)`", row)[1] for row in rows) == sorted(names)
    data, max_steps, report_to, tf32 = (
        next(row for row in rows if f"`--{name}`" in row)
        for name in ("data", "max_steps", "report_to", "tf32")
    )
    assert "| text | **required** |" in data
    assert "| integer |  | steps (optimizer updates); 19,073 if not given |" in max_steps
    assert "| text, several |  | trackers beside metrics.jsonl" in report_to
    assert "| `true`&nbsp;`false` | `true` |" in tf32
    assert text.startswith("before\n") and "<!--" not in text


def test_the_help_of_a_verb_is_what_the_command_prints(hooks, capsys):
    text = hooks.on_page_markdown("<!-- help: shards verify -->\n")
    assert text.startswith("```text\nusage: gpt2scratch shards verify") and "--fast" in text
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="expected the help of gpt2scratch sing, found none"):
        hooks.on_page_markdown("<!-- help: sing -->")


def test_every_command_is_on_the_page_of_commands(hooks):
    page = (REPOSITORY / "docs/reference/command.md").read_text(encoding="utf-8")
    shown = [marker.split() for marker in hooks.HELP.findall(page)]
    others = ["launch"]  # whose help is Accelerate's
    found, commands = [], [[]]
    while commands:
        command = commands.pop()
        found.append(command)
        help = hooks.help_of(command) if command != others else ""
        below = re.split(r"^(?:verbs|commands|directions):$", help, flags=re.MULTILINE)[1:]
        names = re.findall(r"^    ([a-z][\w-]*)", "".join(below), re.MULTILINE)
        commands += [[*command, name] for name in names]
    assert len(found) > 15
    groups = [["convert"]]  # which says no more than its parts
    assert sorted(found) == sorted(shown + groups)
