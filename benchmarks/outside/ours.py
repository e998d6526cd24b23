"""Ours: each series on its own, by the agreement of the experts (`core.adaptation`), and with each part left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from iopfl.core.adaptation import RoutingAdapter
from outside.scene import Answers, Method, Scene


def use_adapter(**changes: Any) -> Method:
    """The default, with these of its settings changed."""

    def method(scene: Scene) -> Answers:
        task = replace(scene.task, adaptation=replace(scene.task.adaptation, **changes))
        adapter = RoutingAdapter(scene.route(), task, device=scene.device)
        outputs: list[Tensor] = []
        quality: list[float] = []
        for volume in scene.volumes:
            series = adapter(volume)
            outputs.append(series.predict(volume, task, device=scene.device))
            quality.append(series.quality)
        return Answers(outputs, quality)

    return method


EVEN = 1e9
"""A temperature at which every expert counts the same."""
ABLATIONS = {
    "without routing": {"temperature": EVEN},
    "without magnification": {"zooms": (1.0,)},
    "without choosing statistics": {"shares": (1.0,)},
    "without views": {"max_views": 2},
}
