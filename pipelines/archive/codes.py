"""The codes of recordings: which ones can be used, and which hold where a file's path and its headers disagree.

The rule: what a path says holds, and the headers say what it does not. A data centre keeps its files under the codes
that it publishes, while headers keep what a digitiser was set to, or five letters of a longer station code. A file
whose headers name another channel than its path is used under the path's codes, and the difference is reported. Where
a file holds records of several channels, those that agree with its path are used, and the others are not.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipelines.archive.layouts import PathInfo
from pipelines.archive.records import Channel

BLANK_LOCATION = "--"
"""How the empty location code is written where it must be seen; it means the same in a header."""
MINISEED2_STATION_LETTERS = 5
# What no folder, file name, pattern or identifier with dots takes for something else.
_CODE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 _+-]{0,14}[A-Za-z0-9])?")
_SAME_COMPONENT = {"1": "E", "2": "N", "3": "Z"}


@dataclass
class Naming:
    """What the channels of one file are called.

    Attributes:
        used: by the headers' codes, the codes under which the records are used.
        refused: by the headers' codes, why the records are not used.
    """

    used: dict[Channel, Channel] = field(default_factory=dict)
    refused: dict[Channel, str] = field(default_factory=dict)

    @property
    def differences(self) -> list[tuple[Channel, Channel]]:
        """Return (headers' codes, codes used) where they differ."""
        return sorted((found, used) for found, used in self.used.items() if found != used)


def name_channels(path: PathInfo | None, found: Iterable[Channel]) -> Naming:
    """Return what the channels that a file's headers name are called.

    Args:
        path: what the file's path says; None in a flat folder, where the headers alone say it.
        found: the codes in its headers, all of them.
    """
    naming = Naming()
    by_use: dict[Channel, list[Channel]] = defaultdict(list)
    for codes in sorted(set(found)):
        used = _by_path(codes, path)
        reason = _unusable(used)
        if reason is None and path is not None and path.channel is not None:
            reason = _other_component(codes.channel, path.channel)
        if reason is not None:
            naming.refused[codes] = reason
        else:
            by_use[used].append(codes)
    for used, candidates in by_use.items():
        agreeing = [codes for codes in candidates if agrees(codes, used)]
        chosen = agreeing or (candidates if len(candidates) == 1 else [])
        for codes in candidates:
            if codes in chosen:
                naming.used[codes] = used
            elif agreeing:
                naming.refused[codes] = f"the records are of {show(codes)}, in a file of {show(used)}"
            else:
                naming.refused[codes] = f"the file holds {len(candidates)} channels, none of them {show(used)}"
    return naming


def agrees(found: Channel, used: Channel) -> bool:
    """Return whether a header's codes are the codes used, blank locations and the letters of miniSEED 2 aside."""
    return (
        found.network == used.network
        and is_station(found.station, used.station)
        and _location(found.location) == used.location
        and found.channel == used.channel
    )


def is_station(found: str, path: str) -> bool:
    """Return whether a header's station code is a path's, or as much of it as miniSEED 2 has room for."""
    return found == path or (len(found) == MINISEED2_STATION_LETTERS and path.startswith(found))


def group_of(codes: Channel) -> tuple[str, str, str, str]:
    """Return a channel's group: network, station, location, band and instrument code."""
    return codes.network, codes.station, codes.location, codes.channel[:2]


def show(codes: Channel) -> str:
    """Return codes as people write them, `NET.STA.LOC.CHA`."""
    return ".".join(codes)


def _by_path(codes: Channel, path: PathInfo | None) -> Channel:
    location = _location(codes.location)
    if path is None:
        return codes._replace(location=location)
    return Channel(
        codes.network if path.network is None else path.network,
        codes.station if path.station is None else path.station,
        location if path.location is None else path.location,
        codes.channel if path.channel is None else path.channel,
    )


def _location(code: str) -> str:
    return "" if code == BLANK_LOCATION else code


def _other_component(found: str, path: str) -> str | None:
    """Return why a channel is not the one of its path; a path may say E where the headers say 1."""
    components = {_SAME_COMPONENT.get(channel[-1:], channel[-1:]) for channel in (found, path)}
    return f"the headers say channel {found}, the path {path}" if len(components) > 1 else None


def _unusable(codes: Channel) -> str | None:
    for name, code in codes._asdict().items():
        if code and not _CODE.fullmatch(code):
            return f"the {name} code {code!r} in the headers is not usable: letters, digits, blanks, - + and _ only"
    return None
