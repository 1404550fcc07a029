import pyarrow as pa

from pipelines import tables
from pipelines.label.stage import label_events
from pipelines.workspace import Workspace


def read_all(workspace: Workspace, table: str) -> pa.Table:
    return pa.concat_tables(
        [
            tables.read_table(workspace.store, item.path).replace_schema_metadata(None)
            for item in tables.list_shards(workspace.store, table)
        ]
    )


def contents(workspace: Workspace) -> dict[str, bytes]:
    return {
        item.path: workspace.store.read(item.path)
        for table in ("embeddings", "labels", "clustering")
        for item in workspace.store.walk(table)
    }


def test_every_event_has_exactly_one_label_row(example):
    summary = label_events(example.workspace, example.config, example.tracking)
    events, labels, embeddings = (read_all(example.workspace, table) for table in ("events", "labels", "embeddings"))
    assert labels.schema.equals(tables.labels_schema())
    joined = events.select(["event_id"]).join(labels, "event_id", join_type="full outer")
    assert joined.num_rows == events.num_rows == labels.num_rows == embeddings.num_rows == summary.num_events
    assert joined.column("cluster").null_count == 0
    assert set(labels.column("label_source").to_pylist()) == {"hand"}
    assert sum(summary.cluster_sizes.values()) == events.num_rows
    assert list(summary.cluster_sizes.values()) == sorted(summary.cluster_sizes.values(), reverse=True)
    run = example.tracking.client().get_run(summary.run_id)
    assert run.data.metrics["test.purity"] > run.data.metrics["test.majority_baseline"]
