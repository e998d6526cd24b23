"""Ten thousand requests of every kind to every route of a label server, half of them without a token."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from app.site import APP, GLAND, SPOT, conf_of, make_site_bank, write_picture, write_scans
from iopfl.access.audit import AuditLog
from iopfl.access.users import Users
from label_server import running_server
from rest_fuzz import Fuzz, describe_all, make_uploads, snapshot

SECRET = b"a secret of the server's owner"
KINDS = {
    "pictures": (SPOT, ["eye0", "eye1"], "png"),
    "volumes": (GLAND, ["case00", "case01"], "nii.gz"),
}


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    return describe_all(tmp_path_factory.mktemp("described"))


@pytest.fixture(params=KINDS)
def site(request, tmp_path):
    """A folder with images, a bank for them, and what is known of them."""
    task, images, suffix = KINDS[request.param]
    folder = tmp_path / "clinic"
    if request.param == "pictures":
        folder.mkdir()
        for number in range(6):
            write_picture(folder / f"eye{number}.png", number)
    else:
        write_scans(folder, labeled=6, unlabeled=3)
    known = {
        "image": images,
        "id": images[1:],
        "label": images[:1],
        "tag": ["final", "original"],
        "model": [task.name, f"{task.name}_routed"],
        "task": [task.name],
        "method": ["dice"],
        "strategy": ["random", "first"],
        "kind": ["train", "share"],
    }
    return folder, make_site_bank(tmp_path / "bank", task), known, folder / f"{images[0]}.{suffix}"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_requests_harm_nothing(schema, site, tmp_path: Path):
    folder, bank, known, image = site
    state = tmp_path / "state"
    users = Users(state)
    users.add("root", "admin", "four words nobody guesses")
    users.add("bridge", "federation", None)
    tokens = {"": users.make_token("root", 1), "/iopfl/federations/": users.make_token("bridge", 1)}
    tokens["/iopfl/signout"] = users.make_token("root", 1)  # which ends it, and no other
    (tmp_path / "secret").write_bytes(SECRET)
    (state / "tmp").mkdir()
    own = (folder, state)
    before = snapshot(tmp_path, besides=own)
    env = {"TMPDIR": str(state / "tmp")}
    with running_server(APP, folder, state=state, conf=conf_of(bank), args=["--auth", "local"], env=env) as server:
        fuzz = Fuzz(server, schema, known, tokens, place=str(tmp_path))
        for start in range(4):
            fuzz.run(8, start=start)
            fuzz.run_params(400, start=start)
            fuzz.run_uploads(300, make_uploads(image.read_bytes()), start=start)
        sent = fuzz.statuses.total() + fuzz.bare.total()
        megabytes = psutil.Process(server.pid).memory_info().rss / 2**20
        print(f"\n{sent} requests, with a token {dict(fuzz.statuses)}, without {dict(fuzz.bare)}, {megabytes:.0f} MB")  # noqa: T201
        assert fuzz.failures == []
        info = server.get("/info/", headers={"Authorization": f"Bearer {tokens['']}"})
        assert info.ok and info.json()["datastore"]["total"] > 0
    assert sent > 10_000
    assert snapshot(tmp_path, besides=own) == before
    chain = AuditLog(state / "audit").verify()
    assert chain.torn == 0 and chain.lines > 1000
    assert SECRET not in AuditLog(state / "audit").path.read_bytes()
