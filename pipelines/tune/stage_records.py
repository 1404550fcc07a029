"""What a search keeps of its trials, so that it can be killed at any moment: a file for each trial that has ended."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.tune.space import Point
from pipelines.workspace.storage import Store

DONE, STOPPED, FAILED = "done", "stopped", "failed"
"""How a trial ends: after its last epoch, early by ASHA, or by an error."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial that has ended."""

    number: int
    """0 is the first of the search."""
    point: Point
    """Its values in the space; {} is as configured."""
    ended: str
    """`done`, `stopped` or `failed`."""
    history: tuple[dict[str, float], ...] = ()
    """Its figures after each epoch."""
    reason: str = ""
    """Of a failure."""
    run_id: str = ""
    """Of MLflow."""

    @property
    def score(self) -> float:
        """After its last epoch."""
        return float(self.history[-1]["score"])


@dataclass(frozen=True)
class Records:
    """The records of one search in a workspace."""

    store: Store
    mark: str
    """Fingerprint of what the search reads and how it is set, except for the number of trials."""

    @property
    def folder(self) -> str:
        """Where they lie."""
        return f"tune/{self.mark}"

    def read(self) -> list[TrialRecord]:
        """Return the trials that have ended, by number; a file that cannot be read does not count."""
        found = []
        for item in self.store.walk(self.folder):
            if item.path.rpartition("/")[2].startswith("trial-"):
                try:
                    values = json.loads(self.store.read(item.path))
                    found.append(TrialRecord(**values | {"history": tuple(values["history"])}))
                except (ValueError, TypeError, KeyError):
                    continue
        return sorted(found, key=lambda record: record.number)

    def write(self, record: TrialRecord) -> None:
        """Keep a trial."""
        content = json.dumps(asdict(record), sort_keys=True).encode()
        self.store.write(f"{self.folder}/trial-{record.number:05d}.json", content)

    def parent(self) -> str | None:
        """Return the MLflow run that the search has logged to so far."""
        path = f"{self.folder}/run.json"
        if not self.store.exists(path):
            return None
        try:
            values: Any = json.loads(self.store.read(path))
            return str(values["run_id"])
        except (ValueError, TypeError, KeyError):
            return None

    def keep_parent(self, run_id: str) -> None:
        """Remember the MLflow run of the search."""
        self.store.write(f"{self.folder}/run.json", json.dumps({"run_id": run_id}).encode())


def best_of(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the trial that ran to its end with the highest score, the first of equals."""
    done = [record for record in records if record.ended == DONE]
    return max(done, key=lambda record: (record.score, -record.number)) if done else None


def winner_of(records: Sequence[TrialRecord], least_gain: float) -> TrialRecord | None:
    """Return the best trial, or the configured one where that is not better by `least_gain`: it may be luck."""
    best, configured = best_of(records), configured_score(records)
    if best is None or configured is None or best.score >= configured + least_gain:
        return best
    return next(record for record in records if not record.point)


def configured_score(records: Sequence[TrialRecord]) -> float | None:
    """Return the score of the trial as configured; None where there is none, or it did not run to its end."""
    return next((record.score for record in records if not record.point and record.ended == DONE), None)
