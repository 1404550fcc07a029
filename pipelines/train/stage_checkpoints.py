"""Where the checkpoints of a training lie: `train/<fingerprint>/epoch-00007.safetensors`, the last two of them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.contrastive.checkpoint import read_facts
from pipelines.runtime.errors import StageFailed
from pipelines.workspace.storage import Store

KEPT_CHECKPOINTS = 2
"""A worker that resumes may still read the last but one while the last is written."""


def write_checkpoint(store: Store, folder: str, done: int, content: bytes) -> None:
    """Write an epoch's checkpoint and remove those before the last."""
    store.write(f"{folder}/epoch-{done:05d}.safetensors", content)
    names = sorted(item.path for item in store.walk(folder) if item.path.endswith(".safetensors"))
    for name in names[:-KEPT_CHECKPOINTS]:
        store.remove(name)


def last_checkpoint(store: Store, folder: str) -> bytes | None:
    """Return the newest checkpoint's content; None where there is none."""
    names = sorted(item.path for item in store.walk(folder) if item.path.endswith(".safetensors"))
    return store.read(names[-1]) if names else None


@contextmanager
def watch_checkpoints(
    store: Store, folder: str, report: Callable[[list[dict[str, float]]], None]
) -> Iterator[list[BaseException]]:
    """Report the epochs of workers elsewhere as their checkpoints appear: the driver alone writes to MLflow.

    Yields a list: an error that ends the watching, such as an MLflow that does not answer, is put into it.
    """
    stop = threading.Event()
    errors: list[BaseException] = []

    def watch() -> None:
        while not stop.wait(1.0 if store.is_local else 5.0):
            try:
                content = last_checkpoint(store, folder)
            except FileNotFoundError:
                # A worker removed it between the listing and the reading.
                continue
            if content is not None:
                try:
                    report(read_facts(content)[1]["history"])
                except StageFailed as error:
                    errors.append(error)
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield errors
    finally:
        stop.set()
        thread.join()
