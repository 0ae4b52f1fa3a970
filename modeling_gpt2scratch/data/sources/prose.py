"""The prose of a docstring: its sentences and short lists, without markup, tables and code.

    prose_of("Return a :class:`~a.B` of *x*.\\n\\nExample::\\n\\n    f(x)")  # "Return a B of x."

A docstring is read as lines, of which whole blocks are left out (code, tables, parameters), and
then as paragraphs, of which those sentences are left out that are more code than words. This knows
the habits of reStructuredText, of numpy's and Google's sections and of Markdown, and parses none of
them.
"""

import re
from collections.abc import Iterator, Sequence

RULES = 1  # to be raised with every change: an unfinished preparation is not continued with others
# Sections whose text is prose, by their headings in lower case.
PROSE_SECTIONS = {
    *("note", "notes", "warning", "warnings", "tip", "important", "caution", "remark", "remarks"),
    *("explanation", "description", "details", "overview", "summary", "introduction", "background"),
    *("discussion", "motivation", "algorithm", "caveats", "definition", "extended summary", "hint"),
}
# numpy's sections that are none. Headings of another name stand above any text.
TABLE_SECTIONS = {
    *("parameters", "other parameters", "keyword arguments", "arguments", "args", "returns"),
    *("yields", "receives", "raises", "warns", "attributes", "methods", "see also", "examples"),
    *("example", "references", "usage", "return", "parameter", "inputs", "outputs", "shape"),
}
ADMONITIONS = {"note", "warning", "tip", "important", "caution", "hint", "attention", "danger"}

FENCE = re.compile(r"\s*(?:```|~~~)")
PROMPT = re.compile(r"\s*(?:>>>|\.\.\. |In \[\d*\]:|Out\[\d*\]:|\$ |% )")
DIRECTIVE = re.compile(r"\s*\.\.(?:\s+([\w-]+)::(.*)|\s.*|)$")
UNDERLINE = re.compile(r"\s*([=\-~^\"'*#+`])\1{2,}\s*$")
TABLE = re.compile(r"\s*(?:\||\+[-=+]+\+|[=-]{2,}(?:\s+[=-]{2,})+\s*$)")
HEADING = re.compile(r"\s*(?:#+ )?\**([A-Za-z][\w /-]{0,30}?)\**\s*::?\**\s*$")
# A field of reStructuredText, or a section of Google's that begins on the line of its heading.
FIELD = re.compile(
    r"\s*(?:[:@][a-z]+(?: [^:]+)?:?\s|"
    r"(?:Args?|Arguments?|Param(?:eter)?s?|Returns?|Yields?|Raises|Usage|Examples?|See [Aa]lso|"
    r"Ref(?:erence)?s?|Aliases|TODO|FIXME|XXX|Source|Signature|Inputs?|Outputs?|Shapes?)\s*:)"
)
# An entry of a table of parameters: `name (type): what it is`, `name : type`.
ENTRY = re.compile(
    r"\s*`{0,2}\*{0,2}[\w.]+`{0,2}(?:\s+:\s| ?\((?:.*\)\s*:|`{0,3}(?:torch|np|int|str|bool|float|"
    r"list|dict|tuple|Optional|Union|Tuple|List|Dict|Callable|Tensor)\b))"
)
QUOTE = re.compile(r"^(\s*)>(?!>)\s?(?:\[![A-Z]+\])?|^(\s*)</?[Tt]ip.*>\s*$")
ITEM = re.compile(r"\s*(?:[-*+•]|\(?(?:\d{1,2}|[a-z])[.)])\s+(?=\S)")

MARKUP = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[“”]", '"'),
        (r"[‘’]", "'"),
        (r"[–—]", "-"),
        (r"\[(?:\d+|[A-Z]\w*\d{2,4}\w?)\]_", ""),  # a footnote
        (r":[\w:+-]+:`~(?:[^`<>]*\.)?([^`.<>]+)`", r"\1"),  # :class:`~a.b.C`
        (r":[\w:+-]+:`([^`<>]+?)\s*<[^`>]*>`", r"\1"),  # :ref:`words <place>`
        (r":[\w:+-]+:`([^`]+)`", r"\1"),
        (r"`([^`<>]+?)\s*<[^`>]*>`__?", r"\1"),  # `words <address>`_
        (r"\[`~?(?:[^`\]]*\.)?([^`\].]+)`\](?:\([^)\s]*\))?", r"\1"),  # [`~a.b.C`] of the Hub's
        (r"!?\[([^\]]+)\]\([^)\s]*\)", r"\1"),  # [words](address)
        (r"`(\w+)'", r"'\1'"),
        (r"``([^`]+)``", r"\1"),
        (r"`([^`]+)`_{0,2}", r"\1"),
        (r"(?<![\w*])(\*{1,2})([^*\s](?:[^*]*[^*\s])?)\1(?![\w*])", r"\2"),
        (r"(?<!\w)_([A-Za-z][^_\s]*)_(?!\w)", r"\1"),
        (r"\b([\w.]+)\(\)", r"\1"),  # the name of a function
        (r"\$([A-Za-z]\w?)\$", r"\1"),
        (r"\\([*_`|])", r"\1"),
        (r"\s+-{2,3}\s+", " - "),
        (r"\s+([.,;:!?])(?=\s|$)", r"\1"),  # what a footnote leaves
    )
)
MARK = re.compile(r"[^\w\s.,;:!?'\"(){}=<>/%@+-]|_|--|\(\)")  # what any of these begins with
# Where a sentence ends: not behind an abbreviation.
SENTENCE_END = re.compile(
    r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bcf\.)(?<!\bvs\.)(?<!\bal\.)(?<!\bFig\.)(?<!\bEq\.)(?<!\betc\.)"
    r"(?<!\b[A-Z]\.)(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+(?=[\"'(]?[A-Z])"
)
WORD = re.compile(
    r"[\"'(]*(?:[aAI]|[A-Za-z]{2,}|[A-Za-z]+(?:[-'/.][A-Za-z]+)+)[\"')]*[.,;:!?]*[\"')]?"
)
# Also the name of a variable.
NUMBER = re.compile(r"[\"'(]*(?:-?\d+(?:[.,]\d+)*(?:-?[A-Za-z]{1,3})?|[A-Za-z])[%\"')]*[.,;:!?]*")
UNFINISHED = re.compile(
    r"\b(?:[Aa]n?|and|are|as|at|be|by|for|from|if|in|into|is|like|of|on|or|that|the|then|to|use|using|"
    r"via|when|where|which|with)\.$"
)
CODE = re.compile(
    r"https?:|www\.|[\\{}|@$^<>~`\[\]*#]|(?<!\w)=|=(?![\w-])|::|\w\(|\w/\w+/|\.py\b|"
    r"arXiv|\bdoi\b|et al"
)
MIN_WORDS = 3  # of a sentence
MAX_SHARE_OF_CODE, MAX_SHARE_OF_NUMBERS = 0.2, 0.25
MAX_ITEMS, MAX_ITEM_WORDS = 12, 30


def prose_of(docstring: str) -> str:
    """The sentences of a docstring, each paragraph and item on a line; "" if there are none."""
    kept: list[str] = []
    source = [QUOTE.sub("", line) for line in docstring.expandtabs().splitlines()]
    for lines in _paragraphs(_without_blocks(source)):
        is_announced = bool(kept) and kept[-1].endswith(":")
        if ITEM.match(lines[0]):
            if is_announced and (items := _items(lines)):
                kept[-1] = "\n".join([kept[-1], *items])
            continue
        if is_announced:
            kept[-1] = _without_announcement(kept[-1])
        kept.append(_sentences(lines, is_first=not kept))
    if kept and kept[-1].endswith(":"):
        kept[-1] = _without_announcement(kept[-1])
    return "\n\n".join(filter(None, kept))


def _without_blocks(lines: Sequence[str]) -> Iterator[str]:
    """The lines of paragraphs and lists, with a blank line in the place of every other block."""
    at, is_new = 0, True  # whether a paragraph may begin here
    while at < len(lines):
        line = lines[at]
        if not line.strip() or UNDERLINE.match(line):
            yield ""
            at, is_new = at + 1, True
            continue
        end, prose = _block_at(lines, at, is_new=is_new)
        if end is None:
            yield line
            at, is_new = at + 1, False
            continue
        yield ""
        yield from prose
        yield ""
        at, is_new = end, True


def _block_at(
    lines: Sequence[str], at: int, *, is_new: bool
) -> tuple[int | None, Iterator[str] | Sequence[str]]:
    """Where the block that begins at a line ends, and its prose; None if it is a paragraph."""
    line = lines[at]
    indent = _indent(line)
    if FENCE.match(line):
        closing = (i for i in range(at + 1, len(lines)) if FENCE.match(lines[i]))
        return next(closing, len(lines) - 1) + 1, ()
    if PROMPT.match(line) or TABLE.match(line):
        return _end_of_paragraph(lines, at), ()
    if match := DIRECTIVE.match(line):
        end = _end_of_body(lines, at + 1, indent)
        if match[1] in ADMONITIONS:
            return end, _without_blocks([match[2].strip(), *_dedented(lines[at + 1 : end])])
        return end, ()
    if at + 1 < len(lines) and UNDERLINE.match(lines[at + 1]) and is_new:
        if line.strip().lower() in TABLE_SECTIONS:
            return _end_of_section(lines, at + 2), ()
        return at + 2, ()
    if ENTRY.match(line) or (is_new and FIELD.match(line)):
        return _end_of_body(lines, at + 1, indent), ()
    if is_new and (match := HEADING.match(line)):
        end = _end_of_body(lines, at + 1, indent)
        is_prose = match[1].lower() in PROSE_SECTIONS
        return end, _without_blocks(_dedented(lines[at + 1 : end])) if is_prose else ()
    if line.rstrip().endswith("::"):
        return _end_of_body(lines, at + 1, indent), [line.rstrip()[:-1]]
    return None, ()


def _paragraphs(lines: Iterator[str]) -> Iterator[list[str]]:
    """Lines that belong together; items of a list, also with blank lines between, are one."""
    paragraph: list[str] = []
    was_blank = True
    for line in lines:
        is_item = bool(ITEM.match(line))
        in_list = bool(paragraph) and bool(ITEM.match(paragraph[0]))
        belongs = in_list and (is_item or _indent(line) > _indent(paragraph[0]))
        if not line.strip():
            was_blank = True
            continue
        if paragraph and not belongs and (was_blank or is_item or in_list):
            yield paragraph
            paragraph = []
        paragraph.append(line)
        was_blank = False
    if paragraph:
        yield paragraph


def _sentences(lines: Sequence[str], *, is_first: bool) -> str:
    """The sentences of a paragraph; none if more than half of it is something else."""
    text = _plain(" ".join(map(str.strip, lines)))
    if is_first and text[-1:].isalnum() and not UNFINISHED.search(f"{text}."):
        text += "."  # the first line of many docstrings has none
    kept = [
        sentence
        for sentence in SENTENCE_END.split(text)
        if sentence.endswith((".", "!", "?", ":", '."', ".)"))
        and (sentence[0].isupper() or sentence[0] in "\"'(")
        and not UNFINISHED.search(sentence)
        and _reads_well(sentence)
    ]
    prose = " ".join(kept)
    return prose if 2 * len(prose) > len(text) else ""


def _items(lines: Sequence[str]) -> list[str]:
    """The items of a list, if it is short and all of them are prose."""
    items: list[str] = []
    for line in lines:
        if ITEM.match(line):
            items.append(ITEM.sub("", line, count=1).strip())
        else:
            items[-1] += f" {line.strip()}"
    items = [_plain(item) for item in items]
    is_short = 1 < len(items) <= MAX_ITEMS
    are_prose = all(len(i.split()) <= MAX_ITEM_WORDS and _reads_well(i, min_words=2) for i in items)
    return [f"- {item}" for item in items] if is_short and are_prose else []


def _plain(text: str) -> str:
    """A text without inline markup, with single spaces."""
    if not MARK.search(text):
        return " ".join(text.split())
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def _reads_well(text: str, min_words: int = MIN_WORDS) -> bool:
    """Whether a text is words, for the most part."""
    parts = text.split()
    n_words = sum(bool(WORD.fullmatch(part)) for part in parts)
    n_numbers = sum(bool(NUMBER.fullmatch(part)) for part in parts)
    return (
        n_words >= min_words
        and len(parts) - n_words - n_numbers <= MAX_SHARE_OF_CODE * len(parts)
        and n_numbers <= MAX_SHARE_OF_NUMBERS * len(parts)
        and not CODE.search(text)
    )


def _without_announcement(text: str) -> str:
    """A text without its last sentence, which announces something that is left out."""
    return " ".join(SENTENCE_END.split(text)[:-1])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _dedented(lines: Sequence[str]) -> list[str]:
    """The lines without the indent that all have."""
    margin = min((_indent(line) for line in lines if line.strip()), default=0)
    return [line[margin:] for line in lines]


def _end_of_paragraph(lines: Sequence[str], at: int) -> int:
    """The next blank line from here on."""
    return next((i for i in range(at, len(lines)) if not lines[i].strip()), len(lines))


def _end_of_body(lines: Sequence[str], at: int, indent: int) -> int:
    """The next line from here on that is indented by no more than that."""
    body = (i for i in range(at, len(lines)) if lines[i].strip() and _indent(lines[i]) <= indent)
    return next(body, len(lines))


def _end_of_section(lines: Sequence[str], at: int) -> int:
    """The next heading from here on."""
    headings = (i for i in range(at, len(lines) - 1) if UNDERLINE.match(lines[i + 1]))
    return next((i for i in headings if lines[i].strip()), len(lines))
