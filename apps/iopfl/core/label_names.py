"""Which label of a task each value in a file is: names decide, values only where there are no names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from iopfl.base.errors import SeriesError
from iopfl.core.task import Task
from iopfl.images.codes import fold_name, normalize_code

_BACKGROUND = "background"
_SHOWN = 8
_LONGEST = 64

Drawn = Sequence[tuple[str, Tensor]]
"""Names of segments, and where each is: (X, Y, Z) bool."""


def find_label(name: str, task: Task, codes: Sequence[tuple[str, str]] = ()) -> str | None:
    """The task's label that a segment is: by its name, else by a code where one label alone has it.

    Args:
        name: case and blanks around it do not matter.
        task: has the labels.
        codes: value and coding scheme of what the segment is, and where; the first that is a label's counts.
    """
    if name in task.labels:
        return name
    found = [label for label in task.labels if fold_name(label) == fold_name(name)]
    for code in codes if not found else ():
        found = [label for label, own in task.codes.items() if normalize_code(*own[:2]) == normalize_code(*code)]
        if found:
            break
    return found[0] if len(found) == 1 else None


def names_by_place(task: Task) -> dict[str, int]:
    """A task's labels by value, with a name for each value below the last that is none.

    3D Slicer sorts the names of an answer by value, and shows the n-th wherever the mask is n. Of names that
    are no segment in its scene it shows nothing.
    """
    names = {value: name for name, value in task.labels.items()}
    return {names.get(value, f"no label {value}"): value for value in range(1, max(names) + 1)}


def has_names(said: Any) -> bool:
    """Whether a client's `label_info` names segments."""
    return bool(_listed(said))


def names_in(said: Any) -> list[str]:
    """Names in a client's `label_info`, drawn or not."""
    return [name for name, _ in _listed(said)]


def name_values(said: Any, values: Iterable[float], task: Task, file: str) -> dict[int, str]:
    """What a client's `label_info` says of the values in a file.

    3D Slicer gives the n-th segment of the list the value n, and an `idx` that counts the segments that it leaves
    out too: so the place counts. `idx` is taken for the value where places cannot be meant, as other values are drawn,
    or the list is in another order than `idx`.

    Args:
        said: list of `{"name": ..., "idx": ...}`.
        values: that are drawn, without 0.
        task: whose values count for what a list leaves out, if it gives all others the task's own.
        file: for messages.

    Returns:
        Value -> name.

    Raises:
        SeriesError: a value is drawn that has no name by either.
    """
    listed, drawn = _listed(said), set(values)
    names = [name for name, _ in listed]
    shown = [name for name in names if not _is_background(name)]
    if drawn <= set(range(1, len(shown) + 1)) and any(
        names[int(value) - 1] != shown[int(value) - 1] for value in drawn
    ):
        raise SeriesError(
            f"label {file}: its label_info lists a segment named background, and whether the values in the file count "
            f"it ({_show_numbers(drawn)}) cannot be told: leave it out of the list and the file"
        )
    by_place = {place: name for place, (name, _) in enumerate(listed, start=1)}
    indices = [index for _, index in listed if index is not None]
    by_index = {index: name for name, index in listed if index is not None}
    is_whole = len(by_index) == len(listed)
    if drawn <= by_place.keys() and (not is_whole or indices == sorted(indices)):
        return by_place
    if is_whole and drawn <= by_index.keys():
        return by_index
    own = {value: name for name, value in task.labels.items()}
    if is_whole and by_index.items() <= own.items() and drawn <= own.keys():
        return own
    raise SeriesError(
        f"label {file}: expected a name for each value, but it holds {_show_numbers(drawn)}, and with it came "
        f"{_show_names(names_in(said))}: send the names of all segments in the order of their values"
    )


def merge(drawn: Drawn, task: Task, file: str, codes: Mapping[str, Sequence[tuple[str, str]]] | None = None) -> Tensor:
    """Bring segments together to one class per voxel.

    A segment may be a region of the task that holds other labels: what these leave of it is the one label of the
    region that is not drawn itself. A disc with a cup on it is rim and cup.

    Args:
        drawn: the segments that have voxels, at least one.
        task: has the labels and regions.
        file: for messages.
        codes: name -> value and coding scheme of what that segment is, and where.

    Returns:
        (X, Y, Z) uint8 class indices.

    Raises:
        SeriesError: a name that the task does not have, or two labels at one voxel.
    """
    labels: dict[str, Tensor] = {}
    regions: dict[str, Tensor] = {}
    unknown = []
    for name, place in drawn:
        label = find_label(name, task, (codes or {}).get(name, ()))
        region = None if label else _find_region(name, task)
        if label:
            labels[label] = labels[label] | place if label in labels else place
        elif region:
            regions[region] = place
        elif not _is_background(name):
            unknown.append(name)
    if unknown:
        raise SeriesError(
            f"label {file}: task {task.name} has the labels {', '.join(task.labels)}, given {_show_names(unknown)}; "
            "rename the segment, or remove it"
        )
    index = {label: number for number, label in enumerate(task.labels, start=1)}
    classes = torch.zeros_like(drawn[0][1], dtype=torch.uint8)
    for label, place in reversed(_resolve(regions, labels, task, file)):
        classes[place] = index[label]
    taken = torch.zeros_like(classes)
    for label, place in labels.items():
        others = taken[place]
        if others.any():
            other = next(name for name, number in index.items() if number == int(others.max()))
            raise SeriesError(
                f"label {file}: {other} and {label} overlap in {int(others.count_nonzero())} voxels; each voxel can "
                "be in one label only: take them out of one of both"
            )
        taken[place] = index[label]
    return torch.where(taken > 0, taken, classes)


def _resolve(
    regions: Mapping[str, Tensor], labels: Mapping[str, Tensor], task: Task, file: str
) -> list[tuple[str, Tensor]]:
    """The label that each region adds, the regions of the fewest labels first."""
    known, found = set(labels), []
    for region in sorted(regions, key=lambda name: len(task.regions[name])):
        rest = [label for label in task.regions[region] if label not in known]
        if len(rest) > 1:
            raise SeriesError(
                f"label {file}: {region} is {' and '.join(task.regions[region])} of task {task.name} taken together: "
                f"draw all but one of them too"
            )
        if rest:
            known.add(rest[0])
            found.append((rest[0], regions[region]))
        elif bool((regions[region] & ~torch.stack([labels[name] for name in task.regions[region]]).any(0)).any()):
            raise SeriesError(
                f"label {file}: {region} holds voxels that are in none of {', '.join(task.regions[region])}: "
                "add them to one of these"
            )
    return found


def _find_region(name: str, task: Task) -> str | None:
    return next((region for region in task.regions if fold_name(region) == fold_name(name)), None)


def _is_background(name: str) -> bool:
    return fold_name(name) == _BACKGROUND


def _listed(said: Any) -> list[tuple[str, int | None]]:
    """Name and index of each segment that was exported.

    Raises:
        SeriesError: names came in another form, by which values cannot be told: they would go by their numbers.
    """
    items = said if isinstance(said, list) else []
    if not items or not all(isinstance(item, Mapping) and _is_text(item.get("name")) for item in items):
        if _holds_names(said):
            raise SeriesError(
                'label_info: expected a list of {"name": ..., "idx": ...}, one for each segment in the order of their '
                "values and each with a name, given something else: send it so, or none"
            )
        return []
    listed = [(item["name"], _whole(item.get("idx"))) for item in items]
    return [(name, index) for name, index in listed if index != 0]


def _holds_names(said: Any) -> bool:
    if isinstance(said, list):
        return any(_is_text(item) or (isinstance(item, Mapping) and _names_something(item)) for item in said)
    return _is_text(said) or (isinstance(said, Mapping) and bool(said))


def _names_something(item: Mapping[Any, Any]) -> bool:
    return any(_is_text(value) and re.search("name|label", str(key), re.IGNORECASE) for key, value in item.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _whole(value: Any) -> int | None:
    """A whole number, as some clients write it: 2, 2.0 or "2"."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _show_names(names: Iterable[str]) -> str:
    shown = ["".join(filter(str.isprintable, name))[:_LONGEST] for name in names]
    return ", ".join(map(repr, shown[:_SHOWN])) + (", ..." if len(shown) > _SHOWN else "")


def _show_numbers(values: Iterable[float]) -> str:
    found = sorted(values)
    return ", ".join(f"{value:g}" for value in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
