"""Decoding: every compressed transfer syntax gives the voxels that went in, colors become RGB, bombs are refused."""

from __future__ import annotations

import io
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import encapsulate, generate_frames

from dicomio import phantoms
from iopfl.base.errors import SeriesError
from iopfl.core.task import read_task
from iopfl.core.transforms import read_image
from iopfl.dicomio import decoding
from iopfl.dicomio.segmentation import Origin, Segment, build_segmentation, read_segmentation
from iopfl.dicomio.series import read_series, write_nifti


def compress_with_dcmtk(program: str, *options: str):
    def compress(ds: Dataset, path: Path) -> None:
        ds.save_as(path, enforce_file_format=True)
        subprocess.run([phantoms.need_program(program), *options, path, path], check=True, timeout=60)

    return compress


def compress_with_pydicom(syntax: str):
    def compress(ds: Dataset, path: Path) -> None:
        plugin = "pydicom" if syntax == uid.RLELossless else ""  # gdcm aborts on odd sizes
        ds.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
        ds.save_as(path, enforce_file_format=True)

    return compress


def compress_with_pillow(syntax: str):
    """JPEG or JPEG 2000, which pydicom cannot write; GDCM could, but aborts the process now and then."""

    def compress(ds: Dataset, path: Path) -> None:
        frames = np.frombuffer(ds.PixelData, f"u{ds.BitsAllocated // 8}")
        frames = frames[: frames.size // (ds.Rows * ds.Columns) * ds.Rows * ds.Columns]
        frames = frames.reshape(-1, ds.Rows, ds.Columns, *([3] if ds.SamplesPerPixel == 3 else []))
        jpeg = {"format": "JPEG", "quality": 98}
        jpeg_2000 = {"format": "JPEG2000", "irreversible": syntax == uid.JPEG2000, "no_jp2": True}
        encoded = []
        for frame in frames:
            stream = io.BytesIO()
            Image.fromarray(frame).save(stream, **(jpeg if syntax == uid.JPEGBaseline8Bit else jpeg_2000))
            encoded.append(stream.getvalue())
        ds.PixelData = encapsulate(encoded)
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = syntax
        if ds.SamplesPerPixel == 3:
            ds.PhotometricInterpretation = "YBR_RCT"
        ds.save_as(path, enforce_file_format=True)

    return compress


LOSSLESS = {
    uid.RLELossless: compress_with_pydicom(uid.RLELossless),
    uid.JPEGLSLossless: compress_with_pydicom(uid.JPEGLSLossless),
    uid.JPEGLosslessSV1: compress_with_dcmtk("dcmcjpeg", "+e1"),
    uid.JPEGLossless: compress_with_dcmtk("dcmcjpeg", "+el"),
    uid.JPEG2000Lossless: compress_with_pillow(uid.JPEG2000Lossless),
}


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_lossless_compression_keeps_every_voxel(tmp_path, syntax, dtype):
    voxels = phantoms.volume(low=0 if dtype == np.uint8 else -300, high=250).astype(dtype)
    for number, ds in enumerate(phantoms.build_slices(voxels)):
        LOSSLESS[syntax](ds, tmp_path / f"{number}.dcm")
    assert dcmread(tmp_path / "0.dcm").file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(read_series(tmp_path).array, voxels)


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless], ids=lambda syntax: syntax.name)
def test_a_compressed_multi_frame_instance_is_read(tmp_path, syntax):
    voxels = phantoms.volume()
    LOSSLESS[syntax](phantoms.build_enhanced(phantoms.build_slices(voxels)), tmp_path / "enhanced.dcm")
    assert np.array_equal(read_series(tmp_path).array, voxels)


@pytest.mark.parametrize(
    "compress",
    [compress_with_pillow(uid.JPEGBaseline8Bit), compress_with_pillow(uid.JPEG2000)],
    ids=["baseline", "JPEG 2000"],
)
def test_lossy_compression_comes_close(tmp_path, compress):
    x, y, z = np.mgrid[:32, :24, :3]
    voxels = (128 + 80 * np.sin(x / 6) * np.cos(y / 5) + z).astype(np.uint8)
    for number, ds in enumerate(phantoms.build_slices(voxels)):
        compress(ds, tmp_path / f"{number}.dcm")
    assert np.abs(read_series(tmp_path).array.astype(int) - voxels).max() <= 4


def smooth_picture() -> np.ndarray:
    """(rows, columns, 3) uint8."""
    y, x = np.mgrid[:40, :48]
    return np.stack([200 - 2 * x, 60 + 3 * y, 90 + x + y], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("compress", "apart"),
    [
        (lambda ds, path: ds.save_as(path, enforce_file_format=True), 0),
        (compress_with_pydicom(uid.RLELossless), 0),
        (compress_with_pillow(uid.JPEG2000Lossless), 0),
        (compress_with_dcmtk("dcmcjpeg", "+eb", "+q", "100", "+s4"), 4),
        (compress_with_dcmtk("dcmcjpeg", "+eb", "+q", "100", "+s2"), 8),
    ],
    ids=["native", "RLE", "JPEG 2000", "YBR_FULL", "YBR_FULL_422"],
)
def test_a_photograph_is_rgb_whatever_its_encoding(tmp_path, compress, apart):
    picture = smooth_picture()
    compress(phantoms.build_photograph(picture), tmp_path / "eye.dcm")
    series = read_series(tmp_path)
    assert series.array.shape == (48, 40, 1, 3) and series.array.dtype == np.uint8
    assert np.abs(series.array[:, :, 0].transpose(1, 0, 2).astype(int) - picture).max() <= apart
    assert not series.has_geometry and np.array_equal(series.affine, np.eye(4))
    write_nifti(series, tmp_path / "eye.nii")
    image = read_image(tmp_path / "eye.nii", read_task("vessel"))
    assert np.array_equal(image.numpy(), series.array.transpose(3, 0, 1, 2))


def test_ybr_without_compression_becomes_rgb(tmp_path):
    picture = smooth_picture()
    ds = phantoms.build_photograph(picture)
    red, green, blue = picture.astype(float).transpose(2, 0, 1)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    ybr = np.stack([y, 128 + (blue - y) / 1.772, 128 + (red - y) / 1.402], axis=-1)
    ds.PhotometricInterpretation, ds.PixelData = "YBR_FULL", ybr.round().astype(np.uint8).tobytes()
    array = read_series(phantoms.write([ds], tmp_path)).array
    assert np.abs(array[:, :, 0].transpose(1, 0, 2).astype(int) - picture).max() <= 3


def test_a_palette_becomes_rgb(tmp_path):
    indices = np.arange(48, dtype=np.uint8).reshape(6, 8)
    ds = phantoms.build_photograph(indices)
    ds.PhotometricInterpretation = "PALETTE COLOR"
    ramp = np.arange(256, dtype=np.uint16)
    for color, table in (("Red", ramp * 257), ("Green", (255 - ramp) * 257), ("Blue", ramp * 0)):
        setattr(ds, f"{color}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{color}PaletteColorLookupTableData", table.astype(np.uint16).tobytes())
    array = read_series(phantoms.write([ds], tmp_path)).array[:, :, 0].transpose(1, 0, 2)
    assert np.array_equal(array, np.stack([indices, 255 - indices, 0 * indices], axis=-1))


def test_two_pictures_in_a_series_are_two_images(tmp_path):
    eyes = [phantoms.build_photograph(smooth_picture()) for _ in range(2)]
    eyes[1].SOPInstanceUID = eyes[1].file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    with pytest.raises(SeriesError, match="expected one picture, given 2"):
        read_series(phantoms.write(eyes, tmp_path))
    assert read_series(tmp_path / "IM0000").shape == (48, 40, 1)


def test_a_compressed_frame_of_another_size_is_refused_before_it_is_decoded(tmp_path):
    for syntax in (uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless):
        ds = phantoms.build_slices(phantoms.volume((32, 24, 1)))[0]
        path = tmp_path / f"{syntax}.dcm"
        LOSSLESS[syntax](ds, path)
        ds = dcmread(path)
        ds.Rows = 25
        ds.save_as(path)
        with pytest.raises(SeriesError, match="expected a compressed frame of 32 x 25 pixels, given 32 x 24"):
            read_series(path)


def write_bomb(path: Path, syntax: str, frame: bytes, size: int) -> None:
    ds = phantoms.build_slices(phantoms.volume((8, 8, 1)))[0]
    ds.Rows = ds.Columns = size
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([frame])
    ds.save_as(path, enforce_file_format=True)


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    size, tile = 60000, 1
    header = struct.pack(">HHHH8IH", 0xFF4F, 0xFF51, 41, 0, size, size, 0, 0, tile, tile, 0, 0, 1)
    write_bomb(tmp_path / "large", uid.JPEG2000Lossless, header, size)
    with pytest.raises(SeriesError, match=f"more than {decoding.MAX_RATIO} for one|would take .* of memory"):
        read_series(tmp_path / "large")
    size = 4000
    header = struct.pack(">HHHH8IH", 0xFF4F, 0xFF51, 41, 0, size, size, 0, 0, tile, tile, 0, 0, 1)
    write_bomb(tmp_path / "tiled", uid.JPEG2000Lossless, header, size)
    with pytest.raises(SeriesError, match="tiles in a frame, given 16000000"):
        read_series(tmp_path / "tiled")


def test_a_deflated_file_is_read_within_a_bound(tmp_path, monkeypatch):
    voxels = phantoms.volume((8, 8, 1))
    ds = phantoms.build_slices(voxels)[0]
    ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    ds.save_as(tmp_path / "deflated", enforce_file_format=True)
    assert np.array_equal(read_series(tmp_path).array, voxels)
    monkeypatch.setattr("iopfl.dicomio.files.MAX_INFLATED", 100)
    with pytest.raises(SeriesError, match="deflated file: expected at most"):
        read_series(tmp_path)


def test_a_syntax_without_decoder_is_named(tmp_path):
    write_bomb(tmp_path / "video", uid.MPEG2MPML, b"\0\0", 8)
    with pytest.raises(SeriesError, match=r"given MPEG2 Main .*\(1\.2\.840\.10008\.1\.2\.4\.100\); ask for an uncom"):
        read_series(tmp_path)


CUT = {
    uid.RLELossless: (LOSSLESS[uid.RLELossless], np.int16),
    uid.JPEGLosslessSV1: (LOSSLESS[uid.JPEGLosslessSV1], np.int16),
    uid.JPEG2000Lossless: (LOSSLESS[uid.JPEG2000Lossless], np.uint16),
    uid.JPEGBaseline8Bit: (compress_with_pillow(uid.JPEGBaseline8Bit), np.uint8),
}
"""Without JPEG-LS, whose decoder may not come back: it is killed after 10 s."""


@pytest.mark.parametrize("syntax", CUT, ids=lambda syntax: syntax.name)
def test_a_frame_that_is_cut_short_is_refused_and_its_syntax_named(tmp_path, syntax):
    compress, dtype = CUT[syntax]
    (ds,) = phantoms.build_slices(phantoms.volume((64, 48, 1), low=0, high=250).astype(dtype))
    path = tmp_path / "cut.dcm"
    compress(ds, path)
    ds = dcmread(path)
    (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
    for share in (0.6, 0.9):
        ds.PixelData = encapsulate([frame[: int(len(frame) * share)]])
        ds.save_as(path)
        with pytest.raises(SeriesError) as caught:
            read_series(path)
        assert syntax in str(caught.value) and syntax.name in str(caught.value)
        assert "cut short" in str(caught.value) and "again" not in str(caught.value)


def test_a_deflated_file_that_ends_early_or_late_is_refused(tmp_path):
    (ds,) = phantoms.build_slices(phantoms.volume((13, 11, 1)))
    ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    path = tmp_path / "deflated"
    ds.save_as(path, enforce_file_format=True)
    whole = path.read_bytes()
    for spoiled in (whole[:-3], whole[: -len(whole) // 3], whole + b"garbage"):
        path.write_bytes(spoiled)
        with pytest.raises(SeriesError, match="ends before its data do, or goes on after"):
            read_series(path)
    path.write_bytes(whole + bytes(512))  # of a medium's blocks
    assert read_series(path).shape == (13, 11, 1)


@pytest.mark.parametrize("garbage", [bytes(512), b"garbage" * 50, b"\n"], ids=["zeros", "words", "a byte"])
def test_what_follows_an_instance_changes_none_of_its_pixels(tmp_path, garbage):
    voxels = phantoms.volume((13, 11, 1))
    phantoms.write(phantoms.build_slices(voxels), tmp_path)
    path = tmp_path / "IM0000"
    path.write_bytes(path.read_bytes() + garbage)
    assert np.array_equal(read_series(tmp_path).array, voxels)


def to_real(datasets: list[Dataset], keyword: str, values: np.ndarray) -> list[Dataset]:
    """Slices with real values, (X, Y, Z), in place of their pixels."""
    for z, ds in enumerate(datasets):
        del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
        ds.BitsAllocated = 8 * values.dtype.itemsize
        setattr(ds, keyword, np.ascontiguousarray(values[..., z].T).tobytes())
    return datasets


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_real_values_are_read_as_they_are_and_what_is_no_number_is_padding(tmp_path, keyword, dtype):
    values = np.random.default_rng(3).normal(0, 7.5, (13, 11, 6)).astype(dtype)
    datasets = to_real(phantoms.build_slices(phantoms.volume()), keyword, values)
    for ds in datasets:
        ds.RescaleSlope, ds.RescaleIntercept = 2, 100
    plain = read_series(phantoms.write(datasets, tmp_path / "plain"))
    assert plain.array.dtype == np.float32 and plain.padding is None
    assert np.array_equal(plain.array, values.astype(np.float32))
    seg = build_segmentation(
        phantoms.mask_in(plain.shape), plain, [Segment(1, "a", "#ff0000"), Segment(2, "b", "#00ff00")], Origin("test")
    )
    assert np.array_equal(read_segmentation(seg, plain).mask, phantoms.mask_in(plain.shape))
    values[2, 3, 4], values[5, 5, 0], values[0, 0, 5] = np.nan, np.inf, -999
    datasets = to_real(phantoms.build_slices(phantoms.volume()), keyword, values)
    setattr(datasets[5], keyword.replace("Data", "PaddingValue"), -999.0)
    padded = read_series(phantoms.write(datasets, tmp_path / "padded"))
    where = padded.array == padded.padding
    assert where.sum() == 3 and where[2, 3, 4] and where[5, 5, 0] and where[0, 0, 5]
    assert np.array_equal(padded.array[~where], values.astype(np.float32)[~where])


def test_real_values_that_are_none_are_refused(tmp_path):
    values = np.ones((13, 11, 6), np.float32)
    for number, (changes, said) in enumerate(
        [({"FloatPixelData": b"\0" * 40}, "truncated"), ({"BitsAllocated": 16}, "real values of 32 bits")]
    ):
        datasets = to_real(phantoms.build_slices(phantoms.volume()), "FloatPixelData", values)
        for keyword, value in changes.items():
            setattr(datasets[2], keyword, value)
        with pytest.raises(SeriesError, match=said):
            read_series(phantoms.write(datasets, tmp_path / str(number)))


def test_pixels_that_are_elsewhere_are_refused_by_their_syntax(tmp_path):
    (ds,) = phantoms.build_slices(phantoms.volume((13, 11, 1)))
    del ds.PixelData
    ds.file_meta.TransferSyntaxUID = uid.UID("1.2.840.10008.1.2.4.94")
    ds.save_as(tmp_path / "referenced", enforce_file_format=True)
    with pytest.raises(SeriesError, match=r"given JPIP Referenced \(1\.2\.840\.10008\.1\.2\.4\.94\)"):
        read_series(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"ImagePositionPatient": None},
        {"PixelSpacing": [0, 1]},
        {"ImagePositionPatient": [1e30, 0, 0]},
        {"BitsAllocated": 64},
        {"PhotometricInterpretation": "CMYK"},
        {"NumberOfFrames": 2**31 - 1},
        {"PixelData": b""},
        {"Rows": 0},
        {"SOPInstanceUID": ""},
    ],
    ids=str,
)
def test_no_refusal_asks_for_the_same_again_where_that_does_not_help(tmp_path, changes):
    slices = phantoms.build_slices(phantoms.volume())
    for ds in slices:
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    with pytest.raises(SeriesError) as caught:
        read_series(phantoms.write(slices, tmp_path))
    assert "again" not in str(caught.value)
    assert "give " in str(caught.value) or "put right" in str(caught.value)
