"""A PACS as the datastore: its series are the images, and labels are DICOM SEG, there for everybody who can read them.

All else (training, rounds, strategies, pages) sees a local datastore with NIfTI files that are named by Series
Instance UID. Images come when somebody needs them (`cache`). A submitted label is kept as a version first,
then stored; while the PACS does not take it, it is offered again and again, and nothing is lost.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from pydicom import Dataset

from iopfl.base.errors import IOPFLError, PACSAwayError, PACSError, SeriesError
from iopfl.core.sites import IMAGE_SUFFIXES
from iopfl.dicomio.files import is_dicom
from iopfl.dicomio.series import Series
from iopfl.labels.checked import FINAL, telling_clients
from iopfl.labels.datastore import to_info
from iopfl.labels.folder_files import new_item
from iopfl.labels.index_file import IndexFile, Item
from iopfl.labels.log import LabelVersion
from iopfl.labels.submissions import Submission
from iopfl.pacs.access import IMAGE_SUFFIX, OF_STUDY, PACS, FoundSeries, PACSAccess, describe_series
from iopfl.pacs.cache import SeriesCache
from iopfl.pacs.labels import MODALITIES as SEGMENTATIONS
from iopfl.pacs.labels import UNREADABLE, PACSLabels
from iopfl.pacs.outbox import LabelOutbox
from iopfl.pacs.refreshing import Refreshing
from iopfl.pacs.results import Results
from iopfl.pacs.segmentations import count_beside, read_segmentation_file, write_label
from iopfl.pacs.selecting import SelectingPACS

logger = logging.getLogger(__name__)

_MAX_SERIES = 20_000
_FRESH_SECONDS = 2.0
_PATIENCE_SECONDS = 20.0
"""How long whoever needs the list, or an image that is not in it, waits for a newer one."""
_GLANCE_SECONDS = 0.5
"""The same where the list is not `_OLD_SECONDS` old: a large PACS takes longer, and what is known must do."""
_OLD_SECONDS = 60.0
_START_SECONDS = 5.0
"""How long a server that starts waits for the PACS."""

_SEG_ALONE = Results()


class PACSDatastore(SelectingPACS):
    """The series of a PACS with the modalities of this server's tasks.

    Attributes:
        outbox: labels that the PACS has not taken yet.
    """

    def __init__(
        self,
        access: PACSAccess,
        folder: Path,
        *,
        cache_bytes: int,
        filters: dict[str, Any],
        results: Results = _SEG_ALONE,
        **options: Any,
    ) -> None:
        """Args:
        access: the PACS.
        folder: the cache's folder.
        cache_bytes: what images may take in it.
        filters: more that an image must match, DICOM keyword -> value; a modality replaces the tasks'. Of its labels
            nothing is asked but what is of their study.
        results: what is stored of a label.
        options: of `VersionedDatastore`.
        """
        self._results = results
        extensions = [f"*{suffix}" for suffix in IMAGE_SUFFIXES]
        super().__init__(folder, extensions=extensions, follows_folder=False, **options)
        self._pacs = PACS(access)
        self._cache = SeriesCache(folder, self._pacs, limit=cache_bytes)
        self.outbox = LabelOutbox(folder / "outbox.json", self._pacs, self.versions, self._build)
        self._labels = PACSLabels(folder / "segmentations.json", self._pacs, self.versions, tasks=self._tasks)
        self._asked = filters.get("Modality")
        self._modalities = [self._asked] if self._asked else sorted({task.modality for task in self._tasks})
        self._set_filters(filters)
        self._filters = {keyword: value for keyword, value in filters.items() if keyword != "Modality"}
        self._left_out: dict[str, str] = {}
        self._list = Refreshing(self._look, seconds=_FRESH_SECONDS)

    def start(self) -> None:
        """In the server, not in its children: have a first list, and store what the PACS has not taken yet."""
        super().start()
        self._cache.remove_leftovers()
        self._list.refresh(wait=_START_SECONDS)
        threading.Thread(target=self.outbox.run, name="outbox", daemon=True).start()

    def name(self) -> str:
        """The PACS's address."""
        return self._pacs.access.shown_url

    def list_images(self) -> list[str]:
        """Series Instance UIDs, as the PACS has them now, or, while it is away, had them last.

        Raises:
            PACSError: it never answered.
        """
        self._renew()
        return super().list_images()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Those with a final label, as the PACS has them now."""
        self._renew()
        return super().get_labeled_images(label_tag, labels)

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Those without, as the PACS has them now."""
        self._renew()
        return super().get_unlabeled_images(label_tag, labels)

    def status(self) -> dict[str, Any]:
        """Counts, and how it stands with the PACS; waits for nobody."""
        self._list.refresh(wait=0)
        about = {
            "problem": self._list.problem,
            "cannot": self._pacs.cannot,
            "left_out": len(self._left_out),
            "waiting": self.outbox.count,
        }
        return {**super().status(), "pacs": about}

    def left_out(self) -> dict[str, str]:
        """Series that are no images to segment, or whose labels cannot be read -> why."""
        return dict(self._left_out)

    def get_image_uri(self, image_id: str) -> str:
        """Where a series lies as NIfTI, once it was downloaded; "" for one that the PACS has not.

        Raises:
            PACSError: it cannot be had just now.
            SeriesError: it is no image, or cannot be read.
        """
        series = self._find(image_id)
        return str(self._cache.image(series)) if series else ""

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of a series; for one that is not listed, the list is waited for.

        Raises:
            SeriesError: it is no image.
        """
        self._find(image_id)
        return super().get_image_info(image_id)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Where a label lies; a final one is fetched if it is in the PACS alone."""
        if label_tag == FINAL and label_id in self._index.entries and not self._is_settled(label_id):
            with self.versions.hold(label_id):
                self._materialize(label_id)
        return super().get_label_uri(label_id, label_tag)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """All labeled images with their labels, fetched where they are not here.

        Raises:
            PACSError: there are labels, and none can be had.
        """
        pairs, problem = [], None
        for image in sorted(self.get_labeled_images()):
            try:
                pair = {"image": self.get_image_uri(image), "label": self.get_label_uri(image, FINAL)}
            except (IOPFLError, MONAILabelException) as error:
                problem = error if isinstance(error, PACSError) else problem
                logger.warning("the label of %s is passed over: %s", image, getattr(error, "msg", None) or error)
                continue
            if all(pair.values()):
                pairs.append(pair)
        if problem is not None and not pairs:
            raise problem
        self._cache.hold(Path(pair["image"]).name.removesuffix(IMAGE_SUFFIX) for pair in pairs)
        return pairs

    def find_subject(self, image_id: str) -> str:
        """Keyed hash of the patient, so that images of one do not both train and test."""
        return self._cache.facts(image_id).subject

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refused: images are the PACS's."""
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, "images come from the PACS: send this one there")

    def remove_image(self, image_id: str) -> None:
        """Refused: images are the PACS's."""
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, "images are in the PACS: remove this one there")

    def submit(self, image_id: str, label: Path, info: dict[str, Any]) -> LabelVersion:
        """Keep a label, and store it in the PACS; if that fails it is stored later.

        Returns:
            Its version.
        """
        version = super().submit(image_id, label, info)
        self.outbox.hand_in(image_id, version.number, at_once=not self._results.take_long)
        return self.versions.history(image_id).find(version.number)

    def take(
        self, image_id: str, label: Path, info: Mapping[str, Any], origin: Mapping[str, Any], folder: Path
    ) -> Submission:
        """As any datastore does; a DICOM SEG or structure set that was drawn on the image is a label too."""
        if not is_dicom(label):
            taken, image = super().take(image_id, label, info, origin, folder), Path(self.get_image_uri(image_id))
            return count_beside(taken, image, lambda: self._read(image_id))
        with telling_clients():
            series, file = self._read(image_id), folder / f"label{IMAGE_SUFFIX}"
            ds = read_segmentation_file(label)
            return Submission(file, tuple(write_label(ds, series, self.tasks_for(image_id), file)))

    def repair(self) -> None:
        """Nothing: a search brings final labels in line."""

    def _look(self) -> None:
        """Search for series and segmentations; what was found before and is there no more, is dropped."""
        found = self._search(self._modalities, self._filters)
        of_study = {keyword: value for keyword, value in self._filters.items() if keyword in OF_STUDY}
        segmentations = self._search(SEGMENTATIONS, of_study).values()
        self._cache.check_new(found.values())
        reasons = ((uid, self._cache.refusal(series) or self.versions.problem(uid)) for uid, series in found.items())
        refused = {uid: reason for uid, reason in reasons if reason}
        listed = {uid: series for uid, series in found.items() if uid not in refused}
        self._labels.update(segmentations, listed)
        self._left_out = refused
        self._enter(listed)
        self._select(listed)
        self._cache.keep(found)

    def _search(self, modalities: Iterable[str], filters: Mapping[str, Any]) -> dict[str, FoundSeries]:
        """Series of these modalities, by their UID: some PACS answer with all that they have, whatever is asked."""
        found: dict[str, FoundSeries] = {}
        for modality in modalities:
            series = self._pacs.find_series({"Modality": modality, **filters}, limit=_MAX_SERIES)
            # A series that does not say its modality is taken at the search's word.
            asked = [entry for entry in series if not entry.modality or fnmatchcase(entry.modality, modality)]
            found |= {entry.uid: entry for entry in asked}
        if len(found) >= _MAX_SERIES:
            logger.warning("more than %d series: narrow MONAI_LABEL_DICOMWEB_SEARCH_FILTER", _MAX_SERIES)
        return found

    def _enter(self, listed: dict[str, FoundSeries]) -> None:
        """Make MONAI Label's index that of the PACS; labels with other tags, and what is known of images, stay."""
        with self._using_index() as index:
            for uid in set(index.entries) - set(listed):
                index.set_image(uid, None)
            for uid, series in listed.items():
                entry = index.entries.get(uid)
                known = entry.image.info if entry else {}
                if known != (new := {**known, **describe_series(series)}):
                    index.set_image(uid, Item(IMAGE_SUFFIX, new))
                self._mark(uid, index)

    def _mark(self, image: str, index: IndexFile) -> None:
        """Say in the index whether an image has a final label, wherever that is."""
        history = self.versions.history(image)
        selected = self.rule.select(history)
        label = index.entries[image].labels.get(FINAL)
        if not selected:
            if label is not None:
                index.set_label(image, FINAL, None)
        elif label is None or not self.rule.is_met(history, label.info.get("version")):
            newest = selected[0]
            index.set_label(image, FINAL, new_item(image, IMAGE_SUFFIX, {**newest.info, **to_info(newest)}))

    def _find(self, image: str) -> FoundSeries | None:
        """A listed series.

        Raises:
            SeriesError: it is there, but no image to segment.
        """
        if image not in self._index.entries:
            self._renew(patiently=True)
        if image in self._left_out:
            raise SeriesError(f"series {image} is left out: {self._left_out[image]}")
        entry = self._index.entries.get(image)
        if entry is None:
            return None
        info = entry.image.info
        return FoundSeries(image, info["StudyInstanceUID"], info["Modality"], info["instances"])

    def _renew(self, *, patiently: bool = False) -> None:
        worth_it = patiently or (self._list.age > _OLD_SECONDS and not self._list.problem)
        self._list.refresh(wait=_PATIENCE_SECONDS if worth_it else _GLANCE_SECONDS)
        if self._list.problem and not self._index.entries:
            raise PACSAwayError(self._list.problem)

    def _take_in(self, image: str) -> None:
        """Nothing: the folder of final labels is a copy of what is in the PACS, not a place to put labels."""

    def _publish(self, image: str) -> None:
        """Make the version that the rule selects the final label, or, if it is in the PACS alone, only say so."""
        super()._publish(image)
        selected = self.rule.select(self.versions.history(image))
        if not selected or not all(version.file for version in selected):
            with self._using_index() as index:
                self._mark(image, index)

    def _materialize(self, image: str) -> None:
        """Fetch what the final label is made of, and put that in place; what cannot be read counts no more."""
        while True:
            selected = self.rule.select(self.versions.history(image))
            missing = [version for version in selected if not version.file]
            if not missing:
                break
            for version in missing:
                self._fetch(image, version)
        if image in self._index.entries:
            self._publish(image)

    def _read(self, image: str) -> Series:
        if (series := self._find(image)) is None:
            raise PACSError(f"the PACS has no series {image} any more: list the images again")
        return self._cache.read(series)

    def _fetch(self, image: str, version: LabelVersion) -> None:
        source = self._read(image)
        ds = self._labels.fetch(version.sop_instance_uid)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"label{IMAGE_SUFFIX}")
            try:
                tasks = write_label(ds, source, self.tasks_for(image), file)
            except SeriesError as error:
                logger.warning("segmentation %s is left out: %s", version.sop_instance_uid, error)
                self.versions.withdraw(image, [version], why=f"{UNREADABLE}{error}")
            else:
                self.versions.attach(image, version.number, file, tasks=tasks)

    def _build(self, image: str, version: LabelVersion) -> list[Dataset]:
        """What is stored of a label that was submitted."""
        series = self._find(image)
        if series is None:
            raise PACSError(f"the PACS has no series {image} any more: its label stays here")
        task = next((task for task in self._tasks if task.name in version.tasks), None)
        if task is None:
            raise PACSError(
                f"version {version.number} is of {', '.join(version.tasks)}, which is not served here: serve it"
            )
        file, source = self.versions.file(image, version), self._cache.read(series)
        return self._results.build(file, self._cache.image(series), source, task, version)
