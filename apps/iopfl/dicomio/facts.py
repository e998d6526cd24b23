"""What the header of one DICOM instance says that tells whether its series is a task's."""

from __future__ import annotations

import contextlib

from pydicom import Dataset

from iopfl.base.errors import SeriesError
from iopfl.core.criteria import PICTURE, VOLUME, ImageFacts, find_orientation, is_nearly_cubic
from iopfl.dicomio.frames import count_frames, find_group, find_plane, find_thickness
from iopfl.dicomio.refusals import PICTURES, SLICES, VOLUMES


def find_facts(ds: Dataset, *, instances: int = 0) -> ImageFacts:
    """What is known of a series.

    Args:
        ds: one of its instances, pixels not needed.
        instances: the number of instances in the series; 0 = not known.
    """
    kind_of = ds.get("SOPClassUID")
    is_picture = kind_of in PICTURES
    frames = 0
    with contextlib.suppress(SeriesError, ValueError, TypeError):
        frames = count_frames(ds)
    return ImageFacts(
        modality=_text(ds, "Modality"),
        body_part=_text(ds, "BodyPartExamined") or _find_region(ds),
        description=_text(ds, "SeriesDescription"),
        orientation="" if is_picture else _find_orientation(ds),
        kind=PICTURE if is_picture else VOLUME if kind_of in SLICES | VOLUMES else "",
        slices=1 if is_picture else frames if frames > 1 else instances,
        rows=_number(ds, "Rows"),
        columns=_number(ds, "Columns"),
        channels=_number(ds, "SamplesPerPixel"),
    )


def _find_region(ds: Dataset) -> str:
    """What the Anatomic Region is called (PS3.3 C.8.13.5.1), for an instance or its first frame."""
    holder = find_group(ds, 0, "FrameAnatomySequence")
    items = holder.get("AnatomicRegionSequence") or ds.get("AnatomicRegionSequence") or []
    return _text(items[0], "CodeMeaning") if items else ""


def _find_orientation(ds: Dataset) -> str:
    """That of the slices; of a volume that was acquired as one, with voxels that are nearly cubic, there is none."""
    try:
        plane = find_plane(ds)
        is_volume = _text(ds, "MRAcquisitionType").upper() == "3D"
        is_fine = is_volume and is_nearly_cubic(find_thickness(ds), plane.spacing)
        return "" if is_fine else find_orientation(plane.normal)
    except (SeriesError, ValueError, TypeError):
        return ""


def _text(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword)
    return str(value).strip() if value not in (None, "") else ""


def _number(ds: Dataset, keyword: str) -> int:
    try:
        return max(0, int(ds.get(keyword) or 0))
    except (ValueError, TypeError):
        return 0
