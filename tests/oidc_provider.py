"""A hospital's sign-in service on loopback: Authlib's OpenID Connect server, a sign-in page, a client, some users."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import requests
from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, ClientMixin, grants
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oidc.core.grants import OpenIDCode
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from flask import Flask, jsonify, redirect, request
from werkzeug.serving import make_server

CLIENT, SECRET, PASSWORD = "label-server", "kept between the two", "a hospital password"
PAGE = """<!doctype html><title>Hospital</title><h1>Hospital sign-in</h1>
<form method="post"><input name="username"><input name="password" type="password"><button>Log in</button></form>"""


@dataclass
class Client(ClientMixin):
    redirect_uri: str = ""
    is_public: bool = False
    token_endpoint_auth_method: str = "client_secret_basic"

    def get_client_id(self):
        return CLIENT

    def get_default_redirect_uri(self):
        return self.redirect_uri

    def get_allowed_scope(self, scope):
        return scope

    def check_redirect_uri(self, redirect_uri):
        return redirect_uri == self.redirect_uri

    def check_client_secret(self, client_secret):
        return client_secret == SECRET

    def check_endpoint_auth_method(self, method, endpoint):
        return method == ("none" if self.is_public else "client_secret_basic")

    def check_response_type(self, response_type):
        return response_type == "code"

    def check_grant_type(self, grant_type):
        return grant_type in ("authorization_code", "password")


@dataclass
class Code(AuthorizationCodeMixin):
    code: str
    user: str
    scope: str
    redirect_uri: str
    nonce: str
    code_challenge: str
    code_challenge_method: str

    def get_redirect_uri(self):
        return self.redirect_uri

    def get_scope(self):
        return self.scope

    def get_nonce(self):
        return self.nonce

    def get_auth_time(self):
        return int(time.time())

    def get_acr(self):
        return None

    def get_amr(self):
        return None


@dataclass
class Provider:
    """A running service.

    Attributes:
        issuer: its address.
        users: name -> roles; the password is `PASSWORD`.
        roles_in: `id`, `access` or `userinfo`: where it says a user's roles.
        lies: claims that its identity tokens have instead of the right ones.
        client: the label server's registration.
    """

    issuer: str
    users: dict[str, list[str]]
    roles_in: str = "access"
    lies: dict[str, Any] = field(default_factory=dict)
    client: Client = field(default_factory=Client)
    key: Any = field(default_factory=lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048))
    key_id: str = "first"
    codes: dict[str, Code] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    def rotate(self) -> None:
        """Sign with another key from now on, of another kind."""
        self.key, self.key_id = ec.generate_private_key(ec.SECP256R1()), "second"

    def sign(self, claims: Mapping[str, Any]) -> str:
        algorithm = "RS256" if self.key_id == "first" else "ES256"
        return jwt.encode(dict(claims), self.key, algorithm=algorithm, headers={"kid": self.key_id})

    def claims(self, user: str, where: str) -> dict[str, Any]:
        roles = {"realm_access": {"roles": self.users[user]}} if where == self.roles_in else {}
        return {"sub": f"number of {user}", "preferred_username": user, **roles}

    def access_token(self, user: str, **claims: Any) -> str:
        """An access token of this server's client, or with other claims; None leaves one out."""
        body = {**self.claims(user, "access"), "iss": self.issuer, "exp": time.time() + 300, "azp": CLIENT, **claims}
        body = {name: value for name, value in body.items() if value is not None}
        token = self.sign(body)
        self.tokens[token] = user
        return token

    def public_keys(self) -> dict[str, Any]:
        algorithms: Any = jwt.algorithms
        kind = algorithms.RSAAlgorithm if self.key_id == "first" else algorithms.ECAlgorithm
        return {"keys": [{**json.loads(kind.to_jwk(self.key.public_key())), "kid": self.key_id, "use": "sig"}]}


class _Codes(grants.AuthorizationCodeGrant):
    provider: Provider
    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic", "none")

    def save_authorization_code(self, code, request):
        asked = request.payload.data
        self.provider.codes[code] = Code(
            code, request.user, request.payload.scope, request.payload.redirect_uri, asked.get("nonce"),
            asked.get("code_challenge"), asked.get("code_challenge_method"),
        )  # fmt: skip

    def query_authorization_code(self, code, client):
        return self.provider.codes.get(code)

    def delete_authorization_code(self, authorization_code):
        del self.provider.codes[authorization_code.code]

    def authenticate_user(self, authorization_code):
        return authorization_code.user


class _Passwords(grants.ResourceOwnerPasswordCredentialsGrant):
    provider: Provider
    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic", "none")

    def authenticate_user(self, username, password):
        return username if username in self.provider.users and password == PASSWORD else None


class _Identity(OpenIDCode):
    provider: Provider

    def exists_nonce(self, nonce, request):
        return False

    def encode_id_token(self, token, request):
        claims = self.provider.claims(request.user, "id")
        claims |= {"iss": self.provider.issuer, "aud": CLIENT, "iat": time.time(), "exp": time.time() + 300}
        claims["nonce"] = request.authorization_code.get_nonce()
        return self.provider.sign({**claims, **self.provider.lies})


def _build(provider: Provider) -> Flask:
    app = Flask("hospital")
    server = AuthorizationServer()

    def generate(client, grant_type, user, scope):
        return provider.access_token(user)

    app.config["OAUTH2_ACCESS_TOKEN_GENERATOR"] = generate
    server.init_app(
        app, query_client=lambda name: provider.client if name == CLIENT else None, save_token=lambda *_: None
    )
    for grant in (_Codes, _Passwords, _Identity):
        grant.provider = provider
    server.register_grant(_Codes, [_Identity(require_nonce=True), CodeChallenge(required=True)])
    server.register_grant(_Passwords)

    @app.get("/.well-known/openid-configuration")
    def configuration():
        paths = {"authorization": "authorize", "token": "token", "userinfo": "userinfo"}
        found = {f"{name}_endpoint": f"{provider.issuer}/{path}" for name, path in paths.items()}
        return jsonify(issuer=provider.issuer, jwks_uri=f"{provider.issuer}/keys", **found)

    @app.get("/keys")
    def keys():
        return jsonify(provider.public_keys())

    @app.route("/authorize", methods=["GET", "POST"])
    def authorize():
        user = request.form.get("username", "")
        if request.method == "GET" or user not in provider.users or request.form.get("password") != PASSWORD:
            return PAGE
        try:
            grant = server.get_consent_grant(end_user=user)
        except OAuth2Error as error:
            return server.handle_error_response(None, error)
        return server.create_authorization_response(grant_user=user, grant=grant)

    @app.post("/token")
    def token():
        return server.create_token_response()

    @app.get("/userinfo")
    def userinfo():
        user = provider.tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        return (jsonify(provider.claims(user, "userinfo")), 200) if user else ("", 401)

    @app.route("/elsewhere", methods=["GET", "POST"])
    def elsewhere():
        return redirect(request.args["to"])

    return app


@contextmanager
def running_provider(**users: list[str]) -> Iterator[Provider]:
    """Run the service for as long as the block lasts."""
    provider = Provider("", users)
    server = make_server("127.0.0.1", 0, _build(provider), threaded=True)
    provider.issuer = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()


def sign_in(browser: requests.Session, page: str, user: str, password: str = PASSWORD) -> requests.Response:
    """Do what a person does at the service's page, and follow where it leads."""
    assert parse_qs(urlsplit(page).query)["code_challenge_method"] == ["S256"]
    return browser.post(page, data={"username": user, "password": password}, timeout=30, allow_redirects=False)
