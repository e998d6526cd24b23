"""The file of users: hashed, private, whole, and changed at once for a running server."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from iopfl import cli
from iopfl.access import users as userfile
from iopfl.access.audit import AuditLog
from iopfl.access.users import USERS_FILE, MachineToken, Users
from iopfl.base.errors import ConfigError

APPS = Path(__file__).resolve().parents[2] / "apps"
PASSWORD = "four words nobody guesses"


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch):
    monkeypatch.setattr(userfile, "_HASHER", userfile.PasswordHasher(time_cost=1, memory_cost=64))


@pytest.fixture
def users(tmp_path) -> Users:
    users = Users(tmp_path)
    users.add("anna", "annotator", PASSWORD)
    return users


def test_nothing_in_the_file_opens_anything_and_only_its_owner_reads_it(users, tmp_path):
    token = users.make_token("anna", 1)
    file = tmp_path / USERS_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert PASSWORD not in file.read_text() and token not in file.read_text() and "$argon2id$" in file.read_text()


def test_passwords_are_checked_however_a_keyboard_composes_them(tmp_path):
    users = Users(tmp_path)
    users.add("jose", "reviewer", "caf\u00e9 und vier W\u00f6rter")
    assert users.check_password("jose", "cafe\u0301 und vier Wo\u0308rter").role == "reviewer"
    assert users.check_password("jose", "cafe und vier Worter") is None


def test_a_change_is_seen_by_who_has_the_file_open(users, tmp_path):
    other = Users(tmp_path)
    assert other.find("anna").role == "annotator"
    users.add("otto", "admin", PASSWORD)
    users.remove("anna")
    assert [account.name for account in other.all()] == ["otto"]


def test_a_token_opens_until_it_is_revoked_or_ends(users, tmp_path, monkeypatch):
    first, second = users.make_token("anna", 1), users.make_token("anna", 1)
    assert users.find_by_token(first).name == users.find_by_token(second).name == "anna"
    number = users.find("anna").tokens[0].number
    users.revoke_token("anna", number)
    assert users.find_by_token(first) is None and users.find_by_token(second) is not None
    monkeypatch.setattr(MachineToken, "is_valid", False)
    assert users.find_by_token(second) is None
    assert users.find_by_token("iopfl_") is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda users: users.add("anna", "admin", PASSWORD), "already"),
        (lambda users: users.add("../x", "admin", PASSWORD), "letters, digits"),
        (lambda users: users.add("a\nb", "admin", PASSWORD), "letters, digits"),
        (lambda users: users.add("otto", "root", PASSWORD), "a role is one of annotator"),
        (lambda users: users.add("otto", "admin", "short"), "12 to 256 characters, this one has 5"),
        (lambda users: users.add("otto", "admin", "x" * 257), "12 to 256"),
        (lambda users: users.add("otto", "admin", "my name is Otto"), "must not hold the user's name"),
        (lambda users: users.remove("nobody"), "no user 'nobody'; there is: anna"),
        (lambda users: users.make_token("anna", 0), "1 to 366 days"),
        (lambda users: users.revoke_token("anna", "00000000"), "no token 00000000; there is: none"),
    ],
)
def test_what_will_not_do_is_refused_by_name_and_changes_nothing(users, tmp_path, call, words):
    before = (tmp_path / USERS_FILE).read_bytes()
    with pytest.raises(ConfigError, match=words):
        call(users)
    assert (tmp_path / USERS_FILE).read_bytes() == before


@pytest.mark.parametrize("content", ["{", "- a", "anna: 3", "anna: {role: root, password: '', tokens: []}", "\xff"])
def test_a_file_of_another_kind_is_said_plainly(tmp_path, content):
    (tmp_path / USERS_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match="bring it back from a backup"):
        Users(tmp_path).all()


def test_a_file_of_another_account_is_said_plainly(users, monkeypatch):
    """As `sudo iopfl users add` leaves it for a server that runs under an account of its own."""

    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"cannot be read \(Permission denied\): run iopfl users as the account"):
        Users(users._file.parent).all()


def test_changes_at_once_by_threads_and_processes_are_all_kept(users, tmp_path):
    program = (
        "import sys; from pathlib import Path; from iopfl.access import users as u\n"
        "u._HASHER = u.PasswordHasher(time_cost=1, memory_cost=64)\n"
        "for n in range(8): u.Users(Path(sys.argv[1])).add(f'p{sys.argv[2]}{n}', 'annotator', 'a long password')"
    )
    environment = {**os.environ, "PYTHONPATH": str(APPS)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    others = [subprocess.Popen([*command, str(number)], env=environment) for number in range(2)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: users.make_token("anna", 1), range(8)))
    assert [other.wait(60) for other in others] == [0, 0]
    assert len(users.all()) == 17 and len(users.find("anna").tokens) == 8


# ---- the command ----


def run(*words, state, typed="", monkeypatch=None):
    if monkeypatch is not None:
        monkeypatch.setattr(sys, "stdin", __import__("io").StringIO(typed))
    return cli.main([*map(str, words), "--state", str(state)])


def test_the_command_does_what_its_help_says_and_all_of_it_is_recorded(tmp_path, capsys, monkeypatch):
    assert run("users", "add", "anna", "--role", "admin", "--password-stdin", state=tmp_path, typed=f"{PASSWORD}\n",
               monkeypatch=monkeypatch) == 0  # fmt: skip
    assert run("users", "add", "bridge", "--role", "federation", "--no-password", state=tmp_path) == 0
    capsys.readouterr()
    assert run("users", "token", "bridge", "--days", 3, state=tmp_path) == 0
    shown = capsys.readouterr()
    users = Users(tmp_path)
    assert users.find_by_token(shown.out.strip()).name == "bridge" and "Shown this once" in shown.err
    number = users.find("bridge").tokens[0].number
    assert run("users", "list", state=tmp_path) == 0
    assert number in capsys.readouterr().out
    assert run("users", "token", "bridge", "--revoke", number, state=tmp_path) == 0
    assert run("users", "password", "anna", "--password-stdin", state=tmp_path, typed="another long password",
               monkeypatch=monkeypatch) == 0  # fmt: skip
    assert run("users", "remove", "bridge", state=tmp_path) == 0
    assert users.check_password("anna", "another long password") and [account.name for account in users.all()] == [
        "anna"
    ]
    entries = [(entry.what, entry.about["user"]) for entry in AuditLog(tmp_path / "audit").entries()]
    assert [what for what, _ in entries] == [
        "users add", "users add", "users token", "users token revoke", "users password", "users remove",
    ]  # fmt: skip
    assert "password" not in (tmp_path / "audit" / "audit.jsonl").read_text().replace("users password", "")


def test_a_password_is_never_taken_from_the_command_line_or_a_pipe_unasked(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        run("users", "add", "anna", "--role", "admin", "--password", PASSWORD, state=tmp_path)
    assert run("users", "add", "anna", "--role", "admin", state=tmp_path, typed=PASSWORD, monkeypatch=monkeypatch) == 2
    assert "--password-stdin" in capsys.readouterr().err
    assert Users(tmp_path).all() == []


def test_the_record_is_shown_by_user_image_and_day(tmp_path, capsys):
    log = AuditLog(tmp_path / "audit")
    log.append("anna", "PUT /datastore/label", {"image": "case07", "status": "200"})
    log.append("otto\x1b[2J", "DELETE /datastore/image", {"image": "1.2.840.10008.1.2.3", "status": "200"})
    assert run("audit", "show", state=tmp_path) == 0
    both = capsys.readouterr().out
    assert len(both.splitlines()) == 2 and "\x1b" not in both and "case07" not in both
    for options, who in (
        (["--user", "anna"], "anna"),
        (["--image", "case07"], "anna"),
        (["--image", "1.2.840.10008.1.2.3"], "otto"),
    ):
        assert run("audit", "show", *options, state=tmp_path) == 0
        assert [who in line for line in capsys.readouterr().out.splitlines()] == [True], options
    assert run("audit", "show", "--since", "2999-01-01", state=tmp_path) == 0
    assert capsys.readouterr().out == ""
    assert run("audit", "verify", state=tmp_path) == 0
    head = capsys.readouterr().out.split()[-1]
    assert run("audit", "verify", "--noted", head, state=tmp_path) == 0
    log.path.write_text(log.path.read_text().replace("anna", "otto"))
    assert run("audit", "verify", state=tmp_path) == 2
    assert "changed, inserted or removed" in capsys.readouterr().err
