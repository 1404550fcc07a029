"""The shards that labelling goes through. Its workers import this, and neither pandas nor scikit-learn."""

from dataclasses import dataclass

from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
from pipelines.workspace.ledger import list_markers
from pipelines.workspace.storage import Store


@dataclass(frozen=True, kw_only=True)
class EventShard:
    """One file of events, and the files beside it in the other tables."""

    network: str
    station: str
    name: str
    source: str
    """Changes whenever the events in it may have changed: detection's fingerprint of the shard."""
    size: int = 0
    """Bytes of the file of events."""

    def path(self, table: str) -> str:
        """Return the shard's file in a table."""
        return tables.shard_path(table, self.network, self.station, self.name)


def list_event_shards(store: Store) -> list[EventShard]:
    """Return every shard that has events, sorted by path.

    Raises:
        InputError: there is none.
    """
    done = {(name.network, name.station, name.shard): name.fingerprint for name in list_markers(store, "detect")}
    shards = []
    for item in tables.list_shards(store, "events"):
        network, station = tables.station_of(item.path)
        name = item.path.rpartition("/")[2].removesuffix(".parquet")
        source = done.get((network, station, name), f"{item.etag}-{item.size}")
        shards.append(EventShard(network=network, station=station, name=name, source=source, size=item.size))
    if not shards:
        raise InputError(f"{store.url} holds no event to label; run `firnline detect` first")
    return shards
