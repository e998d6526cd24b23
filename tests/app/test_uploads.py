"""What is not an image of the server's tasks does not get in, and no answer says where the server keeps what it has."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monailabel.interfaces.exception import MONAILabelException

from iopfl.base.errors import ImageExistsError, StorageError
from iopfl.compat import apply_tasks
from iopfl.labels.datastore import VersionedDatastore
from iopfl.labels.final_rule import FinalRule
from rest_fuzz import tells

from .site import GLAND, oblique_affine

IMAGE = "case00"


def write_huge() -> bytes:
    """A NIfTI of 30000 x 30000 x 30000 voxels, by its header."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((30_000,) * 3)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return gzip.compress(header.binaryblock + bytes(1000))


def write_whole() -> bytes:
    return gzip.compress(nib.Nifti1Image(np.ones((28, 36, 5), np.uint8), oblique_affine()).to_bytes())


def hostile(home) -> dict[str, tuple[str, bytes, str]]:
    """Kind -> file name, content, and words of the refusal."""
    secret = home / "state" / "secret"
    secret.write_bytes(b"\x07" * 120)
    meta = f"ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_UCHAR\nElementDataFile = {secret}\n"
    nrrd = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 6 5 4\nencoding: raw\ndata file: {secret}\n\n"
    return {
        "detached MetaImage": ("a.mha", meta.encode(), "another file"),
        "detached NRRD": ("a.nrrd", nrrd.encode(), "another file"),
        "MetaImage as NIfTI": ("a.nii.gz", gzip.compress(meta.encode() + bytes(600)), "no header of one"),
        "one byte": ("a.nii.gz", b"x", "not gzipped"),
        "huge": ("a.nii.gz", write_huge(), "GB of memory"),
        "cut": ("a.nii.gz", write_whole()[:-30], "cannot be read"),
    }


@pytest.fixture
def store(tmp_path) -> VersionedDatastore:
    apply_tasks()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / f"{IMAGE}.nii.gz").write_bytes(write_whole())
    options = {"tasks": {"gland": GLAND}, "labels": tmp_path / "labels", "rule": FinalRule.parse("newest")}
    return VersionedDatastore(tmp_path / "site", extensions=["*.nii.gz", "*.nii"], **options)


@pytest.mark.parametrize("alike", ["CASE00", "case00.", "case\uff100", "case\u00ad00", "case00\u202e", " case00"])
def test_an_image_that_looks_like_another_does_not_get_in(store, tmp_path, alike):
    (tmp_path / "a.nii.gz").write_bytes(write_whole())
    with pytest.raises((ImageExistsError, MONAILabelException)):
        store.add_image(alike, str(tmp_path / "a.nii.gz"), {})
    assert store.list_images() == [IMAGE] and len(list((tmp_path / "site").glob("*.gz"))) == 1


@pytest.mark.parametrize("name", ["a.NII.GZ", "a.Nii"])
def test_an_image_whose_name_ends_in_capitals_is_still_there_later(store, tmp_path, name):
    whole = write_whole()
    (tmp_path / name).write_bytes(whole if name.endswith("GZ") else gzip.decompress(whole))
    store.add_image("new", str(tmp_path / name), {})
    assert list((tmp_path / "site").glob(f"new{name[1:].lower()}"))
    options = {"tasks": {"gland": GLAND}, "labels": tmp_path / "labels", "rule": FinalRule.parse("newest")}
    again = VersionedDatastore(tmp_path / "site", extensions=["*.nii.gz", "*.nii"], **options)
    assert sorted(again.list_images()) == [IMAGE, "new"]


KINDS = ("detached MetaImage", "detached NRRD", "MetaImage as NIfTI", "one byte", "huge", "cut")
ROUTES = [
    ("PUT", "/datastore/image", "file"),
    ("PUT", "/datastore/image?image=fresh", "file"),
    ("PUT", "/datastore/", "file"),
    ("PUT", f"/datastore/label?image={IMAGE}", "label"),
    ("PUT", "/session/", "files"),
    ("POST", "/infer/gland", "file"),
]


def everything(home) -> dict[str, int]:
    """The files of the site and of the sessions, but for the index."""
    places = (home / "site_a", home / "state" / "sessions", home / "state" / "labels")
    files = (file for place in places for file in place.rglob("*") if file.is_file())
    return {str(file): file.stat().st_size for file in files if "datastore_v2" not in file.name}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_image_is_refused_on_every_way_in_and_nothing_is_left(restarted, home, kind):
    name, content, words = hostile(home)[kind]
    before, listed = everything(home), restarted.get("/datastore/?output=all").json()["objects"].keys()
    for method, path, field in ROUTES:
        if path == "/session/" and kind in ("huge", "cut"):
            continue  # whole by its header: what opens it refuses it
        answer = restarted.request(method, path, files={field: (name, content)})
        told = answer.json()["detail"]
        expected = "expected the image's grid" if field == "label" and kind == "huge" else words
        assert (answer.status_code, expected in told) == (400, True), (path, answer.text)
        assert not tells(answer, str(home)) and "iopfl-request" not in told, told
    assert everything(home) == before
    assert restarted.get("/datastore/?output=all").json()["objects"].keys() == listed


@pytest.mark.parametrize("kind", KINDS[:4])
def test_a_label_that_training_does_not_use_is_looked_at_too(restarted, home, kind):
    name, content, words = hostile(home)[kind]
    answer = restarted.request("PUT", f"/datastore/label?image={IMAGE}&tag=original", files={"label": (name, content)})
    assert (answer.status_code, words in answer.json()["detail"]) == (400, True), answer.text
    assert not list((home / "site_a" / "labels" / "original").glob("*"))


def test_an_image_that_is_there_is_never_replaced(restarted, home):
    before = everything(home)
    for name in (f"{IMAGE}.nii.gz", f"{IMAGE}.nii"):
        answer = restarted.request("PUT", f"/datastore/image?image={IMAGE}", files={"file": (name, write_whole())})
        assert (answer.status_code, "stays as it is" in answer.text) == (409, True), answer.text
    assert everything(home) == before


@pytest.mark.parametrize("name", [".nii.gz", "..nii.gz", ".hidden.nii.gz"])
def test_an_image_needs_a_name_that_finds_it_again(restarted, home, name):
    before = everything(home)
    answer = restarted.request("PUT", "/datastore/image", files={"file": (name, write_whole())})
    assert answer.status_code == 400, answer.text
    assert everything(home) == before


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_on_a_full_disk_no_image_is_listed_or_left(small_disk, tmp_path):
    apply_tasks()
    source = tmp_path / "upload.nii.gz"
    noise = np.random.default_rng(0).integers(0, 255, (28, 36, 5), np.uint8)
    source.write_bytes(gzip.compress(nib.Nifti1Image(noise, oblique_affine()).to_bytes()))
    options = {"tasks": {GLAND.name: GLAND}, "labels": tmp_path / "labels", "rule": FinalRule()}
    store = VersionedDatastore(str(small_disk), extensions=["*.nii.gz"], **options)
    assert store.add_image("before", str(source), {}) == "before"
    with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(bytes(4096))
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\): it is not kept"):
        store.add_image("fresh", str(source), {})
    assert store.list_images() == ["before"] and not list(small_disk.glob("*fresh*"))
    (small_disk / "filler").unlink()
    assert store.add_image("fresh", str(source), {}) == "fresh"


def test_scribbles_are_refused_without_opening_the_image(restarted):
    answer = restarted.request("POST", f"/infer/gland?image={IMAGE}", files={"label": ("a.bin", bytes(5040))})
    assert (answer.status_code, "no model of this server takes any" in answer.text) == (400, True), answer.text


def test_no_answer_tells_where_the_servers_folders_are(restarted, home):
    session = restarted.request("PUT", "/session/", files={"files": ("a.nii.gz", write_whole())})
    number = session.json()["session_id"]
    answers = [
        session,
        restarted.get(f"/session/{number}"),
        restarted.get(f"/datastore/image/info?image={IMAGE}"),
        restarted.get("/datastore/?output=train"),
        restarted.get("/datastore/?output=all"),
        restarted.post("/activelearning/random", json={}),
        restarted.get("/info/"),
        restarted.get("/train/"),
        restarted.get("/logs/?lines=2000"),
        restarted.get("/iopfl/status"),
        restarted.post("/infer/gland?image=broken"),
        restarted.get("/iopfl/answer?task=gland&image=broken"),
        restarted.request("DELETE", f"/session/{number}"),
    ]
    for answer in answers:
        assert answer.status_code < 500 and not tells(answer, str(home)), (answer.url, answer.text[:2000])
    assert answers[2].json()["path"] == f"{IMAGE}.nii.gz"
    assert all(not pair["image"].startswith("/") for pair in answers[3].json())
    assert json.loads(answers[0].text)["session_info"]["image"].endswith("a.nii.gz")
