"""Scoring: how good the predictions are, with labels and without."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from iopfl.base.errors import IOPFLError
from iopfl.core.evaluation import score_case
from iopfl.core.sites import Case
from iopfl.labels.checked import FINAL, CheckedDatastore, is_labeled_for
from iopfl.lib.models import SiteModels

logger = logging.getLogger(__name__)


class SubmittedDice(ScoringMethod):
    """Foreground Dice of each submitted label against what this site's model predicts."""

    def __init__(self, models: SiteModels, task_name: str) -> None:
        super().__init__(f"Dice of submitted against predicted ({task_name})")
        self._models = models
        self._task_name = task_name

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score the images labeled for the task; each one's info gets `dice` by region, and what predicted."""
        scores: dict[str, float] = {}
        for image in datastore.get_labeled_images():
            if not is_labeled_for(datastore, image, self._task_name):
                continue
            try:
                label = Path(datastore.get_label_uri(image, FINAL))
                path = Path(datastore.get_image_uri(image))
                with self._models.lock(self._task_name):
                    predictor = self._models.predictor(self._task_name)
                    score = score_case(predictor.segment(path), Case(image, path, label), predictor.task)
            except IOPFLError as error:
                logger.warning("a label was passed over: %s", type(error).__name__)
                continue
            known = {region: round(dice, 4) for region, dice in score.dice.items() if not np.isnan(dice)}
            scores[image] = float(np.mean(list(known.values()))) if known else 0.0
            datastore.update_image_info(
                image, {"dice": {**known, "model": score.answer.model, "bank": score.answer.bank}}
            )
        return {"images": len(scores), "mean": round(float(np.mean(list(scores.values()))), 4) if scores else 0.0}


class ExpertAgreement(ScoringMethod):
    """Agreement of the bank's experts with this site's prediction: no label needed."""

    def __init__(self, models: SiteModels, task_name: str) -> None:
        super().__init__(f"Expert agreement, without labels ({task_name})")
        self._models = models
        self._task_name = task_name

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score all images; each image's info gets `quality`, 0 to 1."""
        scores = []
        images = datastore.list_images()
        if isinstance(datastore, CheckedDatastore):
            images = [image for image in images if self._task_name not in datastore.find_mismatches(image)]
        for image in images:
            try:
                path = Path(datastore.get_image_uri(image))
                with self._models.lock(self._task_name):
                    result = self._models.predictor(self._task_name).segment(path, with_quality=True)
            except IOPFLError as error:
                logger.warning("an image was passed over: %s", type(error).__name__)
                continue
            quality = float(result.answer.quality or 0.0)
            scores.append(quality)
            datastore.update_image_info(
                image, {"quality": {"agreement": round(quality, 4), "bank": result.answer.bank}}
            )
        return {"images": len(scores), "mean": round(float(np.mean(scores)), 4) if scores else 0.0}
