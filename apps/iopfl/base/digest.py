"""`Content-Digest` (RFC 9530): how a body on its way between bridge and label server is checked."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path


def content_digest(content: bytes | Path) -> str:
    """The header's value for a body or a file.

    >>> content_digest(b"weights")
    'sha-256=:mhKQONmgCu0M9qfqBZylCoE0SQYauHhIzxoT6v3zOyw=:'
    """
    if isinstance(content, bytes):
        return digest_header(hashlib.sha256(content).digest())
    with content.open("rb") as file:
        return digest_header(hashlib.file_digest(file, "sha256").digest())


def digest_header(digest: bytes) -> str:
    """The header's value of a SHA-256."""
    return f"sha-256=:{base64.b64encode(digest).decode()}:"
