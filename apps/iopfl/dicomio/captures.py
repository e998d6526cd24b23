"""Pictures of a mask, for viewers that show no SEG: its outlines and some words burned into copies of the slices.

Source: Secondary Capture Image Storage (PS3.3 A.8.1). A small slice is enlarged until the
words below it can be read, and its pixel spacing is divided by as much.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import chain

import numpy as np
from highdicom.sc import SCImage
from nibabel.orientations import aff2axcodes
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from iopfl.base.errors import SeriesError
from iopfl.dicomio.derived import NOT_FOR_CLINICAL_USE, Origin, equipment, finish, outline_sources
from iopfl.dicomio.segmentation import Segment
from iopfl.dicomio.series import Series
from iopfl.dicomio.structures import outline

SERIES_NUMBER = 9002

_NARROWEST = 512  # pixels of a picture: below that the words cannot be read
_WINDOW = (1.0, 99.5)  # percentiles of a volume that become black and white
_FONT_SIZE = 12
_FONT = ImageFont.load_default(_FONT_SIZE)


def build_captures(
    mask: np.ndarray,
    series: Series,
    segments: Sequence[Segment],
    origin: Origin,
    *,
    quality: float | None = None,
) -> list[Dataset]:
    """Draw each slice that holds a label; of an empty mask the middle slice, which then says so.

    Args:
        mask: (X, Y, Z) label values on the series' grid.
        series: what was segmented.
        segments: all labels of the mask.
        origin: who or what made the mask.
        quality: agreement of the experts with the mask, 0 to 1; None where nobody asked for it.

    Returns:
        Instances of Secondary Capture Image Storage in a series of their own, uncompressed Explicit VR Little Endian.

    Raises:
        SeriesError: the mask is on another grid.
    """
    if mask.shape != series.shape:
        raise SeriesError(f"expected a mask on the series' grid {series.shape}, given {mask.shape}")
    mask, array = series.to_frames(mask), series.to_frames(series.array)
    shown = np.flatnonzero(mask.any(axis=(0, 1)))
    shown = shown if shown.size else np.array([series.shape[2] // 2])
    words = _say(origin, quality, segments, bool(mask.any()))
    black, white = _find_window(series)
    source, series_uid = outline_sources(series)[0], generate_uid()
    captures: list[Dataset] = []
    for number, z in enumerate(shown.tolist(), start=1):
        plane = array[:, :, z].astype(np.float32).swapaxes(0, 1)  # (Y, X) or (Y, X, 3)
        gray = (np.clip((plane - black) / max(white - black, 1e-6), 0, 1) * 255).round().astype(np.uint8)
        picture, scale = draw(gray, mask[:, :, z], segments, [*words, f"slice {z + 1} of {series.shape[2]}"])
        ds = SCImage.from_ref_dataset(
            source,
            np.asarray(picture),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "P"),
            series_instance_uid=series_uid,
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=number,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set="ISO_IR 192",
            **{key: value for key, value in equipment().items() if key != "device_serial_number"},
        )
        ds.ContentDate, ds.ContentTime = ds.DateOfSecondaryCapture, ds.TimeOfSecondaryCapture
        finish(ds, series, origin)
        ds.ConversionType, ds.BurnedInAnnotation = "WSD", "YES"
        ds.PatientOrientation = _orient(series)
        ds.Laterality = series.datasets[0].get("Laterality") or ""
        ds.DerivationDescription = ", ".join(words)[:1024]
        if series.has_geometry:
            spacing = np.linalg.norm(series.affine[:3, :2], axis=0) / scale
            ds.PixelSpacing = [format_number_as_ds(float(spacing[axis])) for axis in (1, 0)]
            ds.NominalScannedPixelSpacing = ds.PixelSpacing
        captures.append(ds)
    return captures


def draw(
    plane: np.ndarray, mask: np.ndarray, segments: Sequence[Segment], words: Sequence[str]
) -> tuple[Image.Image, int]:
    """A slice with outlines in the labels' colors, above a footer of words.

    Args:
        plane: (Y, X) or (Y, X, 3) uint8.
        mask: (X, Y) label values.
        segments: which values are drawn, and how.
        words: lines below the labels' names, broken where they are too long.

    Returns:
        The picture, and how many times it was enlarged.
    """
    scale = max(1, math.ceil(_NARROWEST / plane.shape[1]))
    picture = Image.fromarray(plane).convert("RGB")
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for segment in segments:
        for points in chain.from_iterable(outline(mask == segment.value)):
            corners = [tuple(point) for point in (points + 0.5) * scale]
            pen.line([*corners, corners[0]], fill=segment.color, width=max(1, scale))
    words = [part for text in words for part in textwrap.wrap(text, int(picture.width / _FONT.getlength("n")))]
    line = _FONT_SIZE + 4
    whole = Image.new("RGB", (picture.width, picture.height + round(line * (len(words) + 1)) + 8))
    whole.paste(picture)
    pen = ImageDraw.Draw(whole)
    left, top = 6.0, picture.height + 4.0
    for segment in segments:
        pen.text((left, top), segment.name, fill=segment.color, font=_FONT)
        left += _FONT.getlength(segment.name) + 16
    for number, text in enumerate(words, start=1):
        pen.text((6, top + number * line), text, fill="white", font=_FONT)
    return whole, scale


def _say(origin: Origin, quality: float | None, segments: Sequence[Segment], is_drawn: bool) -> list[str]:
    made = ", ".join(filter(None, [origin.algorithm, origin.version])) or "drawn by a person"
    if origin.algorithm and origin.annotator:
        made += ", corrected by a person"
    said = [made, NOT_FOR_CLINICAL_USE.upper()]
    if quality is not None:
        said.insert(1, f"quality score (agreement of the experts, 0 to 1): {quality:.2f}")
    if not is_drawn:
        said.insert(0, f"nothing found of {', '.join(segment.name for segment in segments)}")
    return said


def _find_window(series: Series) -> tuple[float, float]:
    """What becomes black and white, the same in all slices."""
    if series.array.ndim == 4:
        return 0.0, 255.0
    black, white = np.percentile(series.array[..., :: max(1, series.shape[2] // 32)], _WINDOW)
    return float(black), float(white)


def _orient(series: Series) -> list[str]:
    """Patient Orientation: where rows and columns lead; not known of a photograph."""
    if not series.has_geometry:
        return list(series.datasets[0].get("PatientOrientation") or [])
    return list(aff2axcodes(series.affine, labels=(("L", "R"), ("P", "A"), ("F", "H")))[:2])
