"""Write the events to label next as CSV: typical ones of every part of the clustering first, then uncertain ones.

    firnline suggest runs/demo next.csv --suggest.number 30

Events that have a hand label (`labels.path`, by default that of `firnline label`) are left out. The workspace is only
read. Look at the events with `firnline explore`, or add a column `label` to the file and give it as `labels.path`.
"""

from collections.abc import Sequence

from jobs.command_line import Arguments, leave, run_job
from pipelines import config as configuration
from pipelines.label.stage_suggest import COLUMNS, suggest_events, suggestions_csv
from pipelines.runtime.errors import InputError
from pipelines.runtime.text import counted
from pipelines.workspace.storage import open_parent, said_of
from pipelines.workspace.storage_errors import reason_of, storage_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline suggest`."""
    return run_job("suggest", ["WORKSPACE", "OUT.csv"], argv, suggest)


def suggest(arguments: Arguments) -> None:
    """Choose the events and write the file."""
    workspace = arguments.workspace(0, write=False)
    stored = {"labels": workspace.stored_config("label").get("labels", {})}
    config = configuration.resolve(stored, arguments.file, configuration.read_flags(arguments.flags))
    out = arguments.positional[1]
    store, name = open_parent(out)
    with said_of(out, "OUT.csv"):
        before = store.read(name) if store.exists(name) else b""
    if before and before.splitlines()[0].decode(errors="replace") != ",".join(COLUMNS):
        raise InputError(f"{out} exists and is not a file of suggestions, but may hold labels; give another name")
    rows = suggest_events(workspace.store, config.suggest, config.labels)
    try:
        store.write(name, suggestions_csv(rows).encode())
    except storage_errors() as error:
        raise InputError(f"OUT.csv {out} cannot be written: {reason_of(error)}") from None
    print(f"suggest: {counted(len(rows), 'event to label next is', 'events to label next are')} in {out}")


if __name__ == "__main__":
    leave(main())
