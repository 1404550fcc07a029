"""The counts of a file's samples: every reason for which samples are dropped is in the sum of what is lost."""

from pipelines.archive.sample_counts import ELSEWHERE, Drop, SampleCounts


def test_what_is_lost_is_the_sum_of_all_reasons_even_where_two_have_one_outcome():
    counts = SampleCounts(stated=1000, returned=1000)
    for number, drop in enumerate(Drop, start=1):
        counts.drop(drop, number)
    assert counts.balances
    elsewhere = sum(number for number, drop in enumerate(Drop, start=1) if drop in ELSEWHERE)
    assert counts.lost().total() == len(Drop) * (len(Drop) + 1) // 2 - elsewhere
