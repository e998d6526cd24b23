"""What is checked of a state folder before a server answers: who else can open it, and what of it is lost."""

from __future__ import annotations

import logging
from pathlib import Path

from iopfl.access.audit import FOLDER as AUDIT
from iopfl.access.audit import AuditLog
from iopfl.access.users import USERS_FILE, Users
from iopfl.base.errors import ConfigError, LostKeyError
from iopfl.base.private_files import make_private, protect, read_or_make_key

logger = logging.getLogger(__name__)

_PRIVATE = ("keys", AUDIT, "dimse", "labels", "local", "logs", "pacs", "rounds", "sessions")
"""Folders of ours in it: secrets, and what shows patients."""
_SECRETS = (USERS_FILE, "keys/*.*", f"{AUDIT}/*.*", "pacs/subjects.*")


def check_state(state: Path) -> None:
    """Mend what others can open of a state folder, and say what of its keys is lost.

    The folder itself is whoever's who made it, and may hold more than ours: that is said, not mended.

    Raises:
        ConfigError: others could put files of theirs in place of ours, or it cannot be mended.
    """
    try:
        make_private(state)
        mode = state.stat().st_mode & 0o777
        if mode & 0o022:
            raise ConfigError(
                f"the state folder {state}: others may write to it (mode {mode:o}), and so could make themselves "
                f"users of this server: chmod 700 {state}, or give a folder of its own"
            )
        if mode & 0o055:
            logger.warning("others of this machine can look into the state folder: chmod 700 %s", state)
        for name in _PRIVATE:
            if (state / name).is_dir():
                protect(state / name)
        for pattern in _SECRETS:
            for path in state.glob(pattern):
                if path.is_file() and path.suffix != ".lock":
                    protect(path)
    except OSError as error:
        raise ConfigError(
            f"the state folder {state} cannot be used ({error.strerror}): give another with --state"
        ) from error
    AuditLog(state / AUDIT).check_key()
    _check_subjects(state / "pacs" / "subjects.key")


def _check_subjects(key: Path) -> None:
    """Check the key by which a PACS's patients are told apart (`pacs.cache`): those of the tests hang on it."""
    if not (key.exists() or key.with_suffix(".id").exists()):
        return
    try:
        read_or_make_key(key)
    except LostKeyError as error:
        raise LostKeyError(
            f"{error}; without one, delete {key.parent}: patients are then chosen anew for training and for testing, "
            "and a model that was trained before may be tested on its own patients"
        ) from error


def check_users(state: Path) -> None:
    """Check that there is somebody to sign in.

    Raises:
        ConfigError: there is nobody, or what there was is lost.
    """
    if Users(state).all():
        return
    if not (state / USERS_FILE).exists() and any(
        entry.what == "users add" for entry in AuditLog(state / AUDIT).entries()
    ):
        raise ConfigError(
            f"{state / USERS_FILE} is gone, though users were added: bring it back from a backup, or add "
            f"the users again with iopfl users add NAME --role admin --state {state}"
        )
    raise ConfigError(
        "expected users to sign in, there is none yet: "
        f"add the first with iopfl users add NAME --role admin --state {state}"
    )
