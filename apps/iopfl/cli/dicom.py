"""The actions of `iopfl dicom`; each imports what it needs, so that `--help` need not wait for torch and pynetdicom."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iopfl.cli.dicom_options import Add, add_aet, add_timeouts, add_tls, build_timeouts, build_tls

if TYPE_CHECKING:
    from iopfl.dimse.scu import Caller

_INCOMPLETE = 1


def add_actions(actions: Any, add: Add, add_keys: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add every action to the parser of `iopfl dicom`."""
    from iopfl.cli.listen import add_listen, add_queue

    add_listen(actions, add, add_keys)
    add_queue(actions, add)
    _add_rules(actions, add)
    example = "iopfl dicom echo pacs.hospital 104 -aec ORTHANC"
    echo = add(actions, "echo", _echo, "Verify that a DICOM peer answers (C-ECHO).", example)
    example = "iopfl dicom send pacs.hospital 104 -aec ORTHANC series/"
    send = add(
        actions, "send", _send, "Send DICOM files (C-STORE), decompressed where the peer asks for that.", example
    )
    for parser in (echo, send):
        _add_peer(parser)
    send.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="DICOM files, or folders of them")


def _add_peer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", help="name or address of the peer")
    parser.add_argument("port", type=int, help="where it listens")
    parser.add_argument(
        "-aec", "--aec", default="ANY-SCP", metavar="AETITLE", help="its AE title (default: %(default)s)"
    )
    add_aet(parser)
    add_tls(parser)
    parser.add_argument("--tls-name", default="", metavar="NAME", help="in the peer's certificate (default: HOST)")
    add_timeouts(parser)
    parser.add_argument("--json", action="store_true", help="for programs")


def _add_rules(actions: Any, add: Add) -> None:
    text = "Check a rule file, and which rule a series would take."
    parser = add(actions, "rules", lambda _: None, text, "iopfl dicom rules check rules.yaml series/")
    below = parser.add_subparsers(required=True, metavar="ACTION")
    check = add(below, "check", _check_rules, text, "iopfl dicom rules check rules.yaml series/ --calling SCANNER")
    check.add_argument("rules", type=Path, help="the YAML file")
    check.add_argument("series", type=Path, nargs="?", help="folder of a DICOM series")
    help_text = "a bank whose answers the rules may name, repeatable (default: not checked)"
    check.add_argument("--bank", type=Path, action="append", default=[], metavar="DIR", help=help_text)
    check.add_argument("--calling", default="", metavar="AETITLE", help="who would send it")
    check.add_argument("--called", default="IOPFL", metavar="AETITLE", help="to whom (default: %(default)s)")


def _check_rules(arguments: Any) -> None:
    from iopfl.dicomio.facts import find_facts
    from iopfl.dicomio.refusals import choose_header, find_refusal, find_series_refusal, is_other_object
    from iopfl.dimse.rules import Facts, read_rules
    from iopfl.dimse.scu import list_instances

    rules = read_rules(arguments.rules)
    if arguments.bank:
        from iopfl.core.bank.manifest import read_manifest

        manifests = {manifest.task.name: manifest for manifest in map(read_manifest, arguments.bank)}
        rules = rules.for_tasks(manifest.task for manifest in manifests.values())
        rules.check_experts(lambda name: len(manifests[name].entries))
    if arguments.series is None:
        for rule in rules.rules:
            wanted = [f"{key} {pattern}" for key, pattern in rule.patterns.items()]
            sizes = {"min_slices": rule.min_slices, "max_slices": rule.max_slices}
            wanted += [f"{key} {size}" for key, size in sizes.items() if size]
            asked, what, where = (", ".join(words) for words in ((rule.name, *wanted), rule.results, rule.send_to))
            print(f"{asked}: {rule.answer}, {what} to {where}")
        return
    instances = list_instances([arguments.series])
    headers = [ds for ds in instances.values() if not is_other_object(ds)] or list(instances.values())
    refusal = find_series_refusal(headers)
    if refusal:
        print(f"not segmented, whatever the rules: {refusal}")
        raise SystemExit(_INCOMPLETE)
    left_out = [reason for ds in headers if (reason := find_refusal(ds))]
    for reason in sorted(set(left_out)):
        print(f"left out, {left_out.count(reason)} of {len(headers)} instances: {reason}", file=sys.stderr)
    ends = {"calling": arguments.calling, "called": arguments.called}
    about = find_facts(choose_header(headers), instances=len(headers) - len(left_out))
    chosen, reasons = rules.find(Facts(**vars(about), **ends))
    for reason in reasons:
        print(f"not {reason}")
    if chosen is None:
        print("no rule matches: the series would not be segmented")
        raise SystemExit(_INCOMPLETE)
    what, where = ", ".join(chosen.results), ", ".join(chosen.send_to)
    print(f"{chosen.name}: segmented by {chosen.answer}, {what} sent to {where}")


def _echo(arguments: Any) -> None:
    from iopfl.dimse.scu import echo

    caller = _caller(arguments)
    seconds = echo(caller)
    if arguments.json:
        print(json.dumps({"peer": str(caller.peer), "seconds": round(seconds, 3)}))
    else:
        print(f"{caller.peer} answers, in {seconds:.3f} s")


def _send(arguments: Any) -> None:
    from tqdm import tqdm

    from iopfl.dimse.scu import list_instances, send

    instances = list_instances(arguments.paths)
    taken = transcoded = 0
    bar = tqdm(total=len(instances), unit="instance", disable=None)
    with bar:
        for sent in send(_caller(arguments), instances):
            bar.update()
            taken += sent.is_taken
            transcoded += sent.is_taken and sent.is_transcoded
            if arguments.json:
                values = {"path": str(sent.path), "sop_instance_uid": sent.sop_instance_uid, "status": sent.status}
                print(json.dumps({**values, "reason": sent.reason, "transcoded": sent.is_transcoded}), flush=True)
            elif sent.reason:
                print(
                    f"{sent.sop_instance_uid}: {'taken' if sent.is_taken else 'not taken'}: {sent.reason}", flush=True
                )
    if not arguments.json:
        note = f", {transcoded} of them decompressed" if transcoded else ""
        print(f"{taken} of {len(instances)} instances taken{note}")
    if taken < len(instances):
        raise SystemExit(_INCOMPLETE)


def _caller(arguments: Any) -> Caller:
    from iopfl.dimse.peers import Peer
    from iopfl.dimse.scu import Caller

    peer = Peer(arguments.aec, arguments.host, arguments.port, build_tls(arguments, arguments.tls_name))
    return Caller(peer, arguments.aet, build_timeouts(arguments))
