"""An object or file as a listing gives it, and the error where it is no longer that."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object or file: path relative to the store's root, size in bytes, and a tag that changes with its content."""

    path: str
    size: int
    etag: str


class ObjectChanged(OSError):
    """An object is no longer what the listing said: it was removed, cut short or replaced meanwhile."""
