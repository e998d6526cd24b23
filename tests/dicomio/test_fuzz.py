"""Damaged files at the readers: an image, or a SeriesError; never another exception, a hang, or gigabytes."""

from __future__ import annotations

import io
import re
import resource
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, uid

from dicomio import phantoms
from dicomio.mutations import mutate
from dicomio.test_other_segmentations import build_foreign, frames_of
from dicomio.test_pixels import LOSSLESS, compress_with_pillow
from dicomio.test_rtstruct import SQUARE, build_structure_set
from iopfl.base.errors import SeriesError
from iopfl.core.task import read_task
from iopfl.dicomio.files import read_dataset, reading
from iopfl.dicomio.refusals import find_refusal
from iopfl.dicomio.segmentation import Origin, build_segmentation, read_segmentation, referenced_series, segments_of
from iopfl.dicomio.series import Series, read_series

MOST_MEMORY = 300 << 20
"""Bytes by which the process may grow over all files together."""

PATIENT = re.compile("ller|J.rg|P-1|19600203")
"""What the phantoms' patient would look like in a message."""

LABELS = read_task("hippocampus").labels


def to_bytes(ds: Dataset, **how: bool) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, **how)
    return buffer.getvalue()


def whole_images(folder: Path) -> dict[str, bytes]:
    """Whole files of every kind that is decoded in this process."""
    voxels = phantoms.volume((24, 20, 3), low=0, high=250)
    slices = phantoms.build_slices(voxels)
    bare = phantoms.build_slices(voxels)[1]
    del bare.file_meta
    ct = phantoms.build_slices(voxels, sop_class=uid.CTImageStorage, modality="CT")[0]
    ct.RescaleSlope, ct.RescaleIntercept = 1, -1024
    found = {
        "slice": to_bytes(slices[0]),
        "no meta": to_bytes(bare, implicit_vr=True, little_endian=True),
        "CT": to_bytes(ct),
        "enhanced": to_bytes(phantoms.build_enhanced(slices)),
        "photograph": to_bytes(phantoms.build_photograph(phantoms.volume((20, 24, 3), low=0).astype(np.uint8))),
    }
    for name, syntax in (("RLE", uid.RLELossless), ("JPEG 2000", uid.JPEG2000Lossless)):
        LOSSLESS[syntax](phantoms.build_enhanced(phantoms.build_slices(voxels)), folder / "compressed")
        found[name] = (folder / "compressed").read_bytes()
    gray = phantoms.build_slices(voxels.astype(np.uint8))[0]
    compress_with_pillow(uid.JPEGBaseline8Bit)(gray, folder / "compressed")
    found["JPEG"] = (folder / "compressed").read_bytes()
    return found


def whole_segmentations(series: Series, slices: list[Dataset]) -> dict[str, bytes]:
    mask = phantoms.mask_in(series.shape)
    names = ["anterior", "posterior"]
    shares = np.stack([frames_of(mask == 1), frames_of(mask == 2)], axis=-1).astype(float)
    fractional = build_foreign(slices, shares, names, "FRACTIONAL")
    fractional.compress(uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    return {
        "ours": to_bytes(build_segmentation(mask, series, segments_of(read_task("hippocampus")), Origin("a", "1"))),
        "label map": to_bytes(build_foreign(slices, frames_of(mask), names, "LABELMAP")),
        "fractional": to_bytes(fractional),
        "structure set": to_bytes(build_structure_set(series, {"anterior": [(2, SQUARE)], "posterior": [(3, SQUARE)]})),
    }


def check_images(folder: Path, whole: dict[str, bytes], count: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    path = folder / "damaged"
    for seed in range(count):
        kind = list(whole)[seed % len(whole)]
        path.write_bytes(mutate(whole[kind], seed))
        try:
            series = read_series(path)
            assert series.array.size and np.isfinite(series.affine).all()
            outcomes["read"] += 1
        except SeriesError as error:
            assert not PATIENT.search(str(error)), error
            outcomes["refused"] += 1
    return outcomes


def check_segmentations(series: Series, whole: dict[str, bytes], count: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for seed in range(count):
        data = mutate(whole[list(whole)[seed % len(whole)]], seed)
        try:
            with reading("the file"):  # as whoever receives it does
                ds = read_dataset(data) or Dataset()
            find_refusal(ds)
            referenced_series(ds)
            mask = read_segmentation(ds, series, LABELS if seed % 2 else None).mask
            assert mask.shape == series.shape and mask.dtype == np.uint8
            outcomes["read"] += 1
        except SeriesError as error:
            assert not PATIENT.search(str(error)), error
            outcomes["refused"] += 1
    return outcomes


def peak_memory() -> int:
    """Of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


COUNTS = [1000, pytest.param(8000, marks=pytest.mark.long)]


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_images_are_read_or_refused(tmp_path, caplog, count):
    whole = whole_images(tmp_path)
    check_images(tmp_path, whole, len(whole))
    before = peak_memory()
    outcomes = check_images(tmp_path, whole, count)
    assert outcomes.total() == count
    assert min(outcomes["read"], outcomes["refused"]) > count / 20
    assert peak_memory() - before < MOST_MEMORY
    assert not PATIENT.search(caplog.text)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_segmentations_are_read_or_refused(tmp_path, caplog, count):
    slices = phantoms.build_slices(phantoms.volume())
    series = read_series(phantoms.write(slices, tmp_path))
    whole = whole_segmentations(series, slices)
    check_segmentations(series, whole, len(whole))
    before = peak_memory()
    outcomes = check_segmentations(series, whole, count)
    assert outcomes.total() == count
    assert min(outcomes["read"], outcomes["refused"]) > count / 20
    assert peak_memory() - before < MOST_MEMORY
    assert not PATIENT.search(caplog.text)


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.long)])
def test_a_codec_that_crashes_on_damage_takes_nothing_with_it(tmp_path, count):
    """JPEG lossless and JPEG-LS: a damaged frame aborts their decoder or never ends; each costs a process."""
    outcomes: Counter[str] = Counter()
    for syntax in (uid.JPEGLosslessSV1, uid.JPEGLSLossless):
        ds = phantoms.build_slices(phantoms.volume((40, 32, 1), low=0))[0]
        LOSSLESS[syntax](ds, tmp_path / "compressed")
        outcomes += check_images(tmp_path, {"compressed": (tmp_path / "compressed").read_bytes()}, count)
    assert outcomes.total() == 2 * count
