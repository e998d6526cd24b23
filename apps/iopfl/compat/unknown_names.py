"""A model, method, image or session that does not exist gives a bare 500.

Defect: the endpoints hand names on without looking them up, for example `endpoints/infer.py:170`,
`endpoints/datastore.py:114`, `endpoints/train.py:56` (which starts a process to find out).
Upstream: not reported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from iopfl.compat._patching import guard, once

SHOWN = 10
"""Names that a message lists before it counts the rest."""

Check = Callable[[dict[str, Any]], None]


@once
def apply() -> None:
    """Answer 404, and say what there is."""
    from monailabel.endpoints import (
        activelearning,
        batch_infer,
        datastore,
        infer,
        model,
        scoring,
        session,
        train,
        wsi_infer,
    )

    for module, function in ((infer, "run_inference"), (wsi_infer, "run_wsi_inference")):
        guard(module, function, _check_inference)
    guard(batch_infer, "run", _named("model", "model", _models))
    guard(train, "run_model", _named("model", "trainer", lambda app: app._trainers))
    guard(scoring, "run_method", _named("method", "scoring method", lambda a: a._scoring_methods))
    guard(activelearning, "sample", _named("strategy", "strategy", lambda app: app._strategies))
    for function in ("model_info", "download_model"):
        guard(model, function, _named("model", "model", _models))
    for function in ("get_session", "remove_session"):
        guard(session, function, lambda arguments: _check_session(arguments["session_id"], arguments.get("image")))

    for function in ("download_image", "get_image_info", "update_image_info", "save_label"):
        guard(datastore, function, lambda arguments: _check_image(arguments["image"]))
    guard(datastore, "remove_image", lambda arguments: _check_image(arguments["id"]))
    for function in ("download_label", "get_label_info", "update_label_info"):
        guard(datastore, function, lambda a: _check_label(a["label"], a["tag"]))
    guard(datastore, "remove_label", lambda a: _check_label(a["id"], a["tag"]))


def _app() -> Any:
    from monailabel.interfaces.utils.app import app_instance

    return app_instance()


def _models(app: Any) -> list[str]:
    return [name for name, task in app._infers.items() if task.is_valid()]


def _named(argument: str, kind: str, existing: Callable[[Any], Iterable[str]]) -> Check:
    """Make a check that an argument is one of the app's names."""
    return functools.partial(_check_named, argument, kind, existing)


def _check_named(argument: str, kind: str, existing: Callable, arguments: dict[str, Any]) -> None:
    _check_known(kind, arguments[argument], existing(_app()))


def _check_inference(arguments: dict[str, Any]) -> None:
    _check_known("model", arguments["model"], _models(_app()))
    if arguments["session_id"]:
        _check_session(arguments["session_id"])
    elif arguments["image"]:
        _check_image(arguments["image"])
    elif not getattr(arguments["file"], "filename", None):
        raise HTTPException(400, "nothing to infer on: give image=ID, session_id=ID, or upload a file")
    if arguments["output"] == "dicom_seg":
        raise HTTPException(400, "output=dicom_seg is not served: ask for output=image; what is submitted becomes SEG")


def _check_image(image: str) -> None:
    """Refuse an id that the datastore has not; of one that is not listed it may know more if it is asked for it."""
    store = _app().datastore()
    listed = store.list_images()
    if image not in listed and not store.get_image_info(image):
        _check_known("image", image, listed)


def _check_label(label: str, tag: str) -> None:
    _check_image(label)
    labels = _app().datastore().get_labels_by_image_id(label)
    _check_known(f"label of image {label!r} with tag", tag, labels)


def _check_session(session_id: str, is_sent: bool | None = False) -> None:
    sessions = _app().sessions()
    if sessions is None:
        raise HTTPException(406, "sessions are off: start the server with MONAI_LABEL_SESSIONS=true")
    found = sessions.get_session(session_id, update_ts=False)
    if found is None:
        raise HTTPException(404, f"no session {session_id!r}: it may have expired, create another")
    if is_sent and not Path(found.image).is_file():
        raise HTTPException(400, "expected a session of one file, this one has several files: they are not sent back")


def _check_known(kind: str, name: str, existing: Iterable[str]) -> None:
    names = [str(getattr(item, "value", item)) for item in existing]
    if name in names:
        return
    listed = ", ".join(sorted(names)[:SHOWN]) or "none"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise HTTPException(404, f"no {kind} {name!r}; there is: {listed}{more}")
