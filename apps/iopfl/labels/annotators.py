"""Whose request it is, and which answer a label may have started from."""

from __future__ import annotations

import functools
import inspect
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monailabel.endpoints.user.auth import User

_KEPT = 1000
"""Answers that are remembered; of more, whoever has most of them loses the oldest."""
_LONGEST = 64
_ORIGIN = ("task", "model", "bank")
_NOTED = (*_ORIGIN, "quality")

_annotator: ContextVar[str | None] = ContextVar("annotator", default=None)
_user: ContextVar[User | None] = ContextVar("user", default=None)


def find_user() -> User | None:
    """Who has signed in and sent the request at hand; None for what the server does by itself, or if nobody has to."""
    return _user.get()


def find_annotator(params: Mapping[str, Any] | None = None) -> str:
    """Name of who sent the request at hand: the signed-in user, else what the client calls itself, else "".

    Args:
        params: the request's own, for calls that come from no endpoint.
    """
    known = _annotator.get()
    return known if known is not None else _client(params)


def name_annotator(user: str, params: Mapping[str, Any] | None = None) -> str:
    """The same for a route of ours: MONAI Label calls everybody admin where nobody has to sign in."""
    from monailabel.config import settings

    return user if settings.MONAI_LABEL_AUTH_ENABLE else _client(params)


def tell_annotators() -> None:
    """Let MONAI Label's endpoints that save, remove or lend say whose request it is; they keep it to themselves.

    Of all others it is known if somebody is signed in.
    """
    from monailabel.endpoints import activelearning, datastore
    from monailabel.endpoints.user.auth import RBAC

    for module, names in ((datastore, ("save_label", "remove_label", "remove_image")), (activelearning, ("sample",))):
        for name in names:
            setattr(module, name, _telling(getattr(module, name)))
    RBAC.__call__ = _telling_user(RBAC.__call__)  # the routes there are look it up with each request


class RecentAnswers:
    """The last answer that each annotator's client got for an image: what it submits afterwards started from it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, OrderedDict[tuple[str, str], dict[str, Any]]] = {}  # by annotator

    def note(self, request: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """Remember what a request for an image was answered with, by the answer's `params`."""
        annotator, asked = find_annotator(request), (_client(request), str(request.get("image") or ""))
        with self._lock:
            own = self._answers.pop(annotator, OrderedDict())
            self._answers[annotator] = own  # at the end: of those who have as many, who came first loses first
            own[asked] = {key: params[key] for key in _NOTED if key in params}
            own.move_to_end(asked)
            if sum(map(len, self._answers.values())) > _KEPT:
                most = max(self._answers, key=lambda name: len(self._answers[name]))
                self._answers[most].popitem(last=False)
                if not self._answers[most]:
                    del self._answers[most]

    def find(self, image: str, info: Mapping[str, Any]) -> dict[str, Any]:
        """What a label started from: what its client says, or else the last answer that it got for the image.

        Args:
            image: the label's.
            info: what came with the label.

        Returns:
            `task`, `model`, `bank` and, where this server answered, `quality`; empty where nothing is known.
        """
        said = info.get("origin")
        if isinstance(said, Mapping):
            return {key: _printable(said[key]) for key in _ORIGIN if isinstance(said.get(key), str)}
        with self._lock:
            own = self._answers.get(find_annotator(info))
            return dict(own.get((_client(info), image), {})) if own else {}


def _telling_user(find: Callable) -> Callable:
    @functools.wraps(find)
    async def told(*arguments: Any, **options: Any) -> Any:
        from monailabel.config import settings

        user = await find(*arguments, **options)
        if settings.MONAI_LABEL_AUTH_ENABLE:
            _user.set(user)
            _annotator.set(user.username)  # for the rest of the request: each one has a context of its own
        return user

    return told


def _telling(function: Callable) -> Callable:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def told(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options).arguments
        token = _annotator.set(name_annotator(bound.get("user") or "", _parse(bound.get("params"))))
        try:
            return function(*arguments, **options)
        finally:
            _annotator.reset(token)

    return told


def _client(params: Mapping[str, Any] | None) -> str:
    """What a client calls itself, as far as it can be printed."""
    return _printable(str((params or {}).get("client_id") or ""))


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable()).strip()[:_LONGEST]


def _parse(params: Any) -> Mapping[str, Any]:
    """Parameters as an endpoint gets them: JSON or not, valid or not (the endpoint says so)."""
    if isinstance(params, str):
        try:
            params = json.loads(params)
        except (ValueError, RecursionError):
            return {}
    return params if isinstance(params, Mapping) else {}
