"""Properties of routed networks, on every network the project offers, in 2D and 3D."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from iopfl.base.errors import AdaptationError, BankMismatchError, WeightsError
from iopfl.core.networks import NETWORKS, build_network
from iopfl.core.routing import RoutedConv, RoutedLayer, mix_experts, route_network
from iopfl.core.task import Network, Task
from iopfl.core.weights import average, snapshot

ARGUMENTS = {
    "BasicUNet": {"features": [4, 4, 8, 8, 8, 4], "norm": "batch"},
    "UNet": {"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1, "norm": "batch"},
    "DynUNet": {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]},
    "SegResNet": {"init_filters": 8},
    "AttentionUnet": {"channels": [4, 8, 8], "strides": [2, 2]},
}
EVERY = [(name, dims) for name in NETWORKS for dims in (2, 3)]


def make_task(name: str = "BasicUNet", dims: int = 2) -> Task:
    network = Network(name, ARGUMENTS[name])
    return Task(name="t", labels={"a": 1}, spatial_dims=dims, size=(16,) * dims, network=network)


def make_experts(task: Task, count: int = 3) -> list[dict[str, torch.Tensor]]:
    """Experts that differ in everything, normalization statistics and activations included."""
    experts = []
    for seed in range(count):
        network = build_network(task, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in network.modules():
                for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                    if value.is_floating_point() and (value.ndim == 1):
                        noise = torch.rand(value.shape, generator=generator)
                        value += 0.5 * (noise if name == "running_var" else noise - 0.5)
        experts.append(snapshot(network))
    return experts


def make_images(task: Task, count: int = 2) -> torch.Tensor:
    return torch.randn(count, task.in_channels, *task.size, generator=torch.Generator().manual_seed(9))


def run(task: Task, weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    network = build_network(task)
    network.load_state_dict(weights)
    with torch.no_grad():
        return network.eval()(images)


@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_one_hot_routing_equals_that_expert(name, dims):
    task = make_task(name, dims)
    experts, images = make_experts(task), make_images(task)
    routed = route_network(build_network(task), experts)
    for index, expert in enumerate(experts):
        with routed.only(index), torch.no_grad():
            torch.testing.assert_close(routed(images), run(task, expert, images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_routing_starts_at_the_uniform_average(name, dims):
    task = make_task(name, dims)
    experts, images = make_experts(task), make_images(task)
    routed = route_network(build_network(task), experts)
    with torch.no_grad():
        torch.testing.assert_close(routed(images), run(task, average(experts), images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("router", ["series", "sample"])
@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_every_router_of_every_layer_gets_a_gradient(name, dims, router):
    task = make_task(name, dims)
    routed = route_network(build_network(task), make_experts(task), router=router)
    routed(make_images(task)).square().mean().backward()
    plain = [m for m in build_network(task).modules() if next(m.parameters(recurse=False), None) is not None]
    layers = routed.routed_layers()
    assert len(layers) == len(plain)
    for layer in layers.values():
        assert sum(parameter.grad.abs().sum() for parameter in layer.router.parameters()) > 0


@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_folding_gives_a_plain_network_of_the_same_output(name, dims):
    task = make_task(name, dims)
    images = make_images(task)
    routed = route_network(build_network(task), make_experts(task))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in routed.routed_layers().values():
            layer.router.logits.copy_(torch.randn(3, generator=generator))
        folded = routed.fold()
        torch.testing.assert_close(folded(images), routed(images), atol=1e-5, rtol=1e-4)
    assert not any(isinstance(module, RoutedLayer) for module in folded.modules())
    assert type(folded) is type(build_network(task))


@pytest.mark.parametrize("normalization", [True, False])
@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_grouped_convolution_equals_the_loop_over_samples(name, dims, normalization):
    task = make_task(name, dims)
    images = make_images(task, 3)
    routed = route_network(build_network(task), make_experts(task), router="sample", normalization=normalization)
    with torch.no_grad():
        grouped = routed(images)
        for layer in routed.routed_layers().values():
            layer.grouped = False
        torch.testing.assert_close(grouped, routed(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.Conv2d(4, 6, 3, stride=2, dilation=2, bias=False),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
        nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1, output_padding=1, bias=False),
        nn.Conv3d(4, 6, (1, 3, 3), padding=(0, 1, 1), groups=2),
        nn.Conv1d(4, 6, 3),
    ],
    ids=str,
)
def test_grouped_convolution_of_every_form_equals_the_loop(conv):
    experts = [{k: torch.randn_like(v) for k, v in conv.state_dict().items()} for _ in range(3)]
    routed = route_network(nn.Sequential(conv), [{f"0.{k}": v for k, v in e.items()} for e in experts], router="sample")
    images = torch.randn(4, 4, *(8,) * (conv.weight.ndim - 2))
    with torch.no_grad():
        grouped = routed(images)
        routed.network[0].grouped = False
        torch.testing.assert_close(grouped, routed(images), atol=1e-5, rtol=1e-4)
    assert isinstance(routed.network[0], RoutedConv)


def test_identical_experts_give_that_network_whatever_the_router_says():
    task = make_task()
    expert, images = make_experts(task, 1)[0], make_images(task)
    routed = route_network(build_network(task), [expert] * 4)
    with torch.no_grad():
        for layer in routed.routed_layers().values():
            layer.router.logits.normal_()
        torch.testing.assert_close(routed(images), run(task, expert, images), atol=1e-5, rtol=1e-4)


def test_convolutions_alone_leave_normalization_to_the_first_expert():
    task = make_task()
    experts = make_experts(task)
    routed = route_network(build_network(task), experts, normalization=False)
    convolutions = [m for m in build_network(task).modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(routed.routed_layers()) == len(convolutions)
    key = next(key for key in experts[0] if key.endswith("running_mean"))
    assert torch.equal(routed.network.state_dict()[key], experts[0][key])


def test_share_of_the_series_statistics_lies_between_stored_and_batch():
    task = make_task()
    experts, images = make_experts(task), 5 + 3 * make_images(task, 4)
    routed = route_network(build_network(task), experts)
    with torch.no_grad():
        stored = routed(images)
        routed.set_share(1.0)
        batch = routed(images)
        reference = build_network(task)
        reference.load_state_dict(average(experts))
        for module in reference.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
        torch.testing.assert_close(batch, reference.eval()(images), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(stored, batch, atol=1e-2)


def test_frozen_statistics_fold_and_do_not_depend_on_the_next_batch():
    task = make_task()
    images = make_images(task, 4)
    routed = route_network(build_network(task), make_experts(task))
    routed.set_share(0.5)
    with torch.no_grad():
        together = routed(images)
        with pytest.raises(AdaptationError, match="not frozen"):
            routed.fold()
        routed.freeze_statistics([images])
        torch.testing.assert_close(routed(images[:1]), together[:1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(routed.fold()(images), together, atol=1e-5, rtol=1e-4)


def test_routing_leaves_the_given_network_and_experts_alone():
    task = make_task()
    network, experts = build_network(task, seed=5), make_experts(task)
    before, kept = snapshot(network), [{k: v.clone() for k, v in e.items()} for e in experts]
    route_network(network, experts)(make_images(task))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(torch.equal(a[key], b[key]) for a, b in zip(kept, experts, strict=True) for key in a)


def test_what_does_not_fit_is_named():
    task = make_task()
    experts = make_experts(task)
    with pytest.raises(BankMismatchError, match="are for 2 experts, the layer holds 3"):
        mix_experts(torch.zeros(3, 4), torch.ones(2))
    with pytest.raises(WeightsError, match=r"expert 1: .* expected"):
        route_network(build_network(task), [experts[0], {**experts[1], "final_conv.bias": torch.zeros(7)}])
    with pytest.raises(AdaptationError, match="per sample"):
        route_network(build_network(task), experts, router="sample").fold()
