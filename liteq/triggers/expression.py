"""The grammar of cron expressions: text to ``CronFields``, or a ``TriggerError`` that names the field and the text.

Floor 0. Nothing here knows of zones or of the present. Every value that may stand in a field (numbers, names, ``L``,
``15W``, ``MON#2``, ``5L``) is in a table, so nothing outside the tables is understood: no sign, no underscore, no
Unicode digit, and no text is ever handed to ``int``.

::

    expression  [second] minute hour day month weekday, apart by spaces and tabs    or  @daily and its kin
    field       item [, item ...]
    item        run [/ step]  |  L  |  LW  |  15W (day)  |  MON#2  |  5L (weekday)
    run         *  |  value  |  value-value        a value with a step runs to the end of the field
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from liteq.errors import TriggerError
from liteq.triggers.fields import EVERY_WEEKDAY, LAST_DAY, LAST_WEEK, LAST_WORKDAY, NEAREST_WORKDAY, CronFields

BOTH_DAYS = "both-days"
"""Written behind an expression whose two day fields must both match although neither begins with ``*``."""

NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
REBOOT = "@reboot"

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")

_LONGEST_NUMBER = 9
_LONGEST_LIST = 100
_LONGEST_QUOTE = 40


def quoted(text: str) -> str:
    """A text as it is shown in a message: in quotes, with escapes, and not longer than a line."""
    return repr(text) if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]!r}... ({len(text)} characters)"


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of the grammar.

    Args:
        argument: its name as a keyword of ``crontab``.
        label: its name in messages about an expression.
        low, high: the numbers that may be written.
        size: how many different values there are: 7 for weekdays, where 0 and 7 are the same.
        values: number and name texts, upper case, to their number.
        sets: every text that may stand alone as an item, upper case, to its bits.
    """

    argument: str
    label: str
    low: int
    high: int
    size: int
    values: dict[str, int]
    sets: dict[str, int]


def _field(argument: str, label: str, low: int, high: int, size: int, names: tuple[str, ...] = ()) -> _Field:
    """A field whose tables hold the numbers (``5`` and ``05``) and the names counted from ``low``."""
    values = {f"{number:0{width}}": number for width in (1, 2) for number in range(low, high + 1)}
    values.update((name, low + index) for index, name in enumerate(names))
    sets = {text: 1 << (low + (number - low) % size) for text, number in values.items()}
    sets["*"] = ((1 << size) - 1) << low
    return _Field(argument, label, low, high, size, values, sets)


def _day_field() -> _Field:
    """The days of the month, with ``L``, ``LW`` and ``1W`` to ``31W``."""
    field = _field("day", "day of month", 1, 31, 31)
    field.sets.update({f"{day}W": 1 << (NEAREST_WORKDAY + day) for day in range(1, 32)})
    field.sets.update({"L": 1 << LAST_DAY, "LW": 1 << LAST_WORKDAY})
    return field


def _weekday_field() -> _Field:
    """The days of the week, with ``MON#1`` to ``MON#5`` and ``MONL``."""
    field = _field("day_of_week", "day of week", 0, 7, 7, WEEKDAYS)
    for text, weekday in field.values.items():
        bit = 1 << weekday % 7
        field.sets.update({f"{text}#{week}": bit << 7 * week for week in range(1, 6)})
        field.sets[f"{text}L"] = bit << 7 * LAST_WEEK
    return field


SECOND = _field("second", "second", 0, 59, 60)
MINUTE = _field("minute", "minute", 0, 59, 60)
HOUR = _field("hour", "hour", 0, 23, 24)
DAY = _day_field()
MONTH = _field("month", "month", 1, 12, 12, MONTHS)
WEEKDAY = _weekday_field()
_SIX = (SECOND, MINUTE, HOUR, DAY, MONTH, WEEKDAY)
_SIX_SETS = tuple((field, field.sets) for field in _SIX)
_EVERY_DAY = DAY.sets["*"]

_STEPPED = (0, *(sum(1 << position for position in range(0, 64, step)) for step in range(1, 61)))
"""Bits 0, s, 2s ... for every step s: a stepped run is a slice of it, moved to where the run begins."""


def split_blanks(text: str) -> list[str]:
    """The words of a text, apart by spaces and tabs and by nothing else."""
    words = text.replace("\t", " ").split(" ")
    return [word for word in words if word] if "" in words else words


def read_expression(words: list[str], *, both_days: bool = False) -> CronFields:
    """The fields of an expression.

    Args:
        words: five fields (minute first), six (second first) or one nickname such as ``@daily``.
        both_days: both day fields must match even if neither begins with ``*``.

    Raises:
        TriggerError: it cannot be read, or it names a date that never exists.
    """
    if len(words) == 1 and words[0].startswith("@"):
        words = _expanded(words[0]).split(" ")
    texts = ["0", *words] if len(words) == 5 else words
    if len(texts) != 6:
        shown = quoted(" ".join(words))
        raise TriggerError(f"a crontab expression has 5 fields, or 6 with seconds first; {shown} has {len(words)}")
    return _build(texts, both_days, named=False)


def read_keywords(texts: list[str]) -> CronFields:
    """The fields of the keyword form: both day fields must match, and messages name the keyword.

    Args:
        texts: second, minute, hour, day, month, day of week.

    Raises:
        TriggerError: one of them cannot be read, or they name a date that never exists.
    """
    return _build(texts, both_days=True, named=True)


def _expanded(nickname: str) -> str:
    """The five fields that a nickname such as ``@daily`` stands for."""
    expression = NICKNAMES.get(nickname.lower()) if nickname.isascii() else None
    if expression is None:
        known = ", ".join([*NICKNAMES, REBOOT])
        raise TriggerError(f"no crontab nickname {quoted(nickname)}: the nicknames are {known}")
    return expression


def _build(texts: list[str], both_days: bool, named: bool) -> CronFields:
    """The fields of six texts, checked for a date that exists."""
    second, minute, hour, day, month, weekday = [
        sets.get(text) or _read_field(text, field, named) for text, (field, sets) in zip(texts, _SIX_SETS, strict=False)
    ]
    both_days = both_days or texts[3][0] == "*" or texts[5][0] == "*"
    real_time = texts[1][0] == "*" or texts[2][0] == "*"
    daily = day == _EVERY_DAY and weekday == EVERY_WEEKDAY
    fields = CronFields(second, minute, hour, day, month, weekday, both_days, real_time, daily)
    if not fields.exists():
        raise TriggerError(_never(texts, named))
    return fields


def _never(texts: list[str], named: bool) -> str:
    """Why an expression can never be due."""
    parts = (
        f"{field.argument if named else field.label} {quoted(text)}"
        for field, text in zip(_SIX[3:], texts[3:], strict=True)
        if text != "*"
    )
    return f"no date ever matches {', '.join(parts)}: this trigger would never be due"


def _read_field(text: str, field: _Field, named: bool) -> int:
    """The bits of one field's text."""
    label = field.argument if named else field.label
    if not text.isascii():
        foreign = next(character for character in text if not character.isascii())
        _refuse(label, text, text, f"has a character that is not ASCII: {foreign!r} (U+{ord(foreign):04X})")
    mask = 0
    for item in text.split(","):
        mask |= field.sets.get(item.upper()) or _read_item(item, field, label, text)
    return mask


def _read_item(item: str, field: _Field, label: str, whole: str) -> int:
    """The bits of one item of a list: a run, with or without a step."""
    run, slash, step_text = item.partition("/")
    start_text, dash, end_text = run.partition("-")
    if run == "*":
        start, end = field.low, field.low + field.size - 1
    else:
        start = _value(start_text, field, label, item, whole)
        end = start
        if dash:
            end = _value(end_text, field, label, item, whole)
        elif slash:
            end = field.high
    step = _step(step_text, field, label, item, whole) if slash else 1
    return _run(start, end, step, field)


def _run(start: int, end: int, step: int, field: _Field) -> int:
    """The bits of every ``step``-th value from ``start`` to ``end``, which may lie past the end of the field."""
    length = end - start + 1 if end >= start else (end - start) % field.size + 1
    positions = (_STEPPED[step] & ((1 << length) - 1)) << (start - field.low)
    wrapped = (positions | positions >> field.size) & ((1 << field.size) - 1)
    return wrapped << field.low


def _value(text: str, field: _Field, label: str, item: str, whole: str) -> int:
    """One end of a run, or a value alone."""
    number = field.values.get(text.upper())
    if number is None and len(text) <= _LONGEST_NUMBER and text.isdigit():
        number = field.values.get(text.lstrip("0") or "0")
    if number is None:
        _refuse(label, item, whole, _why_not_a_value(text, field, item))
    return number


def _why_not_a_value(text: str, field: _Field, item: str) -> str:
    """What is wrong with a text that should have been a value."""
    if not item:
        return "is empty: a value is missing"
    if text.isdigit():
        return f"is out of range: {field.low} to {field.high}"
    if not text:
        return "has a range or a step without a value"
    return "is not understood"


def _step(text: str, field: _Field, label: str, item: str, whole: str) -> int:
    """The number behind a ``/``."""
    digits = text.lstrip("0") if text.isdigit() else ""
    if not text.isdigit():
        _refuse(label, item, whole, "has a step that is not a number")
    if not digits:
        _refuse(label, item, whole, "has a step of 0: a step is at least 1")
    if len(digits) > 2 or int(digits) > field.size:
        _refuse(label, item, whole, f"has a step longer than the field: a step is at most {field.size}")
    return int(digits)


def _refuse(label: str, item: str, whole: str, why: str) -> NoReturn:
    """Raise the error about one item of a field."""
    place = "" if item == whole else f" (in {quoted(whole)})"
    raise TriggerError(f"crontab {label}: {quoted(item)} {why}{place}")


def keyword_text(value: object, argument: str) -> str:
    """A keyword's value as the text of a field.

    Args:
        value: a number, a text, or a list, tuple, set or range of them.
        argument: the keyword, for messages.

    Raises:
        TypeError: it is something else.
        TriggerError: it is empty, or holds a blank.
    """
    if isinstance(value, list | tuple | range | set | frozenset) and len(value) > _LONGEST_LIST:
        raise TriggerError(f"crontab {argument}: {len(value)} values are more than any field has")
    if isinstance(value, list | tuple | range):
        text = ",".join(_one_keyword_text(item, argument) for item in value)
    elif isinstance(value, set | frozenset):
        text = _set_text(value, argument)
    else:
        text = _one_keyword_text(value, argument)
    if not text:
        raise TriggerError(f"crontab {argument}: {value!r} is empty: give at least one value, or '*'")
    if " " in text or "\t" in text:
        raise TriggerError(f"crontab {argument}: {quoted(text)} holds a blank; write lists as '0,30' or [0, 30]")
    return text


def _set_text(values: Iterable[object], argument: str) -> str:
    """The values of a set, in an order that is always the same."""
    return ",".join(sorted((_one_keyword_text(item, argument) for item in values), key=lambda text: (len(text), text)))


def _one_keyword_text(value: object, argument: str) -> str:
    """One value of a keyword."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return _number_text(value, argument)
    raise TypeError(f"crontab {argument} must be a number, a text or a list of them, not {type(value).__name__}")


def _number_text(number: int, argument: str) -> str:
    """A number as text; a huge one is refused before the interpreter refuses to print it."""
    if abs(number) >= 10**_LONGEST_NUMBER:
        raise TriggerError(f"crontab {argument}: a number of {number.bit_length()} bits is out of range")
    return str(number)
