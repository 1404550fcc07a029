"""The archive that most detection tests share."""

from pathlib import Path

import pytest
from detection_archives import write_three_days


@pytest.fixture(scope="session")
def three_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days at 20 Hz, three components that start at different samples, gaps, overlaps, a burst at midnight."""
    root = tmp_path_factory.mktemp("three-days")
    write_three_days(root)
    return root
