"""TENT (Wang et al., ICLR 2021): entropy minimization on the affine parameters of normalization, online.

The global model, normalized by the images at hand; one step of Adam a batch; the images are answered by the forward
pass that the step is made of, as in the authors' code. Nothing is reset between batches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from outside.scene import Answers, Scene

LEARNING_RATE = 1e-3


def adapt_and_predict(scene: Scene) -> Answers:
    """TENT over a scene."""
    network = configure(scene.build(scene.experts[0]))
    optimizer = torch.optim.Adam(collect_parameters(network), lr=LEARNING_RATE)
    outputs = []
    for batch in scene.batches():
        logits = network(batch)
        optimizer.zero_grad()
        softmax_entropy(logits).mean().backward()
        optimizer.step()
        outputs.append(logits.detach().softmax(1))
    return scene.split(outputs)


def configure(network: nn.Module) -> nn.Module:
    """Normalize by the batch; only affine parameters of normalization get a gradient."""
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(True)
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return network


def collect_parameters(network: nn.Module) -> list[nn.Parameter]:
    """What `configure` left trainable."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def softmax_entropy(logits: Tensor) -> Tensor:
    """Entropy of the class distribution at each pixel, (B, K, *S) to (B, *S)."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
