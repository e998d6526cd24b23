"""Outside personalization: no labels, nothing moved but what should be, nothing left of a series, no harm."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch

from iopfl.base.errors import CancelledError
from iopfl.core import published
from iopfl.core.adaptation import RoutingAdapter, divide_views
from iopfl.core.inference import magnify, predict_instances
from iopfl.core.networks import build_network
from iopfl.core.planning import count_views
from iopfl.core.published import adapt_published, predict_published
from iopfl.core.routers import SampleRouter
from iopfl.core.routing import RoutedLayer, route_network
from iopfl.core.sampling import sample_instances
from iopfl.core.views import views_of
from iopfl.core.weights import snapshot
from iopfl.core.work import Work

from .tiny import BALL, DISK, STACK, TASKS, make_experts, make_volume, same_weights, with_settings

IDS = [task.name for task in TASKS]


def make_adapter(task, experts=None, **settings):
    task = with_settings(task, **{"evidence": 0.0, **settings})
    return RoutingAdapter(route_network(build_network(task), experts or make_experts(task)), task)


def state_of(adapter):
    """Everything the adapter's network holds, the experts included."""
    network = adapter.network
    return {key: value.detach().clone() for key, value in [*network.named_parameters(), *network.named_buffers()]}


def vote_by(adapter, monkeypatch, agreement):
    """Have the experts agree as a function of share and zoom says, each expert alike or as its list says."""
    make = type(adapter)._vote

    def vote(self, instances, share, zoom=1.0):
        result = make(self, instances, share, zoom)
        values = torch.as_tensor(agreement(share, zoom), dtype=torch.float32)
        return replace(result, by_expert=values.expand_as(result.by_expert).clone())

    monkeypatch.setattr(type(adapter), "_vote", vote)
    return adapter


@pytest.mark.parametrize("function", [RoutingAdapter.__init__, RoutingAdapter.__call__, adapt_published])
def test_adaptation_takes_no_labels(function):
    allowed = {
        "self",
        "network",
        "task",
        "device",
        "volume",
        "volumes",
        "experts",
        "seed",
        "padding",
        "work",
        "progress",
        "cancelled",
        "pace",
        "budget",
        "with_mask",
        "with_map",
    }
    assert set(inspect.signature(function).parameters) <= allowed


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_the_result_is_made_of_plain_networks_that_segment(task):
    adapted = make_adapter(task)(make_volume(task))
    for part in adapted.parts:
        assert not any(isinstance(module, RoutedLayer) for module in part.network.modules())
        assert type(part.network) is type(build_network(task))
    probabilities = adapted.predict(make_volume(task), task)
    assert torch.isfinite(probabilities).all()
    assert probabilities.shape == (task.num_classes, *make_volume(task).shape[1:])
    torch.testing.assert_close(probabilities.sum(0), torch.ones(probabilities.shape[1:]), atol=1e-4, rtol=0)
    assert 0 <= adapted.quality <= 1
    assert adapted.share in task.adaptation.shares
    assert adapted.parts[0].zoom == 1.0
    assert adapted.routing_weights.sum().item() == pytest.approx(1)
    assert adapted.routing_weights.shape == (3,)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_afterwards_the_adapter_is_as_it_was_bit_for_bit(task):
    adapter = make_adapter(task)
    before = state_of(adapter)
    adapter(make_volume(task))
    assert same_weights(state_of(adapter), before)
    for norm in adapter.network.batch_norms():
        assert (norm.share, norm.series, norm.batch) == (0.0, None, None)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_two_series_in_either_order_give_the_same(task):
    first, second = make_volume(task, seed=1), 3 + 2 * make_volume(task, seed=2)
    one, other = make_adapter(task, shares=(1.0,)), make_adapter(task, shares=(1.0,))
    forth = [one(first), one(second)]
    back = [other(second), other(first)][::-1]
    for a, b in zip(forth, back, strict=True):
        assert same_weights(snapshot(a.parts[0].network), snapshot(b.parts[0].network))
        assert (a.share, a.quality) == (b.share, b.quality)
    assert not same_weights(snapshot(forth[0].parts[0].network), snapshot(forth[1].parts[0].network))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_adaptation_works_whatever_the_callers_gradient_mode(mode):
    for task in (DISK, BALL):
        expected = make_adapter(task)(make_volume(task))
        adapter = make_adapter(task)
        with mode():
            adapted = adapter(make_volume(task))
        assert same_weights(snapshot(adapted.parts[0].network), snapshot(expected.parts[0].network))


@pytest.mark.parametrize(("spacing", "zooms"), [(None, (1.0, 1.5)), ((1.0, 1.0), (1.0,))])
def test_an_image_is_magnified_only_where_it_does_not_say_how_large_things_are(spacing, zooms):
    alike = make_experts(DISK, 1) * 3  # they agree at any magnification
    adapted = make_adapter(replace(DISK, spacing=spacing), alike, tolerance=1.0)(make_volume(DISK))
    assert tuple(part.zoom for part in adapted.parts) == zooms


def test_an_expert_that_disagrees_counts_less():
    experts = make_experts(DISK, 1) * 3
    odd = {key: -value if value.ndim > 1 else value for key, value in experts[0].items()}
    weights = make_adapter(DISK, [*experts, odd])(make_volume(DISK)).routing_weights
    torch.testing.assert_close(weights[:3], weights[:1].expand(3))
    assert weights[3] < weights[0]
    alike = make_adapter(DISK, experts)(make_volume(DISK))
    torch.testing.assert_close(alike.routing_weights, torch.full((3,), 1 / 3))
    assert alike.quality == pytest.approx(1)


def test_experts_beyond_the_voters_count_as_their_mean_and_cost_nothing():
    adapter = make_adapter(DISK, make_experts(DISK, 7), max_voters=3, zooms=(1.0,))
    passes = []
    adapter.network.register_forward_hook(lambda *_: passes.append(1))
    weights = adapter(make_volume(DISK)).routing_weights
    torch.testing.assert_close(weights[3:], torch.full((4,), 1 / 7))
    assert weights.sum().item() == pytest.approx(1)
    assert len(passes) == 3 * len(DISK.adaptation.shares) + 1


@pytest.mark.parametrize(
    ("stored", "own", "chosen"),
    [(0.8, 0.9, 1.0), (0.8, 0.795, 1.0), (0.8, 0.78, 0.0), (0.0, 0.3, 1.0)],
)
def test_own_statistics_are_used_unless_the_experts_agree_clearly_more_without(stored, own, chosen, monkeypatch):
    adapter = vote_by(make_adapter(DISK), monkeypatch, lambda share, zoom: own if share else stored)
    assert adapter(make_volume(DISK)).share == chosen


@pytest.mark.parametrize(("magnified", "expected"), [(0.9, [1.0, 1.5]), (0.795, [1.0, 1.5]), (0.7, [1.0])])
def test_a_magnified_view_joins_in_where_the_experts_agree_as_well_on_it(magnified, expected, monkeypatch):
    adapter = vote_by(make_adapter(DISK), monkeypatch, lambda share, zoom: magnified if zoom > 1 else 0.8)
    adapted = adapter(make_volume(DISK))
    assert [part.zoom for part in adapted.parts] == expected


@pytest.mark.parametrize("task", [DISK, STACK], ids=["disk", "stack"])
def test_statistics_of_the_series_at_each_magnification_are_folded_in(task, monkeypatch):
    volume = 5 + 3 * make_volume(task)
    adapter = vote_by(make_adapter(task, shares=(1.0,)), monkeypatch, lambda share, zoom: [0.5, 0.7, 0.9])
    adapted = adapter(volume)
    assert len(adapted.parts) == 2
    instances = sample_instances(volume, task, 3)
    adapter.network.route(adapted.routing_weights)
    for part in adapted.parts:
        adapter.network.set_share(1.0)
        with torch.no_grad():
            expected = adapter.network(magnify(instances, task, part.zoom)).softmax(1)
            found = part.network(magnify(instances, task, part.zoom)).softmax(1)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_a_magnified_prediction_comes_back_on_the_images_grid(task):
    network = build_network(task, seed=0).eval()
    instances = sample_instances(make_volume(task), task, 1)
    with torch.no_grad():
        plain, magnified = (predict_instances(network, instances, task, zoom=zoom) for zoom in (1.0, 2.0))
    assert magnified.shape == plain.shape
    assert not torch.equal(magnified, plain)
    torch.testing.assert_close(magnified.sum(1), torch.ones_like(magnified[:, 0]), atol=1e-4, rtol=0)


def test_magnification_is_of_an_edge_in_2d_and_costs_the_same_in_3d():
    assert magnify(torch.zeros(1, 1, 256, 256), DISK, 1.5).shape[2:] == (384, 384)
    assert magnify(torch.zeros(1, 1, 64, 96, 64), BALL, 1.5).shape[2:] == (80, 128, 80)
    image = torch.rand(1, 1, 32, 32)
    assert magnify(image, DISK, 1.0) is image


@pytest.mark.parametrize("after", range(4))
def test_cancel_stops_and_leaves_nothing(after):
    adapter = make_adapter(DISK)
    before = state_of(adapter)
    asked = []
    with pytest.raises(CancelledError, match="stopped; nothing of this image was kept"):
        adapter(make_volume(DISK), work=Work(cancelled=lambda: asked.append(1) or len(asked) > after))
    assert same_weights(state_of(adapter), before)
    assert make_adapter(DISK)(make_volume(DISK)).quality == adapter(make_volume(DISK)).quality


def test_progress_goes_from_nothing_to_all():
    seen = []
    work = Work(lambda done, total, expected: seen.append((done, total)))
    volume = make_volume(DISK)
    adapted = make_adapter(DISK)(volume, work=work)
    expected = seen[0]
    list(adapted.predict_slabs(volume, DISK, work=work))
    assert expected[0] == 0 < expected[1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_a_spent_time_budget_answers_with_what_was_found_by_then():
    adapted = make_adapter(DISK, seconds=0.0, shares=(0.5, 1.0))(make_volume(DISK))
    assert adapted.share == 0.5
    assert [part.zoom for part in adapted.parts] == [1.0]
    assert torch.isfinite(adapted.predict(make_volume(DISK), DISK)).all()


@pytest.mark.parametrize("task", TASKS, ids=IDS)
@pytest.mark.parametrize("value", [0.0, 1e4])
def test_one_constant_slice_does_not_break_it(task, value):
    volume = torch.full_like(make_volume(task, depth=1), value)
    adapted = make_adapter(task)(volume)
    assert torch.isfinite(adapted.predict(volume, task)).all()
    assert 0 <= adapted.quality <= 1


@pytest.mark.parametrize("task", TASKS, ids=IDS)
@pytest.mark.parametrize("own", [0.0, 0.74])
def test_where_the_experts_hardly_agree_the_global_model_answers_as_it_is(task, own, monkeypatch):
    adapter = vote_by(make_adapter(task, evidence=0.75), monkeypatch, lambda share, zoom: own if share else 0.5)
    adapted = adapter(5 + 3 * make_volume(task))
    assert adapted.routing_weights.tolist() == [1.0, 0.0, 0.0]
    assert (adapted.share, adapted.quality) == (0.0, pytest.approx(max(own, 0.5)))
    assert [part.zoom for part in adapted.parts] == [1.0]
    assert same_weights(snapshot(adapted.parts[0].network), make_experts(task)[0])


def test_a_long_series_gets_fewer_passes_and_one_at_least():
    task = with_settings(DISK, max_views=8, max_passes=12)
    assert [count_views(task.adaptation.effective, n) for n in (1, 4, 12, 500)] == [8, 3, 1, 1]
    adapted = RoutingAdapter(route_network(build_network(task), make_experts(task)), task)(make_volume(task, depth=12))
    assert [(part.zoom, len(part.views)) for part in adapted.parts] == [(1.0, 1)]


def test_magnifications_share_the_passes_and_see_different_views():
    task = replace(DISK, rotations=True)
    assert len(divide_views(task, 8, 1.0, among=1)) == 8
    plain, magnified = (divide_views(task, 8, zoom, among=2) for zoom in (1.0, 1.5))
    assert (len(plain), len(magnified)) == (4, 2)
    assert plain[0].flips == () and not set(plain) & set(magnified)


def test_fast_takes_a_third_of_the_passes():
    counts = []
    for fast in (False, True):
        adapter = make_adapter(replace(DISK, rotations=True), make_experts(DISK, 4), fast=fast, tolerance=1.0)
        passes = []
        adapter.network.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        adapted = adapter(make_volume(DISK, depth=1))
        counts.append(len(passes) + sum(len(part.views) for part in adapted.parts))
    assert counts == [4 * 3 + 2 + 4 + 2, 2 * 2 + 1 + 5]


def test_adaptation_looks_at_instances_spread_over_the_series():
    volume = torch.arange(10.0).expand(1, 32, 32, 10)
    assert sample_instances(volume, DISK, 3)[:, 0, 0, 0].tolist() == [1, 5, 8]
    assert len(sample_instances(volume[..., :2], DISK, 3)) == 2
    large = torch.zeros(1, 40, 16, 16)
    assert tuple(sample_instances(large, BALL, 2).shape) == (2, 1, 16, 16, 16)


def test_views_are_undone_and_all_different():
    task = replace(DISK, rotations=True)
    image = torch.rand(1, 1, 32, 32)
    seen = [view.apply(image) for view in views_of(task)]
    assert len(seen) == 8
    assert torch.equal(seen[0], image)
    assert all(torch.equal(view.undo(other), image) for view, other in zip(views_of(task), seen, strict=True))
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def publish(task, volumes, monkeypatch, epochs=2, **options):
    monkeypatch.setattr(published, "EPOCHS", epochs)
    return adapt_published(build_network(task, seed=0), make_experts(task), volumes, task, **options)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_published_every_router_and_affine_parameter_moves_and_no_expert(task, monkeypatch):
    volumes = [make_volume(task, seed=seed) for seed in range(2)]
    start, end = (publish(task, volumes, monkeypatch, epochs=epochs) for epochs in (0, 2))
    routers = {name for name, layer in end.routed_layers().items() if isinstance(layer.router, SampleRouter)}
    assert routers == set(end.routed_layers())
    trained = {name: p for name, p in end.named_parameters() if p.requires_grad}
    moved = {name for name, p in start.named_parameters() if not torch.equal(p, trained.get(name, p))}
    assert moved == set(trained)
    assert {name for name in trained if ".router." in name} == {
        name for name, _ in end.named_parameters() if ".router." in name
    }
    experts = dict(end.named_buffers())
    assert all(torch.equal(value, experts[name]) for name, value in start.named_buffers())


def test_published_dropout_stays_on_and_the_seed_decides(monkeypatch):
    routed = publish(DISK, [make_volume(DISK)], monkeypatch)
    one, again, other = (predict_published(routed, make_volume(DISK), DISK, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_published_takes_the_last_epoch_and_is_reproducible(monkeypatch):
    seen = []
    first = publish(DISK, [make_volume(DISK)], monkeypatch, epochs=3, progress=lambda *done: seen.append(done))
    torch.manual_seed(99)
    again = publish(DISK, [make_volume(DISK)], monkeypatch, epochs=3)
    earlier = publish(DISK, [make_volume(DISK)], monkeypatch, epochs=2)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert same_weights(first.state_dict(), again.state_dict())
    assert not same_weights(first.state_dict(), earlier.state_dict())


def test_published_leaves_the_callers_random_state(monkeypatch):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    predict_published(publish(DISK, [make_volume(DISK)], monkeypatch), make_volume(DISK), DISK)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_published_survives_a_single_constant_image(task, monkeypatch):
    volume = torch.zeros_like(make_volume(task, depth=1))
    routed = publish(task, [volume], monkeypatch)
    assert torch.isfinite(predict_published(routed, volume, task)).all()


def test_published_takes_volumes_of_different_sizes(monkeypatch):
    volumes = [torch.randn(1, *shape) for shape in ((20, 16, 16), (16, 19, 23))]
    routed = publish(BALL, volumes, monkeypatch, epochs=1)
    assert predict_published(routed, volumes[1], BALL).shape == (3, 16, 19, 23)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_published_works_where_gradients_are_off(mode, monkeypatch):
    with mode():
        publish(STACK, [make_volume(STACK)], monkeypatch)


def test_published_stops_when_asked(monkeypatch):
    asked = []
    with pytest.raises(CancelledError, match="stopped in epoch 2 of 3"):
        publish(DISK, [make_volume(DISK)], monkeypatch, epochs=3, cancelled=lambda: asked.append(1) or len(asked) > 1)
