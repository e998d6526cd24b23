"""The label server is killed at random moments while labels are submitted and series arrive."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from pydicom import dcmread

from app.site import APP, GLAND, conf_of, draw_disk, make_site_bank, oblique_affine, write_scan
from dicomio.phantoms import build_slices, series_uid, write
from label_server import running_server, wait_until
from orthanc import Orthanc, running_orthanc

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

KILLS = 25
IMAGES = 4
PEOPLE = ("ann", "bob", "eve")
SETTLE_SECONDS = 120


class Person(threading.Thread):
    """Submits one label after another, each until it is accepted."""

    def __init__(self, name: str, folder: Path, images: dict[str, np.ndarray]) -> None:
        super().__init__(name=name, daemon=True)
        self.url = ""
        self.stopping = threading.Event()
        self.accepted: list[tuple[str, bytes]] = []
        self.failures: list[str] = []
        self._folder = folder
        self._images = images
        self._random = np.random.default_rng(len(name) + ord(name[0]))

    def run(self) -> None:
        number = 0
        while not self.stopping.is_set():
            number += 1
            image = self._random.choice(sorted(self._images))
            mask = np.zeros((28, 36, 5), np.uint8)
            mask[self._random.integers(0, 14) :, :20, 1:4] = 2
            file = self._folder / f"{self.name}.nii.gz"
            nib.save(nib.Nifti1Image(mask, self._images[image]), file)
            content = file.read_bytes()
            while not self.stopping.is_set() and not self._submit(image, content):
                time.sleep(0.1)
            time.sleep(0.05)

    def _submit(self, image: str, content: bytes) -> bool:
        params = {"params": f'{{"client_id": "{self.name}"}}'}
        files = {"label": ("label.nii.gz", content)}
        try:
            answer = requests.put(
                f"{self.url}/datastore/label", params={"image": image}, data=params, files=files, timeout=60
            )
        except requests.RequestException:
            return False
        if answer.status_code == 404:  # the list of a PACS that has just begun
            return False
        if not answer.ok:
            self.failures.append(answer.text)
            return False
        self.accepted.append((image, content))
        return True


def kill_again_and_again(tmp_path: Path, studies: Path | str, people: list[Person], arrive) -> None:
    """Start, let people work, kill without warning, and start again.

    Every other life lasts until a label is accepted, and a moment longer: on a busy machine the first takes so long
    that no short life would see one.
    """
    bank = make_site_bank(tmp_path / "bank", GLAND)
    moments = random.Random(5)
    for number in range(KILLS):
        with running_server(APP, studies, state=tmp_path / "state", conf=conf_of(bank)) as server:
            for person in people:
                person.url = server.url
                if number == 0:
                    person.start()
            arrive(number)
            if number % 2:
                before = count_accepted(people)
                wait_until(lambda before=before: count_accepted(people) > before, SETTLE_SECONDS, what="a label")
            time.sleep(moments.uniform(0.1, 3.0))
            os.killpg(server.pid, signal.SIGKILL)


def count_accepted(people: list[Person]) -> int:
    return sum(len(person.accepted) for person in people)


def stop(people: list[Person]) -> None:
    for person in people:
        person.stopping.set()
    for person in people:
        person.join(90)


def check_versions(server, people: list[Person], images: Iterable[str]) -> int:
    """Every accepted label is there once, in the order in which its author sent it; gives their number."""
    assert not [failure for person in people for failure in person.failures]
    counted = 0
    for image in images:
        history = server.get(f"/iopfl/labels/{image}").json()
        assert bool(history["final"]) == bool(history["versions"])
        assert not any(version["withdrawn"] for version in history["versions"])
        for person in people:
            own = [version for version in history["versions"] if version["annotator"] == person.name]
            kept = [server.get(f"/iopfl/labels/{image}/versions/{version['version']}").content for version in own]
            sent = [content for of, content in person.accepted if of == image]
            sent = [content for before, content in zip([b"", *sent], sent, strict=False) if content != before]
            # The last one may have been kept without anybody hearing of it.
            assert kept[: len(sent)] == sent and len(kept) - len(sent) in (0, 1)
            counted += len(kept)
    return counted


def test_a_folders_labels_outlive_kills(tmp_path):
    studies = tmp_path / "site_a"
    for number in range(IMAGES):
        write_scan(studies, f"case{number}", number, labeled=False)
    images = {f"case{number}": oblique_affine() for number in range(IMAGES)}
    people = [Person(name, tmp_path, images) for name in PEOPLE]
    kill_again_and_again(tmp_path, studies, people, arrive=lambda number: None)
    stop(people)
    bank = make_site_bank(tmp_path / "again", GLAND, keys=tmp_path / "keys")
    with running_server(APP, studies, state=tmp_path / "state", conf=conf_of(bank)) as server:
        assert check_versions(server, people, images) >= KILLS // 2
        for image in images:
            final = server.get(f"/iopfl/labels/{image}").json()["final"]
            content = server.get(f"/iopfl/labels/{image}/versions/{final}").content
            assert (studies / "labels" / "final" / f"{image}.nii.gz").read_bytes() == content


def test_a_pacs_gets_every_label_once_whatever_is_killed(tmp_path):
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        affine = np.eye(4)
        for number in range(IMAGES):
            affine = send(orthanc, tmp_path, f"case{number}", number)
        images = {series_uid(f"case{number}"): affine for number in range(IMAGES)}
        people = [Person(name, tmp_path, images) for name in PEOPLE]

        def arrive(number: int) -> None:
            send(orthanc, tmp_path, f"late{number}", number)

        kill_again_and_again(tmp_path, orthanc.dicomweb_url, people, arrive)
        stop(people)
        bank = make_site_bank(tmp_path / "again", GLAND, keys=tmp_path / "keys")
        with running_server(APP, orthanc.dicomweb_url, state=tmp_path / "state", conf=conf_of(bank)) as server:
            wait_until(lambda: not server.get("/iopfl/labels").json()["waiting"], SETTLE_SECONDS, what="the outbox")
            assert server.get("/info/").json()["datastore"]["total"] == IMAGES + KILLS
            versions = check_versions(server, people, images)
            found = orthanc.request("POST", "/tools/find", json={"Level": "Instance", "Query": {"Modality": "SEG"}})
            stored = [
                dcmread(BytesIO(orthanc.request("GET", f"/instances/{uid}/file").content)) for uid in found.json()
            ]
            assert len(stored) == len({ds.SOPInstanceUID for ds in stored}) == versions >= KILLS // 2


def send(orthanc: Orthanc, folder: Path, name: str, seed: int) -> np.ndarray:
    """Store a series; gives the affine of its image."""
    from iopfl.dicomio.series import read_series

    image, _ = draw_disk((28, 36), seed)
    slices = build_slices(np.repeat(image[..., None], 5, axis=2).astype(np.int16), series=name)
    place = write(slices, folder / name)
    orthanc.upload(*place.iterdir())
    return read_series(place).affine
