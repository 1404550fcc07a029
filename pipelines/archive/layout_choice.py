"""Which layout an archive has: guessed from the paths, then confirmed by the headers of a few files."""

from collections.abc import Sequence

from pipelines.archive.codes import is_station, show
from pipelines.archive.layouts import PathInfo, guess_layout, path_parser
from pipelines.archive.records import Payloads, Run, decode
from pipelines.workspace.storage import Store
from pipelines.workspace.stored_object import StoredObject

NUM_CHECKED = 5
"""Files whose headers confirm a layout."""
MAX_TRIED = 16
"""Files that are opened to find so many that can be read."""
CHECKED_BYTES = 2**18


def choose_layout(archive: Store, listed: Sequence[StoredObject], spill_ns: int) -> tuple[str, str | None]:
    """Return the layout of an archive, and, where its paths fit one that its headers do not confirm, why it is `flat`.

    A layout is believed where at least half of some files are dated as their paths say, to within `spill_ns`, and, but
    for sds, whose paths name network and station twice, come from the station that their paths say.
    """
    layout = guess_layout(item.path for item in listed)
    if layout == "flat":
        return layout, None
    parse = path_parser(layout)
    fitting = [(item, info) for item in listed if item.size and (info := parse(item.path)) is not None]
    step = max(len(fitting) // MAX_TRIED, 1)
    num_read = num_confirmed = 0
    doubt = "none of the files that were opened can be read"
    for item, info in fitting[::step][:MAX_TRIED]:
        runs = decode(archive.read(item.path, 0, CHECKED_BYTES), payloads=Payloads.SKIP).runs
        if not runs:
            continue
        num_read += 1
        reason = _contradiction(info, runs, layout, spill_ns)
        if reason is None:
            num_confirmed += 1
        else:
            doubt = f"e.g. {item.path}: {reason}"
        if num_read == NUM_CHECKED:
            break
    if num_read and 2 * num_confirmed >= num_read:
        return layout, None
    return "flat", (
        f"the paths look like the {layout} layout but the headers disagree, so the layout is flat and all headers "
        f"are read ({doubt})"
    )


def _contradiction(info: PathInfo, runs: Sequence[Run], layout: str, spill_ns: int) -> str | None:
    """Return how the beginning of a file contradicts its path."""
    if info.start_ns is not None and info.end_ns is not None:
        low, high = info.start_ns - spill_ns, info.end_ns + spill_ns
        if not any(run.start_ns < high and run.end_ns > low for run in runs):
            return "its records are of another date"
    if layout != "sds" and not any(is_station(run.channel.station, info.station or "") for run in runs):
        return f"its records are of {show(runs[0].channel)}"
    return None
