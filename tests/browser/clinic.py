"""A clinic that fits into a test: a PACS with phantom series, a label server on it, and a browser at OHIF."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import nibabel as nib
import numpy as np
from playwright.sync_api import Page
from pydicom import Dataset, dcmread

from app.site import GLAND, draw_disk
from core.tiny import BALL, DISK
from dicomio.phantoms import OBLIQUE, build_photograph, build_slices, need_program, series_uid, write
from label_server import LabelServer, params, wait_until
from orthanc import Orthanc

NODULE = replace(DISK, name="nodule", labels={"rim": 2, "core": 5}, slices=3, modality="MR", training=GLAND.training)
"""Volumes, and label values that are neither the segments' numbers nor their places."""
EYE = replace(DISK, name="eye", labels={"cup": 1}, channels=3, modality="OP", training=GLAND.training)
FINE = replace(BALL, name="fine", spacing=(0.1, 0.1, 0.1), modality="MR", training=GLAND.training)
"""So fine a grid that an answer takes thousands of windows, and long enough to be stopped."""
SHAPE = (28, 36, 6)

READY = 120_000
"""Milliseconds that a page may take on a busy machine."""

LABELMAP = "import('/iopfl/static/ohif/state.js').then(({ state }) => %s)"


@dataclass(frozen=True)
class Clinic:
    """A PACS and the label server on it.

    Attributes:
        orthanc: the PACS.
        server: the label server.
        folder: for files.
    """

    orthanc: Orthanc
    server: LabelServer
    folder: Path

    def address(self, name: str) -> str:
        """Of a study in the viewer."""
        study = series_uid(f"{name} study")
        return f"{self.server.url}/ohif/monai-label?{urlencode({'StudyInstanceUIDs': study})}"

    def push(self, name: str, seed: int) -> Path:
        """Send a series by C-STORE; gives its folder."""
        folder = write_series(self.folder / name, name, seed)
        send(folder, self.orthanc)
        return folder

    def submit(self, name: str, seed: int) -> None:
        """Submit a label of a series as a program does: the disk, its middle as the core."""
        image = self.folder / f"{name}.nii.gz"
        image.write_bytes(self.server.get(f"/datastore/image?image={series_uid(name)}").content)
        affine, drawn = nib.load(image).affine, truth(seed)
        file = self.folder / f"{name}-label.nii.gz"
        nib.save(nib.Nifti1Image(drawn, affine), file)
        info = [{"name": label, "idx": value} for label, value in NODULE.labels.items()]
        with file.open("rb") as label:
            answer = self.server.request(
                "PUT",
                f"/datastore/label?image={series_uid(name)}",
                data=params(label_info=info, client_id="a program"),
                files={"label": (file.name, label)},
            )
        answer.raise_for_status()

    def segmentations(self, name: str) -> list[Dataset]:
        """The SEG instances of a study in the PACS, oldest first."""
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": series_uid(f"{name} study"), "Modality": "SEG"}}
        found = self.orthanc.request("POST", "/tools/find", json=query).json()
        files = []
        for number, instance in enumerate(found):
            file = self.folder / f"{name}-{number}.dcm"
            file.write_bytes(self.orthanc.request("GET", f"/instances/{instance}/file").content)
            files.append(dcmread(file))
        return sorted(files, key=lambda ds: (ds.SeriesDate, ds.SeriesTime))


def fix_split(state: Path) -> Path:
    """Have a server that is yet to start hash its patients alike each time: none of those pushed in a test is set aside
    to test models on. Gives the state folder."""
    (state / "pacs").mkdir(parents=True)
    (state / "pacs" / "subjects.key").write_bytes(bytes(32))
    return state


def truth(seed: int) -> np.ndarray:
    """A label for `write_series`: (X, Y, Z) uint8, the first slice empty."""
    disk = draw_disk(SHAPE[:2], seed)[1]
    drawn = np.repeat((disk * NODULE.labels["rim"]).astype(np.uint8)[..., None], SHAPE[2], axis=2)
    drawn[12:16, 15:20][drawn[12:16, 15:20] > 0] = NODULE.labels["core"]
    drawn[..., 0] = 0
    return drawn


def build_series(name: str, seed: int) -> list[Dataset]:
    """An oblique MR series of a bright disk."""
    image, _ = draw_disk(SHAPE[:2], seed)
    voxels = np.repeat(image[..., None], SHAPE[2], axis=2).astype(np.int16)
    slices = build_slices(voxels, series=name, directions=OBLIQUE, spacing=(0.8, 0.9, 2.5))
    for ds in slices:
        _name(ds, name)
        ds.SeriesDescription = f"MR {name}"
    return slices


def write_series(folder: Path, name: str, seed: int) -> Path:
    return write(build_series(name, seed), folder)


def write_photograph(folder: Path, name: str, seed: int) -> Path:
    """A color photograph, 60 wide and 40 high."""
    image, _ = draw_disk((60, 40), seed)
    ds = build_photograph(np.stack([image.T.clip(0, 255).astype(np.uint8)] * 3, -1), series=name)
    _name(ds, name)
    return write([ds], folder)


def _name(ds: Dataset, name: str) -> None:
    ds.PatientName, ds.PatientID = f"Phantom^{name}", f"ID-{name}"


def send(folder: Path, orthanc: Orthanc) -> None:
    """C-STORE by DCMTK."""
    storescu = need_program("storescu")
    words = [storescu, "-aec", orthanc.ae_title, "+sd", "+r", "127.0.0.1", str(orthanc.dicom_port), str(folder)]
    subprocess.run(words, check=True, capture_output=True, timeout=60)


def await_rest(server: LabelServer) -> None:
    """Wait until nothing is computed: soon after it was stopped."""
    wait_until(lambda: server.get("/iopfl/work").json() == [], 5, what="nothing to be computed")


# ---- at the browser ----


def open_viewer(page: Page, address: str) -> None:
    """Open a study and wait until it can be worked on."""
    page.goto(address)
    await_viewer(page)


def await_viewer(page: Page) -> None:
    page.wait_for_selector("button:has-text('Submit label')", timeout=READY)


def await_state(page: Page, condition: str) -> None:
    """Wait until what the card shows is so. (A page's own waiting takes a promise for a yes.)"""
    wait_until(lambda: page.evaluate(LABELMAP % condition), READY / 1000, what=condition)


def run(page: Page, model: str) -> None:
    """Have a model answer."""
    page.select_option("select.selectBox", model)
    page.click("button[title='Run Segmentation']")
    await_state(page, f"state.labelmap.answeredBy === '{model}' && !state.work")


def draw(page: Page, *, tool: str = "Brush") -> None:
    """Draw a stroke across the middle of the first view."""
    button = page.locator(f"iopfl-card button:has-text('{tool}')")
    if button.get_attribute("aria-pressed") != "true":
        button.click()
    box = page.locator(".cornerstone-viewport-element").first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 20, y)
    page.mouse.down()
    page.mouse.move(x + 20, y + 10, steps=8)
    page.mouse.up()
    await_state(page, "!state.labelmap.before")


def read_mask(page: Page) -> np.ndarray:
    """What the page holds of the mask that it shows, (X, Y, Z) uint8, slices along their normal."""
    values = page.evaluate(LABELMAP % "[state.labelmap.grid.sizes, [...state.labelmap.read()]]")
    sizes, voxels = values
    return np.array(voxels, np.uint8).reshape(sizes[::-1]).T


def read_labels(page: Page) -> Mapping[str, Sequence[Any]]:
    """Label -> (segment number, color) as cornerstone has them for the mask that is shown."""
    found = page.evaluate(
        LABELMAP
        % """(() => {
          const { segmentationService } = window.services;
          const { id } = state.labelmap;
          const [viewport] = segmentationService.getViewportIdsWithSegmentation(id);
          return Object.values(segmentationService.getSegmentation(id).segments).map(({ label, segmentIndex }) =>
            [label, segmentIndex, [...segmentationService.getSegmentColor(viewport, id, segmentIndex)]]);
        })()"""
    )
    return {label: (number, "#{:02X}{:02X}{:02X}".format(*color[:3])) for label, number, color in found}


def card(page: Page) -> str:
    """All that the card says; a line each."""
    parts = "[...document.querySelector('iopfl-card').shadowRoot.children]"
    return page.evaluate(f"{parts}.map((part) => part.innerText ?? '').join('\\n')")


def notes(page: Page) -> str:
    """What the card says went well or wrong."""
    return " ".join(page.locator("iopfl-card .note:visible").all_inner_texts())
