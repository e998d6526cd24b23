"""Phantoms: whole, repeatable, one patient a case, and unlike from site to site."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from iopfl.base.errors import DatasetError
from iopfl.datasets import write_phantoms
from iopfl.datasets.phantom import IN_PLANE, SITES, draw_case

CASES = 3


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Folder of all sites, with `CASES` cases each."""
    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", cases=CASES)


@pytest.fixture(scope="module")
def volumes(phantoms):
    """All cases read back: {site: [(image, label), ...]}."""
    return {
        site: [
            (nib.load(path), nib.load(phantoms / site / "labels" / "final" / path.name))
            for path in sorted((phantoms / site).glob("*.nii.gz"))
        ]
        for site in SITES
    }


def read_bytes(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_site_has_every_case_with_its_label(phantoms):
    for site in SITES:
        names = [f"{site}_case{case:02d}.nii.gz" for case in range(1, CASES + 1)]
        assert sorted(p.name for p in (phantoms / site).glob("*")) == ["labels", *names]
        assert sorted(p.name for p in (phantoms / site / "labels" / "final").iterdir()) == names


def test_same_seed_gives_same_bytes_and_a_site_does_not_depend_on_others(phantoms, tmp_path):
    again = write_phantoms(tmp_path / "again", sites=["site_c"], cases=CASES)
    whole = {k: v for k, v in read_bytes(phantoms).items() if k.parts[0] == "site_c"}
    alone = {k: v for k, v in read_bytes(again).items() if k.parts[0] == "site_c"}
    assert whole == alone


def test_another_seed_or_case_is_another_patient():
    style = SITES["site_a"]
    masks = [draw_case(style, case, seed=seed)[1] for case, seed in ((1, 0), (2, 0), (1, 1))]
    arrays = [np.asarray(mask.dataobj) for mask in masks]
    assert not np.array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[0], arrays[2])


def test_label_lies_on_the_grid_of_its_image(volumes):
    for site, pairs in volumes.items():
        for image, label in pairs:
            assert image.shape == label.shape == (IN_PLANE, IN_PLANE, SITES[site].slices)
            assert np.array_equal(image.affine, label.affine)
            assert np.allclose(image.header.get_zooms(), SITES[site].spacing)
            assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
            assert image.header["qform_code"] == image.header["sform_code"] == 1
            assert image.header.get_xyzt_units()[0] == "mm"


def test_gland_is_whole_inside_and_of_human_size(volumes):
    for pairs in volumes.values():
        for _, label in pairs:
            mask = np.asarray(label.dataobj)
            assert set(np.unique(mask)) == {0, 1}
            for axis in range(3):
                assert not np.take(mask, [0, -1], axis=axis).any()
            assert ndimage.label(mask)[1] == 1
            milliliters = mask.sum() * np.prod(label.header.get_zooms()) / 1000
            assert 12 < milliliters < 60


def test_gland_is_where_the_label_says():
    """Bright peripheral zone behind, darker central gland in front."""
    image, label = (np.asarray(v.dataobj).astype(float) for v in draw_case(SITES["site_a"], 1))
    x, y, z = np.nonzero(label)
    middle = z == round(z.mean())
    x, y, z = x[middle], y[middle], z[middle]
    inside = ndimage.binary_erosion(label[:, :, z[0]], iterations=2)[x, y]
    front = image[x, y, z][inside & (y > y.mean())]
    back = image[x, y, z][inside & (y < np.percentile(y, 25))]
    assert np.median(back) > 1.3 * np.median(front)


def test_sites_differ_in_intensities_and_field_of_view(volumes):
    def histogram(pairs):
        values = np.concatenate([np.asarray(i.dataobj, dtype=float).ravel() for i, _ in pairs])
        scaled = (values - values.mean()) / values.std()
        counts, _ = np.histogram(scaled, bins=40, range=(-2, 4))
        return counts / counts.sum()

    histograms = [histogram(pairs) for pairs in volumes.values()]
    widths = {pairs[0][0].header.get_zooms()[0] * IN_PLANE for pairs in volumes.values()}
    assert len(widths) == len(SITES)
    for first in range(len(histograms)):
        for second in range(first):
            overlap = np.minimum(histograms[first], histograms[second]).sum()
            assert overlap < 0.93


def test_endorectal_coil_is_bright_behind_the_gland(volumes):
    def back_to_front(image, label):
        """How much brighter the posterior half of the gland is."""
        voxels, mask = np.asarray(image.dataobj, dtype=float), np.asarray(label.dataobj) > 0
        y = np.nonzero(mask)[1]
        values = voxels[mask]
        return values[y < y.mean()].mean() / values[y > y.mean()].mean()

    means = {site: np.mean([back_to_front(*p) for p in pairs]) for site, pairs in volumes.items()}
    assert max(means, key=means.get) == "site_c"


def test_splits_cover_every_case_once(phantoms):
    splits = json.loads((phantoms / "splits.json").read_text())
    assert list(splits) == list(SITES)
    for site, parts in splits.items():
        stems = {p.name.removesuffix(".nii.gz") for p in (phantoms / site).glob("*.nii.gz")}
        assert set(parts["train"]) | set(parts["test"]) == stems
        assert not set(parts["train"]) & set(parts["test"])
        assert len(parts["train"]) == 2 and len(parts["test"]) == 1


def test_progress_reaches_the_end(tmp_path):
    calls = []
    write_phantoms(tmp_path / "p", sites=["site_d"], cases=2, progress=lambda *args: calls.append(args))
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": ["site_z"]}, "no phantom site site_z: choose from site_a"),
        ({"sites": []}, "none given"),
        ({"cases": 1}, "at least 2 cases .* 1 given"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(tmp_path, arguments, message):
    with pytest.raises(DatasetError, match=message):
        write_phantoms(tmp_path / "p", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(DatasetError, match="not an empty folder"):
        write_phantoms(tmp_path, cases=2)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "new" / "p", cases=2, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_is_named(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("iopfl.datasets.phantom.nib.save", refuse)
    with pytest.raises(DatasetError, match=r"No space left on device.*free space"):
        write_phantoms(tmp_path / "p", cases=2)
    assert not list(tmp_path.iterdir())
