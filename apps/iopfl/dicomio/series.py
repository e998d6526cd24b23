"""Reading an image series from DICOM files: one volume, one affine, or a clear reason why not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom import Dataset

from iopfl.base.errors import ConfigError, SeriesError
from iopfl.base.files import replacing
from iopfl.base.uids import is_uid
from iopfl.core.memory import check_volume
from iopfl.dicomio.files import read_dataset, reading
from iopfl.dicomio.frames import count_frames, find_plane, find_thickness
from iopfl.dicomio.geometry import GapError, build_affine
from iopfl.dicomio.padding import choose_value
from iopfl.dicomio.pixels import MAX_SERIES_BYTES
from iopfl.dicomio.refusals import PICTURES, VOLUMES, find_refusal, is_other_object
from iopfl.dicomio.showing import AT_SOURCE, show_code
from iopfl.dicomio.stacks import Chosen, choose_stack, order_stack
from iopfl.dicomio.volumes import Slice, decode_volume
from iopfl.images.names import find_suffix
from iopfl.images.notes import FileNotes
from iopfl.images.straightening import Stack, straighten

_ONE_OF = {"StudyInstanceUID": "study", "PatientID": "patient"}
"""What is the same in all of a series, whichever instances of it are used: whose a mask is, goes by the first one."""


@dataclass(frozen=True, eq=False, repr=False)
class Series:
    """An image series as one volume.

    Attributes:
        datasets: the source instances without pixel data: one per slice, in slice order; or one enhanced multi-frame.
        array: (X, Y, Z), stored integers or float32 after the modality's rescale, high values bright; or
            (X, Y, Z, 3) uint8 RGB. Where slices shift sideways (gantry tilt), on a straight grid, which is larger.
        affine: (4, 4) float64, voxel index (x, y, z) to RAS mm, at right angles; identity where there is no geometry.
        has_geometry: whether the slices have a place in the patient; a photograph has none.
        frame_numbers: for a multi-frame source, the frame (from 1) of each slice; otherwise empty.
        stack: where the source's own frames lie on that grid; None of what has no geometry.
        padding: value of the voxels in `array` that are no image, below all that are; None = there are none.
        left_out: instances that are none of its stack, and why: a line for each reason.
    """

    datasets: tuple[Dataset, ...]
    array: np.ndarray
    affine: np.ndarray
    has_geometry: bool = True
    frame_numbers: tuple[int, ...] = ()
    stack: Stack | None = None
    padding: float | None = None
    left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Without the headers, which hold the patient."""
        return f"Series({self.series_instance_uid}, {show_code(self.modality)}, {self.array.shape})"

    @property
    def series_instance_uid(self) -> str:
        """Series Instance UID."""
        return str(self.datasets[0].SeriesInstanceUID)

    @property
    def study_instance_uid(self) -> str:
        """Study Instance UID."""
        return str(self.datasets[0].StudyInstanceUID)

    @property
    def modality(self) -> str:
        """Modality, e.g. MR."""
        return str(self.datasets[0].get("Modality", ""))

    @property
    def frame_of_reference_uid(self) -> str | None:
        """Frame of Reference UID, where there is one."""
        return str(self.datasets[0].get("FrameOfReferenceUID") or "") or None

    @property
    def sop_instance_uids(self) -> tuple[str, ...]:
        """SOP Instance UIDs of the sources, in slice order."""
        return tuple(str(ds.SOPInstanceUID) for ds in self.datasets)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z), without colors."""
        x, y, z = self.array.shape[:3]
        return x, y, z

    @property
    def frames_shape(self) -> tuple[int, int, int]:
        """(columns, rows, Z) of the source's own frames."""
        return self.shape if self.stack is None else self.stack.shape

    @property
    def frames_affine(self) -> np.ndarray:
        """(4, 4), voxel index of the source's own frames to RAS mm; sheared where they shift sideways."""
        return self.affine if self.stack is None else self.stack.affine

    def to_frames(self, volume: np.ndarray) -> np.ndarray:
        """A volume of this grid, on the source's own frames; what lies beside them is left out."""
        return volume if self.stack is None else self.stack.take(volume)

    def from_frames(self, volume: np.ndarray) -> np.ndarray:
        """A volume of the source's own frames, on this grid; 0 beside them."""
        return volume if self.stack is None else self.stack.lay(volume)


def read_series(source: Path | Sequence[Path]) -> Series:
    """Read the one image series that a folder or a list of files holds.

    The order of files does not matter, subfolders are searched, files that
    are not DICOM and objects that are no images (reports, SEG, DICOMDIR) are passed over,
    and an instance that is there twice counts once. Of its images the largest consistent stack counts
    (`stacks`); what lies beside it is left out and named.

    Args:
        source: a folder, a file, or files.

    Raises:
        SeriesError: no image series or several, one that is refused (`find_refusal`), unevenly spaced or
            unreadable; the message says which.
    """
    with reading("the series"):
        instances = _read_images(_list_files(source))
        _check_one_series(instances)
        chosen = choose_stack(instances)
        try:
            return _build(chosen)
        except GapError as error:
            if not chosen.left_out:
                raise
            raise SeriesError(
                f"{error.what}, since these do not fit the others: {'; '.join(chosen.left_out)}; correct them, or "
                "export the series anew"
            ) from error
        except SeriesError as error:
            if not chosen.left_out:
                raise
            raise SeriesError(f"{error}; left out before that: {'; '.join(chosen.left_out)}") from error


def _list_files(source: Path | Sequence[Path]) -> list[Path]:
    paths = [source] if isinstance(source, Path) else list(source)
    missing = sum(not path.exists() for path in paths)
    if missing:
        raise SeriesError(f"expected DICOM files or a folder of them, but {missing} of {len(paths)} do not exist")
    nested = [sorted(path.rglob("*")) if path.is_dir() else [path] for path in paths]
    return [path for found in nested for path in found if path.is_file()]


def _read_images(paths: Sequence[Path]) -> list[Dataset]:
    """Every image, each SOP instance once."""
    if sum(path.stat().st_size for path in paths) > MAX_SERIES_BYTES:
        raise SeriesError(
            f"expected at most {MAX_SERIES_BYTES >> 30} GiB of files, given more; give one series at a time"
        )
    found: dict[str, Dataset] = {}
    others: Counter[str] = Counter()
    for number, path in enumerate(paths, start=1):
        with reading(f"file {number} of {len(paths)}"):
            ds = read_dataset(path)
            if ds is None or is_other_object(ds):
                others["no DICOM" if ds is None else find_refusal(ds) or ""] += 1
                continue
            for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
                if not is_uid(ds.get(keyword)):
                    raise SeriesError(f"file {number} of {len(paths)} has no valid {keyword}: {AT_SOURCE}")
            uid = str(ds.SOPInstanceUID)
            if uid in found and found[uid] != ds:
                raise SeriesError(f"instance {uid} is there twice, with different content; keep the right one")
            found.setdefault(uid, ds)
    if not found:
        seen = "; ".join(f"{count} x {what}" for what, count in others.most_common(3))
        raise SeriesError(f"expected a DICOM image series, given none in {len(paths)} files ({seen or 'empty'})")
    return list(found.values())


def _check_one_series(instances: Sequence[Dataset]) -> None:
    series: dict[str, list[Dataset]] = {}
    for ds in instances:
        series.setdefault(str(ds.SeriesInstanceUID), []).append(ds)
    if len(series) > 1:
        seen = [
            f"{uid} ({show_code(group[0].get('Modality'))}, {len(group)} instances)" for uid, group in series.items()
        ]
        raise SeriesError(f"expected one image series, given {len(series)}: {', '.join(seen[:8])}; give one at a time")
    for keyword, whose in _ONE_OF.items():
        said = {str(ds.get(keyword) or "").strip() for ds in instances} - {""}
        if len(said) > 1:
            raise SeriesError(f"expected a series of one {whose}, given {len(said)} of {keyword} in it: {AT_SOURCE}")


def _build(chosen: Chosen) -> Series:
    instances, left_out = chosen.instances, chosen.left_out
    first = instances[0]
    is_picture = first.SOPClassUID in PICTURES
    multi_frame = first.SOPClassUID in VOLUMES or any(count_frames(ds) > 1 for ds in instances)
    if len(instances) > 1 and (is_picture or multi_frame):
        what = "picture" if is_picture else "multi-frame instance"
        raise SeriesError(f"expected one {what}, given {len(instances)} in one series; give one at a time")
    if is_picture and multi_frame:
        raise SeriesError(f"expected one picture, given {count_frames(first)} frames; send them one by one")
    slices = [Slice(ds, frame) for ds in instances for frame in range(count_frames(ds))]
    affine, stack = np.eye(4), None
    if not is_picture:
        planes = [find_plane(*piece) for piece in slices]
        order, doubles = order_stack(slices, planes)
        left_out += doubles
        slices = [slices[index] for index in order]
        affine = build_affine([planes[index] for index in order], thickness=find_thickness(*slices[0]))
    array, padding = decode_volume(slices)
    if not is_picture:
        stack = straighten(array.shape[:3], affine)
        affine = stack.straight_affine
        array, padding = _lay(stack, array, padding)
    return Series(
        datasets=(first,) if multi_frame else tuple(piece.ds for piece in slices),
        array=array,
        affine=affine,
        has_geometry=not is_picture,
        frame_numbers=tuple(piece.frame + 1 for piece in slices) if multi_frame else (),
        stack=stack,
        padding=padding,
        left_out=left_out,
    )


def _lay(stack: Stack, array: np.ndarray, padding: float | None) -> tuple[np.ndarray, float | None]:
    """Slices on the straight grid, where all beside them is padding; and its value."""
    check_volume(stack.straight_shape, array.size // math.prod(stack.shape), array.itemsize)
    if stack.straight_shape != stack.shape and padding is None and array.ndim == 3:
        padding, dtype = choose_value(float(array.min()), float(array.max()), array.dtype)
        array = array.astype(dtype, copy=False)
    return stack.lay(array, fill=0 if padding is None else padding), padding


def write_nifti(series: Series, path: Path) -> None:
    """Write a series as NIfTI, whole or not at all; no patient identifiers are in it.

    Raises:
        ConfigError: the path does not end in `.nii` or `.nii.gz`.
    """
    suffix = find_suffix(path.name)
    if suffix not in (".nii", ".nii.gz"):
        raise ConfigError(f"expected a path ending in .nii or .nii.gz, given {path.name}")
    image = nib.Nifti1Image(series.array, series.affine)
    image.header.set_xyzt_units("mm", "sec")
    notes = FileNotes(series.padding, series.left_out, shifts=series.shape != series.frames_shape)
    image.header.extensions.extend(notes.to_extensions())
    with replacing(path) as temporary:
        named = temporary.with_name(temporary.name + suffix)  # nibabel looks at the whole suffix
        try:
            nib.save(image, named)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)
