"""Active learning: label next any image, or the one that the bank's experts disagree about most."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from iopfl.base.errors import IOPFLError, PACSAwayError
from iopfl.labels.checked import CheckedDatastore
from iopfl.lib.models import SiteModels

logger = logging.getLogger(__name__)

_CANDIDATES = 8
"""Images scored anew a call: the clinician is waiting. Scores are kept, so a small site is soon scored whole."""


_TRIES = 64


class RandomImage(Strategy):
    """An unlabeled image by chance, the likelier the longer ago it was offered.

    As MONAI Label's own, which looks for each image's file on the disk with each sample, and fails where all images
    were offered within the last second.
    """

    def __init__(self) -> None:
        super().__init__("Random")

    def __call__(self, request: Mapping[str, Any], datastore: CheckedDatastore) -> dict[str, Any] | None:
        """Choose an image.

        Returns:
            `id` and `weight` (seconds since it was offered), or None when every image has a label.
        """
        unlabeled = datastore.get_unlabeled_images()
        if not unlabeled:
            return None
        strategy, now = request["strategy"], int(time.time())
        # One that was never offered outweighs all that were; among many, it is found without a look at each.
        for image in random.choices(unlabeled, k=_TRIES):
            if strategy not in datastore.facts(image).get("strategy", {}):
                return {"id": image, "weight": now}
        offered = (datastore.facts(image).get("strategy", {}).get(strategy, {}) for image in unlabeled)
        weights = [max(1, now - about.get("ts", 0)) for about in offered]
        (chosen,) = random.choices(range(len(unlabeled)), weights=weights)
        return {"id": unlabeled[chosen], "weight": weights[chosen]}


class ExpertDisagreement(Strategy):
    """The unlabeled image with the least agreement of the experts with their mean."""

    def __init__(self, models: SiteModels, task_name: str) -> None:
        super().__init__(f"Experts disagree most ({task_name})")
        self._models = models
        self._task_name = task_name
        self._scores: dict[tuple[str, str], float] = {}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose an image.

        Returns:
            `id` and `agreement` (0 to 1), or None when every image has a label.
        """
        unlabeled = sorted(datastore.get_unlabeled_images())
        if not unlabeled:
            return None
        bank = self._models.predictor(self._task_name).bank.label
        unscored = [image for image in unlabeled if (bank, image) not in self._scores]
        random.shuffle(unscored)
        for image in unscored[:_CANDIDATES]:
            self._scores[bank, image] = self._score(datastore, image)
        scored = [image for image in unlabeled if (bank, image) in self._scores]
        chosen = min(scored, key=lambda image: self._scores[bank, image])
        logger.info("next sample of %d unlabeled, agreement %.3f", len(unlabeled), self._scores[bank, chosen])
        return {"id": chosen, "agreement": round(self._scores[bank, chosen], 4)}

    def _score(self, datastore: Datastore, image: str) -> float:
        """Agreement of the experts; an image that cannot be read comes last, not first.

        Raises:
            PACSAwayError: it cannot be had just now.
        """
        try:
            path = Path(datastore.get_image_uri(image))  # it may be downloaded: nobody's answer waits for that
            with self._models.lock(self._task_name):
                return self._models.predictor(self._task_name).agreement(path)
        except PACSAwayError:
            raise
        except IOPFLError as error:
            logger.warning("an image was passed over: %s", type(error).__name__)
            return 2.0
