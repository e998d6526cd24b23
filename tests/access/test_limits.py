"""How a request must come, and what is written down of it: names, lengths, digests, statuses."""

from __future__ import annotations

import hashlib
from typing import Annotated

import pytest
from fastapi import FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse
from fastapi.testclient import TestClient

from iopfl import compat

compat.apply_early()  # before MONAI Label is imported

from iopfl.access.audit import AuditLog  # noqa: E402
from iopfl.access.gate import install  # noqa: E402
from iopfl.access.identity import Access  # noqa: E402
from iopfl.access.settings import AccessSettings, check_certificate, choose_mode, read_proxies  # noqa: E402
from iopfl.access.users import Users  # noqa: E402
from iopfl.base.errors import ConfigError  # noqa: E402
from iopfl.base.private_files import read_secret  # noqa: E402

MB = 2**20


@pytest.fixture
def handled():
    """Names of the routes that got as far as doing something."""
    return []


@pytest.fixture
def client(tmp_path, handled):
    app = FastAPI()

    @app.put("/datastore/label")
    def save(image: str, label: UploadFile, params: Annotated[str, Form()] = "") -> dict[str, int]:
        handled.append(image)
        return {"bytes": len(label.file.read())}

    @app.post("/train/{model}")
    def train(model: str, options: dict) -> dict[str, str]:
        handled.append(model)
        return {}

    @app.post("/infer/{model}")
    def fail(model: str) -> None:
        if model == "refuse":
            raise HTTPException(404, "no such model")
        raise RuntimeError(model)

    @app.get("/datastore/image")
    def image(image: str) -> dict[str, str]:
        return {}

    @app.get("/proxy/dicom/wado/{path:path}")
    def retrieve(path: str) -> dict[str, str]:
        return {}

    @app.get("/proxy/dicom/qido/{path:path}")
    def search(path: str) -> list:
        return []

    @app.put("/iopfl/federations/{task}/bank")
    async def bank(task: str, request: Request) -> dict[str, int]:
        return {"bytes": sum([len(chunk) async for chunk in request.stream()])}

    access = AccessSettings(mode="off", state=tmp_path, hosts=frozenset({"label.hospital.example"}), max_upload_mb=3)
    install(app, Access(access))
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def entries(tmp_path):
    return list(AuditLog(tmp_path / "audit").entries())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:80", 200), ("[::1]:8000", 200), ("10.0.0.7", 200),
        ("label.hospital.example", 200), ("Label.Hospital.Example:443", 200),
        ("evil.example", 421), ("label.hospital.example.evil.example", 421), ("localhost.evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421), ("[::1", 421), ("a@b", 421),
    ],
)  # fmt: skip
def test_a_server_answers_to_its_own_names_and_addresses_alone(client, host, status):
    answer = client.get("/iopfl/health", headers={"Host": host})
    assert answer.status_code == status
    assert status == 200 or "--allow-host" in answer.json()["detail"]


def send_in_pieces(megabytes):
    return (bytes(MB) for _ in range(megabytes))


@pytest.mark.parametrize("is_known", [True, False])
def test_what_is_too_long_is_refused_before_it_is_read_or_while(client, handled, is_known):
    """With a Content-Length at once; a body of unknown length, as soon as it is too long."""
    answer = client.put("/datastore/label?image=a", files={"label": ("a.nii.gz", bytes(2 * MB))})
    assert answer.json() == {"bytes": 2 * MB}
    if is_known:
        refused = client.put("/datastore/label?image=b", files={"label": ("a.nii.gz", bytes(4 * MB))})
    else:
        head = b'--x\r\nContent-Disposition: form-data; name="label"; filename="a.nii.gz"\r\n\r\n'
        pieces = [head, *send_in_pieces(5), b"\r\n--x--\r\n"]
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        refused = client.put("/datastore/label?image=b", content=iter(pieces), headers=kind)
    assert (refused.status_code, "at most 3 MB" in refused.json()["detail"]) == (413, True)
    assert handled == ["a"]


@pytest.mark.parametrize(
    "kind",
    [
        "application/json", "application/x-www-form-urlencoded", "application/ld+json", "",
        "text/plain", "application/octet-stream", "multipart/form-data; boundary=x",
    ],
)  # fmt: skip
def test_parameters_are_short(client, kind):
    refused = client.post("/train/spot", content=b"[" + b"0," * MB + b"0, 0]", headers={"Content-Type": kind})
    assert (refused.status_code, "at most 2 MB" in refused.json()["detail"]) == (413, True)


def test_weights_are_as_long_as_their_route_says(client):
    answer = client.put("/iopfl/federations/spot/bank", content=send_in_pieces(5))
    assert answer.json() == {"bytes": 5 * MB}


def test_every_answer_says_what_a_browser_may_do_with_it(client):
    answer = client.get("/datastore/image?image=a")
    assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-store")
    page = client.get("/docs")
    assert "default-src 'self'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["evil.html", "evil.svg", "evil.xhtml", "evil.nii.gz", "evil"])
def test_what_others_brought_runs_nothing_in_a_browser(tmp_path, name):
    app = FastAPI()
    (tmp_path / name).write_text("<script>alert(1)</script>")

    @app.get("/datastore/label")
    @app.get("/infer/result")
    def download() -> FileResponse:
        return FileResponse(tmp_path / name)

    install(app, Access(AccessSettings(mode="off", state=tmp_path)))
    browser = TestClient(app)
    for path in ("/datastore/label", "/infer/result"):
        headers = browser.get(path).headers
        assert headers["content-security-policy"].startswith("sandbox; default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-disposition"] == "attachment" or headers["content-type"].startswith("text/plain")


# ---- what is written down ----


def test_a_line_says_what_came_in_a_form_and_in_a_body(client, tmp_path):
    content = bytes(range(256)) * 999
    files = {"label": ("Mueller_Hans.nii.gz", content)}
    client.put("/datastore/label?image=Mueller_Hans&tag=final", files=files, data={"params": '{"x": "Mueller"}'})
    client.post("/train/spot", json={"epochs": 3})
    saved, trained = entries(tmp_path)
    assert (saved.what, saved.digest) == ("PUT /datastore/label", hashlib.sha256(content).hexdigest())
    assert dict(saved.about) == {
        "image": AuditLog(tmp_path / "audit").pseudonym("Mueller_Hans"), "tag": "final", "status": "200",
    }  # fmt: skip
    assert (trained.what, dict(trained.about)) == ("POST /train/{model}", {"model": "spot", "status": "200"})
    assert trained.digest == hashlib.sha256(b'{"epochs":3}').hexdigest()
    assert "ueller" not in AuditLog(tmp_path / "audit").path.read_text()


def test_what_is_refused_or_fails_is_written_down_without_names_nobody_knows(client, tmp_path):
    client.post("/infer/Mueller_Hans?image=1.2.840.10008.1")
    client.post("/infer/refuse?session_id=Mueller")
    client.put(
        "/datastore/label?image=a", content=b"no form", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    client.put("/Mueller_Hans")
    failed, refused, broken, unknown = entries(tmp_path)
    assert (failed.about["status"], failed.about["image"]) == ("500", "1.2.840.10008.1")
    assert refused.about["status"] == "404" and broken.about["status"] in ("400", "422")
    assert unknown.what == "PUT unknown"
    assert "ueller" not in AuditLog(tmp_path / "audit").path.read_text()


def test_copies_that_are_taken_are_written_down_and_looking_at_lists_is_not(client, tmp_path):
    client.get("/datastore/image?image=a")
    client.get("/proxy/dicom/wado/studies/1.2.3.4/series/1.2.3.4.5/metadata")
    client.get("/proxy/dicom/wado/studies/1.2.3.4/series/1.2.3.4.5/instances/1.2.3.4.6/frames/1")
    for whole in ("", "/series/1.2.3.4.5", "/series/1.2.3.4.5/instances/1.2.3.4.6"):
        client.get(f"/proxy/dicom/wado/studies/1.2.3.4{whole}")
    client.get("/iopfl/health")
    client.get("/openapi.json")
    assert [entry.what for entry in entries(tmp_path)] == [
        "GET /datastore/image",
        *["GET /proxy/dicom/wado/{path:path}"] * 4,
    ]
    uids = [[entry.about.get(name) for name in ("study", "series", "instance")] for entry in entries(tmp_path)[1:]]
    assert uids == [
        ["1.2.3.4", "1.2.3.4.5", None],
        ["1.2.3.4", None, None],
        ["1.2.3.4", "1.2.3.4.5", None],
        ["1.2.3.4", "1.2.3.4.5", "1.2.3.4.6"],
    ]


def test_of_searches_in_the_pacs_the_first_of_a_kind_and_a_day_is_written_down_without_what_was_searched(
    client, tmp_path
):
    for path in (
        "studies?PatientName=Mueller*",
        "studies?PatientID=1949",
        "studies?image=Mueller&id=1949&label=Mueller&session_id=Mueller&tag=final",
        "studies/1.2.3.4/series?PatientName=Mueller",
        "studies/1.2.3.9/series",
        "instances",
        "studies/1.2.3.4/series/1.2.3.4.5/instances",
    ):
        client.get(f"/proxy/dicom/qido/{path}")
    assert [(entry.what, dict(entry.about)) for entry in entries(tmp_path)] == [
        ("GET /proxy/dicom/qido/{path:path}", {"searched": kind, "status": "200"})
        for kind in ("studies", "series", "instances")
    ]


def test_a_form_in_many_small_pieces_has_the_same_digest(client, tmp_path):
    content = b"\r\n--x-\r\nalmost a boundary"
    body = (
        b'--x\r\nContent-Disposition: form-data; name="params"\r\n\r\n{}\r\n'
        b'--x\r\nContent-Disposition: form-data; name="label"; filename="a.nii"\r\n\r\n' + content + b"\r\n--x--\r\n"
    )
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    pieces = (body[start : start + 1] for start in range(len(body)))
    assert client.put("/datastore/label?image=a", content=pieces, headers=kind).json() == {"bytes": len(content)}
    assert entries(tmp_path)[0].digest == hashlib.sha256(content).hexdigest()


def test_nothing_more_is_changed_while_it_cannot_be_written_down(client, handled, tmp_path, monkeypatch):
    append = AuditLog.append

    def full(self, *what, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AuditLog, "append", full)
    assert client.post("/train/first", json={}).status_code == 200, "it is not known before"
    refused = client.post("/train/second", json={})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "60")
    assert client.get("/iopfl/health").status_code == 200
    monkeypatch.setattr(AuditLog, "append", append)
    assert client.post("/train/third", json={}).status_code == 200
    assert handled == ["first", "third"]
    assert [entry.about["model"] for entry in entries(tmp_path)] == ["first", "third"]


# ---- what an administrator says ----


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "label.hospital.example"])
def test_others_are_let_in_unknown_only_where_somebody_said_so(tmp_path, host):
    with pytest.raises(ConfigError, match="--auth off to let everybody"):
        choose_mode(None, host, tmp_path)
    assert choose_mode("off", host, tmp_path) == "off"
    assert choose_mode(None, "127.0.0.1", tmp_path) == "off"


def test_a_server_of_users_needs_one(tmp_path):
    with pytest.raises(ConfigError, match="iopfl users add NAME --role admin"):
        choose_mode("local", "127.0.0.1", tmp_path)


def test_the_stock_form_takes_its_way_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("IOPFL_AUTH", "sometimes")
    with pytest.raises(ConfigError, match="one of local, oidc, off"):
        AccessSettings.from_environment(tmp_path)
    monkeypatch.setenv("IOPFL_AUTH", "off")
    monkeypatch.setenv("IOPFL_ALLOW_HOSTS", "label.hospital.example,other")
    assert AccessSettings.from_environment(tmp_path).hosts == {"label.hospital.example", "other"}
    monkeypatch.setenv("IOPFL_AUTH", "local")
    with pytest.raises(ConfigError, match="iopfl users add NAME --role admin"):
        AccessSettings.from_environment(tmp_path)
    Users(tmp_path).add("bridge", "federation", None)
    chosen = AccessSettings.from_environment(tmp_path)
    assert (chosen.mode, chosen.hosts) == ("local", None)


@pytest.mark.parametrize("everybody", ["*", "10.0.0.5, *", "0.0.0.0/0", "::/0"])
def test_no_proxy_is_everybody(monkeypatch, everybody):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", everybody)
    with pytest.raises(ConfigError, match="guess passwords without end"):
        read_proxies()


def test_proxies_are_those_that_are_named(monkeypatch):
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    assert read_proxies() == ()
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.5, 10.1.0.0/16,::1")
    assert read_proxies() == ("10.0.0.5", "10.1.0.0/16", "::1")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "proxy.hospital.example")
    with pytest.raises(ConfigError, match="expected addresses of reverse proxies"):
        read_proxies()


def test_secrets_that_others_may_read_and_services_in_the_clear_are_refused(tmp_path, monkeypatch):
    from monailabel.config import settings

    secret = tmp_path / "secret"
    secret.write_text("kept\n")
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_secret(secret)
    secret.chmod(0o600)
    assert read_secret(secret) == "kept"
    assert "kept" not in repr(AccessSettings(mode="oidc", state=tmp_path, client_secret="kept"))
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", "http://sso.hospital.example/realms/x")
    with pytest.raises(ConfigError, match="expected an https"):
        choose_mode("oidc", "127.0.0.1", tmp_path)


def test_a_certificate_that_is_none_is_said_plainly(tmp_path):
    for content in (None, b"no certificate"):
        file = tmp_path / "certificate.pem"
        if content:
            file.write_bytes(content)
        with pytest.raises(ConfigError, match="expected a certificate in PEM"):
            check_certificate(file, None)
    check_certificate(None, None)
