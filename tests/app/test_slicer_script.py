"""3D Slicer's MONAI Label module, played call by call with MONAI Label's client, on pictures, volumes and a PACS.

The order is that of the module's buttons: connect, Next Sample, fetch the volume, Run, correct, Submit Label,
Update Model, and back; then sessions for an image that the server does not have.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from PIL import Image
from pydicom import dcmread

from core.tiny import BALL, UNET
from dicomio.phantoms import build_slices, series_uid, write
from iopfl.access.users import Users
from iopfl.core.task import Task, read_task
from iopfl.dicomio.segmentation import read_segmentation
from iopfl.dicomio.series import read_series
from label_server import LabelServer, running_server, wait_until
from orthanc import Orthanc, running_orthanc

from .site import APP, GLAND, SPOT, draw_disk, make_site_bank, write_picture

CASES = 7
SOLID = replace(BALL, training=replace(GLAND.training, batch_size=2))


@dataclass(frozen=True)
class Site:
    """A running server, and what a person at it needs to know.

    Attributes:
        server: the server.
        tasks: its tasks, by the suffix of their images' files.
        folder: for what clients write.
        pacs: where its images are; None = in a folder.
        users: who may sign in there; None = nobody has to, and people are who their Slicer says they are.
        tokens: the tokens of those who did.
    """

    server: LabelServer
    tasks: dict[str, Task]
    folder: Path
    pacs: Orthanc | None = None
    users: Users | None = None
    tokens: dict[str, str] = field(default_factory=dict)

    def client(self, name: str) -> MONAILabelClient:
        """What one person's Slicer connects with."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        client = MONAILabelClient(self.server.url, str(place), "slicer" if self.users else name)
        if self.users:
            client.update_auth({"token_type": "bearer", "access_token": self.token(name)})
        return client

    def token(self, name: str) -> str:
        """What signs somebody in; whoever is new becomes an administrator."""
        assert self.users is not None
        if self.users.find(name) is None:
            self.users.add(name, "admin", None)
        if name not in self.tokens:
            self.tokens[name] = self.users.make_token(name, 1)
        return self.tokens[name]

    def request(self, method: str, path: str, name: str = "ann", **options) -> requests.Response:
        """Send a request as somebody."""
        headers = {"Authorization": f"Bearer {self.token(name)}"} if self.users else {}
        return self.server.request(method, path, headers=headers, **options)

    def history(self, image: str) -> dict:
        """An image's labels."""
        return self.request("GET", f"/iopfl/labels/{image}").json()


@contextmanager
def serving(folder: Path, studies: Path | str, tasks: list[Task], *args: str) -> Iterator[LabelServer]:
    banks = [make_site_bank(folder / f"bank_{task.name}", task, keys=folder / "keys") for task in tasks]
    conf = {"bank": ",".join(str(bank.folder) for bank in banks), "keys": str(folder / "keys"), "site": "site_a"}
    (folder / "tmp").mkdir(parents=True)
    env = {"TMPDIR": str(folder / "tmp")}
    with running_server(APP, studies, state=folder / "state", conf=conf, args=args, env=env) as running:
        yield running


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Iterator[Site]:
    """A folder of pictures and volumes, none of them labeled."""
    folder = tmp_path_factory.mktemp("local")
    studies = folder / "studies"
    studies.mkdir()
    for number in range(CASES):
        write_picture(studies / f"eye{number}.png", number)
        image, _ = draw_disk((20, 18), number)
        volume = np.repeat(image[..., None], 16, axis=2).astype(np.float32)
        nib.save(nib.Nifti1Image(volume, np.diag([1.0, 1.0, 1.5, 1.0])), studies / f"ball{number}.nii.gz")
    with serving(folder, studies, [SPOT, SOLID]) as server:
        yield Site(server, {".png": SPOT, ".nii.gz": SOLID}, folder)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory) -> Iterator[Site]:
    """A PACS of series of as many patients, and a server at which people sign in."""
    folder = tmp_path_factory.mktemp("pacs")
    with running_orthanc(folder / "orthanc") as orthanc:
        for number in range(CASES):
            image, _ = draw_disk((28, 36), number)
            slices = build_slices(np.repeat(image[..., None], 5, axis=2).astype(np.int16), series=f"case{number}")
            for ds in slices:
                ds.PatientID = f"patient {number}"
            orthanc.upload(*write(slices, folder / f"case{number}").iterdir())
        users = Users(folder / "state")
        users.add("kid", "annotator", None)
        with serving(folder, orthanc.dicomweb_url, [GLAND], "--auth", "local") as server:
            yield Site(server, {".nii.gz": GLAND}, folder, orthanc, users)


@pytest.fixture(params=["local", "pacs"])
def site(request) -> Site:
    return request.getfixturevalue(request.param)


def fetch(site: Site, sample: dict) -> Path:
    """The module's way to an image that is not on its own machine: a download under the sample's name."""
    assert Path(sample["path"]).name == sample["name"]
    answer = site.request("GET", "/datastore/image", params={"image": sample["id"]})
    answer.raise_for_status()
    path = site.folder / sample["name"]
    path.write_bytes(answer.content)
    return path


def correct(mask: str, task: Task, seed: int) -> str:
    """A person's corrections: a disk where it is in the image."""
    value = list(task.labels.values())[-1]
    if mask.endswith(".png"):
        shape = np.asarray(Image.open(mask)).shape
        drawn = draw_disk(shape[::-1], seed)[1].T
        Image.fromarray((drawn * value).astype(np.uint8)).save(mask)
        return mask
    image = nib.load(mask)
    drawn = draw_disk(image.shape[:2], seed)[1][..., None] * np.ones(image.shape[2:3])
    nib.save(nib.Nifti1Image((drawn * value).astype(np.uint8), image.affine), mask)
    return mask


def label(site: Site, client: MONAILabelClient, sample: dict) -> dict:
    """Run, correct, submit."""
    suffix = "".join(Path(sample["name"]).suffixes[-2:]) if sample["name"].endswith(".gz") else ".png"
    task = site.tasks[suffix]
    options = client.info()["models"][task.name]["config"]
    assert isinstance(options["answer_from"], list) and options["quality"] is False
    mask, params = client.infer(task.name, sample["id"], {"answer_from": "global", "quality": True})
    assert (
        dict(task.labels).items() <= params["label_names"].items()
        and params["model"] == "global"
        and "quality" in params
    )
    labels = [{"name": name, "idx": value} for name, value in task.labels.items()]
    seed = int("".join(filter(str.isdigit, sample["id"]))[-1])
    return client.save_label(sample["id"], correct(mask, task, seed), params={"label_info": labels})


def test_one_person_labels_a_case_of_each_kind(site):
    client = site.client("ann")
    assert client.auth_enabled() == bool(site.users)
    info = client.info()
    assert info["name"] == "iopfl" and info["datastore"]["completed"] == 0
    assert info["datastore"]["total"] == CASES * len(site.tasks)
    kinds = set()
    while kinds != set(site.tasks):
        sample = client.next_sample("random", {})
        path = fetch(site, sample)
        assert path.stat().st_size > 0
        if site.pacs:
            assert sample["id"] == sample["SeriesInstanceUID"] and sample["StudyInstanceUID"]
            assert not [key for key in sample if "Patient" in key]
        kind = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
        if kind in kinds:
            continue
        kinds.add(kind)
        answer = label(site, client, sample)
        assert answer["image"] == sample["id"] and answer["version"] == 1 and "warning" not in answer
        history = site.history(sample["id"])
        assert (history["final"], history["lent"]) == (1, None)
        (version,) = history["versions"]
        assert (version["annotator"], version["from"]["model"], version["is_current"]) == ("ann", "global", True)
        downloaded = client.download_label(sample["id"], "final")
        assert Path(downloaded).read_bytes() == site.request("GET", f"/iopfl/labels/{sample['id']}/versions/1").content
    assert client.info()["datastore"]["completed"] == len(site.tasks)


def test_many_people_at_once_get_different_cases_and_all_their_labels_stay(site):
    names = ["ann", "bob", "eve", "joe"]
    given: list[tuple[str, str]] = []
    failures: list[str] = []

    def work(name: str) -> None:
        client = site.client(name)
        while True:
            try:
                sample = client.next_sample("random", {})
            except MONAILabelClientException as error:
                if "lent to others" not in error.msg:
                    failures.append(error.msg)
                return
            if not sample:
                return
            given.append((sample["id"], name))
            label(site, client, sample)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    images = [image for image, _ in given]
    assert len(images) == len(set(images)), "a case was given to two"
    assert len(images) == (CASES - 1) * len(site.tasks)
    for image, name in given:
        (version,) = site.history(image)["versions"]
        assert version["annotator"] == name
    status = site.client("ann").info()["datastore"]
    assert (status["completed"], status["lent"]) == (CASES * len(site.tasks), 0)


def test_two_people_at_the_same_case_keep_a_version_each(site):
    image = sorted(site.client("ann").datastore()["objects"])[0]
    before = site.history(image)["versions"]
    sample = {"id": image, "name": site.client("ann").datastore()["objects"][image]["image"]["info"]["name"]}
    people = ["kim", "lou", "max"]
    threads = [threading.Thread(target=label, args=(site, site.client(name), sample)) for name in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = site.history(image)
    new = history["versions"][len(before) :]
    assert sorted(version["annotator"] for version in new) == people
    assert history["final"] == new[-1]["version"]
    address, author = f"/iopfl/labels/{image}", new[-1]["annotator"]
    undone = site.request("POST", f"{address}/undo", author, json={"client_id": author}).json()
    assert undone["final"] == new[-2]["version"] and undone["versions"][-1]["withdrawn"] == "undone"
    refused = site.request("POST", f"{address}/undo", "nobody", json={"client_id": "nobody"})
    assert refused.status_code == 409 and "nothing to undo" in refused.json()["detail"]
    chosen = site.request("POST", f"{address}/choose", "rev", json={"version": 1, "client_id": "rev"}).json()
    assert (chosen["final"], chosen["chosen"]) == (1, 1)
    if site.users:
        assert site.request("POST", f"{address}/choose", "kid", json={"version": 1}).status_code == 403
        assert site.request("POST", f"{address}/undo", "kid").status_code == 409, "may undo what is their own"
    lifted = site.request("POST", f"{address}/choose", "rev", json={"version": None}).json()
    assert lifted["final"] == new[-2]["version"]
    assert site.request("GET", "/iopfl/labels/nothing").status_code == 404
    assert site.request("GET", f"{address}/versions/99").status_code == 404


def ended(client: MONAILabelClient) -> dict | None:
    """A training's record, once it does not run any more."""
    task = client.train_status()
    return task if task["status"] not in ("SUBMITTED", "RUNNING") else None


def test_a_training_starts_and_stops(site):
    client = site.client("ann")
    for task in site.tasks.values():
        assert client.train_start(task.name, {"epochs": 5000})["status"] in ("SUBMITTED", "RUNNING")
        assert client.train_status(check_if_running=True)
        assert client.train_stop()["status"] == "STOPPED"
        assert not client.train_status(check_if_running=True)


def check_training(client: MONAILabelClient, server: LabelServer, state: Path, task: Task) -> None:
    """Train, and find the labels' versions that it says it used."""
    assert client.train_start(task.name, {"epochs": 2})["status"] in ("SUBMITTED", "RUNNING")
    done = wait_until(lambda: ended(client), 90, what="the training to end")
    assert done["status"] == "DONE", done["details"]
    stats = client.info()["train_stats"][task.name]
    assert stats["epoch"] == stats["total_epochs"] == 2 and stats["labels"]["count"] >= 5
    assert any(stats["labels"]["digest"] in line for line in done["details"])
    used = json.loads((state / "local" / f"{task.name}.labels.json").read_text())
    assert used["digest"] == stats["labels"]["digest"]
    for entry in used["labels"]:
        history = server.get(f"/iopfl/labels/{entry['image']}").json()
        assert history["versions"][entry["version"] - 1]["sha256"] == entry["sha256"]
    assert f"{task.name}_dice" in client.info()["scoring"]
    scored = server.post(f"/scoring/{task.name}_dice", params={"run_sync": True}, json={}).json()
    assert scored["images"] >= 5


def test_the_labels_train_and_the_training_says_which(local):
    """From a PACS: below, with real series."""
    check_training(local.client("ann"), local.server, local.folder / "state", list(local.tasks.values())[-1])


def test_an_image_of_ones_own_goes_through_a_session(site, tmp_path):
    client = site.client("ann")
    task = list(site.tasks.values())[-1]
    shape = (20, 18, 16) if task.spatial_dims == 3 else (28, 36, 5)
    file = tmp_path / "own.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(60, 9, shape).astype(np.float32), np.eye(4)), file)
    session = client.create_session(str(file))["session_id"]
    assert client.get_session(session)["image"]
    mask, params = client.infer(task.name, "", {}, session_id=session)
    assert nib.load(mask).shape == shape and params["task"] == task.name
    client.remove_session(session)
    with pytest.raises(MONAILabelClientException):
        client.get_session(session)
    direct, _ = client.infer(task.name, "", {}, file=str(file))
    assert nib.load(direct).shape == shape


def test_an_image_is_uploaded_where_there_is_a_folder(local, pacs, tmp_path):
    image, _ = draw_disk((20, 18), 99)
    file = tmp_path / "new.nii.gz"
    nib.save(nib.Nifti1Image(np.repeat(image[..., None], 16, axis=2).astype(np.float32), np.eye(4)), file)
    assert local.client("ann").upload_image(str(file), "new")["image"] == "new"
    assert local.client("ann").next_sample("ball_disagreement", {})["id"] == "new"
    with pytest.raises(MONAILabelClientException) as caught:
        pacs.client("ann").upload_image(str(file), "new")
    assert "images come from the PACS" in caught.value.msg


def test_what_was_submitted_is_in_the_pacs_exactly(pacs):
    """Every current version, as whoever asks the PACS reads it."""
    query = {"Level": "Instance", "Query": {"Modality": "SEG"}}
    found = [
        dcmread(BytesIO(pacs.pacs.request("GET", f"/instances/{uid}/file").content))
        for uid in pacs.pacs.request("POST", "/tools/find", json=query).json()
    ]
    assert {str(ds.ContentCreatorName) for ds in found} >= {"ann", "kim", "lou", "max"}
    by_uid = {ds.SOPInstanceUID: ds for ds in found}
    compared = 0
    for number in range(CASES):
        series = read_series(pacs.folder / f"case{number}")
        image = series_uid(f"case{number}")
        for version in pacs.history(image)["versions"]:
            ds = by_uid.pop(version["sop_instance_uid"])
            file = pacs.folder / "version.nii.gz"
            file.write_bytes(pacs.request("GET", f"/iopfl/labels/{image}/versions/{version['version']}").content)
            assert np.array_equal(read_segmentation(ds, series, GLAND.labels).mask, np.asarray(nib.load(file).dataobj))
            compared += 1
    assert compared >= CASES + 3 and not by_uid, "one segmentation a version"


def test_real_series_are_labeled_and_train_from_a_pacs_that_asks_for_a_password(shared_data, tmp_path):
    """A hippocampus in DICOM, beside what is none: listed, segmented, submitted, read back, trained on."""
    task = replace(read_task("hippocampus"), network=UNET, training=replace(SOLID.training, augment=False))
    credentials = tmp_path / "pacs.yaml"
    credentials.write_text("username: iopfl\npassword: secret\n")
    credentials.chmod(0o600)
    volumes = sorted((shared_data / "hippocampus").glob("*.nii.gz"))[:6]
    with running_orthanc(tmp_path / "orthanc", users={"iopfl": "secret"}) as orthanc:
        orthanc.upload(*(shared_data / "dicom" / name for name in ("mr-hippocampus-crop", "edge-secondary-capture")))
        for number, path in enumerate(volumes):
            values = np.asarray(nib.load(path).dataobj, np.float64)
            slices = build_slices((1000 * values / values.max()).astype(np.int16), spacing=(1, 1, 1), series=path.stem)
            for ds in slices:
                ds.PatientID = f"patient {number}"
            orthanc.upload(*write(slices, tmp_path / path.stem).iterdir())
        bank = make_site_bank(tmp_path / "bank", task)
        command = [sys.executable, "-m", "iopfl.cli", "serve", "--bank", str(bank.folder), "--keys", tmp_path / "keys"]
        conf = {"pacs_credentials": str(credentials)}
        studies = orthanc.dicomweb_url
        with running_server(APP, studies, state=tmp_path / "state", conf=conf, command=[*map(str, command)]) as server:
            client = MONAILabelClient(server.url, str(tmp_path), "ann")
            assert client.info()["datastore"]["total"] == 7
            (left_out,) = server.get("/iopfl/labels").json()["left_out"]
            assert "secondary capture" in left_out["reason"]
            crop = read_series(shared_data / "dicom" / "mr-hippocampus-crop")
            image = crop.series_instance_uid
            mask, params = client.infer("hippocampus", image, {})
            assert nib.load(mask).shape == crop.shape and params["bank"] == bank.label
            assert np.allclose(nib.load(mask).affine, crop.affine, atol=1e-4)
            drawn = np.zeros(crop.shape, np.uint8)
            drawn[10:20, 12:30, 5:25], drawn[10:20, 30:40, 5:25] = 1, 2
            submit(client, image, drawn, nib.load(mask).affine)
            for path in volumes:
                truth = np.asarray(nib.load(path.parent / "labels" / "final" / path.name).dataobj).astype(np.uint8)
                uid = series_uid(path.stem)
                submit(client, uid, truth, read_series(tmp_path / path.stem).affine)
            found = orthanc.request(
                "POST", "/tools/find", json={"Level": "Instance", "Query": {"Modality": "SEG"}}
            ).json()
            assert len(found) == 7
            stored = [dcmread(BytesIO(orthanc.request("GET", f"/instances/{uid}/file").content)) for uid in found]
            ours = next(ds for ds in stored if ds.ReferencedSeriesSequence[0].SeriesInstanceUID == image)
            assert np.array_equal(read_segmentation(ours, crop, task.labels).mask, drawn)
            assert [item.SegmentLabel for item in ours.SegmentSequence] == ["anterior", "posterior"]
            check_training(client, server, tmp_path / "state", task)
            log = server.log_path.read_text() + (tmp_path / "state" / "logs" / "app.log").read_text()
            assert not any(word in log for word in ("secret", "patient 0", str(crop.datasets[0].PatientID)))


def submit(client: MONAILabelClient, image: str, mask: np.ndarray, affine: np.ndarray) -> None:
    """Send a mask as Slicer does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "label.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), file)
        told = client.save_label(image, str(file), params={"label_info": [{"name": "anterior", "idx": 1}]})
    assert told["version"] == 1 and "warning" not in told
