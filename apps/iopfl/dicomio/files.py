"""DICOM files of anybody: with or without preamble, deflated, broken; what parsers raise becomes one error."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from iopfl.base.errors import SeriesError
from iopfl.dicomio.showing import AT_SOURCE

MAX_INFLATED = 1 << 30
"""Bytes that a deflated file may become."""

_HEAD = struct.Struct("<128x4xHH2sHI")  # preamble, DICM, and the element File Meta Information Group Length
_BARE_STARTS = (b"\x02\x00", b"\x08\x00")  # little endian groups that a file without preamble begins with


@contextlib.contextmanager
def reading(what: str, error_type: type[SeriesError] = SeriesError) -> Iterator[None]:
    """Translate what parsers and decoders raise on broken bytes, which may be anything, into a SeriesError.

    Their messages may quote values of the data set, hence patient identifiers: only the kind is passed on.

    Args:
        what: is read, in the message.
        error_type: the type of the error to raise.
    """
    try:
        yield
    except SeriesError:
        raise
    except Exception as error:  # pydicom, numpy and the codecs have no common base
        raise error_type(
            f"{what} cannot be read ({type(error).__name__}): damaged on the way, which sending it again mends, or no "
            "valid DICOM, which it does not"
        ) from error


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM's do (PS3.10, 7.1)."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dataset(source: Path | bytes, *, pixels: bool = True) -> Dataset | None:
    """Read one DICOM file, with or without preamble and file meta information.

    Args:
        source: a file, or what it holds.
        pixels: whether to read pixel data too.

    Returns:
        The data set, whose file meta information names its transfer syntax; None for a file that is no DICOM.

    Raises:
        SeriesError: deflated, and more than `MAX_INFLATED`. The parser raises what it likes besides.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    if data[128:132] != b"DICM" and data[:2] not in _BARE_STARTS:
        return None
    if DeflatedExplicitVRLittleEndian.encode() in data[: _HEAD.size + 1024]:
        data = _inflate(data)
    # From memory: a broken length makes a file's read() allocate what it claims.
    ds = dcmread(io.BytesIO(data), force=True, stop_before_pixels=not pixels)
    if "TransferSyntaxUID" not in getattr(ds, "file_meta", {}):
        ds.file_meta = FileMetaDataset()
        implicit = ds.original_encoding[0]
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return ds


def _inflate(data: bytes) -> bytes:
    """The data set of a deflated file (PS3.5 A.5), explicit VR little endian without preamble."""
    group, element, kind, _, length = _HEAD.unpack_from(data)
    if (group, element, kind) != (2, 0, b"UL"):
        raise SeriesError(f"a deflated file: expected the length of its meta information, given none: {AT_SOURCE}")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data[_HEAD.size + length :], MAX_INFLATED)
    if inflater.unconsumed_tail:
        raise SeriesError(
            f"a deflated file: expected at most {MAX_INFLATED >> 20} MiB in it, given more; send it uncompressed"
        )
    if not inflater.eof or inflater.unused_data.strip(b"\0"):
        raise SeriesError("a deflated file: it ends before its data do, or goes on after them; send it again")
    return inflated
