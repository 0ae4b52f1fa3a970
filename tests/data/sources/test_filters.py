"""Conditions on rows: how they are written, when they hold, and what cannot be compared."""

import pickle
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources.filters import COMPARISONS, Condition, parse_condition

EAST = timezone(timedelta(hours=2))
TEXTS = ("#1", "C #", "x # y", "---", "|", "x: y", "- a", "@me", "%a", "*", "one two")


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("language_score >= 0.8", Condition("language_score", ">=", 0.8)),
        ("  n<10 ", Condition("n", "<", 10)),
        ("perplexity <= 1e3", Condition("perplexity", "<=", 1000.0)),
        ("language == en", Condition("language", "==", "en")),
        ("language == 'no'", Condition("language", "==", "no")),
        ("text != null", Condition("text", "!=", None)),
        ("is_long == true", Condition("is_long", "==", True)),
        ("date > 2024-02-01", Condition("date", ">", "2024-02-01")),
        ("date > 2024-02-31", Condition("date", ">", "2024-02-31")),
        ("zip == 02134", Condition("zip", "==", "02134")),
        ("at < 12:30", Condition("at", "<", "12:30")),
        ("code == 0x1F", Condition("code", "==", "0x1F")),
        ("n > -1_000_000", Condition("n", ">", -1_000_000)),
        ("x < .5", Condition("x", "<", 0.5)),
        ("x < .5e-3", Condition("x", "<", 0.0005)),
        ("x < 007.5", Condition("x", "<", 7.5)),
        ("n == 0", Condition("n", "==", 0)),
        ("my column == a b", Condition("my column", "==", "a b")),
        ("title == rock and roll", Condition("title", "==", "rock and roll")),
        ("title == a -> b", Condition("title", "==", "a -> b")),
        ("title == 'a >= b'", Condition("title", "==", "a >= b")),
        ("a == 'no'", Condition("a", "==", "no")),
        ("a == ~", Condition("a", "==", None)),
        # What would mean something to YAML elsewhere is text behind an operator.
        *((f"a != {text}", Condition("a", "!=", text)) for text in TEXTS),
    ],
)
def test_a_condition_is_a_column_an_operator_and_a_value(text, condition):
    parsed = parse_condition(text)
    assert parsed == condition
    assert type(parsed.value) is type(condition.value)
    assert pickle.loads(pickle.dumps(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        *("", "text", "text ==", "== en", "text = en", "text === en", "a => 1", "a < b < c\n:"),
        *("a == [1]", "a == {b: 1}", "a == 'open", "a >= null", "a < true"),
        *("a != de and a != fr", "a != de or b >= 3", "a >= b && c > 3"),
        *("a != de; b > 3", "a != de a != fr", "a == x b >= 3"),
        *("a == 'x': b", "a == 'tis", "a == 'it's'", 'a == "one" two'),
    ],
)
def test_what_is_written_otherwise_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="^expected ") as caught:
        parse_condition(text)
    assert not isinstance(caught.value, SourceError)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "cell", "holds"),
    [
        ("score >= 0.8", 0.8, True),
        ("score >= 0.8", 0.79, False),
        ("score > 3", 3, False),
        ("score >= 0.8", "0.81", True),
        ("id == 9007199254740993", "9007199254740992", False),
        ("language == en", "en", True),
        ("language == en", "EN", False),
        ("language != en", "de", True),
        ("language != en", None, True),
        ("language == en", None, False),
        ("text != null", "a", True),
        ("text != null", "", True),
        ("text != null", None, False),
        ("text == null", None, True),
        ("score != null", 0.0, True),
        ("is_long == true", True, True),
        ("is_long == true", "False", False),
        ("date >= 2024-02-01", "2024-02-01T05:13:07Z", True),
        ("date >= 2024-02-01", "2023-12-31T23:59:59Z", False),
    ],
)
def test_a_condition_holds_for_a_row(text, cell, holds):
    condition = parse_condition(text)
    assert condition.holds({"id": 1, condition.column: cell}) is holds


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(sorted(COMPARISONS)),
    cell=st.integers(-3, 3) | st.floats(-3, 3),
    value=st.integers(-3, 3),
)
def test_numbers_are_compared_as_python_does_it(name, cell, value):
    expected = eval(f"{cell!r} {name} {value!r}")
    for written in (cell, repr(cell)):
        assert parse_condition(f"a {name} {value}").holds({"a": written}) is expected


@pytest.mark.parametrize(
    ("text", "cell", "holds"),
    [
        ("day >= 2024-02-01", date(2024, 2, 1), True),
        ("day >= 2024-02-01", datetime(2024, 1, 31, 12), False),
        ("time >= 2024-02-01 12:00:00", datetime(2024, 2, 1, 6), False),
        ("time >= 2024-02-01T12:00:00", datetime(2024, 2, 1, 18), True),
        ("time <= 2024-02-01", datetime(2024, 2, 1), True),
        ("time == 2024-02-01", datetime(2024, 2, 1, tzinfo=UTC), True),
        ("time >= 2024-02-01T00:00:00Z", datetime(2024, 2, 1, tzinfo=UTC), True),
        ("time >= 2024-02-01T00:00:00Z", datetime(2024, 2, 1), True),
        ("time >= 2024-02", datetime(2024, 2, 1), True),
        ("time < 2024-02", datetime(2024, 2, 1), False),
        ("time < 2024-02-01T01:00+01:00", datetime(2024, 2, 1, tzinfo=UTC), False),
        ("time <= 2024-02-01", datetime(2024, 2, 1, tzinfo=EAST), True),
        ("time == 2024-02-01T00:00Z", datetime(2024, 2, 1, 2, tzinfo=EAST), True),
        ("time != null", datetime(2024, 2, 1), True),
        ("score >= 0.8", Decimal("0.80"), True),
        ("score >= 0.8", Decimal("0.79"), False),
    ],
)
def test_dates_and_decimals_of_parquet_are_compared_as_they_are_written(text, cell, holds):
    condition = parse_condition(text)
    assert condition.holds({condition.column: cell}) is holds


@pytest.mark.parametrize(
    ("text", "cell", "found"),
    [
        ("score >= 0.8", "high", "expected a number in column 'score' .* found a text 'high'"),
        ("score == 1", True, "expected a number in column 'score' .* found true; "),
        ("language == no", "no", "expected true or false in column .* found a text 'no'; .*quotes"),
        ("language == en", 5, "expected a text in column 'language' .* found 5; "),
        ("tags == a", ["a"], "expected a text in column 'tags' .* found a list; "),
        ("day > soon", datetime(2024, 2, 1), ".* found a time; compare with a date or time, "),
        ("day > 2024-02-01T08:00+05:00", datetime(2024, 2, 1), ".* found a time; compare with a"),
        ("score >= 0.8", None, '.* found null; put "score != null" before it'),
    ],
)
def test_what_cannot_be_compared_is_refused_with_its_place(text, cell, found):
    condition = parse_condition(text)
    with pytest.raises(SourceError, match=f"^a.jsonl:7: {found}") as caught:
        condition.holds({condition.column: cell}, "a.jsonl:7")
    assert len(str(caught.value).splitlines()) == 1


def test_a_row_without_the_column_is_refused_with_its_place_and_its_columns():
    with pytest.raises(SourceError) as caught:
        parse_condition("score > 1").holds({"text": "a", "id": 1}, "a.jsonl:7")
    assert str(caught.value) == (
        "a.jsonl:7: expected column 'score' for --where 'score > 1', found columns ['id', 'text']; "
        "--on_bad_row skip leaves such rows out"
    )
