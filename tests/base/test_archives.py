"""Zip files whose entries hold more than they say."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from fl_bridge.admission import CONFIGURATION, check_job
from iopfl.base.archives import read_entry
from iopfl.base.errors import BankError, ConfigError
from iopfl.compat._archives import unpack
from iopfl.compat.file_access import BROKEN_ARCHIVE
from iopfl.core.bank.exchange import import_bank
from iopfl.core.bank.signing import Keyring

HOLDS, SAYS = 2**26, 1000
METHODS = [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
_SIZE_FIELDS = {b"PK\x01\x02": 24, b"PK\x03\x04": 22}


def pack_liar(name: str, method: int) -> bytes:
    """A zip file of one entry, 64 MiB of blanks that call themselves a thousand bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.writestr(name, b" " * HOLDS)
    content = bytearray(packed.getvalue())
    for signature, offset in _SIZE_FIELDS.items():
        start = content.index(signature) + offset
        content[start : start + 4] = struct.pack("<I", SAYS)
    return bytes(content)


@pytest.fixture
def peak():
    """Bytes that were taken at most since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.fixture(params=METHODS, ids=["deflate", "bzip2", "lzma"], scope="module")
def liar(request):
    """Of a name, such an archive; packed before anything is measured."""
    return {name: pack_liar(name, request.param) for name in (CONFIGURATION, "manifest.json", "image.nii")}


def test_a_job_takes_no_more_memory_than_its_limit(liar, peak):
    with pytest.raises(ConfigError):
        check_job(liar[CONFIGURATION])
    assert peak() < HOLDS / 8


def test_a_bank_of_a_stranger_takes_no_more_memory_than_its_manifest_says(liar, peak, tmp_path):
    file = tmp_path / "bank.iopfl"
    file.write_bytes(liar["manifest.json"])
    with pytest.raises(BankError):
        import_bank(file, tmp_path / "bank", keys=Keyring(tmp_path / "keys"))
    assert peak() < HOLDS / 8


@pytest.mark.parametrize("method", METHODS[1:])
def test_an_archive_of_images_is_packed_so_that_it_can_be_unpacked_in_pieces(method, tmp_path: Path):
    file = tmp_path / "images.zip"
    file.write_bytes(pack_liar("image.nii", method))
    with pytest.raises(BROKEN_ARCHIVE):
        unpack(file, tmp_path)


def test_an_entry_is_read_up_to_its_limit():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("short", b"four")
        archive.writestr("long", bytes(100))
        assert read_entry(archive, "short", limit=10) == b"four"
        assert read_entry(archive, "long", limit=10) == bytes(11)
