"""Synthetic DICOM: series of any geometry, enhanced multi-frame, photographs; nobody's, hence free to keep."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

OBLIQUE = ((0.8, 0.6, 0.0), (-0.36, 0.48, -0.8))
"""Directions of a row and a column, LPS, none along an axis of the patient."""

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def series_uid(seed: str) -> str:
    """The same UID for the same seed."""
    return str(generate_uid(entropy_srcs=["phantom", seed]))


def volume(shape: Sequence[int] = (13, 11, 6), *, low: int = -300, high: int = 2000, seed: int = 0) -> np.ndarray:
    """Random intensities, (X, Y, Z) int16; no axis has a multiple of 8 voxels."""
    return np.random.default_rng(seed).integers(low, high, size=shape, dtype=np.int16)


def mask_in(shape: Sequence[int]) -> np.ndarray:
    """Two labels in the middle slices of a grid, the first and last slice empty: (X, Y, Z) uint8, asymmetric."""
    mask = np.zeros(shape, np.uint8)
    mask[2:6, 3:8, 1:4] = 1
    mask[5:11, 6:10, 2:5] = 2
    return mask


def _instance(sop_class: str, modality: str, series: str, number: int) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = series_uid(f"{series} instance {number}")
    ds.StudyInstanceUID, ds.SeriesInstanceUID = series_uid(f"{series} study"), series_uid(series)
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200102", "101112", "S1", "A1"
    ds.Modality, ds.Manufacturer, ds.StudyDescription = modality, "phantom", "Phantom study"
    ds.SeriesNumber, ds.InstanceNumber, ds.SeriesDescription = 3, number + 1, "phantom"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Müller^Jörg", "P-1", "19600203", "O"
    ds.ReferringPhysicianName = ""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def _set_pixels(ds: Dataset, pixels: np.ndarray) -> None:
    """Pixels (rows, columns), (N, rows, columns) or (rows, columns, 3), native little endian."""
    color = pixels.ndim == 3 and pixels.shape[-1] == 3 and pixels.dtype == np.uint8
    ds.SamplesPerPixel = 3 if color else 1
    ds.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = pixels.shape[:2] if color or pixels.ndim == 2 else pixels.shape[1:]
    if not color and pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)


def build_slices(
    voxels: np.ndarray,
    *,
    spacing: Sequence[float] = (0.7, 0.9, 3.0),
    directions: Sequence[Sequence[float]] = AXIAL,
    origin: Sequence[float] = (-10.5, 20.25, 30.0),
    shift: Sequence[float] = (0.0, 0.0, 0.0),
    sop_class: str = uid.MRImageStorage,
    modality: str = "MR",
    series: str = "a series",
) -> list[Dataset]:
    """Single-frame slices of a volume, in order.

    Args:
        voxels: (X, Y, Z).
        spacing: in mm along x, y, z.
        directions: the directions of a row and a column, LPS.
        origin: the origin of voxel (0, 0, 0), LPS.
        shift: added from slice to slice, LPS in mm: a gantry tilt.
        sop_class: the SOP class of the instances.
        modality: the modality of the instances.
        series: seed of its UIDs.
    """
    normal = np.cross(*directions)
    datasets = []
    for z in range(voxels.shape[2]):
        ds = _instance(sop_class, modality, series, z)
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = series_uid(f"{series} frame of reference"), ""
        position = np.array(origin) + z * (spacing[2] * normal + np.array(shift))
        ds.ImagePositionPatient = [f"{value:.6f}" for value in position]
        ds.ImageOrientationPatient = [value for direction in directions for value in direction]
        ds.PixelSpacing = [spacing[1], spacing[0]]
        ds.SliceThickness = 1.0  # thinner than the distance: there are gaps between the slices
        _set_pixels(ds, np.ascontiguousarray(voxels[..., z].T))
        datasets.append(ds)
    return datasets


def affine_of(
    spacing: Sequence[float] = (0.7, 0.9, 3.0),
    directions: Sequence[Sequence[float]] = AXIAL,
    origin: Sequence[float] = (-10.5, 20.25, 30.0),
    shift: Sequence[float] = (0.0, 0.0, 0.0),
) -> np.ndarray:
    """The affine that `build_slices` gives, RAS, by the definition in PS3.3 C.7.6.2.1.1."""
    affine = np.eye(4)
    columns = [*directions, np.cross(*directions)]
    affine[:3, :3] = np.array(columns, dtype=float).T * np.array(spacing)
    affine[:3, 2] += shift
    affine[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def build_enhanced(slices: Sequence[Dataset], *, shared_orientation: bool = True) -> Dataset:
    """One Enhanced MR instance of single-frame slices, its frames in the order given."""
    first = slices[0]
    ds = deepcopy(first)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid.EnhancedMRImageStorage
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del ds[keyword]
    dtype = np.int16 if first.PixelRepresentation else np.uint16
    frames = [np.frombuffer(piece.PixelData, dtype).reshape(piece.Rows, piece.Columns) for piece in slices]
    _set_pixels(ds, np.stack(frames))
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    shared.PixelMeasuresSequence = [measures]
    if shared_orientation:
        shared.PlaneOrientationSequence = [orientation]
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = []
    for piece in slices:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = piece.ImagePositionPatient
        frame.PlanePositionSequence = [position]
        if not shared_orientation:
            frame.PlaneOrientationSequence = [deepcopy(orientation)]
        ds.PerFrameFunctionalGroupsSequence.append(frame)
    return ds


def build_photograph(pixels: np.ndarray, *, series: str = "a photograph") -> Dataset:
    """An ophthalmic photograph, (rows, columns, 3) or (rows, columns) uint8."""
    ds = _instance(uid.OphthalmicPhotography8BitImageStorage, "OP", series, 0)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "", "COLOR"]
    _set_pixels(ds, pixels)
    return ds


def write(datasets: Sequence[Dataset], folder: Path, *, nested: bool = False) -> Path:
    """Write instances in an order of names that says nothing; nested in subfolders by turns."""
    order = np.random.default_rng(7).permutation(len(datasets))
    for number, ds in zip(order, datasets, strict=True):
        place = folder / f"part{number % 2}" if nested else folder
        place.mkdir(parents=True, exist_ok=True)
        ds.save_as(place / f"IM{number:04d}", enforce_file_format=True)
    return folder


def need_program(name: str) -> str:
    """Path of a Debian program, or the test is skipped."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed: apt-get install dcmtk dicom3tools")
    return found


def validate(path: Path, kind: str = "Segmentation") -> list[str]:
    """Errors that dciodvfy reports of an instance of a kind that it knows."""
    program = need_program("dciodvfy")
    result = subprocess.run([program, path], capture_output=True, text=True, timeout=60, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    assert any(kind in line for line in lines), lines
    return [line for line in lines if line.startswith("Error")]
