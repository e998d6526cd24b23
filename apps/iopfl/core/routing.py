"""Routing: a network whose layers mix the experts of a bank (IOP-FL, section III-C).

`route_network` walks any MONAI network and replaces each layer that has
parameters by one that holds that layer of every expert and a router. The
network itself is MONAI's and is not written twice. Routing weights are the
only new quantity: (E,) for a series, (B, E) for each sample, in bank order.
Next: `adaptation` sets the routers; `fold` gives a plain network back.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from iopfl.base.errors import AdaptationError, BankMismatchError
from iopfl.core.routers import SampleRouter, SeriesRouter
from iopfl.core.weights import check_weights

RouterKind = Literal["series", "sample"]


class RoutedLayer(nn.Module):
    """A layer whose parameters and statistics are a mixture of the experts', handed to the layer's own forward."""

    def __init__(self, layer: nn.Module, experts: Mapping[str, Tensor], router: nn.Module) -> None:
        super().__init__()
        self.layer = layer.eval().requires_grad_(False)
        self.router = router
        self.forced: Tensor | None = None
        self._names = list(experts)
        for name, stacked in experts.items():
            self.register_buffer(f"experts_{name}", stacked, persistent=False)

    def routing_weights(self, features: Tensor) -> Tensor:
        """(E,), or (B, E) of a router that looks at each sample; what the router says unless weights are forced."""
        return self.router(features) if self.forced is None else self.forced.to(features)

    def mixed(self, routing_weights: Tensor) -> dict[str, Tensor]:
        """Parameters and buffers mixed by (E,) into the layer's own shapes, or by (B, E) into (B, *W)."""
        return {name: mix_experts(getattr(self, f"experts_{name}"), routing_weights) for name in self._names}

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, *S) to whatever the layer gives."""
        return functional_call(self.layer, self.mixed(self.routing_weights(features)), (features,))

    def constant_weights(self) -> Tensor:
        """Routing weights (E,) that hold for the whole series.

        Raises:
            AdaptationError: the router gives each sample its own.
        """
        if self.forced is not None:
            return self.forced
        if not isinstance(self.router, SeriesRouter):
            raise AdaptationError("cannot fold a network routed per sample: each image has its own; route per series")
        return self.router.logits.detach().softmax(0)

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """The plain layer with the mixture in it."""
        layer = copy.deepcopy(self.layer)
        layer.load_state_dict(self.mixed(self.constant_weights()))
        return layer


class RoutedConv(RoutedLayer):
    """A convolution, transposed or not, of any dimension, stride, padding and number of groups.

    With a mixture a sample, all samples run as one grouped convolution (as in
    timm's CondConv2d); `grouped = False` takes them one by one.
    """

    grouped = True
    layer: _ConvNd

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, *S) to the convolution's output."""
        routing_weights = self.routing_weights(features)
        if routing_weights.ndim == 1:
            return functional_call(self.layer, self.mixed(routing_weights), (features,))
        mixed = self.mixed(routing_weights)
        if not self.grouped or self.layer.padding_mode != "zeros":
            kernels = ({name: value[index] for name, value in mixed.items()} for index in range(len(features)))
            pairs = zip(features, kernels, strict=True)
            return torch.cat([functional_call(self.layer, kernel, (sample[None],)) for sample, kernel in pairs])
        return self._convolve_groups(features, mixed["weight"], mixed.get("bias"))

    def _convolve_groups(self, features: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
        """Each sample with its own kernel, (B, *W), as groups of one convolution."""
        conv, batch = self.layer, features.shape[0]
        kind = "conv_transpose" if conv.transposed else "conv"
        function: Callable[..., Tensor] = getattr(nn.functional, f"{kind}{len(conv.kernel_size)}d")
        options = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        if conv.transposed:
            options["output_padding"] = conv.output_padding
        outputs = function(
            features.reshape(1, -1, *features.shape[2:]),  # (1, B * C, *S)
            kernels.flatten(0, 1),  # (B * first, second, *kernel)
            None if bias is None else bias.flatten(),  # (B * O)
            groups=batch * conv.groups,
            **options,
        )
        return outputs.reshape(batch, -1, *outputs.shape[2:])


class RoutedBatchNorm(RoutedLayer):
    """Batch normalization: the experts' statistics mixed, then a share of the series' own.

    Attributes:
        share: the share of the series' own mean and variance, 0 to 1 (alpha-BN). 0 is the stored statistics.
        series: the series' mean and variance (C,) once frozen; None = those of the batch at hand.
        batch: mean and variance (C,) of the batch at hand.
    """

    layer: _BatchNorm

    def __init__(self, layer: nn.Module, experts: Mapping[str, Tensor], router: nn.Module) -> None:
        super().__init__(layer, experts, router)
        self.share = 0.0
        self.series: tuple[Tensor, Tensor] | None = None
        self.batch: tuple[Tensor, Tensor] | None = None
        self._collected: list[tuple[Tensor, Tensor]] | None = None

    def collect(self, collecting: bool) -> None:
        """Begin to collect the statistics of batches, or end it and freeze their mean."""
        if collecting:
            self.series, self._collected = None, []
        elif self._collected:  # without a share, none were asked for
            means, variances = (torch.stack(values).mean(0) for values in zip(*self._collected, strict=True))
            self.series, self._collected = (means, variances), None

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, *S), normalized; written out, since torch's own gives no gradient to the statistics' mixture."""
        if self.share > 0 and self.series is None:
            mean, variance = _statistics(features.float(), self.layer.eps)
            if self._collected is not None:
                self._collected.append((mean.detach(), variance.detach()))
            self.batch = (mean, variance)
        mixed = self.mixed(self.routing_weights(features))  # (C) each
        scale = (mixed["running_var"] + self.layer.eps).rsqrt()
        if self.layer.affine:
            scale = scale * mixed["weight"]
        shift = mixed.get("bias", 0.0) - mixed["running_mean"] * scale
        shape = (-1, features.shape[1], *[1] * (features.ndim - 2))
        return torch.addcmul(shift.view(shape).to(features), features, scale.view(shape).to(features))

    def mixed(self, routing_weights: Tensor) -> dict[str, Tensor]:
        """The mixture, with the series' share in it."""
        mixed = super().mixed(routing_weights)
        if self.share > 0:
            statistics = self.batch if self.series is None else self.series
            assert statistics is not None  # forward has just set them
            mean, variance = statistics
            mixed["running_mean"] = (1 - self.share) * mixed["running_mean"] + self.share * mean
            mixed["running_var"] = (1 - self.share) * mixed["running_var"] + self.share * variance
        return mixed

    def fold(self) -> nn.Module:
        """The plain layer; the series' statistics must be frozen."""
        if self.share > 0 and self.series is None:
            raise AdaptationError("cannot fold: the series' statistics are not frozen; call freeze_statistics first")
        return super().fold()


def _statistics(features: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of features (B, C, *S)."""
    if torch.is_grad_enabled():
        variance, mean = torch.var_mean(features, [axis for axis in range(features.ndim) if axis != 1], correction=0)
        return mean, variance
    # Of batch normalization itself: several times as fast on a CPU, but without a gradient.
    _, mean, inverse = torch.native_batch_norm(features, None, None, None, None, True, 0.0, eps)
    return mean, (inverse.square().reciprocal() - eps).clamp_min(0)


class RoutedNetwork(nn.Module):
    """A plain network with routed layers in it; used as the network itself.

    Attributes:
        network: the routed network, logits (B, K, *S) of instances (B, in_channels, *S).
        num_experts: E.
    """

    def __init__(self, network: nn.Module, num_experts: int) -> None:
        super().__init__()
        self.network = network
        self.num_experts = num_experts

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, *S) to logits (B, K, *S)."""
        return self.network(images)

    def routed_layers(self) -> dict[str, RoutedLayer]:
        """Every routed layer, by its name in the plain network."""
        return {name: m for name, m in self.network.named_modules() if isinstance(m, RoutedLayer)}

    def batch_norms(self) -> list[RoutedBatchNorm]:
        """Those of them that hold statistics."""
        return [layer for layer in self.routed_layers().values() if isinstance(layer, RoutedBatchNorm)]

    def routing_weights(self) -> dict[str, Tensor]:
        """Routing weights (E,) of each layer, where they are the same for a whole series."""
        return {name: layer.constant_weights() for name, layer in self.routed_layers().items()}

    @torch.no_grad()
    def route(self, routing_weights: Tensor | None) -> None:
        """Have every layer mix the experts by these weights (E,), which sum to 1; None = the uniform average."""
        for layer in self.routed_layers().values():
            if isinstance(layer.router, SeriesRouter):
                layer.router.point_at(routing_weights)

    @contextlib.contextmanager
    def only(self, expert: int) -> Iterator[None]:
        """Within this, the network is that expert."""
        one_hot = torch.zeros(self.num_experts)
        one_hot[expert] = 1
        layers = self.routed_layers().values()
        for layer in layers:
            layer.forced = one_hot
        try:
            yield
        finally:
            for layer in layers:
                layer.forced = None

    def set_share(self, share: float) -> None:
        """Use this share of the statistics of the batch at hand, 0 to 1."""
        for norm in self.batch_norms():
            norm.share, norm.series, norm.batch = share, None, None

    @torch.no_grad()
    def freeze_statistics(self, batches: Sequence[Tensor]) -> None:
        """Pass over a series once and keep its statistics: the same whatever batch comes next.

        Exact for one batch; for several, the mean over batches.
        """
        for norm in self.batch_norms():
            norm.collect(True)
        for batch in batches:
            self(batch)
        for norm in self.batch_norms():
            norm.collect(False)

    def fold(self) -> nn.Module:
        """A plain network of the same output, with no routed layer left.

        Raises:
            AdaptationError: routed per sample, or the series' statistics are not frozen.
        """
        plain = copy.deepcopy(self.network)
        _replace(plain, {name: layer.fold() for name, layer in self.routed_layers().items()})
        return plain.eval()


def mix_experts(experts: Tensor, routing_weights: Tensor) -> Tensor:
    """Mix the experts' parameters of one layer.

    Source: IOP-FL, section III-C. The mixture is linear, hence equals mixing
    the outputs of E convolutions, at the cost of one.

    Args:
        experts: (E, *W), in bank order.
        routing_weights: (E,) or (B, E); they need not sum to 1.

    Returns:
        (*W), or (B, *W) for routing weights of each sample. Integer buffers are the first expert's.

    Raises:
        BankMismatchError: the two disagree about E.

    >>> mix_experts(torch.tensor([[2.0], [4.0]]), torch.tensor([0.5, 0.5]))
    tensor([3.])
    """
    if experts.shape[0] != routing_weights.shape[-1]:
        raise BankMismatchError(
            f"routing weights are for {routing_weights.shape[-1]} experts, the layer holds {experts.shape[0]}: "
            "route the network with the same bank"
        )
    if not experts.is_floating_point():
        return experts[0] if routing_weights.ndim == 1 else experts[:1].expand(len(routing_weights), *experts.shape[1:])
    return torch.tensordot(routing_weights.to(experts.dtype), experts, dims=1)


def route_network(
    network: nn.Module,
    experts: Sequence[Mapping[str, Tensor]],
    *,
    router: RouterKind = "series",
    normalization: bool = True,
) -> RoutedNetwork:
    """Replace the layers of a network by mixtures of the experts' layers.

    Args:
        network: any network that the experts' weights fit; it is copied.
        experts: weights of the bank's entries, in bank order.
        router: `series`, ours, or `sample`, the published one, which convolutions alone have.
        normalization: mix every layer that has parameters, statistics included; otherwise
            convolutions alone, and the rest is the first expert's (the global model's), as published.

    Raises:
        BankMismatchError: no experts, or a layer whose parameters the walk cannot reach.
        WeightsError: an expert of another network.
    """
    if not experts:
        raise BankMismatchError("expected at least one expert, given none: open a bank first")
    for index, expert in enumerate(experts):
        check_weights(expert, network.state_dict(), what=f"expert {index}")
    routed = copy.deepcopy(network)
    routed.load_state_dict(dict(experts[0]))
    parametrized = [
        (name, module)
        for name, module in network.named_modules()
        if (next(module.parameters(recurse=False), None) is not None)
        or (next(module.buffers(recurse=False), None) is not None)
    ]
    replacements = {}
    for name, module in parametrized:
        if next(module.children(), None) is not None:
            raise BankMismatchError(
                f"cannot route {type(network).__name__}: {name} ({type(module).__name__}) has parameters beside its "
                "sub-modules; use one of the networks that iopfl lists"
            )
        convolution = isinstance(module, _ConvNd)
        if not (convolution or normalization):
            continue
        stacked = {key: torch.stack([expert[f"{name}.{key}"] for expert in experts]) for key in module.state_dict()}
        by_sample = convolution and router == "sample"
        chosen = SampleRouter(module.in_channels, len(experts)) if by_sample else SeriesRouter(len(experts))
        kind = RoutedConv if convolution else RoutedBatchNorm if isinstance(module, _BatchNorm) else RoutedLayer
        replacements[name] = kind(copy.deepcopy(module), stacked, chosen)
    _replace(routed, replacements)
    return RoutedNetwork(routed.eval(), len(experts))


def _replace(network: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Put modules in the places of others, under every name that those have (DynUNet has two for each)."""
    by_identity = {id(network.get_submodule(name)): module for name, module in replacements.items()}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if id(module) in by_identity:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, by_identity[id(module)])
