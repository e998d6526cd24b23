"""`/iopfl/work`: which answers are being computed, how far they are, and stopping one; and noticing who has left."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from monailabel.config import settings
from monailabel.endpoints.user.auth import User
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iopfl.access.roles import for_user
from iopfl.base.names import find_path
from iopfl.base.running import Answering, asked_by, has_left, running

router = APIRouter(prefix="/iopfl/work", tags=["iopfl"])
_COMPUTING = ("/infer/", "/iopfl/answer", "/iopfl/overlay.png", "/iopfl/disagreement")


@router.get("", summary="Answers that are being computed or wait: passes done and in all, seconds so far and expected")
def list_work(user: Annotated[User, Depends(for_user)]) -> list[dict]:
    return [{**one.describe(), "yours": _may_stop(user, one)} for one in running.answers()]


@router.delete("/{number}", summary="Stop an answer that you asked for; an admin stops any")
def stop_work(number: str, user: Annotated[User, Depends(for_user)]) -> dict[str, str]:
    found = running.find(number)
    if found is None:
        raise HTTPException(404, "no such answer is being computed: it is there by now, or was stopped")
    if not _may_stop(user, found):
        raise HTTPException(403, "somebody else asked for this answer: it is theirs to stop, or an admin's")
    found.cancel()
    return {"stopped": number}


def _may_stop(user: User, one: Answering) -> bool:
    is_open = not settings.MONAI_LABEL_AUTH_ENABLE
    return is_open or one.who == user.username or settings.MONAI_LABEL_AUTH_ROLE_ADMIN in user.roles


class Leaving:
    """ASGI middleware: who closes the connection waits no more, and the computing for them ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not find_path(scope).startswith(_COMPUTING):
            await self._app(scope, receive, send)
            return
        left, is_read = threading.Event(), asyncio.Event()
        if scope["method"] in ("GET", "HEAD"):
            is_read.set()

        async def hear() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                left.set()
            elif not message.get("more_body"):
                is_read.set()
            return message

        async def watch() -> None:
            await is_read.wait()  # before, a message may be a part of the request
            while not left.is_set():
                if (await receive())["type"] == "http.disconnect":
                    left.set()

        watching = asyncio.create_task(watch())
        tokens = has_left.set(left.is_set), asked_by.set(lambda: getattr(scope.get("user"), "username", ""))
        try:
            await self._app(scope, hear, send)
        finally:
            has_left.reset(tokens[0])
            asked_by.reset(tokens[1])
            watching.cancel()
