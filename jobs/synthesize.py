"""Write a synthetic archive with its truth, to a folder or a bucket.

    python -m jobs.synthesize runs/synthetic --synthesize.num_stations 2 --synthesize.num_days 1

is a laptop-size run: 2 station-days of 3 components at 100 Hz, some seconds each. The same command resumes where it was
interrupted.
"""

import time
from collections.abc import Sequence

from jobs.command_line import Arguments, leave, print_config, run_job
from pipelines.runtime.ray_session import ray_session
from pipelines.synthesize.stage import TRUTH, check_archive, synthesize_archive
from pipelines.workspace.storage import open_store


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline synthesize`."""
    return run_job("synthesize", ["ARCHIVE"], argv, synthesize)


def synthesize(arguments: Arguments) -> None:
    """Write the archive and print what it contains."""
    store = open_store(arguments.positional[0])
    config = arguments.config("synthesize")
    check_archive(store, config.synthesize, replace=arguments.replace)
    print_config(config, "synthesize")
    started = time.monotonic()
    with ray_session(arguments.address):
        summary = synthesize_archive(store, config.synthesize, replace=arguments.replace)
    arrivals = ", ".join(f"{count} {name}" for name, count in summary.num_arrivals.items()) or "none"
    print(
        f"{store.url}: {summary.num_station_days} station-days, {summary.num_written} of them written now "
        f"({summary.num_bytes / 1e6:.0f} MB, {time.monotonic() - started:.0f} s); arrivals in {TRUTH}/: {arrivals}"
    )


if __name__ == "__main__":
    leave(main())
