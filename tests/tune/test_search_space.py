"""The space of a search in the terms of the settings, and the points proposed in it; no Ray."""

import numpy as np
import pytest
import yaml

from pipelines import config as configuration
from pipelines.contrastive.augmentations import FAMILIES, PRESETS, build_augmenter
from pipelines.runtime.errors import InputError
from pipelines.tune.proposals import fixed_points, propose
from pipelines.tune.space import configure, searched_sections, space_of
from pipelines.tune.stage_records import TrialRecord, best_of, configured_score, winner_of


def tuning(space=None, **keys):
    return configuration.resolve({"tune": keys | ({} if space is None else {"space": space})})


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("end", [0, 1])
def test_every_corner_of_the_default_space_is_a_valid_configuration(preset, end):
    config = configuration.resolve({"train": {"augmentation": preset}})
    space = space_of(config)
    families = {name for family in PRESETS[preset] for name in FAMILIES[family]}
    assert {key.split(".")[1] for key in space} <= families
    point = {key: getattr(ranged, ranged.kind)[end] for key, ranged in space.items()}
    section = configure(config, space, point).augmentation.model_dump()
    build_augmenter(preset, section, lead_samples=100)


def test_a_point_changes_what_it_names_and_nothing_else():
    given = {
        "augmentation.time_shift.lead_share": {"symmetric": [0.1, 0.5]},
        "augmentation.time_stretch.factor": {"reciprocal": [1, 2]},
        "augmentation.spectral_response.db.1": {"uniform": [2, 12]},
        "augmentation.band_pass": {"on_off": True},
        "train.width": {"choice": [8, 16]},
        "train.temperature": {"log_uniform": [0.05, 1]},
    }
    config = tuning(given)
    space = space_of(config)
    point = {
        "augmentation.time_shift.lead_share": 0.25,
        "augmentation.time_stretch.factor": 1.6,
        "augmentation.spectral_response.db.1": 4.0,
        "augmentation.band_pass": False,
        "train.width": 8,
        "train.temperature": 0.4,
    }
    changed = configure(config, space, point)
    right = config.augmentation.model_dump(mode="json")
    right["time_shift"]["lead_share"] = [-0.25, 0.25]
    right["time_stretch"]["factor"] = [1 / 1.6, 1.6]
    right["spectral_response"]["db"] = [2.0, 4.0]
    right["band_pass"]["probability"] = 0.0
    assert changed.augmentation.model_dump(mode="json") == right
    assert changed.train == config.train.model_copy(update={"width": 8, "temperature": 0.4})
    assert searched_sections(changed, space)["train"] == {"width": 8, "temperature": 0.4}
    assert configure(config, space, {}) == config
    on = configure(config, space, {"augmentation.band_pass": True}).augmentation
    assert on == config.augmentation


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"augmentation.time_strech.factor": {"uniform": [0, 1]}}, "there is no key augmentation.time_strech.factor"),
        ({"augmentation.band_stop.depth": {"uniform": [0, 1]}}, "there is no key augmentation.band_stop.depth"),
        ({"train.epochs": {"integer": [1, 4]}}, "train.epochs cannot be searched"),
        ({"kmeans.k": {"integer": [2, 4]}}, "kmeans.k cannot be searched"),
        ({"augmentation.band_stop.probability": {"uniform": [0, 1.5]}}, "band_stop.probability cannot be 1.5"),
        ({"augmentation.band_stop.probability": {"uniform": [0.5, 0.2]}}, r"write \[smallest, largest\]"),
        ({"augmentation.band_stop.probability": {"linear": [0, 1]}}, "linear"),
        ({"augmentation.band_stop.probability": {}}, "0 are given"),
        ({"augmentation.band_stop": {"uniform": [0, 1]}}, "on_off is for an augmentation as a whole"),
        ({"augmentation.band_stop.probability": {"on_off": True}}, "on_off is for an augmentation as a whole"),
        ({"train.temperature": {"symmetric": [0.1, 0.2]}}, "it is one value"),
        ({"train.width": {"choice": [16, 17]}}, "train.width"),
        ({"train.width": {"integer": [8, 32]}}, "train.width cannot be 9"),
        ({"train.encoder": {"choice": ["spectrogram", "pca"]}}, "pca has no augmentations"),
        ({"train.temperature": {"log_uniform": [0, 1]}}, "both ends must be above 0"),
        ({}, "tune.space is empty"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_sentence(space, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        space_of(tuning(space))
    assert "\n" not in str(caught.value)


def test_an_augmentation_that_the_preset_leaves_out_is_refused():
    keys = {"train": {"augmentation": "amplitude"}}
    given = {"augmentation.band_pass.probability": {"uniform": [0, 1]}}
    with pytest.raises(InputError, match=r"has no effect, since train.augmentation amplitude leaves it out"):
        space_of(configuration.resolve(keys, {"tune": {"space": given}}))


def test_a_start_outside_the_space_is_refused():
    space = {"train.temperature": {"uniform": [0.1, 0.5]}}
    with pytest.raises(InputError, match=r"tune.start: train.temperature 0.7 is not in tune.space"):
        space_of(tuning(space, start=[{"train.temperature": 0.7}]))
    assert space_of(tuning(space, start=[{"train.temperature": 0.5}]))


def test_a_space_in_a_file_replaces_the_stored_one():
    stored = {"tune": {"space": {"train.temperature": {"uniform": [0.1, 0.5]}}}}
    given = yaml.safe_load("tune: {space: {train.width: {choice: [8, 16]}}}")
    assert set(configuration.resolve(stored, given).tune.space) == {"train.width"}


def run_search(settings, space, number, objective):
    """Search a function without Ray: one trial after the other."""
    records = []
    for index in range(number):
        point = propose(settings, space, index, records)
        score = objective(point)
        records.append(TrialRecord(number=index, point=point, ended="done", history=({"score": score},)))
    return records


def test_tpe_comes_nearer_to_the_best_of_a_known_function_than_random_draws():
    given = {"train.temperature": {"uniform": [0.05, 1.0]}, "train.learning_rate": {"log_uniform": [1e-5, 1e-1]}}

    def objective(point):
        return -((point["train.temperature"] - 0.3) ** 2) - 0.1 * (np.log10(point["train.learning_rate"]) + 3) ** 2

    best = {}
    for searcher in ("tpe", "random"):
        config = tuning(given, searcher=searcher, as_configured_first=False)
        found = [
            best_of(run_search(config.tune.model_copy(update={"seed": seed}), space_of(config), 40, objective)).score
            for seed in range(5)
        ]
        best[searcher] = float(np.mean(found))
    assert best["random"] < best["tpe"] <= 0.0
    assert best["tpe"] > -0.01


def test_a_proposal_depends_on_its_number_and_on_the_trials_that_have_ended_alone():
    config = tuning({"train.temperature": {"uniform": [0.05, 1.0]}}, as_configured_first=False)
    space, settings = space_of(config), config.tune
    records = run_search(settings, space, 14, lambda point: -abs(point["train.temperature"] - 0.4))
    expected = propose(settings, space, 14, records)
    assert propose(settings, space, 14, records[::-1]) == expected
    assert propose(settings, space, 14, records) == expected
    assert propose(settings, space, 15, records) != expected
    failed = [*records, TrialRecord(number=20, point={"train.temperature": 0.9}, ended="failed", reason="memory")]
    assert propose(settings, space, 14, failed) == expected


def test_the_first_trials_are_as_configured_then_the_known_good_ones_then_the_grid():
    space = {
        "train.temperature": {"uniform": [0.1, 0.3]},
        "train.width": {"choice": [8, 16]},
        "augmentation.rotation": {"on_off": True},
    }
    config = tuning(space, searcher="grid", num_trials=14, start=[{"train.temperature": 0.2}])
    points = fixed_points(config.tune, space_of(config))
    assert points[:2] == [{}, {"train.temperature": 0.2}]
    grid = {tuple(sorted(point.items())) for point in points[2:]}
    assert len(grid) == len(points) - 2 == 3 * 2 * 2
    assert sorted({dict(point)["train.temperature"] for point in grid}) == pytest.approx([0.1, 0.2, 0.3])
    assert propose(config.tune, space_of(config), 14, []) is None
    with pytest.raises(InputError, match="fewer than the points of the grid"):
        fixed_points(config.tune.model_copy(update={"num_trials": 13}), space_of(config))


def test_only_trials_that_ran_to_their_end_win():
    def record(number, ended, score, point=None):
        return TrialRecord(
            number=number, point={"a": 1} if point is None else point, ended=ended, history=({"score": score},)
        )

    records = [
        record(0, "stopped", 0.95, {}),
        record(1, "done", 0.4),
        record(2, "done", 0.7),
        record(3, "stopped", 0.9),
    ]
    assert best_of(records).number == 2
    assert configured_score(records) is None
    assert configured_score([record(0, "done", 0.5, {}), *records[1:]]) == 0.5
    assert best_of([records[0], TrialRecord(number=5, point={}, ended="failed")]) is None


def test_the_configured_settings_win_unless_another_trial_is_better_by_more_than_luck():
    def record(number, score, point, ended="done"):
        return TrialRecord(number=number, point=point, ended=ended, history=({"score": score},))

    configured, other = record(0, 0.5, {}), record(1, 0.6, {"a": 1})
    assert winner_of([configured, other], 0.2) is configured
    assert winner_of([configured, other], 0.05) is other
    assert winner_of([record(0, 0.7, {}), other], 0.05).number == 0
    assert winner_of([other, record(2, 0.4, {"a": 2})], 0.2) is other
    assert winner_of([record(0, 0.5, {}, "failed"), other], 0.2) is other
    assert winner_of([record(0, 0.5, {}, "failed")], 0.2) is None
