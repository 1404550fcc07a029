"""Cluster names: one reader for labelling and the explorer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.explore.saved import SavedNames
from pipelines.handlabels.cluster_names import read_cluster_names, write_cluster_names
from pipelines.label.stage_inputs import read_cluster_names as read_for_labelling
from pipelines.runtime.errors import InputError
from pipelines.workspace.storage import open_store


@given(st.dictionaries(st.integers(0, 10**6), st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]))))
def test_names_written_are_read_back(names: dict[int, str]) -> None:
    assert read_cluster_names(write_cluster_names(names), source="x") == {
        number: name or None for number, name in names.items()
    }


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0: off\n1: on\n2: no\n3: yes\n", {0: "off", 1: "on", 2: "no", 3: "yes"}),
        ("0: calving\n1:\n", {0: "calving", 1: None}),
        ("", {}),
        ("0: '12'\n", {0: "12"}),
    ],
)
def test_labelling_and_the_explorer_read_the_same_names(tmp_path, text: str, names: dict[int, str | None]) -> None:
    (tmp_path / "cluster-names.yaml").write_text(text)
    assert read_cluster_names(text, source="x") == names
    assert read_for_labelling(str(tmp_path / "cluster-names.yaml"))[0].names == names
    saved = SavedNames(open_store(str(tmp_path)))
    assert saved.read() == {number: name for number, name in names.items() if name}


@pytest.mark.parametrize(
    "text", ["- spike", "a: spike", "0: 3", "-1: spike", "spike", "true: spike", "0: [a]", "0: false"]
)
def test_a_file_that_does_not_map_numbers_to_names_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^labels\.names names\.yaml"):
        read_cluster_names(text, source="labels.names names.yaml")


def test_a_name_that_the_explorer_saves_keeps_the_others_as_they_are(tmp_path) -> None:
    (tmp_path / "cluster-names.yaml").write_text("0: off\n")
    saved = SavedNames(open_store(str(tmp_path)))
    assert saved.change(1, "icequake") == {0: "off", 1: "icequake"}
    assert read_cluster_names((tmp_path / "cluster-names.yaml").read_text(), source="x") == {0: "off", 1: "icequake"}
