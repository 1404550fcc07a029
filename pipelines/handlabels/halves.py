"""Which half of the hand labels an event is in: validation, on which choices are made, or test, which is published."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.runtime.text import counted


def in_validation(names: Sequence[str] | NDArray[Any]) -> NDArray[np.bool_]:
    """Tell whether each event falls into the validation half (else: test), by a hash of its name alone."""
    return np.array([hashlib.blake2b(str(name).encode(), digest_size=1).digest()[0] % 2 == 0 for name in names], bool)


def given_halves(event_of: Mapping[str, str], split_of: Mapping[str, object]) -> dict[str, bool]:
    """Return whether each trigger is in the validation half, for the events whose rows name one half.

    All triggers of an event are in one half; if its rows name both, this is reported, and a hash decides.
    """
    named: dict[str, set[str]] = {}
    for event_id, split in split_of.items():
        if isinstance(split, str) and split:
            named.setdefault(event_of[event_id], set()).add(split)
    both = sum(len(splits) > 1 for splits in named.values())
    if both:
        print(
            f"hand labels: {counted(both, 'event has', 'events have')} labels in both validation and test; a hash of "
            "the event's name decides",
            flush=True,
        )
    clear = {event: splits == {"validation"} for event, splits in named.items() if len(splits) == 1}
    return {event_id: clear[event] for event_id, event in event_of.items() if event in clear}
