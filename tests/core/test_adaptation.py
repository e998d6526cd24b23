"""Outside personalization: no labels, nothing moved but what should be, nothing left of a series, no harm."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch

from iopfl.core import adaptation, published
from iopfl.core.adaptation import RoutingAdapter, final_views, sample_instances
from iopfl.core.errors import CancelledError
from iopfl.core.inference import predict, predict_instances
from iopfl.core.networks import build_network
from iopfl.core.published import adapt_published, predict_published
from iopfl.core.routers import SampleRouter
from iopfl.core.routing import RoutedLayer, route_network
from iopfl.core.views import views_of
from iopfl.core.weights import snapshot

from .tiny import BALL, DISK, STACK, TASKS, make_experts, make_volume, same_weights, with_settings

IDS = [task.name for task in TASKS]


def make_adapter(task, **settings):
    task = with_settings(task, **settings)
    return RoutingAdapter(route_network(build_network(task), make_experts(task)), task)


def state_of(adapter):
    """Everything the adapter's network holds, the experts included."""
    network = adapter.network
    return {key: value.detach().clone() for key, value in [*network.named_parameters(), *network.named_buffers()]}


def keep_adapted(monkeypatch):
    """Turn the guard off."""
    monkeypatch.setattr(adaptation, "_is_better", lambda *_: True)


@pytest.mark.parametrize("function", [RoutingAdapter.__init__, RoutingAdapter.__call__, adapt_published])
def test_adaptation_takes_no_labels(function):
    allowed = {"self", "network", "task", "device", "volume", "volumes", "experts", "seed", "progress", "cancelled"}
    assert set(inspect.signature(function).parameters) <= allowed


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_the_result_is_a_plain_network_that_segments(task):
    adapted = make_adapter(task)(make_volume(task))
    assert not any(isinstance(module, RoutedLayer) for module in adapted.network.modules())
    assert type(adapted.network) is type(build_network(task))
    probabilities = predict(adapted.network, make_volume(task), task, views=adapted.views)
    assert torch.isfinite(probabilities).all()
    assert probabilities.shape[0] == task.num_classes
    assert 0 <= adapted.quality <= 1
    assert adapted.share in task.adaptation.shares
    assert adapted.mean_routing_weights().sum().item() == pytest.approx(1)
    assert len(adapted.mean_routing_weights()) == 3


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_only_routers_and_offsets_move_and_every_one_of_them(task, monkeypatch):
    keep_adapted(monkeypatch)
    adapter = make_adapter(task, steps=2)
    before, during = state_of(adapter), {}
    freeze = adapter.network.freeze_statistics
    monkeypatch.setattr(adapter.network, "freeze_statistics", lambda b: (during.update(state_of(adapter)), freeze(b)))
    adapter(make_volume(task))
    moved = {key for key, value in before.items() if not torch.equal(value, during[key])}
    assert moved == set(adapter.parameters())
    norms = len(adapter.network.batch_norms())
    assert len(moved) == len(adapter.network.routed_layers()) + norms
    assert norms > 0


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_afterwards_the_adapter_is_as_it_was_bit_for_bit(task, monkeypatch):
    keep_adapted(monkeypatch)
    adapter = make_adapter(task, shares=(0.5,))
    before = state_of(adapter)
    adapter(make_volume(task))
    assert same_weights(state_of(adapter), before)
    for norm in adapter.network.batch_norms():
        assert (norm.share, norm.series, norm.batch) == (0.0, None, None)
    assert all(parameter.grad is None for parameter in adapter.parameters().values())


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_two_series_in_either_order_give_the_same(task, monkeypatch):
    keep_adapted(monkeypatch)
    first, second = make_volume(task, seed=1), 3 + 2 * make_volume(task, seed=2)
    one, other = make_adapter(task), make_adapter(task)
    forth = [one(first), one(second)]
    back = [other(second), other(first)][::-1]
    for a, b in zip(forth, back, strict=True):
        assert same_weights(snapshot(a.network), snapshot(b.network))
        assert (a.share, a.quality) == (b.share, b.quality)
    assert not same_weights(snapshot(forth[0].network), snapshot(forth[1].network))


def test_a_seed_gives_one_result_whatever_the_callers_random_state(monkeypatch):
    keep_adapted(monkeypatch)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(results))
        adapter = make_adapter(DISK, seed=seed, steps=3)
        results.append(snapshot(adapter(make_volume(DISK)).network))
    assert same_weights(results[0], results[1])
    assert not same_weights(results[0], results[2])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_adaptation_works_where_gradients_are_off(mode, monkeypatch):
    keep_adapted(monkeypatch)
    for task in (DISK, BALL):
        expected = make_adapter(task)(make_volume(task))
        adapter = make_adapter(task)
        with mode():
            adapted = adapter(make_volume(task))
        assert same_weights(snapshot(adapted.network), snapshot(expected.network))
        assert adapted.is_adapted


def inconsistency(network, task, volume):
    """Mean squared difference of the views' predictions from their mean."""
    instances = sample_instances(volume, task, 3)
    with torch.no_grad():
        answers = torch.stack([predict_instances(network, instances, task, views=[v]) for v in views_of(task)])
    return (answers - answers.mean(0)).square().mean().item()


@pytest.mark.parametrize("task", [DISK, BALL], ids=["disk", "ball"])
def test_steps_make_the_views_agree_more(task, monkeypatch):
    keep_adapted(monkeypatch)
    volume = 1 + 2 * make_volume(task)
    free = {"anchor_weight": 0.0, "shape_weight": 0.0, "shares": (0.5,)}
    start = make_adapter(task, steps=0, **free)(volume)
    adapted = make_adapter(task, steps=20, **free)(volume)
    assert not start.is_adapted
    assert inconsistency(adapted.network, task, volume) < inconsistency(start.network, task, volume)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_harmful_adaptation_is_thrown_away(task):
    volume = make_volume(task)
    start = make_adapter(task, steps=0)(volume)
    harmful = make_adapter(task, steps=3, learning_rate=1e3, anchor_weight=0.0)(volume)
    assert not harmful.is_adapted
    assert same_weights(snapshot(harmful.network), snapshot(start.network))
    assert harmful.quality == start.quality


def test_the_guard_keeps_more_agreement_and_refuses_less_and_collapse():
    experts = torch.tensor([0.1, 0.9]).view(1, 1, 2, 1, 1).expand(3, 2, 2, 8, 8)
    start = torch.tensor([0.4, 0.6]).view(1, 2, 1, 1).expand(2, 2, 8, 8)
    better = torch.tensor([0.15, 0.85]).view(1, 2, 1, 1).expand(2, 2, 8, 8)
    worse = torch.tensor([0.6, 0.4]).view(1, 2, 1, 1).expand(2, 2, 8, 8)
    empty = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(2, 2, 8, 8)
    verdicts = [adaptation._is_better(experts, adapted, start) for adapted in (better, worse, empty, start)]
    assert verdicts == [True, False, False, False]


def test_the_share_is_the_one_under_which_the_experts_agree_most(monkeypatch):
    scores = iter([0.2, 0.7, 0.4, 0.0])
    monkeypatch.setattr(adaptation, "expert_agreement", lambda *_: next(scores))
    assert make_adapter(DISK, shares=(0.0, 0.3, 1.0), steps=0)(make_volume(DISK)).share == 0.3


def test_statistics_of_the_series_are_folded_in():
    volume = 5 + 3 * make_volume(DISK)
    adapter = make_adapter(DISK, shares=(1.0,), steps=0)
    adapted = adapter(volume)
    adapter.network.set_share(1.0)
    with torch.no_grad():
        expected = adapter.network(sample_instances(volume, DISK, 3))
        torch.testing.assert_close(adapted.network(sample_instances(volume, DISK, 3)), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("after", range(5))
def test_cancel_stops_and_leaves_nothing(after):
    adapter = make_adapter(DISK)
    before = state_of(adapter)
    asked = []
    with pytest.raises(CancelledError, match="adaptation stopped; nothing of this series was kept"):
        adapter(make_volume(DISK), cancelled=lambda: asked.append(1) or len(asked) > after)
    assert same_weights(state_of(adapter), before)
    assert make_adapter(DISK)(make_volume(DISK)).quality == adapter(make_volume(DISK)).quality


def test_progress_goes_from_nothing_up():
    seen = []
    make_adapter(DISK, steps=2)(make_volume(DISK), progress=seen.append)
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen[-1] <= 1


def test_a_spent_time_budget_answers_with_what_was_found_by_then():
    adapted = make_adapter(DISK, seconds=0.0, shares=(0.5, 0.0, 1.0))(make_volume(DISK))
    assert adapted.share == 0.5
    assert not adapted.is_adapted
    assert torch.isfinite(predict(adapted.network, make_volume(DISK), DISK)).all()


@pytest.mark.parametrize("task", TASKS, ids=IDS)
@pytest.mark.parametrize("value", [0.0, 1e4])
def test_one_constant_slice_does_not_break_it(task, value):
    volume = torch.full_like(make_volume(task, depth=1), value)
    adapted = make_adapter(task)(volume)
    assert torch.isfinite(predict(adapted.network, volume, task, views=adapted.views)).all()
    assert 0 <= adapted.quality <= 1


def test_a_long_series_gets_fewer_views_and_never_none():
    task = with_settings(DISK, max_views=8, max_passes=12)
    assert [len(final_views(task, n)) for n in (1, 4, 12, 500)] == [4, 3, 1, 1]  # a disk's mirrors give four
    assert final_views(task, 500)[0].flips == ()


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
