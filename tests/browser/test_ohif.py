"""OHIF as a radiologist uses it, in a real browser, on a real PACS: from the study list to the next training."""

from __future__ import annotations

import io
import json
import re
from urllib.parse import parse_qs, urlsplit

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image, ImageColor

from app.site import finish
from dicomio.phantoms import build_slices, series_uid, volume, write
from iopfl.core.answers import Segmentation
from iopfl.core.transforms import read_image, read_label
from iopfl.core.writers import write_mask
from iopfl.dicomio.segmentation import Origin, build_segmentation, read_segmentation, segments_of
from iopfl.dicomio.series import read_series, write_nifti
from label_server import params

from .clinic import (
    LABELMAP,
    NODULE,
    await_rest,
    await_state,
    await_viewer,
    build_series,
    card,
    draw,
    notes,
    open_viewer,
    read_labels,
    read_mask,
    run,
    send,
    truth,
)

WORLD = """(points) => {
  const { segmentationService } = window.services;
  return import('/iopfl/static/ohif/state.js').then(({ state }) => {
    const volume = segmentationService.getLabelmapVolume(state.labelmap.id);
    return points.map((point) => {
      const index = window.cornerstone.utilities.transformWorldToIndex(volume.imageData, point);
      return volume.voxelManager.getAtIJK(...index);
    });
  });
}"""


def server_mask(clinic, model: str, name: str) -> nib.Nifti1Image:
    """The server's own answer, as another client gets it."""
    answer = clinic.server.post(
        f"/infer/{model}?image={series_uid(name)}&output=image", data=params(result_extension=".nii.gz")
    )
    answer.raise_for_status()
    file = clinic.folder / f"{name}-{model}.nii.gz"
    file.write_bytes(answer.content)
    return nib.load(file)


def has_color(page, color: str) -> bool:
    """Whether a color, or nearly, is to be seen in the views."""
    picture = Image.open(io.BytesIO(page.locator(".cornerstone-viewport-element").first.screenshot())).convert("RGB")
    away = np.abs(np.asarray(picture).astype(int) - ImageColor.getrgb(color)).max(-1)
    return bool((away < 24).sum() > 5)


def test_a_pushed_series_is_segmented_corrected_submitted_and_trained_on(clinic, page, visit, colors):
    """The whole of it; the later tests look at parts more closely."""
    sources = read_series(clinic.push("fresh", 11))
    page.goto(f"{clinic.server.url}/ohif/")
    page.click("text=Phantom, fresh")
    page.click("[data-cy^=mode-monai-label]")
    await_viewer(page)
    assert not page.is_visible("#monailabelServerURL"), "connected by itself"
    assert page.locator("select.selectBox option").all_inner_texts() == [
        f"{task}{kind} " for task in ("nodule", "eye", "fine") for kind in ("", "_routed")
    ]

    run(page, "nodule")
    assert (read_mask(page) == np.asarray(server_mask(clinic, "nodule", "fresh").dataobj)).all()
    assert "Answered by\nthis site's personalized model" in page.inner_text("iopfl-card dl")
    run(page, "nodule_routed")
    expected = server_mask(clinic, "nodule_routed", "fresh")
    mask = np.asarray(expected.dataobj)
    assert mask.any() and (read_mask(page) == mask).all()
    # The same label at the same place in the patient, in the volume that the views are cut from.
    voxels = np.argwhere(mask)[:: max(1, len(np.argwhere(mask)) // 40)]
    places = nib.affines.apply_affine(expected.affine, voxels) * [-1, -1, 1]  # RAS to LPS
    assert page.evaluate(WORLD, places.tolist()) == [int(mask[tuple(voxel)]) for voxel in voxels]
    assert read_labels(page) == {name: (value, colors[name]) for name, value in NODULE.labels.items()}
    assert any(has_color(page, color) for color in colors.values())

    text = card(page)
    status = {task["name"]: task for task in clinic.server.get("/iopfl/status").json()["tasks"]}["nodule"]
    quality = float(page.inner_text("iopfl-card .big"))
    assert ("The experts disagree: check this mask." in text) == (quality < 0.5)
    assert status["bank"] in text and all(name in text for name in ("global", "site_a", "site_b"))
    assert sum(float(part.split()[0]) for part in text.split("\n") if part.endswith(" %")) == pytest.approx(
        100, abs=0.3
    )

    page.click("iopfl-card label:has-text('core')")
    draw(page)
    drawn = read_mask(page)
    changed = drawn != mask
    assert changed.any() and set(np.unique(drawn[changed])) == {NODULE.labels["core"]}
    page.keyboard.press("Control+z")
    assert (read_mask(page) == mask).all()
    draw(page)
    page.fill("#iopfl-annotator", "dr.ruiz")
    page.dblclick("button:has-text('Submit label')")
    page.wait_for_selector("button:has-text('Submitted')")
    assert "Saved as version 1. The next training uses it." in notes(page)
    assert visit.sent.count("PUT /datastore/label") == 1

    [segmentation] = clinic.segmentations("fresh")
    label = read_segmentation(segmentation, sources, NODULE.labels)
    assert (label.mask == drawn).all() and label.annotator == "dr.ruiz"

    page.click("text=Active Learning")
    page.click("button:has-text('Update Model')")
    page.wait_for_selector("iopfl-card .training:has-text('Training nodule')")
    page.wait_for_selector("iopfl-card .training:has-text('is done')")
    assert finish(clinic.server)["status"] == "DONE"
    used = json.loads((clinic.folder / "state" / "local" / "nodule.labels.json").read_text())
    assert series_uid("fresh") in json.dumps(used)
    assert visit.called == {urlsplit(clinic.server.url).netloc}
    assert not visit.errors


def test_next_sample_follows_the_strategy_and_opens_its_series(clinic, page, visit):
    open_viewer(page, clinic.address("case5"))
    page.click("text=Active Learning")
    page.select_option(".monaiLabelPanel .optionsTable select", "nodule_disagreement")
    with page.expect_navigation():
        page.click("button:has-text('Next Sample')")
    await_viewer(page)
    assert "POST /activelearning/nodule_disagreement" in visit.sent
    [asked] = parse_qs(urlsplit(page.url).query)["initialSeriesInstanceUID"]
    assert page.evaluate(LABELMAP % "state.labelmap.series") == asked
    unlabeled = {series_uid(name) for name in ("case5", "case6", "case7", "eye")}
    assert asked in unlabeled


def test_changes_outlive_the_way_back_to_the_list_and_are_asked_for_before_the_page_is_left(clinic, page):
    open_viewer(page, clinic.address("case6"))
    draw(page)
    drawn = read_mask(page)
    assert drawn.any() and "not submitted yet" in card(page)
    page.locator("[data-cy=return-to-work-list], header svg").first.click()
    page.click("text=Phantom, case6")
    page.click("[data-cy^=mode-monai-label]")
    await_viewer(page)
    page.wait_for_selector("text=Your changes to this series, not submitted yet, are back.")
    assert (read_mask(page) == drawn).all()
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.goto("about:blank")
    assert asked == ["beforeunload"]


def test_each_series_of_a_study_has_its_own_mask(clinic, page):
    page.on("dialog", lambda dialog: dialog.accept())
    first, second = build_series("early", 13), build_series("late", 14)
    for ds in second:
        ds.StudyInstanceUID, ds.PatientID, ds.SeriesNumber = first[0].StudyInstanceUID, first[0].PatientID, 4
    send(write([*first, *second], clinic.folder / "two"), clinic.orthanc)
    open_viewer(page, clinic.address("early"))

    def await_mask_of(name: str) -> None:
        await_state(page, f"state.labelmap.series === '{series_uid(name)}' && !state.work")

    await_mask_of("early")
    draw(page)
    drawn = read_mask(page)
    page.dblclick("text=MR late >> nth=-1")
    await_mask_of("late")
    assert not read_mask(page).any() and "not submitted yet" not in card(page)
    run(page, "nodule")
    assert (read_mask(page) == np.asarray(server_mask(clinic, "nodule", "late").dataobj)).all()
    page.dblclick("[data-cy^=study-browser-thumbnail] >> nth=0")
    await_mask_of("early")
    assert (read_mask(page) == drawn).all()


def test_a_refusal_says_why_and_keeps_what_was_drawn(clinic, page):
    page.on("dialog", lambda dialog: dialog.accept())
    clinic.push("gone", 12)
    open_viewer(page, clinic.address("gone"))
    page.click("button:has-text('Submit label')")
    page.wait_for_selector("text=Nothing is drawn here")
    draw(page)
    drawn = read_mask(page)
    [study] = clinic.orthanc.request(
        "POST", "/tools/find", json={"Level": "Study", "Query": {"PatientID": "ID-gone"}}
    ).json()
    clinic.orthanc.request("DELETE", f"/studies/{study}")
    page.select_option("select.selectBox", "nodule")
    page.click("button[title='Run Segmentation']")
    page.wait_for_selector("iopfl-card .problem:visible")
    assert f"no image '{series_uid('gone')}'" in notes(page)
    assert (read_mask(page) == drawn).all() and page.is_enabled("button:has-text('Submit label')")


def test_a_long_answer_says_what_it_takes_and_is_stopped(clinic, page):
    page.on("dialog", lambda dialog: dialog.accept())
    open_viewer(page, clinic.address("case5"))
    page.select_option("select.selectBox", "fine")
    page.click("button[title='Run Segmentation']")
    page.wait_for_selector("iopfl-card .work:has-text('passes')")
    assert re.search(r"fine: \d+ of \d{4,} passes \(\d+ %\), \d+ s so far, about \d+ (s|min) in all", notes(page))
    page.click("iopfl-card button:has-text('Stop')")
    page.wait_for_selector("iopfl-card .problem:has-text('stopped; nothing of this image was kept')")
    await_rest(clinic.server)
    assert not page.is_visible("iopfl-card button:has-text('Stop')") and not read_mask(page).any()
    run(page, "nodule")


def test_a_segmentation_of_the_pacs_opens_with_names_and_colors_and_can_be_corrected(clinic, page, nodule, colors):
    sources = read_series(clinic.folder / "pushed" / "case7")
    origin = Origin(annotator="somebody else", description="from elsewhere")
    file = clinic.folder / "elsewhere.dcm"
    build_segmentation(truth(7), sources, segments_of(nodule), origin).save_as(file, enforce_file_format=True)
    clinic.orthanc.upload(file)
    page.on("dialog", lambda dialog: dialog.accept())
    open_viewer(page, clinic.address("case7"))
    page.dblclick("text=from elsewhere")
    page.wait_for_selector("iopfl-card h3:has-text('Segmentation from the PACS')")
    shown = page.evaluate(LABELMAP % "state.overlay.segments.map(({ name, color }) => [name, color])")
    assert {name for name, _ in shown} == set(NODULE.labels)
    for name, color in shown:
        # CIELab, in which DICOM keeps colors, rounds.
        assert np.abs(np.subtract(ImageColor.getrgb(color), ImageColor.getrgb(colors[name]))).max() <= 2
    page.click("iopfl-card button:has-text('Correct it')")
    assert (read_mask(page) == truth(7)).all()
    assert not page.is_visible("text=Segmentation from the PACS")


def test_a_photograph_opens_in_one_view_with_the_task_for_it(clinic, page):
    page.on("dialog", lambda dialog: dialog.accept())
    open_viewer(page, clinic.address("eye"))
    assert page.locator(".cornerstone-viewport-element").count() == 1
    assert page.evaluate(LABELMAP % "state.labelmap.task.name") == "eye"
    run(page, "eye_routed")
    expected = np.asarray(server_mask(clinic, "eye_routed", "eye").dataobj)
    assert (read_mask(page)[..., 0] == expected.reshape(expected.shape[:2])).all()
    draw(page)
    page.click("button:has-text('Submit label')")
    page.wait_for_selector("text=Saved as version 1")


@pytest.mark.parametrize(
    ("quality", "words"), [(0.49, "The experts disagree"), (0.5, "mostly agree"), (None, "No quality")]
)
def test_quality_in_words(clinic, page, quality, words):
    page.goto(f"{clinic.server.url}/iopfl/static/ohif/answer.js")
    answer = {"model": "routed", "bank": "1-abc", "seconds": 1.0, "quality": quality}
    text = page.evaluate(
        """(answer) => import('/iopfl/static/ohif/answer.js').then(({ describeAnswer }) =>
          describeAnswer(answer, 0.5).map((element) => element.textContent).join(' '))""",
        answer,
    )
    assert words in text


@pytest.mark.parametrize("kind", ["straight", "tilted"])
def test_a_mask_survives_nrrd_and_another_grid_is_refused(clinic, page, kind):
    page.goto(f"{clinic.server.url}/iopfl/static/ohif/nrrd.js")
    datasets = build_series(f"a {kind} grid", 0)
    if kind == "tilted":
        rounded = ((0.87, 0.5, 0.0), (-0.42, 0.73, 0.54))
        datasets = build_slices(volume(), series="a tilted grid", directions=rounded, shift=(0.4, -0.9, 0.2))
    folder = clinic.folder / f"a {kind} grid"
    series = read_series(write(datasets, folder))
    classes = (np.arange(np.prod(series.shape)) % 3).reshape(series.shape[::-1]).T
    mask = np.array(NODULE.label_values, np.uint8)[classes]
    answered = clinic.folder / "answered.nrrd"
    write_mask(answered, Segmentation(torch.from_numpy(mask), MetaTensor(mask[None], affine=series.affine), None))
    planes = [
        {
            "rows": ds.Rows,
            "columns": ds.Columns,
            "rowCosines": list(ds.ImageOrientationPatient[:3]),
            "columnCosines": list(ds.ImageOrientationPatient[3:]),
            "imagePositionPatient": list(ds.ImagePositionPatient),
            "rowPixelSpacing": ds.PixelSpacing[0],
            "columnPixelSpacing": ds.PixelSpacing[1],
        }
        for ds in reversed(datasets)
    ]
    found = page.evaluate(
        """async ([planes, answer]) => {
          const { makeGrid, takeSlices } = await import('/iopfl/static/ohif/grid.js');
          const { readNrrd, writeNrrd } = await import('/iopfl/static/ohif/nrrd.js');
          const grid = makeGrid(planes);
          const mask = readNrrd(Uint8Array.from(answer).buffer);
          const file = await (await writeNrrd(grid, takeSlices(mask, grid))).arrayBuffer();
          const moved = { ...mask, origin: mask.origin.map((value) => value + 0.5) };
          let refusal = '';
          try { takeSlices(moved, grid); } catch (problem) { refusal = problem.message; }
          return { file: [...new Uint8Array(file)], order: grid.order, refusal };
        }""",
        [planes, list(answered.read_bytes())],
    )
    assert found["order"] == list(reversed(range(len(planes))))
    assert "beside the images" in found["refusal"]
    file = clinic.folder / "written.nrrd"
    file.write_bytes(bytes(found["file"]))
    write_nifti(series, clinic.folder / "image.nii.gz")
    read = read_label(file, NODULE, like=read_image(clinic.folder / "image.nii.gz", NODULE))
    assert np.array_equal(read[0].numpy(), series.from_frames(series.to_frames(classes)))


def test_a_series_outside_the_task_is_said_and_asked_about_before_it_is_segmented(clinic, page, visit):
    found = {"image": "", "not_of": {"nodule": "body part BRAIN is none of PELVIS"}}
    page.route("**/iopfl/image?*", lambda route: route.fulfill(json=found))
    open_viewer(page, clinic.address("case5"))
    page.select_option("select.selectBox", "nodule")
    asked = []
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    with page.expect_event("dialog"):
        page.click("button[title='Run Segmentation']")
    await_state(page, "!state.work")
    assert "outside task nodule: body part BRAIN is none of PELVIS. Compute a mask all the same?" in asked[0]
    assert "body part BRAIN" in notes(page) and not [sent for sent in visit.sent if sent.startswith("POST /infer")]
    page.once("dialog", lambda dialog: dialog.accept())
    run(page, "nodule")
