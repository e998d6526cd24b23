"""Infer tasks: `<task>`, answered by this site's model, and `<task>_routed`, by the bank's mixture."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from iopfl.base.errors import CancelledError, ConfigError, IOPFLError, SeriesError
from iopfl.base.running import running
from iopfl.core.handing_out import to_straight
from iopfl.core.label_names import names_by_place
from iopfl.core.task import Task
from iopfl.core.writers import mask_suffix, write_mask
from iopfl.labels.client_errors import as_client_error
from iopfl.lib.models import SiteModels

logger = logging.getLogger(__name__)

BEST = "best for this site"
_KINDS = ("personalized", "global", "average")


class SiteSegmentation(InferTask):
    """Segments with the model that this site's own validation labels favor, or one that is asked for."""

    def __init__(self, models: SiteModels, task: Task) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=dict(task.labels),
            dimension=3 if task.spatial_dims == 3 or task.modality in ("MR", "CT") else 2,
            description=self.describe(task),
            config=self.options(models),
        )
        self._models = models
        self._task = task

    def describe(self, task: Task) -> str:
        """What clients show."""
        return f"{task.description or task.name}: this site's model"

    def options(self, models: SiteModels) -> dict[str, Any]:
        """What clients offer: a list becomes a combo box, a boolean a check box."""
        kinds = [BEST, *(kind for kind in _KINDS if kind != "personalized" or models.site)]
        return {"answer_from": kinds, "quality": False}

    def kind(self, request: Mapping[str, Any]) -> str | None:
        """The kind of model that a request asks for; None = the site's choice.

        Raises:
            ConfigError: there is no such kind.
        """
        asked = _first(request.get("answer_from"))  # Slicer may send the whole list
        if asked in (None, "", BEST):
            return None
        if asked not in _KINDS:
            raise ConfigError(f"no model {asked!r} to answer from: expected {', '.join((BEST, *_KINDS))}")
        return asked

    def is_valid(self) -> bool:
        """Always: a bank was opened at start."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment `request["image"]`, a path that MONAI Label resolved.

        Returns:
            A temporary file with the mask on the image's grid, and `params` (`Answer.to_params`).

        Raises:
            MONAILabelException: the image cannot be segmented; the message says why.
        """
        image = Path(request["image"])
        name = self._task.name
        try:
            _check_one(image)
            suffix = mask_suffix(image, str(request.get("result_extension") or ""))  # before anything is computed
            with running.follow(name, image.name) as mine, self._models.lock(name):
                predictor = self._models.predictor(name)
                result = predictor.segment(
                    image,
                    self.kind(request),
                    with_quality=_is_on(request.get("quality")),
                    progress=mine.progress,
                    cancelled=mine.cancelled,
                )
            # MONAI Label deletes the file once it is sent.
            with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as file:
                target = Path(file.name)
            try:
                write_mask(target, to_straight(result), self._task)
            except BaseException:
                target.unlink(missing_ok=True)
                raise
        except CancelledError:
            raise  # the server's 409
        except IOPFLError as error:
            raise as_client_error(error) from error
        answer = result.answer
        logger.info("%s answered with %s of bank %s in %.2f s", name, answer.model, answer.bank, answer.seconds)
        return str(target), {"label_names": names_by_place(self._task), **answer.to_params()}


class RoutedSegmentation(SiteSegmentation):
    """Segments with the bank's experts, mixed and adapted for the one series: for sites outside the federation."""

    def describe(self, task: Task) -> str:
        """What clients show."""
        return f"{task.description or task.name}: all sites' models, adapted to the image"

    def options(self, models: SiteModels) -> dict[str, Any]:
        """None: the quality score is part of every answer."""
        return {}

    def kind(self, request: Mapping[str, Any]) -> str | None:
        """Always routed."""
        return "routed"


def _check_one(image: Path) -> None:
    """Raises:
    SeriesError: it is a session's folder.
    """
    if image.is_dir():
        count = sum(1 for _ in image.iterdir())
        raise SeriesError(f"expected a session of one image, this one has {count} files: make a session of each")


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value


def _is_on(value: Any) -> bool:
    return str(_first(value)).lower() in ("true", "1")
