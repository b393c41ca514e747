"""Reads the dates that services write. Pure: the host's `now` is the only clock there is."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_HTTP = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (\d\d) ([A-Z][a-z][a-z]) (\d{4}) (\d\d):(\d\d):(\d\d) GMT", re.ASCII
)
_RFC_3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(\.\d+)?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_SPACED = re.compile(r"(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d) UTC", re.ASCII)
_DAY = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MILLISECOND = timedelta(milliseconds=1)


def _moment(parts: list[int], offset: timedelta = timedelta()) -> int | None:
    """Milliseconds since 1970, or None where the calendar or the clock has no such moment."""
    try:
        at = (datetime(*parts, tzinfo=timezone.utc) - offset - _EPOCH) // _MILLISECOND
    except (ValueError, OverflowError):
        return None
    return at if at >= 0 else None


def parse(text: str) -> int | None:
    """Milliseconds since 1970 of a date as RFC 3339 has it (`2026-01-01T00:00:00Z`), as HTTP has
    it (`Thu, 01 Jan 2026 00:00:00 GMT`), as `2026-01-01 00:00:00 UTC`, or of a day's beginning in
    UTC (`2026-01-01`). None for anything else, and for dates before 1970."""
    found = _RFC_3339.fullmatch(text)
    if found:
        fraction, sign, hours, minutes = found.group(7, 8, 9, 10)
        offset = timedelta()
        if sign:
            if int(hours) > 23 or int(minutes) > 59:
                return None
            offset = timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1)
        microsecond = int((fraction or ".0")[1:7].ljust(6, "0"))
        return _moment([*map(int, found.groups()[:6]), microsecond], offset)
    found = _SPACED.fullmatch(text) or _DAY.fullmatch(text)
    return _moment([*map(int, found.groups())]) if found else _of_http(text)


def parse_http(text: str) -> int | None:
    """Seconds since 1970 of a date in an HTTP header."""
    at = _of_http(text)
    return None if at is None else at // 1_000


def _of_http(text: str) -> int | None:
    found = _HTTP.fullmatch(text)
    if not found or found[2] not in _MONTHS:
        return None
    day, _, year, hour, minute, second = found.groups()
    return _moment([int(year), _MONTHS.index(found[2]) + 1, int(day), int(hour), int(minute), int(second)])
