"""Segmentations by other software: dcmqi, label maps, fractional; on other grids, with other labels; or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pytest
from highdicom.seg import Segmentation, SegmentDescription
from pydicom import Dataset, dcmread, uid
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from dicomio import phantoms
from iopfl.core.task import read_task
from iopfl.dicomio.files import read_dataset
from iopfl.dicomio.grids import resample_nearest
from iopfl.dicomio.labels import SegmentationError
from iopfl.dicomio.segmentation import Origin, build_segmentation, read_segmentation, referenced_series, segments_of
from iopfl.dicomio.series import Series, read_series
from iopfl.dicomio.sources import referenced_instances

HIPPOCAMPUS = read_task("hippocampus")
LABELS = HIPPOCAMPUS.labels


@pytest.fixture(scope="module")
def slices() -> list[Dataset]:
    return phantoms.build_slices(phantoms.volume((14, 12, 8)), directions=phantoms.OBLIQUE)


@pytest.fixture(scope="module")
def folder(slices, tmp_path_factory) -> Path:
    return phantoms.write(slices, tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def series(folder) -> Series:
    return read_series(folder)


@pytest.fixture(scope="module")
def mask(series) -> np.ndarray:
    return phantoms.mask_in(series.shape)


def describe(number: int, label: str, code=codes.SCT.Hippocampus) -> SegmentDescription:
    return SegmentDescription(number, label, codes.cid7150.AnatomicalStructure, code, "MANUAL")


def build_foreign(
    sources: Sequence[Dataset], pixels: object, labels: Sequence[str], kind: str = "BINARY", **settings: object
) -> Segmentation:
    """A SEG as any program using highdicom writes it."""
    return Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=settings.pop("described", None)
        or [describe(number, label) for number, label in enumerate(labels, start=1)],
        series_instance_uid=generate_uid(),
        series_number=5,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="another",
        manufacturer_model_name="another",
        software_versions="1",
        device_serial_number="1",
        **settings,
    )


def frames_of(mask: np.ndarray) -> np.ndarray:
    """(X, Y, Z) as highdicom takes it, (N, rows, columns)."""
    return np.ascontiguousarray(mask.transpose(2, 1, 0))


def build_ours(mask: np.ndarray, series: Series) -> Dataset:
    return build_segmentation(mask, series, segments_of(HIPPOCAMPUS), Origin())


@pytest.mark.parametrize("options", [(), ("--segmentationType", "labelmap"), ("--compress", "deflate")], ids=str)
def test_a_segmentation_by_dcmqi(folder, series, mask, tmp_path, options):
    program = Path(sys.executable).with_name("itkimage2segimage")
    if not program.exists():
        pytest.skip("dcmqi is not installed: pip install dcmqi")
    nib.save(nib.Nifti1Image(mask, series.affine), tmp_path / "mask.nii.gz")
    code = {"CodeValue": "5366008", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Hippocampus"}
    category = {"CodeValue": "91723000", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Anatomical Structure"}
    segments = [
        {
            "labelID": value,
            "SegmentLabel": label,
            "SegmentDescription": label,
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": category,
            "SegmentedPropertyTypeCodeSequence": code,
        }
        for value, label in [(1, "Anterior "), (2, "POSTERIOR")]
    ]
    meta = {"ContentCreatorName": "Reader1", "SeriesDescription": "by dcmqi", "segmentAttributes": [segments]}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    command = [program, "--inputImageList", tmp_path / "mask.nii.gz", "--inputDICOMDirectory", folder]
    command += ["--outputDICOM", tmp_path / "seg.dcm", "--inputMetadata", tmp_path / "meta.json", *options]
    subprocess.run([*command, "--skip", "1"], check=True, capture_output=True, timeout=120)
    label = read_segmentation(read_dataset(tmp_path / "seg.dcm"), series, LABELS)
    assert np.array_equal(label.mask, mask)
    assert label.annotator == "Reader1" and label.names == {1: "anterior", 2: "posterior"}


def test_a_label_map(slices, series, mask):
    seg = build_foreign(slices, frames_of(mask), ["anterior", "posterior"], "LABELMAP")
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, mask)
    assert np.array_equal(read_segmentation(seg, series).mask, mask)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_label_map_with_a_palette_or_of_16_bits(slices, series, mask, depth):
    seg = build_foreign(slices, frames_of(mask), ["anterior", "posterior"], "LABELMAP")
    numbers = np.choose(frames_of(mask), [0, 1, 2]).astype(depth) * (300 if depth == np.uint16 else 1)
    stored = numbers[[index for index in range(len(numbers)) if numbers[index].any()]]
    seg.NumberOfFrames, seg.PixelData = len(stored), stored.tobytes()
    del seg.PerFrameFunctionalGroupsSequence[len(stored) :]
    seg.BitsAllocated = seg.BitsStored = 8 * stored.itemsize
    seg.HighBit = seg.BitsStored - 1
    for item in seg.SegmentSequence:
        if depth == np.uint16 and item.SegmentNumber:
            item.SegmentNumber = 300 * item.SegmentNumber
    planes = [frame for frame in range(8) if numbers[frame].any()]
    for group, plane in zip(seg.PerFrameFunctionalGroupsSequence, planes, strict=True):
        group.PlanePositionSequence[0].ImagePositionPatient = slices[plane].ImagePositionPatient
    seg.PhotometricInterpretation = "PALETTE COLOR"
    for color in ("Red", "Green", "Blue"):
        setattr(seg, f"{color}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(seg, f"{color}PaletteColorLookupTableData", bytes(512))
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, mask)
    seg.PixelPaddingValue = 300 if depth == np.uint16 else 1  # what is background
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, np.where(mask == 2, 2, 0))


def test_a_fractional_segmentation_without_a_maximum_counts_from_half_of_what_its_bits_hold(slices, series, mask):
    shares = np.where(frames_of(mask == 1), 0.6, 0.4)
    seg = build_foreign(slices, shares, ["anterior"], "FRACTIONAL")
    del seg.MaximumFractionalValue
    label = read_segmentation(seg, series, LABELS)
    assert np.array_equal(label.mask, mask == 1)
    assert label.notes == ("it is fractional: voxels count from 127.5 of 255, one half",)


def test_a_compressed_fractional_segmentation_counts_from_one_half(slices, series, mask):
    shares = np.stack([frames_of(mask == 1) * 0.7, frames_of(mask == 2) * 0.6], axis=-1)
    shares[frames_of(mask == 0)] = 0.4
    seg = build_foreign(slices, shares, ["anterior", "posterior"], "FRACTIONAL")
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, mask)
    seg.compress(uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, mask)


def test_slices_that_are_left_out_stay_empty_without_a_word_of_the_distance(slices, series, mask):
    seg = build_foreign(slices, frames_of(mask), ["anterior", "posterior"])
    assert seg.NumberOfFrames < 16
    del seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, mask)


@pytest.mark.parametrize("kept", [[3], [3, 5]])
def test_overlapping_slices_do_not_spread_what_is_drawn_on_one(slices, series, mask, kept):
    drawn = np.zeros_like(mask)
    drawn[4:9, 3:8, kept] = 1
    seg = build_ours(drawn, series)
    (measures,) = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    del measures.SpacingBetweenSlices
    measures.SliceThickness = 6.0  # twice the distance
    assert (read_segmentation(seg, series, LABELS).mask == drawn).all()


def test_a_steep_gantry_tilt(tmp_path, mask):
    voxels, tilt, last = (
        phantoms.volume((14, 12, 8)),
        (0.0, 1.7, 0.0),
        (13 * 0.7 - 10.5, 7 * 1.7 + 20.25, 7 * 3.0 + 30.0),
    )
    series = read_series(phantoms.write(phantoms.build_slices(voxels, shift=tilt), tmp_path / "tilted"))
    drawn = series.from_frames(mask)
    assert np.array_equal(read_segmentation(build_ours(drawn, series), series, LABELS).mask, drawn)
    # Another program's rows run the other way, hence its normal does.
    options = {"directions": ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), "origin": last, "shift": (0.0, -1.7, 0.0)}
    turned = read_series(phantoms.write(phantoms.build_slices(voxels, **options), tmp_path / "turned"))
    seg = build_ours(turned.from_frames(mask[::-1, :, ::-1]), turned)
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, drawn)


def test_frames_in_any_order(slices, series, mask):
    sparse = np.where(np.arange(8) % 3 == 1, mask, 0).astype(np.uint8)
    seg = build_foreign(slices[::-1], frames_of(sparse[..., ::-1]), ["anterior", "posterior"])
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, sparse)


def on_grid(slices, series: Series, mask: np.ndarray, affine: np.ndarray) -> Segmentation:
    """A SEG of the series' frame of reference whose grid is another: (X', Y', Z') with its RAS affine."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    volume = highdicom.Volume(
        array=frames_of(mask),
        affine=lps[:, [2, 1, 0, 3]],
        coordinate_system="PATIENT",
        frame_of_reference_uid=series.frame_of_reference_uid,
    )
    return build_foreign(slices, volume, ["anterior", "posterior"])


def test_a_cropped_grid(slices, series, mask):
    crop = (slice(1, 12), slice(2, 11), slice(1, 6))
    affine = series.affine.copy()
    affine[:3, 3] = (series.affine @ [1, 2, 1, 1])[:3]
    seg = on_grid(slices, series, mask[crop], affine)
    assert (seg.Columns, seg.Rows) == (11, 9)
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, mask)


def test_a_segmentation_elsewhere_in_the_patient_is_refused(slices, series, mask):
    affine = series.affine.copy()
    affine[:3, 3] += 500
    with pytest.raises(SegmentationError, match="all of it lies outside"):
        read_segmentation(on_grid(slices, series, mask, affine), series, LABELS)


def test_a_finer_grid(slices, series, mask):
    fine = mask.repeat(2, axis=0).repeat(3, axis=1).repeat(2, axis=2)
    affine = series.affine @ np.diag([1 / 2, 1 / 3, 1 / 2, 1.0])
    affine[:3, 3] = (series.affine @ [-1 / 4, -1 / 3, -1 / 4, 1])[:3]
    seg = on_grid(slices, series, fine, affine)
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, mask)


def test_a_coarser_grid(slices, series, mask):
    coarse = mask[::2, ::2, ::2]
    affine = series.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (series.affine @ [0.5, 0.5, 0.5, 1])[:3]
    seg = on_grid(slices, series, coarse, affine)
    expected = coarse.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, expected)


def test_a_grid_of_other_directions(slices, series, mask):
    turned = mask.transpose(2, 0, 1)[::-1]  # its slices run along the series' columns, backwards
    affine = series.affine[:, [2, 0, 1, 3]] @ np.array([[-1, 0, 0, 7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert np.array_equal(read_segmentation(on_grid(slices, series, turned, affine), series, LABELS).mask, mask)


def test_a_rotated_grid_takes_the_nearest_voxel():
    volume = np.zeros((20, 20, 6), np.uint8)
    volume[5:15, 5:15, 1:5] = 1
    angle = np.pi / 4
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:2, 3] = np.array([9.5, 9.5]) - turn[:2, :2] @ [9.5, 9.5]
    turned = resample_nearest(volume, turn, (20, 20, 6), np.eye(4))
    x, y, z = np.mgrid[:20, :20, :6]
    diamond = (np.abs(x - 9.5) + np.abs(y - 9.5) <= 5 * np.sqrt(2)) & (z >= 1) & (z < 5)
    assert (turned.astype(bool) ^ diamond).sum() <= 0.05 * diamond.sum()


def test_a_series_that_lost_its_last_slice(folder, slices, mask, series, tmp_path):
    seg = build_ours(mask, series)
    kept = read_series(phantoms.write(slices[:-1], tmp_path))
    assert np.array_equal(read_segmentation(seg, kept, LABELS).mask, mask[..., :-1])


def test_segments_are_found_by_name_whatever_their_order(slices, series, mask):
    swapped = np.choose(mask, [0, 2, 1]).astype(np.uint8)
    seg = build_foreign(slices, frames_of(swapped), [" Posterior", "ANTERIOR"])
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, mask)
    assert read_segmentation(seg, series).names == {1: "Posterior", 2: "ANTERIOR"}


def test_segments_are_found_by_code_where_it_is_one_labels_alone(slices, series, mask):
    described = [describe(1, "Segment_1", codes.SCT.Kidney), describe(2, "Segment_2", codes.SCT.Liver)]
    seg = build_foreign(slices, frames_of(mask), [], described=described)
    values = {"leber": 1, "niere": 2}
    known = {"leber": ("10200004", "SCT", "Liver"), "niere": ("64033007", "SCT", "Kidney")}
    expected = np.choose(mask, [0, 2, 1])
    assert np.array_equal(read_segmentation(seg, series, values, codes=known).mask, expected)
    with pytest.raises(SegmentationError, match="'leber', 'niere', given 'Segment_1', 'Segment_2'"):
        read_segmentation(seg, series, values)
    with pytest.raises(SegmentationError, match="no label of the task"):
        read_segmentation(seg, series, values, codes={"leber": known["leber"], "niere": known["leber"]})


@pytest.mark.parametrize(
    ("value", "scheme"),
    [("T-62000", "SRT"), ("T-62000", "SNM3"), ("T-62000", "99SDM"), ("T-62000", "srt"), ("10200004", "SCT")],
)
@pytest.mark.parametrize("where", ["SegmentedPropertyTypeCodeSequence", "AnatomicRegionSequence"])
def test_older_codes_of_snomed_are_those_of_today(slices, series, mask, value, scheme, where):
    seg = build_foreign(slices, frames_of((mask == 1).astype(np.uint8)), ["Segment_1"])
    (segment,) = seg.SegmentSequence
    segment.SegmentedPropertyTypeCodeSequence = [code_of("T-D0050", "SRT", "Tissue")]
    setattr(segment, where, [code_of(value, scheme, "Liver")])
    known = {"leber": ("10200004", "SCT", "Leber"), "niere": ("64033007", "SCT", "Niere")}
    label = read_segmentation(seg, series, {"niere": 1, "leber": 2}, codes=known)
    assert np.array_equal(label.mask, np.where(mask == 1, 2, 0)) and label.names == {2: "leber"}
    old = {"leber": ("T-62000", "SRT", "Liver")}  # in a task
    assert read_segmentation(seg, series, {"leber": 2}, codes=old).mask.any()


def test_what_lies_in_an_organ_is_not_that_organ(slices, series, mask):
    seg = build_foreign(slices, frames_of((mask == 1).astype(np.uint8)), ["Target 1"])
    (segment,) = seg.SegmentSequence
    segment.SegmentedPropertyTypeCodeSequence = [code_of("52988006", "SCT", "Lesion")]
    segment.AnatomicRegionSequence = [code_of("10200004", "SCT", "Liver")]
    with pytest.raises(SegmentationError, match="expected segments labeled 'liver', given 'Target 1'"):
        read_segmentation(seg, series, {"liver": 1}, codes={"liver": ("10200004", "SCT", "Liver")})


def code_of(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def test_each_task_takes_its_own_segments(slices, series, mask):
    """Over which others may lie, as they are of no matter."""
    both = np.stack([frames_of(mask > 0), frames_of(mask == 1), frames_of(mask == 2)], axis=-1).astype(np.uint8)
    seg = build_foreign(slices, both, ["brain", "anterior", "posterior"])
    label = read_segmentation(seg, series, LABELS)
    assert np.array_equal(label.mask, mask)
    assert label.notes == ("segments that are no labels of the task are passed over: 'brain'",)
    assert np.array_equal(read_segmentation(seg, series, {"Brain": 7}).mask, (mask > 0) * 7)
    with pytest.raises(SegmentationError, match=r"labeled 'liver', given 'brain', 'anterior', 'posterior'"):
        read_segmentation(seg, series, {"liver": 1})


@pytest.mark.parametrize("name", ["", "Segment 3", "segment_3", "Label-3", "3", "anterior_1", "left anterior part"])
def test_a_segment_that_may_be_a_label_is_not_passed_over(slices, series, mask, name):
    seg = build_foreign(slices, frames_of(mask), ["anterior", "x"])
    seg.SegmentSequence[1].SegmentLabel = name
    with pytest.raises(SegmentationError, match="segment 2 is no label of the task"):
        read_segmentation(seg, series, LABELS)


def test_a_foreign_segment_without_a_voxel_does_no_harm(slices, series, mask):
    seg = build_foreign(slices, frames_of(mask), ["anterior", "posterior", "notes"])
    label = read_segmentation(seg, series, LABELS)
    assert np.array_equal(label.mask, mask) and set(label.names) == {1, 2}


def test_overlapping_labels_are_an_error_and_parts_of_one_label_are_not(slices, series, mask):
    both = np.stack([frames_of(mask > 0), frames_of(mask == 2)], axis=-1).astype(np.uint8)
    with pytest.raises(SegmentationError, match="segment 2 overlaps label value 1"):
        read_segmentation(build_foreign(slices, both, ["anterior", "posterior"]), series, LABELS)
    parts = build_foreign(slices, both, ["anterior", "Anterior"])
    assert np.array_equal(read_segmentation(parts, series, LABELS).mask, mask > 0)


def spoil(keyword: str, value: object):
    def change(seg: Dataset) -> None:
        setattr(seg, keyword, value)

    return change


def move_a_frame(seg: Dataset) -> None:
    seg.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient = [1.37, 5.0, 3.3]


def send_a_frame_far(seg: Dataset) -> None:
    first = np.array(seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient, dtype=float)
    normal = np.cross(*phantoms.OBLIQUE)
    frames = seg.PerFrameFunctionalGroupsSequence
    frames[1].PlanePositionSequence[0].ImagePositionPatient = [f"{value:.6f}" for value in first + 60000 * normal]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (spoil("FrameOfReferenceUID", "1.2.3"), "frame of reference .*, given 1.2.3"),
        (lambda seg: setattr(seg.ReferencedSeriesSequence[0], "SeriesInstanceUID", "1.2.3"), "series .* one of 1.2.3"),
        (spoil("SOPClassUID", uid.MRImageStorage), "expected a DICOM SEG"),
        (spoil("SegmentSequence", []), "at least one described segment"),
        (spoil("PixelData", b"\0" * 5), "truncated"),
        (spoil("NumberOfFrames", 10**6), "1 to 65536 frames, given 1000000"),
        (move_a_frame, "no common distance"),
        (lambda seg: seg.SegmentSequence.pop(), r"described segments \[1\], given segment 2"),
        (lambda seg: delattr(seg, "PerFrameFunctionalGroupsSequence"), "ImagePositionPatient of every slice"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(series, mask, change, reason):
    seg = deepcopy(build_ours(mask, series))
    change(seg)
    with pytest.raises(SegmentationError, match=reason):
        read_segmentation(seg, series, LABELS)


def test_two_frames_far_apart_do_not_fill_the_memory(series, mask, monkeypatch):
    monkeypatch.setattr("iopfl.dicomio.segmentation_reading.MAX_VOXELS", 100_000)
    seg = build_ours(mask, series)
    send_a_frame_far(seg)
    with pytest.raises(SegmentationError, match=r"they span 2000\d slices"):
        read_segmentation(seg, series, LABELS)


def test_a_segmentation_that_names_no_series_is_taken_by_its_frame_of_reference(series, mask):
    seg = build_ours(mask, series)
    del seg.ReferencedSeriesSequence, seg.SourceImageSequence
    assert referenced_series(seg) is None
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, mask)
    del seg.FrameOfReferenceUID
    for group in seg.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    with pytest.raises(SegmentationError, match="says nothing"):
        read_segmentation(seg, series, LABELS)


def test_frames_name_the_images_where_no_series_is_named(series, mask):
    seg = build_ours(mask, series)
    del seg.ReferencedSeriesSequence, seg.SourceImageSequence, seg.FrameOfReferenceUID
    assert referenced_series(seg) is None and set(referenced_instances(seg)) < set(series.sop_instance_uids)
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, mask)
    for group in seg.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence  # then they lie where their images do
    seg.PerFrameFunctionalGroupsSequence.reverse()
    turned = np.flip(np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little").reshape(-1, 12, 14), 0)
    seg.PixelData = np.packbits(turned, bitorder="little").tobytes()
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, mask)
    del seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
    with pytest.raises(SegmentationError, match="ImagePositionPatient of every slice"):
        read_segmentation(seg, series, LABELS)


def test_images_of_another_study_are_named_too(series, mask):
    seg = build_ours(mask, series)
    study = Dataset()
    study.StudyInstanceUID, study.ReferencedSeriesSequence = "1.2.3", seg.ReferencedSeriesSequence
    del seg.ReferencedSeriesSequence
    seg.StudiesContainingOtherReferencedInstancesSequence = [study]
    assert referenced_series(seg) == series.series_instance_uid
    assert np.array_equal(read_segmentation(seg, series, LABELS).mask, mask)


def test_a_real_series_with_a_segmentation_by_dcmqi(shared_data, tmp_path):
    folder = shared_data / "dicom" / "mr-hippocampus-crop"
    series = read_series(folder)
    program = Path(sys.executable).with_name("itkimage2segimage")
    if not program.exists():
        pytest.skip("dcmqi is not installed: pip install dcmqi")
    mask = (phantoms.mask_in(series.shape) == 2).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, series.affine), tmp_path / "mask.nii.gz")
    segment = {"labelID": 1, "SegmentLabel": "posterior", "SegmentAlgorithmType": "MANUAL"}
    for kind in ("Category", "Type"):
        segment[f"SegmentedProperty{kind}CodeSequence"] = {
            "CodeValue": "85756007",
            "CodingSchemeDesignator": "SCT",
            "CodeMeaning": "Tissue",
        }
    (tmp_path / "meta.json").write_text(json.dumps({"segmentAttributes": [[segment]]}))
    command = [program, "--inputImageList", tmp_path / "mask.nii.gz", "--inputDICOMDirectory", folder, "--skip", "1"]
    command += ["--outputDICOM", tmp_path / "seg.dcm", "--inputMetadata", tmp_path / "meta.json"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    label = read_segmentation(dcmread(tmp_path / "seg.dcm"), series, LABELS)
    assert np.array_equal(label.mask, 2 * mask)
