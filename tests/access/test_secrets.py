"""Every secret is its owner's alone from its first byte, and what was lost of a state folder is said at the start."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom import Dataset

from iopfl import compat

compat.apply_early()  # before MONAI Label is imported

from fl_bridge.site_policy import SitePolicy  # noqa: E402
from iopfl.access import users as userfile  # noqa: E402
from iopfl.access.audit import KEY, AuditLog  # noqa: E402
from iopfl.access.sessions import Sessions  # noqa: E402
from iopfl.access.state import check_state, check_users  # noqa: E402
from iopfl.access.users import USERS_FILE, Users  # noqa: E402
from iopfl.base.errors import AccessError, ConfigError  # noqa: E402
from iopfl.core.bank.signing import Keyring  # noqa: E402
from iopfl.pacs.cache import SeriesCache  # noqa: E402

PASSWORD = "four words nobody guesses"


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch):
    monkeypatch.setattr(userfile, "_HASHER", userfile.PasswordHasher(time_cost=1, memory_cost=64))


# ---- modes ----

_watched: list[Path] = []
_loose: set[str] = set()


def _look(event: str, _: object) -> None:
    """Before each step on files, list what others could open of the watched folder as it is just then."""
    if _watched and (event == "open" or event.startswith(("os.", "shutil."))):
        folder = _watched.pop()
        for path in [folder, *folder.rglob("*")]:
            if path.lstat().st_mode & 0o077:
                _loose.add(f"{path.relative_to(folder)} {stat.S_IMODE(path.lstat().st_mode):o} before {event}")
        _watched.append(folder)


sys.addaudithook(_look)  # for good; it does nothing while nothing is watched


def sign_out(state: Path) -> None:
    sessions = Sessions(state)
    sessions.end(sessions.make("session", 60, {}))


def hash_a_patient(state: Path) -> None:
    ds = Dataset()
    ds.PatientID = "P-1"
    SeriesCache._hash_subject(SimpleNamespace(_folder=state / "pacs" / "cache"), ds)


@pytest.mark.parametrize(
    "make",
    [
        lambda state: Users(state).add("anna", "admin", PASSWORD),
        sign_out,
        lambda state: AuditLog(state / "audit").append("anna", "x", {"image": "Mueller"}),
        lambda state: Keyring(state / "keys").sign(b"bank"),
        lambda state: Keyring(state / "keys").trust(Keyring(state / "others").public_key),
        lambda state: SitePolicy(clip=1.0).write(state / "local"),
        hash_a_patient,
    ],
    ids=["users", "sessions", "audit", "signing", "trust", "site.yaml", "subjects"],
)
def test_no_other_account_can_open_a_secret_at_any_moment(tmp_path, make):
    (tmp_path / "state").mkdir(mode=0o700)
    before = os.umask(0)
    try:
        _watched.append(tmp_path / "state")
        make(tmp_path / "state")
    finally:
        _watched.clear()
        os.umask(before)
    # Public keys of others are no secret, and lie in a folder that is.
    found = {line for line in _loose if "trusted.txt" not in line}
    _loose.clear()
    assert not found


def test_a_state_folder_from_a_copy_is_mended_and_one_that_others_write_to_refused(tmp_path, caplog):
    state = tmp_path / "state"
    Users(state).add("anna", "admin", PASSWORD)
    sign_out(state)
    AuditLog(state / "audit").append("anna", "x", {"image": "Mueller"})
    for path in [state, *state.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    with caplog.at_level(logging.WARNING):
        check_state(state)
    assert f"chmod 700 {state}" in caplog.text and USERS_FILE in caplog.text and "session.key" in caplog.text
    left = [path.name for path in state.rglob("*") if path.stat().st_mode & 0o077]
    assert not [name for name in left if not name.endswith(".lock")]
    state.chmod(0o770)
    with pytest.raises(ConfigError, match="others may write to it"):
        check_state(state)


# ---- what is lost ----


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(content[: len(content) // 2] if how == "halved" else b"")
        path.chmod(0o600)


@pytest.mark.parametrize("how", ["halved", "empty", "gone"])
@pytest.mark.parametrize("name", ["session.key", "signed_out.json"])
def test_a_token_that_was_signed_out_never_counts_again_whatever_is_lost(tmp_path, caplog, name, how):
    sessions = Sessions(tmp_path)
    token, ended = (sessions.make("session", 60, {}) for _ in range(2))
    sessions.end(ended)
    running = Sessions(tmp_path)
    damage(tmp_path / "keys" / name, how)
    with caplog.at_level(logging.WARNING):
        new = Sessions(tmp_path)
    assert "everybody has to sign in anew" in caplog.text and len(caplog.records) == 1
    for each in (new, running):
        assert each.read("session", ended) is None and each.read("session", token) is None
    assert running.read("session", new.make("session", 60, {})), "both servers go on alike"


def test_sessions_that_cannot_be_looked_at_are_said_in_plain_words(tmp_path):
    sessions = Sessions(tmp_path)
    sessions.make("session", 60, {"sub": "anna"})
    shutil.rmtree(tmp_path / "keys")
    (tmp_path / "keys").write_text("a file where a folder was")
    with pytest.raises(AccessError, match="cannot be read or written to"):
        sessions.make("session", 60, {"sub": "anna"})


def test_signing_out_at_one_of_two_servers_counts_at_both(tmp_path):
    one, other = Sessions(tmp_path), Sessions(tmp_path)
    tokens = [one.make("session", 60, {}) for _ in range(2)]
    assert all(other.read("session", token) for token in tokens)
    one.end(tokens[0])
    other.end(tokens[1])
    assert not any(each.read("session", token) for token in tokens for each in (one, other, Sessions(tmp_path)))
    assert len(json.loads((tmp_path / "keys" / "signed_out.json").read_bytes())) == 2


@pytest.mark.parametrize("how", ["halved", "empty", "gone"])
@pytest.mark.parametrize("has_fingerprint", [True, False])
def test_a_lost_key_of_the_pseudonyms_is_said_at_the_start_and_in_the_log_itself(
    tmp_path, caplog, how, has_fingerprint
):
    log = AuditLog(tmp_path / "audit")
    log.append("anna", "PUT /datastore/label", {"image": "Mueller"})
    before = log.pseudonym("Mueller")
    damage(tmp_path / "audit" / KEY, how)
    if not has_fingerprint:  # written by an older version
        (tmp_path / "audit" / KEY).with_suffix(".id").unlink()
    with caplog.at_level(logging.WARNING):
        check_state(tmp_path)
    assert caplog.text.count("have other hashes than from now on") == 1
    assert log.pseudonym("Mueller") != before
    assert [entry.what for entry in log.entries()][1:] == ["key of pseudonyms replaced"]
    assert log.verify().lines == 2
    caplog.clear()
    check_state(tmp_path)
    assert not caplog.records


def test_a_key_that_was_not_needed_yet_is_not_missed(tmp_path, caplog):
    AuditLog(tmp_path / "audit").append("anna", "users add", {"user": "otto"})
    check_state(tmp_path)
    check_state(tmp_path)
    assert not caplog.records


@pytest.mark.parametrize("how", ["halved", "empty", "gone"])
def test_no_patient_changes_from_testing_to_training_because_a_key_was_lost(tmp_path, how):
    hash_a_patient(tmp_path)
    check_state(tmp_path)
    damage(tmp_path / "pacs" / "subjects.key", how)
    with pytest.raises(ConfigError, match="patients are then chosen anew"):
        check_state(tmp_path)
    with pytest.raises(ConfigError, match="backup"):
        hash_a_patient(tmp_path)


@pytest.mark.parametrize("how", ["halved", "empty"])
def test_users_that_were_cut_short_are_not_taken_for_fewer(tmp_path, how):
    users = Users(tmp_path)
    for name in ("anna", "otto"):
        users.add(name, "annotator", PASSWORD)
    damage(tmp_path / USERS_FILE, how)
    for act in (lambda: Users(tmp_path).all(), lambda: check_users(tmp_path), lambda: users.find("anna")):
        with pytest.raises(ConfigError, match="bring it back from a backup"):
            act()


def test_every_cut_of_the_file_of_users_is_noticed(tmp_path):
    Users(tmp_path).add("anna", "annotator", None)
    content = (tmp_path / USERS_FILE).read_bytes()
    for size in range(len(content)):
        (tmp_path / USERS_FILE).write_bytes(content[:size])
        with pytest.raises(ConfigError):
            Users(tmp_path).all()


def test_users_that_are_gone_are_told_from_none_yet_and_nobody_gets_in(tmp_path):
    with pytest.raises(ConfigError, match="there is none yet"):
        check_users(tmp_path)
    users = Users(tmp_path)
    users.add("anna", "admin", PASSWORD)
    AuditLog(tmp_path / "audit").append("system:root", "users add", {"user": "anna"})
    check_users(tmp_path)
    (tmp_path / USERS_FILE).unlink()
    with pytest.raises(ConfigError, match="is gone, though users were added: bring it back from a backup"):
        check_users(tmp_path)
    assert users.check_password("anna", PASSWORD) is None
