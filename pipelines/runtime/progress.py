"""The progress bar of the stages' drivers: it moves in a terminal, and writes a line now and then into a log."""

import sys
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

_TERMINAL_SECONDS = 0.2
_LOG_SECONDS = 30.0


def progress_bar(stage: str, *, unit: str, total: int | None = None) -> Any:
    """Return a bar, to be used in a `with` and moved by `update()`; `set_postfix(events=7)` adds figures.

    Args:
        stage: what is under way.
        unit: what is counted.
        total: how many there are; None where that is not known.
    """
    seconds = _TERMINAL_SECONDS if sys.stderr.isatty() else _LOG_SECONDS
    return tqdm(desc=stage, unit=unit, total=total, mininterval=seconds, dynamic_ncols=True)
