"""Clients may read and write files anywhere on the server's disk.

Defect: names from requests become paths unchecked: `infer?image=/any/path` reads it
(`interfaces/app.py:286`), `PUT /datastore/image?image=../x` writes beside the datastore
(`datastore/local.py:441`), a label's tag becomes a folder (`:497`), `DELETE /session/..`
removes the folder above (`utils/sessions.py:108`), JSON `params` override all of it
(`endpoints/infer.py:161`) and name files to train on (`tasks/train/basic_train.py:401`),
and an uploaded archive may unpack outside its folder (`utils/sessions.py:126`).
Upstream: no issue known. Ends with: MONAI Label > 0.8.5.
"""

from __future__ import annotations

import importlib
import json
import re
import tarfile
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from iopfl.compat._patching import datastore_is_local, guard, once

NAMES = ("image", "id", "label", "tag", "model", "method", "strategy", "session_id")
"""Arguments of endpoints that name something."""

SERVER_KEYS = ("image", "image_id", "session", "bundle_path", "train_ds", "val_ds", "_image_id")
"""Keys that only the server may put into a task's request: they are or become paths."""

NAME_KEYS = ("model", "label_tag", "tag", "y", "y_pred", "name", "model_filename")
"""Keys of a client's `params` that become part of a path."""

EXTENSION = re.compile(r"(\.[A-Za-z0-9_-]{1,16}){1,3}")

GUARDED = {
    "activelearning": ("sample",),
    "batch_infer": ("run",),
    "datastore": (
        "add_image",
        "remove_image",
        "save_label",
        "remove_label",
        "download_image",
        "download_label",
        "get_image_info",
        "update_image_info",
        "get_label_info",
        "update_label_info",
    ),
    "infer": ("run_inference",),
    "model": ("model_info", "download_model"),
    "scoring": ("run", "run_method"),
    "session": ("get_session", "remove_session"),
    "train": ("run", "run_model"),
    "wsi_infer": ("run_wsi_inference",),
}


@once
def apply() -> None:
    """Refuse with 400 what is not a plain name."""
    for name, functions in GUARDED.items():
        endpoints = importlib.import_module(f"monailabel.endpoints.{name}")
        for function in functions:
            guard(endpoints, function, check_arguments)
    datastore = importlib.import_module("monailabel.endpoints.datastore")
    guard(datastore, "add_image", lambda arguments: _check_upload(arguments["file"]))
    guard(datastore, "save_label", lambda arguments: _check_upload(arguments["label"]))
    # What `shutil.unpack_archive` uses, and what later Pythons do by themselves.
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)


def check_name(kind: str, name: str) -> None:
    """Check that a name from a request can only ever be one file or folder name.

    Raises:
        HTTPException: it holds a separator or a control character, or is `.` or `..`.
    """
    if name in (".", "..") or re.search(r"[/\\\x00-\x1f]", name):
        _refuse(f"{kind} must be a plain name without / or \\, not {name!r}")


def check_arguments(arguments: dict[str, Any]) -> None:
    """Check all arguments of one endpoint."""
    for name in NAMES:
        if isinstance(arguments.get(name), str):
            check_name(name, arguments[name])
    for name in ("params", "info"):
        value = arguments.get(name)
        _check_params(_parse(name, value) if isinstance(value, str) and value else value)
    if arguments.get("wsi") is not None:
        _check_params(arguments["wsi"].params)


def _check_params(params: Any) -> None:
    """Check the JSON a client adds to a request, at any depth."""
    if isinstance(params, (list, tuple)):
        for item in params:
            _check_params(item)
    if not isinstance(params, dict):
        return
    for key, value in params.items():
        if key in SERVER_KEYS:
            _refuse(f"params must not hold {key!r}: name images with image=ID")
        if key == "label" and isinstance(value, str):
            _refuse("params must not name a label file: upload it as 'label'")
        if key in NAME_KEYS and isinstance(value, str):
            check_name(key, value)
        if key == "images":
            _check_images(value)
        if key == "result_extension" and value and not EXTENSION.fullmatch(str(value)):
            _refuse(f"result_extension must be like .nii.gz, .nrrd or .png, not {value!r}")
        _check_params(value)


def _check_images(images: Any) -> None:
    """Check a choice of images for batch inference: a word such as `unlabeled`, or a list of ids."""
    names = [images] if isinstance(images, str) else images
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        _refuse("images must be all, labeled, unlabeled, or a list of ids")
    for name in names:
        check_name("image", name)


def _check_upload(upload: Any) -> None:
    """Check that an upload is an image: other types could replace the datastore's own files."""
    from monailabel.config import settings
    from monailabel.interfaces.utils.app import app_instance

    name = Path(upload.filename or "").name
    check_name("file name", name)
    endings = tuple(p.removeprefix("*") for p in settings.MONAI_LABEL_DATASTORE_FILE_EXT)
    if datastore_is_local(app_instance().datastore()) and not name.lower().endswith(endings):
        _refuse(f"file name must end in one of {', '.join(endings)}, not {name!r}")


def _parse(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        _refuse(f"{name} must be JSON, but {error}")


def _refuse(message: str) -> None:

    raise HTTPException(400, message)
