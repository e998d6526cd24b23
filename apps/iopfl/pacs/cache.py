"""Series of a PACS on this machine's disk: downloaded when somebody needs them, the longest unused removed first.

In the folder, for a series UID: `UID.nii.gz`, which everything else reads; `dicom/UID/`, its instances; and
`facts/UID.json`, what is known of it, which stays when the images go. Any number of processes may share the folder.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset

from iopfl.base.errors import PACSError, SeriesError, StorageError
from iopfl.base.files import write_bytes
from iopfl.base.locks import hold_one, lock, try_hold
from iopfl.base.private_files import read_or_make_key
from iopfl.dicomio.facts import find_facts
from iopfl.dicomio.refusals import are_alike, choose_header, find_series_refusal
from iopfl.dicomio.series import Series, read_series, write_nifti
from iopfl.pacs.access import PACS, FoundSeries

logger = logging.getLogger(__name__)

_LEFT_ALONE_SECONDS = 600.0
"""What was used so recently may still be read: it is not removed."""

_HELD_SECONDS = 24 * 3600.0
"""How long a training may keep what it reads from being removed."""

_CHECKED_AT_ONCE = 50
"""New series that are looked at with each search; more wait for the next."""

_EPOCH = 10**9

_READING = 1
"""Of how series are read and refused: what was found out in another way is found out again."""


@dataclass(frozen=True)
class Facts:
    """What is known of a series.

    Attributes:
        checked: number of instances when it was looked at; 0 = it was not.
        refusal: why it is no image to segment; "" = it is one, as far as is known.
        downloaded: number of instances that were downloaded; 0 = none.
        subject: keyed hash of whose it is; "" = not known yet.
        about: what tells whose task's image it is (`core.criteria.ImageFacts`); None = not known yet.
        said: number of instances that the PACS said there were when it was downloaded; it may be another one.
        reading: how this was found out.
        size: bytes of the image's file, by which one that was damaged is told; 0 = not known.
    """

    checked: int = 0
    refusal: str = ""
    downloaded: int = 0
    subject: str = ""
    about: dict[str, Any] | None = None
    said: int = 0
    reading: int = 0
    size: int = 0

    def is_of(self, series: FoundSeries) -> bool:
        """Whether this is known of a series as the PACS has it now."""
        return self.checked == series.instances and self.about is not None


class SeriesCache:
    """The cache of one PACS."""

    def __init__(self, folder: Path, pacs: PACS, *, limit: int) -> None:
        """Args:
        folder: the cache's folder; created.
        pacs: where series come from.
        limit: bytes that images and instances may take together.
        """
        self._folder = folder
        self._pacs = pacs
        self._limit = limit
        self._known: dict[str, tuple[int, Facts]] = {}
        self._tried: dict[str, float] = {}
        self._holding = -1
        for name in ("dicom", "facts", "locks", "held"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def remove_leftovers(self) -> None:
        """Remove what downloads left that were killed, and not what another process downloads just now."""
        for part in (self._folder / "dicom").glob(".*.part"):
            with try_hold(self._folder / "locks" / part.stem.removeprefix(".")) as held:
                if held is not None:
                    shutil.rmtree(part, ignore_errors=True)

    def facts(self, uid: str) -> Facts:
        """What is known of a series."""
        path = self._facts_file(uid)
        try:
            stamp = path.stat().st_ctime_ns
            if uid not in self._known or self._known[uid][0] != stamp:
                found = Facts(**json.loads(path.read_bytes()))
                is_new = found.reading == _READING
                self._known[uid] = (stamp, found if is_new else Facts(subject=found.subject))
        except (OSError, ValueError, TypeError):  # not there, or of another version: it will be found out again
            return Facts()
        return self._known[uid][1]

    def refusal(self, series: FoundSeries) -> str:
        """Why a series, as the PACS has it now, is no image to segment; "" = nothing is known against it."""
        facts = self.facts(series.uid)
        return facts.refusal if facts.checked == series.instances else ""

    def check(self, series: FoundSeries) -> None:
        """Find out whether a series is an image; does nothing where that is known.

        Two instances' headers tell where they are images that look alike; else one may be the scout of a series
        that is one, and all headers are read.
        """
        if self.facts(series.uid).is_of(series):
            return
        headers = self._pacs.read_first_headers(series)
        if not headers:
            return
        if series.instances != 1 and not are_alike(headers):
            with contextlib.suppress(PACSError):  # a PACS that gives no headers of a whole series
                headers = self._pacs.read_headers(series) or headers
        refusal = find_series_refusal(headers)
        self._learn(series, refusal=refusal or "", header=headers[0] if refusal else choose_header(headers))

    def check_new(self, found: Iterable[FoundSeries]) -> None:
        """Check some of the series that are new; those that were tried without success come after the others."""
        new = [series for series in found if not self.facts(series.uid).is_of(series)]
        new.sort(key=lambda series: self._tried.get(series.uid, 0.0))
        self._tried = {series.uid: self._tried[series.uid] for series in new if series.uid in self._tried}
        for series in new[:_CHECKED_AT_ONCE]:
            self._tried[series.uid] = time.monotonic()
            try:
                self.check(series)
            except PACSError as error:
                logger.warning("series %s is not looked at yet: %s", series.uid, error)

    def image(self, series: FoundSeries) -> Path:
        """A series as NIfTI.

        Raises:
            PACSError: it is not here, and cannot be had.
            SeriesError: it is no image, or cannot be read.
            StorageError: the cache cannot be written to.
        """
        path = self._image_file(series.uid)
        if not self._is_here(series):
            with hold_one([self._folder / "locks" / series.uid]):
                if not self._is_here(series):  # another thread or process was first
                    with _writing(self._folder):
                        self._fetch(series)
            self._make_room(series.uid)
        with contextlib.suppress(OSError):
            os.utime(self._facts_file(series.uid))
        return path

    def read(self, series: FoundSeries) -> Series:
        """A series with its headers."""
        self.image(series)
        folder = self._folder / "dicom" / series.uid
        with contextlib.suppress(SeriesError, OSError):
            if sum(1 for _ in folder.iterdir()) == self.facts(series.uid).downloaded:
                return read_series(folder)
        logger.warning("series %s is damaged in the cache: it is downloaded again", series.uid)
        self._image_file(series.uid).unlink(missing_ok=True)
        self.image(series)
        return read_series(folder)

    def keep(self, uids: Container[str]) -> None:
        """Remove all but these: they are not in the PACS any more."""
        for path in (self._folder / "facts").glob("*.json"):
            if path.stem not in uids:
                self._image_file(path.stem).unlink(missing_ok=True)
                shutil.rmtree(self._folder / "dicom" / path.stem, ignore_errors=True)
                path.unlink(missing_ok=True)

    def hold(self, uids: Iterable[str]) -> None:
        """Keep series from being removed until this process ends, or holds others, or a day has passed."""
        held = self._folder / "held" / str(os.getpid())
        descriptor = os.open(held, os.O_RDWR | os.O_CREAT, 0o600)
        lock(descriptor, shared=True)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(sorted(uids)).encode())
        before, self._holding = self._holding, descriptor
        if before >= 0:
            os.close(before)

    def _is_here(self, series: FoundSeries) -> bool:
        facts = self.facts(series.uid)
        is_same = series.instances in (0, facts.downloaded, facts.said)
        file = self._image_file(series.uid)
        if facts.downloaded == 0 or not is_same or not file.is_file():
            return False
        return facts.size in (0, file.stat().st_size)

    def _is_all(self, series: FoundSeries, count: int) -> bool:
        """Whether so many instances are all that a PACS has: the number that it says may be another one."""
        if count >= max(1, series.instances):
            return True
        try:
            return 0 < len(self._pacs.read_headers(series)) <= count
        except PACSError:
            return 0 < series.instances - 1 <= count

    def _fetch(self, series: FoundSeries) -> None:
        started = time.monotonic()
        part, target = (self._folder / "dicom" / name for name in (f".{series.uid}.part", series.uid))
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            count = 0
            for count, ds in enumerate(self._pacs.retrieve(series), start=1):  # also its number at the end
                ds.save_as(part / f"{count:05d}.dcm", enforce_file_format=True)
            if not self._is_all(series, count):
                raise PACSError(
                    f"{count} of {series.instances or 'some'} instances of series {series.uid} came: try again"
                )
            try:
                read = read_series(part)
            except SeriesError as error:
                self._learn(series, refusal=str(error))
                raise
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
            write_nifti(read, self._image_file(series.uid))  # last: a series is here if its image is
            # The same series has the same time whenever it is downloaded: rounds tell new images by it.
            stable = _EPOCH + zlib.crc32("".join(sorted(read.sop_instance_uids)).encode()) % _EPOCH
            os.utime(self._image_file(series.uid), (stable, stable))
        finally:
            shutil.rmtree(part, ignore_errors=True)
        if count < series.instances:
            logger.warning("series %s: the PACS says %d instances, and has %d", series.uid, series.instances, count)
        if read.left_out:
            logger.warning("series %s: left out of the image: %s", series.uid, "; ".join(read.left_out))
        size, header = self._image_file(series.uid).stat().st_size, read.datasets[0]
        self._learn(series, downloaded=count, subject=self._hash_subject(header), header=header, size=size)
        logger.info("series %s: %d instances downloaded in %.1f s", series.uid, count, time.monotonic() - started)

    def _learn(
        self,
        series: FoundSeries,
        *,
        refusal: str = "",
        downloaded: int = 0,
        subject: str = "",
        header: Dataset | None = None,
        size: int = 0,
    ) -> None:
        if refusal:
            logger.info("left out of the images: series %s: %s", series.uid, refusal)
        before = self.facts(series.uid)
        facts = Facts(
            checked=series.instances or downloaded,
            refusal=refusal,
            downloaded=downloaded or before.downloaded,
            subject=subject or before.subject,
            about=before.about if header is None else asdict(find_facts(header, instances=series.instances)),
            said=series.instances if downloaded else before.said,
            reading=_READING,
            size=size or before.size,
        )
        write_bytes(self._facts_file(series.uid), json.dumps(asdict(facts)).encode())

    def _hash_subject(self, ds: Dataset) -> str:
        """Tells patients apart without naming any: images of one must not both train and test."""
        known = [str(ds.get(keyword) or "") for keyword in ("PatientID", "IssuerOfPatientID")]
        text = "\0".join(known) if known[0] else str(ds.StudyInstanceUID)
        key = read_or_make_key(self._folder.parent / "subjects.key")
        return hmac.digest(key, text.encode(errors="surrogatepass"), "sha256").hex()[:24]

    def _make_room(self, keep: str) -> None:
        """Remove what was used longest ago until the rest fits, except for what may be in use."""
        uids = {path.stem for path in (self._folder / "facts").glob("*.json") if self.facts(path.stem).downloaded}
        sizes = {uid: self._size(uid) for uid in uids}
        excess = sum(sizes.values()) - self._limit
        if excess <= 0:
            return
        used = self._held() | {keep}
        for last, uid in sorted((self._last_use(uid), uid) for uid in uids if uid not in used):
            if excess <= 0 or time.time() - last < _LEFT_ALONE_SECONDS:
                break
            with contextlib.suppress(OSError), hold_one([self._folder / "locks" / uid]):
                self._image_file(uid).unlink(missing_ok=True)
                shutil.rmtree(self._folder / "dicom" / uid, ignore_errors=True)
                excess -= sizes[uid]
        if excess > 0:
            logger.warning("what is in use of the PACS's images takes %d MB more than pacs_cache_gb", excess >> 20)

    def _held(self) -> set[str]:
        """What running processes hold."""
        found: set[str] = set()
        for path in (self._folder / "held").iterdir():
            with contextlib.suppress(OSError, ValueError, TypeError), path.open("r+b") as file:
                if lock(file.fileno(), wait=False):
                    path.unlink(missing_ok=True)  # its process is gone
                elif time.time() - path.stat().st_mtime < _HELD_SECONDS:
                    found |= set(json.loads(file.read()))
        return found

    def _last_use(self, uid: str) -> float:
        with contextlib.suppress(OSError):
            return self._facts_file(uid).stat().st_mtime
        return 0.0

    def _size(self, uid: str) -> int:
        instances = self._folder / "dicom" / uid
        files = [self._image_file(uid), *(instances.iterdir() if instances.is_dir() else ())]
        with contextlib.suppress(OSError):
            return sum(file.stat().st_size for file in files if file.exists())
        return 0

    def _image_file(self, uid: str) -> Path:
        return self._folder / f"{uid}.nii.gz"

    def _facts_file(self, uid: str) -> Path:
        return self._folder / "facts" / f"{uid}.json"


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in plain words that the disk is full, or not to be written to."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the cache of the PACS's images, {folder}, cannot be written to ({error.strerror or error}): "
            "make room, or give another --state"
        ) from error
