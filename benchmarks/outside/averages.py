"""Without adaptation: the global model, single experts, their average and ensemble, and normalization by the image.

Uniform average of weights: Wortsman et al. ("Model soups"), ICML 2022. Statistics of the images at hand: Nado et al.,
"Evaluating prediction-time batch normalization", 2020; Schneider et al., NeurIPS 2020.
"""

from __future__ import annotations

import torch

from iopfl.core.inference import predict_instances
from iopfl.core.views import View, views_of
from outside.scene import Answers, Method, Scene, predict_batches


def use_expert(position: int) -> Method:
    """One expert alone; 0 is the global model."""

    def method(scene: Scene) -> Answers:
        return predict_batches(scene.build(scene.experts[position]), scene)

    return method


def use_average(*, share: float, views: bool, only_global: bool = False) -> Method:
    """The uniform average of the bank, or the global model.

    Args:
        share: the share of the statistics of the images at hand in normalization.
        views: mean over flips and turns.
        only_global: leave the personalized models out.
    """

    def method(scene: Scene) -> Answers:
        routed = scene.route()
        routed.set_share(share)
        seen = views_of(scene.task) if views else [View()]
        if not only_global:
            return predict_batches(routed, scene, seen)
        with routed.only(0):
            return predict_batches(routed, scene, seen)

    return method


@torch.inference_mode()
def use_ensemble(scene: Scene) -> Answers:
    """The mean of all experts' outputs."""
    networks = [scene.build(weights) for weights in scene.experts]
    outputs = []
    for batch in scene.batches():
        outputs.append(torch.stack([predict_instances(network, batch, scene.task) for network in networks]).mean(0))
    return scene.split(outputs)
