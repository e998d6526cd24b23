"""Each attribute once and in order, in every form that programs write."""

from __future__ import annotations

import io

import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import encapsulate

from iopfl.base.errors import SeriesError
from iopfl.dicomio.elements import check_order

from .phantoms import build_slices, volume


def as_bytes(ds: Dataset, syntax: str, *, undefined: bool) -> bytes:
    ds.file_meta.TransferSyntaxUID = syntax
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [Dataset(), Dataset()]
    ds.ReferencedImageSequence = [item, Dataset()]
    for element in (ds["ReferencedImageSequence"], item["PurposeOfReferenceCodeSequence"]):
        element.is_undefined_length = undefined
    item.is_undefined_length_sequence_item = undefined
    if uid.UID(syntax).is_compressed:
        ds.PixelData = encapsulate([bytes(10), bytes(20)])
        ds["PixelData"].VR = "OB"
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_what_is_written_in_order_is_taken_and_nothing_that_was_cut_moved_or_repeated(syntax, undefined):
    [ds] = build_slices(volume((5, 4, 1)))
    content = as_bytes(ds, syntax, undefined=undefined)
    is_implicit = syntax == uid.ImplicitVRLittleEndian

    def check(data: bytes) -> None:
        check_order(data, 132, len(data), is_implicit=is_implicit)

    check(content)
    check_order(b"before" + content + b"after", 138, 6 + len(content), is_implicit=is_implicit)
    read = dcmread(io.BytesIO(content))
    long = ("OB", "OW", "SQ")
    values = [(read.get_item(tag), read[tag].VR) for tag in read.keys()]  # noqa: SIM118  # its values are elements
    begins = [
        getattr(raw, "value_tell", getattr(raw, "file_tell", 0)) - (8 if is_implicit or kind not in long else 12)
        for raw, kind in values
    ]
    first, second = begins[2:4]
    one = content[first:second]
    changed = [
        content[:second] + one + content[second:],
        content + one,
        content[:first] + content[second : begins[4]] + one + content[begins[4] :],
        content[:132] + content[144:156] + content[132:],
    ]
    changed += [content[:end] for end in range(156, len(content)) if end not in begins]
    for data in changed:
        with pytest.raises(SeriesError, match="each once and in order"):
            check(data)
