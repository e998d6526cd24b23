"""A session's description that is halved, empty or gone: the session is as one that is not there, and others go on."""

from __future__ import annotations

import pytest

from iopfl import compat

compat.apply_early()  # before MONAI Label is imported


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"[1]", None])
def test_a_damaged_session_is_as_one_that_is_not_there(tmp_path, damage):
    from iopfl.lib.sessions import OwnedSessions

    names = []
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"an image")
        names.append(
            OwnedSessions(str(tmp_path / "kept")).add_session(str(tmp_path / f"{number}.png"), session_id=f"s{number}")[
                0
            ]
        )
    file = tmp_path / "kept" / names[0] / "meta.info"
    content = file.read_bytes()
    file.unlink()
    if damage is not None:
        file.write_bytes(damage(content))
    again = OwnedSessions(str(tmp_path / "kept"))
    assert again.get_session(names[0]) is None and again.get_session(names[1]) is not None
    again.remove_expired()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == names[1:]
