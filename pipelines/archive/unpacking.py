"""Unpack gzip that may come from a stranger: a piece at a time, member by member, up to a multiple of its size."""

import zlib
from collections.abc import Callable

GZIP_MAGIC = b"\x1f\x8b"
MIN_UNPACKED_BYTES = 2**25
MAX_UNPACKED_PER_BYTE = 16
"""A gzipped file that unpacks to more than `MIN_UNPACKED_BYTES` and so many times its size is not read."""

_FETCHED_BYTES = 4 * 2**20
_INFLATED_BYTES = 2**14


class Unpacking:
    """The unpacked bytes of a gzipped file, member by member, in order; a copy goes on where this one stands."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self.fetch, self.size = fetch, size
        self.offset = 0
        self.waiting = memoryview(b"")
        self.inflate = zlib.decompressobj(wbits=31)
        self.ended = False
        self.problem = ""

    def copy(self) -> "Unpacking":
        """Return one that goes on where this one stands."""
        twin = Unpacking(self.fetch, self.size)
        # What waits is fetched again: every piece of a file would hold some of it.
        twin.offset, twin.ended, twin.problem = self.offset - len(self.waiting), self.ended, self.problem
        twin.inflate = self.inflate.copy()
        return twin

    def read(self, size: int) -> bytes:
        """Return the next bytes, `size` of them but at the end."""
        parts: list[bytes] = []
        missing = size
        while missing > 0 and not self.ended:
            if not self.waiting:
                self._fetch_more()
            # Little at a time: zlib copies what it leaves over, and of a million empty members it leaves nearly all.
            packed = self.waiting[:_INFLATED_BYTES]
            try:
                part = self.inflate.decompress(packed, missing)
            except zlib.error as error:
                self.problem, self.ended = f"gzip: {error}", True
                break
            left_over = self.inflate.unused_data if self.inflate.eof else self.inflate.unconsumed_tail
            self.waiting = self.waiting[len(packed) - len(left_over) :]
            parts.append(part)
            missing -= len(part)
            if self.inflate.eof:
                self._next_member()
            elif not packed and not part:
                self.problem, self.ended = "gzip: the file ends early", True
        return b"".join(parts)

    def _fetch_more(self) -> None:
        if self.offset < self.size:
            more = self.fetch(self.offset, _FETCHED_BYTES)
            self.waiting = memoryview(bytes(self.waiting) + more)
            self.offset += len(more)

    def _next_member(self) -> None:
        if len(self.waiting) < len(GZIP_MAGIC):
            self._fetch_more()
        if self.waiting[: len(GZIP_MAGIC)] == GZIP_MAGIC:
            self.inflate = zlib.decompressobj(wbits=31)
            return
        self.ended = True
        if bytes(self.waiting).strip(b"\0"):
            begin = self.offset - len(self.waiting)
            self.problem = f"gzip: bytes {begin} to {self.size} of the packed file are not gzip"


def excess(stream: Unpacking, num_bytes: int) -> str:
    """Return what is wrong where a gzipped file unpacks to far more than its size, else "".

    Args:
        stream: after so many bytes.
        num_bytes: unpacked so far.
    """
    limit = MIN_UNPACKED_BYTES + MAX_UNPACKED_PER_BYTE * stream.size
    trial = stream.copy()
    while not trial.ended and num_bytes <= limit:
        num_bytes += len(trial.read(_FETCHED_BYTES))
    if num_bytes <= limit:
        return ""
    return (
        f"gzip: it unpacks to more than {MIN_UNPACKED_BYTES >> 20} MiB and {MAX_UNPACKED_PER_BYTE} times its size, and "
        "is not read"
    )
