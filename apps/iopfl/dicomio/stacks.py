"""Which instances of a series are its stack, and which only lie beside it: scouts, dose pages, stray slices, copies.

A series is its largest consistent part, where that is clearly the most of it; the rest is left out by name. Between
two parts of about the same size nobody but the sender can choose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydicom import Dataset

from iopfl.base.errors import SeriesError
from iopfl.dicomio.decoding import find_pixels
from iopfl.dicomio.frames import count_frames, find_plane
from iopfl.dicomio.geometry import Plane, SharedPositionError, find_stray, have_same_spacing, order_slices
from iopfl.dicomio.pixels import GRAYS
from iopfl.dicomio.refusals import PICTURES, VOLUMES, find_refusal, find_series_refusal
from iopfl.dicomio.volumes import Slice

_SAME = {
    "Rows": "another size",
    "Columns": "another size",
    "SamplesPerPixel": "other colors",
    "PhotometricInterpretation": "other colors",
    "FrameOfReferenceUID": "another frame of reference",
}
_FRAME_OF_REFERENCE = "FrameOfReferenceUID"
_VOLUMES_DIFFER_IN = (
    "ImageType",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "AcquisitionNumber",
)
"""What tells the volumes of a series apart, where it holds several."""
_TIMES = 2
"""As many times the frames beside it a stack has, to be clearly the most of a series."""
_LISTED = 6


@dataclass(frozen=True)
class Chosen:
    """What a series is taken to be.

    Attributes:
        instances: those that make up its stack.
        left_out: the others, and why: a line for each reason.
    """

    instances: Sequence[Dataset]
    left_out: tuple[str, ...] = ()


@dataclass
class _Group:
    """Instances that fit each other."""

    first: Dataset
    plane: Plane | SeriesError | None
    members: list[Dataset] = field(default_factory=list)
    frame_of_reference: str = ""

    @property
    def frames(self) -> int:
        return sum(count_frames(ds) for ds in self.members)


def choose_stack(instances: Sequence[Dataset]) -> Chosen:
    """The instances of a series that make its stack.

    Raises:
        SeriesError: no image, or several stacks of which none is clearly the most.
    """
    if refusal := find_series_refusal(instances):
        raise SeriesError(f"series {instances[0].SeriesInstanceUID} is not segmented: {refusal}")
    why = {id(ds): reason.partition(";")[0].removeprefix("it is ") for ds in instances if (reason := find_refusal(ds))}
    groups: list[_Group] = []
    for ds in instances:
        if id(ds) not in why:
            _add(ds, groups)
    stack = max(groups, key=lambda group: group.frames)
    beside = [group for group in groups if group is not stack]
    if stack.frames < _TIMES * sum(group.frames for group in beside):
        raise _tell_apart(groups)
    why |= {id(ds): _find_difference(group.first, group.plane, stack) for group in beside for ds in group.members}
    if stack.frame_of_reference:
        for ds in stack.members:
            ds.FrameOfReferenceUID = stack.frame_of_reference  # of those that left it empty too
    return Chosen(stack.members, _say(instances, why))


def order_stack(slices: Sequence[Slice], planes: Sequence[Plane]) -> tuple[list[int], tuple[str, ...]]:
    """Indices of slices along their normal, without copies and pictures that lie where another slice does.

    Returns:
        The indices, and lines of what was left out.

    Raises:
        SeriesError: not parallel, or several volumes; the message says what tells them apart.
    """
    try:
        order = order_slices(planes)
        stray = find_stray([planes[index] for index in order]) if count_frames(slices[0].ds) == 1 else None
        if stray is None:
            return order, ()
        left = slices[order.pop(stray)].ds
        return order, _say([left], {id(left): "beside the even places of the others"})
    except SharedPositionError as error:
        why = _find_doubles(slices, planes)
        kept = [index for index, piece in enumerate(slices) if id(piece.ds) not in why]
        try:
            order = order_slices([planes[index] for index in kept])
        except SharedPositionError:
            values = {keyword: {str(piece.ds.get(keyword)) for piece in slices} for keyword in _VOLUMES_DIFFER_IN}
            differ = ", ".join(keyword for keyword, different in values.items() if len(different) > 1)
            raise SeriesError(f"{error}; they differ in {differ or 'nothing that is usual'}") from error
        return [kept[index] for index in order], _say([piece.ds for piece in slices], why)


def _add(ds: Dataset, groups: list[_Group]) -> None:
    """Put an instance to those that it fits."""
    plane: Plane | SeriesError | None = None
    if ds.SOPClassUID not in PICTURES:
        try:
            plane = find_plane(ds)
        except SeriesError as error:  # it may be a stray one
            plane = error
    for group in groups:
        if not _find_difference(ds, plane, group):
            group.members.append(ds)
            group.frame_of_reference = group.frame_of_reference or _read(ds, _FRAME_OF_REFERENCE)
            return
    groups.append(_Group(ds, plane, [ds], _read(ds, _FRAME_OF_REFERENCE)))


def _find_difference(ds: Dataset, plane: Plane | SeriesError | None, group: _Group) -> str:
    """In what an instance differs from others; "" = it fits."""
    for keyword, difference in _SAME.items():
        mine, theirs = _read(ds, keyword), _read(group.first, keyword)
        if keyword == _FRAME_OF_REFERENCE:  # an empty one among others is an omission, not another place
            theirs = group.frame_of_reference or mine
            mine = mine or theirs
        if mine != theirs:
            return difference
    if _kind(ds) != _kind(group.first):
        return "another kind of image (SOP Class)"
    if type(plane) is not type(group.plane):
        return "no place in the patient" if isinstance(plane, SeriesError) else "a place in the patient"
    if isinstance(plane, Plane) and isinstance(group.plane, Plane):
        if not plane.is_parallel(group.plane):
            return "another orientation"
        if not have_same_spacing(plane, group.plane):
            return "another pixel spacing"
    return ""


def _read(ds: Dataset, keyword: str) -> str:
    """What an instance says, by its meaning: both gray scales come out of decoding with high values bright."""
    said = str(ds.get(keyword) or "")
    return GRAYS[0] if said in GRAYS else said


def _kind(ds: Dataset) -> tuple[bool, bool]:
    return ds.SOPClassUID in PICTURES, ds.SOPClassUID in VOLUMES or count_frames(ds) > 1


def _tell_apart(groups: Sequence[_Group]) -> SeriesError:
    """Why no stack can be chosen."""
    for keyword in _SAME:
        values = {_read(group.first, keyword) for group in groups}
        if len(values) > 1:
            return SeriesError(f"expected one {keyword} in a series, given {len(values)}; send one stack a series")
    planes = [group.plane for group in groups]
    unplaced = next((plane for plane in planes if isinstance(plane, SeriesError)), None)
    if unplaced is not None:
        return unplaced
    try:
        order_slices([plane for plane in planes if isinstance(plane, Plane)])
    except SharedPositionError:
        pass
    except SeriesError as error:
        return error
    return SeriesError("expected images of one kind in a series, given several SOP classes; send one stack a series")


def _find_doubles(slices: Sequence[Slice], planes: Sequence[Plane]) -> dict[int, str]:
    """Instances that lie where another does and need not, by `id`, and why."""
    places: dict[tuple[float, ...], list[Dataset]] = {}
    for piece, plane in zip(slices, planes, strict=True):
        if count_frames(piece.ds) > 1:
            return {}
        places.setdefault(tuple(round(value, 3) for value in plane.position), []).append(piece.ds)
    usual, _ = Counter(_type_of(piece.ds) for piece in slices).most_common(1)[0]
    why: dict[int, str] = {}
    for there in places.values():
        there.sort(key=lambda ds: (_type_of(ds) != usual, _number(ds), str(ds.SOPInstanceUID)))
        for ds in there[1:]:
            if _type_of(ds) != usual == _type_of(there[0]):
                why[id(ds)] = "another Image Type, at the place of another"
            elif _content_of(ds) == _content_of(there[0]):
                why[id(ds)] = "a copy of another, pixel by pixel"
    others = sum("Image Type" in reason for reason in why.values())
    return why if len(slices) - len(why) >= _TIMES * others else {}


def _type_of(ds: Dataset) -> tuple[str, ...]:
    value = ds.get("ImageType") or ()
    return (value,) if isinstance(value, str) else tuple(str(part) for part in value)


def _content_of(ds: Dataset) -> tuple[object, ...]:
    return ds.get(find_pixels(ds)), str(ds.get("RescaleSlope")), str(ds.get("RescaleIntercept"))


def _say(instances: Sequence[Dataset], why: dict[int, str]) -> tuple[str, ...]:
    """A line for each reason, by Instance Number."""
    by_reason: dict[str, list[Dataset]] = {}
    for ds in instances:
        if id(ds) in why:
            by_reason.setdefault(why[id(ds)], []).append(ds)
    return tuple(f"{_name(group)}: {reason}" for reason, group in by_reason.items())


def _name(group: Sequence[Dataset]) -> str:
    numbers = sorted(number for ds in group if (number := _number(ds)) >= 0)
    if len(numbers) < len(group):
        return f"{len(group)} instance{'s' if len(group) > 1 else ''}"
    more = f" and {len(numbers) - _LISTED} more" if len(numbers) > _LISTED else ""
    return f"instance{'s' if len(group) > 1 else ''} {', '.join(map(str, numbers[:_LISTED]))}{more}"


def _number(ds: Dataset) -> int:
    """Instance Number; -1 where there is none."""
    try:
        return max(-1, int(ds.get("InstanceNumber")))  # type: ignore[arg-type]  # what it raises is caught
    except (TypeError, ValueError):
        return -1
