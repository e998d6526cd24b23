"""A datastore that keeps every label that it took.

`labels/final` holds what the rule makes the final label of an image (`final_rule`): a copy of one of its versions
in the state folder (`versions`). A file put there by hand becomes a version, one taken away counts as deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelException

from iopfl.base.errors import IOPFLError, LabelVersionError, StorageError
from iopfl.base.stamps import find_stamp
from iopfl.images.names import find_stem, find_suffix
from iopfl.labels.annotators import RecentAnswers, find_annotator
from iopfl.labels.checked import FINAL, CheckedDatastore
from iopfl.labels.consensus import make_consensus
from iopfl.labels.final_rule import FinalRule, common_tasks
from iopfl.labels.folder_files import new_item
from iopfl.labels.log import CONSENSUS, DELETED, FOLDER, UNDONE, History, LabelVersion
from iopfl.labels.versions import VersionStore

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 15.0

_CANNOT_BE_DONE = (OSError, IOPFLError, MONAILabelException)
"""What keeps a final label from being put in place: no room, no right to write, an image that cannot be had."""

_NOT_KEPT = "the label is not kept; make room on the server's disk, and submit it again"
_UNCHANGED = "nothing was changed; make room on the server's disk, and ask again"


class VersionedDatastore(CheckedDatastore):
    """A site folder with the history of its labels.

    Attributes:
        versions: all labels that ever were.
        rule: which of them are final.
        answers: what clients were answered, from which their labels may have started.
        unsettled: images whose final label is yet to be put in place -> why, for people.
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
        self.unsettled: dict[str, str] = {}

    def start(self) -> None:
        """In the server, not in its children: finish what was left half done, now, and later what cannot be yet."""
        self.versions.recover()
        self.repair()
        threading.Thread(target=self._keep_settling, name="settling", daemon=True).start()

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
            Its version; if it cannot become the final label now, as it should, `unsettled` says why.

        Raises:
            StorageError: the state folder cannot be written to; the label is not kept.
        """
        self._check_image(image_id)
        origin = self.answers.find(image_id, info)
        with tempfile.TemporaryDirectory() as folder:
            taken = self.take(image_id, label, info, origin, Path(folder))
            about: dict[str, Any] = {"tasks": taken.tasks, "info": taken.describe(image_id, info)}
            with self._changing(image_id, _NOT_KEPT):
                return self.versions.add(image_id, taken.file, annotator=find_annotator(info), origin=origin, **about)

    @contextlib.contextmanager
    def _changing(self, image: str, otherwise: str) -> Iterator[History]:
        """Change an image's history, as it is with what somebody changed in the folder; then its final label follows.

        Args:
            image: whose history.
            otherwise: what to say if it cannot be changed.

        Raises:
            StorageError: the disk is full, or not to be written to: nothing was changed.
        """
        try:
            with self.versions.hold(image):
                self._take_in(image)
                yield self.versions.history(image)
                self._settle(image)
        except OSError as error:
            raise StorageError(f"the disk of the state folder refuses ({_reason(error)}): {otherwise}") from error

    def _settle(self, image: str) -> None:
        """Let the final label be what the history says; where that cannot be done now, it is kept in mind."""
        try:
            self._publish(image)
        except _CANNOT_BE_DONE as error:
            self._put_off(image, error)
        else:
            self.unsettled.pop(image, None)

    def _put_off(self, image: str, error: Exception) -> None:
        why = f"this is kept, but the final label is still the one before, until that can be changed: {_reason(error)}"
        if self.unsettled.get(image) != why:
            logger.warning("%s: %s", image, why)
        self.unsettled[image] = why

    def _keep_settling(self) -> None:
        while True:
            time.sleep(_RETRY_SECONDS)
            self.settle()

    def settle(self) -> None:
        """Try again what could not be done."""
        for image in list(self.unsettled):
            try:
                self.history(image)
            except _CANNOT_BE_DONE:  # it is no image any more
                self.unsettled.pop(image, None)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; of a final one, all annotators' versions stay in the history, and count no more."""
        if label_tag != FINAL:
            super().remove_label(label_id, label_tag)
            return
        self._check_image(label_id)
        with self._changing(label_id, _UNCHANGED) as history:
            self.versions.withdraw(label_id, history.counting, why=DELETED, by=find_annotator())

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
        if self._is_settled(image_id):
            self.unsettled.pop(image_id, None)
        else:
            try:
                with self.versions.hold(image_id):
                    self._take_in(image_id)
                    self._settle(image_id)
            except OSError as error:  # what is known can be told, even if nothing can be written
                self._put_off(image_id, error)
        return self.versions.history(image_id)

    def undo(self, image_id: str, annotator: str) -> LabelVersion:
        """Let an annotator's version before the newest one count again; with none before, none does.

        Returns:
            The version that was taken back.

        Raises:
            LabelVersionError: there is none to take back.
            StorageError: the state folder cannot be written to; nothing was changed.
        """
        self._check_image(image_id)
        with self._changing(image_id, _UNCHANGED) as history:
            own = history.of(annotator)
            if not own:
                raise LabelVersionError(f"nothing to undo: {annotator or 'nobody'} has no label of this image")
            self.versions.withdraw(image_id, own[-1:], why=UNDONE, by=annotator)
        return own[-1]

    def choose(self, image_id: str, number: int | None, reviewer: str) -> None:
        """Make a version the final label whatever the rule says; None = let the rule say.

        Raises:
            LabelVersionError: no such version, or one that was withdrawn.
            StorageError: the state folder cannot be written to; nothing was changed.
        """
        self._check_image(image_id)
        with self._changing(image_id, _UNCHANGED) as history:
            if number is not None and history.find(number).number in history.withdrawn:
                why = history.withdrawn[number]
                raise LabelVersionError(f"version {number} does not count any more ({why}): choose another")
            self.versions.note(image_id, "chosen", number=number, by=reviewer)

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
        if image_id in self._index.entries or image_id in self.list_images():
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
        if history.published and _stamp_of([file]) == history.stamp:
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
        """Make the version that the rule selects the final label, unless it is in the PACS alone."""
        if self._is_settled(image):
            return
        selected = self._select_whole(image)
        if any(not version.file for version in selected):
            return
        history = self.versions.history(image)
        version = self._agree(image, selected) if len(selected) > 1 else next(iter(selected), None)
        if version and version.number == history.published and _stamp_of(self._final_files(image)) == history.stamp:
            return
        stamp = self._write_final(image, version)
        self.versions.note(image, "published", number=version.number if version else 0, stamp=stamp)

    def _select_whole(self, image: str) -> tuple[LabelVersion, ...]:
        """What the rule selects, once none of it has a file that is damaged or gone."""
        while True:
            selected = self.rule.select(self.versions.history(image))
            broken = [v for v in selected if v.file and not self.versions.is_whole(image, v)]
            if not broken:
                return selected
            for version in broken:
                self.versions.give_up(image, version)

    def _agree(self, image: str, versions: Sequence[LabelVersion]) -> LabelVersion:
        """The consensus of several versions, made once; the newest of them where they cannot be brought together."""
        sources = tuple(version.number for version in versions)
        made = (
            version
            for version in self.versions.history(image).versions
            if version.kind == CONSENSUS and version.sources == sources and version.origin["rule"] == self.rule.name
        )
        known = next((version for version in made if self.versions.is_whole(image, version)), None)
        if known is not None:
            return known
        with tempfile.TemporaryDirectory() as folder:
            files = [self.versions.file(image, version) for version in versions]
            target, task = make_consensus(self, image, versions, files, rule=self.rule.name, folder=Path(folder))
            if target is None:
                return versions[0]
            about: dict[str, Any] = {"sources": sources, "tasks": tuple(sorted(common_tasks(versions)))}
            about["origin"] = {"rule": self.rule.name, "task": task}
            return self.versions.add(image, target, annotator="", kind=CONSENSUS, **about)

    def _write_final(self, image: str, version: LabelVersion | None) -> tuple[int, int]:
        """Put a version in place, or nothing, and say so in the index; gives the file's stamp, zeros without one."""
        with self._using_index() as index:
            target = item = None
            if version is not None:
                source = self.versions.file(image, version)
                ext = find_suffix(source.name) or source.suffix
                when = datetime.fromisoformat(version.when).timestamp()  # the same version has the same time
                target = self._files.place_label(source, image, FINAL, ext, when=when)
                item = new_item(image, ext, {**version.info, **to_info(version)})
            for file in self._final_files(image):
                if file != target:
                    self._files.remove_label(image, FINAL, file.name.removeprefix(image))
            if image in index.entries:
                index.set_label(image, FINAL, item)
        return _stamp_of([target] if target else []) or (0, 0)

    def _final_files(self, image: str) -> list[Path]:
        """What lies in the folder of final labels for an image; the one that the index names comes first."""
        label = self._find_label(image, FINAL)
        named = self._files.label(image, FINAL, label.ext) if label else None
        return sorted(self._files.labels(image, FINAL), key=lambda file: file != named)


def to_info(version: LabelVersion) -> dict[str, Any]:
    """What MONAI Label's index says of the version that is the final label."""
    return {"version": version.number, "annotator": version.annotator, "tasks": list(version.tasks)}


def _reason(error: Exception) -> str:
    """What an error says, for people; of the system's, no path."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return getattr(error, "msg", None) or str(error)


def _stamp_of(files: Sequence[Path]) -> tuple[int, int] | None:
    """Stamp of the one file there is."""
    stamp = find_stamp(files[0]) if len(files) == 1 else None
    return stamp and stamp.kept
