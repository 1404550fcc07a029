"""The account of a file's samples."""

from pipelines.archive.sample_counts import Drop, SampleCounts


def test_every_sample_is_returned_or_dropped_for_a_reason():
    counts = SampleCounts(stated=100, returned=100)
    counts.drop(Drop.TEXT, 30)
    counts.drop(Drop.RATE, 0)
    other = SampleCounts(stated=10, returned=10)
    other.drop(Drop.TEXT, 4)
    counts.add(other)
    assert (counts.stated, counts.returned, dict(counts.dropped)) == (110, 76, {Drop.TEXT: 34})
    assert counts.balances
    counts.returned += 1
    assert not counts.balances
