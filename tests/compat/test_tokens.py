"""Signing in with a real realm's tokens; what a federation's token opens, and that it opens nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.site import SPOT, conf_of, make_site_bank, write_picture
from label_server import PACKAGES, running_server

ROUND = "/iopfl/federations/spot/fed-1/rounds/0/train?base_hash=x"


class Realm:
    """What of Keycloak MONAI Label asks: a realm with its public key."""

    def __init__(self):
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        realm = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = json.dumps({"public_key": realm.public_text}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._server.server_port}/realms/hospital"

    @property
    def public_text(self):
        der = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(der).decode()

    def token(self, *roles, key=None, algorithm="RS256", **claims):
        body = {"exp": time.time() + 600, "iss": self.uri, "realm_access": {"roles": list(roles)}, **claims}
        return jwt.encode(body, key or self.key, algorithm=algorithm)

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def realm():
    realm = Realm()
    yield realm
    realm.close()


@pytest.fixture(scope="module")
def server(realm, tmp_path_factory):
    home = tmp_path_factory.mktemp("signed")
    (home / "clinic").mkdir()
    write_picture(home / "clinic" / "eye1.png", 1)
    conf = conf_of(make_site_bank(home / "bank", SPOT))
    env = {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": realm.uri}
    with running_server(PACKAGES / "iopfl", home / "clinic", state=home / "state", conf=conf, env=env) as running:
        yield running


def ask(server, token, path="/info/", method="GET"):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return server.request(method, path, headers=headers)


def test_a_users_token_opens_what_users_may(server, realm):
    assert ask(server, realm.token("monailabel-user")).status_code == 200
    assert ask(server, realm.token("monailabel-user"), "/train/spot", "POST").status_code == 403
    assert ask(server, realm.token("somebody")).status_code == 403
    assert ask(server, None).status_code == 401


def test_a_higher_role_may_all_that_a_lower_one_may(server, realm):
    assert ask(server, realm.token("monailabel-reviewer")).status_code == 200
    assert ask(server, realm.token("monailabel-annotator"), "/logs/").status_code == 403
    assert ask(server, realm.token("monailabel-admin"), "/logs/").status_code == 200


def test_forged_and_stale_tokens_are_refused_in_plain_words(server, realm):
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = f"-----BEGIN PUBLIC KEY-----\n{realm.public_text}\n-----END PUBLIC KEY-----".encode()
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in (
            {"alg": "HS256", "typ": "JWT"},
            {"exp": time.time() + 600, "realm_access": {"roles": ["monailabel-admin"]}},
        )
    )
    seal = base64.urlsafe_b64encode(hmac.digest(pem, head + b"." + body, hashlib.sha256)).rstrip(b"=")
    forged = {
        "signed by a stranger": realm.token("monailabel-admin", key=stranger),
        "of another realm": realm.token("monailabel-admin", iss="http://elsewhere/realms/hospital"),
        "unsigned": jwt.encode({"exp": time.time() + 600}, None, algorithm="none"),
        "signed with the public key": b".".join([head, body, seal]).decode(),
        "of another kind of key": realm.token(
            "monailabel-admin", key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"
        ),
        "nonsense": "a.b.c",
        "a machine's that nobody made": "iopfl_AAAA",
    }
    for what, token in forged.items():
        answer = ask(server, token)
        assert (answer.status_code, answer.json()["detail"]) == (401, "the token is not valid here: sign in again"), (
            what
        )
    expired = ask(server, realm.token("monailabel-admin", exp=time.time() - 60))
    assert expired.status_code == 401 and "expired" in expired.json()["detail"]
    assert ask(server, realm.token(realm_access=["monailabel-admin"])).status_code == 403


def test_a_federations_token_opens_the_rounds_and_nothing_else(server, realm):
    token = realm.token("federation")
    assert ask(server, token, ROUND).json()["status"] == "missing"
    assert ask(server, realm.token("monailabel-admin"), ROUND).status_code == 403
    assert ask(server, None, ROUND).status_code == 401
    routes = ask(server, realm.token("monailabel-user"), "/openapi.json").json()["paths"]
    opened = []
    for path, methods in routes.items():
        for method in methods:
            concrete = path.replace("{", "").replace("}", "")
            status = ask(server, token, concrete, method.upper()).status_code
            if status not in (401, 403) and not path.startswith(("/iopfl/federations/", "/auth/", "/iopfl/me")):
                opened.append((method, path, status))
    assert opened == []


def test_a_realm_that_shows_its_key_alone_cannot_sign_browsers_in_and_says_so(server):
    refused = server.get("/iopfl/signin/service", allow_redirects=False)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert "has no authorization_endpoint" in refused.json()["detail"]
    assert server.get("/auth/").json()["enabled"] is True
