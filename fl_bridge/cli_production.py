"""The commands of a federation in production; each imports what it needs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iopfl.base.errors import ConfigError

if TYPE_CHECKING:
    from fl_bridge.federation_file import FederationFile
    from fl_bridge.record import FederationRecord

_PROVISION = """\
example:
  fl-bridge provision federation.yaml -o kits/

federation.yaml:
"""


def add_commands(commands: Any) -> None:
    """Add them to the parser of `fl-bridge`."""
    from fl_bridge.examples import FEDERATION

    provision = _add(commands, "provision", _provision, "start-up kits for the server and each site", _PROVISION)
    provision.epilog = _PROVISION + "".join(f"  {line}\n" for line in FEDERATION.splitlines())
    provision.add_argument("federation", type=Path, help="the federation's settings")
    provision.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the kits")
    for role, text in (("server", "the federation's FLARE server"), ("site", "a site's side, beside its label server")):
        parser = _add(commands, role, _run_kit, text, f"example:\n  fl-bridge {role} kits/{role}")
        parser.add_argument("kit", type=Path, help="its start-up kit")
        parser.set_defaults(role=role)
    update = _add(
        commands, "update", _update, "a kit's policy as of this version", "example:\n  fl-bridge update kits/DRIVE"
    )
    update.add_argument("kit", type=Path, help="a start-up kit that an older version made")
    update.add_argument("--federation", default="", metavar="ID", help="the one federation that the site agreed to")
    update.add_argument("--task", action="append", default=[], help="a task that the site agreed to; may be repeated")
    run = _add(commands, "run", _run, "the rounds, on the server's machine", "example:\n  fl-bridge run kits/server")
    stop = _add(commands, "stop", _stop, "stop the rounds after this moment", "example:\n  fl-bridge stop kits/server")
    status = _add(commands, "status", _status, "what was done, by whom", "example:\n  fl-bridge status kits/server")
    for parser in (run, stop, status):
        parser.add_argument("kit", type=Path, help="the server's start-up kit")
    status.add_argument("--json", action="store_true", help="for programs")


def _add(
    commands: Any, name: str, action: Callable[[argparse.Namespace], int], text: str, epilog: str
) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=raw)
    parser.set_defaults(run=action)
    return parser


def _provision(arguments: argparse.Namespace) -> int:
    from fl_bridge.epsilon import describe_sharing
    from fl_bridge.federation_file import read_federation

    federation = read_federation(arguments.federation)
    from fl_bridge.provision import provision  # FLARE

    kits = provision(federation, arguments.out)
    print(f"{kits.folder}: made {', '.join(kits.made) or 'nothing new'}; kept {', '.join(kits.kept) or 'none'}")
    print(f"certificates expire on {kits.expires:%Y-%m-%d}")
    for site, policy in federation.sites.items():
        print(f"  {site}: {describe_sharing(policy)}")
    print(f"each site trusts the federation's banks once, by: iopfl bank trust {kits.key}")
    print("kits hold private keys: send each over a secure way, to that site alone; keep .provision to yourself")
    return 0


def _update(arguments: argparse.Namespace) -> int:
    from fl_bridge.kit_policy import SITE, find_role, update_kit
    from fl_bridge.site_policy import FILE, agree

    is_site = find_role(arguments.kit) == SITE
    given = bool(arguments.federation), bool(arguments.task)
    if any(given) and not (all(given) and is_site):
        raise ConfigError("expected --federation and --task together, for the kit of a site")
    changed = update_kit(arguments.kit)
    local = arguments.kit / "local"
    if any(given) and agree(local, federation=arguments.federation, tasks=arguments.task):
        changed.append(f"local/{FILE}")
    print(f"{arguments.kit}: {'brought up to date: ' + ', '.join(changed) if changed else 'up to date'}")
    if is_site:
        _warn_of_no_agreement(arguments.kit)
    return 0


def _warn_of_no_agreement(kit: Path) -> None:
    from fl_bridge.site_policy import FILE, SitePolicy

    if (kit / "local" / FILE).is_file() and not SitePolicy.read(kit / "local").names_what_is_agreed:
        print(
            f"{kit / 'local' / FILE}: names no federation or no task, so that every round is refused: "
            f"fl-bridge update {kit} --federation ID --task NAME, both as the consortium's fl-bridge status shows them",
            file=sys.stderr,
        )


def _run_kit(arguments: argparse.Namespace) -> int:
    from fl_bridge.epsilon import describe_sharing
    from fl_bridge.processes import run_kit
    from fl_bridge.site_policy import FILE, SitePolicy

    if arguments.role == "site" and (arguments.kit / "local" / FILE).is_file():
        policy = SitePolicy.read(arguments.kit / "local")
        print(f"{arguments.kit}: this site {describe_sharing(policy)}", file=sys.stderr)
        _warn_of_no_agreement(arguments.kit)
    return run_kit(arguments.kit, arguments.role)


def _run(arguments: argparse.Namespace) -> int:
    from fl_bridge.server_kit import read_settings

    read_settings(arguments.kit)
    from fl_bridge.supervisor import run  # torch and FLARE

    state = run(arguments.kit, progress=sys.stderr)
    _print_status(state, read_settings(arguments.kit))
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    from fl_bridge.server_kit import LOCK, STOP, read_settings
    from iopfl.base.locks import try_hold

    read_settings(arguments.kit)
    with try_hold(arguments.kit / LOCK) as lock:
        if lock is not None:
            raise ConfigError(f"{arguments.kit}: the federation is not being run: nothing to stop")
    (arguments.kit / STOP).touch()
    print("stopping; fl-bridge run goes on where it is")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from fl_bridge.record import FederationRecord
    from fl_bridge.server_kit import LOCK, STATE, read_settings
    from iopfl.base.locks import try_hold

    settings = read_settings(arguments.kit)
    state = FederationRecord.open(arguments.kit / STATE)
    with try_hold(arguments.kit / LOCK) as lock:
        running = lock is None
    if arguments.json:
        shares = {site: policy.share_personalized for site, policy in settings.sites.items()}
        values = {
            "running": running,
            "task": state.task.name,
            "rounds": settings.rounds,
            "shares_at_provisioning": shares,
        }
        print(json.dumps({**values, **state.to_dict()}))
        return 0
    print("running" if running else "not running: fl-bridge run goes on")
    _print_status(state, settings)
    return 0


def _print_status(state: FederationRecord, settings: FederationFile) -> None:
    from fl_bridge.describing import describe_round, describe_site

    print(f"federation {state.federation}, task {state.task.name}: {state.rounds_done} of {settings.rounds} rounds")
    if state.rounds:
        for line in describe_round(state.rounds[-1], settings.rounds):
            print(f"  {line}")
    if state.failure:
        print(f"last failure: {state.failure}")
    shared = state.shared
    if shared is None:
        print("no bank yet")
        return
    models = [site for site, fate in shared["sites"].items() if fate["status"] in ("shared", "kept")]
    print(f"bank version {shared['bank_version']} after round {shared['rounds_done']}")
    if not models:
        print("  no site shares its personalized model: the bank has the global one alone")
    for site, fate in sorted(shared["sites"].items()):
        print(f"  {site}: {fate['status']}, {fate.get('reason') or describe_site(fate)}")
    for site, label in sorted(shared.get("published", {}).items()):
        print(f"  brought to {site}: {label}")
