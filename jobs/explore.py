"""Browse the events of a labelled workspace, label them by hand, and name clusters.

    firnline explore WORKSPACE
    python -m jobs.explore runs/demo --explore.port 0 --explore.labels_path labels.csv

    python -m jobs.explore runs/demo --explore.export demo-explorer

The labels are saved to a CSV file that `labels.path` reads, the names to one that `labels.names` reads. The server
listens on this machine only; open the address that it prints. Ctrl-C or SIGTERM ends it, with exit code 0.
With explore.export no server is started: a copy of the page for reading is written, which opens from a disk.
"""

from collections.abc import Sequence

from jobs.command_line import Arguments, leave, run_job
from pipelines.config import Config
from pipelines.config.label import LabelsSettings
from pipelines.explore.access import is_loopback
from pipelines.explore.explorer import open_explorer
from pipelines.explore.export import ExportTarget, held_target, write_export
from pipelines.explore.server import ExplorerServer
from pipelines.workspace.workspace import Workspace


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline explore`."""
    return run_job("explore", ["WORKSPACE"], argv, explore)


def explore(arguments: Arguments) -> None:
    """Serve until Ctrl-C or SIGTERM, the ordinary end."""
    workspace = arguments.workspace(0, write=False)
    config = arguments.config("explore", workspace)
    labels = config.labels
    if labels.path is None:
        labels = LabelsSettings.model_validate(workspace.stored_config("label").get("labels", {}))
    if config.explore.export is not None:
        with held_target(config.explore.export, workspace, arguments.command) as target:
            export(workspace, config, labels, target)
        return
    explorer = open_explorer(workspace, config.explore, labels, config.report, config.suggest)
    explorer.map.start()
    with ExplorerServer(explorer, config.explore) as server:
        print(f"hand labels: {explorer.labels.path}")
        print(f"cluster names: {explorer.names.path}")
        if not is_loopback(config.explore.host):
            print(f"explore.host is {config.explore.host}: other machines can reach this server, without encryption")
        print(f"open {server.url}", flush=True)
        server.serve()


def export(workspace: Workspace, config: Config, labels: LabelsSettings, target: ExportTarget) -> None:
    """Write a copy of the explorer for reading."""
    settings = config.explore.model_copy(update={"map_events": config.explore.export_map_events})
    explorer = open_explorer(workspace, settings, labels, config.report, config.suggest)
    done = write_export(explorer, target, settings)
    print(done.words)
    print(f"open {done.url}/index.html", flush=True)


if __name__ == "__main__":
    leave(main())
