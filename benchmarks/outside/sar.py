"""SAR (Niu et al., ICLR 2023): entropy of the reliable pixels alone, minimized to a flat minimum, with recovery.

Pixels whose entropy is below 0.4 ln K count; the step is sharpness-aware (Foret et al., ICLR 2021; rho 0.05, SGD with
momentum 0.9, learning rate 2.5e-4); when the moving average of the loss falls below the authors' 0.2, here as a share
of the largest entropy, the model is reset. Affine parameters of normalization of the global model, online, as in TENT.
"""

from __future__ import annotations

import copy
import math

import torch

from outside import tent
from outside.scene import Answers, Scene

LEARNING_RATE = 2.5e-4
RHO = 0.05
MARGIN = 0.4
RESET_SHARE = 0.2 / math.log(1000)
"""Of ln K; the authors had 1000 classes."""


def adapt_and_predict(scene: Scene) -> Answers:
    """SAR over a scene."""
    network = tent.configure(scene.build(scene.experts[0]))
    start = copy.deepcopy(network.state_dict())
    parameters = tent.collect_parameters(network)
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9)
    most = math.log(scene.task.num_classes)
    moving: float | None = None
    outputs = []
    for batch in scene.batches():
        logits = network(batch)
        outputs.append(logits.detach().softmax(1))
        entropy = tent.softmax_entropy(logits)
        reliable = entropy < MARGIN * most
        if not reliable.any():
            continue
        gradients = torch.autograd.grad(entropy[reliable].mean(), parameters)
        scale = RHO / (torch.stack([gradient.norm() for gradient in gradients]).norm() + 1e-12)
        shifts = [gradient * scale for gradient in gradients]
        with torch.no_grad():
            for parameter, shift in zip(parameters, shifts, strict=True):
                parameter.add_(shift)
        second = tent.softmax_entropy(network(batch))[reliable]
        second = second[second < MARGIN * most]
        loss = second.mean()
        flat = torch.autograd.grad(loss, parameters) if len(second) else None
        with torch.no_grad():
            for parameter, shift in zip(parameters, shifts, strict=True):
                parameter.sub_(shift)
        if flat is None:
            continue
        for parameter, gradient in zip(parameters, flat, strict=True):
            parameter.grad = gradient
        optimizer.step()
        moving = loss.item() if moving is None else 0.9 * moving + 0.1 * loss.item()
        if moving < RESET_SHARE * most:
            network.load_state_dict(start)
            moving = None
    return scene.split(outputs)
