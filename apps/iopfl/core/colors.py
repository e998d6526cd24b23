"""The color of each label, the same in pictures, in our page, in OHIF and in a DICOM SEG."""

from __future__ import annotations

from iopfl.core.task import Task

LABEL_COLORS = ("#56B4E9", "#E69F00", "#F0E442", "#CC79A7", "#009E73", "#D55E00")
"""One a label, in the order of values, then from the start again. Source: Okabe and Ito, Color Universal Design (2008).
"""


def label_colors(task: Task) -> dict[str, str]:
    """Label name -> `#RRGGBB`.

    >>> from iopfl.core.task import read_task
    >>> label_colors(read_task("hippocampus"))
    {'anterior': '#56B4E9', 'posterior': '#E69F00'}
    """
    return {name: LABEL_COLORS[index % len(LABEL_COLORS)] for index, name in enumerate(task.labels)}
