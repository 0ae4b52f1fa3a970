"""The prose of a docstring: what is kept, what is left out, and what its markup becomes."""

from textwrap import indent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_gpt2scratch.data.sources.prose import prose_of

FIRST = "Return the sum of all values."
LAST = "The result is rounded to the nearest whole number."


def around(block):
    """A docstring with a block between two sentences."""
    return f"{FIRST}\n\n{block}\n\n{LAST}"


@pytest.mark.parametrize(
    "block",
    [
        ">>> total([1, 2])\n3\n>>> total([])\n0",
        "```python\nThe total is = 5\n\nA line of code that has only words.\n```",
        "Example::\n\n    A block of code that has only words.\n\n    Another one of these blocks.",
        "For example::\n\n    x = total(values)",
        "For example, one may write:\n\n    x = total(values)",
        ".. code-block:: python\n\n    The code of this block is all words.",
        ".. versionadded:: 3.2\n    The version of this block is all words.",
        ".. math::\n\n    The sum of all the values here.",
        ".. [1] The title of a paper that is all words.",
        "====  =====\nName  Meaning\n====  =====\na     The first of all values.\n====  =====",
        "| Name | Meaning |\n|------|---------|\n| a | The first of all the values. |",
        "+------+---------+\n| Name | The first of all the values. |\n+------+---------+",
        "Args:\n    values (list): The numbers to be added.\n    start: Where to begin the sum.",
        "Args:\n    values: The numbers to be added.\n\n        They may be negative as well.",
        ":param values: The numbers whose sum is wanted.\n:returns: The sum of all the numbers.",
        "values (`list[int]`, *optional*):\n    The numbers whose sum is wanted.",
        "values : list of int\n    The numbers whose sum is wanted.",
        "Returns: The sum of all the numbers.",
        "See https://example.org/sums for the details of it.",
        "total(values, *, start=0)",
        "x = total(values); y = x + 1",
        "see the other function for more",  # no sentence
        "TODO: write more about the values here.",
        "- `a`: ``f(x) = 1``\n- `b`: ``g(x) = 2``",
        "\\sum_{i=1}^n x_i is what the function computes for all values.",
    ],
)
def test_what_is_no_prose_is_left_out(block):
    assert prose_of(around(block)) == f"{FIRST}\n\n{LAST}"


@pytest.mark.parametrize("rule", ["-", "="])
def test_of_numpys_sections_those_of_prose_are_kept_without_their_headings(rule):
    def heading(name):
        return f"{name}\n{rule * len(name)}"

    docstring = f"""{FIRST}

{heading("Parameters")}
values : array_like
    The numbers whose sum is wanted.

    They may be negative as well.

{heading("Returns")}
The sum of all the numbers.

{heading("Notes")}
The numbers are added from left to right.

{heading("Examples")}
The sum of two numbers is this.

>>> total([1, 2])
3
"""
    assert prose_of(docstring) == f"{FIRST}\n\nThe numbers are added from left to right."


@pytest.mark.parametrize(
    "block",
    [
        "Note:\n    The numbers are added from left to right.",
        "**Note**:\n    The numbers are added from left to right.",
        ".. note::\n    The numbers are added\n    from left to right.",
        ".. note:: The numbers are added\n    from left to right.",
        "> [!NOTE]\n> The numbers are added from left to right.",
        "<Tip warning={true}>\n\nThe numbers are added from left to right.\n\n</Tip>",
        "Notes\n-----\nThe numbers are added from left to right.",
        "# A title\n\nThe numbers are added\nfrom left to right.",
    ],
)
def test_a_note_is_kept_without_its_frame(block):
    added = "The numbers are added from left to right."
    assert prose_of(f"{FIRST}\n\n{block}") == f"{FIRST}\n\n{added}"


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("Return a :class:`Total` of values.", "Return a Total of values."),
        ("Return a :class:`~sums.of.Total` of values.", "Return a Total of values."),
        ("See the :ref:`chapter on sums <sums>` for more.", "See the chapter on sums for more."),
        ("See the `chapter on sums <a.html>`_ for more.", "See the chapter on sums for more."),
        ("See the [chapter on sums](a.html) for more.", "See the chapter on sums for more."),
        ("Return a [`~sums.Total`] of all values.", "Return a Total of all values."),
        ("It returns ``None`` or `nothing` at all.", "It returns None or nothing at all."),
        ("It is **not** an *exact* sum.", "It is not an exact sum."),
        ("It was shown by Gauss [1]_ and others [Foo99]_.", "It was shown by Gauss and others."),
        ("Call close() before the program ends.", "Call close before the program ends."),
        ("Give each of the $n$ values once.", "Give each of the n values once."),
        (
            "The “name” -- if there is one -- isn’t used.",
            'The "name" - if there is one - isn\'t used.',
        ),
        (
            "The `member' is a name.  The\n   other `member' follows it.",
            "The 'member' is a name. The other 'member' follows it.",
        ),
    ],
)
def test_inline_markup_becomes_plain_text(written, plain):
    assert prose_of(written) == plain


def test_lines_of_a_paragraph_are_joined_and_paragraphs_stay():
    docstring = "The first line of it\nends here.\n\nThe second paragraph\n\tis indented here."
    expected = "The first line of it ends here.\n\nThe second paragraph is indented here."
    assert prose_of(docstring) == expected


def test_a_sentence_of_code_is_left_out_and_its_neighbours_stay():
    docstring = "The sum is exact. It calls f(x, y) = {x: y} first. The order does not matter."
    assert prose_of(docstring) == "The sum is exact. The order does not matter."
    # Mostly code: the rest would have no context.
    assert prose_of("The sum is exact. It is f(x, y) = {x: y} with g(x, y) = {y: x} for all.") == ""


def test_a_sentence_does_not_end_at_an_abbreviation():
    docstring = "Numbers, e.g. Fibonacci's, are added, cf. Gauss. This is fast."
    assert prose_of(docstring) == docstring


def test_a_first_line_without_a_full_stop_gets_one():
    assert prose_of("Return the sum of values\n\nAnd no more than this") == (
        "Return the sum of values."
    )
    assert prose_of("Return the sum of values for which") == ""


@pytest.mark.parametrize("bullet", ["-", "*", "1."])
def test_a_short_list_of_words_is_kept_below_the_sentence_that_announces_it(bullet):
    items = f"{bullet} the first of the values,\n{bullet} the others\n  in their order."
    announced = f"{FIRST} There are these values:"
    expected = f"{announced}\n- the first of the values,\n- the others in their order."
    apart = items.replace(f"\n{bullet}", f"\n\n{bullet}")
    for written in (f"\n{items}", f"\n\n{items}", f"\n\n{apart}", f"\n\n{indent(items, '    ')}"):
        assert prose_of(f"{announced}{written}\n\n{LAST}") == f"{expected}\n\n{LAST}"
    # Without the list nothing is announced, and without an announcement no list is kept.
    assert prose_of(f"{announced}\n\n{LAST}") == f"{FIRST}\n\n{LAST}"
    assert prose_of(f"{FIRST}\n\n{items}\n\n{LAST}") == f"{FIRST}\n\n{LAST}"


def test_a_long_list_is_left_out_with_its_announcement():
    items = "\n".join(["- one of the many values"] * 20)
    assert prose_of(f"{FIRST}\n\nThese are its values:\n\n{items}") == FIRST


@given(st.text(alphabet="aA .:`*_-=>\n\t(){}[]\\é#|+'\"1$~<", max_size=200) | st.text())
def test_any_text_is_read_and_no_markup_is_left(text):
    prose = prose_of(text)
    assert not {*"`\t\\{}[]*#|"} & {*prose}
    assert all(line == line.strip() for line in prose.split("\n"))
