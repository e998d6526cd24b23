"""The label that several annotators' labels of an image come to, as a file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from monailabel.interfaces.exception import MONAILabelException

from iopfl.core.answers import Answer, Segmentation
from iopfl.core.transforms import read_image, read_label
from iopfl.core.writers import mask_name, write_mask
from iopfl.labels.checked import CheckedDatastore
from iopfl.labels.final_rule import common_tasks, find_consensus
from iopfl.labels.log import CONSENSUS, LabelVersion

logger = logging.getLogger(__name__)


def make_consensus(
    store: CheckedDatastore,
    image: str,
    versions: Sequence[LabelVersion],
    files: Sequence[Path],
    rule: str,
    folder: Path,
) -> tuple[Path | None, str]:
    """Make one label of several.

    Args:
        store: has the image and the tasks.
        image: whose labels they are.
        versions: the labels, the newest first.
        files: theirs.
        rule: how: `final_labels.MAJORITY` or `STAPLE`.
        folder: where the consensus is written.

    Returns:
        The file, None where they cannot be brought together, and the name of the task that it is a label for.
    """
    common = common_tasks(versions)
    try:
        fitting = [task for task in store.find_tasks(image, files) if not common or task.name in common]
    except MONAILabelException as error:
        logger.warning("%s: no consensus, the newest label counts: %s", image, error.msg)
        return None, ""
    if not fitting:
        logger.warning("%s: no consensus, the newest label counts: this server has not their task", image)
        return None, ""
    task = fitting[0]
    source = Path(store.get_image_uri(image))
    like = read_image(source, task)
    values = torch.tensor(task.label_values, dtype=torch.uint8)
    labels = [values[read_label(file, task, like=like)[0].as_tensor().long()].numpy() for file in files]
    mask = torch.from_numpy(find_consensus(labels, rule))
    target = folder / mask_name(source)
    write_mask(target, Segmentation(mask, like, Answer(task.name, "", CONSENSUS, 0.0)))
    return target, task.name
