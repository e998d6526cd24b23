"""Damaged data sets and PDUs at a running SCP, and what must hold whatever they are."""

from __future__ import annotations

import io
import re
import resource
import threading
from collections import Counter
from pathlib import Path

from pynetdicom.dsutils import encode

from dicomio.mutations import mutate
from dimse.nodes import eventually, make_slices, plain_association, quick_timeouts, running_scp, send_plainly
from dimse.wire import Sender, association_request, converse, damage_conversation, other_messages, store_request
from iopfl.dimse.query import QueryRetrieve

STATUSES = {0x0000, 0x0122, 0xA700, 0xA900, 0xC000}
PATIENT = re.compile("ller|P-1|19600203")
"""What the phantoms' patient would look like in a line of the log."""

MOST_MEMORY = 200 << 20
"""Bytes by which the process may grow."""

_AN_ASSOCIATION = 50
_WAIT_SECONDS = 30.0
_UID_FILE = re.compile(r"series/[0-9.]{1,64}/[0-9.]{1,64}\.dcm|queue/[0-9.]{1,64}\.json")


def fuzz(folder: Path, caplog, *, datasets: int, conversations: int, first: int = 0) -> Counter[str]:
    """Send damaged things to an SCP, and check that it stays what it is.

    Args:
        folder: for its inbox.
        caplog: the log of the test.
        datasets: damaged data sets in whole requests: each gets a status, no association is lost.
        conversations: damaged PDUs: each connection ends, and no thread with an exception.
        first: seed.

    Returns:
        What was answered, how often.
    """
    answered: Counter[str] = Counter()
    ended_by: list[str] = []
    hook = threading.excepthook
    threading.excepthook = lambda given: ended_by.append(f"{given.thread}: {given.exc_value!r}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    place = folder / "node"
    try:
        with running_scp(
            place,
            timeouts=quick_timeouts(2.0),
            max_associations=400,
            services=lambda inbox: [QueryRetrieve(inbox, lambda title: None).service],
        ) as node:
            accepted = _send_datasets(node.port, datasets, first, answered)
            _converse(node.port, conversations, first, answered)
            eventually(lambda: not node.scp._server.active_associations, "every association to end", _WAIT_SECONDS)
            with plain_association(node.port) as assoc:
                assert assoc.send_c_echo().Status == 0
            whole = make_slices(2, series="after it all")
            assert send_plainly(node.port, whole) == [0, 0]
            stored = {path.stem for path in node.stored()}
    finally:
        threading.excepthook = hook
    assert accepted <= stored
    assert not ended_by, Counter(ended_by).most_common(3)
    assert not PATIENT.search(caplog.text)
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert not [name for name in files if not _UID_FILE.fullmatch(name)]
    assert {path.name for path in folder.iterdir()} == {"node"}
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - memory < MOST_MEMORY
    return answered


def _send_datasets(port: int, count: int, first: int, answered: Counter[str]) -> set[str]:
    """Store damaged copies of instances; returns the UIDs of those accepted."""
    sources = [*make_slices(2), *make_slices(2, series="other", seed=3)]
    files = []
    for ds in sources:
        buffer = io.BytesIO()
        ds.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    heads = [len(file) - len(encode(ds, False, True)) for file, ds in zip(files, sources, strict=True)]
    accepted = set()
    sender = None
    for seed in range(first, first + count):
        which = seed % len(sources)
        damaged = mutate(files[which], seed)
        # As a file its head may be damaged too; what travels is what lies behind.
        encoded = damaged[_find_data(damaged, heads[which]) :]
        sender = sender or Sender(port)
        status = sender.store(sources[which], encoded)
        answered[f"status 0x{status:04X}"] += 1
        assert status in STATUSES, f"seed {seed}"
        if status == 0:
            accepted.add(str(sources[which].SOPInstanceUID))
        if seed % _AN_ASSOCIATION == 0:
            sender.close()
            sender = None
    if sender:
        sender.close()
    return accepted


def _find_data(file: bytes, usual: int) -> int:
    """Where a file's data set begins: element (0008,0005), first in the phantoms."""
    place = file.find(b"\x08\x00\x05\x00CS")
    return usual if place < 0 else place


def _converse(port: int, count: int, first: int, answered: Counter[str]) -> None:
    """Damaged conversations, one a connection."""
    (ds,) = make_slices(1, series="conversation")
    echo, find, release, abort = other_messages()
    for seed in range(first, first + count):
        whole = [association_request(), *store_request(ds), *echo, *find, *(release if seed % 3 else abort)]
        answer = converse(port, damage_conversation(whole, seed), seconds=_WAIT_SECONDS)
        answered[f"PDU type {answer[0]} first" if answer else "closed"] += 1
