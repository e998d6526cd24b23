"""The local datastore, which refuses a label that training could not use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from iopfl.core.errors import SeriesError, TooFewLabelsError
from iopfl.core.sites import Case, find_stem, split_cases
from iopfl.core.task import Task
from iopfl.core.transforms import read_image, read_label
from iopfl.lib.models import as_client_error


class CheckedDatastore(LocalDatastore):
    """A site folder whose submitted labels fit their image and a task."""

    def __init__(self, *arguments: Any, tasks: Mapping[str, Task], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tasks = list(tasks.values())

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save a label; a final one only if its grid is the image's and its values are a task's.

        Raises:
            MONAILabelException: what does not fit, in plain words; nothing was saved.
        """
        if label_tag == DefaultLabelTag.FINAL and self._tasks:
            self._check(Path(self.get_image_uri(image_id)), Path(label_filename))
        return super().save_label(image_id, label_filename, label_tag, label_info)

    def _check(self, image: Path, label: Path) -> None:
        problem: SeriesError | None = None
        for task in self._tasks:
            try:
                read_label(label, task, like=read_image(image, task))
            except SeriesError as error:
                problem = error
            else:
                return
        if problem is not None:
            raise as_client_error(problem) from problem


def split_labeled(datastore: Datastore, task: Task) -> dict[str, list[Case]]:
    """A datastore's labeled images by the site's split; unreadable pairs are left to training to name.

    Raises:
        TooFewLabelsError: there is none.
    """
    pairs = [(Path(pair["image"]), Path(pair["label"])) for pair in datastore.datalist()]
    if not pairs:
        raise TooFewLabelsError(f"no labeled image, {task.name} needs {task.training.min_labels}: submit some")
    cases = sorted((Case(find_stem(image.name), image, label) for image, label in pairs), key=lambda case: case.stem)
    return split_cases(cases, task, site_folder=pairs[0][0].parent)
