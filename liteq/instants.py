"""Between the edge and the inside: datetimes and timedeltas become float seconds here and nowhere else.

At the edge an instant is a ``datetime`` (a naive one is read in the app's zone) and a duration is seconds or a
``timedelta``. Inside, both are floats.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from math import inf, isfinite

from liteq.errors import ConfigurationError

#: In seconds.
_THOUSAND_YEARS = 365_250 * 86_400.0


def zone(spec: str | tzinfo) -> tzinfo:
    """The time zone named ``spec``.

    Args:
        spec: an IANA name such as ``"Europe/Berlin"`` (in any case), or a tzinfo, which is returned as it is.

    Raises:
        TypeError: ``spec`` is neither.
        ConfigurationError: there is no such zone in this machine's database.
    """
    if isinstance(spec, tzinfo):
        return spec
    if not isinstance(spec, str):
        raise TypeError(f"timezone must be an IANA name or a tzinfo, not {type(spec).__name__}")
    if spec.upper() == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # light programs in UTC never load the zone database

    try:
        return ZoneInfo(spec)
    except (LookupError, ValueError, OSError) as error:
        from liteq.triggers.zones import spelled  # reads the names of all zones

        if spelled(spec) != spec:
            return ZoneInfo(spelled(spec))
        raise ConfigurationError(
            f"timezone {spec!r} is not known here; it takes an IANA name such as 'Europe/Berlin' "
            "(on Windows: pip install tzdata)"
        ) from error


def seconds(value: float | timedelta, what: str) -> float:
    """A duration as float seconds.

    Args:
        value: seconds, or a timedelta.
        what: the option's name, for the message.

    Raises:
        TypeError: it is neither a number nor a timedelta.
        ConfigurationError: it is not finite.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} takes seconds (a number) or a timedelta, not {type(value).__name__} {value!r}")
    try:
        duration = float(value)
    except OverflowError:  # an int of more than 308 digits
        duration = inf
    if not isfinite(duration):
        raise ConfigurationError(f"{what} must be a finite number of seconds, not {value!r}")
    return duration


def positive_seconds(value: float | timedelta, what: str, *, allow_zero: bool = True) -> float:
    """A duration that cannot be negative (nor zero, unless allowed); see `seconds`."""
    duration = seconds(value, what)
    if duration < 0 or (duration == 0 and not allow_zero):
        raise ConfigurationError(f"{what} must be {'at least' if allow_zero else 'more than'} 0 s, not {value!r}")
    return duration


def within_reach(duration: float, what: str) -> float:
    """A duration that will be added to instants which are not known yet, so short that a datetime can show the sum.

    Raises:
        ConfigurationError: it has more than a thousand years.
    """
    if duration > _THOUSAND_YEARS:
        raise ConfigurationError(f"{what} must be at most a thousand years, not {duration:.6g} s")
    return duration


def timestamp(moment: datetime, default_zone: tzinfo, what: str) -> float:
    """An instant as float seconds since the epoch; a naive one is read in ``default_zone``.

    Raises:
        TypeError: ``moment`` is not a datetime.
    """
    if not isinstance(moment, datetime):
        raise TypeError(f"{what} takes a datetime, not {type(moment).__name__} {moment!r}")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=default_zone)
    return moment.timestamp()


def moment(instant: float) -> datetime:
    """An instant as an aware datetime in UTC."""
    return datetime.fromtimestamp(instant, UTC)


def due_at(now: float, default_zone: tzinfo, *, eta: datetime | None, delay: float | timedelta | None) -> float | None:
    """The instant that ``eta`` or ``delay`` names, ``None`` where neither is given.

    Raises:
        TypeError: both are given, or one is of the wrong type.
        ConfigurationError: it lies beyond the years 1 to 9999, where no datetime could show it.
    """
    if eta is not None:
        if delay is not None:
            raise TypeError("give eta or delay, not both")
        return in_the_calendar(timestamp(eta, default_zone, "eta"), "eta", eta)
    if delay is not None:
        return in_the_calendar(now + seconds(delay, "delay"), "delay", delay)
    return None


#: The first and the last instant that a datetime can show.
EARLIEST = datetime.min.replace(tzinfo=UTC).timestamp()
LATEST = datetime.max.replace(tzinfo=UTC, microsecond=0).timestamp()


def in_the_calendar(instant: float, what: str, value: object) -> float:
    """An instant that a datetime can show.

    Raises:
        ConfigurationError: it lies beyond the years 1 to 9999.
    """
    if not EARLIEST <= instant <= LATEST:
        raise ConfigurationError(f"{what}={value!r} leads beyond the years 1 to 9999")
    return instant
