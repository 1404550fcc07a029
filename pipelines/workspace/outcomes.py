"""What becomes of recordings: every sample, and every file, ends in exactly one of these outcomes."""

from enum import StrEnum


class Outcome(StrEnum):
    """What becomes of samples. Those with a time are counted in seconds, too."""

    USED = "used"
    BLANKED = "blanked"
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"
    CONFLICTING = "conflicting"
    NOT_FINITE = "not_finite"
    NO_COMPONENT = "no_component"
    OTHER_COMPONENT = "other_component"
    NO_TRIGGER_COMPONENT = "no_trigger_component"
    RATE = "rate"
    NO_SENSITIVITY = "no_sensitivity"
    NOT_SELECTED = "not_selected"
    UNREADABLE = "unreadable"
    NO_DATA = "no_data"
    TEXT = "text"
    UNDECODABLE = "undecodable"
    INVALID_RATE = "invalid_rate"
    INVALID_TIME = "invalid_time"
    INVALID_CODES = "invalid_codes"
    FAR = "far"
    OTHER_CHANNEL = "other_channel"


class FileOutcome(StrEnum):
    """What becomes of a file."""

    USED = "used"
    IN_PART = "used in part"
    NO_DATA = "no data"
    UNREADABLE = "unreadable"


WORDS: dict[Outcome, str] = {
    Outcome.USED: "used",
    Outcome.BLANKED: "in the first detection.lta_seconds after a gap, where nothing can trigger",
    Outcome.DUPLICATE: "recorded twice with the same values",
    Outcome.SUPERSEDED: "superseded by a higher version or quality",
    Outcome.CONFLICTING: "recorded twice with different values",
    Outcome.NOT_FINITE: "not finite",
    Outcome.NO_COMPONENT: "of a channel that is not a component E, N, Z, 1, 2 or 3",
    Outcome.OTHER_COMPONENT: "of a second channel of the same component",
    Outcome.NO_TRIGGER_COMPONENT: "without a component of detection.trigger_components beside them",
    Outcome.RATE: "at a sampling rate that does not carry detection.band_hz or the averages",
    Outcome.NO_SENSITIVITY: "at times for which archive.stationxml has no sensitivity",
    Outcome.OTHER_CHANNEL: "of another channel than the file's path says, or with unusable codes",
    Outcome.NOT_SELECTED: "not selected by archive.location, channel, start or end",
    Outcome.UNREADABLE: "in files that cannot be read",
    Outcome.NO_DATA: "without a recording",
    Outcome.TEXT: "text",
    Outcome.UNDECODABLE: "not decodable",
    Outcome.INVALID_RATE: "with an invalid sampling rate",
    Outcome.INVALID_TIME: "with an invalid time",
    Outcome.INVALID_CODES: "with invalid channel codes",
    Outcome.FAR: "more than archive.spill_seconds from the time in the file's name",
}
"""What is said of samples of an outcome: "3.1 % of the samples are ..."."""

TIMED: tuple[Outcome, ...] = tuple(Outcome)[: tuple(Outcome).index(Outcome.TEXT)]
"""Outcomes of samples whose time is known: the columns of availability/."""
