"""Reading an image series from DICOM files: one volume, one affine, or a clear reason why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom import Dataset

from iopfl.core.errors import ConfigError, SeriesError
from iopfl.core.sites import find_suffix
from iopfl.core.weights import replacing
from iopfl.dicomio.decoding import Decoder
from iopfl.dicomio.files import read_dataset, reading
from iopfl.dicomio.frames import count_frames, find_plane, find_thickness
from iopfl.dicomio.geometry import build_affine, order_slices
from iopfl.dicomio.pixels import (
    MAX_SERIES_BYTES,
    decode_frames,
    decoded_dtype,
    is_color,
)
from iopfl.dicomio.refusals import PICTURES, VOLUMES, check_instance, find_refusal, is_other_object
from iopfl.dicomio.showing import is_uid, show_code

__all__ = ["Series", "check_instance", "find_refusal", "read_series", "write_nifti"]

_SAME = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "FrameOfReferenceUID")


@dataclass(frozen=True, eq=False)
class Series:
    """An image series as one volume.

    Attributes:
        datasets: the source instances without pixel data: one a slice, in slice order; or one enhanced multi-frame.
        array: (X, Y, Z), stored integers or float32 after the modality's rescale, high values bright; or
            (X, Y, Z, 3) uint8 RGB.
        affine: (4, 4) float64, voxel index (x, y, z) to RAS mm; identity where there is no geometry.
        has_geometry: whether the slices have a place in the patient; a photograph has none.
        frame_numbers: for a multi-frame source, the frame (from 1) of each slice; otherwise empty.
    """

    datasets: tuple[Dataset, ...]
    array: np.ndarray
    affine: np.ndarray
    has_geometry: bool = True
    frame_numbers: tuple[int, ...] = ()

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


@dataclass(frozen=True)
class _Slice:
    """One slice to decode: which file, which frame, which source."""

    path: Path
    ds: Dataset
    frame: int = 0


def read_series(source: Path | Sequence[Path]) -> Series:
    """Read the one image series that a folder or a list of files holds.

    The order of files does not matter, subfolders are searched, files that
    are not DICOM and objects that are no images (reports, SEG, DICOMDIR) are passed over,
    and an instance that is there twice counts once.

    Args:
        source: a folder, a file, or files.

    Raises:
        SeriesError: no image series or several, one that is refused (`find_refusal`), unevenly spaced or
            unreadable; the message says which.
    """
    with reading("the series"):
        files = _read_headers(_list_files(source))
        _check_one_series(files)
        return _build(files)


def _list_files(source: Path | Sequence[Path]) -> list[Path]:
    paths = [source] if isinstance(source, Path) else list(source)
    missing = sum(not path.exists() for path in paths)
    if missing:
        raise SeriesError(f"expected DICOM files or a folder of them, but {missing} of {len(paths)} do not exist")
    nested = [sorted(path.rglob("*")) if path.is_dir() else [path] for path in paths]
    return [path for found in nested for path in found if path.is_file()]


def _read_headers(paths: Sequence[Path]) -> list[tuple[Path, Dataset]]:
    """Every image's header, each SOP instance once."""
    found: dict[str, tuple[Path, Dataset]] = {}
    others: Counter[str] = Counter()
    for number, path in enumerate(paths, start=1):
        with reading(f"file {number} of {len(paths)}"):
            ds = read_dataset(path, pixels=False)
            if ds is None or is_other_object(ds):
                others["no DICOM" if ds is None else find_refusal(ds) or ""] += 1
                continue
            for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
                if not is_uid(ds.get(keyword)):
                    raise SeriesError(f"file {number} of {len(paths)} has no valid {keyword}; export it again")
            uid = str(ds.SOPInstanceUID)
            if uid in found and found[uid][1] != ds:
                raise SeriesError(f"instance {uid} is there twice, with different content; keep the right one")
            found.setdefault(uid, (path, ds))
    if not found:
        seen = "; ".join(f"{count} x {what}" for what, count in others.most_common(3))
        raise SeriesError(f"expected a DICOM image series, came none in {len(paths)} files ({seen or 'empty'})")
    return list(found.values())


def _check_one_series(files: Sequence[tuple[Path, Dataset]]) -> None:
    series: dict[str, list[Dataset]] = {}
    for _, ds in files:
        series.setdefault(str(ds.SeriesInstanceUID), []).append(ds)
    if len(series) > 1:
        seen = [
            f"{uid} ({show_code(group[0].get('Modality'))}, {len(group)} instances)" for uid, group in series.items()
        ]
        raise SeriesError(f"expected one image series, came {len(series)}: {', '.join(seen[:8])}; give one at a time")
    group = [ds for _, ds in files]
    reasons = Counter(reason for ds in group if (reason := find_refusal(ds)))
    if reasons:
        reason, count = reasons.most_common(1)[0]
        which = "" if count == len(group) else f", {count} of {len(group)} instances"
        raise SeriesError(f"series {group[0].SeriesInstanceUID} is not segmented{which}: {reason}")
    for keyword in _SAME:
        values = {str(ds.get(keyword, "")) for ds in group}
        if len(values) > 1:
            raise SeriesError(f"expected one {keyword} in a series, came {len(values)}; send one stack a series")


def _build(files: Sequence[tuple[Path, Dataset]]) -> Series:
    first = files[0][1]
    if first.SOPClassUID in PICTURES:
        if len(files) > 1 or count_frames(first) > 1:
            raise SeriesError(
                f"expected one picture, came {max(len(files), count_frames(first))} in one series; give one at a time"
            )
        slices, affine = [_Slice(files[0][0], first)], np.eye(4)
    else:
        slices, affine = _build_stack(files)
    multi_frame = count_frames(first) > 1 or first.SOPClassUID in VOLUMES
    sources = (first,) if multi_frame else tuple(piece.ds for piece in slices)
    return Series(
        datasets=sources,
        array=_decode(slices),
        affine=affine,
        has_geometry=first.SOPClassUID not in PICTURES,
        frame_numbers=tuple(piece.frame + 1 for piece in slices) if multi_frame else (),
    )


def _build_stack(files: Sequence[tuple[Path, Dataset]]) -> tuple[list[_Slice], np.ndarray]:
    if len(files) > 1 and any(count_frames(ds) > 1 for _, ds in files):
        raise SeriesError(f"expected one multi-frame instance, came {len(files)} in one series; give one at a time")
    slices = [_Slice(path, ds, frame) for path, ds in files for frame in range(count_frames(ds))]
    planes = [find_plane(piece.ds, piece.frame) for piece in slices]
    order = order_slices(planes)
    slices, planes = [slices[index] for index in order], [planes[index] for index in order]
    return slices, build_affine(planes, thickness=find_thickness(slices[0].ds, slices[0].frame))


def _decode(slices: Sequence[_Slice]) -> np.ndarray:
    """Every slice's pixels, (X, Y, Z) or (X, Y, Z, 3)."""
    first = slices[0].ds
    dtypes = {decoded_dtype(ds) for ds in {id(piece.ds): piece.ds for piece in slices}.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    shape = (len(slices), int(first.Rows), int(first.Columns), *([3] if is_color(first) else []))
    if np.prod(shape, dtype=np.float64) * dtype.itemsize > MAX_SERIES_BYTES:
        raise SeriesError(f"expected at most {MAX_SERIES_BYTES >> 30} GiB of voxels, came {shape}; send a part of it")
    wanted: dict[Path, dict[int, int]] = {}
    for z, piece in enumerate(slices):
        wanted.setdefault(piece.path, {})[piece.frame] = z
    volume = np.empty(0, dtype)
    with Decoder() as decoder:
        for path, places in wanted.items():
            ds = read_dataset(path)
            if ds is None:
                raise SeriesError("expected the files to stay as they are while they are read; try again")
            for frame, pixels in enumerate(decode_frames(ds, decoder)):
                if pixels.shape != shape[1:]:
                    raise SeriesError(f"expected frames of {shape[1:]} pixels, came {pixels.shape}; send it again")
                if not volume.size:  # only now is it sure that such images are there
                    volume = np.empty(shape, dtype)
                volume[places.pop(frame)] = pixels
            if places:
                raise SeriesError(f"expected {len(places)} more frames in an instance, which has fewer; send it again")
    return volume.swapaxes(0, 2)  # (X, Y, Z[, 3]), in the order of memory that NIfTI has


def write_nifti(series: Series, path: Path) -> None:
    """Write a series as NIfTI, whole or not at all; no patient identifiers are in it.

    Raises:
        ConfigError: the path does not end in `.nii` or `.nii.gz`.
    """
    suffix = find_suffix(path.name)
    if suffix not in (".nii", ".nii.gz"):
        raise ConfigError(f"expected a path ending in .nii or .nii.gz, came {path.name}")
    image = nib.Nifti1Image(series.array, series.affine)
    image.header.set_xyzt_units("mm", "sec")
    with replacing(path) as temporary:
        named = temporary.with_name(temporary.name + suffix)  # nibabel looks at the whole suffix
        try:
            nib.save(image, named)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)
