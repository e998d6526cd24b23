"""The local datastore, which refuses a label that training could not use."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.datastore import Datastore

from iopfl.base.errors import (
    ConfigError,
    ImageExistsError,
    LabelVersionError,
    SeriesError,
    StorageError,
    TooFewLabelsError,
)
from iopfl.base.names import check_tag, task_of
from iopfl.core.sites import Case, split_cases
from iopfl.core.task import Task
from iopfl.core.transforms import read_image, read_label
from iopfl.images.names import find_stem, find_suffix
from iopfl.labels.annotators import find_annotator, find_user
from iopfl.labels.client_errors import as_client_error
from iopfl.labels.folder import FINAL
from iopfl.labels.folder_files import plain_tag
from iopfl.labels.selecting import SelectingDatastore
from iopfl.labels.submissions import NO_TASK, Submission, join_problems, take_submission

MAX_TAGS = 20
"""Of labels, final and original among them."""

MAX_INFO = 50_000
"""Characters of what people have the server know of an image or a label, as JSON."""


class CheckedDatastore(SelectingDatastore):
    """A site folder whose submitted labels fit their image and a task."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._adding = threading.Lock()

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save a label, if its grid is the image's and its values, or the names in it, are a task's.

        Of a label with another tag there is one file and no history: only who made it may write over it. One that
        a model made (`model` in what MONAI Label says of it) is anybody's.

        Raises:
            MONAILabelException: what does not fit, in plain words; nothing was saved.
            LabelVersionError: somebody else has a label of this tag.
            ConfigError: it is no tag, or one too many.
        """
        tag, info = self._check_tag(label_tag), dict(label_info or {})
        with tempfile.TemporaryDirectory() as folder:
            taken = self.take(image_id, Path(label_filename), info, {}, Path(folder))
            info = taken.describe(image_id, info)
            with self._using_index():
                info = info if tag == FINAL else self._sign(image_id, tag, info)
                return super().save_label(image_id, str(taken.file), tag, info)

    def _check_tag(self, label_tag: str) -> str:
        """A label's tag; each has a folder, which whoever looks at the studies lists."""
        tag, folder = check_tag(plain_tag(label_tag)), self._folder / "labels"
        if not (folder / tag).is_dir() and sum(1 for _ in folder.iterdir()) >= MAX_TAGS:
            raise ConfigError(
                f"expected one of the labels' tags that there are, {MAX_TAGS} at most: submit this one as final"
            )
        return tag

    def _sign(self, image_id: str, tag: str, info: dict[str, Any]) -> dict[str, Any]:
        """What is known of a label that may be saved, with whose it is, whatever was said."""
        annotator = find_annotator(info)
        if self.get_label_info(image_id, tag).get("annotator", annotator) != annotator:
            raise LabelVersionError(
                f"there is a label with the tag {plain_tag(tag)!r} by somebody else, and it stays as it is: submit "
                "this one as final, where every version is kept, or under another tag"
            )
        info.pop("annotator", None)
        return info if "model" in info else {**info, "annotator": annotator}

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image.

        Raises:
            ConfigError: it would be more than is kept.
        """
        _check_size(self.get_image_info(image_id), info)
        super().update_image_info(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of a label, which its annotator does, or who may choose among labels.

        Raises:
            LabelVersionError: it is somebody else's.
            ConfigError: it would be more than is kept.
        """
        known, user = self.get_label_info(label_id, label_tag), find_user()
        may = user is None or settings.MONAI_LABEL_AUTH_ROLE_REVIEWER in user.roles
        if not may and known.get("annotator", user.username) != user.username:  # type: ignore[union-attr]
            raise LabelVersionError("this label is by somebody else, who alone says something of it: ask a reviewer")
        _check_size(known, info)
        super().update_label_info(label_id, label_tag, info)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take in an image that one of the tasks can read, under an id that is free.

        Raises:
            MONAILabelException: no task can read it, or its id is none; in plain words.
            ImageExistsError: there is one of this id.
            StorageError: the disk does not take it. In each case nothing was kept.
        """
        source = Path(image_filename)
        suffix = find_suffix(source.name) or source.suffix
        name = f"{image_id}{suffix}"
        with telling_clients():
            if not image_id or image_id.startswith(".") or find_stem(name) != image_id:
                raise SeriesError(
                    f"expected an id for the image that is a file's name without its ending, not {image_id!r}"
                )
            if not image_id.isprintable() or image_id != image_id.strip():
                raise SeriesError("expected an id of letters that can be seen, without blanks around it: rename it")
            self._check_free(image_id)
            if not source.name.endswith(suffix):  # in capitals, in which neither the folder's list nor readers know it
                source = source.rename(source.with_name(find_stem(source.name) + suffix))
            self._check_readable(source)
        with self._adding:
            self._check_free(image_id)
            try:
                return super().add_image(image_id, str(source), image_info)
            except OSError as error:
                raise StorageError(
                    f"expected room for the image, but it cannot be written ({error.strerror or error}): it is not "
                    "kept; make room on the server's disk, and upload it again"
                ) from error

    def _check_free(self, image_id: str) -> None:
        alike = _fold(image_id)
        if any(image_id == known or alike == _fold(known) for known in self.list_images()):
            raise ImageExistsError(
                f"there is an image {image_id!r} already, or one whose id looks alike, and it stays as it is: upload "
                "this one under another id"
            )

    def _check_readable(self, image: Path) -> None:
        """Check that one of the tasks can read an image."""
        problems = []
        for task in self._tasks:
            try:
                read_image(image, task)
                return
            except SeriesError as error:
                problems.append(error)
        raise join_problems(
            problems or [SeriesError("expected a task to read this image for, this server has none: give it a bank")]
        )

    def find_tasks(self, image_id: str, labels: Iterable[Path]) -> list[Task]:
        """The tasks that all these labels of an image fit, at least one.

        Raises:
            MONAILabelException: what does not fit.
        """
        image, labels = Path(self.get_image_uri(image_id)), list(labels)
        found, problems = [], []
        for task in self.tasks_for(image_id):
            try:
                like = read_image(image, task)
                for label in labels:
                    read_label(label, task, like=like)
            except SeriesError as error:
                problems.append(error)
            else:
                found.append(task)
        if not found:
            problem = join_problems(problems or [SeriesError(NO_TASK)])
            raise as_client_error(problem) from problem
        return found

    def take(
        self, image_id: str, label: Path, info: Mapping[str, Any], origin: Mapping[str, Any], folder: Path
    ) -> Submission:
        """Find out for which tasks a label of an image was drawn: `take_submission`.

        Raises:
            MONAILabelException: what does not fit.
            StorageError: there is no room to write it with the task's values.
        """
        image = Path(self.get_image_uri(image_id))
        meant = {task_of(info.get("model")), origin.get("task")}
        own = self.tasks_for(image_id)
        tasks = [task for task in self._tasks if task in own or task.name in meant]  # somebody may know better
        with telling_clients():
            try:
                return take_submission(image, tasks, label, info, origin, folder)
            except OSError as error:
                raise StorageError(
                    f"expected room for the label, but it cannot be written ({error.strerror or error}): it is not "
                    "kept; make room on the server's disk, and submit it again"
                ) from error

    def find_subject(self, image_id: str) -> str:
        """Whose image it is; "" = to be found in the image's id."""
        return ""


def _fold(image_id: str) -> str:
    """The same for ids that people, or a disk that knows no capitals, take for one."""
    return unicodedata.normalize("NFKC", image_id).casefold().rstrip(" .")


@contextlib.contextmanager
def telling_clients() -> Iterator[None]:
    """Have MONAI Label's clients shown what is wrong with an image."""
    try:
        yield
    except SeriesError as error:
        raise as_client_error(error) from error


def split_labeled(datastore: Datastore, task: Task) -> dict[str, list[Case]]:
    """A datastore's images labeled for a task, by the site's split; unreadable pairs are left to training to name.

    Raises:
        TooFewLabelsError: there is none.
    """
    pairs = [(Path(pair["image"]), Path(pair["label"])) for pair in datastore.datalist()]
    pairs = [pair for pair in pairs if is_labeled_for(datastore, find_stem(pair[0].name), task.name)]
    if not pairs:
        raise TooFewLabelsError(f"no labeled image, {task.name} needs {task.training.min_labels}: submit some")
    find = datastore.find_subject if isinstance(datastore, CheckedDatastore) else lambda _: ""
    stems = [find_stem(image.name) for image, _ in pairs]
    cases = [Case(stem, *pair, subject=find(stem)) for stem, pair in zip(stems, pairs, strict=True)]
    return split_cases(sorted(cases, key=lambda case: case.stem), task, site_folder=pairs[0][0].parent)


def _check_size(known: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Check that what people say stays short: the index is written as a whole, and has all of it."""
    if find_user() is not None and len(json.dumps({**known, **info})) > MAX_INFO:
        raise ConfigError(
            f"expected at most {MAX_INFO} characters in all of one image or label: write over what is there"
        )


def is_labeled_for(datastore: Datastore, image: str, task_name: str) -> bool:
    """Whether an image's label was drawn for a task, as far as that is known."""
    tasks = datastore.get_label_info(image, FINAL).get("tasks")
    return not tasks or task_name in tasks
