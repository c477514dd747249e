"""Event timestamps in UTC, to the microsecond: what every store and file format here keeps."""

from datetime import UTC, datetime, timedelta

MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc(timestamp: datetime) -> datetime:
    """`timestamp` in UTC; without a time zone it is taken as UTC.

    >>> utc(datetime(2013, 1, 1)).isoformat()
    '2013-01-01T00:00:00+00:00'
    """
    return timestamp.replace(tzinfo=UTC) if timestamp.tzinfo is None else timestamp.astimezone(UTC)


def read_timestamp(text: str) -> datetime:
    """The time that an ISO 8601 text names, in UTC.

    >>> read_timestamp("2013-01-01T14:00+14:00").isoformat()
    '2013-01-01T00:00:00+00:00'

    Raises:
        ValueError: it names none, or one outside of the years 1 to 9999 in UTC.
    """
    try:
        return utc(datetime.fromisoformat(text))
    except OverflowError:
        raise ValueError(f"{text!r} is outside of the years 1 to 9999 in UTC") from None


def to_microseconds(timestamp: datetime) -> int:
    """Microseconds since 1970 in UTC."""
    return (utc(timestamp) - _EPOCH) // MICROSECOND


def from_microseconds(microseconds: int) -> datetime:
    """The event timestamp in UTC so many microseconds after 1970.

    >>> from_microseconds(to_microseconds(datetime(1969, 12, 31, 23)))
    datetime.datetime(1969, 12, 31, 23, 0, tzinfo=datetime.timezone.utc)
    """
    return _EPOCH + microseconds * MICROSECOND
