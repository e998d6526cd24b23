"""The files of a site folder, and its index brought in line with them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import DefaultLabelTag

from iopfl.base.files import replacing
from iopfl.base.names import is_tag
from iopfl.core.segment_writer import SUFFIX as _SEGMENTATION
from iopfl.images.names import rank_ending
from iopfl.labels.folder_names import FolderNames
from iopfl.labels.index_file import IndexFile, Item

_OTHERS = "other_files"
"""In what the index says of an image: names of files of its stem that were not taken for it."""


class FolderFiles:
    """Images of a folder, labels of `labels/<tag>/`: whoever changes them through this has no folder listed again.

    An image's id is its file's name without the ending, which is one of a few.
    """

    def __init__(self, folder: Path, index: IndexFile, extensions: Sequence[str]) -> None:
        """Args:
        folder: the folder of the images.
        index: the index of the folder.
        extensions: patterns of the names of images and labels, such as `*.png`.
        """
        self._folder = folder
        self._index = index
        suffixes = {pattern.removeprefix("*").lower() for pattern in extensions}
        self._suffixes = tuple(sorted(suffixes, key=len, reverse=True))
        self._as_spelled: dict[str, set[str]] = {}  # image -> endings in upper case that some file of it had
        self._images = FolderNames(folder)
        self._tags = FolderNames(folder / "labels", folders=True)
        self._labels: dict[str, FolderNames] = {}

    def image(self, image: str, ext: str) -> Path:
        """Where an image lies."""
        return self._folder / f"{image}{ext}"

    def label(self, image: str, tag: str, ext: str) -> Path:
        """Where a label lies."""
        return self._folder / "labels" / tag / f"{image}{ext}"

    def labels(self, image: str, tag: str) -> list[Path]:
        """The files that are there for an image with a tag, whichever one the index names."""
        paths = (self.label(image, tag, ext) for ext in self._label_endings(image))
        return [path for path in paths if path.is_file()]

    def split(self, name: str) -> tuple[str, str]:
        """A file's name as an image's id and its ending; of another kind of file, all from the first dot."""
        known = next((suffix for suffix in self._suffixes if name.lower().endswith(suffix)), None)
        ext = "".join(Path(name).suffixes) if known is None else name[len(name) - len(known) :]
        return name.removesuffix(ext), ext

    def place_image(self, source: Path, image: str, ext: str) -> None:
        """Copy an image into the folder, whole or not at all."""
        self._place(source, self.image(image, ext), self._images)

    def place_label(self, source: Path, image: str, tag: str, ext: str, *, when: float | None = None) -> Path:
        """Copy a label into the folder of its tag, whole or not at all; `when` becomes its modification time."""
        target = self.label(image, tag, ext)
        self._place(source, target, self._names_of(tag), when=when)
        return target

    def remove_image(self, image: str, ext: str) -> None:
        """Remove an image's file."""
        self._remove(self.image(image, ext), self._images)

    def remove_label(self, image: str, tag: str, ext: str) -> None:
        """Remove a label's file."""
        self._remove(self.label(image, tag, ext), self._names_of(tag))

    def note_index(self) -> None:
        """Take note that the index wrote files of its own beside the images."""
        self._images.note()

    def follow(self) -> None:
        """Take in what was put into the folders, and what was taken away."""
        added, removed = self._images.look()
        for image in self._find_ids(added | removed):
            self._match_image(image)
        self._tags.look()
        for tag in {tag for tag in self._tags.names if is_tag(tag)} | set(self._labels):
            added, removed = self._labels.setdefault(tag, FolderNames(self._folder / "labels" / tag)).look()
            for image in self._find_ids(added | removed) | self._find_segmented(added | removed):
                self._match_label(image, tag)

    def reconcile(self) -> None:
        """Bring an index that was read anew in line with all files."""
        self.follow()
        for image in self._find_ids(self._images.names).union(self._index.entries):
            self._match_image(image)
        for image, entry in self._index.entries.items():
            for tag in {*entry.labels, *self._labels}:
                self._match_label(image, tag)

    def _names_of(self, tag: str) -> FolderNames:
        if tag not in self._labels:
            self._labels[tag] = FolderNames(self._folder / "labels" / tag)
            self._labels[tag].look()
        return self._labels[tag]

    def _place(self, source: Path, target: Path, names: FolderNames, *, when: float | None = None) -> None:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
            if when is not None:
                os.utime(temporary, (when, when))
        names.note(added=[target.name])

    def _remove(self, file: Path, names: FolderNames) -> None:
        file.unlink(missing_ok=True)
        names.note(removed=[file.name])

    def _match_image(self, image: str) -> None:
        """Bring the entry of an image in line with its file; of several it is the one that the commands take."""
        entry = self._index.entries.get(image)
        exts = sorted(self._find_exts(image, self._images.names), key=rank_ending)
        others = [f"{image}{ext}" for ext in exts[1:]]
        if not exts:
            if entry is not None:
                self._index.set_image(image, None)
        elif entry is None or entry.image.ext != exts[0]:
            self._index.set_image(image, new_item(image, exts[0], {_OTHERS: others} if others else {}))
            for tag in self._labels:
                self._match_label(image, tag)
        elif others != entry.image.info.get(_OTHERS, []):
            self._index.set_image(image, Item(exts[0], {**entry.image.info, _OTHERS: others}))

    def _match_label(self, image: str, tag: str) -> None:
        entry = self._index.entries.get(image)
        if entry is None:
            return
        label = entry.labels.get(tag)
        names = self._labels[tag].names if tag in self._labels else ()
        found = [ext for ext in self._label_endings(image) if f"{image}{ext}" in names]
        exts = sorted(found, key=lambda ext: rank_ending(ext, of_label=True))
        if tag != DefaultLabelTag.FINAL.value and label is not None and label.ext in exts:
            return  # what was saved last; of final labels only one is kept
        ext = exts[0] if exts else None
        if ext is None:
            if label is not None:
                self._index.set_label(image, tag, None)
        elif label is None or label.ext != ext:
            self._index.set_label(image, tag, new_item(image, ext))

    def _find_ids(self, names: Collection[str]) -> set[str]:
        """Ids of the images that files of these names belong to."""
        found = set()
        for name in names:
            if name.lower().endswith(self._suffixes):
                image, ext = self.split(name)
                found.add(image)
                if ext not in self._suffixes:
                    self._as_spelled.setdefault(image, set()).add(ext)
        return found

    def _find_segmented(self, names: Collection[str]) -> set[str]:
        """Ids of the images that segmentations of 3D Slicer of these names lie beside."""
        return {name.removesuffix(_SEGMENTATION) for name in names if name.endswith(_SEGMENTATION)}

    def _label_endings(self, image: str) -> tuple[str, ...]:
        """As `find_cases` takes labels: a segmentation of 3D Slicer is one, unless an image has all of its name."""
        is_another = f"{image}.seg" in self._index.entries
        return self._endings(image) if is_another else (*self._endings(image), _SEGMENTATION)

    def _endings(self, image: str) -> tuple[str, ...]:
        return (*self._suffixes, *self._as_spelled.get(image, ()))

    def _find_exts(self, image: str, names: Collection[str]) -> list[str]:
        """The endings of an image's files among names."""
        return [ext for ext in self._endings(image) if f"{image}{ext}" in names]


def plain_tag(tag: str) -> str:
    """A tag as it is written: MONAI Label also gives members of an enumeration, which have another name as text."""
    return str(getattr(tag, "value", tag))


def new_item(image: str, ext: str, info: Mapping[str, Any] | None = None) -> Item:
    """What the index says of a file that is new."""
    return Item(ext, {**(info or {}), "ts": int(time.time()), "name": f"{image}{ext}"})
