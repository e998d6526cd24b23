"""What the label server stores in the PACS of each label that is submitted, beside or instead of a SEG."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset

from iopfl.base.errors import IOPFLError
from iopfl.core.task import Task
from iopfl.core.transforms import read_image
from iopfl.dicomio.result_kinds import DISAGREEMENT, KINDS
from iopfl.dicomio.series import Series
from iopfl.labels.log import LabelVersion
from iopfl.lib.models import SiteModels
from iopfl.pacs.segmentations import build_label

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """The kinds of what is stored.

    Attributes:
        kinds: as `check_kinds` gives them.
        models: whose experts are asked where they disagree; None = nobody asks.
    """

    kinds: Sequence[str] = KINDS[:1]
    models: SiteModels | None = None

    @property
    def take_long(self) -> bool:
        """Whether they take passes of networks."""
        return DISAGREEMENT in self.kinds

    def build(self, label: Path, image: Path, series: Series, task: Task, version: LabelVersion) -> list[Dataset]:
        """Build what is stored of a submitted label, the SEG first.

        Args:
            label: its file.
            image: the file of what it was drawn on.
            series: the same as DICOM has it.
            task: whose values the label has.
            version: who drew it, and what it started from.
        """
        where = self.find_disagreement(task.name, image)
        return build_label(label, series, task, version, results=self.kinds, disagreement=where)

    def find_disagreement(self, task_name: str, image: Path) -> np.ndarray | None:
        """Percent of the experts, (X, Y, Z); None where nobody asks, or a bank has nobody to disagree."""
        if not self.take_long or self.models is None:
            return None
        try:
            with self.models.lock(task_name):
                predictor = self.models.predictor(task_name)
                return predictor.find_disagreement(read_image(image, predictor.task)).numpy()
        except IOPFLError as error:  # the label itself shall be stored
            logger.warning("a label is stored without where the experts disagree: %s", error)
            return None
