"""Which rows of a table count: conditions on a column, such as `language_score >= 0.8`."""

import contextlib
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

import yaml

from modeling_gpt2scratch.common.errors import SourceError

COMPARISONS = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
# A name with none of the operators' characters, an operator, and a value that begins with no other.
CONDITION = re.compile(r"\s*([^=!<>]*[^=!<>\s])\s*(==|!=|>=|<=|>|<)\s*([^=!<>\s].*?)\s*")
# YAML 1.1 takes a number without a point before its exponent, such as 1e3, for a text.
EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
# YAML 1.1 also counts in eights (02134), sixteens (0x1F), twos (0b1) and sixties (12:30).
OTHER_BASE = re.compile(r"[-+]?0[0-9xb_]+$|[-+]?0x|.*:")
MONTH = re.compile(r"\d{4}-\d{2}")  # which begins at its first day
# What stands between two conditions, where one text has two.
JOINER = re.compile(r"\s+(?:and|or)\s+|[&|,;]+", re.IGNORECASE)
# Or nothing but white space, before a name and an operator of two signs: a text may hold a < b.
SECOND = re.compile(r".*\s[^=!<>\s]+\s*(==|!=|>=|<=)\s*[^=!<>\s].*")
QUOTES = ("'", '"')
SHOWN_CHARACTERS = 40  # of a value, or of a column's name, in a message


@dataclass(frozen=True)
class Condition:
    """A column, one of `COMPARISONS`, and the number, text, bool or None to compare with."""

    column: str
    operator: str
    value: float | int | str | bool | None

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {_shown(self.value)}"

    def holds(self, row: Mapping[str, object], place: str = "a row") -> bool:
        """Whether the row satisfies the condition.

        Only like is compared with like: numbers, also those that are written as text (a CSV file
        has no others), texts by their characters, true and false. Null is equal to null alone.

        Args:
            row: values by column.
            place: file and row, for the message.

        Raises:
            SourceError: if the row lacks the column, or holds there what cannot be compared.
        """
        if self.column not in row:
            raise SourceError(
                f"{place}: expected column {self.column!r} for --where {str(self)!r}, "
                f"found {shown_columns(row)}; --on_bad_row skip leaves such rows out"
            )
        cell = _like(self.value, row[self.column])
        value = _as_time(self.value, cell) if isinstance(cell, datetime) else self.value
        is_ordered = self.operator not in ("==", "!=")
        if _kind(cell) == _kind(value) or (None in (cell, value) and not is_ordered):
            return COMPARISONS[self.operator](cell, value)
        if isinstance(cell, datetime):
            advice = "compare with a date or time, such as 2020-12-31T08:00, in the column's zone"
        elif cell is None:
            advice = f'put "{self.column} != null" before it, which leaves such rows out'
        else:
            advice = "compare with a value of that kind (quotes make it a text)"
        raise SourceError(
            f"{place}: expected {_kind(self.value)} in column {self.column!r} for --where "
            f"{str(self)!r}, found {_described(cell)}; {advice}"
        )


def parse_condition(text: str) -> Condition:
    """The condition that is written as column, operator, value: `language == en`.

    The value is read as YAML: a number, a text (quoted if it looks like something else, as 'no'
    does, which YAML takes for false), true, false or null.

    Raises:
        ValueError: if it is written otherwise, or asks for an order among bools or nulls.
    """
    match = CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"expected --where as COLUMN {'|'.join(COMPARISONS)} VALUE, such as "
            f'"language_score >= 0.8", found {text!r}'
        )
    column, name, written = match.groups()
    value = _value(written, text)
    if name not in ("==", "!=") and _kind(value) not in ("a number", "a text"):
        raise ValueError(
            f"expected a number or a text after {name} in --where {text!r}, found {_shown(value)}"
        )
    return Condition(column, name, value)


def shown_columns(row: Mapping[str, object]) -> str:
    """The names of a row's columns for a message; long ones, of a table without names, are cut."""
    return f"columns {sorted(_cut(str(name)) for name in row)}"


def _value(written: str, text: str) -> float | int | str | bool | None:
    """What stands behind the operator, read as one YAML value, in which no sign begins another."""
    loader = yaml.SafeLoader("")
    are_two = SECOND.fullmatch(written) or any(map(CONDITION.fullmatch, JOINER.split(written)[1:]))
    if written[0] not in QUOTES and are_two:
        raise ValueError(
            f"expected one condition in each text of --where, found {text!r}; write two texts, "
            f'such as "lang != de" "lang != fr", or quotes around a value'
        )
    if written.startswith(("[", "{")):
        raise ValueError(
            f"expected a number, a text, true, false or null in --where {text!r}, found {written}; "
            f"quotes make it a text"
        )
    try:
        if written[0] in QUOTES:
            value = yaml.safe_load(written)
            if not isinstance(value, str):  # something stands behind the quotes
                raise yaml.YAMLError(written)
            return value
        tag = loader.resolve(yaml.ScalarNode, written, (True, False))
        value = loader.construct_object(yaml.ScalarNode(tag, written))
    except yaml.constructor.ConstructorError:  # a sign of YAML's own, such as *
        return written
    except yaml.YAMLError:
        raise ValueError(
            f"expected quotes around the whole text in --where {text!r}, found {written}"
        ) from None
    except ValueError:  # a date that is none, such as 2024-13-01
        return written
    if EXPONENT.fullmatch(written):
        return float(written)
    if isinstance(value, float | int) and OTHER_BASE.match(written):
        return written
    # Data sets hold their dates as text, which has the order of time if it is ISO 8601.
    return value if value is None or isinstance(value, float | int | str) else written


def _like(value: object, cell: object) -> object:
    """The cell, read as a number or a bool if it is a text and the value to compare with is not."""
    if isinstance(cell, Decimal) and not isinstance(value, str):
        return float(cell)
    if isinstance(cell, date) and not isinstance(cell, datetime) and isinstance(value, str):
        return str(cell)
    if not isinstance(cell, str) or isinstance(value, str):
        return cell
    if isinstance(value, bool):
        return {"true": True, "false": False}.get(cell.lower(), cell)
    if isinstance(value, float | int):
        for read in (int, float):
            with contextlib.suppress(ValueError):
                return read(cell)
    return cell


def _as_time(value: object, cell: datetime) -> object:
    """The value as a time in the cell's zone if it names none; itself if it is no time."""
    try:
        time = datetime.fromisoformat(f"{value}-01" if MONTH.fullmatch(str(value)) else value)
    except (TypeError, ValueError):
        return value
    if time.tzinfo is None:
        return time.replace(tzinfo=cell.tzinfo)
    # UTC is what a table without zones mostly means; of another zone nobody knows.
    if cell.tzinfo is None:
        return time.replace(tzinfo=None) if time.utcoffset() == timedelta(0) else value
    return time


def _kind(value: object) -> str:
    """Name of a value's kind; values of one kind can be compared."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float | int):
        return "a number"
    if isinstance(value, datetime):  # or a subclass, such as that of pandas
        return "a time"
    return "a text" if isinstance(value, str) else f"a {type(value).__name__}"


def _shown(value: object) -> str:
    """A value as it is written behind an operator."""
    words = {None: "null", True: "true", False: "false"}
    is_word = value is None or isinstance(value, bool)
    return words[value] if is_word else _cut(str(value))


def _described(cell: object) -> str:
    """What was found: its kind, and the value itself if that is short to say."""
    if isinstance(cell, str):
        return f"a text {_cut(cell)!r}"
    is_simple = cell is None or isinstance(cell, float | int)
    return _shown(cell) if is_simple else _kind(cell)


def _cut(text: str) -> str:
    """The text, or its beginning if it is long."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
