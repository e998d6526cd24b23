"""Importers, on small files of the layouts that the data sets are published in."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from dataset_layouts import (
    MAKERS,
    gray_mask,
    make_chase,
    make_domains,
    make_drive,
    make_hrf,
    make_originals,
    make_prostate,
    make_stare,
    photo,
    vessels,
    write_picture,
    write_volume,
)
from PIL import Image

from iopfl.base.errors import DatasetError
from iopfl.datasets import IMPORTABLE, import_dataset
from iopfl.datasets.importers import fundus


@pytest.fixture
def sites(tmp_path):
    return tmp_path / "sites"


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "download"
    folder.mkdir()
    return folder


def huge_volume() -> bytes:
    """A header of 30000 x 30000 x 30000 voxels of two bytes, and nothing behind it."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((30_000,) * 3)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + bytes(4)


def read_label(sites, site, stem):
    return np.asarray(Image.open(sites / site / "labels" / "final" / f"{stem}.png"))


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@pytest.mark.parametrize("name", IMPORTABLE)
def test_import_gives_labeled_site_folders_and_a_split_by_subject(name, source, sites):
    MAKERS[name](source)
    calls = []
    summary = import_dataset(name, source, sites, progress=lambda *args: calls.append(args))

    splits = json.loads((sites / "splits.json").read_text())
    assert set(splits) == {s.site for s in summary.sites}
    for site in summary.sites:
        images = sorted(p.name for p in (sites / site.site).iterdir() if p.is_file())
        labels = sorted(p.name for p in (sites / site.site / "labels" / "final").iterdir())
        assert images == labels and len(images) == site.images
        parts = splits[site.site]
        stems = {name.removesuffix(".nii.gz").removesuffix(".png") for name in images}
        assert set(parts["train"]) | set(parts["test"]) == stems
        assert len(parts["train"]) + len(parts["test"]) == site.images
        assert (len(parts["train"]), len(parts["test"])) == (site.train, site.test)
        assert site.train and site.test
    assert calls[-1] == (len(calls), sum(s.images for s in summary.sites))
    # What one reads at the end names every site.
    assert all(site in str(summary) for site in splits)


@pytest.mark.parametrize("name", IMPORTABLE)
def test_an_empty_folder_is_refused_with_the_layout_expected(name, source, sites):
    with pytest.raises(DatasetError, match=r"no images of .*: expected .*unpacked download"):
        import_dataset(name, source, sites)
    assert not sites.exists()


@pytest.mark.parametrize(
    ("name", "victim", "message"),
    [
        ("prostate", "HK/Case01_Segmentation.nii.gz", r"1 labels missing \(HK/Case01_segmen"),
        ("prostate", "BIDMC/Case02.nii.gz", r"1 images missing \(BIDMC/Case02.nii.gz"),
        ("optic_disc_cup", "Domain2/test/ROIs/mask/G-1-R.png", r"1 masks missing \(Domain2/test"),
        ("drive", "training/1st_manual/22_manual1.gif", r"1 labels .*1st_manual/22_manual1.gif"),
        ("chase_db1", "Image_02L_1stHO.png", r"1 labels missing \(Image_02L_1stHO.png"),
        ("stare", "labels-ah/im0139.ah.ppm.gz", r"1 labels missing \(labels-ah/im0139"),
        ("hrf", "manual1/03_g.tif", r"HRF: 1 labels missing \(manual1/03_g.tif"),
    ],
)
def test_a_missing_file_is_named(name, victim, message, source, sites):
    MAKERS[name](source)
    (source / victim).unlink()
    with pytest.raises(DatasetError, match=message):
        import_dataset(name, source, sites)
    assert not sites.exists()


@pytest.mark.parametrize(
    ("name", "victim", "message"),
    [
        ("prostate", "UCL/Case02.nii", "UCL/Case02.nii cannot be read as NIfTI"),
        (
            "optic_disc_cup",
            "Domain4/test/ROIs/image/V0003.png",
            "V0003.png: its checksum does not fit, or it is cut short",
        ),
        ("drive", "training/1st_manual/25_manual1.gif", "25_manual1.gif cannot be read"),
        ("stare", "labels-ah/im0139.ah.ppm.gz", "im0139.ah.ppm.gz cannot be read"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_left(name, victim, message, source, sites):
    MAKERS[name](source)
    content = (source / victim).read_bytes()
    (source / victim).write_bytes(content[: len(content) // 3])
    with pytest.raises(DatasetError, match=message):
        import_dataset(name, source, sites)
    assert listing(source.parent) == ["download", *(f"download/{p}" for p in listing(source))]


@pytest.mark.parametrize(
    ("name", "victim", "place", "message"),
    [
        ("prostate", "HK/Case01.nii.gz", -7, "Case01.nii.gz cannot be read as NIfTI"),
        ("prostate", "HK/Case01_Segmentation.nii.gz", -7, "Case01_Segmentation.nii.gz cannot be read as NIfTI"),
        ("optic_disc_cup", "Domain4/test/ROIs/mask/V0003.png", -13, "V0003.png: its checksum does not fit"),
    ],
)
def test_a_checksum_that_does_not_fit_is_noticed(name, victim, place, message, source, sites):
    """nibabel and Pillow pass over it, and over the flipped bits before it."""
    MAKERS[name](source)
    content = bytearray((source / victim).read_bytes())
    content[place] ^= 1
    (source / victim).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        import_dataset(name, source, sites)
    assert not sites.exists()


@pytest.mark.parametrize(
    ("name", "victim", "content", "message"),
    [
        ("prostate", "UCL/Case02.nii", b"ObjectType = Image\nElementDataFile = /etc/hostname\n", "read as NIfTI"),
        ("prostate", "UCL/Case02.nii", huge_volume(), r"holds 54000.0 GB, more than the memory"),
        (
            "hrf",
            "manual1/03_h.tif",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            "as a picture",
        ),
        ("stare", "labels-ah/im0139.ah.ppm.gz", gzip.compress(b"P6\n60000 60000\n255\n"), "as a picture"),
    ],
)
def test_a_file_that_leads_elsewhere_or_unpacks_to_too_much_is_refused(name, victim, content, message, source, sites):
    MAKERS[name](source)
    (source / victim).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        import_dataset(name, source, sites)
    assert not sites.exists()


def test_a_failed_import_leaves_other_sites_untouched(tmp_path, source, sites):
    make_stare(tmp_path / "stare", suffix=".ppm")
    import_dataset("stare", tmp_path / "stare", sites)
    before, splits = listing(sites), (sites / "splits.json").read_text()
    make_hrf(source)
    write_picture(source / "manual1/03_h.tif", vessels(10, 10))
    with pytest.raises(DatasetError, match=r"03_h.tif measures 10 x 10, its image 24 x 32"):
        import_dataset("hrf", source, sites)
    assert listing(sites) == before
    assert (sites / "splits.json").read_text() == splits
    assert not [p for p in tmp_path.rglob("*") if "partial" in p.name]


def test_a_photograph_that_exif_turns_is_imported_as_it_is_shown(source, sites):
    make_hrf(source)
    turned, exif = source / "images/01_dr.JPG", Image.Exif()
    exif[0x0112] = 6
    with Image.open(turned) as shown:
        size = shown.size
        shown.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    import_dataset("hrf", source, sites)
    (image,) = [path for path in sites.rglob("*01_dr*") if "label" not in str(path.relative_to(sites))]
    with Image.open(image) as written:
        assert written.size == size
    (source / "manual1/01_dr.tif").unlink()
    write_picture(source / "manual1/01_dr.tif", vessels()[:, ::-1].T)  # drawn on the lying photograph
    shutil.rmtree(sites)
    import_dataset("hrf", source, sites)


def test_a_disk_that_fills_up_is_named_and_nothing_is_left(source, sites, monkeypatch):
    make_hrf(source)

    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fundus.Image.Image, "save", refuse)
    with pytest.raises(DatasetError, match=r"No space left on device.*free space"):
        import_dataset("hrf", source, sites)
    assert [p.name for p in source.parent.iterdir()] == ["download"]


def test_vessel_data_sets_share_one_folder(tmp_path, sites):
    for name in ("drive", "chase_db1", "stare", "hrf"):
        MAKERS[name](tmp_path / name)
        import_dataset(name, tmp_path / name, sites)
    splits = json.loads((sites / "splits.json").read_text())
    assert list(splits) == ["DRIVE", "CHASE_DB1", "STARE", "HRF"]
    with pytest.raises(DatasetError, match="already holds HRF: remove it"):
        import_dataset("hrf", tmp_path / "hrf", sites)


def test_a_damaged_table_of_splits_is_refused_and_kept(source, sites):
    make_stare(source)
    sites.mkdir()
    (sites / "splits.json").write_text('{"DRIVE": ')
    with pytest.raises(DatasetError, match=r"splits.json cannot be read as JSON.*repair or remove"):
        import_dataset("stare", source, sites)
    assert listing(sites) == ["splits.json"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("nonsense", "no importer 'nonsense': choose from prostate"), ("drive", "check the path")],
)
def test_wrong_names_are_refused(name, message, tmp_path, sites):
    with pytest.raises(DatasetError, match=message):
        import_dataset(name, tmp_path / "nowhere", sites)


def test_an_archive_is_to_be_unpacked_first(tmp_path, sites):
    (tmp_path / "HRF.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match="unpack it first"):
        import_dataset("hrf", tmp_path / "HRF.zip", sites)


def test_drive_keeps_its_official_split(source, sites):
    make_drive(source)
    import_dataset("drive", source, sites)
    splits = json.loads((sites / "splits.json").read_text())["DRIVE"]
    assert splits == {"train": ["21", "22", "23", "24", "25"], "test": ["01", "02"]}
    assert np.array_equal(read_label(sites, "DRIVE", "21"), vessels() // 255)
    written = np.asarray(Image.open(sites / "DRIVE" / "21.png"))
    assert np.array_equal(written, Image.open(source / "training/images/21_training.tif"))


def test_drive_without_test_labels_is_split_by_subject(source, sites):
    make_drive(source, test_labels=False)
    summary = import_dataset("drive", source, sites)
    assert any("2 test images have no labels" in note for note in summary.notes)
    assert (summary.sites[0].images, summary.sites[0].train, summary.sites[0].test) == (5, 3, 2)


@pytest.mark.parametrize(
    ("name", "site", "subject"),
    [("chase_db1", "CHASE_DB1", slice(0, 8)), ("hrf", "HRF", slice(0, 2))],
)
def test_images_of_one_subject_stay_together(name, site, subject, source, sites):
    MAKERS[name](source)
    import_dataset(name, source, sites)
    parts = json.loads((sites / "splits.json").read_text())[site]
    assert not {s[subject] for s in parts["train"]} & {s[subject] for s in parts["test"]}


def test_stare_leaves_out_the_images_nobody_labeled(source, sites):
    make_stare(source)
    for number in range(200, 220):
        write_picture(source / f"all-images/im{number:04d}.ppm", photo())
    summary = import_dataset("stare", source, sites)
    assert summary.sites[0].images == 4
    assert summary.notes == ("STARE: 20 images without a label left out",)


def test_an_incomplete_download_is_said(source, sites):
    make_chase(source)
    summary = import_dataset("chase_db1", source, sites)
    assert summary.notes == ("CHASE_DB1 has 28 images, 6 were found",)


def test_a_vessel_label_of_one_value_is_refused(source, sites):
    make_hrf(source)
    write_picture(source / "manual1/01_dr.tif", np.zeros((24, 32), dtype=np.uint8))
    with pytest.raises(DatasetError, match=r"01_dr.tif should show vessels .* one value only"):
        import_dataset("hrf", source, sites)


def test_prostate_zones_become_one_label_and_grids_stay(source, sites):
    make_prostate(source / "Processed_data_nii")
    summary = import_dataset("prostate", source, sites)
    assert "BIDMC: label values 1, 2 became 1 (3 images)" in summary.notes
    assert "sites not found and left out: BMC, I2CVB, RUNMC" in summary.notes
    for site, extension in (("BIDMC", "nii.gz"), ("UCL", "nii")):
        given = nib.load(source / "Processed_data_nii" / site / f"Case01.{extension}")
        image = nib.load(sites / site / "Case01.nii.gz")
        label = nib.load(sites / site / "labels" / "final" / "Case01.nii.gz")
        assert np.array_equal(given.dataobj, image.dataobj)
        assert np.allclose(given.affine, image.affine) and np.allclose(label.affine, image.affine)
        assert label.get_data_dtype() == np.uint8
        assert set(np.unique(label.dataobj)) == {0, 1}
        assert np.sum(label.dataobj) == 12


def test_prostate_accepts_one_site_and_the_names_of_the_code(source, sites):
    make_prostate(source, sites=("ISBI",))
    summary = import_dataset("prostate", source / "ISBI", sites)
    assert [s.site for s in summary.sites] == ["RUNMC"]


def test_prostate_writes_no_text_of_the_header(source, sites):
    make_prostate(source)
    path = source / "HK" / "Case00.nii.gz"
    volume = nib.load(path)
    volume.header["descrip"] = b"DOE^JOHN"
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj), volume.affine, volume.header), path)
    import_dataset("prostate", source, sites)
    assert b"DOE" not in gzip.decompress((sites / "HK" / "Case00.nii.gz").read_bytes())


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (np.zeros((8, 9, 4)), (-0.5, -0.5, 3, 1), "shows no prostate"),
        (np.ones((9, 8, 4)), (-0.5, -0.5, 3, 1), "measures 9 x 8 x 4, its image 8 x 9 x 4"),
        (np.ones((8, 9, 4)), (0.5, -0.5, 3, 1), "another orientation than its image"),
    ],
)
def test_a_prostate_label_that_does_not_fit_is_refused(array, affine, message, source, sites):
    make_prostate(source)
    path = source / "UCL" / "Case01_segmentation.nii"
    write_volume(path, array.astype(np.uint8), np.diag(affine).astype(float))
    with pytest.raises(DatasetError, match=message):
        import_dataset("prostate", source, sites)
    assert not sites.exists()


def test_domains_become_rim_and_cup(source, sites):
    make_domains(source)
    summary = import_dataset("optic_disc_cup", source, sites)
    assert {s.site for s in summary.sites} == set(fundus.DOMAINS.values())
    label = read_label(sites, "REFUGE-val", "V0001")
    assert (label[0, 0], label[12, 12], label[20, 20]) == (0, 1, 2)
    assert json.loads((sites / "splits.json").read_text())["Drishti-GS"] == {
        "train": ["gdrishtiGS_002", "ndrishtiGS_089"],
        "test": ["gdrishtiGS_001"],
    }


def test_an_official_split_does_not_part_the_eyes_of_a_subject(source, sites):
    make_domains(source)
    summary = import_dataset("optic_disc_cup", source, sites)
    parts = json.loads((sites / "splits.json").read_text())["RIM-ONE-r3"]
    assert parts == {"train": ["N-2-L"], "test": ["G-1-L", "G-1-R"]}
    assert any("RIM-ONE-r3: 1 images moved from train to test" in note for note in summary.notes)


def test_a_mask_of_the_opposite_gray_is_refused(source, sites):
    make_domains(source)
    write_picture(source / "Domain1/train/ROIs/mask/gdrishtiGS_002.png", 255 - gray_mask())
    with pytest.raises(DatasetError, match=r"should be white .* its border is 0"):
        import_dataset("optic_disc_cup", source, sites)


def test_originals_are_read_and_cropped_around_the_disc(source, sites, monkeypatch):
    monkeypatch.setattr(fundus, "ROI_SIDE", 30)
    make_originals(source)
    summary = import_dataset("optic_disc_cup", source, sites)
    counts = {s.site: s.images for s in summary.sites}
    assert counts == {"Drishti-GS": 3, "RIM-ONE-r3": 3, "REFUGE-train": 2, "REFUGE-val": 2}
    splits = json.loads((sites / "splits.json").read_text())
    assert splits["Drishti-GS"]["test"] == ["drishtiGS_001"]
    eyes = [part for part in splits["RIM-ONE-r3"].values() if "N-1-L" in part]
    assert "N-1-R" in eyes[0]
    for site, stem in (("RIM-ONE-r3", "G-5-R"), ("REFUGE-val", "V0002")):
        label = read_label(sites, site, stem)
        assert label.shape == (30, 30)
        assert (label == 1).sum() == 300 and (label == 2).sum() == 100
        assert label[15, 15] == 2
    assert any("left image of the stereo pair" in note for note in summary.notes)
    assert any("stretched to the size of its image" in note for note in summary.notes)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("drishtiGS_004_cupsegSoftmap.png", r"1 soft maps missing \(drishtiGS_004_cup"),
        ("G-5-R-Disc-Avg.png", r"1 masks missing \(Average_masks/G-5-R-Disc-Avg.png"),
        ("V0001.bmp", r"1 masks missing \(Disc_Cup_Masks/V0001.bmp"),
    ],
)
def test_a_missing_mask_of_an_original_is_named(pattern, message, source, sites):
    make_originals(source)
    next(source.rglob(pattern)).unlink()
    with pytest.raises(DatasetError, match=message):
        import_dataset("optic_disc_cup", source, sites)
