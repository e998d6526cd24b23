"""The datastore that knows which of its images are a task's (`core/criteria.py`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from iopfl.core.criteria import PICTURE, VOLUME, Criteria, ImageFacts, describe_mismatch, find_mismatch
from iopfl.core.image_facts import read_facts
from iopfl.core.task import Task
from iopfl.images.files import is_picture
from iopfl.labels.folder import FolderDatastore

_LOOK_SECONDS = 0.02
"""How long a listing looks into files that are new: a large folder is known after a few of them."""

_PAUSE_SECONDS = 0.005
"""Between two files that are looked at while nobody asks."""

_Reasons = Mapping[str, str]


class SelectingDatastore(FolderDatastore):
    """A site folder of several tasks' images, or of some that are no task's.

    An image that is no task's is not offered and counts nowhere, until somebody has labeled it. Whoever names it
    gets it all the same.
    """

    def __init__(self, *arguments: Any, tasks: Mapping[str, Task], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tasks = list(tasks.values())
        # In a folder of a single task that asks for nothing, all is that task's.
        self._is_selecting = len(self._tasks) > 1 or any(task.images != Criteria() for task in self._tasks)
        self._reasons: dict[str, tuple[object, _Reasons]] = {}
        self._by_ending: dict[str, _Reasons] = {}

    def start_looking(self) -> None:
        """In the server: look at all files, little by little."""
        if self._is_selecting:
            threading.Thread(target=self._look_at_all, name="looking", daemon=True).start()

    def find_mismatches(self, image_id: str) -> _Reasons:
        """Names of the tasks whose image this is not -> why; it is looked at where that is not known."""
        if not self._is_selecting:
            return {}
        known = self._find_known(image_id)
        return self._learn(image_id, look=True) if known is None else known

    def known_mismatches(self, image_id: str) -> _Reasons:
        """The same as far as it is known."""
        return self._tell(image_id)

    def others(self) -> list[str]:
        """Images that are not listed, as they are no task's, but served to who names them."""
        return []

    def tasks_of(self, image_id: str) -> list[Task]:
        """The tasks whose image this is."""
        reasons = self.find_mismatches(image_id)
        return [task for task in self._tasks if task.name not in reasons]

    def tasks_for(self, image_id: str) -> list[Task]:
        """The tasks that an image may be labeled for: its own; all for an image of none, which somebody opened."""
        return self.tasks_of(image_id) or self._tasks

    def tasks_of_label(self, image_id: str, names: Collection[str]) -> list[Task]:
        """The tasks that a label was drawn for: those of these names, else all that its image may be labeled for."""
        return [task for task in self._tasks if task.name in names] or self.tasks_for(image_id)

    def images_for(self, task: Task, images: list[str]) -> list[str]:
        """Of some images those that are a task's, as far as is known."""
        if task not in self._tasks:
            return []
        return [image for image in images if task.name not in self._tell(image)]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images of a task that have no final label."""
        return self._keep_tasks_images(super().get_unlabeled_images(label_tag, labels))

    def status(self) -> dict[str, Any]:
        """How many images the tasks have, and how many labels of each tag there are."""
        found = super().status()
        unlabeled = FolderDatastore.get_unlabeled_images(self)
        return {**found, "total": found["total"] - len(unlabeled) + len(self._keep_tasks_images(unlabeled))}

    def _keep_tasks_images(self, images: list[str]) -> list[str]:
        """Of some images those of any task, as far as is known."""
        if not self._is_selecting:
            return images
        self._look_at_some(images)
        return [image for image in images if not self._is_no_tasks(image)]

    def _is_no_tasks(self, image: str) -> bool:
        return self._is_selecting and len(self._tell(image)) == len(self._tasks) > 0

    def _look_at_some(self, images: Iterable[str]) -> None:
        end = time.monotonic() + _LOOK_SECONDS
        for image in images:
            if self._find_known(image) is None:
                self._learn(image, look=True)
                if time.monotonic() > end:
                    return

    def _look_at_all(self) -> None:
        for image in list(self._index.entries):
            self._look_at_some([image])
            time.sleep(_PAUSE_SECONDS)

    def _tell(self, image: str) -> _Reasons:
        """What is known; of an image that was not looked at, what its file's ending says."""
        known = self._find_known(image)
        entry = self._index.entries.get(image)
        if known is not None or entry is None:
            return known or {}
        ending = entry.image.ext
        if ending not in self._by_ending:
            facts = ImageFacts(kind=PICTURE if is_picture(Path(ending)) else VOLUME)
            self._by_ending[ending] = self._compare(facts, ())
        return self._by_ending[ending]

    def _compare(self, facts: ImageFacts, but: Collection[str]) -> _Reasons:
        if not self._is_selecting:
            return {}
        return {task.name: why for task in self._tasks if (why := find_mismatch(task, facts, but=but))}

    def _find_known(self, image: str) -> _Reasons | None:
        known = self._reasons.get(image)
        return known[1] if known is not None and known[0] == self._stamp_of(image) else None

    def _learn(self, image: str, *, look: bool) -> _Reasons:
        found = self._find_facts(image, look=look)
        if found is None:
            self._reasons.pop(image, None)
            return {}
        reasons = self._compare(*found)
        self._reasons[image] = self._stamp_of(image), reasons
        return reasons

    def _stamp_of(self, image: str) -> object:
        """What is another where the facts of an image are."""
        entry = self._index.entries.get(image)
        return entry and (entry.image.ext, entry.image.info.get("ts"))

    def _find_facts(self, image: str, *, look: bool) -> tuple[ImageFacts, Collection[str]] | None:
        """What is known of an image, and what of that does not count; `look` = finding out may take a moment."""
        entry = self._index.entries.get(image)
        return (read_facts(self._files.image(image, entry.image.ext)), ()) if entry else None


def find_warning(store: SelectingDatastore, task: Task, image: str) -> str:
    """What to say with an answer that somebody asked for by name; "" = the image is the task's.

    Args:
        store: the datastore.
        task: that the image was segmented for.
        image: its id, or the path of a file that was sent.
    """
    if Path(image).is_absolute():
        reason = find_mismatch(task, read_facts(Path(image)))
    else:
        reason = store.find_mismatches(image).get(task.name)
    return describe_mismatch(task, reason)
