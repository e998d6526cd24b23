"""What a label that somebody sends is: of which tasks, and with the task's own values."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iopfl.base.errors import SeriesError
from iopfl.base.names import task_of
from iopfl.core.answers import Answer, Segmentation
from iopfl.core.label_names import find_label, has_names, names_in
from iopfl.core.task import Task
from iopfl.core.transforms import LabelFile, open_label, read_image
from iopfl.core.writers import write_mask
from iopfl.images.files import is_picture
from iopfl.images.names import find_suffix

logger = logging.getLogger(__name__)

LEFT_OUT = "left_out"
NO_TASK = "expected a task to label this image for, this server has none: give it a bank"


@dataclass(frozen=True)
class Submission:
    """A label as it is kept.

    Attributes:
        file: the label, with the values of its tasks on the image's grid.
        tasks: names of the tasks that it was drawn for, at least one.
        beside: voxels that were drawn beside the slices of an image whose slices shift sideways, and are left out.
    """

    file: Path
    tasks: tuple[str, ...]
    beside: int = 0

    def describe(self, image: str, info: Mapping[str, Any]) -> dict[str, Any]:
        """What came with it, and under `left_out`, which the log has too, what is not kept of it: a line."""
        told = {key: value for key, value in info.items() if key != LEFT_OUT}
        if self.beside:
            line = f"{self.beside} voxels drawn beside the image's slices are left out: nothing was imaged there"
            logger.warning("label of %s: %s", image, line)
            told[LEFT_OUT] = [line]
        return told


def take_submission(
    image: Path, tasks: Sequence[Task], label: Path, info: Mapping[str, Any], origin: Mapping[str, Any], folder: Path
) -> Submission:
    """Find out for which tasks a label was drawn, and give it their values if it has others.

    The names of what is drawn decide: in the file, or as `label_info` beside it. Where they leave several tasks, or
    there are none, the model that the client says, or the answer that the label started from.

    Args:
        image: that it is of.
        tasks: that the image may be labeled for.
        label: the file that came.
        info: what came with it.
        origin: the answer that it started from, as far as that is known.
        folder: where a label with other values is written anew.

    Raises:
        SeriesError: it fits no task, or not the one that was meant; the message is of that one.
    """
    said = info.get("label_info")
    asked = task_of(info.get("model"))
    meant = next((name for name in (asked, str(origin.get("task"))) if name in {task.name for task in tasks}), "")
    fitting: dict[str, tuple[Task, Tensor, LabelFile, Tensor]] = {}
    problems = [((False, -1), SeriesError(NO_TASK))]
    for task in tasks:
        rank = (task.name == meant, 0)  # whether it was meant, and how near it is
        try:
            like = read_image(image, task)
            rank = (task.name == meant, 1 + sum(bool(find_label(name, task)) for name in names_in(said)))
            read = open_label(label, task, like=like, said=said)
        except SeriesError as error:
            problems.append((rank, error))
        else:
            fitting[task.name] = (task, like, read, _to_values(read, task))
    is_refused = bool(meant) and asked == meant and meant not in fitting and not has_names(said)
    if not fitting or is_refused:
        closest = max(rank for rank, _ in problems)
        raise join_problems([error for rank, error in problems if rank == closest])
    first = meant if meant in fitting else next(iter(fitting))
    task, like, read, mask = fitting[first]
    same = [name for name, (*_, other) in fitting.items() if torch.equal(other, mask)]
    chosen = _narrow(same, [entry[0] for entry in fitting.values()], said, meant)
    if read.is_as_stored:
        return Submission(label, chosen)
    target = folder / f"label{_plain_suffix(label)}"
    write_mask(target, Segmentation(mask, like, Answer(task.name, "", "", 0.0)))  # type: ignore[arg-type]
    return Submission(target, chosen, read.beside)


def join_problems(problems: Sequence[SeriesError]) -> SeriesError:
    """What several tasks said of the same file, where none of them was meant more than the others."""
    texts = list(dict.fromkeys(str(error) for error in problems))
    if len(texts) == 1:
        return problems[0]
    return SeriesError(f"no task of this server takes it: {'; or '.join(texts)}")


def _narrow(names: Sequence[str], tasks: Sequence[Task], said: Any, meant: str) -> tuple[str, ...]:
    """Of the tasks that read the same in a label, those that it was drawn for."""
    if meant in names:
        return (meant,)
    told = names_in(said)
    by_scene = [t.name for t in tasks if t.name in names and any(find_label(name, t) for name in told)]
    return tuple(by_scene or names)


def _to_values(read: LabelFile, task: Task) -> Tensor:
    return torch.tensor(task.label_values, dtype=torch.uint8)[read.classes[0].as_tensor().long()]


def _plain_suffix(label: Path) -> str:
    suffix = find_suffix(label.name) or ".nii.gz"
    return suffix if not is_picture(label) or suffix in (".png", ".bmp") else ".tif"
