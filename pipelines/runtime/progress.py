"""The progress of a stage's driver: a bar that moves in a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

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
    if sys.stderr.isatty():
        return tqdm(desc=stage, unit=unit, total=total, mininterval=_TERMINAL_SECONDS, dynamic_ncols=True)
    return LogProgress(stage, unit=unit, total=total)


class LogProgress:
    """Progress as lines of a log: a whole line at most every half minute, and one at the end of what took longer."""

    def __init__(self, stage: str, *, unit: str, total: int | None = None, file: TextIO | None = None) -> None:
        self.stage, self.unit, self.total = stage, unit, total
        self.n = 0
        """How many are done; a stage that counts for itself may set it."""
        self._file = file
        self._figures: dict[str, Any] = {}
        self._began = self._written = time.monotonic()
        self._last: int | None = None
        """How many were done when the last line was written; None before the first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last not in (None, self.n):
            self._write()

    def update(self, count: int = 1) -> None:
        """Count `count` more as done."""
        self.n += count
        self.refresh()

    def set_postfix(self, *, refresh: bool = True, **figures: Any) -> None:
        """Set the figures that follow the count."""
        self._figures = figures
        if refresh:
            self.refresh()

    def refresh(self) -> None:
        """Write a line if the last one is old enough."""
        if time.monotonic() - self._written >= _LOG_SECONDS:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._last = self.n
        seconds = self._written - self._began
        text = (
            f"{self.stage}: {self.n}{'' if self.total is None else f' of {self.total}'} {self.unit}s, {span(seconds)}"
        )
        if self.total is not None and 0 < self.n < self.total:
            text += f", about {span(seconds * (self.total - self.n) / self.n)} left"
        figures = "".join(f"; {name} {value}" for name, value in self._figures.items())
        print(text + figures, file=self._file or sys.stderr, flush=True)


def span(seconds: float) -> str:
    """Return a time span as a person says it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
