"""Reading a series: any order, any geometry, and a reason for everything that is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom import uid

from dicomio import phantoms
from iopfl.base.errors import ConfigError, SeriesError
from iopfl.core.task import read_task
from iopfl.core.transforms import read_image
from iopfl.dicomio.refusals import choose_header, find_refusal
from iopfl.dicomio.series import read_series, write_nifti


def read(datasets, folder: Path, **how):
    return read_series(phantoms.write(datasets, folder, **how))


@pytest.mark.parametrize("directions", [phantoms.AXIAL, phantoms.OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("nested", [False, True])
def test_slices_are_sorted_and_placed_whatever_the_files_are_called(tmp_path, directions, nested):
    voxels = phantoms.volume()
    series = read(phantoms.build_slices(voxels, directions=directions), tmp_path, nested=nested)
    assert np.array_equal(series.array, voxels)
    assert series.array.dtype == np.int16
    np.testing.assert_allclose(series.affine, phantoms.affine_of(directions=directions), atol=1e-5)
    assert series.has_geometry and series.modality == "MR" and len(series.sop_instance_uids) == 6
    assert "PixelData" not in series.datasets[0]


def test_a_stack_sent_from_the_other_end_is_the_same(tmp_path):
    slices = phantoms.build_slices(phantoms.volume())
    straight, reverse = read(slices, tmp_path / "a"), read(slices[::-1], tmp_path / "b")
    assert np.array_equal(straight.array, reverse.array)
    assert straight.sop_instance_uids == reverse.sop_instance_uids


def test_a_list_of_files_and_a_single_file_are_read_too(tmp_path):
    slices = phantoms.build_slices(phantoms.volume())
    phantoms.write(slices, tmp_path)
    assert read_series(sorted(tmp_path.iterdir())).shape == (13, 11, 6)
    one = read_series(tmp_path / "IM0000")
    assert one.shape == (13, 11, 1)
    assert np.linalg.norm(one.affine[:3, 2]) == pytest.approx(1.0)  # Slice Thickness: nothing else is said


def test_slices_with_gaps_between_them_keep_their_distance(tmp_path):
    series = read(phantoms.build_slices(phantoms.volume(), spacing=(1, 1, 7.5)), tmp_path)
    assert series.affine[2, 2] == pytest.approx(7.5)  # not the Slice Thickness, which is 1


def test_a_tilted_gantry_becomes_a_straight_grid_that_holds_every_slice(tmp_path):
    shift = (0.0, 0.8, 0.0)
    series = read(phantoms.build_slices(phantoms.volume(), shift=shift), tmp_path)
    np.testing.assert_allclose(series.affine, phantoms.affine_of(), atol=1e-5)
    np.testing.assert_allclose(series.frames_affine, phantoms.affine_of(shift=shift), atol=1e-5)
    assert series.shape == (13, 11 + 4, 6)  # 5 steps of 0.8 mm are 4.4 pixels
    assert np.array_equal(series.to_frames(series.array), phantoms.volume())
    assert (series.array == series.padding).sum() == 13 * 4 * 6, "beside the slices is no image"


@pytest.mark.parametrize("shared_orientation", [True, False])
def test_enhanced_multi_frame_reads_as_its_slices(tmp_path, shared_orientation):
    voxels = phantoms.volume()
    slices = phantoms.build_slices(voxels, directions=phantoms.OBLIQUE)
    frames = [slices[index] for index in (3, 0, 5, 1, 4, 2)]
    series = read([phantoms.build_enhanced(frames, shared_orientation=shared_orientation)], tmp_path)
    assert np.array_equal(series.array, voxels)
    np.testing.assert_allclose(series.affine, phantoms.affine_of(directions=phantoms.OBLIQUE), atol=1e-5)
    assert series.frame_numbers == (2, 4, 6, 1, 5, 3)
    assert len(series.datasets) == 1


def test_each_slice_is_rescaled_by_its_own_slope(tmp_path):
    voxels = phantoms.volume(low=0)
    slices = phantoms.build_slices(voxels, sop_class=uid.PositronEmissionTomographyImageStorage, modality="PT")
    for z, ds in enumerate(slices):
        ds.RescaleSlope, ds.RescaleIntercept = 0.5 + z, -2
    series = read(slices, tmp_path)
    assert series.array.dtype == np.float32
    np.testing.assert_allclose(series.array, voxels * (0.5 + np.arange(6)) - 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("bits", "slope", "intercept", "dtype"),
    [(12, 1, -1024, np.int16), (16, 1, -1024, np.float32), (12, 1, 0.5, np.float32), (12, 9, 0, np.float32)],
    ids=["usual", "16 bits", "halves", "large"],
)
def test_ct_is_in_hounsfield_units_in_as_few_bytes_as_hold_them(tmp_path, bits, slope, intercept, dtype):
    voxels = phantoms.volume(low=0).astype(np.uint16)
    slices = phantoms.build_slices(voxels, sop_class=uid.CTImageStorage, modality="CT")
    for ds in slices:
        ds.BitsStored, ds.HighBit, ds.RescaleSlope, ds.RescaleIntercept = bits, bits - 1, slope, intercept
    array = read(slices, tmp_path).array
    assert array.dtype == dtype
    assert np.array_equal(array, slope * voxels.astype(np.float32) + intercept)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.int16, -1)])
def test_monochrome1_is_inverted_so_that_high_is_bright(tmp_path, dtype, top):
    voxels = phantoms.volume(low=0, high=200).astype(dtype)
    slices = phantoms.build_slices(voxels)
    for ds in slices:
        ds.PhotometricInterpretation = "MONOCHROME1"
    series = read(slices, tmp_path)
    assert np.array_equal(series.array, top - voxels.astype(np.int64))
    assert series.array.dtype == dtype


def test_an_instance_that_is_there_twice_counts_once(tmp_path):
    slices = phantoms.build_slices(phantoms.volume())
    series = read([*slices, slices[2]], tmp_path)
    assert series.shape == (13, 11, 6)
    slices[3].ImageComments = "changed"
    changed = [*phantoms.build_slices(phantoms.volume()), slices[3]]
    with pytest.raises(SeriesError, match="there twice, with different content"):
        read(changed, tmp_path / "changed")


def test_what_is_no_image_is_passed_over(tmp_path):
    slices = phantoms.build_slices(phantoms.volume())
    report = phantoms.build_slices(phantoms.volume((3, 3, 1)), sop_class=uid.BasicTextSRStorage, series="a report")
    phantoms.write(slices, tmp_path)
    report[0].save_as(tmp_path / "report", enforce_file_format=True)
    (tmp_path / "README.txt").write_text("nothing")
    (tmp_path / "empty").touch()
    assert read_series(tmp_path).shape == (13, 11, 6)


def test_a_file_without_preamble_and_meta_information_is_read(tmp_path):
    voxels = phantoms.volume()
    for number, ds in enumerate(phantoms.build_slices(voxels)):
        del ds.file_meta
        ds.save_as(tmp_path / f"{number}", implicit_vr=number % 2 == 0, little_endian=True)
    assert np.array_equal(read_series(tmp_path).array, voxels)


def drop(slices, *indices):
    return [ds for index, ds in enumerate(slices) if index not in indices]


def change(slices, keyword, value, *indices):
    for index in indices or range(len(slices)):
        setattr(slices[index], keyword, value)
    return slices


SLICES = {"voxels": phantoms.volume((5, 4, 8))}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda s: drop(s, 3, 4), r"2 slices are missing, between 36\.00 and 45\.00 mm"),
        (lambda s: drop(s, 1), r"1 slice is missing, between 30\.00 and 36\.00 mm"),
        (lambda s: change(s, "ImagePositionPatient", [-10.5, 20.25, 40.0], 3), r"range from 2\.00 to 4\.00 mm"),
        (lambda s: change(s, "ImagePositionPatient", [-8.5, 20.25, 39.0], 3), "shift sideways"),
        (lambda s: change(s, "ImagePositionPatient", [-10.5, 20.25, 36.0], 3), "1 of 8 slices lie where another does"),
        (lambda s: change(s, "ImageOrientationPatient", [0, 1, 0, 0, 0, 1], 3), "missing.*: another orientation"),
        (lambda s: change(s, "ImageOrientationPatient", [0, 1, 0, 0, 0, 1], 1, 2, 3), "several orientations"),
        (lambda s: change(s, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "perpendicular"),
        (lambda s: change(s, "PixelSpacing", [2, 2], 3), "missing.*: another pixel spacing"),
        (lambda s: change(s, "PixelSpacing", [2, 2], 1, 2, 3), "one pixel spacing"),
        (lambda s: change(s, "PixelSpacing", [0, 1]), "positive Pixel Spacing"),
        (lambda s: change(s, "PixelSpacing", None), "PixelSpacing of every slice"),
        (lambda s: change(s, "ImagePositionPatient", [1e30, 0, 0]), "plausible"),
        (lambda s: change(s, "Rows", 3, 3), "missing.*: another size"),
        (lambda s: change(s, "Rows", 3, 1, 2, 3), "one Rows in a series, given 2"),
        (lambda s: change(s, "SeriesInstanceUID", "1.2.3", 3), r"expected one image series, given 2: .*MR, 7.*MR, 1"),
        (lambda s: change(s, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (lambda s: change(s, "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "mosaic"),
        (lambda s: change(s, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], 2, 3), "missing.*3, 4: a localizer"),
        (lambda s: change(s, "SOPClassUID", uid.SecondaryCaptureImageStorage), "secondary capture"),
        (lambda s: change(s, "SOPClassUID", uid.SegmentationStorage), r"8 x it is a segmentation \(SEG\)"),
        (lambda s: change(s, "SOPClassUID", uid.RTStructureSetStorage), "structure set"),
        (lambda s: change(s, "SOPClassUID", "1.3.12.2.1107.5.9.1"), "none that is read"),
        (lambda s: change(s, "PixelData", b"\0" * 20, 3), "truncated: 5 x 4 x 1 pixels are 40 bytes, given 20"),
        (lambda s: change(s, "Columns", 65535), "truncated"),
        (lambda s: change(s, "BitsAllocated", 64), "64 bits"),
        (lambda s: change(s, "NumberOfFrames", 2**31 - 1), "1 to 65536 frames, given 2147483647"),
        (lambda s: change(s, "PhotometricInterpretation", "CMYK"), "given CMYK"),
        (lambda s: change(s, "SOPInstanceUID", "", 3), "no valid SOPInstanceUID"),
        (lambda s: change(s, "SeriesInstanceUID", "../../1"), "no valid SeriesInstanceUID"),
        (lambda s: s[:0], "given none in 0 files"),
    ],
)
def test_a_bad_series_is_refused_with_the_reason(tmp_path, spoil, reason):
    slices = spoil(phantoms.build_slices(**SLICES))
    tmp_path.joinpath("series").mkdir()
    with pytest.raises(SeriesError, match=reason) as caught:
        read(slices, tmp_path / "series")
    assert "Müller" not in str(caught.value) and "P-1" not in str(caught.value)


def test_several_volumes_of_one_enhanced_instance_are_refused(tmp_path):
    slices = phantoms.build_slices(phantoms.volume())
    with pytest.raises(SeriesError, match="6 of 12 slices lie where another does"):
        read([phantoms.build_enhanced([*slices, *slices])], tmp_path)


def test_several_echoes_are_refused_by_name(tmp_path):
    first, second = phantoms.build_slices(phantoms.volume()), phantoms.build_slices(phantoms.volume(seed=1))
    for ds, echo in [*((ds, 10) for ds in first), *((ds, 80) for ds in second)]:
        ds.EchoTime = echo
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ds.SOPInstanceUID[:50]}.{echo}"
    with pytest.raises(SeriesError, match=r"6 of 12 slices lie where another does.*differ in EchoTime"):
        read([*first, *second], tmp_path)


@pytest.mark.parametrize(("share", "is_read"), [(0.04, True), (0.08, False)])
def test_positions_may_be_rounded_but_not_uneven(tmp_path, share, is_read):
    slices = phantoms.build_slices(phantoms.volume())
    slices[2].ImagePositionPatient = [-10.5, 20.25, 30 + 3 * (2 + share)]
    phantoms.write(slices, tmp_path)
    if is_read:
        np.testing.assert_allclose(read_series(tmp_path).affine, phantoms.affine_of(), atol=1e-5)
    else:
        with pytest.raises(SeriesError, match="evenly spaced"):
            read_series(tmp_path)


def test_a_series_does_not_show_its_patient(tmp_path):
    series = read(phantoms.build_slices(phantoms.volume()), tmp_path)
    assert repr(series) == f"Series({series.series_instance_uid}, MR, (13, 11, 6))"


def test_a_file_that_does_not_exist_is_said_without_its_name(tmp_path):
    with pytest.raises(SeriesError, match="1 of 1 do not exist"):
        read_series(tmp_path / "Doe^Jane.dcm")


def test_a_header_alone_says_why_it_is_refused():
    ds = phantoms.build_slices(phantoms.volume((3, 3, 1)))[0]
    assert find_refusal(ds) is None
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.2"
    assert "secondary capture" in find_refusal(ds)
    with pytest.raises(SeriesError, match="secondary capture"):
        choose_header([ds])


def test_nifti_holds_the_same_voxels_at_the_same_place(tmp_path):
    voxels = phantoms.volume()
    series = read(phantoms.build_slices(voxels, directions=phantoms.OBLIQUE), tmp_path / "series")
    for name in ("1.2.3.nii", "1.2.3.nii.gz"):
        write_nifti(series, tmp_path / "out" / name)
        image = read_image(tmp_path / "out" / name, read_task("hippocampus"))
        assert np.array_equal(image[0].numpy(), voxels)
        np.testing.assert_allclose(image.affine.numpy(), series.affine, atol=1e-4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.2.3.nii", "1.2.3.nii.gz"]


def test_simpleitk_reads_the_same(tmp_path):
    voxels = phantoms.volume()
    folder = phantoms.write(phantoms.build_slices(voxels, directions=phantoms.OBLIQUE), tmp_path)
    check_like_simpleitk(folder)


@pytest.mark.parametrize("name", ["mr-hippocampus-crop", "mr-brain-t1post"])
def test_real_series_read_as_simpleitk_reads_them(shared_data, name):
    check_like_simpleitk(shared_data / "dicom" / name)


def check_like_simpleitk(folder: Path) -> None:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    expected = np.eye(4)
    expected[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    expected[:3, 3] = image.GetOrigin()
    series = read_series(folder)
    assert np.array_equal(series.array, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    np.testing.assert_allclose(series.affine, np.diag([-1, -1, 1, 1]) @ expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "reason"), [("edge-secondary-capture", "secondary capture"), ("edge-siemens", "series, given 4")]
)
def test_real_oddities_are_refused(shared_data, tmp_path, name, reason):
    with pytest.raises(SeriesError, match=reason):
        read_series(shared_data / "dicom" / name)


def test_a_real_mosaic_is_refused(shared_data, tmp_path):
    with pytest.raises(SeriesError, match="mosaic"):
        read_series(sorted((shared_data / "dicom" / "edge-siemens").glob("epi_pe_ap*.dcm")))


def test_nothing_of_the_patient_is_in_the_nifti(tmp_path):
    series = read(phantoms.build_slices(phantoms.volume()), tmp_path / "series")
    write_nifti(series, tmp_path / "out.nii")
    assert b"ller" not in (tmp_path / "out.nii").read_bytes()
    assert nib.load(tmp_path / "out.nii").header["descrip"] == b""


def test_another_format_is_refused_and_leaves_nothing_behind(tmp_path):
    series = read(phantoms.build_slices(phantoms.volume()), tmp_path / "series")
    with pytest.raises(ConfigError, match=r"ending in \.nii"):
        write_nifti(series, tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["series"]
