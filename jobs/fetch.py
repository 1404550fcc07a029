"""Download recordings and StationXML from an FDSN service into an SDS archive, on a disk or in a bucket.

    python -m jobs.fetch runs/neumayer-archive --config configs/neumayer.yaml --fetch.end 2019-01-03

is a laptop-size run: two days of three stations. The same command resumes where it was interrupted, and downloads what
has been added since. It needs no Ray: one machine asks a data centre, with few connections.
"""

from collections.abc import Sequence

from jobs.command_line import Arguments, leave, print_config, run_job
from pipelines.archive.fdsn import fetch_recordings
from pipelines.runtime.text import counted
from pipelines.workspace.storage import open_store


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline fetch`."""
    return run_job("fetch", ["ARCHIVE"], argv, fetch)


def fetch(arguments: Arguments) -> None:
    """Download what the archive lacks and print a summary."""
    store = open_store(arguments.positional[0])
    config = arguments.config("fetch")
    store.check_writable(what="archive")
    print_config(config, "fetch")
    summary = fetch_recordings(store, config.fetch, replace=arguments.replace)
    print(
        f"{store.url}: {counted(summary.num_written, 'channel-day')} written ({summary.num_bytes / 1e6:.1f} MB), "
        f"{summary.num_there} there already, {summary.num_without_data} without data"
    )


if __name__ == "__main__":
    leave(main())
