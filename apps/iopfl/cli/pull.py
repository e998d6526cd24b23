"""`iopfl bank pull`: a bank from a server, for sites outside its federation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from iopfl.base.errors import BankError, ConfigError
from iopfl.base.files import Scratch, write_bytes
from iopfl.base.private_files import read_secret
from iopfl.core.bank.bank import ModelBank
from iopfl.core.bank.exchange import SUFFIX, ArrivingBank, import_bank
from iopfl.core.bank.manifest import MANIFEST
from iopfl.core.bank.signing import Keyring
from iopfl.core.task import Task

PULLED = ".pulled.json"
"""In the bank's folder: from where, and which version, so that an unchanged bank is not downloaded again."""
_TIMEOUT = (10, 60)
_CHUNK = 2**20
_MAX_DETAIL = 2**14
_LENGTH = re.compile(r"[0-9]{1,18}")


def pull_bank(
    url: str,
    folder: Path,
    *,
    keys: Keyring,
    task: Task | None = None,
    token_file: Path | None = None,
    ca: Path | None = None,
) -> bool:
    """Download a bank, verify it, and make it the served version of a folder, or change nothing.

    Args:
        url: the URL of an `.iopfl` file, e.g. `https://SERVER/iopfl/banks/TASK.iopfl`.
        folder: the bank's folder, new or not.
        keys: whose signers are trusted.
        task: that it must be for; None = any.
        token_file: file with a bearer token; None = none asked.
        ca: PEM file of the authority of the server's certificate; None = a public one.

    Returns:
        Whether there was something new.

    Raises:
        ConfigError: the address cannot be asked, or the server refuses.
        BankError: no whole bank, an untrusted signer, another task, or older than the newest version there.
    """
    _check_address(url)
    headers = {"Accept-Encoding": "identity"}
    if token_file:
        headers["Authorization"] = f"Bearer {read_secret(token_file)}"
    before = _read_pulled(folder)
    if before.get("url") == url and (folder / MANIFEST).is_file():
        headers["If-None-Match"] = before["etag"]
    options: dict[str, Any] = {"headers": headers, "stream": True, "timeout": _TIMEOUT, "allow_redirects": False}
    try:
        with _session() as session, session.get(url, verify=str(ca) if ca else True, **options) as response:
            if response.status_code == requests.codes.not_modified:
                return False
            if response.status_code != requests.codes.ok:
                raise ConfigError(
                    f"{url}: expected a bank, the server answers {response.status_code} {_detail(response)}: "
                    "check the address, and whether it asks for a --token-file"
                )
            with Scratch(folder) as staging:
                file = staging / f"{folder.name}{SUFFIX}"
                _download(response, file, ArrivingBank(file.name, keys=keys, task=task))
                import_bank(file, folder, keys=keys, task=task)
            if "ETag" in response.headers:
                write_bytes(folder / PULLED, json.dumps({"url": url, "etag": response.headers["ETag"]}).encode())
    except requests.RequestException as error:
        raise ConfigError(f"{url}: no answer ({type(error).__name__}): check the address, and try again") from error
    ModelBank.open(folder, keys=keys)
    return True


def _session() -> requests.Session:
    """Neither a proxy nor another password from the environment: the token goes to the address that was given."""
    session = requests.Session()
    session.trust_env = False
    return session


def _check_address(url: str) -> None:
    """A bank is signed, but a token must not travel in the clear."""
    parts = urlsplit(url)
    loopback = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
        raise ConfigError(f"{url}: expected an https:// address (http:// for this machine alone)")


def _download(response: requests.Response, path: Path, bank: ArrivingBank) -> None:
    if response.headers.get("Content-Encoding", "identity") != "identity":  # a megabyte of it may be a gigabyte
        raise BankError("expected a bank as it is, the server packs it: serve the file without compression")
    length = response.headers.get("Content-Length", "")
    bar = tqdm(
        total=int(length) if _LENGTH.fullmatch(length) else None,
        unit="B",
        unit_scale=True,
        desc="downloading",
        disable=None,
    )
    with path.open("wb") as file, bar:
        for chunk in response.iter_content(_CHUNK):
            bank.take(chunk)
            file.write(chunk)
            bar.update(len(chunk))


def _read_pulled(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / PULLED).read_bytes())
    except (OSError, ValueError):
        return {}


def _detail(response: requests.Response) -> str:
    """The server's reason in one line that no terminal takes for commands; no page is read to its end."""
    try:
        text = str(json.loads(response.raw.read(_MAX_DETAIL, decode_content=False))["detail"])
    except (ValueError, KeyError, TypeError, RecursionError, HTTPError):
        text = str(response.reason)
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split())[:300])
