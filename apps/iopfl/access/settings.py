"""Who may use a label server, as its administrator says it: checked before anything listens."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509

from iopfl.access.state import check_users
from iopfl.base.errors import ConfigError
from iopfl.base.private_files import check_unread_by_others

AUTH_VARIABLE = "IOPFL_AUTH"
"""Environment variable: `local`, `oidc` or `off`, where the server is not started by `iopfl serve`."""
HOSTS_VARIABLE = "IOPFL_ALLOW_HOSTS"
"""The same for `--allow-host`, comma-separated."""
MODES = ("local", "oidc", "off")
PROXIES_VARIABLE = "FORWARDED_ALLOW_IPS"
"""Environment variable: addresses or networks of reverse proxies, comma-separated. Named by uvicorn."""
MAX_UPLOAD_MB = 2048


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """Who may use a label server, and how much may be sent to it.

    Attributes:
        mode: `off`, everybody who reaches it may do everything; `local`, users of its own
            (`iopfl users`); `oidc`, those of the hospital's sign-in service.
        state: the state folder.
        client_secret: what this server proves to the sign-in service with; "" = it is a public client.
        oidc_ca: PEM file of the authority that signed that service's certificate; None = the public ones count.
        oidc_proxy: URL of the proxy that leads to it; "" = none.
        hosts: names by which a server that asks for no sign-in may be called, besides IP addresses and
            `localhost`; None = any: its cookie, or its certificate, is for its own names as it is.
        max_upload_mb: most that one request may bring, in MB of 2^20 bytes.
        proxies: addresses or networks of the reverse proxies that are believed in whose name they ask.
    """

    mode: str
    state: Path
    client_secret: str = field(default="", repr=False)
    oidc_ca: Path | None = None
    oidc_proxy: str = ""
    hosts: frozenset[str] | None = None
    max_upload_mb: int = MAX_UPLOAD_MB
    proxies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"authentication is one of {', '.join(MODES)}, not {self.mode!r}")
        if self.max_upload_mb < 1:
            raise ConfigError(f"the most that a request may bring is 1 MB or more, not {self.max_upload_mb}")
        if self.oidc_ca is not None:
            try:
                ssl.create_default_context(cafile=self.oidc_ca)
            except OSError as error:  # of which SSLError is one
                raise ConfigError(f"--oidc-ca {self.oidc_ca}: expected certificates in PEM, {error}") from error
        if self.oidc_proxy and not re.fullmatch(r"https?://[^/]+/?", self.oidc_proxy):
            raise ConfigError("--oidc-proxy: expected http://host:port")  # with a password in it, perhaps

    @classmethod
    def from_environment(cls, default_state: Path) -> AccessSettings:
        """The settings of a server that `monailabel start_server` starts."""
        from monailabel.config import settings

        mode = os.environ.get(AUTH_VARIABLE) or ("oidc" if settings.MONAI_LABEL_AUTH_ENABLE else "off")
        hosts = frozenset(filter(None, os.environ.get(HOSTS_VARIABLE, "").split(","))) if mode == "off" else None
        state = Path(settings.MONAI_LABEL_APP_CONF.get("state") or default_state)
        if mode == "local":
            check_users(state)
        # uvicorn, whom MONAI Label starts itself, believes this machine unless it is told otherwise.
        return cls(mode=mode, state=state, hosts=hosts, proxies=read_proxies() or ("127.0.0.1", "::1"))


def choose_mode(asked: str | None, host: str, state: Path) -> str:
    """How to run a server, where its administrator asked for one of `MODES` or for none.

    Raises:
        ConfigError: others than this machine would reach it, and nobody said that they may; or it has no users.
    """
    from monailabel.config import settings

    mode = asked or os.environ.get(AUTH_VARIABLE) or ("oidc" if settings.MONAI_LABEL_AUTH_ENABLE else "")
    if not mode:
        if not is_loopback(host):
            raise ConfigError(
                f"on {host} others than this machine reach the server: give --auth local (users of its own, "
                "see iopfl users) or --auth oidc, or --auth off to let everybody see and change everything"
            )
        mode = "off"
    if mode == "local":
        check_users(state)
    if mode == "oidc":
        check_address(settings.MONAI_LABEL_AUTH_REALM_URI)
    return mode


def read_proxies() -> tuple[str, ...]:
    """The reverse proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed; none unless they are named.

    Raises:
        ConfigError: everybody would be believed, or what is named is no address.
    """
    named = tuple(filter(None, (part.strip() for part in os.environ.get(PROXIES_VARIABLE, "").split(","))))
    for address in named:
        try:
            is_everybody = ipaddress.ip_network(address, strict=False).prefixlen == 0
        except ValueError:
            is_everybody = address == "*"
            if not is_everybody:
                raise ConfigError(
                    f"{PROXIES_VARIABLE}: expected addresses of reverse proxies, such as 10.0.0.5, given {address!r}"
                ) from None
        if is_everybody:
            raise ConfigError(
                f"{PROXIES_VARIABLE}={address} would let everybody claim another address, and so guess passwords "
                "without end: give the addresses of the reverse proxies"
            )
    return named


def check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Check that a server can show a certificate, if it is to have one.

    Args:
        certificate: PEM.
        key: PEM, not encrypted: nobody is there to type its password; None = it is in the certificate's file.

    Raises:
        ConfigError: it cannot.
    """
    if certificate is None:
        if key is not None:
            raise ConfigError("--ssl-keyfile without --ssl-certfile: give both for HTTPS, or neither")
        return
    try:
        x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--ssl-certfile {certificate}: expected a certificate in PEM, {error}") from error
    try:
        # An empty password where one is asked for, instead of a question at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
        check_unread_by_others(key or certificate)
    except OSError as error:  # of which SSLError is one
        raise ConfigError(
            f"--ssl-keyfile {key or certificate}: expected the certificate's own key in PEM, not encrypted ({error})"
        ) from error


def check_address(address: str) -> None:
    """Check that what is said to a sign-in service stays between it and this server.

    Raises:
        ConfigError: it would travel in the clear.
    """
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ConfigError(
            f"the sign-in service {address}: expected an https:// address (http:// on this machine alone)"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "pacs.example")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
