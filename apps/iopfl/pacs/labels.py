"""Labels in the PACS: which segmentations (SEG, RTSTRUCT) are there, and whose label of which image each of them is.

A segmentation's header is fetched once and kept (`segmentations.json`); its pixels only when somebody
needs them. What a person drew or corrected is a label. What an algorithm alone made is none: training on it would
teach the network its own mistakes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydicom import Dataset

from iopfl import __version__
from iopfl.base.errors import PACSAwayError, PACSError, SeriesError
from iopfl.base.files import write_bytes
from iopfl.core.task import Task
from iopfl.dicomio.derived import equipment
from iopfl.dicomio.labels import find_label, kinds_of
from iopfl.dicomio.segmentation import find_time
from iopfl.dicomio.structures import LABEL as BESIDE
from iopfl.labels.log import FROM_PACS, GONE
from iopfl.labels.versions import VersionStore
from iopfl.pacs.access import PACS, FoundSeries
from iopfl.pacs.segmentations import UNNAMED
from iopfl.pacs.sources import find_image

logger = logging.getLogger(__name__)

MODALITIES = ("SEG", "RTSTRUCT")

_UNREADABLE = "cannot be read by iopfl "
UNREADABLE = f"{_UNREADABLE}{__version__}: "
"""Why a segmentation does not count that this version cannot read; the next one tries again."""

_AUTOMATIC = "AUTOMATIC"
_RETRY_SECONDS = 600.0


@dataclass(frozen=True)
class FoundLabel:
    """A segmentation in the PACS, by its header.

    Attributes:
        sop_instance_uid: the SOP Instance UID of the SEG.
        image: Series Instance UID of what it was drawn on; "" = that is not known.
        annotator: content creator; "" = it does not say.
        when: UTC, ISO 8601.
        is_automatic: whether nobody drew or corrected it.
    """

    sop_instance_uid: str
    image: str
    annotator: str
    when: str
    is_automatic: bool


@dataclass(frozen=True)
class FoundSegmentations:
    """A series of segmentations.

    Attributes:
        study: Study Instance UID.
        modality: of `MODALITIES`.
        instances: how many there were when the headers were read.
        labels: the labels of the instances.
    """

    study: str
    modality: str
    instances: int
    labels: tuple[FoundLabel, ...]


class PACSLabels:
    """The segmentations of one PACS, as versions of their images' labels."""

    def __init__(self, file: Path, pacs: PACS, versions: VersionStore, *, tasks: Sequence[Task]) -> None:
        """Args:
        file: where headers are kept; whatever is in it can be had from the PACS again.
        pacs: where segmentations are.
        versions: the versions of all images' labels.
        tasks: the tasks of this server.
        """
        self._tasks = tasks
        self._file = file
        self._pacs = pacs
        self._versions = versions
        self._known = _read(file)
        self._passed_over: dict[str, float] = {}
        self._looked_among: dict[str, frozenset[str]] = {}

    def update(self, found: Iterable[FoundSeries], images: Mapping[str, FoundSeries]) -> None:
        """Bring the versions in line with the segmentations that a search found.

        Args:
            found: all series of segmentations that there are.
            images: series that are listed, by their UID.
        """
        known = self._read_headers(list(found), images)
        listed = set(images)
        here = {label.sop_instance_uid for entry in known.values() for label in entry.labels}
        gone = {label.sop_instance_uid for entry in self._known.values() for label in entry.labels} - here
        labels: dict[str, list[FoundLabel]] = {image: [] for image in self._versions.images() if image in listed}
        for entry in known.values():
            for label in entry.labels:
                if label.image in listed and not label.is_automatic:
                    labels.setdefault(label.image, []).append(label)
        for image, of_image in labels.items():
            self._update_image(image, of_image, here, gone)
        is_new, self._known = known != self._known, known
        if is_new:  # last: what went is known by this file alone, until the versions say so
            write_bytes(self._file, json.dumps({uid: asdict(entry) for uid, entry in known.items()}).encode())

    def find(self, sop_instance_uid: str) -> FoundSeries:
        """The series that holds a segmentation.

        Raises:
            PACSError: there is none any more.
        """
        for uid, entry in self._known.items():
            if any(label.sop_instance_uid == sop_instance_uid for label in entry.labels):
                return FoundSeries(uid, entry.study, entry.modality, entry.instances)
        raise PACSError(f"the PACS has no segmentation {sop_instance_uid} any more: list the images again")

    def fetch(self, sop_instance_uid: str) -> Dataset:
        """A segmentation with its pixels."""
        for ds in self._pacs.retrieve(self.find(sop_instance_uid)):
            if str(ds.SOPInstanceUID) == sop_instance_uid:
                return ds
        raise PACSError(f"the PACS has no segmentation {sop_instance_uid} any more: list the images again")

    def _read_headers(
        self, found: list[FoundSeries], images: Mapping[str, FoundSeries]
    ) -> dict[str, FoundSegmentations]:
        """Headers of what was found; of what was found before, those that are kept."""
        entries = {}
        by_study: dict[str, set[str]] = {}
        for image in images.values():
            by_study.setdefault(image.study, set()).add(image.uid)
        for series in found:
            known = self._known.get(series.uid)
            if known is not None:
                entries[series.uid] = known
            among = frozenset(by_study.get(series.study, ()))
            is_known = known is not None and known.instances == series.instances
            if known is not None and not all(label.image for label in known.labels):  # its image may be here by now
                is_known = is_known and self._looked_among.get(series.uid) == among
            if is_known or time.monotonic() < self._passed_over.get(series.uid, 0.0):
                continue
            try:
                headers = self._pacs.read_headers(series)
                labels = tuple(filter(None, (self._to_label(ds, series, images) for ds in headers)))
                self._looked_among[series.uid] = among
            except PACSAwayError:
                raise
            except (PACSError, SeriesError) as error:  # one that cannot be read keeps nobody from the others
                logger.warning("segmentations of series %s are passed over for now: %s", series.uid, error)
                self._passed_over[series.uid] = time.monotonic() + _RETRY_SECONDS
                continue
            entries[series.uid] = FoundSegmentations(series.study, series.modality, series.instances, labels)
        return entries

    def _update_image(self, image: str, labels: list[FoundLabel], here: set[str], gone: set[str]) -> None:
        history = self._versions.history(image)
        by_uid = {version.sop_instance_uid: version for version in history.versions if version.sop_instance_uid}
        new = [label for label in labels if label.sop_instance_uid not in by_uid]
        removed = [v for uid, v in by_uid.items() if uid in gone and v.number not in history.withdrawn]
        back = [v for uid, v in by_uid.items() if uid in here and _may_count_again(history.withdrawn.get(v.number))]
        if not (new or removed or back):
            return
        with self._versions.hold(image):
            history = self._versions.history(image)  # it may have changed meanwhile
            known = {version.sop_instance_uid for version in history.versions}
            for label in sorted(new, key=lambda label: label.when):
                if label.sop_instance_uid not in known:
                    self._versions.add(
                        image,
                        None,
                        annotator=label.annotator,
                        kind=FROM_PACS,
                        when=datetime.fromisoformat(label.when),
                        sop_instance_uid=label.sop_instance_uid,
                        is_stored=True,
                    )
            self._versions.withdraw(image, [v for v in removed if v.number not in history.withdrawn], why=GONE)
            if back:
                self._versions.note(image, "restored", numbers=[version.number for version in back])

    def _to_label(self, ds: Dataset, series: FoundSeries, images: Mapping[str, FoundSeries]) -> FoundLabel | None:
        """What a segmentation's header says; None of what has no UID, and of contours that go with a SEG of ours."""
        uid = str(ds.get("SOPInstanceUID") or "")
        is_beside = ds.get("StructureSetLabel") == BESIDE and ds.get("Manufacturer") == equipment()["manufacturer"]
        if not uid or is_beside:
            return None
        annotator = str(ds.get("ContentCreatorName") or ds.get("OperatorsName") or "").strip("^ ")
        return FoundLabel(
            sop_instance_uid=uid,
            image=find_image(self._pacs, ds, series, images),
            annotator="" if annotator == UNNAMED else annotator,
            when=_find_when(ds).isoformat(),
            is_automatic=self._is_automatic(ds),
        )

    def _is_automatic(self, ds: Dataset) -> bool:
        """Whether an algorithm alone made what is a task's label; of a plan's other regions that may be so."""
        made = [*(ds.get("SegmentSequence") or []), *(ds.get("StructureSetROISequence") or [])]
        ours = [item for item in made if any(_is_label(item, task) for task in self._tasks)] or made
        kinds = {str(item.get("SegmentAlgorithmType") or item.get("ROIGenerationAlgorithm") or "") for item in ours}
        return _AUTOMATIC in kinds


def _is_label(item: Dataset, task: Task) -> bool:
    """Whether a segment or region is a label of a task."""
    name = str(item.get("SegmentLabel") or item.get("ROIName") or "")
    return find_label(name, kinds_of(item), task.labels, task.codes) is not None


def _may_count_again(why: str | None) -> bool:
    """Whether what was withdrawn for this reason counts again if it is in the PACS."""
    why = why or ""
    return why == GONE or (why.startswith(_UNREADABLE) and not why.startswith(UNREADABLE))


def _find_when(ds: Dataset) -> datetime:
    """When it was drawn, in UTC; now, where that is not said, no date, or still to come."""
    now = datetime.now(UTC)
    try:
        return min((find_time(ds) or now).astimezone(UTC), now)
    except (OverflowError, ValueError):  # of the year 1 or 9999
        return now


def _read(file: Path) -> dict[str, FoundSegmentations]:
    try:
        kept: Mapping[str, dict] = json.loads(file.read_bytes())
        return {
            uid: FoundSegmentations(**{**entry, "labels": tuple(FoundLabel(**label) for label in entry["labels"])})
            for uid, entry in kept.items()
        }
    except FileNotFoundError:
        return {}
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ):  # of another version, or damaged: it is fetched again
        return {}
