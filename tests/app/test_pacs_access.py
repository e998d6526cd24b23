"""How the server asks a PACS: signed in, of the right machine, and with nothing secret in sight."""

from __future__ import annotations

import ipaddress
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from iopfl.base.errors import ConfigError, PACSError
from iopfl.pacs.access import PACSAccess


@pytest.mark.parametrize("kind", ["user", "token", "environment"])
def test_the_server_signs_in(tmp_path, kind, monkeypatch):
    """A PACS that answers only to the right header; the credentials change while the server runs."""
    from iopfl.pacs.access import PACS

    file = tmp_path / "pacs.yaml"
    texts = {"user": "username: ann\npassword: 'p: w'\n", "token": "token: t0\n"}
    headers = {"user": "Basic YW5uOnA6IHc=", "token": "Bearer t0", "environment": "Bearer t1"}
    file.write_text(texts.get(kind, ""))
    file.chmod(0o600)
    if kind == "environment":
        monkeypatch.setenv("IOPFL_PACS_TOKEN", "t1")
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(200 if seen[-1] == headers[kind] else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        pacs = PACS(PACSAccess(url, None if kind == "environment" else file))
        assert pacs.find_series({}, limit=9) == []
        if kind != "environment":
            file.write_text("token: expired\n")
            with pytest.raises(PACSError, match="status 401: check the user, password or token"):
                pacs.find_series({}, limit=9)
    finally:
        server.shutdown()
        server.server_close()


def test_the_pacs_certificate_is_checked(tmp_path, monkeypatch):
    """By the authority that was named, and by none that the environment names."""
    from iopfl.pacs.access import PACS

    key, certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_port}"
    try:
        assert PACS(PACSAccess(url, ca=certificate)).find_series({}, limit=9) == []
        with pytest.raises(PACSError, match="is not trusted: give its authority with --conf pacs_ca FILE"):
            PACS(PACSAccess(url)).find_series({}, limit=9)
    finally:
        server.shutdown()
        server.server_close()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Key and certificate of this machine, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pacs")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(encoding))
    return folder / "key.pem", folder / "certificate.pem"


@pytest.mark.parametrize(
    ("url", "content", "message"),
    [
        ("http://ann:secret@pacs/dicom-web", None, "must not hold a password"),
        ("ftp://pacs", None, "expected the DICOMweb address"),
        ("http://", None, "expected the DICOMweb address"),
        ("http://pacs", "- a\n- b\n", "expected YAML with token, or username and password, found neither"),
        ("http://pacs", "a: [", "cannot be read"),
        ("http://pacs", "", "found neither"),
    ],
)
def test_access_that_cannot_be_is_refused(tmp_path, url, content, message):
    file = None
    if content is not None:
        file = tmp_path / "pacs.yaml"
        file.write_text(content)
        file.chmod(0o600)
    with pytest.raises(ConfigError, match=message) as caught:
        PACSAccess(url, file).headers()
    assert "secret" not in str(caught.value)
