"""The audit log: nothing lost, nothing altered unseen, nobody's name in it."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from iopfl.access import audit
from iopfl.access.audit import AuditLog
from iopfl.base.errors import AuditError

APPS = Path(__file__).resolve().parents[2] / "apps"


@pytest.fixture
def log(tmp_path) -> AuditLog:
    log = AuditLog(tmp_path / "audit")
    for number in range(5):
        log.append("anna", "PUT /datastore/label", {"image": f"case{number}", "status": "200"}, digest=f"{number:064x}")
    return log


def test_what_was_recorded_is_there_in_order(log):
    entries = list(log.entries())
    assert [entry.digest for entry in entries] == [f"{number:064x}" for number in range(5)]
    assert {(entry.who, entry.what, entry.about["status"]) for entry in entries} == {
        ("anna", "PUT /datastore/label", "200")
    }
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", entry.time) for entry in entries)
    chain = log.verify()
    assert (chain.lines, chain.torn, chain.size) == (5, 0, log.path.stat().st_size)


def test_only_the_servers_own_account_may_read_it(log):
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((log.path.parent / audit.KEY).stat().st_mode) == 0o600


@pytest.mark.parametrize("line", range(4))
@pytest.mark.parametrize("change", ["altered", "removed", "doubled", "swapped"])
def test_a_line_that_was_altered_shows(log, line, change):
    lines = log.path.read_bytes().splitlines(keepends=True)
    if change == "altered":
        lines[line] = lines[line].replace(b"anna", b"otto")
    elif change == "removed":
        del lines[line]
    elif change == "doubled":
        lines.insert(line, lines[line])
    else:
        lines[line], lines[line + 1] = lines[line + 1], lines[line]
    log.path.write_bytes(b"".join(lines))
    with pytest.raises(AuditError, match="changed, inserted or removed"):
        log.verify()


def test_a_noted_head_shows_a_log_that_was_cut_or_written_anew(log):
    noted = log.verify().head
    log.append("otto", "DELETE /datastore/image", {"image": "case1"})
    assert log.verify(noted=noted).lines == 6
    whole = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(whole[:4]))
    assert log.verify().lines == 4, "the chain alone cannot tell"
    with pytest.raises(AuditError, match="cut or written anew"):
        log.verify(noted=noted)


def test_a_line_that_a_crash_cut_off_is_kept_as_it_is_and_the_chain_goes_on(log):
    with log.path.open("ab") as file:
        file.write(b'{"time":"2026-')
    log.append("otto", "POST /train/{model}", {"model": "spot"})
    chain = log.verify()
    assert (chain.lines, chain.torn) == (7, 1)
    assert [entry.who for entry in log.entries()] == ["anna"] * 5 + ["otto"]


def test_names_are_hashed_and_machine_made_numbers_kept(log):
    uid, uuid = "1.2.826.0.1.3680043.8.498.1234", "123e4567-e89b-12d3-a456-426614174000"
    about = {"image": "Mueller_Hans_1949", "label": uid, "session": uuid, "tag": "final", "series": "Hans\nMueller"}
    log.append("anna", "PUT /datastore/label", about)
    *_, last = log.entries()
    assert (last.about["label"], last.about["session"], last.about["tag"]) == (uid, uuid, "final")
    elsewhere = AuditLog(log.path.parent / "elsewhere")
    assert last.about["image"] == log.pseudonym("Mueller_Hans_1949")
    assert last.about["image"] != elsewhere.pseudonym("Mueller_Hans_1949")
    text = log.path.read_text()
    assert "ueller" not in text and "Hans" not in text


def test_long_and_strange_texts_are_one_short_line(log):
    log.append("a\nb\x1b[31m" + "🦴" * 10_000, "x" * 10_000, {"k" * 1000: "v" * 1000})
    last = log.path.read_bytes().splitlines()[-1]
    assert len(last) < 8000 and json.loads(last)["who"].startswith("a\nb") and b"\x1b" not in last
    log.verify()


def test_threads_and_processes_append_without_losing_a_line(log):
    program = (
        "import sys; from pathlib import Path; from iopfl.access.audit import AuditLog\n"
        "for n in range(20): AuditLog(Path(sys.argv[1])).append('p', 'w', {'n': str(n)})"
    )
    environment = {**os.environ, "PYTHONPATH": str(APPS)}
    command = [sys.executable, "-c", program, str(log.path.parent)]
    others = [subprocess.Popen(command, env=environment) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: log.append("t", "w", {"n": str(n)}), range(40)))
    assert [other.wait(60) for other in others] == [0, 0]
    assert log.verify().lines == 5 + 2 * 20 + 40


def test_a_full_disk_is_an_error_and_leaves_whole_lines(log, monkeypatch):
    before = log.path.read_bytes()
    write = os.write
    calls = []

    def half(descriptor, content):
        calls.append(len(content))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[:10])

    monkeypatch.setattr(audit.os, "write", half)
    with pytest.raises(OSError, match="No space"):
        log.append("anna", "PUT /datastore/label", {})
    monkeypatch.undo()
    assert log.path.read_bytes() == before
    log.append("anna", "PUT /datastore/label", {})
    assert log.verify().lines == 6
