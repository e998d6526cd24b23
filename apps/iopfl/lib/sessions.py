"""MONAI Label's sessions, each of whoever made it: images that are segmented without being put into the studies."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.utils.sessions import SessionInfo, Sessions

from iopfl.labels.annotators import find_user

logger = logging.getLogger(__name__)

_OWNER = "owner"


class OwnedSessions(Sessions):
    """Sessions that are there for their owners and for admins; where nobody signs in, for everybody.

    One that was made while nobody had to sign in is nobody's.
    """

    def add_session(self, *arguments: Any, **options: Any) -> tuple[str, SessionInfo]:
        """Keep an image; it is of who sent it."""
        name, session = super().add_session(*arguments, **options)
        user = find_user()
        session.meta = {_OWNER: user.username if user else None}
        self._write_meta_info(name, session)
        return name, session

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> SessionInfo | None:
        """A session; None for one that is not there, that cannot be read, or that is another's."""
        session = self._read(session_id, fetch_cache)
        if session is None or not _may_use(session):
            return None
        return super().get_session(session_id, True) if update_ts else session

    def remove_expired(self) -> int:
        """Remove expired sessions, and before them folders that hold none, with which 0.8.5 does not start
        (`utils/sessions.py:65`)."""
        store = Path(self.store_path)
        folders = [path for path in store.iterdir() if path.is_dir()] if store.is_dir() else []
        broken = [folder.name for folder in folders if self._read(folder.name) is None]
        for name in broken:
            self.remove_session(name)
        return len(broken) + super().remove_expired()

    def _read(self, session_id: str, fetch_cache: bool = False) -> SessionInfo | None:
        """A session, whosever it is; None for one that cannot be read."""
        try:
            return super().get_session(session_id, False, fetch_cache)
        except (OSError, ValueError, AttributeError, TypeError):
            logger.warning("the description of a session is damaged: it is as one that is not there")
            return None


def _may_use(session: SessionInfo) -> bool:
    user = find_user()
    if user is None or settings.MONAI_LABEL_AUTH_ROLE_ADMIN in user.roles:
        return True
    return isinstance(session.meta, dict) and session.meta.get(_OWNER) == user.username
