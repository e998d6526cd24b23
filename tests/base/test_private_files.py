"""Keys that were lost, and files that others could read: nothing goes on as if it were not so."""

from __future__ import annotations

import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from iopfl.base import private_files
from iopfl.base.errors import ConfigError, LostKeyError
from iopfl.base.files import create, replacing
from iopfl.base.private_files import (
    check_unread_by_others,
    make_private,
    protect,
    read_or_make_key,
    read_private,
    read_secret,
    replace_key,
    write_private,
)


def mode_of(path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):o}"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, "640"), (0o002, "640"), (0o077, "600"), (0o000, "640")])
def test_no_other_account_reads_what_is_written_and_the_umask_counts(tmp_path, umask, mode):
    """Not even while it is written; what was there before gets the same mode."""
    (tmp_path / "there").write_bytes(b"")
    (tmp_path / "there").chmod(0o666)
    before = os.umask(umask)
    try:
        for name, open_file in (("there", replacing), ("new", create)):
            with open_file(tmp_path / name) as temporary:
                assert mode_of(temporary) == mode
                temporary.unlink()
                temporary.write_bytes(b"by a library that makes it anew")
            assert mode_of(tmp_path / name) == mode
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 31, b"x" * 33, b"x" * 32, None], ids=["empty", "short", "long", "another", "gone"]
)
def test_a_key_that_was_lost_or_cut_short_is_never_used_nor_made_anew_unasked(tmp_path, content):
    file = tmp_path / "keys" / "session.key"
    key = read_or_make_key(file)
    assert len(key) == 32 and read_or_make_key(file) == key
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(LostKeyError, match="backup"):
        read_or_make_key(file)
    new = replace_key(file)
    assert new != key and read_or_make_key(file) == new


def test_a_short_key_from_before_there_were_fingerprints_is_not_used(tmp_path):
    file = tmp_path / "session.key"
    file.write_bytes(b"short")
    with pytest.raises(LostKeyError, match="expected a key of 32 bytes, found 5"):
        read_or_make_key(file)


def test_of_many_who_make_a_key_at_once_all_have_the_same(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: read_or_make_key(tmp_path / "keys" / "a.key"), range(64)))
    assert len(keys) == 1
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["a.id", "a.key"]


def test_every_folder_that_is_made_for_a_secret_is_private(tmp_path):
    before = os.umask(0)
    try:
        write_private(tmp_path / "state" / "keys" / "x", b"x")
    finally:
        os.umask(before)
    assert {mode_of(tmp_path / "state"), mode_of(tmp_path / "state" / "keys")} == {"700"}


def test_what_others_could_open_is_mended_and_said(tmp_path, caplog):
    folder = tmp_path / "keys"
    make_private(folder)
    folder.chmod(0o755)
    write_private(folder / "x", b"secret")
    (folder / "x").chmod(0o640)
    with caplog.at_level(logging.WARNING):
        assert read_private(folder / "x") == b"secret"
        protect(folder)
    assert (mode_of(folder), mode_of(folder / "x")) == ("700", "600")
    assert len(caplog.records) == 2 and "could be opened by other accounts" in caplog.text and "640" in caplog.text
    caplog.clear()
    protect(folder)
    assert not caplog.records


def test_what_cannot_be_mended_is_refused_in_one_line(tmp_path, monkeypatch):
    write_private(tmp_path / "x", b"secret")
    (tmp_path / "x").chmod(0o644)

    def refuse(self, mode):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(private_files.Path, "chmod", refuse)
    with pytest.raises(ConfigError, match=r"expected mode 600.*found 644.*Operation not permitted") as refusal:
        read_private(tmp_path / "x")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("mode", "is_refused"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_secret_of_the_administrators_that_others_may_read_is_refused_and_left_alone(
    tmp_path, mode, is_refused, monkeypatch
):
    file = tmp_path / "token"
    file.write_text(" iopfl_token\n")
    file.chmod(mode)
    status = file.stat()
    monkeypatch.setattr(
        private_files.Path, "stat", lambda self, **_: os.stat_result([*status[:4], 1000, *status[5:10]])
    )
    if is_refused:
        with pytest.raises(ConfigError, match=r"others may read this secret.*chmod 600"):
            read_secret(file)
    else:
        assert read_secret(file) == "iopfl_token"
    monkeypatch.undo()
    assert mode_of(file) == f"{mode:o}"


def test_roots_own_secret_may_be_a_groups_and_nobody_elses(tmp_path, monkeypatch):
    file = tmp_path / "key.pem"
    file.write_text("key")
    file.chmod(0o640)
    status = file.stat()
    monkeypatch.setattr(private_files.Path, "stat", lambda self, **_: os.stat_result([*status[:4], 0, *status[5:10]]))
    check_unread_by_others(file)
