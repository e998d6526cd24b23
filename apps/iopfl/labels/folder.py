"""A site folder as MONAI Label's datastore: images at the top, labels in `labels/<tag>/`, and an index of both.

In place of MONAI Label's `LocalDatastore`, which writes its index whole with each request, looks for every file of the
folder with each sample, and breaks when requests come at once. What one request costs does not grow with the folder;
what others put into it, or take away, is seen by the next request.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import threading
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from iopfl.base.errors import SeriesError
from iopfl.core.handing_out import copy_image, copy_label
from iopfl.core.task import Task
from iopfl.labels.folder_files import FolderFiles, new_item, plain_tag
from iopfl.labels.index_file import Entry, IndexFile, Item

FINAL, ORIGINAL = DefaultLabelTag.FINAL.value, DefaultLabelTag.ORIGINAL.value


class FolderDatastore(Datastore):
    """Images and labels of a folder, for any number of threads and processes."""

    def __init__(self, folder: str | Path, *, extensions: Sequence[str], follows_folder: bool = True) -> None:
        """Args:
        folder: the folder of the images; created.
        extensions: patterns of the names of images and labels, such as `*.png`.
        follows_folder: whether its files say which images there are; a subclass may know better.
        """
        self._folder = Path(folder)
        self._follows_folder = follows_folder
        self._index_lock = threading.RLock()
        self._is_in_use = False
        for tag in (FINAL, ORIGINAL):
            (self._folder / "labels" / tag).mkdir(parents=True, exist_ok=True)
        self._index = IndexFile(self._folder)
        self._index.load()
        self._files = FolderFiles(self._folder, self._index, extensions)
        with self._using_index():
            if follows_folder:
                self._files.reconcile()

    @contextlib.contextmanager
    def _using_index(self) -> Iterator[IndexFile]:
        """The index, as it is now, for this thread alone; what is changed in it is written at the end."""
        with self._index_lock:
            if self._is_in_use:  # by this thread, further out
                yield self._index
                return
            self._is_in_use = True
            try:
                was_read_anew = self._index.catch_up()
                if self._follows_folder:
                    self._files.follow()
                    if was_read_anew:
                        self._files.reconcile()
                yield self._index
            finally:
                if self._index.save():
                    self._files.note_index()
                self._is_in_use = False

    def name(self) -> str:
        """What the data set is called."""
        return self._index.name

    def set_name(self, name: str) -> None:
        """Call the data set something else."""
        with self._using_index() as index:
            index.describe(name, index.description)

    def description(self) -> str:
        """What the data set is."""
        return self._index.description

    def set_description(self, description: str) -> None:
        """Describe the data set."""
        with self._using_index() as index:
            index.describe(index.name, description)

    def list_images(self) -> list[str]:
        """The images' ids."""
        with self._using_index() as index:
            return list(index.entries)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images that have a final label."""
        with self._using_index() as index:
            return [image for image, entry in index.entries.items() if FINAL in entry.labels]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images that have none."""
        with self._using_index() as index:
            return [image for image, entry in index.entries.items() if FINAL not in entry.labels]

    def status(self) -> dict[str, Any]:
        """How many images there are, and how many labels of each tag."""
        with self._using_index() as index:
            tags: dict[str, int] = {}
            for entry in index.entries.values():
                for tag in entry.labels:
                    tags[tag] = tags.get(tag, 0) + 1
            return {"total": len(index.entries), "completed": tags.get(FINAL, 0), "label_tags": tags}

    def json(self) -> dict[str, Any]:
        """The whole index."""
        with self._using_index() as index:
            return index.to_json()

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Images that have a final label, and these."""
        images, labels = ("", f"labels/{FINAL}/")
        if full_path:
            images, labels = (f"{os.path.realpath(self._folder / place)}/" for place in (images, labels))
        with self._using_index() as index:
            return [
                {"image": f"{images}{image}{entry.image.ext}", "label": f"{labels}{image}{entry.labels[FINAL].ext}"}
                for image, entry in index.entries.items()
                if FINAL in entry.labels
            ]

    def get_image(self, image_id: str, params: Any = None) -> BytesIO | None:
        """An image's file."""
        uri = self.get_image_uri(image_id)
        return BytesIO(Path(uri).read_bytes()) if uri else None

    def get_image_uri(self, image_id: str) -> str:
        """Where an image's file lies; "" = there is no such image."""
        with self._using_index() as index:
            entry = index.entries.get(image_id)
            return os.path.realpath(self._files.image(image_id, entry.image.ext)) if entry else ""

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of an image, and its path; empty = there is no such image."""
        with self._using_index() as index:
            entry = index.entries.get(image_id)
            if entry is None:
                return {}
            path = os.path.realpath(self._files.image(image_id, entry.image.ext))
            return {**copy.deepcopy(entry.image.info), "path": path}

    def facts(self, image_id: str) -> Mapping[str, Any]:
        """What is known of an image, at no cost: as of the last look at the folder, and not to be changed."""
        entry = self._index.entries.get(image_id)
        return entry.image.info if entry else {}

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> BytesIO | None:
        """A label's file."""
        uri = self.get_label_uri(label_id, label_tag)
        return BytesIO(Path(uri).read_bytes()) if uri else None

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Where the file of an image's label lies; "" = there is no such label."""
        with self._using_index():
            label = self._find_label(label_id, label_tag)
            return os.path.realpath(self._files.label(label_id, plain_tag(label_tag), label.ext)) if label else ""

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What is known of an image's label; empty = there is no such label."""
        with self._using_index():
            label = self._find_label(label_id, label_tag)
            return copy.deepcopy(label.info) if label else {}

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """The tags of an image's labels -> their id, which is the image's."""
        with self._using_index() as index:
            entry = index.entries.get(image_id)
            return dict.fromkeys(entry.labels, image_id) if entry else {}

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """Id of an image's label; "" = there is none."""
        return self.get_labels_by_image_id(image_id).get(plain_tag(tag), "")

    def copy_label(self, image_id: str, label: Path, tasks: Collection[str]) -> Path | None:
        """A copy of an image's label as clients are sent it, which whoever asks removes; None = it is sent as it is.

        Args:
            image_id: whose label it is.
            label: its file.
            tasks: names of those that it was drawn for, as far as they are known.

        Raises:
            SeriesError: its names or colors are no task's.
        """
        image = Path(FolderDatastore.get_image_info(self, image_id).get("path", ""))  # of a PACS, it is not here
        return copy_label(label, image, self.tasks_of_label(image_id, tasks) if image.is_file() else [])

    def tasks_of_label(self, image_id: str, names: Collection[str]) -> list[Task]:
        """The tasks that a label of an image was drawn for; a plain folder knows none."""
        return []

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP archive of labeled images and their labels as clients are sent them, and the index.

        Whoever asks removes it. A label with the names of no task is there as it is, and says so itself.
        """
        pairs = self.datalist()
        pairs = pairs[:limit_cases] if limit_cases and limit_cases > 0 else pairs
        with tempfile.NamedTemporaryFile(delete=False) as file, zipfile.ZipFile(file, mode="w") as archive:
            for kind, path in ((kind, Path(path)) for pair in pairs for kind, path in pair.items()):
                sent = None
                with contextlib.suppress(SeriesError):
                    sent = copy_image(path) if kind == "image" else self._copy_final(path)
                archive.write(sent or path, arcname=f"{kind}/{path.name}")
                if sent:
                    sent.unlink()
            archive.writestr("metadata.json", self._index.dumps())
        return file.name

    def _copy_final(self, label: Path) -> Path | None:
        image, _ = self._files.split(label.name)
        return self.copy_label(image, label, self.get_label_info(image, FINAL).get("tasks", ()))

    def refresh(self) -> None:
        """Look at the folder."""
        with self._using_index():
            pass

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copy an image into the folder, whole or not at all."""
        stem, ext = self._files.split(Path(image_filename).name)
        image = image_id or stem
        with self._using_index() as index:
            self._files.place_image(Path(image_filename), image, ext)
            index.set_image(image, new_item(image, ext, image_info))
        return image

    def remove_image(self, image_id: str) -> None:
        """Remove an image with all its labels."""
        with self._using_index() as index:
            entry = self._find_image(image_id)
            for tag in list(entry.labels):
                self.remove_label(image_id, tag)
            self._files.remove_image(image_id, entry.image.ext)
            index.set_image(image_id, None)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Copy a label into the folder, whole or not at all; gives its id, which is the image's."""
        label_tag = plain_tag(label_tag)
        with self._using_index() as index:
            self._find_image(image_id)
            ext = self._files.split(Path(label_filename).name)[1]
            self._files.place_label(Path(label_filename), image_id, label_tag, ext)
            index.set_label(image_id, label_tag, new_item(image_id, ext, label_info))
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label."""
        label_tag = plain_tag(label_tag)
        with self._using_index() as index:
            label = self._find_label(label_id, label_tag)
            if label is not None:
                self._files.remove_label(label_id, label_tag, label.ext)
                index.set_label(label_id, label_tag, None)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image."""
        with self._using_index() as index:
            image = self._find_image(image_id).image
            index.set_image(image_id, Item(image.ext, {**image.info, **info}))

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of a label."""
        label_tag = plain_tag(label_tag)
        with self._using_index() as index:
            label = self._find_label(label_id, label_tag)
            if label is None:
                raise LabelNotFoundException(f"image {label_id!r} has no label with the tag {label_tag!r}")
            index.set_label(label_id, label_tag, Item(label.ext, {**label.info, **info}))

    def _find_image(self, image: str) -> Entry:
        entry = self._index.entries.get(image)
        if entry is None:
            raise ImageNotFoundException(f"no image {image!r} in the datastore")
        return entry

    def _find_label(self, image: str, tag: str) -> Item | None:
        entry = self._index.entries.get(image)
        return entry.labels.get(plain_tag(tag)) if entry else None
