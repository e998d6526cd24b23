"""Start-up kits of a federation: FLARE's provisioning with mutual TLS, and our policies in place.

    kits/server/          for the consortium's machine; with it, in `admin/`, what submits jobs
    kits/<site>/          one per site
    kits/.provision/      the federation's certificate authority: whoever has it can make kits

Called again, it makes the kits that are not there yet, with the same authority.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.signature import SignatureBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from fl_bridge.federation_file import FederationFile
from fl_bridge.kit_policy import update_kit
from fl_bridge.record import RECORD, FederationRecord, make_id
from fl_bridge.server_kit import ADMIN, ADMIN_FOLDER, SETTINGS, STATE, read_settings, write_settings
from fl_bridge.site_policy import SitePolicy, agree
from iopfl.base.errors import ConfigError
from iopfl.base.private_files import make_private, protect
from iopfl.core.bank.signing import Keyring

SERVER_FOLDER = "server"
_ORGANIZATION = "consortium"
_HIDDEN = ".provision"
_UNIT = """\
[Unit]
Description=iopfl federation {name}: {role}
After=network-online.target
Wants=network-online.target

[Service]
# Correct the two paths, and give the service a user of its own.
ExecStart=/opt/iopfl/.venv/bin/fl-bridge {role} /opt/iopfl/{kit}
Restart=always
RestartSec=5
# Job processes go with the one that started them.
KillMode=control-group
TimeoutStopSec=30

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Kits:
    """What was provisioned.

    Attributes:
        folder: the folder that holds all kits.
        made: names of the kits that are new.
        kept: those that were there before.
        expires: when the certificates do.
        key: public key of the federation's banks, which sites trust by `iopfl bank trust`.
    """

    folder: Path
    made: tuple[str, ...]
    kept: tuple[str, ...]
    expires: datetime
    key: str


def provision(federation: FederationFile, folder: Path) -> Kits:
    """Make the kits of a federation that are not there yet, and bring the server's settings up to date.

    Raises:
        ConfigError: the folder has another federation's kits.
    """
    folder = folder.absolute()
    _check_same_federation(federation, folder)
    federation = replace(federation, federation=_find_id(federation, folder / SERVER_FOLDER))
    project = prepare_project(_describe_project(federation))
    hidden = folder / _HIDDEN
    make_private(hidden)
    protect(hidden)
    with contextlib.redirect_stdout(sys.stderr):  # FLARE tells where its own results are
        builders = [WorkspaceBuilder(), StaticFileBuilder(config_folder="config"), CertBuilder(), SignatureBuilder()]
        context = Provisioner(str(hidden), builders).provision(project)
    source = Path(context["current_prod_dir"])
    made, kept = [], []
    for name in (SERVER_FOLDER, *federation.clients):
        if (folder / name).exists():
            kept.append(name)
            continue
        site = federation.clients.get(name)
        staging = hidden / f"new-{name}"
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(source / (federation.host if site is None else name), staging)
        if site is None:
            shutil.copytree(source / ADMIN, staging / ADMIN_FOLDER)
        else:
            replace(federation.sites[site], federation=federation.federation).write(staging / "local")
        _write_unit(staging, name, federation, role="server" if site is None else "site")
        _protect(staging)
        staging.rename(folder / name)
        made.append(name)
    shutil.rmtree(source)
    for name in (*made, *kept):
        update_kit(folder / name)
    for name in set(kept) - {SERVER_FOLDER}:
        _complete(folder / name / "local", federation)
    server = folder / SERVER_FOLDER
    write_settings(server, federation)
    certificate = x509.load_pem_x509_certificate((server / "startup" / "server.crt").read_bytes())
    key = Keyring(server / "keys").public_key
    return Kits(folder, tuple(made), tuple(kept), certificate.not_valid_after_utc, key)


def _check_same_federation(federation: FederationFile, folder: Path) -> None:
    if not (folder / SERVER_FOLDER / SETTINGS).is_file():
        return
    before = read_settings(folder / SERVER_FOLDER)
    for name in ("name", "host", "port"):
        if getattr(before, name) != getattr(federation, name):
            raise ConfigError(
                f"{folder} has the kits of another federation ({name} {getattr(before, name)!r}, now "
                f"{getattr(federation, name)!r}): give another folder"
            )


def _find_id(federation: FederationFile, kit: Path) -> str:
    """The federation's id: that of its kits, or of rounds that an older version began, or a new one."""
    known = read_settings(kit).federation if (kit / SETTINGS).is_file() else ""
    if not known and (kit / STATE / RECORD).is_file():
        known = FederationRecord.open(kit / STATE).federation
    return known or make_id(federation.task)


def _complete(folder: Path, federation: FederationFile) -> None:
    """Name federation and task in the `site.yaml` of a kit that an older version made, and which is still here."""
    if not SitePolicy.read(folder).names_what_is_agreed:
        agree(folder, federation=federation.federation, tasks=[federation.task.name])


def _describe_project(federation: FederationFile) -> dict[str, Any]:
    server = {"name": federation.host, "type": "server", "org": _ORGANIZATION, "fed_learn_port": federation.port}
    clients = [{"name": client, "type": "client", "org": _ORGANIZATION} for client in federation.clients]
    admin = {"name": ADMIN, "type": "admin", "org": _ORGANIZATION, "role": "project_admin"}
    return {
        "api_version": 3,
        "name": federation.name,
        "description": "made by fl-bridge provision",
        "participants": [{**server, "admin_port": federation.port}, *clients, admin],
    }


def _write_unit(kit: Path, name: str, federation: FederationFile, *, role: str) -> None:
    text = _UNIT.format(name=federation.name, role=role, kit=name)
    (kit / f"fl-bridge-{role}.service").write_text(text, encoding="utf-8")


def _protect(kit: Path) -> None:
    """Nobody but the owner reads a private key."""
    for path in kit.rglob("*"):
        path.chmod(0o700 if path.is_dir() or path.suffix == ".sh" else 0o600)
    kit.chmod(0o700)
