"""The history of an image's labels: who drew what and when, undo, and a reviewer's choice."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import FileResponse, JSONResponse, Response
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask

from iopfl.access.roles import for_admin, for_annotator, for_reviewer, for_user
from iopfl.base.errors import LabelVersionError
from iopfl.labels.annotators import name_annotator, tell_annotators
from iopfl.labels.datastore import VersionedDatastore
from iopfl.labels.log import History, LabelVersion
from iopfl.pacs.datastore import PACSDatastore

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

router = APIRouter(prefix="/iopfl/labels", tags=["labels"])
tell_annotators()


class Who(BaseModel):
    """Who asks, where nobody has to sign in."""

    client_id: str = ""


class Choice(Who):
    """A reviewer's choice."""

    version: int | None = Field(None, description="number of the version that is to be final; none: as the rule says")


def find_store() -> VersionedDatastore:
    """This server's datastore."""
    return app_instance().datastore()


Store = Annotated[VersionedDatastore, Depends(find_store)]


@router.get("", summary="The rule for final labels, and all that keeps an image or a label from being seen")
def describe_all(store: Store, user: Annotated[User, Depends(for_user)]) -> Response:
    """What is lent to whom; of a PACS, the series that are left out and why, and the labels it has not taken yet."""
    leases = app_instance().leases.active()
    about: dict[str, Any] = {
        "rule": str(store.rule),
        "lent": [{"image": lease.image, "to": lease.annotator, "until": lease.until} for lease in leases],
        "unsettled": [{"image": image, "reason": reason} for image, reason in sorted(store.unsettled.items())],
    }
    if isinstance(store, PACSDatastore):
        about["left_out"] = [{"image": image, "reason": reason} for image, reason in sorted(store.left_out().items())]
        about["waiting"] = [_describe_waiting(store, image, number) for image, number in store.outbox.waiting()]
        about["pacs"] = store.status()["pacs"]
    return JSONResponse(about, headers=_HEADERS)


@router.get("/{image}", summary="All labels that an image ever had", dependencies=[Depends(for_user)])
def describe(image: str, store: Store) -> Response:
    return _answer(image, store)


@router.get("/{image}/versions/{number}", summary="One of an image's labels", dependencies=[Depends(for_user)])
def download(image: str, number: int, store: Store) -> FileResponse:
    """As viewers show it (`core/handing_out.py`), which the file that is kept need not be."""
    try:
        version = store.history(image).find(number)
        file = store.versions.file(image, version)
    except LabelVersionError as error:
        raise HTTPException(404, str(error)) from error
    copy = store.copy_label(image, file, version.tasks)
    removed = BackgroundTask(copy.unlink, missing_ok=True) if copy else None
    name, kind = f"{image}-{file.name}", "application/octet-stream"
    return FileResponse(copy or file, media_type=kind, filename=name, headers=_HEADERS, background=removed)


@router.post(
    "/{image}/versions/{number}/store",
    summary="Offer a label to the PACS again that it refused",
    dependencies=[Depends(for_admin)],
)
def offer_again(image: str, number: int, store: Store) -> Response:
    """Gives the label as `waiting` does where the PACS refuses it once more, and null where it has it."""
    if not isinstance(store, PACSDatastore) or (image, number) not in store.outbox.waiting():
        raise HTTPException(404, f"no version {number} of {image} waits for a PACS")
    store.outbox.offer_again(image, number)
    is_waiting = (image, number) in store.outbox.waiting()
    about = _describe_waiting(store, image, number) if is_waiting else None
    return JSONResponse({"waiting": about}, headers=_HEADERS)


@router.post("/{image}/undo", summary="Take back the newest label of one's own")
def undo(image: str, store: Store, user: Annotated[User, Depends(for_annotator)], who: Who | None = None) -> Response:
    store.undo(image, name_annotator(user.username, who.model_dump() if who else {}))
    return _answer(image, store)


@router.post("/{image}/choose", summary="Make a version the final label, or let the rule decide again")
def choose(image: str, choice: Choice, store: Store, user: Annotated[User, Depends(for_reviewer)]) -> Response:
    store.choose(image, choice.version, name_annotator(user.username, choice.model_dump()))
    return _answer(image, store)


def _answer(image: str, store: VersionedDatastore) -> Response:
    history, lease = store.history(image), app_instance().leases.find(image)
    selected = store.rule.select(history)
    final = selected[0].number if len(selected) == 1 else history.published
    return JSONResponse(
        {
            "image": image,
            "rule": str(store.rule),
            "final": final or None,
            "chosen": history.chosen,
            "unsettled": store.unsettled.get(image),
            "lent": {"to": lease.annotator, "until": lease.until} if lease else None,
            "versions": [_describe(version, history) for version in history.versions],
        },
        headers=_HEADERS,
    )


def _describe_waiting(store: PACSDatastore, image: str, number: int) -> dict[str, Any]:
    failure = store.outbox.failure(image, number)
    return {
        "image": image,
        "version": number,
        "attempts": failure.attempts if failure else 0,
        "reason": failure.reason if failure else "",
        "is_set_aside": failure is not None and failure.is_set_aside,
    }


def _describe(version: LabelVersion, history: History) -> dict[str, Any]:
    return {
        "version": version.number,
        "annotator": version.annotator,
        "when": version.when,
        "kind": version.kind,
        "tasks": list(version.tasks),
        "from": dict(version.origin),
        "sha256": version.sha256,
        "sources": list(version.sources),
        "is_current": version in history.current.values(),
        "withdrawn": history.withdrawn.get(version.number),
        "sop_instance_uid": version.sop_instance_uid,
        "is_stored": version.is_stored,
    }
