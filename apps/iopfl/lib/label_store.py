"""A datastore that keeps every label that it took.

`labels/final` holds what the rule makes the final label of an image (`final_labels`): a copy of one of its versions
in the state folder (`versions`). A file that somebody puts there by hand becomes a version of its own, one
that somebody takes away counts as deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from monailabel.datastore.local import DataModel
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelException

from iopfl.base.errors import IOPFLError, LabelVersionError, StorageError
from iopfl.core.predictor import Answer, Segmentation
from iopfl.core.sites import find_stem, find_suffix
from iopfl.core.task import Task
from iopfl.core.transforms import read_image, read_label
from iopfl.core.writers import mask_name, write_mask
from iopfl.lib.annotators import RecentAnswers, find_annotator
from iopfl.lib.datastore import FINAL, CheckedDatastore
from iopfl.lib.final_labels import FinalRule, common_tasks, find_consensus
from iopfl.lib.versions import CONSENSUS, DELETED, FOLDER, UNDONE, History, LabelVersion, VersionStore

logger = logging.getLogger(__name__)


class VersionedDatastore(CheckedDatastore):
    """A site folder with the history of its labels.

    Attributes:
        versions: all labels that ever were.
        rule: which of them are final.
        answers: what clients were answered, from which their labels may have started.
    """

    def __init__(self, *arguments: Any, labels: Path, rule: FinalRule, **options: Any) -> None:
        """Args:
        arguments: of `CheckedDatastore`.
        labels: folder of the versions.
        rule: which version is final.
        options: of `CheckedDatastore`.
        """
        super().__init__(*arguments, **options)
        self.versions = VersionStore(labels)
        self.rule = rule
        self.answers = RecentAnswers()

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label as a version of its annotator, and let the rule say which one is final.

        Raises:
            ImageNotFoundException: no such image.
            MONAILabelException: the label does not fit; nothing was kept.
        """
        if label_tag != FINAL:
            return super().save_label(image_id, label_filename, label_tag, label_info)
        self.submit(image_id, Path(label_filename), label_info if isinstance(label_info, dict) else {})
        return image_id

    def submit(self, image_id: str, label: Path, info: dict[str, Any]) -> LabelVersion:
        """Keep a label; what `save_label` does with a final one.

        Returns:
            Its version.

        Raises:
            StorageError: the state folder cannot be written to; the label is not kept.
        """
        self._check_image(image_id)
        origin = self.answers.find(image_id, info)
        tasks = _narrow(self.find_tasks(image_id, [label]), info, origin)
        with self._keeping(), self.versions.hold(image_id):
            self._take_in(image_id)
            version = self.versions.add(
                image_id, label, annotator=find_annotator(info), tasks=tasks, origin=origin, info=info
            )
            self._publish(image_id)
        return version

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        """Say in plain words that the disk is full, or not to be written to."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"expected room for the label, but it cannot be written ({error.strerror or error}): it is not kept; "
                "make room on the server's disk, and submit it again"
            ) from error

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; of a final one, all annotators' versions stay in the history, and count no more."""
        if label_tag != FINAL:
            super().remove_label(label_id, label_tag)
            return
        self._check_image(label_id)
        with self.versions.hold(label_id):
            self._take_in(label_id)
            self.versions.withdraw(label_id, self.versions.history(label_id).counting, why=DELETED, by=find_annotator())
            self._publish(label_id)

    def remove_image(self, image_id: str) -> None:
        """Remove an image with its labels; the history stays."""
        self._check_image(image_id)
        with self.versions.hold(image_id):  # before the index is locked: saving a label takes them in this order
            self.remove_label(image_id, FINAL)
            super().remove_image(image_id)

    def history(self, image_id: str) -> History:
        """What is known of an image's labels, those in its folder included.

        Raises:
            ImageNotFoundException: no such image.
        """
        self._check_image(image_id)
        if not self._is_settled(image_id):
            with self.versions.hold(image_id):
                self._take_in(image_id)
                self._publish(image_id)
        return self.versions.history(image_id)

    def undo(self, image_id: str, annotator: str) -> LabelVersion:
        """Let an annotator's version before the newest one count again; with none before, none does.

        Returns:
            The version that was taken back.

        Raises:
            LabelVersionError: there is none to take back.
        """
        self._check_image(image_id)
        with self.versions.hold(image_id):
            self._take_in(image_id)
            own = self.versions.history(image_id).of(annotator)
            if not own:
                raise LabelVersionError(f"nothing to undo: {annotator or 'nobody'} has no label of this image")
            self.versions.withdraw(image_id, own[-1:], why=UNDONE, by=annotator)
            self._publish(image_id)
        return own[-1]

    def choose(self, image_id: str, number: int | None, reviewer: str) -> None:
        """Make a version the final label whatever the rule says; None = let the rule say.

        Raises:
            LabelVersionError: no such version, or one that was withdrawn.
        """
        self._check_image(image_id)
        with self.versions.hold(image_id):
            self._take_in(image_id)
            history = self.versions.history(image_id)
            if number is not None and history.find(number).number in history.withdrawn:
                why = history.withdrawn[number]
                raise LabelVersionError(f"version {number} does not count any more ({why}): choose another")
            self.versions.note(image_id, "chosen", number=number, by=reviewer)
            self._publish(image_id)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """All labeled images with their labels, except for those whose history cannot be read."""
        pairs = super().datalist(full_path)
        return [pair for pair in pairs if not self.versions.problem(find_stem(Path(pair["image"]).name))]

    def repair(self) -> None:
        """Bring final labels in line with the versions, as a crash may have come between."""
        known = set(self.list_images())
        for image in self.versions.images():
            if image in known:
                with contextlib.suppress(IOPFLError, MONAILabelException):  # its image cannot be had just now
                    self.history(image)

    def _check_image(self, image_id: str) -> None:
        if image_id in self._datastore.objects or image_id in self.list_images():
            return
        if not self.get_image_info(image_id):
            raise ImageNotFoundException(f"no image {image_id!r} in the datastore")

    def _is_settled(self, image: str) -> bool:
        """Whether an image's final label is what the rule selects, and in place: looked at without holding anything."""
        history = self.versions.history(image)
        files = self._final_files(image)
        is_in_place = _stamp_of(files) == history.stamp if history.published else not files
        return is_in_place and self.rule.is_met(history, history.published)

    def _take_in(self, image: str) -> None:
        """Record what somebody changed in the folder of final labels by hand."""
        history = self.versions.history(image)
        file = next(iter(self._final_files(image)), None)
        if file is None:
            if history.published:
                self.versions.withdraw(image, history.counting, why=DELETED)
            return
        if history.published and _stamp(file) == history.stamp:
            return
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest not in {version.sha256 for version in self._may_be_in_place(history)}:
            info = self.get_label_info(image, FINAL)
            self.versions.add(image, file, annotator="", kind=FOLDER, info=info)

    def _may_be_in_place(self, history: History) -> list[LabelVersion]:
        """The versions that may be the final label by this store's own doing, even if a crash came between."""
        selected = self.rule.select(history)
        sources = tuple(version.number for version in selected)
        made = [v for v in history.versions if v.number == history.published or (v.sources and v.sources == sources)]
        return [*selected, *made]

    def _publish(self, image: str) -> None:
        """Make the version that the rule selects the final label."""
        history = self.versions.history(image)
        selected = self.rule.select(history)
        if self._is_settled(image):
            return
        version = self._agree(image, selected) if len(selected) > 1 else next(iter(selected), None)
        if version and version.number == history.published and _stamp_of(self._final_files(image)) == history.stamp:
            return
        stamp = self._write_final(image, version)
        self.versions.note(image, "published", number=version.number if version else 0, stamp=stamp)

    def _agree(self, image: str, versions: Sequence[LabelVersion]) -> LabelVersion:
        """The consensus of several versions, made once; the newest of them where they cannot be brought together."""
        sources = tuple(version.number for version in versions)
        made = (
            version
            for version in self.versions.history(image).versions
            if version.kind == CONSENSUS and version.sources == sources and version.origin["rule"] == self.rule.name
        )
        known = next(made, None)
        if known is not None:
            return known
        files = [self.versions.file(image, version) for version in versions]
        common = common_tasks(versions)
        try:
            fitting = [task for task in self.find_tasks(image, files) if not common or task.name in common]
        except MONAILabelException as error:
            logger.warning("%s: no consensus, the newest label counts: %s", image, error.msg)
            return versions[0]
        if not fitting:
            logger.warning("%s: no consensus, the newest label counts: this server has not their task", image)
            return versions[0]
        task = fitting[0]
        source = Path(self.get_image_uri(image))
        like = read_image(source, task)
        values = torch.tensor(task.label_values, dtype=torch.uint8)
        labels = [values[read_label(file, task, like=like)[0].as_tensor().long()].numpy() for file in files]
        mask = torch.from_numpy(find_consensus(labels, self.rule.name))
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, mask_name(source))
            write_mask(target, Segmentation(mask, like, Answer(task.name, "", CONSENSUS, 0.0)))
            origin = {"rule": self.rule.name, "task": task.name}
            about: dict[str, Any] = {"sources": sources, "origin": origin, "tasks": tuple(sorted(common))}
            return self.versions.add(image, target, annotator="", kind=CONSENSUS, **about)

    def _write_final(self, image: str, version: LabelVersion | None) -> tuple[int, int]:
        """Put a version in place, or nothing; gives the file's stamp, zeros without one."""
        target = None
        if version is not None:
            source = self.versions.file(image, version)
            target = Path(self._datastore.label_path(FINAL), f"{image}{find_suffix(source.name)}")
            _copy_whole(source, target, datetime.fromisoformat(version.when))
        for file in self._final_files(image):
            if file != target:
                file.unlink()
        self._index_final(image, version, target.name if target else "")
        return _stamp(target) if target else (0, 0)

    def _index_final(self, image: str, version: LabelVersion | None, name: str) -> None:
        """Say in MONAI Label's index what was put in place."""
        with getattr(self, "_index_lock", contextlib.nullcontext()):  # `compat.datastore_races`
            super().list_images()  # the index as it is now on disk
            entry = self._datastore.objects[image]
            if version is None:
                entry.labels.pop(FINAL, None)
            else:
                about = {"ts": int(time.time()), "name": name, **to_info(version)}
                entry.labels[FINAL] = DataModel(info={**version.info, **about}, ext=name.removeprefix(image))
            self._update_datastore_file()

    def _final_files(self, image: str) -> list[Path]:
        """What lies in the folder of final labels for an image; the one that the index names comes first."""
        folder = Path(self._datastore.label_path(FINAL))
        entry = self._datastore.objects.get(image)
        named = entry.labels[FINAL].ext if entry and FINAL in entry.labels else ""
        suffixes = dict.fromkeys([named, *(pattern.removeprefix("*") for pattern in self._extensions)])
        return [file for suffix in suffixes if suffix and (file := folder / f"{image}{suffix}").is_file()]


def to_info(version: LabelVersion) -> dict[str, Any]:
    """What MONAI Label's index says of the version that is the final label."""
    return {"version": version.number, "annotator": version.annotator, "tasks": list(version.tasks)}


def _narrow(tasks: Sequence[Task], info: Mapping[str, Any], origin: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the tasks whose grid and values a label fits, those that it was drawn for.

    By the names that the client gave to the values, else by the answer that the label started from; all, where
    neither tells.
    """
    named = info.get("label_info")
    listed = [item for item in named if isinstance(item, Mapping)] if isinstance(named, list) else []
    said = [(item.get("name"), item.get("idx")) for item in listed]
    by_name = [task.name for task in tasks if said and all(pair in list(task.labels.items()) for pair in said)]
    by_origin = [task.name for task in tasks if task.name == origin.get("task")]
    return tuple(by_name or by_origin or [task.name for task in tasks])


def _copy_whole(source: Path, target: Path, when: datetime) -> None:
    """Copy a file, whole or not at all, and date it; the name it has meanwhile is no image's or label's."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, temporary)
        os.utime(temporary, (when.timestamp(), when.timestamp()))  # the same version has the same time, come what may
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def _stamp_of(files: Sequence[Path]) -> tuple[int, int] | None:
    """Stamp of the one file there is."""
    return _stamp(files[0]) if len(files) == 1 else None
