"""The plain training step: seeds, schedule, checkpoints, sampling and the figures it reports."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from sklearn.metrics import adjusted_rand_score
from training_events import LEAD_SAMPLES, NUM_SAMPLES, make_windows

from pipelines.config.augmentation import AugmentationSettings
from pipelines.contrastive.augmentations import build_augmenter
from pipelines.contrastive.checkpoint import network_state, read_facts, restore_state, state_to_bytes
from pipelines.contrastive.objective import adjusted_rand, cluster_stability, kmeans
from pipelines.contrastive.quality import alignment, effective_rank, uniformity
from pipelines.contrastive.step import TrainPlan, epoch_order, learning_rate, new_state, run_epoch, view_share
from pipelines.encoders import NETWORKS, Encoder, NetworkConfig, build_network
from pipelines.encoders.preparation import prepare
from pipelines.workspace.event_sample import lowest_hashes, quotas

CPU = torch.device("cpu")


def plan(**changes) -> TrainPlan:
    values = {"epochs": 4, "batch_size": 16, "temperature": 0.2, "learning_rate": 2e-3, "weight_decay": 1e-4}
    return TrainPlan(**(values | {"warmup_epochs": 1.0, "seed": 7} | changes))


def network(kind: str = "spectrogram") -> NetworkConfig:
    return NetworkConfig(
        kind=kind,
        num_samples=NUM_SAMPLES,
        rate_hz=50,
        lead_samples=LEAD_SAMPLES,
        width=8,
        dim=8,
        num_bands=16,
        num_frames=16,
    )


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    raw, _ = make_windows(48)
    return prepare(torch.from_numpy(raw), LEAD_SAMPLES)


@pytest.fixture(scope="module")
def augmenter():
    return build_augmenter("both", AugmentationSettings().model_dump(), LEAD_SAMPLES)


@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_an_interrupted_training_is_the_undisturbed_one_bit_for_bit(windows, augmenter, kind):
    state = new_state(network(kind), plan(), CPU)
    curve = [run_epoch(state, windows, augmenter, plan())["loss"] for _ in range(2)]
    content = state_to_bytes(state, {"history": curve})
    curve += [run_epoch(state, windows, augmenter, plan())["loss"] for _ in range(2)]
    torch.manual_seed(999)
    resumed = new_state(network(kind), plan(), CPU)
    restore_state(resumed, content)
    assert read_facts(content) == (2, {"history": curve[:2]})
    assert [run_epoch(resumed, windows, augmenter, plan())["loss"] for _ in range(2)] == curve[2:]
    for name, tensor in state.learner.state_dict().items():
        assert torch.equal(tensor, resumed.learner.state_dict()[name])
    assert network_state(content).keys() == state.learner.network.state_dict().keys()


def test_training_lowers_the_loss_below_that_of_chance(windows, augmenter):
    brisk = plan(epochs=30, learning_rate=2e-2)
    state = new_state(network(), brisk, CPU)
    losses = [run_epoch(state, windows, augmenter, brisk)["loss"] for _ in range(30)]
    assert losses[-1] < 0.985 * math.log(31)


def test_the_share_of_augmented_views_rises_from_a_fifth_to_all_within_a_quarter_of_the_training(windows, augmenter):
    shares = [view_share(plan(epochs=40, view_ramp_epochs=8), epoch) for epoch in range(10)]
    assert shares == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
    assert [view_share(plan(epochs=4, view_ramp_epochs=8), epoch) for epoch in range(3)] == [0.2, 1.0, 1.0]
    assert view_share(plan(epochs=40), 0) == 1.0
    generators = [torch.Generator().manual_seed(3) for _ in range(3)]
    unchanged = augmenter(windows, generators[0], 0.0)
    torch.testing.assert_close(unchanged, windows, rtol=0, atol=0, equal_nan=True)
    full, default = augmenter(windows, generators[1], 1.0), augmenter(windows, generators[2])
    torch.testing.assert_close(full, default, rtol=0, atol=0, equal_nan=True)


def test_a_training_is_the_same_when_it_is_done_again(windows, augmenter):
    state = new_state(network(), plan(), CPU)
    losses = [run_epoch(state, windows, augmenter, plan())["loss"] for _ in range(2)]
    again = new_state(network(), plan(), CPU)
    assert losses == [run_epoch(again, windows, augmenter, plan())["loss"] for _ in range(2)]


def test_seeds_decide_weights_and_order():
    first, same, other = (new_state(network(), plan(seed=seed), CPU).learner.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["head.first.weight"], other["head.first.weight"])
    assert torch.equal(epoch_order(50, 1, 0, 0), epoch_order(50, 1, 0, 0))
    orders = {tuple(epoch_order(50, 1, epoch, rank).tolist()) for epoch in range(3) for rank in range(2)}
    assert len(orders) == 6
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(plan(epochs=10), step, 8, 256) for step in range(80)]
    assert rates[0] < rates[4] < rates[8]
    assert max(rates) == pytest.approx(2e-3)
    assert rates[-1] < 1e-5
    assert all(later <= earlier for earlier, later in pairwise(rates[8:]))
    assert learning_rate(plan(), 8, 8, 1024) == pytest.approx(2 * learning_rate(plan(), 8, 8, 256))


@given(
    counts=strategies.dictionaries(strategies.text(max_size=3), strategies.integers(1, 200), min_size=1, max_size=12),
    total=strategies.integers(0, 500),
)
def test_quotas_fill_the_sample_and_are_equal_as_far_as_strata_reach(counts, total):
    given_out = quotas(counts, total)
    assert sum(given_out.values()) == min(total, sum(counts.values()))
    assert all(0 <= given_out[name] <= counts[name] for name in counts)
    short = [given_out[name] for name in counts if given_out[name] < counts[name]]
    if short and max(given_out.values()) > 0:
        assert max(given_out.values()) - min(short) <= len(counts)


@given(count=strategies.integers(0, 30), seed=strategies.integers(0, 5))
def test_a_smaller_sample_is_part_of_a_larger_one(count, seed):
    ids = [f"event-{number}" for number in range(30)]
    small, large = lowest_hashes(ids, count, seed), lowest_hashes(ids, min(30, count + 3), seed)
    assert len(small) == count
    assert set(small) <= set(large)
    shuffled = ids[::-1]
    assert {shuffled[place] for place in lowest_hashes(shuffled, count, seed)} == {ids[place] for place in small}


def test_alignment_and_uniformity_at_their_ends():
    points = torch.eye(8)
    assert alignment(points, 3 * points) == pytest.approx(0)
    assert alignment(points, -points) == pytest.approx(4)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0)
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)


def test_the_effective_rank_counts_even_directions():
    assert effective_rank(torch.eye(6)) == pytest.approx(6, rel=1e-6)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1, abs=1e-6)
    # Garrido et al. (2023), equation 1, by hand for singular values 3 and 1.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected, rel=1e-6)


@given(strategies.lists(strategies.tuples(strategies.integers(0, 3), strategies.integers(0, 4)), min_size=2))
def test_the_adjusted_rand_index_is_that_of_scikit_learn(pairs):
    first, second = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert adjusted_rand(first, second) == pytest.approx(adjusted_rand_score(first, second), abs=1e-9)


def test_kmeans_finds_separate_groups():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    truth = torch.arange(90) % 3
    points = centres[truth] + 0.5 * torch.randn((90, 2), generator=torch.Generator().manual_seed(0))
    assert adjusted_rand(kmeans(points, 3, seed=0), truth) == pytest.approx(1)


def test_stability_prefers_an_encoder_that_ignores_what_does_not_matter():
    raw, _ = make_windows(60, seed=3)
    hand_made = build_network(network("features"))
    features = cluster_stability(Encoder(network("features"), hand_made), raw, num_clusters=3, seed=0)
    untrained = new_state(network("spectrogram"), plan(), CPU).learner.network
    noise = cluster_stability(Encoder(network("spectrogram"), untrained), raw, num_clusters=3, seed=0)
    assert features["stability"] > noise["stability"]
    assert np.isfinite(list(features.values())).all()
