"""Progress in a log: whole lines, few of them, with what is left."""

import io

import pytest

from pipelines.runtime import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_whole_line_at_most_every_half_minute_and_one_at_the_end(clock: list[float]) -> None:
    log = io.StringIO()
    with progress.LogProgress("detect", unit="shard", total=100, file=log) as bar:
        for number in range(1, 101):
            clock[0] += 1.0
            bar.set_postfix(events=2 * number, refresh=False)
            bar.update()
    assert "\r" not in log.getvalue()
    assert log.getvalue().splitlines() == [
        "detect: 30 of 100 shards, 30 s, about 70 s left; events 60",
        "detect: 60 of 100 shards, 60 s, about 40 s left; events 120",
        "detect: 90 of 100 shards, 90 s, about 10 s left; events 180",
        "detect: 100 of 100 shards, 100 s; events 200",
    ]


def test_the_last_step_is_written_once_when_it_took_long(clock: list[float]) -> None:
    log = io.StringIO()
    with progress.LogProgress("synthesize", unit="station-day", total=1, file=log) as bar:
        clock[0] += 50.0
        bar.update()
    assert log.getvalue() == "synthesize: 1 of 1 station-days, 50 s\n"


def test_what_is_done_at_once_writes_nothing_into_a_log(clock: list[float]) -> None:
    log = io.StringIO()
    with progress.LogProgress("embed", unit="file", file=log) as bar:
        clock[0] += 2.0
        bar.update(9)
    assert log.getvalue() == ""


def test_outside_a_terminal_a_bar_never_returns_to_the_line_s_start(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("train", unit="epoch", total=2) as bar:
        bar.update(2)
        bar._write()
    assert capsys.readouterr().err == "train: 2 of 2 epochs, 0 s\n"
