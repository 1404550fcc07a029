"""`firnline synthesize`: exit codes and sentences."""

from pathlib import Path

import pytest

from jobs.synthesize import main


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--synthesize.rate_hz", "10"], "synthesize.rate_hz"),
        (["--synthesize.sead", "1"], "unknown configuration key synthesize.sead"),
        (["--synthesize.events_per_station_day", "5000"], "synthesize.events_per_station_day"),
    ],
)
def test_a_mistake_exits_2_with_one_sentence_and_writes_nothing(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "archive"
    assert main([str(archive), *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not archive.exists()


def test_a_place_that_cannot_be_written_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file" / "archive")]) == 2
    assert "the archive" in capsys.readouterr().err
