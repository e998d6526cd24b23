"""Clients may read and write files anywhere on the server's disk.

Defect: names from requests become paths unchecked: `infer?image=/any/path` reads it
(`interfaces/app.py:286`), `PUT /datastore/image?image=../x` writes beside the datastore
(`datastore/local.py:441`), a label's tag becomes a folder (`:497`), `DELETE /session/..`
removes the folder above (`utils/sessions.py:108`), JSON `params` override all of it
(`endpoints/infer.py:161`) and name files to train on (`tasks/train/basic_train.py:401`),
and an uploaded archive may unpack outside its folder (`utils/sessions.py:126`), without a bound;
the names of others' sessions can be guessed (`:134`).
What is no name and no object at all, such as a list, NaN or half a letter, is stored, or a 500.
Upstream: not reported.
"""

from __future__ import annotations

import gzip
import importlib
import json
import lzma
import os
import re
import shutil
import tarfile
import uuid
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from fastapi import HTTPException
from pydantic import ValidationError

from iopfl.base.errors import SeriesError, StorageError
from iopfl.base.names import check_tag
from iopfl.compat._archives import check_room, unpack
from iopfl.compat._patching import guard, once
from iopfl.images.headers import IMAGE_SUFFIXES, read_header

NAMES = ("image", "id", "label", "tag", "model", "method", "strategy", "session_id")
"""Arguments of endpoints that name something."""

_OF_DICOM = (".dcm",)
"""A label of a PACS's image may be a SEG."""

SERVER_KEYS = ("image", "image_id", "session", "bundle_path", "train_ds", "val_ds", "_image_id")
"""Keys that only the server may put into a task's request: they are or become paths."""

NAME_KEYS = ("model", "label_tag", "tag", "y", "y_pred", "name", "model_filename")
"""Keys of a client's `params` that become part of a path."""

KEPT_KEYS = (
    "strategy", "annotator", "version", "tasks", "model", "origin", "name", "path", "ts", "other_files", "instances",
    "Modality", "SeriesInstanceUID", "StudyInstanceUID",
)  # fmt: skip
"""Keys of what is known of an image or a label that only the server may change."""

SESSION_FILE = "meta.info"
"""What describes a session, beside its image."""

TAGS = ("tag", "label_tag")
"""Arguments and keys of `params` that are a label's tag."""

MAX_INFO = 2**14
"""Characters of what a request adds to what is known of an image or a label."""

TEXTS = (*NAME_KEYS, "method", "strategy", "device", "gpus")
"""Keys at the top of `params` by which something is looked up."""

COUNTS = ("max_batch_size", "max_workers")
"""Keys at the top of `params` that are compared with numbers."""

EXTENSION = re.compile(r"(\.[A-Za-z0-9_-]{1,16}){1,3}")

MAX_NAME = 200
"""Bytes of UTF-8: a file's name has 255, and endings are added."""

MAX_DEPTH = 32
"""Of a client's `params`: Python's own limit is met by a request of a kilobyte."""

BROKEN_ARCHIVE = (
    shutil.ReadError,
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    RuntimeError,
    ValueError,
)

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
    "session": ("get_session", "create_session", "remove_session"),
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
    guard(datastore, "add_image", _check_new_image)
    guard(datastore, "save_label", _check_label)
    _check_wsi(importlib.import_module("monailabel.endpoints.wsi_infer"))
    guard(importlib.import_module("monailabel.endpoints.infer"), "binary_to_image", _refuse_scribbles)
    sessions: Any = importlib.import_module("monailabel.utils.sessions")
    sessions.shutil = _Shutil
    # Whoever knows a session's name may read and end it, and `uuid1` tells the next one's and the one's before.
    sessions.uuid = SimpleNamespace(uuid1=uuid.uuid4)
    guard(sessions.Sessions, "add_session", _check_session)
    # What `shutil.unpack_archive` uses, and what later Pythons do by themselves.
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)


def check_name(kind: str, name: str) -> None:
    """Check that a name from a request can only ever be one file or folder name.

    Raises:
        HTTPException: it holds a separator or a control character, is `.` or `..`, or too long for one.
    """
    if name in (".", "..") or re.search(r"[/\\\x00-\x1f]", name) or not _is_text(name):
        _refuse(f"{kind} must be a plain name without / or \\, not {name[:MAX_NAME]!r}")
    if len(name.encode()) > MAX_NAME:
        _refuse(f"{kind} must be a name of at most {MAX_NAME} bytes, not one of {len(name.encode())}")


def check_arguments(arguments: dict[str, Any]) -> None:
    """Check all arguments of one endpoint."""
    for name in NAMES:
        if isinstance(arguments.get(name), str):
            check_name(name, arguments[name])
            if name in TAGS:
                check_tag(arguments[name])
    for name in ("params", "info"):
        value = arguments.get(name)
        values = _parse(name, value) if isinstance(value, str) and value else value
        _check_params(values)
        if isinstance(value, dict):
            _check_numbers(value)
        if name == "params":
            _check_kinds(values or {})
        else:
            _check_info("info", values or {})
    if arguments.get("wsi") is not None:
        _check_params(arguments["wsi"].params)
    for upload in (arguments.get("file"), arguments.get("label"), *(arguments.get("files") or ())):
        if getattr(upload, "filename", None):
            name = os.path.basename(upload.filename)  # noqa: PTH119  # as MONAI Label does
            check_name("file name", name)
            if name.startswith(".") or name == SESSION_FILE:
                _refuse(f"file name must not be hidden, nor {SESSION_FILE!r}: rename the file")


def _check_numbers(params: dict[str, Any]) -> None:
    """A task's request is shown with the task, as JSON, which has no NaN and no infinity."""
    try:
        json.dumps(params, allow_nan=False)
    except ValueError:
        _refuse("params must hold numbers as JSON has them: no NaN, and none too large")


def _check_kinds(params: dict[str, Any]) -> None:
    for key in TEXTS:
        if not isinstance(params.get(key, ""), str):
            _refuse(f"params must hold a name as {key!r}, not {type(params[key]).__name__}")
    for key in COUNTS:
        value = params.get(key, 0)
        if type(value) is not int or value < 0:
            _refuse(f"params must hold a whole number from 0 as {key!r}")


def _check_new_image(arguments: dict[str, Any]) -> None:
    """What is said about a new image is kept with it, beside what the server keeps."""
    _check_upload(arguments["file"])
    _check_info("params of an image", _parse("params", arguments["params"] or "{}"))


def _check_info(what: str, values: dict[str, Any]) -> None:
    """What somebody says of an image or a label is theirs to say, and short."""
    if kept := sorted(set(KEPT_KEYS) & set(values)):
        _refuse(f"{what} must not hold {kept[0]!r}: the server itself keeps that, and goes by it")
    if len(json.dumps(values)) > MAX_INFO:
        _refuse(f"{what} must have at most {MAX_INFO} characters")


def _check_params(params: Any, depth: int = 0) -> None:
    """Check the JSON a client adds to a request, at any depth."""
    if depth > MAX_DEPTH:
        _refuse(f"params must be at most {MAX_DEPTH} levels deep")
    if isinstance(params, str) and not _is_text(params):
        _refuse("params must hold whole letters: half of a surrogate pair is none")
    if isinstance(params, (list, tuple)):
        for item in params:
            _check_params(item, depth + 1)
    if not isinstance(params, dict):
        return
    for key, value in params.items():
        if not _is_text(key):
            _refuse("params must hold whole letters: half of a surrogate pair is none")
        if key in SERVER_KEYS:
            _refuse(f"params must not hold {key!r}: name images with image=ID")
        if key == "label" and isinstance(value, str):
            _refuse("params must not name a label file: upload it as 'label'")
        if key in NAME_KEYS and isinstance(value, str):
            check_name(key, value)
            if key in TAGS:
                check_tag(value)
        if key == "images":
            _check_images(value)
        if key == "result_extension" and value and not EXTENSION.fullmatch(str(value)):
            _refuse(f"result_extension must be like .nii.gz, .nrrd or .png, not {value!r}")
        _check_params(value, depth + 1)


def _check_images(images: Any) -> None:
    """Check a choice of images for batch inference: a word such as `unlabeled`, or a list of ids."""
    names = [images] if isinstance(images, str) else images
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        _refuse("images must be all, labeled, unlabeled, or a list of ids")
    for name in names:
        check_name("image", name)


def _check_label(arguments: dict[str, Any]) -> None:
    """Check an upload of a label; with other tags than final it is kept as it comes."""
    is_final = (arguments["tag"] or "final") == "final"
    _check_upload(arguments["label"], _OF_DICOM if is_final else ())


def _check_upload(upload: Any, more: tuple[str, ...] = ()) -> None:
    """Check that an upload is an image, or ends otherwise as is allowed: others could replace the datastore's files."""
    from monailabel.config import settings

    name = Path(upload.filename or "").name
    check_name("file name", name)
    endings = tuple(p.removeprefix("*") for p in settings.MONAI_LABEL_DATASTORE_FILE_EXT)
    if not name.lower().endswith(endings + more):
        _refuse(f"file name must end in one of {', '.join(endings + more)}, not {name!r}")


def _refuse_scribbles(arguments: dict[str, Any]) -> None:
    """MONAI would open the image here by whatever reader takes its content; and no task of ours takes scribbles."""
    _refuse("label must not be a .bin of scribbles: no model of this server takes any")


def _check_session(arguments: dict[str, Any]) -> None:
    """Check that there is room, and what is not an archive; that is checked when it is unpacked."""
    place, store = Path(arguments["data_file"]), Path(arguments["self"].store_path)
    store.mkdir(parents=True, exist_ok=True)
    check_room(store, sum(file.stat().st_size for file in ([place] if place.is_file() else place.iterdir())))
    if not arguments["uncompress"]:
        _check_images_in(place)


def _check_images_in(place: Path) -> None:
    """Check that a file, or each file of a folder, whose name says that it is an image is a whole one."""
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    for file in files:
        if file.is_file() and file.name.lower().endswith(IMAGE_SUFFIXES):
            try:
                read_header(file)
            except SeriesError as error:
                _refuse(str(error))


def _check_wsi(endpoints: Any) -> None:
    """Refuse what is no description of a region, where it is parsed."""
    original = endpoints.WSIInput.parse_obj

    class Json:
        @staticmethod
        def loads(text: str) -> dict[str, Any]:
            return _parse("wsi", text)

    def parse_obj(values: Any) -> Any:
        try:
            return original(values)
        except ValidationError as error:
            wrong = ", ".join(str(found["loc"][0]) for found in error.errors() if found["loc"])
            _refuse(f"wsi does not describe a region: look at {wrong}")

    endpoints.json = Json
    endpoints.WSIInput.parse_obj = staticmethod(parse_obj)


class _Shutil:
    """`shutil`, as far as `utils/sessions.py` uses it."""

    move, rmtree = staticmethod(shutil.move), staticmethod(shutil.rmtree)

    @staticmethod
    def unpack_archive(archive: str, folder: str) -> None:
        try:
            unpack(Path(archive), Path(folder))
            _check_images_in(Path(folder))
        except (HTTPException, StorageError):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except BROKEN_ARCHIVE as error:
            shutil.rmtree(folder, ignore_errors=True)
            _refuse(f"expected a whole archive such as .zip or .tar.gz, but {type(error).__name__}")
        finally:
            Path(archive).unlink(missing_ok=True)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse(name: str, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(f"{name} must be JSON, but {error}")
    if not isinstance(values, dict):
        _refuse(f"{name} must be a JSON object such as {{}}, not {type(values).__name__}")
    return values


def _refuse(message: str) -> NoReturn:
    raise HTTPException(400, message)
