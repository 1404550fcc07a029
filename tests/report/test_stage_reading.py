"""How the report reads many files."""

import threading

from pipelines.report.stage_reading import READ_THREADS, read_ahead


def test_several_files_are_read_at_a_time_and_come_in_their_order():
    # Nobody passes the barrier before all have come to it.
    together = threading.Barrier(READ_THREADS, timeout=30)

    def read(number: int) -> int:
        together.wait()
        return number

    assert list(read_ahead(read, range(3 * READ_THREADS))) == list(range(3 * READ_THREADS))


def test_no_more_files_are_read_ahead_than_are_read_at_a_time():
    begun: list[int] = []
    results = read_ahead(lambda number: begun.append(number) or number, range(100))
    assert next(results) == 0
    assert len(begun) <= READ_THREADS
    results.close()
