"""What segments a site outside the federation: one module a method or family, with its source."""

from __future__ import annotations

from dataclasses import replace

from outside import published, sar, tent
from outside.averages import use_average, use_ensemble, use_expert
from outside.ours import ABLATIONS, use_adapter
from outside.scene import Answers, Method, Scene

OURS, FAST = "ours", "ours, fast"
PUBLISHED = "published routing, last epoch"
GLOBAL = "global model"
BEST_SIMPLE = "average + image statistics + views"

BATCH = 8


def in_batches(method: Method) -> Method:
    """A method that is given several pictures at a time."""

    def batched(scene: Scene) -> Answers:
        return method(replace(scene, batch_size=BATCH))

    return batched


METHODS: dict[str, Method] = {
    GLOBAL: use_expert(0),
    "uniform average": use_average(share=0.0, views=False),
    "ensemble of outputs": use_ensemble,
    "global + image statistics": use_average(share=1.0, views=False, only_global=True),
    "global + image statistics + views": use_average(share=1.0, views=True, only_global=True),
    "average + image statistics": use_average(share=1.0, views=False),
    "average + views": use_average(share=0.0, views=True),
    BEST_SIMPLE: use_average(share=1.0, views=True),
    "TENT": tent.adapt_and_predict,
    "SAR": sar.adapt_and_predict,
    f"average + image statistics, {BATCH} at a time": in_batches(use_average(share=1.0, views=False)),
    f"TENT, {BATCH} at a time": in_batches(tent.adapt_and_predict),
    f"SAR, {BATCH} at a time": in_batches(sar.adapt_and_predict),
    PUBLISHED: published.adapt_and_predict,
    FAST: use_adapter(fast=True),
    OURS: use_adapter(),
}
PARTS: dict[str, Method] = {f"{OURS}, {name}": use_adapter(**changes) for name, changes in ABLATIONS.items()}
"""The ablation: the default with one part left out."""
