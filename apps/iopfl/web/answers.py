"""What the page's routes compute, at most once, and for how long it is kept."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iopfl.base.errors import SeriesError
from iopfl.base.running import running
from iopfl.base.stamps import Stamp, find_stamp
from iopfl.core.answers import Segmentation
from iopfl.core.predictor import Predictor
from iopfl.core.transforms import read_label
from iopfl.core.work import Work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iopfl.lib.models import SiteModels

MODELS: dict[str, str | None] = {"routed": "routed", "site": None, "global": "global", "average": "average"}
"""What the page calls a model -> the predictor's kind; None = what the site answers with."""

_MOST = 1000
_TOO_LARGE = (
    "an answer of this image takes {:.2g} GB, this page keeps at most {:g}: look at it in OHIF or 3D Slicer, or "
    "have the administrator raise --conf page_cache_gb"
)
_WAITING = 6
"""Requests that may compute or wait for it; the server answers others at once that it is busy."""


class BusyError(Exception):
    """More requests wait for an answer than the server takes."""


@dataclass(frozen=True)
class _Kept:
    """A value, and what it was made from: if either is another now, it is made anew."""

    value: Any
    size: int
    predictor: weakref.ref[Predictor]
    stamp: Stamp | None

    def get(self) -> Any:
        """The value.

        Raises:
            SeriesError: it is too large to be kept.
        """
        if isinstance(self.value, SeriesError):
            raise SeriesError(str(self.value))  # anew: one that is raised again and again holds all its tracebacks
        return self.value


class Answers:
    """Segmentations and labels of the images that were looked at last, bounded in bytes (`page_cache_gb`).

    One that is larger than all that may be kept is refused, as each of its slices would be computed anew.

    A new bank or a new local model is a new predictor: nothing of the one before is shown.
    """

    def __init__(self, *, waiting: int = _WAITING) -> None:
        self._kept: OrderedDict[tuple[str, ...], _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(waiting)

    def segment(self, models: SiteModels, task: str, image: Path, model: str, *, name: str = "") -> Segmentation:
        """Segment an image with one of `MODELS`, or take what was made of it before.

        Args:
            models: the models of the site.
            task: its name.
            image: the file.
            model: one of `MODELS`.
            name: the name of the image, for the list of what is being computed.

        Raises:
            CancelledError: it was stopped, or who asked has left.
            IOPFLError: the image cannot be read, or the site has no such model.
            BusyError: too many requests wait already.
        """

        def compute(predictor: Predictor) -> tuple[Segmentation, int]:
            found = predictor.segment(image, MODELS[model], progress=mine.progress, cancelled=mine.cancelled)
            return found, found.image.nbytes + found.mask.nbytes

        with running.follow(task, name) as mine:
            return self._get(models, ("answer", task, str(image), model), image, compute)

    def disagreement(
        self, models: SiteModels, task: str, image: Path, segmentation: Segmentation, *, name: str = ""
    ) -> Segmentation:
        """The same segmentation, with where the experts disagree on its image: the same whichever model answered.

        Raises:
            CancelledError: it was stopped, or who asked has left.
            ConfigError: the bank has one model.
            BusyError: too many requests wait already.
        """

        def compute(predictor: Predictor) -> tuple[Tensor, int]:
            work = Work(mine.progress, mine.cancelled)
            found = predictor.find_disagreement(segmentation.image, work=work)
            return found, found.nbytes

        with running.follow(task, name) as mine:
            found = self._get(models, ("disagreement", task, str(image)), image, compute)
        return replace(segmentation, disagreement=found)

    def reference(self, models: SiteModels, task: str, label: Path, like: Tensor) -> Tensor:
        """A clinician's label as the task's label values, (X, Y, Z) uint8.

        Raises:
            SeriesError: the label does not fit the image or the task.
            BusyError: too many requests wait already.
        """

        def compute(predictor: Predictor) -> tuple[Tensor, int]:
            classes = read_label(label, predictor.task, like=like).as_tensor()[0].long()
            values = torch.tensor(predictor.task.label_values, dtype=torch.uint8)[classes]
            return values, values.nbytes

        return self._get(models, ("label", task, str(label)), label, compute)

    def _get(
        self,
        models: SiteModels,
        key: tuple[str, ...],
        source: Path,
        compute: Callable[[Predictor], tuple[Any, int]],
    ) -> Any:
        task, stamp = key[1], find_stamp(source)
        # Who looks at slices of an answer that is there does not wait for another's that is being computed.
        if kept := self._find(key, models.predictor(task), stamp):
            return kept.get()
        with self._slot(), models.lock(task):
            predictor = models.predictor(task)
            if kept := self._find(key, predictor, stamp):
                return kept.get()
            value, size = compute(predictor)
            limit = models.settings.page_cache_gb
            if size > limit * 1e9:
                value, size = SeriesError(_TOO_LARGE.format(size / 1e9, limit)), 0
            with self._lock:
                kept = self._kept[key] = _Kept(value, size, weakref.ref(predictor), stamp)
                self._kept.move_to_end(key)
                while len(self._kept) > _MOST or sum(entry.size for entry in self._kept.values()) > limit * 1e9:
                    self._kept.popitem(last=False)
            return kept.get()

    def _find(self, key: tuple[str, ...], predictor: Predictor, stamp: Stamp | None) -> _Kept | None:
        """What this predictor made of the same file before."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept.predictor() is not predictor or kept.stamp != stamp:
                return None
            self._kept.move_to_end(key)
            return kept

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(blocking=False):
            raise BusyError("the server is computing other images: try again in a moment")
        try:
            yield
        finally:
            self._slots.release()
