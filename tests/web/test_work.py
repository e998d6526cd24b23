"""What is being computed is listed and stopped, also when who asked closes the connection."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from iopfl.base.running import asked_by, has_left, running
from iopfl.web.work_routes import Leaving

QUESTION = {"task": "gland", "image": "scan", "model": "global"}


@pytest.fixture
def held(app, monkeypatch):
    """An answer that is at its first pass, until `go` is set."""
    from iopfl.core import inference

    begun, go = threading.Event(), threading.Event()
    run = inference.predict_instances

    def wait_first(*args, **options):
        begun.set()
        assert go.wait(30)
        return run(*args, **options)

    monkeypatch.setattr(inference, "predict_instances", wait_first)
    yield begun, go
    go.set()


def test_an_answer_that_is_computed_is_listed_with_its_passes_and_can_be_stopped(client, held):
    begun, go = held
    assert client.get("/iopfl/work").json() == []
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.get, "/iopfl/answer", params=QUESTION)
        assert begun.wait(30)
        (work,) = client.get("/iopfl/work").json()
        assert (work["task"], work["image"], work["yours"]) == ("gland", "scan", True)
        assert (work["done"], work["passes"], work["percent"]) == (0, 5, 0.0)
        assert client.delete(f"/iopfl/work/{work['id']}").json() == {"stopped": work["id"]}
        go.set()
        assert "stopped; nothing of this image was kept" in asked.result(30).json()["detail"]
    assert client.get("/iopfl/work").json() == []
    assert client.get("/iopfl/answer", params=QUESTION).status_code == 200


def test_what_is_there_by_now_cannot_be_stopped(client):
    assert client.delete("/iopfl/work/0123456789abcdef").status_code == 404


def call(app, messages, path="/iopfl/answer", method="POST", **scope):
    """Send messages of a connection to an ASGI app; then nothing more comes."""

    async def run():
        coming = iter(messages)

        async def receive():
            for message in coming:
                return message
            return await asyncio.sleep(3600)

        async def send(message):
            pass

        scope_ = {"type": "http", "path": path, "method": method, **scope}
        await asyncio.wait_for(app(scope_, receive, send), 30)

    with ThreadPoolExecutor(1) as other:  # Playwright leaves a running loop in this one
        other.submit(asyncio.run, run()).result()


@pytest.mark.parametrize("root", ["", "/label"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_who_closes_the_connection_waits_no_more(method, root):
    seen = []

    async def app(scope, receive, send):
        if method == "POST":
            seen.append((await receive())["body"])
            seen.append((await receive())["body"])
        with running.follow("gland", "scan") as mine:
            while not mine.cancelled():
                await asyncio.sleep(0)
        seen.append("stopped")

    body = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.request", "body": b"b"}]
    coming = [*(body if method == "POST" else body[1:]), {"type": "http.disconnect"}]
    call(Leaving(app), coming, path=f"{root}/iopfl/answer", method=method, root_path=root)
    assert seen == ([b"a", b"b", "stopped"] if method == "POST" else ["stopped"])


def test_other_requests_pass_as_they_are():
    async def app(scope, receive, send):
        assert not has_left.get()()
        assert (await receive()) == {"type": "http.disconnect"}

    call(Leaving(app), [{"type": "http.disconnect"}], path="/iopfl/status")


def test_threads_of_a_request_know_who_asked():
    asgi = FastAPI()
    asgi.add_middleware(Leaving)

    @asgi.get("/iopfl/answer")
    def answer():
        return {"who": asked_by.get()(), "left": has_left.get()()}

    assert TestClient(asgi).get("/iopfl/answer").json() == {"who": "", "left": False}
