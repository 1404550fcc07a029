"""The short form of `make fuzz`."""

import fuzz

FILES = 300


def test_changed_files_of_every_kind_are_read_or_refused_and_every_sample_is_accounted_for():
    tally = fuzz.fuzz(seed=fuzz.SEED, num_files=FILES, seconds=300, num_workers=1)
    assert not tally.failures, tally.failures[:3]
    assert tally.num_files >= FILES
    assert len(tally.files) >= 6
