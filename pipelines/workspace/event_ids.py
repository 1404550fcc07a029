"""The ids of events: how one is spelled, and the onset that it states."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

_ONSET = re.compile(r"\.(\d{8}T\d{6})\.(\d{9})$", re.ASCII)


def event_id(codes: Sequence[str], rate_hz: float, onset_ns: int) -> str:
    """Return `NET.STA.LOC.BI.RATE.YYYYMMDDTHHMMSS.nnnnnnnnn`: the channel group and the onset in UTC.

    Args:
        codes: network, station, location, and band and instrument code.
        rate_hz: the group's sampling rate, in Hz.
        onset_ns: in nanoseconds since 1970, UTC.
    """
    seconds, rest = divmod(onset_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{'.'.join(codes)}.{rate_hz:g}.{moment:%Y%m%dT%H%M%S}.{rest:09d}"


def stated_onset(event_id: str) -> int | None:
    """Return the onset that an id states, in nanoseconds since 1970, UTC; None where it is spelled in another way."""
    found = _ONSET.search(event_id)
    if found is None:
        return None
    try:
        moment = datetime.strptime(found[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
    return int(moment.timestamp()) * 1_000_000_000 + int(found[2])
