"""Published routing (IOP-FL, III-C), last epoch: adapted to all images of the site, then answering them."""

from __future__ import annotations

from tqdm import tqdm

from iopfl.core.networks import build_network
from iopfl.core.published import adapt_published, predict_published
from outside.scene import Answers, Scene


def adapt_and_predict(scene: Scene) -> Answers:
    """The published recipe over a scene; its batches are of four, as published."""
    task, device = scene.task, scene.device
    with tqdm(desc="published", unit="epoch", disable=None, leave=False) as bar:
        routed = adapt_published(
            build_network(task),
            scene.experts,
            scene.volumes,
            task,
            seed=scene.seed,
            device=device,
            progress=lambda *_: bar.update(),
        )
    return Answers(
        [predict_published(routed, volume, task, seed=scene.seed, device=device) for volume in scene.volumes]
    )
