"""The routes that a federation's bridge uses: a round in, its update out, and the bank that comes of it.

Weights travel as safetensors files, a bank as an `.iopfl` file, each streamed to disk and checked against
`Content-Digest` (RFC 9530). With authentication on, a token of role `federation` opens these routes and no others.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response
from monailabel.interfaces.utils.app import app_instance
from starlette.requests import ClientDisconnect

from iopfl.access.roles import for_banks, for_federation
from iopfl.base.digest import content_digest, digest_header
from iopfl.base.errors import IOPFLError
from iopfl.core.bank.exchange import SUFFIX, ArrivingBank, export_bank, import_bank
from iopfl.core.bank.signing import Keyring
from iopfl.core.networks import build_network
from iopfl.core.order import Order
from iopfl.core.weights import serialize
from iopfl.lib.federation_rounds import KINDS, FederationRounds, give_way_to_clinicians

_HEADERS = {"Cache-Control": "no-store"}
_HEAD_BYTES = 2**20
"""By which a file may be longer than the weights in it."""
_LINGER_SECONDS = 30.0
"""To read on after a refusal: who is still sending when the connection closes may never see why."""

router = APIRouter(prefix="/iopfl/federations", tags=["federation"], dependencies=[Depends(for_federation)])
banks = APIRouter(tags=["federation"], dependencies=[Depends(for_banks)])
give_way_to_clinicians()


def find_order(federation: str, round_index: int, kind: str, base_hash: str) -> tuple[Order, str]:
    """The order that a request names."""
    if kind not in KINDS:
        raise HTTPException(404, f"no kind of order {kind!r}: expected {' or '.join(KINDS)}")
    return Order(federation, round_index, base_hash), kind


def find_rounds(task: str) -> FederationRounds:
    """The rounds of a task of this server."""
    models = app_instance().models
    if task not in models.tasks:
        raise HTTPException(404, f"no task {task!r}: this server has {', '.join(models.tasks)}")
    return FederationRounds(models, models.tasks[task])


Rounds = Annotated[FederationRounds, Depends(find_rounds)]
Asked = Annotated[tuple[Order, str], Depends(find_order)]

_ROUND = "/{task}/{federation}/rounds/{round_index}/{kind}"


@router.get("/{task}", summary="What federations asked of this site last, and what became of it")
def describe_all(task: str) -> Response:
    found = find_rounds(task)
    return JSONResponse({"site": app_instance().models.site, "federations": found.last()}, headers=_HEADERS)


@router.put(_ROUND + "/global", summary="Take in the global weights of a round")
async def put_global(request: Request, rounds: Rounds, asked: Asked) -> Response:
    await run_in_threadpool(rounds.check_wanted, *asked)
    limit = await run_in_threadpool(lambda: _weights_size(rounds))
    async with _received(request, _Limit(limit).take) as file:
        await run_in_threadpool(rounds.put_global, *asked, file)
    return JSONResponse(await run_in_threadpool(rounds.describe, *asked), headers=_HEADERS)


@router.post(_ROUND, summary="Start the training of a round; 429 while a clinician's training runs")
def start(options: dict[str, Any], rounds: Rounds, asked: Asked) -> Response:
    state = rounds.start(*asked, options)
    if state["status"] == "busy":
        raise HTTPException(429, "a training started at this site runs: come back later", headers={"Retry-After": "5"})
    return JSONResponse(state, headers=_HEADERS)


@router.get(_ROUND, summary="What has become of a round")
def describe(rounds: Rounds, asked: Asked) -> Response:
    return JSONResponse(rounds.describe(*asked), headers=_HEADERS)


@router.delete(_ROUND, summary="Stop the training of this round, and nobody else's")
def stop(rounds: Rounds, asked: Asked) -> Response:
    rounds.stop(*asked)
    return JSONResponse(rounds.describe(*asked), headers=_HEADERS)


@router.get(_ROUND + "/weights", summary="The weights that answer: the local model of a round, or the personalized one")
def weights(rounds: Rounds, asked: Asked) -> FileResponse:
    path = rounds.answer_file(*asked)
    headers = {**_HEADERS, "Content-Digest": content_digest(path)}
    return FileResponse(path, media_type="application/octet-stream", headers=headers)


@router.put("/{task}/bank", summary="Take in a bank, and serve it")
async def put_bank(request: Request, task: str, rounds: Rounds) -> Response:
    """Its signer must be trusted here already (`iopfl bank trust`)."""
    models = app_instance().models
    keys = Keyring(models.settings.keys)

    def take_in(file: Path) -> str:
        return import_bank(file, models.bank_folder(task), keys=keys, task=models.tasks[task]).label

    async with _received(request, ArrivingBank("upload", keys=keys, task=models.tasks[task]).take) as file:
        return JSONResponse({"bank": await run_in_threadpool(take_in, file)}, headers=_HEADERS)


@banks.get("/iopfl/banks/{task}.iopfl", summary="The bank that is served, as one file; for iopfl bank pull")
def get_bank(task: str, request: Request) -> Response:
    models = app_instance().models
    if task not in models.tasks:
        raise HTTPException(404, f"no task {task!r}: this server has {', '.join(models.tasks)}")
    manifest = models.predictor(task).bank.manifest
    tag = f'"{manifest.version}-{manifest.content_id}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    file = models.settings.state / "exports" / f"{task}-{manifest.version}-{manifest.content_id}{SUFFIX}"
    if not file.is_file():
        for older in file.parent.glob(f"{task}-*{SUFFIX}"):
            older.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        export_bank(models.bank_folder(task), file)
    headers["Content-Digest"] = content_digest(file)
    return FileResponse(file, media_type="application/octet-stream", headers=headers)


class _Limit:
    """So much of a body, and no more."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0

    def take(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            raise HTTPException(413, f"expected at most {self._limit} bytes: more than this task's networks have")


@contextlib.asynccontextmanager
async def _received(request: Request, look: Callable[[bytes], None]) -> AsyncIterator[Path]:
    """A request's body as a temporary file, once its digest was checked; `look` sees each piece before the disk."""
    promised = request.headers.get("content-digest", "")
    if not promised.startswith("sha-256=:"):
        raise HTTPException(400, "expected a Content-Digest header (sha-256), found none: update the bridge")
    digest = hashlib.sha256()
    # Its name may stand in a message, and says nothing.
    with tempfile.TemporaryDirectory(prefix="iopfl-") as folder, Path(folder, "upload").open("wb") as file:
        pieces = request.stream()
        async for piece in pieces:
            try:
                await run_in_threadpool(look, piece)
            except (IOPFLError, HTTPException):
                with anyio.move_on_after(_LINGER_SECONDS), contextlib.suppress(ClientDisconnect):
                    async for _ in pieces:
                        pass
                raise
            digest.update(piece)
            file.write(piece)
        file.flush()
        if promised != digest_header(digest.digest()):
            raise HTTPException(400, "what arrived is not what its Content-Digest says: send it again")
        yield Path(file.name)


def _weights_size(rounds: FederationRounds) -> int:
    return len(serialize(build_network(rounds.task).state_dict())) + _HEAD_BYTES
