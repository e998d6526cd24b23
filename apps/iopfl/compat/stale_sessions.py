"""A session folder without its description keeps the server from starting.

Defect: `utils/sessions.py:65` uses what `get_session` returned without looking; a folder
whose `meta.info` or image is gone gives None, and an error in `on_init_complete`.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Remove such folders before the expired ones."""
    from monailabel.utils.sessions import Sessions

    original = Sessions.remove_expired

    @functools.wraps(original)
    def remove_expired(self: Any) -> int:
        store = Path(self.store_path)
        folders = [path for path in store.iterdir() if path.is_dir()] if store.is_dir() else []
        broken = [folder.name for folder in folders if not _readable(self, folder.name)]
        for name in broken:
            self.remove_session(name)
        return len(broken) + original(self)

    Sessions.remove_expired = remove_expired


def _readable(sessions: Any, name: str) -> bool:
    try:
        return sessions.get_session(name, update_ts=False, fetch_cache=False) is not None
    except (OSError, json.JSONDecodeError):
        return False
