"""Decoding an instance's frames without trusting them: sizes first, and fragile codecs in a process of their own.

Of 1500 damaged frames, GDCM aborted or crashed the whole process with up to 15 (3.2.6: JPEG lossless, JPEG-LS,
JPEG 2000), and CharLS never returned from one of 331; Pillow and pydicom raised for all. So JPEG and
JPEG 2000 are decoded by Pillow, run lengths by pydicom, and the rest in a process with limits of time and memory.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import IO, cast

import numpy as np
from pydicom import Dataset, uid
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder

from iopfl.base.errors import SeriesError
from iopfl.dicomio.codestreams import check_codestream
from iopfl.dicomio.frames import count_frames
from iopfl.dicomio.showing import AT_SOURCE, show_syntax

MAX_RATIO = 1000
"""Decoded bytes an encoded byte may stand for, so that a small file cannot fill the memory."""

_ALWAYS_DECODED = 64 << 20  # bytes: an empty image may be compressed better than MAX_RATIO
_PROGRAM = Path(__file__).with_name("_decoder_process.py")
_SECONDS, _BYTES_A_SECOND = 10.0, 2e6  # an instance's time: to begin with, and by its decoded size

_SAFE = {
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEG2000Lossless: "pillow",
    uid.JPEG2000: "pillow",
    uid.RLELossless: "pydicom",
}
FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
"""Keywords of elements with real values in place of Pixel Data, and their bits."""
_KEEP_ALL_BITS = {"correct_unused_bits": False}
_OPTIONS = {
    "rows": "Rows",
    "columns": "Columns",
    "samples_per_pixel": "SamplesPerPixel",
    "bits_allocated": "BitsAllocated",
    "bits_stored": "BitsStored",
    "pixel_representation": "PixelRepresentation",
    "planar_configuration": "PlanarConfiguration",
}


class Decoder:
    """Decodes frames; a process is started when a codec needs it, and ends with the `with` statement."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def iterate(self, ds: Dataset, *, raw: bool, all_bits: bool = False) -> Iterator[np.ndarray]:
        """Frames as stored, one after the other.

        Args:
            ds: with pixel data and its transfer syntax.
            raw: whether YBR stays YBR.
            all_bits: whether the bits above Bits Stored stay as they are.

        Returns:
            Each (rows, columns) or (rows, columns, samples).

        Raises:
            SeriesError: truncated, too large for its bytes, or in a syntax that is not read. Codecs raise
                what they like besides.
        """
        syntax = ds.file_meta.TransferSyntaxUID
        _find_decoder(syntax)  # before its pixels are missed: some syntaxes have them elsewhere
        check_size(ds)
        if syntax.is_encapsulated:
            for encoded in generate_frames(ds.PixelData, number_of_frames=count_frames(ds)):
                check_codestream(encoded, syntax, int(ds.Rows), int(ds.Columns))
        if int(ds.BitsAllocated) == 1 and not syntax.is_encapsulated:
            yield from _unpack(ds)
            return
        if find_pixels(ds) in FLOATS:
            yield from _to_floats(ds)
            return
        if syntax.is_encapsulated and syntax not in _SAFE:
            yield from self._iterate_apart(ds, raw, all_bits)
            return
        options = _KEEP_ALL_BITS if all_bits else {}
        decoded = _find_decoder(syntax).iter_array(ds, raw=raw, decoding_plugin=_SAFE.get(syntax, ""), **options)
        try:
            for frame, _ in decoded:
                yield frame
        except Exception as error:  # of pydicom and Pillow, which have no common base
            if not syntax.is_encapsulated:
                raise
            raise SeriesError(_describe_failure(syntax, type(error).__name__)) from error

    def _iterate_apart(self, ds: Dataset, raw: bool, all_bits: bool) -> Iterator[np.ndarray]:
        """The same in the other process."""
        options = {name: int(ds[keyword].value) for name, keyword in _OPTIONS.items() if keyword in ds}
        request = {
            "size": len(ds.PixelData),
            "syntax": str(ds.file_meta.TransferSyntaxUID),
            "raw": raw,
            "number_of_frames": count_frames(ds),
            "photometric_interpretation": str(ds.PhotometricInterpretation),
            "pixel_keyword": "PixelData",
            **options,
            **(_KEEP_ALL_BITS if all_bits else {}),
        }
        if self._process is None:
            command = [sys.executable, "-P", str(_PROGRAM)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        seconds = _SECONDS + _decoded_size(ds) / _BYTES_A_SECOND
        timer = Timer(seconds, self._process.kill)
        timer.start()
        try:
            yield from _ask(
                self._process, json.dumps(request).encode() + b"\n" + ds.PixelData, str(ds.file_meta.TransferSyntaxUID)
            )
        finally:
            timer.cancel()


def find_pixels(ds: Dataset) -> str:
    """Keyword of the one element that an instance has its pixels in (PS3.3 C.7.6.3, C.7.6.24, C.7.6.25)."""
    return next((keyword for keyword in ("PixelData", *FLOATS) if keyword in ds), "PixelData")


def check_size(ds: Dataset) -> None:
    """Check an instance's claimed size against the bytes it has, before they are decoded.

    Raises:
        SeriesError: truncated, or a few bytes claim to be a huge image.
    """
    pixels = ds.get(find_pixels(ds))
    if not pixels:
        raise SeriesError("expected Pixel Data, given none; give another series, of images")
    size = f"{int(ds.Columns)} x {int(ds.Rows)} x {count_frames(ds)}"
    if min(int(ds.Rows), int(ds.Columns), count_frames(ds), int(ds.BitsAllocated), _samples(ds)) < 1:
        raise SeriesError(f"expected a positive size, given {size} pixels: {AT_SOURCE}")
    decoded = _decoded_size(ds)
    if not ds.file_meta.TransferSyntaxUID.is_compressed:
        stored = decoded * 2 // 3 if str(ds.get("PhotometricInterpretation")) == "YBR_FULL_422" else decoded
        if len(pixels) < stored:
            raise SeriesError(f"truncated: {size} pixels are {stored} bytes, given {len(pixels)}; send it again")
    elif decoded > max(_ALWAYS_DECODED, MAX_RATIO * len(pixels)):
        raise SeriesError(
            f"{len(pixels)} compressed bytes claim to be {decoded}: more than {MAX_RATIO} for one; send it uncompressed"
        )


def _unpack(ds: Dataset) -> Iterator[np.ndarray]:
    """Frames of single bits, which begin anywhere in a byte; pydicom 3.0.2 cannot iterate over those."""
    size = int(ds.Rows) * int(ds.Columns)
    packed = np.frombuffer(ds.PixelData, np.uint8)
    for start in range(0, count_frames(ds) * size, size):
        touched = np.unpackbits(packed[start // 8 : -(-(start + size) // 8)], bitorder="little")
        yield touched[start % 8 : start % 8 + size].reshape(int(ds.Rows), int(ds.Columns))


def _to_floats(ds: Dataset) -> Iterator[np.ndarray]:
    """Frames of real values."""
    syntax, keyword = ds.file_meta.TransferSyntaxUID, find_pixels(ds)
    bits = FLOATS[keyword]
    if syntax.is_encapsulated or int(ds.BitsAllocated) != bits or _samples(ds) != 1:
        raise SeriesError(
            f"expected real values of {bits} bits, one per pixel and uncompressed, given others: {AT_SOURCE}"
        )
    dtype = np.dtype(f"{'<' if syntax.is_little_endian else '>'}f{bits // 8}")
    shape = (count_frames(ds), int(ds.Rows), int(ds.Columns))
    yield from np.frombuffer(ds[keyword].value, dtype, count=math.prod(shape)).reshape(shape)


def _find_decoder(syntax: uid.UID):  # type: ignore[no-untyped-def]  # pydicom's Decoder
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise SeriesError(
            f"expected a transfer syntax that is read, given {show_syntax(syntax)}; ask for an uncompressed copy"
        )
    return decoder


def _ask(process: subprocess.Popen[bytes], request: bytes, syntax: str) -> Iterator[np.ndarray]:
    questions, answers = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
    try:
        questions.write(request)
        questions.flush()
        while answer := json.loads(answers.readline() or b'{"error": "stopped"}'):
            if "error" in answer:
                break
            dtype = np.dtype(answer["dtype"])
            data = answers.read(int(np.prod(answer["shape"])) * dtype.itemsize)
            yield np.frombuffer(data, dtype).reshape(answer["shape"])
    except BrokenPipeError:
        answer = {"error": "stopped"}
    if answer["error"]:
        raise SeriesError(_describe_failure(syntax, answer["error"]))


def _describe_failure(syntax: str, kind: str) -> str:
    return (
        f"a frame of {show_syntax(syntax)} cannot be decoded ({kind}): it is cut short or damaged; ask for an "
        "uncompressed copy"
    )


def _samples(ds: Dataset) -> int:
    return int(ds.get("SamplesPerPixel", 1))


def _decoded_size(ds: Dataset) -> int:
    """Bytes that an instance claims to be."""
    return (count_frames(ds) * int(ds.Rows) * int(ds.Columns) * _samples(ds) * int(ds.BitsAllocated) + 7) // 8
