"""What an answer takes of the machine's memory, and how much it may take.

The limit is one of the process, as memory is: `limit_to` sets it where a program starts. Whoever reads an image
for a task is held to it before anything large is made (`check_room`), so that no file that somebody sent
makes the system end the server.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from iopfl.base.errors import ConfigError, SeriesError
from iopfl.core.task import Task

DEFAULT_SHARE = 0.5
"""Of the machine's memory, or the container's, that an answer may take."""

_PROCESS_BYTES = 1.15e9
"""A process that has PyTorch and MONAI in it, and the blocks that it keeps (`base.allocation`)."""
_PASS_BYTES = 4 * 84
"""A pixel of the network's window and channel of its first layer: four windows a pass, activations as measured."""
_USUAL_WIDTH = 32
"""Channels of a network's first layer, where its arguments do not say."""
_CGROUP_ROOT, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_CGROUPS = (("memory", "memory", "memory.limit_in_bytes"), ("", "", "memory.max"))
"""Controller, folder below the root and file of a limit: version 1, version 2."""

_limit: int | None = None


def limit_to(gigabytes: float | None) -> None:
    """Set how much memory an answer may take, in GB (10^9 bytes); None = `DEFAULT_SHARE` of what there is.

    Raises:
        ConfigError: it is not above 0.
    """
    global _limit  # one per process, like torch's number of threads
    if gigabytes is not None and not 0 < gigabytes < math.inf:
        raise ConfigError(f"--max-memory-gb: expected a number above 0, given {gigabytes:g}")
    _limit = None if gigabytes is None else int(gigabytes * 1e9)


def limit() -> int:
    """How much memory an answer may take, in bytes."""
    return int(machine_bytes() * DEFAULT_SHARE) if _limit is None else _limit


def machine_bytes() -> int:
    """Memory that this process could have: the machine's, or less where its control group has a limit."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        lines = []
    groups = {name: path for line in lines for _, names, path in [line.split(":", 2)] for name in names.split(",")}
    for controller, folder, file in _CGROUPS:
        group = Path(groups.get(controller, "/").lstrip("/"))
        # What is set above holds below; in a container the group's own is at the top.
        for part in (group, *group.parents):
            found += _read_limit(_CGROUP_ROOT / folder / part / file)
    return min(found)


def _read_limit(file: Path) -> list[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() and int(text) > 0 else []


def find_grid(shape: Sequence[int], affine: np.ndarray, task: Task) -> tuple[float, ...]:
    """The network's grid for an image, as `Preprocessing` makes it.

    Args:
        shape: (X, Y, Z) as stored.
        affine: (4, 4), mm.
        task: says the grid.

    Returns:
        (X', Y', Z'), which may be more than any machine holds.
    """
    axes = nib.orientations.io_orientation(affine)[:, 0]
    order = [int(np.flatnonzero(axes == axis)[0]) for axis in range(3)]
    sizes = [float(shape[axis]) for axis in order]
    if task.spacing is None:
        return (*task.size, *sizes[len(task.size) :])
    edges = nib.affines.voxel_sizes(affine)[order]
    for axis, (wanted, least) in enumerate(zip(task.spacing, task.size, strict=True)):
        sizes[axis] = max(float(least), (sizes[axis] - 1) * edges[axis] / wanted + 1)
    return tuple(sizes)


def estimate(shape: Sequence[int], grid: Sequence[float] | None, task: Task, *, voters: int = 0) -> float:
    """Bytes that it takes to segment an image.

    Measured as peaks of processes (`benchmarks/large_volumes.py`), in bytes per voxel of the image as stored and of
    the network's grid: while the file is read, and after, a DICOM segmentation of all labels in every slice included.

    Args:
        shape: (X, Y, Z) as stored.
        grid: the grid of the network (`find_grid`); None = not known, so what it takes is left out.
        task: says channels and classes.
        voters: experts whose masks are compared, where a map of disagreement is made: all are held, and the map.
    """
    image, seen = math.prod(map(float, shape)), math.prod(map(float, grid or (0,)))
    reading = image * task.channels * 16
    answering = image * (task.channels * 6 + task.num_classes * 2) + seen * (task.channels * 12 + task.num_classes)
    widths = task.network.args.get("features") or task.network.args.get("channels") or (_USUAL_WIDTH,)
    passes = math.prod(task.size) * widths[0] * _PASS_BYTES
    maps = image * (voters + 1) if voters else 0
    return _PROCESS_BYTES + passes + max(reading, answering + maps)


def check_room(
    name: str, shape: Sequence[int], task: Task, affine: np.ndarray | None = None, *, voters: int = 0
) -> None:
    """Refuse an image that would take more memory than an answer may.

    Args:
        name: the file's name.
        shape: the shape of the image in space, as stored.
        task: what it is read for.
        affine: (4, 4), mm; None = before the image was read, when its voxels alone count.
        voters: as in `estimate`.

    Raises:
        SeriesError: with what it would take, what it may, and what to do.
    """
    shape = (*shape, 1, 1)[:3]
    grid = None if affine is None else find_grid(shape, affine, task)
    needed = estimate(shape, grid, task, voters=voters)
    if needed <= limit():
        return
    resampled = ""
    if grid is not None and math.prod(grid) > math.prod(shape):
        resampled = f", which become {_show(grid)} on the task's grid,"
    what, instead = "", ""
    if voters:
        what, instead = f" and the masks of {voters} experts", "ask for the mask alone, "
    raise SeriesError(
        f"{name}: its {_show(shape)} voxels{resampled} would take {needed / 1e9:.1f} GB of memory for task "
        f"{task.name}{what}, and an answer may take {limit() / 1e9:.1f} GB: {instead}give a smaller part of it, or "
        "allow more with --max-memory-gb"
    )


def check_volume(shape: Sequence[int], channels: int, value_bytes: int) -> None:
    """Refuse a series of slices that would take more memory than an answer may, before its pixels are decoded.

    Args:
        shape: (X, Y, Z).
        channels: values of a voxel.
        value_bytes: bytes of each.

    Raises:
        SeriesError: with what it would take, what it may, and what to do.
    """
    needed = math.prod(map(float, shape)) * channels * (value_bytes + 4)  # as decoded, and as floats
    if needed > limit():
        raise SeriesError(
            f"its {_show(shape)} voxels would take {needed / 1e9:.1f} GB of memory, and an answer may take "
            f"{limit() / 1e9:.1f} GB: send a part of it, or allow more with --max-memory-gb"
        )


def _show(shape: Sequence[float]) -> str:
    sizes = shape[:2] if len(shape) == 3 and shape[2] == 1 else shape
    return " x ".join(f"{size:.0f}" if size < 1e6 else f"{size:.1e}" for size in sizes)
