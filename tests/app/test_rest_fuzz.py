"""Requests that nobody means well: none is a 500, none hangs, none reaches a file that is not the server's to give.

The long form, with every route and ten thousand requests, is in `tests/long/test_rest_fuzz.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from iopfl.access.audit import AuditLog
from iopfl.access.users import Users
from label_server import running_server
from rest_fuzz import Fuzz, make_uploads, snapshot

from .site import APP, SPOT, conf_of, make_site_bank, write_picture

SECRET = b"a secret of the server's owner"
KNOWN = {
    "image": ["eye0", "eye1"],
    "id": ["eye2"],
    "label": ["eye0"],
    "tag": ["final", "original"],
    "model": ["spot", "spot_routed"],
    "task": ["spot"],
    "method": ["dice"],
    "strategy": ["random"],
    "kind": ["train", "share"],
}
NAMES = {"image", "id", "label", "tag", "model", "task", "session_id", "strategy", "method"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A site beside which lies something that is not for its server's users."""
    home = tmp_path_factory.mktemp("fuzzed")
    (home / "clinic").mkdir()
    for number in range(4):
        write_picture(home / "clinic" / f"eye{number}.png", number)
    write_picture(home / "secret.png", 9)
    (home / "secret").write_bytes(SECRET)
    (home / "secret.txt").write_bytes(SECRET)
    Users(home / "state").add("root", "admin", "four words nobody guesses")
    Users(home / "state").add("bridge", "federation", None)
    return home


@pytest.fixture(scope="module")
def tokens(home) -> dict[str, str]:
    users = Users(home / "state")
    return {"": users.make_token("root", 1), "/iopfl/federations/": users.make_token("bridge", 1)}


@pytest.fixture(scope="module")
def server(home):
    (home / "state" / "tmp").mkdir()
    env = {"TMPDIR": str(home / "state" / "tmp")}
    conf = conf_of(make_site_bank(home / "bank", SPOT))
    with running_server(
        APP, home / "clinic", state=home / "state", conf=conf, args=["--auth", "local"], env=env
    ) as one:
        yield one


@pytest.fixture(scope="module")
def schema(server, tokens) -> dict[str, Any]:
    return server.get("/openapi.json", headers={"Authorization": f"Bearer {tokens['']}"}).json()


@pytest.fixture(autouse=True)
def unharmed(server, home, tokens):
    """After each test: nothing was written but by the server into its own folders, and it still serves."""
    own = (home / "clinic", home / "state")
    before = snapshot(home, besides=own)
    yield
    assert snapshot(home, besides=own) == before
    assert server.get("/info/", headers={"Authorization": f"Bearer {tokens['']}"}).json()["labels"] == ["spot"]
    assert AuditLog(home / "state" / "audit").verify().torn == 0


def test_requests_of_every_kind_are_answered_in_plain_words_and_without_a_token_not_at_all(
    server, schema, home, tokens
):
    fuzz = Fuzz(server, schema, KNOWN, tokens, place=str(home))
    fuzz.run(1)
    fuzz.run_params(100)
    fuzz.run_uploads(80, make_uploads((home / "clinic" / "eye0.png").read_bytes()))
    assert fuzz.failures == []
    assert fuzz.statuses.total() > 200 and fuzz.statuses[200] > 30, fuzz.statuses
    # What has a place in no route, or is for signing in, needs no token.
    assert set(fuzz.bare) <= {200, 401, 404, 405, 413, 421, 422, 429} and fuzz.bare[401] > 150, fuzz.bare


def evil_names(home: Path) -> list[str]:
    """A file beside the datastore, and the server's own, as one might try to name them."""
    return [
        "../secret",
        "../secret.png",
        "%2e%2e/secret",
        "..%2fsecret",
        "....//secret",
        "..\\secret",
        "eye0/../../secret",
        "labels/../../secret.png",
        "..",
        "../secret\x00.png",
        "\uff0e\uff0e/secret",
        str(home / "secret.png"),
        f"file://{home / 'secret'}",
        str(home / "state" / "users.yaml"),
        "../state/keys/session.key",
    ]


def test_no_name_in_any_parameter_leads_to_another_file(server, schema, home, tokens):
    leaks, taken, tried = [], [], 0
    evil = evil_names(home)
    with requests.Session() as session:
        for path, methods in schema["paths"].items():
            token = tokens["/iopfl/federations/" if path.startswith("/iopfl/federations/") else ""]
            session.headers["Authorization"] = f"Bearer {token}"
            for method, operation in methods.items():
                parameters = [one for one in operation.get("parameters", []) if one["in"] in ("path", "query")]
                for tested in (one["name"] for one in parameters):
                    # What names nothing is tried with less.
                    for name in evil if tested in NAMES else evil[:3]:
                        values = {one["name"]: KNOWN.get(one["name"], ["1"])[0] for one in parameters} | {tested: name}
                        answer = ask(session, server.url, method, path, parameters, values)
                        tried += 1
                        assert answer.status_code < 500, (method, path, tested, name, answer.text)
                        if SECRET in answer.content or b"$argon2id$" in answer.content:
                            leaks.append((method, path, tested, name))
                        if tested in NAMES and answer.status_code < 300:
                            taken.append((method, path, tested, name))
    assert leaks == [] and taken == []
    assert tried > 300


def ask(session, url, method, path, parameters, values):
    """Send one request, its path as it stands: nothing is tidied on the way."""
    query = {one["name"]: values[one["name"]] for one in parameters if one["in"] == "query"}
    for one in parameters:
        if one["in"] == "path":
            path = path.replace("{" + one["name"] + "}", quote(values[one["name"]], safe="").replace(".", "%2E"))
    return session.request(method, url + path, params=query, timeout=60, allow_redirects=False)
