"""What an image says of its making is taken from any file, and none of them ends in a bare error."""

from __future__ import annotations

import pytest
from nibabel.nifti1 import Nifti1Extension

from iopfl.images.notes import FileNotes


@pytest.mark.parametrize(
    "content",
    [b"[" * 200_000, b'{"a":' * 200_000, b'{"padding": ' + b"9" * 400 + b"}}"],
    ids=["lists", "dicts", "number"],
)
def test_notes_that_are_none_say_nothing(content):
    assert FileNotes.of([Nifti1Extension(6, b'{"iopfl": ' + content)]) == FileNotes()
