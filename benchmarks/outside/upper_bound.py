"""What routing could reach if it knew the labels: an upper bound, no method.

One routing vector a layer for the whole site, trained on the site's own labels and scored on the same images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from iopfl.core.losses import build_segmentation_loss
from iopfl.core.transforms import to_instances
from iopfl.core.views import views_of
from outside.scene import Answers, Scene, predict_batches

EPOCHS = 3
LEARNING_RATE = 0.05


def train_and_predict(scene: Scene, labels: Sequence[Tensor], *, share: float) -> Answers:
    """Train the routers on labels, shares of classes (K, X, Y, Z) of each volume."""
    routed = scene.route()
    routed.set_share(share)
    logits = [value for name, value in routed.named_parameters() if name.endswith("router.logits")]
    optimizer = torch.optim.Adam(logits, lr=LEARNING_RATE)
    loss_function = build_segmentation_loss()
    pairs = [
        (instance, label)
        for volume, shares in zip(scene.volumes, labels, strict=True)
        for instance, label in zip(to_instances(volume, scene.task), _targets(shares, scene), strict=True)
    ]
    generator = torch.Generator().manual_seed(scene.seed)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(pairs), generator=generator).tolist():
            instance, target = (tensor[None].to(scene.device) for tensor in pairs[index])
            loss = loss_function(routed(instance), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return predict_batches(routed, scene, views_of(scene.task))


def _targets(shares: Tensor, scene: Scene) -> Tensor:
    """(K, X, Y, Z) as the targets of its instances, (N, K, *S)."""
    return shares[None] if scene.task.spatial_dims == 3 else shares.permute(3, 0, 1, 2)
