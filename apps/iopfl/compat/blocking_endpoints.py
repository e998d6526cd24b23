"""While one request is answered, the server answers nobody else.

Defect: the endpoints (`endpoints/*.py`) are `async def` with blocking bodies, so they run on the
event loop; `/info` waited 3.9 s behind an inference. Plain functions run in FastAPI's threads.
Upstream: not reported.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from iopfl.compat._patching import once


def routers() -> Iterator[Any]:
    """Yield the router of every module in `monailabel.endpoints`."""
    import monailabel.endpoints

    for module in pkgutil.iter_modules(monailabel.endpoints.__path__):
        if not module.ispkg:
            yield importlib.import_module(f"monailabel.endpoints.{module.name}").router


@once
def apply() -> None:
    """Build every route of an `async def` anew, on a function that runs in a thread."""
    for router in routers():
        for index, route in enumerate(router.routes):
            if inspect.iscoroutinefunction(getattr(route, "endpoint", None)):
                router.routes[index] = _with_endpoint(route, _in_thread(route.endpoint))


def _with_endpoint(route: Any, endpoint: Callable) -> Any:
    """Copy a route with another endpoint; a route's attributes are its constructor's arguments."""
    arguments = {
        name: getattr(route, name)
        for name in inspect.signature(type(route).__init__).parameters
        if name not in ("self", "endpoint") and hasattr(route, name)
    }
    return type(route)(endpoint=endpoint, **arguments)


def _in_thread(endpoint: Callable[..., Coroutine]) -> Callable:
    """Give an `async def` that awaits nothing, or only the request's body, a form that does not block."""

    signature = inspect.signature(endpoint)
    takes_request = any(p.annotation is Request for p in signature.parameters.values())

    def plain(**arguments: Any) -> Any:
        return _finish(endpoint(**arguments))

    async def with_body(**arguments: Any) -> Any:
        # Once read, starlette keeps the body: the endpoint's own await returns at once.
        request = next(value for value in arguments.values() if isinstance(value, Request))
        await request.body()
        return await run_in_threadpool(plain, **arguments)

    function: Any = with_body if takes_request else plain
    # Not functools.wraps: FastAPI looks through __wrapped__ and would see the `async def`.
    function.__name__, function.__doc__ = endpoint.__name__, endpoint.__doc__
    function.__signature__ = signature
    return function


def _finish(coroutine: Coroutine) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        return finished.value
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} awaits: it cannot run in a thread of its own")
