"""What goes in comes out the same, or is refused by name; what did not come from here is refused as well."""

from __future__ import annotations

import builtins
import dataclasses
import enum
import json
import json.encoder
import math
import os
import pickle
import random
import subprocess
import sys
import threading
import zlib
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation, localcontext
from fractions import Fraction
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, ClassVar, NamedTuple
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liteq import serializers
from liteq.errors import ConfigurationError, SerializationError, TaskTimeout
from liteq.serializers import (
    CompressedSerializer,
    JSONSerializer,
    PickleSerializer,
    Serializer,
    SignedSerializer,
    serializer_for,
)

BERLIN = ZoneInfo("Europe/Berlin")
KEY = "a secret of some length"


# ── Classes that users would have ────────────────────────────────────────────────────────────────────────────────────


class Color(enum.Enum):
    RED = 1
    ROT = 1  # noqa: PIE796 - an alias
    BLUE = (0, 0, 255)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mood(enum.StrEnum):
    GOOD = "good"
    BAD = "bad"


class Right(enum.Flag):
    READ = 1
    WRITE = 2
    ADMIN = 4


class Mask(enum.IntFlag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: float
    y: float = 0.0


Pair = namedtuple("Pair", "left right")


@dataclass
class Order:
    id: int
    items: list[Any] = field(default_factory=list)
    note: str = ""


@dataclass
class SpecialOrder(Order):
    gift: bool = True


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    color: Color


@dataclass
class Counted:
    """Its constructor changes what it is given, and computes a field that the constructor does not take."""

    name: str
    size: int = field(init=False)
    unset: int = field(init=False, repr=False, compare=False)
    seen: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self.name += "!"
        self.size = len(self.name)


class Text(str):
    """A str with a class of its own."""


class Plain:
    """Neither dataclass nor Enum."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is Plain and other.value == self.value

    __hash__ = None


ALL_CLASSES = (Color, Level, Mood, Right, Mask, Point, Pair, Order, SpecialOrder, Key, Counted)


@pytest.fixture
def serializer() -> JSONSerializer:
    return JSONSerializer()


def registered() -> JSONSerializer:
    """A serializer that knows all of the above."""
    known = JSONSerializer()
    for cls in ALL_CLASSES:
        known.register(cls)
    known.register(Plain, encode=lambda plain: plain.value, decode=Plain)
    known.register(Text, encode=str.__str__, decode=Text)
    known.register(OrderedDict, encode=lambda od: list(od.items()), decode=OrderedDict)
    known.register(Counter, encode=dict, decode=Counter)
    known.register(deque, encode=lambda d: (list(d), d.maxlen), decode=lambda pair: deque(*pair))
    known.register(Fraction, encode=str, decode=Fraction)
    return known


REGISTERED = registered()


# ── Sameness that minds types, signs of zero, fold and zones ─────────────────────────────────────────────────────────


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same down to the types of everything in them."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (one != one and other != other) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, (datetime, time)):
        return same_clock(one, other)
    if isinstance(one, timezone):
        return one == other and one.tzname(None) == other.tzname(None)
    if isinstance(one, (Plain, Order, Key)):
        return same(state(one), state(other))
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, (set, frozenset)):
        return len(one) == len(other) and all(any(same(item, match) for match in other) for item in one)
    return bool(one == other)


def state(instance: Any) -> object:
    return (
        instance.value
        if isinstance(instance, Plain)
        else [getattr(instance, it.name) for it in dataclasses.fields(instance)]
    )


def same_clock(one: Any, other: Any) -> bool:
    walls = one.replace(tzinfo=None), other.replace(tzinfo=None)
    if walls[0] != walls[1] or one.fold != other.fold or one.utcoffset() != other.utcoffset():
        return False
    if isinstance(one.tzinfo, ZoneInfo):
        return one.tzinfo is other.tzinfo
    return one.tzinfo is None or same(one.tzinfo, other.tzinfo)


def test_the_measure_of_these_tests_tells_lookalikes_apart() -> None:
    twins = [(1, True), (1, 1.0), (0.0, -0.0), ([1], (1,)), ({1: 2}, {True: 2}), ({1}, {1.0}), (Level.LOW, 1)]
    twins += [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (Decimal("1.0"), Decimal("1.00")),
        (complex(0, 0.0), complex(0, -0.0)),
    ]
    twins += [(datetime(2024, 1, 1), datetime(2024, 1, 1, fold=1))]
    twins += [(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")))]
    assert not any(same(one, other) for one, other in twins)


def round_trip(value: object, through: Serializer) -> object:
    """Through ``dumps`` and ``loads``, and check on the way that it is strict JSON in UTF-8."""
    data = through.dumps(value)
    assert type(data) is bytes
    if through.readable:
        json.loads(data.decode("utf-8"), parse_constant=pytest.fail)
        assert b"\n" not in data
    return through.loads(data)


# ── Strategies ───────────────────────────────────────────────────────────────────────────────────────────────────────

texts = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["$liteq", "value", "name", "\0", "\ud83d\ude00", "\udce9"]
)
integers = st.integers() | st.integers(600, 700).map(lambda digits: -(10**digits)) | st.just(2**64)
floats = st.floats() | st.sampled_from([-0.0, 1e22, 5e-324, 1.7976931348623157e308])
fixed_zones = st.builds(
    timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), st.text(st.characters(), max_size=5)
) | st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
zones = st.none() | st.timezones() | fixed_zones | st.just(UTC)
naive = st.datetimes()
folds = st.integers(0, 1)
moments = st.builds(lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold), naive, zones, folds)
clocks = st.builds(lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold), st.times(), zones, folds)
paths = texts.filter(lambda text: ":" not in text)  # PureWindowsPath itself misreads './c:a' on Python 3.11

atoms = st.one_of(
    *[st.none(), st.booleans(), integers, floats, texts, st.binary(max_size=20), st.complex_numbers()],
    *[
        st.decimals().filter(lambda number: not number.is_snan()),
        st.uuids(),
        moments,
        clocks,
        st.dates(),
        st.timedeltas(),
        fixed_zones,
        st.timezones(),
    ],
    *[paths.map(PurePosixPath), paths.map(PureWindowsPath), paths.map(Path)],
    *[st.sampled_from(Color), st.sampled_from(Level), st.sampled_from(Mood), st.sampled_from(Mask)],
    *[
        st.integers(0, 7).map(Right),
        texts.map(Text),
        st.fractions(),
        st.builds(range, st.integers(-9, 9), st.integers()),
    ],
)
hashables = st.recursive(
    st.deferred(lambda: atoms),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple)
        | st.frozensets(inner, max_size=4)
        | st.builds(Point, inner, inner)
        | st.builds(Key, texts, st.sampled_from(Color))
    ),
    max_leaves=5,
)
values = st.recursive(
    st.deferred(lambda: hashables | st.binary(max_size=20).map(bytearray) | st.sets(hashables, max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(texts, inner, max_size=5),
        st.dictionaries(hashables, inner, max_size=4),
        st.builds(Order, integers, st.lists(inner, max_size=3), texts),
        st.builds(Plain, inner),
        st.dictionaries(texts, inner, max_size=3).map(OrderedDict),
        st.lists(inner, max_size=3).map(deque),
    ),
    max_leaves=15,
)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


# ── Round trip ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(values)
@settings(max_examples=400)
def test_every_value_comes_back_exactly(value: object) -> None:
    assert same(round_trip(value, REGISTERED), value)


@given(plain_values.filter(lambda value: "$liteq" not in repr(value)))
def test_plain_values_are_the_json_that_everybody_writes(value: object) -> None:
    expected = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    assert JSONSerializer().dumps(value) == expected
    assert same(JSONSerializer().loads(expected), value)


@given(st.lists(values, max_size=4), st.dictionaries(texts, values, max_size=3))
def test_the_arguments_of_a_call_come_back_exactly(args: list[object], kwargs: dict[str, object]) -> None:
    data = REGISTERED.dumps_call(tuple(args), kwargs)
    assert same(REGISTERED.loads_call(data), (args, kwargs))


@given(values)
@settings(max_examples=50)
def test_signed_compressed_and_both_bring_back_the_same(value: object) -> None:
    packed = CompressedSerializer(REGISTERED, threshold=0)
    for wrapper in (SignedSerializer(KEY, REGISTERED), packed, SignedSerializer(KEY, packed)):
        assert same(wrapper.loads(wrapper.dumps(value)), value)
        assert same(wrapper.loads_call(wrapper.dumps_call((value,), {"key": value})), ([value], {"key": value}))


@pytest.mark.parametrize(
    "value",
    [
        *[None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, 1e22, "", "x", "\0", "ü€😀", "\ud800", "\udce9.txt"],
        *[math.inf, -math.inf, math.nan, [math.nan], {"a": math.inf}, complex(-0.0, math.nan), 1j],
        *[10**4299, 10**4300, -(10**10_000), [2**100_000], {"big": 10**5000}],
        *["\ud83d\ude00", "a\ud83d", "\ud83d" + "b" + "\ude00", {"\ud83d\ude00": 1}, [["\udcff"]]],
        *[(), (1,), ((),), [()], set(), frozenset(), {frozenset({1}), (2, "b")}, {1, "1", None, 2.5}],
        *[{}, {1: 2}, {"1": 1, 1: "1"}, {None: 1, "null": 2}, {False: 0, "false": 1}, {(1, 2): {3: (4,)}}, {1.5: 1}],
        *[{"$liteq": 1}, {"$liteq": "tuple", "value": [1]}, {"$liteq": {"$liteq": {}}}, {"a": [{"$liteq": None}]}],
        *["$liteq", '"$liteq"', ["$liteq"], {"a": '{"$liteq":"tuple","value":[]}'}, ('"$liteq"', {"$liteq": ()})],
        *[b"", b"\0\xff", bytearray(b"x"), range(0), range(5, 1, -2), range(10**30)],
        *[Decimal("1.10"), Decimal("-0"), Decimal("1E+9999"), Decimal("NaN"), Decimal("sNaN12"), Decimal("-Infinity")],
        *[UUID(int=0), uuid4(), PurePosixPath("a/b"), PureWindowsPath("c:/a"), Path("/tmp/ü"), Path("x\udce9")],
        *[date.min, date.max, timedelta.min, timedelta.max, timedelta(microseconds=-1), time.min, time.max],
        *[time(1, tzinfo=timezone(timedelta(microseconds=sign))) for sign in (1, -1)],
        *[datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=sign), "tiny")) for sign in (1, -1)],
        *[UTC, timezone(timedelta(hours=1)), timezone(timedelta(hours=1), "CET"), BERLIN, ZoneInfo("Etc/GMT+5")],
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_awkward_values_come_back_exactly(serializer: JSONSerializer, value: object) -> None:
    assert same(round_trip(value, serializer), value)
    assert same(round_trip([value, {"in": value}], serializer), [value, {"in": value}])


def test_a_call_of_plain_arguments_is_compact_readable_json(serializer: JSONSerializer) -> None:
    assert serializer.dumps_call(([1, 2],), {"x": "y"}) == b'[[[1,2]],{"x":"y"}]'
    assert serializer.dumps_call((1, 2), {"x": "ü€😀"}) == '[[1,2],{"x":"ü€😀"}]'.encode()
    assert serializer.dumps_call((), {}) == b"[[],{}]"
    assert serializer.loads_call(b"[[1,2],{}]") == ([1, 2], {})


def test_a_tuple_among_the_arguments_is_tagged_and_the_arguments_are_not(serializer: JSONSerializer) -> None:
    data = serializer.dumps_call((1, (2, 3)), {"k": b"x"})
    assert data == b'[[1,{"$liteq":"tuple","value":[2,3]}],{"k":{"$liteq":"bytes","value":"eA=="}}]'
    assert same(serializer.loads_call(data), ([1, (2, 3)], {"k": b"x"}))


def test_keyword_arguments_may_have_the_name_of_the_tag(serializer: JSONSerializer) -> None:
    call = ([1], {"$liteq": "tuple", "value": 2})
    assert same(serializer.loads_call(serializer.dumps_call((1,), call[1])), call)


def test_keywords_that_are_not_plain_text_are_refused(serializer: JSONSerializer) -> None:
    for key in (1, Mood.GOOD, Text("x")):
        with pytest.raises(SerializationError, match="a keyword is a plain str, not"):
            serializer.dumps_call((), {key: 1})


def test_json_of_another_writer_is_read(serializer: JSONSerializer) -> None:
    assert serializer.loads(b' \n{"a" : [1, 2.0, "\\u00fc\\ud83d\\ude00"]}\n') == {"a": [1, 2.0, "ü😀"]}
    assert serializer.loads(b' {"$liteq" : "tuple" , "value" : [ 1 ] } ') == (1,)
    assert serializer.loads_call(b"[ [1], {} ]") == ([1], {})


def test_dicts_keep_their_order(serializer: JSONSerializer) -> None:
    for keys in ("zax", (3, 1, 2)):
        assert list(serializer.loads(serializer.dumps(dict.fromkeys(keys)))) == list(keys)


def test_equal_sets_are_equal_bytes_under_every_hash_seed() -> None:
    script = "from liteq.serializers import JSONSerializer as S; print(S().dumps({'a', 'b', 'c', 1, 2, (3,), None}))"
    assert len({in_a_fresh_python(script, PYTHONHASHSEED=seed) for seed in ("1", "2", "3")}) == 1


def test_values_that_are_shared_come_back_as_copies(serializer: JSONSerializer) -> None:
    shared = [1]
    one, other = serializer.loads(serializer.dumps([shared, shared]))
    assert one == other == shared
    assert one is not other


def test_an_interpreter_without_a_c_encoder_writes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise TypeError("another signature")

    for stand_in in (None, refuse):
        monkeypatch.setattr(json.encoder, "c_make_encoder", stand_in)
        write = serializers.document.compact_encoder()
        monkeypatch.undo()
        assert write([1, {"ü": None}]) == '[1,{"ü":null}]'
        with pytest.raises(ValueError, match="JSON"):
            write(math.nan)


def written(write: Callable[[Any], str], value: object) -> str:
    """What it writes; ``"refused"`` where that is no JSON."""
    try:
        return write(value)
    except ValueError:
        return "refused"


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text())
def test_a_single_value_is_written_as_json_writes_it(value: object) -> None:
    write = serializers.document.SCALARS[type(value)]
    public = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    assert written(write, value) == written(serializers.document.to_json, value) == written(public, value)


def test_an_integer_of_too_many_digits_is_refused_as_json_refuses_it() -> None:
    for encode in (serializers.document.SCALARS[int], serializers.document.to_json):
        assert written(encode, 10**5000) == "refused"


@given(
    st.lists(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text())
)
def test_a_call_of_single_values_is_written_as_any_other_call(values: list[object]) -> None:
    serializer, args = JSONSerializer(), tuple(values)
    payload = serializer.dumps_call(args, {})
    assert serializer.loads_call(payload) == (list(args), {}) or serializer.loads_call(payload) == (args, {})
    if b"$liteq" not in payload:
        assert json.loads(payload) == [values, {}]


# ── Time zones ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_aware_datetime_keeps_instant_zone_and_fold(serializer: JSONSerializer) -> None:
    for fold in (0, 1):
        twice = datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=fold)
        back = round_trip(twice, serializer)
        assert isinstance(back, datetime)
        assert back.tzinfo is BERLIN
        assert (back.fold, back.timestamp()) == (fold, twice.timestamp())
    missing = datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN, fold=1)
    assert same(round_trip(missing, serializer), missing)


def test_a_datetime_reads_as_rfc_9557_has_it(serializer: JSONSerializer) -> None:
    moment = datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1)
    stored = json.loads(serializer.dumps(moment))
    assert stored == {"$liteq": "datetime", "value": "2024-10-27T02:30:00+01:00[Europe/Berlin][_fold=1]"}


def test_the_instant_wins_where_the_rules_of_a_zone_have_changed(serializer: JSONSerializer) -> None:
    before_the_change = b'{"$liteq":"datetime","value":"2024-07-01T12:00:00+01:00[Europe/Berlin]"}'
    back = serializer.loads(before_the_change)
    assert back == datetime(2024, 7, 1, 11, tzinfo=UTC)
    assert same(back, datetime(2024, 7, 1, 13, tzinfo=BERLIN))


def test_every_zone_of_this_machine_is_kept(serializer: JSONSerializer) -> None:
    for key in zoneinfo.available_timezones():
        assert serializer.loads(serializer.dumps(ZoneInfo(key))) is ZoneInfo(key)


class Sideways(tzinfo):
    """A tzinfo of a third party."""

    def __init__(self, offset: timedelta | None) -> None:
        self.offset = offset

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        if self.offset == timedelta.max:
            raise RuntimeError("broken")
        return self.offset

    def dst(self, moment: datetime | None) -> None:
        return None


def test_a_tzinfo_of_a_third_party_becomes_its_fixed_offset(serializer: JSONSerializer) -> None:
    moment = datetime(2024, 1, 1, tzinfo=Sideways(timedelta(hours=5, seconds=7)))
    back = serializer.loads(serializer.dumps(moment))
    assert back == moment
    assert same(back, datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5, seconds=7))))


def test_a_tzinfo_without_an_offset_and_a_broken_one_are_refused(serializer: JSONSerializer) -> None:
    with pytest.raises(SerializationError, match=r"args\[0\]\['at'\]: its tzinfo, .*Sideways, has no offset"):
        serializer.dumps_call(({"at": datetime(2024, 1, 1, tzinfo=Sideways(None))},), {})
    with pytest.raises(SerializationError, match="Sideways, raised RuntimeError: broken"):
        serializer.dumps(datetime(2024, 1, 1, tzinfo=Sideways(timedelta.max)))
    with pytest.raises(SerializationError, match="has no offset"):
        serializer.dumps(time(1, tzinfo=Sideways(None)))


def zone_from_file(key: str | None) -> ZoneInfo:
    """The rules of Berlin, read from a file, under any key."""
    for folder in zoneinfo.TZPATH:
        if (Path(folder) / "Europe/Berlin").exists():
            with (Path(folder) / "Europe/Berlin").open("rb") as rules:
                return ZoneInfo.from_file(rules, key)
    pytest.skip("this machine keeps no zone files")


@pytest.mark.parametrize("key", [None, "No/Such", "../../etc/passwd", "x][_fold=1", ""])
def test_a_zone_that_cannot_be_found_again_becomes_its_offset(serializer: JSONSerializer, key: str | None) -> None:
    zone = zone_from_file(key)
    moment = datetime(2024, 7, 1, tzinfo=zone)
    assert same(serializer.loads(serializer.dumps(moment)), moment.replace(tzinfo=timezone(timedelta(hours=2))))
    with pytest.raises(SerializationError, match="no key under which it can be found"):
        serializer.dumps(zone)


def test_a_zone_that_this_machine_does_not_know_is_named(serializer: JSONSerializer) -> None:
    with pytest.raises(SerializationError, match="no time zone 'Mars/Olympus': install"):
        serializer.loads(b'{"$liteq":"datetime","value":"2024-07-01T12:00:00+01:00[Mars/Olympus]"}')


# ── Refused, by name ─────────────────────────────────────────────────────────────────────────────────────────────────


def generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "object is not a type that JSON can carry"),
        (Plain(1), r"test_serializers\.Plain is not a type that JSON can carry.*id.*encode=…, decode=….*pickle"),
        (
            Order(1),
            r"test_serializers\.Order is a dataclass that is not registered: call serializer\.register\(Order\)",
        ),
        (Order, "type is not a type"),
        (Color.RED, r"Color is an Enum that is not registered: call serializer\.register\(Color\)"),
        (Level.LOW, "Level is an Enum that is not registered"),
        (Mood.GOOD, "Mood is an Enum that is not registered"),
        (Right.READ | Right.WRITE, "Right is an Enum that is not registered"),
        (Point(1, 2), "Point is a namedtuple that is not registered"),
        (OrderedDict(), "collections.OrderedDict is a subclass of dict and would come back as plain dict"),
        (defaultdict(list), "subclass of dict"),
        (Counter(), "subclass of dict"),
        (Text("x"), "Text is a subclass of str and would come back as plain str"),
        (type("MyInt", (int,), {})(1), "subclass of int"),
        (type("MyFloat", (float,), {})(1), "subclass of float"),
        (type("MyList", (list,), {})(), "subclass of list"),
        (type("MyTuple", (tuple,), {})(), "subclass of tuple"),
        (type("MySet", (set,), {})(), "subclass of set"),
        (type("MyBytes", (bytes,), {})(), "subclass of bytes"),
        (type("MyDatetime", (datetime,), {})(2024, 1, 1), "subclass of datetime"),
        (type("MyDate", (date,), {})(2024, 1, 1), "subclass of date"),
        (deque(), "deque is not a type"),
        (memoryview(b"x"), "pass bytes"),
        (len, "builtin_function_or_method is not a type"),
        (lambda: 1, "function is not a type"),
        (generator(), "generator is not a type"),
        (Ellipsis, "ellipsis is not a type"),
        (threading.Lock(), "lock is not a type"),
        (ValueError("x"), "ValueError is not a type"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_what_cannot_be_stored_is_refused_with_the_way_out(
    serializer: JSONSerializer, value: object, words: str
) -> None:
    for dumps in (serializer.dumps, lambda value: serializer.dumps_call((value,), {})):
        with pytest.raises(SerializationError, match=words):
            dumps(value)


@pytest.mark.parametrize(
    ("build", "path"),
    [
        (lambda bad: bad, ""),
        (lambda bad: [1, bad], "[1]"),
        (lambda bad: (1, [2, bad]), "[1][1]"),
        (lambda bad: {"items": [0, 1, 2, {"user": bad}]}, "['items'][3]['user']"),
        (lambda bad: Order(1, [0, bad]), ".items[1]"),
        (lambda bad: [Point(1.0, bad)], "[0].y"),
        (lambda bad: {(1, 2): bad}, "[tuple key]"),
        (lambda bad: {bad: 1}, " (a key of type object)"),
        (lambda bad: {(1, bad): 1}, " (a key of type tuple)[1]"),
        (lambda bad: {"s": {bad}}, "['s']{…}"),
        (lambda bad: [frozenset({(bad,)})], "[0]{…}[0]"),
        (lambda bad: Plain([bad]), "[0]"),
        (lambda bad: {"k" * 100: bad}, "[str key]"),
        (lambda bad: {10**5000: bad}, "[int key]"),
    ],
)
def test_an_error_names_the_way_to_the_value(build: Callable[[object], object], path: str) -> None:
    value = build(object())
    for root, dumps in (
        ("value", lambda: REGISTERED.dumps(value)),
        ("argument 'user'", lambda: REGISTERED.dumps_call((1, value), {}, ("first", "user"))),
        ("args[1]", lambda: REGISTERED.dumps_call((1, value), {}, ("first",))),
        ("argument 'extra'", lambda: REGISTERED.dumps_call((1,), {"good": 1, "extra": value}, ("first",))),
    ):
        with pytest.raises(SerializationError) as caught:
            dumps()
        assert str(caught.value).startswith(f"cannot store {root}{path}: object is not a type")


def test_messages_do_not_show_values(serializer: JSONSerializer) -> None:
    class Secret:
        def __repr__(self) -> str:
            return "hunter2"

    with pytest.raises(SerializationError) as caught:
        serializer.dumps_call(({"password": Secret(), Secret: "hunter2"},), {})
    assert "hunter2" not in str(caught.value)


# ── Depth and cycles ─────────────────────────────────────────────────────────────────────────────────────────────────

WRAPPINGS: list[Callable[[object], object]] = [
    lambda inner: [inner],
    lambda inner: (1, inner),
    lambda inner: {"a": inner},
    lambda inner: {1: inner},
    lambda inner: Order(1, inner),
    lambda inner: Plain(inner),
]


def unwrap(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return value[-1]
    if isinstance(value, dict):
        return next(iter(value.values()))
    return value.items if isinstance(value, Order) else value.value


def nested(depth: int, seed: int) -> object:
    value: object = "bottom"
    choose = random.Random(seed)
    for _ in range(depth):
        value = choose.choice(WRAPPINGS)(value)
    return value


@pytest.mark.parametrize("depth", [62, 63, 64, 65, 66, 127, 128, 129, 500, 9_000])
def test_deep_values_come_back(depth: int) -> None:
    for seed in range(3 if depth > 1000 else 20):
        value = nested(depth, seed)
        back = REGISTERED.loads(REGISTERED.dumps(value))
        for _ in range(depth):
            assert type(value) is type(back)
            value, back = unwrap(value), unwrap(back)
        assert value == back == "bottom"


@pytest.mark.parametrize("depth", [64, 65, 3000])
def test_deep_plain_lists_come_back(serializer: JSONSerializer, depth: int) -> None:
    value: list[Any] = []
    for _ in range(depth):
        value = [value, 1]
    args, kwargs = serializer.loads_call(serializer.dumps_call((value,), {"deep": value}))
    for back in (args[0], kwargs["deep"]):
        for _ in range(depth):
            back, one = back
            assert one == 1
        assert back == []


def test_many_deep_branches_come_back(serializer: JSONSerializer) -> None:
    def chain(number: int) -> object:
        value: object = (number,)
        for _ in range(150):
            value = {"next": value, "number": number}
        return value

    value = [chain(number) for number in range(20)]
    assert serializer.loads(serializer.dumps(value)) == value


def test_what_is_wrong_far_down_is_still_named_by_its_argument(serializer: JSONSerializer) -> None:
    value: object = {"name": object()}
    for _ in range(1000):
        value = [value]
    with pytest.raises(SerializationError, match=r"cannot store argument 'tree'…(\[0\])+\['name'\]: object is not"):
        serializer.dumps_call((value,), {}, ["tree"])


def test_a_depth_without_an_end_is_refused(serializer: JSONSerializer) -> None:
    value: list[Any] = []
    for _ in range(20_100):
        value = [value]
    with pytest.raises(SerializationError, match="nested more than 20,000 levels"):
        serializer.dumps(value)


def cycles() -> Iterator[object]:
    itself: list[Any] = [1]
    itself.append(itself)
    yield itself
    yield [itself]
    named: dict[str, Any] = {"a": 1}
    named["self"] = named
    yield named
    keyed: dict[Any, Any] = {}
    keyed[1] = (keyed,)
    yield keyed
    branching: list[Any] = []
    branching.extend([branching, branching, branching])
    yield branching
    order = Order(1)
    order.items.append({"order": order})
    yield order
    plain = Plain(None)
    plain.value = plain_list = [plain]
    yield plain_list
    for length in (63, 64, 65, 128, 1000):
        ring: list[Any] = []
        inner: Any = ring
        for _ in range(length):
            inner = [inner]
        ring.append(inner)
        yield ring


@pytest.mark.parametrize("value", list(cycles()), ids=lambda value: type(value).__name__)
def test_a_value_that_contains_itself_is_refused(value: object) -> None:
    for dumps in (REGISTERED.dumps, lambda value: REGISTERED.dumps_call((), {"x": value})):
        with pytest.raises(SerializationError, match="contains itself"):
            dumps(value)


def test_an_encode_function_without_an_end_is_stopped(serializer: JSONSerializer) -> None:
    serializer.register(Plain, encode=lambda plain: [Plain(plain.value)], decode=Plain)
    with pytest.raises(SerializationError, match="levels deep"):
        serializer.dumps(Plain(1))
    serializer.register(Plain, encode=lambda plain: Plain(plain.value), decode=Plain)
    with pytest.raises(SerializationError, match="levels deep"):
        serializer.dumps(Plain(1))


def test_a_value_that_changes_while_it_is_stored_is_refused(serializer: JSONSerializer) -> None:
    restless: dict[str, object] = {"a": Plain(1), "b": 2}
    serializer.register(Plain, encode=lambda _: restless.update(more=1), decode=Plain)
    with pytest.raises(SerializationError, match=r"cannot store argument 'x': dictionary changed size"):
        serializer.dumps_call((restless,), {}, ["x"])


def test_a_nearly_full_stack_is_no_interpreter_error(serializer: JSONSerializer) -> None:
    deep = nested(60, seed=1)
    data = REGISTERED.dumps(deep)
    seen = set()

    def descend() -> None:
        for step in (lambda: REGISTERED.dumps(deep), lambda: REGISTERED.loads(data), lambda: serializer.dumps([[[]]])):
            try:
                step()
            except SerializationError as error:
                seen.add(str(error).split(":")[0])
        descend()

    with pytest.raises(RecursionError):
        descend()
    assert "cannot store value" in seen


# ── Registration ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "value",
    [
        *[Color.RED, Color.BLUE, Color.ROT, Level.HIGH, Mood.BAD, Mask.A | Mask.B, Mask(0), Right(0), Right(7)],
        *[Point(1, 2.0), Pair("l", (1,)), Order(1, [(2,)], "ü"), SpecialOrder(1, gift=False), Key("k", Color.BLUE)],
        *[Text("x"), OrderedDict(b=1, a=2), Counter("hello"), Fraction(1, 3), Plain((1,)), Plain(Plain(None))],
        *[{Color.RED: Level.LOW}, {Key("a", Color.RED)}, [Order(1, [Order(2)])]],
    ],
    ids=lambda value: type(value).__name__,
)
def test_instances_of_registered_classes_come_back(value: object) -> None:
    assert same(round_trip(value, REGISTERED), value)


def test_a_dataclass_is_stored_by_its_fields_and_an_enum_by_its_name() -> None:
    assert json.loads(REGISTERED.dumps(Order(1))) == {
        "$liteq": "class",
        "name": "Order",
        "value": {"id": 1, "items": [], "note": ""},
    }
    assert json.loads(REGISTERED.dumps(Level.HIGH)) == {"$liteq": "class", "name": "Level", "value": "HIGH"}


def test_a_constructor_that_changes_its_arguments_does_not_change_them_again() -> None:
    back = round_trip(Counted("x"), REGISTERED)
    assert back == Counted("x")
    assert isinstance(back, Counted)
    assert (back.name, back.size) == ("x!", 2)
    assert not hasattr(back, "unset")


def test_a_field_that_is_newer_than_the_job_gets_its_default() -> None:
    old = b'{"$liteq":"class","name":"Order","value":{"id":7}}'
    assert REGISTERED.loads(old) == Order(7)
    assert REGISTERED.loads(b'{"$liteq":"class","name":"Point","value":{"x":1.5}}') == Point(1.5)


def test_a_field_that_is_gone_and_a_field_that_is_missing_are_named() -> None:
    for stored, words in (
        ('"Order","value":{"id":7,"gone":1}', "Order has no field 'gone'"),
        ('"Order","value":{"note":""}', "'Order' cannot be read: TypeError: .*'id'"),
        ('"Order","value":[1]', "expected dict, found list"),
        ('"Point","value":{"y":1}', "'Point' cannot be read: KeyError"),
        ('"Point","value":{"z":1}', "Point has no field 'z'"),
        ('"Color","value":"GREEN"', "Color has no member 'GREEN'"),
        ('"Color","value":1', "expected str, found int"),
        ('"Right","value":64', "'Right' cannot be read: ValueError"),
        ('"Fraction","value":"1/0"', "'Fraction' cannot be read: ZeroDivisionError"),
        ('"Order"', "it has the keys"),
        ('["Order"],"value":{}', "an instance of a list, and no class"),
    ):
        with pytest.raises(SerializationError, match=words):
            REGISTERED.loads(f'{{"$liteq":"class","name":{stored}}}'.encode())


@pytest.mark.parametrize(
    "value", [Order(1), Color.RED, Point(1, 2), Plain(1), Text("x")], ids=lambda v: type(v).__name__
)
def test_a_class_that_only_the_sender_registered_is_refused_by_the_reader(
    serializer: JSONSerializer, value: object
) -> None:
    data = REGISTERED.dumps_call((value,), {})
    with pytest.raises(SerializationError, match=f"instance of '{type(value).__name__}', and no class is registered"):
        serializer.loads_call(data)


def test_registration_is_per_serializer(serializer: JSONSerializer) -> None:
    serializer.register(Order)
    assert serializer.loads(serializer.dumps(Order(1))) == Order(1)
    with pytest.raises(SerializationError, match="not registered"):
        JSONSerializer().dumps(Order(1))


def test_registration_is_of_one_class_and_not_of_its_subclasses(serializer: JSONSerializer) -> None:
    serializer.register(Order)
    with pytest.raises(SerializationError, match="SpecialOrder is a dataclass that is not registered"):
        serializer.dumps(SpecialOrder(1))


def test_register_is_a_decorator_with_and_without_arguments(serializer: JSONSerializer) -> None:
    @serializer.register
    @dataclass
    class Bare:
        x: int

    @serializer.register(name="other", encode=lambda it: it.x, decode=lambda x: Named(x))
    class Named:
        def __init__(self, x: int) -> None:
            self.x = x

    assert serializer.loads(serializer.dumps(Bare(1))) == Bare(1)
    assert json.loads(serializer.dumps(Named(3))) == {"$liteq": "class", "name": "other", "value": 3}
    back = serializer.loads(serializer.dumps(Named(3)))
    assert isinstance(back, Named)
    assert back.x == 3


def test_a_renamed_class_reads_what_is_stored_under_the_old_name(serializer: JSONSerializer) -> None:
    serializer.register(Order, name="Purchase")
    old = serializer.dumps(Order(1))
    serializer.register(Order)
    assert b'"Purchase"' in old
    assert b'"Order"' in serializer.dumps(Order(1))
    assert serializer.loads(old) == serializer.loads(serializer.dumps(Order(1))) == Order(1)


def test_two_classes_of_one_name_are_refused(serializer: JSONSerializer) -> None:
    serializer.register(Order)
    serializer.register(Order)
    with pytest.raises(ConfigurationError, match=r"name 'Order' is taken by .*Order; give one of them another name="):
        serializer.register(Plain, encode=repr, decode=Plain, name="Order")


def test_a_registration_that_makes_no_sense_is_refused(serializer: JSONSerializer) -> None:
    @dataclass
    class NeedsMore:
        x: int
        source: dataclasses.InitVar[str]

    @dataclass
    class Listed(list):
        x: int = 0

    for arguments, error, words in (
        ((Plain,), ConfigurationError, "only dataclasses, Enums and named tuples need no functions"),
        ((Text,), ConfigurationError, "only dataclasses"),
        ((Listed,), ConfigurationError, "only dataclasses"),
        ((NeedsMore,), ConfigurationError, "constructor needs 'source'"),
        ((Plain, repr), ConfigurationError, "encode and decode go together"),
        ((Order, None, None, ""), ConfigurationError, "name must be text"),
        ((Order, None, None, "\ud800"), ConfigurationError, "name must be text"),
        ((tuple, list, tuple), ConfigurationError, "stores this type exactly already"),
        ((Decimal, str, Decimal), ConfigurationError, "stores this type exactly already"),
        ((Order(1),), TypeError, "register takes a class, not .*Order"),
        (("Order",), TypeError, "register takes a class, not str"),
    ):
        with pytest.raises(error, match=words):
            serializer.register(*arguments)


def test_a_failing_encode_or_decode_is_named(serializer: JSONSerializer) -> None:
    serializer.register(Plain, encode=lambda plain: 1 / plain.value, decode=lambda value: {}[value])
    with pytest.raises(
        SerializationError, match=r"argument 'p'\[0\]: encoding a .*Plain raised ZeroDivisionError"
    ) as caught:
        serializer.dumps_call(([Plain(0)],), {}, ["p"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(SerializationError, match=r"'Plain' cannot be read: KeyError: 0\.5"):
        serializer.loads(serializer.dumps(Plain(2)))


def test_a_task_timeout_passes_through_encode_and_decode(serializer: JSONSerializer) -> None:
    def late(_: object) -> object:
        raise TaskTimeout("too late")

    data = REGISTERED.dumps(Plain(1))
    serializer.register(Plain, encode=late, decode=late)
    for step in (lambda: serializer.dumps(Plain(1)), lambda: serializer.loads(data)):
        with pytest.raises(TaskTimeout):
            step()


# ── Bytes from elsewhere ─────────────────────────────────────────────────────────────────────────────────────────────

TAGS = [*serializers.known.READERS, "class", "part", "parts", "ref", "os.system", "", "Order", "Plain"]
documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 99)
    | st.floats(-1, 1)
    | st.sampled_from([*TAGS, "2024-01-01", "\udc00"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["$liteq", "value", "name", "x"]), inner, max_size=4)
        | st.builds(lambda tag, value: {"$liteq": tag, "value": value}, st.sampled_from(TAGS), inner)
        | st.builds(lambda name, value: {"$liteq": "class", "name": name, "value": value}, st.sampled_from(TAGS), inner)
    ),
    max_leaves=12,
)


def survives(serializer: Serializer, data: bytes) -> None:
    """Garbage may happen to be a value; if it is not, only one kind of error may come out."""
    for loads in (serializer.loads, serializer.loads_call):
        try:
            loads(data)
        except SerializationError as error:
            assert str(error)


@given(st.binary(max_size=80))
def test_garbage_raises_nothing_but_serialization_errors(data: bytes) -> None:
    for serializer in (REGISTERED, SignedSerializer(KEY), CompressedSerializer()):
        survives(serializer, data)
        survives(serializer, b"LQS1" + data)
        survives(serializer, b"\0LQZ1" + data)
        survives(serializer, b'{"$liteq":' + data)


@given(documents)
@settings(max_examples=500)
def test_forged_tags_raise_nothing_but_serialization_errors(document: object) -> None:
    survives(REGISTERED, json.dumps(document, separators=(",", ":")).encode())
    parts = {"$liteq": "parts", "value": document}
    survives(REGISTERED, json.dumps(parts, separators=(",", ":")).encode())


@given(values, st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_damaged_bytes_raise_nothing_but_serialization_errors(value: object, choose: random.Random) -> None:
    data = bytearray(REGISTERED.dumps(value))
    for _ in range(choose.randint(1, 4)):
        data[choose.randrange(len(data))] = choose.randrange(256)
    survives(REGISTERED, bytes(data))
    survives(REGISTERED, bytes(data[: choose.randrange(len(data) + 1)]))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON that can be read: there are none"),
        (b"\xff\xfe", "can't decode byte"),
        (b"[1,", "Expecting value"),
        (b"[1] x", "Extra data"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"$liteq":' * 100_000, "nested too deeply"),
        (b"9" * 5000, "digits"),
        (b"\x80\x05N.", "they look like pickle"),
        (SignedSerializer(KEY).dumps([1]), "they are signed: read them with the SignedSerializer"),
        (CompressedSerializer(threshold=0).dumps([1] * 99), "they are compressed"),
        (b'{"$liteq":"tuple"}', "'tuple' cannot be read: ValueError: it has the keys"),
        (b'{"$liteq":"tuple","value":[],"x":1}', "it has the keys"),
        (b'{"$liteq":"tuple","value":"abc"}', "expected list, found str"),
        (b'{"$liteq":"set","value":[[]]}', "'set' cannot be read: TypeError: unhashable"),
        (b'{"$liteq":"bytes","value":"!"}', "'bytes' cannot be read"),
        (b'{"$liteq":"datetime","value":"today"}', "Invalid isoformat string"),
        (b'{"$liteq":"datetime","value":"2024-01-01T00:00:00[Europe/Berlin]"}', "a zone and no offset"),
        (b'{"$liteq":"datetime","value":"2024-01-01T00:00:00+00:00[../../etc/passwd]"}', "is not a time stamp"),
        (b'{"$liteq":"zoneinfo","value":"../../etc/passwd"}', "no time zone can be called '../../etc/passwd'"),
        (b'{"$liteq":"zoneinfo","value":"Europe"}', "'zoneinfo' cannot be read"),
        (b'{"$liteq":"decimal","value":"one"}', "'decimal' cannot be read: InvalidOperation"),
        (b'{"$liteq":"date","value":"' + b"x" * 9999 + b'"}', "Invalid isoformat string.*…"),
        (b'{"$liteq":"surprise","value":1}', "of a kind this liteq does not know, 'surprise'"),
        (b'{"$liteq":["tuple"],"value":1}', "does not know, a list"),
        (b'{"$liteq":"ref","value":1}', "does not know, 'ref'"),
        (b'{"$liteq":"parts","value":[{"$liteq":"ref","value":1}]}', "parts do not fit together"),
        (b'{"$liteq":"parts","value":[]}', "parts do not fit together"),
        (b'{"$liteq":"parts"}', "parts do not fit together"),
    ],
    ids=lambda part: repr(part)[:30],
)
def test_broken_bytes_say_what_is_wrong(serializer: JSONSerializer, data: bytes, words: str) -> None:
    with pytest.raises(SerializationError, match=words) as caught:
        serializer.loads(data)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("data", [b"5", b"null", b"[]", b"[1,2]", b"[[],[]]", b"[{},{}]", b'{"args":[]}', b"[[],{},1]"])
def test_a_value_that_is_no_call_is_refused_as_a_payload(serializer: JSONSerializer, data: bytes) -> None:
    with pytest.raises(SerializationError, match="not the payload of a job"):
        serializer.loads_call(data)
    with pytest.raises(SerializationError, match="not the payload of a job"):
        serializer.loads_call(b'[[],{"$liteq":"dict","value":[[1,2]]}]')


def test_forged_parts_cannot_multiply(serializer: JSONSerializer) -> None:
    def part(number: int, value: object) -> object:
        return {"$liteq": "part", "value": [number, value]}

    ref = {"$liteq": "ref", "value": 1}
    bomb = {"$liteq": "parts", "value": [part(1, [1]), part(0, [ref, ref])]}
    with pytest.raises(SerializationError, match="do not fit together"):
        serializer.loads(json.dumps(bomb, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    "name", ["os.system", "subprocess.Popen", "builtins.eval", "Order", "antigravity", "__main__.x"]
)
def test_a_tag_that_names_an_unregistered_class_runs_and_imports_nothing(
    serializer: JSONSerializer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    imported: list[str] = []
    really_import = builtins.__import__
    loaded = set(sys.modules)

    def watched(module: str, *rest: Any) -> Any:
        imported.append(module)
        return really_import(module, *rest)

    data = json.dumps({"$liteq": "class", "name": name, "value": "touch /tmp/owned"}, separators=(",", ":")).encode()
    monkeypatch.setattr(builtins, "__import__", watched)
    with pytest.raises(SerializationError, match=f"instance of '{name}', and no class is registered under this name"):
        serializer.loads(data)
    monkeypatch.undo()
    assert imported == []
    assert set(sys.modules) == loaded


def test_a_decimal_is_read_strictly_whatever_the_callers_context_says(serializer: JSONSerializer) -> None:
    with localcontext() as context:
        context.prec = 2
        context.traps[InvalidOperation] = False
        assert serializer.loads(serializer.dumps(Decimal("1.23456"))) == Decimal("1.23456")
        with pytest.raises(SerializationError, match="InvalidOperation"):
            serializer.loads(b'{"$liteq":"decimal","value":"one"}')


@pytest.mark.skipif(os.name == "nt", reason="the other way round there")
def test_a_path_of_another_system_is_refused(serializer: JSONSerializer) -> None:
    assert type(serializer.loads(b'{"$liteq":"posix_path","value":"a"}')) is PosixPath
    with pytest.raises(SerializationError, match=WindowsPath.__name__):
        serializer.loads(b'{"$liteq":"windows_path","value":"a"}')


# ── Light to import ──────────────────────────────────────────────────────────────────────────────────────────────────


def in_a_fresh_python(script: str, **environment: str) -> str:
    """What a script prints that starts with nothing imported."""
    root = Path(serializers.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_heavy_modules_are_loaded_when_a_value_needs_them() -> None:
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"  # an editable install loads pathlib at every start
        "from liteq.serializers import JSONSerializer\n"
        "heavy = {'decimal', 'uuid', 'pathlib', 'zoneinfo', 'hmac', 'pickle', 'zlib'} - before\n"
        "serializer = JSONSerializer()\n"
        "assert serializer.loads(serializer.dumps((1, b'x'))) == (1, b'x')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "for tag, value in [('decimal', '1.5'), ('uuid', '0' * 32), ('pure_posix_path', 'a'), ('zoneinfo', 'UTC')]:\n"
        '    value = serializer.loads((\'{"$liteq":"%s","value":"%s"}\' % (tag, value)).encode())\n'
        "    assert serializer.loads(serializer.dumps([value])) == [value], tag\n"
    )
    assert in_a_fresh_python(script) == "[]\n"


# ── Pickle ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(hashables, max_size=4))
@settings(max_examples=50)
def test_pickle_brings_back_everything(args: list[object]) -> None:
    serializer = PickleSerializer()
    assert same(serializer.loads(serializer.dumps(args)), args)
    assert same(serializer.loads_call(serializer.dumps_call(tuple(args), {"k": args})), (args, {"k": args}))


def test_pickle_takes_what_json_refuses() -> None:
    value = [OrderedDict(a=Order(1)), Level.LOW, deque([1])]
    value.append(value)
    back = PickleSerializer().loads(PickleSerializer().dumps(value))
    assert isinstance(back, list)
    assert back[:3] == value[:3]
    assert back[3] is back


def test_pickle_names_the_argument_it_cannot_take() -> None:
    serializer = PickleSerializer()
    for args, kwargs, words in (
        ((1, lambda: 1), {}, r"cannot store argument 'job' \(function\): pickle cannot store it: .*lambda"),
        ((1, 2, threading.Lock()), {}, r"cannot store args\[2\] \(_thread.lock\)"),
        ((1,), {"gen": generator()}, r"cannot store argument 'gen' \(generator\)"),
    ):
        with pytest.raises(SerializationError, match=words):
            serializer.dumps_call(args, kwargs, ["first", "job"])


def test_pickle_of_something_too_deep_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(SerializationError, match="nested too deeply"):
        PickleSerializer().dumps(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\x80\x05",
        b"[[],{}]",
        b"cno_such_module\nx\n.",
        b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)
def test_garbage_is_not_unpickled(data: bytes) -> None:
    with pytest.raises(SerializationError, match="cannot be unpickled"):
        PickleSerializer().loads(data)


def test_a_pickle_that_is_no_call_is_refused_as_a_payload() -> None:
    with pytest.raises(SerializationError, match="not the payload of a job"):
        PickleSerializer().loads_call(pickle.dumps({1: 2}))


# ── Signed ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_any_changed_byte_is_noticed() -> None:
    serializer = SignedSerializer(KEY)
    data = serializer.dumps_call((1, "x"), {})
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(SerializationError, match=r"signature does not fit|not signed"):
            serializer.loads_call(bytes(changed))
    for length in range(len(data)):
        with pytest.raises(SerializationError):
            serializer.loads_call(data[:length])
    with pytest.raises(SerializationError):
        serializer.loads_call(data + b" ")


def test_tampered_pickle_is_not_unpickled() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return pytest.fail, ("unpickled",)

    forged = SignedSerializer("another key, long enough", "pickle").dumps(Bomb())
    for data in (forged, pickle.dumps(Bomb())):
        with pytest.raises(SerializationError):
            SignedSerializer(KEY, "pickle").loads(data)


def test_a_result_cannot_be_passed_off_as_a_payload() -> None:
    serializer = SignedSerializer(KEY)
    with pytest.raises(SerializationError, match="signature does not fit"):
        serializer.loads_call(serializer.dumps([[1], {}]))
    with pytest.raises(SerializationError, match="signature does not fit"):
        serializer.loads(serializer.dumps_call((1,), {}))


def test_keys_are_rotated_without_losing_jobs() -> None:
    old, both, new = (
        SignedSerializer("the old key, 16+"),
        SignedSerializer(b"the new key, 16+", old_keys=["the old key, 16+"]),
        SignedSerializer(b"the new key, 16+"),
    )
    assert both.loads(old.dumps(1)) == 1
    assert new.loads(both.dumps(2)) == 2
    for reader, data in ((old, both.dumps(3)), (new, old.dumps(3))):
        with pytest.raises(SerializationError, match="old_keys"):
            reader.loads(data)


def test_text_and_its_utf_8_are_one_key() -> None:
    assert SignedSerializer("schlüssel für alles").loads(SignedSerializer("schlüssel für alles".encode()).dumps(1)) == 1


def test_a_poor_key_is_refused_and_never_shown() -> None:
    for make, error, words in (
        (lambda: SignedSerializer("hunter2"), ConfigurationError, "key has 7 bytes and needs at least 16"),
        (lambda: SignedSerializer(b""), ConfigurationError, "key has 0 bytes"),
        (lambda: SignedSerializer(KEY, old_keys=["hunter2"]), ConfigurationError, r"old_keys\[0\] has 7 bytes"),
        (lambda: SignedSerializer(KEY, old_keys=KEY), TypeError, "old_keys is a sequence of keys"),
        (lambda: SignedSerializer(12345), TypeError, "key must be str or bytes, not int"),
    ):
        with pytest.raises(error, match=words) as caught:
            make()
        assert "hunter2" not in str(caught.value)
    assert KEY not in repr(SignedSerializer(KEY))


# ── Compressed ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_small_values_stay_readable_and_large_ones_shrink() -> None:
    serializer = CompressedSerializer()
    assert serializer.dumps_call((1, "x"), {}) == b'[[1,"x"],{}]'
    large = "so much text " * 1000
    data = serializer.dumps_call((large,), {})
    assert len(data) < 500
    assert serializer.loads_call(data) == ([large], {})


def test_what_does_not_shrink_stays_as_it_is() -> None:
    noise = random.Random(1).randbytes(2000)
    assert CompressedSerializer("pickle").dumps(noise) == PickleSerializer().dumps(noise)


def test_values_from_before_compression_are_read() -> None:
    assert CompressedSerializer().loads(JSONSerializer().dumps((1, 2))) == (1, 2)


def test_compressing_twice_is_unpacked_twice() -> None:
    for outer_threshold in (0, 10_000):
        serializer = CompressedSerializer(CompressedSerializer(threshold=0), threshold=outer_threshold)
        for value in ("x" * 1000, 1, ["y"]):
            assert serializer.loads(serializer.dumps(value)) == value


def test_a_decompression_bomb_is_refused_before_it_goes_off() -> None:
    packer = zlib.compressobj(9)
    megabyte = packer.compress(bytes(1024 * 1024)) + packer.flush(zlib.Z_FULL_FLUSH)  # may be repeated after its header
    bomb = b"\0LQZ1" + megabyte + megabyte[2:] * 300
    assert len(bomb) < 400_000
    with pytest.raises(SerializationError, match="hold more than max_size, 268,435,456 bytes"):
        CompressedSerializer().loads(bomb)
    with pytest.raises(SerializationError, match="hold more than max_size, 1,000 bytes"):
        CompressedSerializer(max_size=1000).loads(bomb)


def test_max_size_holds_in_both_directions_to_the_byte() -> None:
    text = "x" * 998  # and two quotes
    assert CompressedSerializer(max_size=1000).loads(CompressedSerializer(max_size=1000).dumps(text)) == text
    with pytest.raises(SerializationError, match="cannot store 1,001 bytes: max_size is 1,000"):
        CompressedSerializer(max_size=1000).dumps(text + "x")


def test_damaged_compressed_bytes_are_refused() -> None:
    serializer = CompressedSerializer(threshold=0)
    data = serializer.dumps("x" * 1000)
    for damaged in (data[:-3], data + b"x", data[:8] + b"\xff" + data[9:], data[:5], data[:6]):
        with pytest.raises(SerializationError, match="damaged"):
            serializer.loads(damaged)


def test_options_of_compression_are_checked() -> None:
    for options, error, words in (
        ({"level": 0}, ConfigurationError, "level=0 must be from 1 to 9"),
        ({"level": 10}, ConfigurationError, "level=10"),
        ({"threshold": -1}, ConfigurationError, "threshold=-1 must be at least 0"),
        ({"max_size": 0}, ConfigurationError, "max_size=0"),
        ({"max_size": 1.5}, TypeError, "max_size must be an int, not float"),
        ({"level": True}, TypeError, "level must be an int, not bool"),
    ):
        with pytest.raises(error, match=words):
            CompressedSerializer(**options)


def test_a_wrapper_passes_the_names_of_arguments_on() -> None:
    for inner in ("json", "pickle"):
        wrapper = SignedSerializer(KEY, CompressedSerializer(inner))
        with pytest.raises(SerializationError, match="cannot store argument 'user'"):
            wrapper.dumps_call((lambda: 1,), {}, ["user"])


# ── Which serializer ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_or_an_object_stands_for_a_serializer() -> None:
    assert type(serializer_for("json")) is JSONSerializer
    assert type(serializer_for("pickle")) is PickleSerializer
    assert serializer_for("json") is not serializer_for("json")
    mine = SignedSerializer(KEY, "pickle")
    assert serializer_for(mine) is mine
    assert type(mine.inner) is PickleSerializer


def test_what_is_no_serializer_is_named() -> None:
    with pytest.raises(ConfigurationError, match="serializer='msgpack': there is"):
        serializer_for("msgpack")
    with pytest.raises(TypeError, match=r"JSONSerializer is a class: pass an instance, JSONSerializer\(…\)"):
        serializer_for(JSONSerializer)
    for other in (None, json, 5):
        with pytest.raises(TypeError, match="serializer must be"):
            serializer_for(other)
    with pytest.raises(ConfigurationError, match="msgpack"):
        SignedSerializer(KEY, "msgpack")


def test_names_and_readability_are_stated() -> None:
    stated = {(type(one).__name__, one.name, one.readable) for one in (JSONSerializer(), PickleSerializer())}
    stated |= {(type(one).__name__, one.name, one.readable) for one in (SignedSerializer(KEY), CompressedSerializer())}
    assert stated == {
        ("JSONSerializer", "json", True),
        ("PickleSerializer", "pickle", False),
        ("SignedSerializer", "signed", False),
        ("CompressedSerializer", "compressed", False),
    }
    assert repr(SignedSerializer(KEY, CompressedSerializer())) == (
        "SignedSerializer(inner=CompressedSerializer(inner=JSONSerializer()))"
    )


def test_a_serializer_of_ones_own_needs_two_methods() -> None:
    class Words(Serializer):
        name: ClassVar[str] = "words"

        def dumps(self, value: object) -> bytes:
            if "bad" in repr(value):
                raise SerializationError("words cannot say that")
            return json.dumps(value).encode()

        def loads(self, data: bytes) -> object:
            return json.loads(data)

    mine = Words()
    assert mine.loads_call(mine.dumps_call((1,), {"a": 2})) == ([1], {"a": 2})
    with pytest.raises(SerializationError, match=r"cannot store argument 'b' \(str\): words cannot say that"):
        mine.dumps_call((1, "bad"), {}, ["a", "b"])
    with pytest.raises(SerializationError, match="not the payload of a job"):
        mine.loads_call(b"1")
