"""A scout, a dose page or a stray slice leaves a series usable; what is left out is named, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, uid

from core.tiny import BALL, make_bank
from dicomio import phantoms
from iopfl.base.errors import SeriesError
from iopfl.cli import main
from iopfl.core.transforms import read_image
from iopfl.dicomio.segmentation import Origin, Segment, build_segmentation, read_segmentation
from iopfl.dicomio.series import Series, read_series, write_nifti
from iopfl.images.files import find_notes

SEGMENTS = [Segment(1, "gland", "#ff0000"), Segment(2, "lesion", "#00ff00")]
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))


def build(count: int = 8, **options) -> list[Dataset]:
    return phantoms.build_slices(phantoms.volume((13, 11, count)), **options)


def beside(number: int = 100, count: int = 1, shape: tuple[int, int] = (13, 11), **options) -> list[Dataset]:
    """Instances of the same series that are none of its stack, numbered from a number."""
    datasets = phantoms.build_slices(phantoms.volume((*shape, count), seed=9), **options)
    for index, ds in enumerate(datasets):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = phantoms.series_uid(f"beside {number + index}")
        ds.InstanceNumber = number + index
    return datasets


def edited(datasets: list[Dataset], **changes: object) -> list[Dataset]:
    for ds in datasets:
        for keyword, value in changes.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)
    return datasets


LOCALIZER = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
COLORS = np.zeros((11, 13, 3), np.uint8)


def colored() -> list[Dataset]:
    (ds,) = beside()
    phantoms._set_pixels(ds, COLORS)
    return [ds]


STRAYS: dict[str, tuple[Callable[[], list[Dataset]], str]] = {
    "scout": (lambda: edited(beside(directions=SAGITTAL), ImageType=LOCALIZER), "instance 100: a localizer"),
    "scouts": (lambda: edited(beside(count=3), ImageType=LOCALIZER), "instances 100, 101, 102: a localizer"),
    "unmarked scout": (lambda: beside(directions=SAGITTAL), "instance 100: another orientation"),
    "scout of another size": (lambda: beside(shape=(20, 64)), "instance 100: another size"),
    "dose page": (lambda: edited(beside(), SOPClassUID=uid.SecondaryCaptureImageStorage), "instance 100: a secondary"),
    "page in colors": (colored, "instance 100: other colors"),
    "page without a place": (lambda: edited(beside(), ImagePositionPatient=None), "instance 100: no place in the"),
    "other pixels": (lambda: beside(spacing=(0.5, 0.5, 3.0)), "instance 100: another pixel spacing"),
    "other frame": (lambda: edited(beside(), FrameOfReferenceUID="1.2.3"), "instance 100: another frame of reference"),
    "projection": (
        lambda: edited(beside(), ImageType=["DERIVED", "SECONDARY", "PROJECTION IMAGE"]),
        "instance 100: another Image Type, at the place of another",
    ),
    "copy": (lambda: edited(beside(), PixelData=build()[0].PixelData), "instance 100: a copy of another"),
    "stray slice": (lambda: beside(origin=(-10.5, 20.25, 151.0)), "instance 100: beside the even places"),
    "slice between": (lambda: beside(origin=(-10.5, 20.25, 40.2)), "instance 100: beside the even places"),
    "without a number": (
        lambda: edited(beside(directions=SAGITTAL), InstanceNumber=None),
        "1 instance: another orientation",
    ),
    "hardly a page": (lambda: edited(beside(shape=(2, 2)), ImagePositionPatient=None), "instance 100: another size"),
}


@pytest.mark.parametrize(("make", "said"), STRAYS.values(), ids=STRAYS)
def test_what_lies_beside_a_stack_is_left_out_and_named(tmp_path, make, said):
    plain = read_series(phantoms.write(build(), tmp_path / "plain"))
    series = read_series(phantoms.write([*make(), *build()], tmp_path / "series"))
    assert len(series.left_out) == 1 and series.left_out[0].startswith(said)
    assert np.array_equal(series.array, plain.array) and np.array_equal(series.affine, plain.affine)
    assert series.sop_instance_uids == plain.sop_instance_uids
    assert "ller" not in series.left_out[0] and plain.left_out == ()


def test_a_segmentation_refers_to_what_was_kept(tmp_path):
    datasets = build()
    series = read_series(phantoms.write([*STRAYS["scouts"][0](), *datasets], tmp_path))
    mask = phantoms.mask_in(series.shape)
    seg = build_segmentation(mask, series, SEGMENTS, Origin("test"))
    referred = {
        str(item.ReferencedSOPInstanceUID) for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referred <= {str(ds.SOPInstanceUID) for ds in datasets}
    assert np.array_equal(read_segmentation(seg, series).mask, mask)


def test_an_enhanced_instance_is_told_from_its_scout(tmp_path):
    enhanced = phantoms.build_enhanced(build())
    series = read_series(phantoms.write([*STRAYS["scout"][0](), enhanced], tmp_path / "marked"))
    assert series.shape == (13, 11, 8) and "localizer" in series.left_out[0]
    series = read_series(phantoms.write([*beside(), enhanced], tmp_path / "unmarked"))
    assert series.shape == (13, 11, 8) and series.left_out == ("instance 100: another kind of image (SOP Class)",)


@pytest.mark.parametrize(
    ("datasets", "reason"),
    [
        (lambda: [*build(4), *beside(count=4, directions=SAGITTAL)], "several orientations"),
        (lambda: [*build(5), *beside(count=3, directions=SAGITTAL)], "several orientations"),
        (lambda: [*build(4), *beside(count=4, shape=(13, 12))], "one Rows in a series, given 2"),
        (lambda: [*build(4), *beside(count=4)], "4 of 8 slices lie where another does"),
        (lambda: [*build(3), *edited(beside(count=3), ImageType=LOCALIZER)], "3 of 6 instances: it is a localizer"),
        (lambda: edited(build(), ImagePositionPatient=None), "ImagePositionPatient of every slice"),
        (lambda: edited(build(), ImagePositionPatient=[0, 0, 0]), "all 8 slices lie at one: .* lost where they lie"),
        (lambda: build()[:3] + build()[4:], r"1 slice is missing, between 36\.00 and 42\.00"),
        (lambda: build()[:6] + build()[7:], r"1 slice is missing, between 45\.00 and 51\.00"),
        (
            lambda: [*build()[:3], *edited(build()[3:4], ImageType=LOCALIZER), *build()[4:]],
            r"1 slice is missing.*since these do not fit the others: instance 4: a localizer .*; correct them",
        ),
    ],
)
def test_a_series_whose_stack_is_not_clear_or_not_whole_is_refused(tmp_path, datasets, reason):
    with pytest.raises(SeriesError, match=reason):
        read_series(phantoms.write(datasets(), tmp_path))


def test_a_slice_that_says_no_frame_of_reference_lies_in_that_of_the_others(tmp_path):
    for number in (0, 4):  # the first speaks for a series elsewhere
        datasets = build()
        datasets[number].FrameOfReferenceUID = ""
        series = read_series(phantoms.write(datasets, tmp_path / str(number)))
        assert series.left_out == () and series.shape == (13, 11, 8)
        assert {ds.FrameOfReferenceUID for ds in series.datasets} == {datasets[1].FrameOfReferenceUID}
        seg = build_segmentation(phantoms.mask_in(series.shape), series, SEGMENTS, Origin("test"))
        assert seg.FrameOfReferenceUID == datasets[1].FrameOfReferenceUID
    datasets = build()
    del datasets[0].FrameOfReferenceUID
    mixed = [*datasets, *edited(beside(count=2, directions=SAGITTAL), FrameOfReferenceUID="1.2.3")]
    assert len(read_series(phantoms.write(mixed, tmp_path / "mixed")).left_out) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"PatientID": "P-2"}, "one patient, given 2 of PatientID"),
        ({"StudyInstanceUID": "1.2.3"}, "one study, given 2"),
    ],
)
def test_a_series_of_two_patients_or_studies_is_refused_without_naming_them(tmp_path, changes, said):
    datasets = [*build()[:4], *edited(build()[4:], **changes)]
    with pytest.raises(SeriesError, match=said) as caught:
        read_series(phantoms.write(datasets, tmp_path / "two"))
    assert "P-1" not in str(caught.value) and "P-2" not in str(caught.value)
    padded = [*edited(build()[:4], PatientID=" P-1 "), *edited(build()[4:6], PatientID=""), *build()[6:]]
    assert read_series(phantoms.write(padded, tmp_path / "padded")).shape == (13, 11, 8)


def test_an_inverted_slice_among_others_is_read_by_its_meaning(tmp_path):
    shade = np.tile(np.arange(13, dtype=np.int16)[:, None, None] * 50, (1, 11, 8))
    datasets = phantoms.build_slices(shade)
    plain = read_series(phantoms.write(datasets, tmp_path / "plain")).array
    for number in (0, 3):
        datasets = phantoms.build_slices(shade)
        datasets[number].PhotometricInterpretation = "MONOCHROME1"
        false = phantoms.write(datasets, tmp_path / f"false{number}")
        with pytest.raises(SeriesError, match="each other's negatives: correct Photometric Interpretation"):
            read_series(false)
        datasets[number].PixelData = (-1 - np.frombuffer(datasets[number].PixelData, np.int16)).tobytes()
        series = read_series(phantoms.write(datasets, tmp_path / f"true{number}"))
        assert series.left_out == () and np.array_equal(series.array, plain)


@pytest.mark.parametrize("spacing", [0.45, 0.5, 0.625, 0.875, 1.25])
@pytest.mark.parametrize("directions", [phantoms.AXIAL, phantoms.OBLIQUE], ids=["axial", "oblique"])
def test_positions_rounded_to_a_tenth_of_a_millimeter_are_even(tmp_path, spacing, directions):
    options = {"spacing": (0.7, 0.7, spacing), "directions": directions}
    slices = [round_position(ds) for ds in build(24, **options)]
    series = read_series(phantoms.write(slices, tmp_path / "whole"))
    assert series.shape == (13, 11, 24)
    assert np.linalg.norm(series.affine[:3, 2]) == pytest.approx(spacing, rel=0.01)
    mask = phantoms.mask_in(series.shape)
    seg = build_segmentation(mask, series, SEGMENTS, Origin("test"))
    assert np.array_equal(read_segmentation(seg, series).mask, mask)
    for missing in (1, 12, 22):
        with pytest.raises(SeriesError, match="evenly spaced"):
            read_series(phantoms.write(slices[:missing] + slices[missing + 1 :], tmp_path / f"without {missing}"))


def round_position(ds: Dataset) -> Dataset:
    ds.ImagePositionPatient = [f"{float(value):.1f}" for value in ds.ImagePositionPatient]
    return ds


def make_file(folder: Path) -> tuple[Series, Path]:
    series = read_series(phantoms.write([*STRAYS["scout"][0](), *build(12)], folder / "series"))
    write_nifti(series, folder / "case.nii.gz")
    return series, folder / "case.nii.gz"


def test_the_file_and_the_command_say_what_was_left_out(tmp_path, capsys):
    series, path = make_file(tmp_path)
    assert find_notes(read_image(path, BALL)).left_out == series.left_out
    make_bank(tmp_path / "bank", BALL)
    keys = ["--keys", str(tmp_path / "keys")]
    assert not main(
        ["segment", str(path), "--bank", str(tmp_path / "bank"), "-o", str(tmp_path / "masks"), "--json", *keys]
    )
    out, err = capsys.readouterr()
    assert "case.nii.gz: left out of its series: instance 100: a localizer" in err
    assert '"left_out": ["instance 100: a localizer' in out


def test_rules_are_checked_by_the_series(tmp_path, capsys):
    phantoms.write([*STRAYS["scout"][0](), *build()], tmp_path / "series")
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "rules:\n- name: all\n  answer: prostate\n  match: {modality: MR, min_slices: 8}\n  send_to: [pacs]\n"
        "destinations:\n  pacs: {ae_title: PACS, host: 127.0.0.1, port: 104}\n"
    )
    assert not main(["dicom", "rules", "check", str(rules), str(tmp_path / "series")])
    out, err = capsys.readouterr()
    assert "all: segmented by prostate" in out and "left out, 1 of 9 instances: it is a localizer" in err
