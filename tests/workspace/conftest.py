"""Fixtures of the tests of the workspace."""

import pytest

from pipelines.workspace import s3_requests
from pipelines.workspace.storage import open_store


@pytest.fixture(params=["disk", "bucket"])
def store(request, tmp_path):
    """An empty store, on a disk and in a bucket."""
    if request.param == "disk":
        return open_store(str(tmp_path / "root"))
    server = request.getfixturevalue("moto_s3")
    s3_requests._s3.cache_clear()
    return open_store(f"{server.url}/root")
