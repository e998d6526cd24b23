"""No image file leads to another: hostile headers, headers that say what cannot be, and headers with random errors."""

from __future__ import annotations

import bz2
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import itk
import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from iopfl.base.errors import SeriesError
from iopfl.images.files import read_voxels
from iopfl.images.headers import IMAGE_SUFFIXES, read_header
from iopfl.images.names import find_suffix
from iopfl.images.places import place_in_itk

SHAPE = (6, 5, 4)
SECRET = bytes(range(120))
VOXELS = np.arange(120, dtype=np.uint8).reshape(SHAPE)[::-1]

_opened: list[str] | None = None


def _note(event: str, arguments: tuple) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_note)


@contextmanager
def opening() -> Iterator[list[str]]:
    """Names of the files that are opened meanwhile, but for modules."""
    global _opened
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


def write_image(folder: Path, suffix: str) -> Path:
    """A small image in one of the formats."""
    path = folder / f"image{suffix}"
    if suffix.startswith(".nii"):
        nib.save(nib.Nifti1Image(VOXELS, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    elif suffix == ".nrrd":
        header = {"space": "left-posterior-superior", "space directions": np.diag([1, 2, 3]), "space origin": [0, 0, 0]}
        nrrd.write(str(path), VOXELS, {**header, "encoding": "raw"})
    elif suffix == ".mha":
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(VOXELS.T)), str(path))
    else:
        Image.fromarray(np.ascontiguousarray(VOXELS[..., 0])).save(path)
    return path


def mha(data_file: str, *more: str, data: bytes = SECRET) -> bytes:
    lines = ["ObjectType = Image", "NDims = 3", "DimSize = 6 5 4", "ElementType = MET_UCHAR", *more]
    return "\n".join([*lines, f"ElementDataFile = {data_file}\n"]).encode() + data


def nhdr(*more: str, data: bytes = b"", encoding: str = "raw") -> bytes:
    lines = ["NRRD0004", "type: uint8", "dimension: 3", "sizes: 6 5 4", f"encoding: {encoding}", "endian: little"]
    space = ["space: left-posterior-superior", "space directions: (1,0,0) (0,1,0) (0,0,1)", "space origin: (0,0,0)"]
    return "\n".join([*lines, *space, *more, "\n"]).encode() + data


def nifti(change: dict[int, bytes], kind=nib.Nifti1Image) -> bytes:
    content = bytearray(kind(VOXELS, np.eye(4)).to_bytes())
    for place, value in change.items():
        content[place : place + len(value)] = value
    return bytes(content)


def hdf5(path: Path) -> bytes:
    itk.imwrite(itk.image_from_array(VOXELS), str(path))
    return path.read_bytes()


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (6, 5)).save(stream, format=form)
    return stream.getvalue()


HOSTILE = {
    "path.mha": lambda secret: mha(str(secret)),
    "beside.mha": lambda secret: mha(secret.name),
    "list.mha": lambda secret: mha("LIST", data=b"".join(str(secret).encode() + b"\n" for _ in range(4))),
    "pattern.mha": lambda secret: mha(f"{secret.parent}/%s.raw 0 3 1"),
    "twice.mha": lambda secret: mha("LOCAL", f"ElementDataFile = {secret}"),
    "spaced.mha": lambda secret: mha("LOCAL", f"  ElementDataFile=  {secret}"),
    "carriage.mha": lambda secret: mha("LOCAL", f"Comment = a\rElementDataFile = {secret}", data=b""),
    "path.nrrd": lambda secret: nhdr(f"data file: {secret}"),
    "beside.nrrd": lambda secret: nhdr(f"datafile: {secret.name}"),
    "list.nrrd": lambda secret: nhdr(f"data file: LIST\n{secret}"),
    "keyed.nrrd": lambda secret: nhdr(f"data file:={secret}"),
    "odd.nrrd": lambda secret: nhdr(f"data\xff file : {secret}"),
    "capital.nrrd": lambda secret: nhdr(f"Data File: {secret}"),
    "pair.nii": lambda _: nifti({344: b"ni1\0"}),
    "pair2.nii": lambda _: nifti({4: b"ni2\0"}, nib.Nifti2Image),
    "pair.nii.gz": lambda _: gzip.compress(nifti({344: b"ni1\0"})),
    "analyze.nii": lambda _: nifti({344: b"\0\0\0\0"}),
    "surface.nii": lambda _: nifti({504: (3001).to_bytes(4, "little")}, nib.Nifti2Image),
    "meta.nii.gz": lambda secret: gzip.compress(mha(str(secret))),
    "meta.nii": lambda secret: mha(str(secret)),
    "nrrd.mha": lambda secret: nhdr(f"data file: {secret}"),
    "meta.nrrd": lambda secret: mha(str(secret)),
    "nifti.nrrd": lambda _: nifti({}),
    "packed.nii": lambda _: gzip.compress(nifti({})),
    "plain.nii.gz": lambda _: nifti({}),
    "twice.nii.gz": lambda _: gzip.compress(gzip.compress(nifti({}))),
    "hdf5.mha": lambda secret: hdf5(secret.with_name("a.h5")),
    "vtk.mha": lambda _: b"# vtk DataFile Version 3.0\nx\nBINARY\nDATASET STRUCTURED_POINTS\n",
    "script.png": lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "jpeg.png": lambda _: encoded("JPEG"),
    "png.jpg": lambda _: encoded("PNG"),
    "gif.bmp": lambda _: encoded("GIF"),
    "ppm.tif": lambda _: encoded("PPM"),
    "dicom.mha": lambda _: b"\0" * 128 + b"DICM" + b"\0" * 400,
}


@pytest.fixture
def secret(tmp_path) -> Path:
    """A file that is not for whoever sends images."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "0.raw").write_bytes(SECRET)
    return tmp_path / "state" / "0.raw"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_leads_elsewhere_is_refused_before_anything_else_is_opened(name, secret, tmp_path):
    path = tmp_path / name
    path.write_bytes(HOSTILE[name](secret))
    (tmp_path / secret.name).write_bytes(SECRET)
    with opening() as opened, pytest.raises(SeriesError, match=rf"^{name}: cannot be read as an image \(") as refused:
        read_voxels(path)
    assert set(opened) <= {str(path)}
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.mha", mha("LOCAL").replace(b"6 5 4", b"0 5 4")),
        ("below.mha", mha("LOCAL").replace(b"6 5 4", b"-6 5 4")),
        ("text.mha", mha("LOCAL", "BinaryData = False")),
        ("short.mha", mha("LOCAL", data=SECRET[:-1])),
        ("long.mha", mha("LOCAL", "CompressedData = True", data=zlib.compress(SECRET[:-1]))),
        ("nowhere.mha", mha("LOCAL", "ElementSpacing = nan 1 1")),
        ("flat.mha", mha("LOCAL", "TransformMatrix = 1 0 0 1 0 0 0 0 1")),
        ("still.mha", mha("LOCAL", "ElementSpacing = 0 1 1")),
        ("none.nrrd", nhdr(data=SECRET).replace(b"6 5 4", b"6 0 4")),
        ("lines.nrrd", nhdr("line skip: 99999999999999", data=SECRET)),
        ("bytes.nrrd", nhdr("byte skip: 8", data=SECRET)),
        ("bomb.nrrd", nhdr(data=gzip.compress(bytes(2**24)), encoding="gzip")),
        ("bomb2.nrrd", nhdr(data=bz2.compress(bytes(2**24)), encoding="bzip2")),
        ("short.nrrd", nhdr(data=gzip.compress(SECRET[:-1]), encoding="gzip")),
        ("endless.nrrd", b"NRRD0004\n" + b"# more\n" * 20_000),
        ("none.nii", nifti({42: b"\0\0"})),
        ("below.nii", nifti({42: b"\xff\xff"})),
        ("axes.nii", nifti({40: b"\x63\0"})),
        ("type.nii", nifti({70: b"\x80\0"})),
        ("start.nii", nifti({108: np.float32(1e30).tobytes()})),
        ("start.nii", nifti({108: np.float32(np.nan).tobytes()})),
        ("place.nii", nifti({76: np.float32([np.nan] * 8).tobytes(), 280: np.float32([np.nan] * 12).tobytes()})),
        ("zero.nii", nifti({280: bytes(48)})),
        ("cut.nii.gz", gzip.compress(nifti({}))[:-40]),
        ("fill.jpg", b"\xff\xd8" + b"\xff" * 5000),
        ("segments.jpg", b"\xff\xd8" + b"\xff\xe0\0\2" * 20_000),
        ("tags.tif", b"II*\0\x08\0\0\0\xff\xff"),
        ("far.tif", b"II*\0\xff\xff\xff\xff"),
        ("none.bmp", b"BM" + bytes(12) + b"\x28\0\0\0" + bytes(36)),
    ],
)
def test_what_cannot_be_is_refused_plainly(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SeriesError, match=rf"^{name}: ") as refused:
        read_voxels(tmp_path / name)
    assert "\n" not in str(refused.value) and str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_a_header_tells_shape_and_values_of_every_format(suffix, tmp_path):
    header = read_header(write_image(tmp_path, suffix))
    assert header.shape == ((5, 6) if header.format in ("PNG", "JPEG", "TIFF", "BMP") else SHAPE)
    assert (header.channels, header.value_bytes) in [(1, 1), (3, 1)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_the_header_of_a_picture_has_its_size_in_every_mode(mode, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    try:
        Image.new(mode, (9, 4)).save(path)
    except OSError:
        pytest.skip("the format has no such mode")
    assert read_header(path).shape == (9, 4)
    assert tuple(read_voxels(path).shape[1:]) == (9, 4, 1)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_a_metaimage_is_read_as_itk_reads_it(kind, is_packed, tmp_path):
    image = itk.image_from_array(np.random.default_rng(0).integers(0, 99, SHAPE).astype(kind))
    c, s = np.cos(0.4), np.sin(0.4)
    image.SetDirection(itk.matrix_from_array(np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])[[1, 2, 0]]))
    image.SetSpacing([1.5, 0.5, 3.0])
    image.SetOrigin([7.0, -3.0, 11.0])
    itk.imwrite(image, str(tmp_path / "a.mha"), compression=is_packed)
    read = read_voxels(tmp_path / "a.mha")
    np.testing.assert_array_equal(read[0].numpy(), itk.array_from_image(image).transpose())
    for index in [(0, 0, 0), (3, 1, 5)]:
        place = np.array(image.TransformIndexToPhysicalPoint(list(map(int, index)))) * [-1, -1, 1]  # LPS to RAS
        np.testing.assert_allclose((read.affine.numpy() @ [*index, 1])[:3], place, atol=1e-5)


def test_a_metaimages_data_are_its_last_bytes_where_it_says_so(tmp_path):
    path = tmp_path / "padded.mha"
    path.write_bytes(mha("LOCAL", "HeaderSize = -1", data=bytes(9) + SECRET))
    expected = itk.array_from_image(itk.imread(str(path))).T
    np.testing.assert_array_equal(read_voxels(path)[0].numpy(), expected)


@pytest.mark.parametrize(
    ("name", "kind"), [("MET_LONG", np.int32), ("MET_ULONG", np.uint32), ("MET_LONG_LONG", np.int64)]
)
def test_a_long_of_a_metaimage_has_the_bytes_that_itk_gives_it(name, kind, tmp_path):
    data = np.arange(SHAPE[0] * SHAPE[1] * SHAPE[2]).astype(kind).tobytes()
    path = tmp_path / "a.mha"
    path.write_bytes(mha("LOCAL", data=data).replace(b"MET_UCHAR", name.encode()))
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    np.testing.assert_array_equal(read_voxels(path)[0].numpy(), expected.transpose())


def pack_nrrd(encoding: str, pack) -> bytes:
    return nhdr(encoding=encoding, data=pack(VOXELS.tobytes(order="F")))


NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 30), np.uint8)  # more than readers buffer

PACKED = {
    "a.nii.gz": lambda: gzip.compress(nib.Nifti1Image(NOISE, np.eye(4)).to_bytes()),
    "b.nii.gz": lambda: gzip.compress(nib.Nifti2Image(NOISE, np.eye(4)).to_bytes()),
    "a.nrrd": lambda: pack_nrrd("gzip", gzip.compress),
    "b.nrrd": lambda: pack_nrrd("bzip2", bz2.compress),
    "a.mha": lambda: mha("LOCAL", "CompressedData = True", data=zlib.compress(VOXELS.tobytes(order="F"))),
    "a.png": lambda: encoded("PNG"),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_flipped_bit_never_becomes_other_voxels(name, tmp_path):
    path, content, random, refused = tmp_path / name, PACKED[name](), Random(0), 0
    path.write_bytes(content)
    voxels = read_voxels(path).numpy()
    behind = {".nrrd": b"\n\n", ".mha": b"LOCAL\n"}.get(path.suffix)  # a header in plain text has no checksum
    start = content.index(behind) + len(behind) if behind else 33
    for _ in range(60):
        damaged = bytearray(content)
        damaged[random.randrange(start, len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_voxels(path).numpy(), voxels)  # bits that mean nothing
        except SeriesError:
            refused += 1
    assert refused > 40


@pytest.mark.parametrize("name", [name for name in PACKED if not name.endswith(".png")])
def test_a_missing_checksum_is_noticed(name, tmp_path):
    (tmp_path / name).write_bytes(PACKED[name]()[:-4])
    with pytest.raises(SeriesError):
        read_voxels(tmp_path / name)


WORDS = (b"LIST", b"LOCAL", b"data file: ", b"ElementDataFile = ", b"\n", b"-1", b"0", b"1e9", b"99999", b"\xff", b" ")


def mutate(content: bytes, random: Random) -> bytes:
    """A few errors in what is likely to be the header."""
    found = bytearray(content)
    for _ in range(random.randint(1, 3)):
        place = random.randrange(min(len(found), 600))
        kind = random.random()
        if kind < 0.4:
            found[place] = random.randrange(256)
        elif kind < 0.6:
            found[place : place + random.randint(1, 8)] = b""
        elif kind < 0.8:
            found[place:place] = random.choice(WORDS)
        else:
            found[place : place + 4] = random.choice((b"\xff\xff\xff\x7f", bytes(4), b"\xff" * 4, b"\x10\x27\0\0"))
    return bytes(found)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_a_damaged_header_is_refused_or_leads_nowhere_else(suffix, tmp_path):
    source = write_image(tmp_path, suffix).read_bytes()
    content = gzip.decompress(source) if suffix == ".nii.gz" else source
    path, random, results = tmp_path / f"mutated{suffix}", Random(0), set()
    for _ in range(120):
        mutated = mutate(content, random)
        path.write_bytes(gzip.compress(mutated, 1) if suffix == ".nii.gz" else mutated)
        with opening() as opened:
            try:
                image = read_voxels(path)
            except SeriesError as error:
                results.add("refused")
                assert "\n" not in str(error) and str(tmp_path) not in str(error)
            else:
                results.add("read")
                assert image.ndim == 4 and image.numel() < 10**6
        assert {name for name in opened if not name.endswith((".py", ".pyc"))} <= {str(path)}
    # A PNG's header has a checksum.
    assert results == ({"refused"} if suffix == ".png" else {"refused", "read"}), find_suffix(path.name)


@pytest.mark.parametrize("name", ["pages.tif", "animated.png"])
def test_a_picture_of_several_pages_is_refused_and_not_answered_by_its_first(tmp_path, name):
    pages = [Image.fromarray(np.full((8, 9, 3), 40 * page, np.uint8)) for page in range(3)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with pytest.raises(SeriesError, match="it has 3 pages"):
        read_voxels(tmp_path / name)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("spell", [str.upper, str.title, str.swapcase], ids=["upper", "title", "swapped"])
def test_an_ending_is_read_however_it_is_spelled(tmp_path, suffix, spell):
    plain = write_image(tmp_path, suffix)
    expected = read_voxels(plain)
    other = plain.rename(tmp_path / f"image{spell(suffix)}")
    found = read_voxels(other)
    assert torch.equal(found.as_tensor(), expected.as_tensor()) and torch.equal(found.affine, expected.affine)
    assert np.array_equal(place_in_itk(found), place_in_itk(expected)) or find_suffix(other.name) == ".nii"


def test_a_picture_of_too_many_pixels_is_refused_with_figures_before_it_is_decoded(tmp_path):
    Image.new("1", (15_000, 12_000)).save(tmp_path / "huge.png")
    words = r"at most 178\.96 megapixels, this one has 180\.00 \(15000 x 12000\)"
    with pytest.raises(SeriesError, match=words) as refused:
        read_voxels(tmp_path / "huge.png")
    assert "whole PNG" not in str(refused.value), "nothing is wrong with the file"
