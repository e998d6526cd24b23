"""The page at `/` and the routes under `/iopfl` that it reads.

Routes are plain functions: FastAPI runs them in its thread pool, so that a
long answer keeps nobody from the rest of the server. An image is named by its
id in the datastore, never by a path. What they raise as `IOPFLError` reaches
the client with its message (`compat.plain_errors`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import FileResponse, JSONResponse, Response
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance
from starlette.background import BackgroundTask
from torch import Tensor

from iopfl.access.roles import for_user
from iopfl.base.errors import IOPFLError, PACSError, SeriesError
from iopfl.core.answers import Segmentation
from iopfl.core.colors import label_colors
from iopfl.core.handing_out import to_straight
from iopfl.core.metrics import region_dice
from iopfl.core.task import Task
from iopfl.core.writers import write_disagreement, write_regions
from iopfl.labels.selecting import SelectingDatastore, find_warning
from iopfl.lib.federation_rounds import FederationRounds
from iopfl.web import pictures
from iopfl.web.answers import MODELS, Answers, BusyError
from iopfl.web.dicom_proxy import router as dicom_proxy
from iopfl.web.federation_routes import banks
from iopfl.web.federation_routes import router as federation
from iopfl.web.label_routes import router as labels
from iopfl.web.ohif import router as ohif
from iopfl.web.size_routes import router as sizes
from iopfl.web.work_routes import router as work

STATIC = Path(__file__).resolve().parent / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript"}
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_DATA_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""What shows patients' images is not left behind in a browser's cache."""

answers = Answers()

pages = APIRouter(include_in_schema=False)
data = APIRouter(prefix="/iopfl", tags=["iopfl"], dependencies=[Depends(for_user)])


@pages.get("/")
def start_page() -> FileResponse:
    return FileResponse(STATIC / "index.html", media_type="text/html", headers=_PAGE_HEADERS)


@pages.get("/iopfl/static/{path:path}")
def static_file(path: str) -> FileResponse:
    """A style or a module of the pages, and of what OHIF loads from here: as they lie, since they import each other."""
    kind = _TYPES.get(Path(path).suffix)
    file = STATIC if kind is None or "\0" in path else (STATIC / path).resolve()
    if not file.is_relative_to(STATIC) or not file.is_file():
        raise HTTPException(404, "no such file")
    return FileResponse(file, media_type=kind, headers=_PAGE_HEADERS)


@data.get("/status", summary="Tasks, banks, and which model answers at this site")
def status() -> Response:
    models = app_instance().models
    tasks = []
    for name, task in models.tasks.items():
        about: dict[str, Any] = {
            "name": name,
            "description": task.description,
            "modality": task.modality,
            "labels": [{"name": label, "color": color} for label, color in label_colors(task).items()],
            "evidence": task.adaptation.evidence,  # quality score below which the experts disagree
        }
        try:
            about["federations"] = FederationRounds(models, task).last()
            about |= models.describe(name)
        except IOPFLError as error:  # the page still shows the other tasks
            about["error"] = str(error)
        tasks.append(about)
    return _json({"site": models.site, "tasks": tasks, "models": list(MODELS)})


@data.get("/images", summary="Images of the datastore, which are labeled, and which are none of a task's")
def images() -> Response:
    datastore = app_instance().datastore()
    labeled = set(datastore.get_labeled_images())
    found = sorted({*datastore.list_images(), *datastore.others()})
    return _json(
        {
            "images": [
                {"id": image, "is_labeled": image in labeled, "not_of": datastore.known_mismatches(image)}
                for image in found
            ]
        }
    )


@data.get("/image", summary="Of which tasks an image is none, and why")
def image_tasks(image: str) -> Response:
    datastore = app_instance().datastore()
    _check_image(datastore, image)
    return _json({"image": image, "not_of": datastore.find_mismatches(image)})


@data.get("/answer", summary="Segment an image and say where the mask comes from")
def answer(task: str, image: str, model: str = "routed") -> Response:
    """Compute at most once for each bank, image and model."""
    segmentation = _segment(task, image, model)
    definition = app_instance().models.tasks[task]
    reference, why = _find_reference(task, image, segmentation)
    warning = find_warning(app_instance().datastore(), definition, image)
    return _json(
        {
            "task": task,
            "image": image,
            "model": model,
            "params": {**segmentation.answer.to_params(), **({"warning": warning} if warning else {})},
            "slices": pictures.count_slices(segmentation.image),
            "best_slice": pictures.find_best_slice(segmentation.image, segmentation.mask),
            "labels": _measure(segmentation, definition),
            "reference": {
                "is_there": reference is not None,
                "problem": why,
                "dice": {} if reference is None else _dice(segmentation.mask, reference, definition),
            },
        }
    )


@data.get("/overlay.png", summary="A slice with the mask's contours", response_class=Response)
def overlay(
    task: str,
    image: str,
    model: str = "routed",
    slice: int | None = None,
    reference: bool = False,
    disagreement: bool = False,
) -> Response:
    """`disagreement` shows where the experts disagree, in place of the labels' fill."""
    segmentation = _segment(task, image, model, with_disagreement=disagreement)
    last = pictures.count_slices(segmentation.image) - 1
    if slice is not None and not 0 <= slice <= last:
        raise HTTPException(400, f"slice {slice}: the image has slices 0 to {last}")
    label = _find_reference(task, image, segmentation)[0] if reference else None
    definition = app_instance().models.tasks[task]
    drawn = pictures.overlay(
        segmentation.image,
        segmentation.mask,
        definition,
        slice_index=slice,
        reference=label,
        disagreement=segmentation.disagreement,
    )
    return _png(pictures.to_png(drawn))


@data.get("/disagreement", summary="Where the experts disagree, as a file on the image's grid")
def disagreement(task: str, image: str, form: Literal["regions", "percent"] = "regions") -> FileResponse:
    """`regions`: a segmentation of 3D Slicer with the segment *check here*; `percent`: of the experts, as NRRD."""
    segmentation = _segment(task, image, "routed", with_disagreement=True)
    write, what = (write_regions, "check-here.seg") if form == "regions" else (write_disagreement, "disagreement")
    folder = tempfile.TemporaryDirectory()
    try:
        file = Path(folder.name, f"{what}.nrrd")
        write(file, to_straight(segmentation))
    except BaseException:
        folder.cleanup()
        raise
    return FileResponse(
        file,
        media_type="application/octet-stream",
        filename=f"{image}-{file.name}",
        headers=_DATA_HEADERS,
        background=BackgroundTask(folder.cleanup),
    )


def _segment(task: str, image: str, model: str, *, with_disagreement: bool = False) -> Segmentation:
    """An image's answer, after its name, the task's and the model's were found to exist."""
    app = app_instance()
    if task not in app.models.tasks:
        raise HTTPException(404, f"no task {task!r}: this server has {', '.join(app.models.tasks) or 'none'}")
    if model not in MODELS:
        raise HTTPException(400, f"no model {model!r}: expected one of {', '.join(MODELS)}")
    datastore = app.datastore()
    _check_image(datastore, image)
    try:
        path = Path(datastore.get_image_uri(image))
        found = answers.segment(app.models, task, path, model, name=image)
        return answers.disagreement(app.models, task, path, found, name=image) if with_disagreement else found
    except BusyError as error:
        raise HTTPException(503, str(error), headers={"Retry-After": "5"}) from error


def _check_image(datastore: SelectingDatastore, image: str) -> None:
    if image not in datastore.list_images() and image not in datastore.others():
        raise HTTPException(404, f"no image {image!r} in this server's datastore: choose one of its list")


def _find_reference(task: str, image: str, segmentation: Segmentation) -> tuple[Tensor | None, str]:
    """The clinician's final label of an image as label values (X, Y, Z), or None and what is wrong with it."""
    app = app_instance()
    datastore = app.datastore()
    tag = DefaultLabelTag.FINAL.value
    label = datastore.get_labels_by_image_id(image).get(tag)
    if not label:
        return None, ""
    try:
        path = Path(datastore.get_label_uri(label, tag))
        return answers.reference(app.models, task, path, segmentation.image), ""
    except (SeriesError, PACSError, OSError) as error:  # for another task, in a PACS that is away, or just removed
        return None, "the label could not be read" if isinstance(error, OSError) else str(error)
    except BusyError as error:
        raise HTTPException(503, str(error), headers={"Retry-After": "5"}) from error


def _measure(segmentation: Segmentation, task: Task) -> list[dict[str, Any]]:
    """How much of each label there is: mL and mm in a volume, percent and pixels of a picture."""
    colors, found = label_colors(task), []
    for size in segmentation.answer.measurements:
        if size.volume is None:
            amount, units = 100 * size.voxels / segmentation.mask.numel(), ("% of the picture", "pixels")
        else:
            amount, units = size.volume, ("mL", "mm")
        about = {"name": size.label, "color": colors[size.label], "amount": amount, "unit": units[0]}
        found.append({**about, "long_axis": size.long_axis, "long_axis_unit": units[1]})
    return found


def _dice(mask: Tensor, reference: Tensor, task: Task) -> dict[str, float]:
    """Dice of each scored region, between two masks of label values."""
    lookup = torch.zeros(256, dtype=torch.long)
    lookup[list(task.label_values)] = torch.arange(task.num_classes)
    scores = region_dice(lookup[mask.long()], lookup[reference.long()], task)
    return dict(zip(task.scored_regions, scores.tolist(), strict=True))


def _json(values: Any) -> Response:
    return JSONResponse(_finite(values), headers=_DATA_HEADERS)


def _png(content: bytes) -> Response:
    return Response(content, media_type="image/png", headers=_DATA_HEADERS)


def _finite(value: Any) -> Any:
    """Values as JSON has them: what is not a number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


router = APIRouter()
router.include_router(pages)
router.include_router(data)
router.include_router(labels)
router.include_router(ohif)
router.include_router(dicom_proxy)
router.include_router(federation)
router.include_router(banks)
router.include_router(sizes)
router.include_router(work)
