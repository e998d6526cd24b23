"""Every label that was ever submitted, kept: who drew it, when, and what became of it.

A folder per image: the files of its versions, and the log of what happened to them (`log`). A version's file and
its line are on the disk before a submission is answered, so that a crash loses no accepted label. No file is ever
written over: numbers are not used twice, whatever the log has lost. Which version is an image's final label is decided
elsewhere (`final_rule`) and noted here.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from iopfl.base.errors import LabelVersionError
from iopfl.base.files import create, set_aside
from iopfl.base.locks import lock
from iopfl.base.stamps import Stamp, find_stamp
from iopfl.images.names import find_suffix
from iopfl.labels.log import (
    DAMAGED,
    FOLDER,
    LOG,
    RECOVERED,
    SUBMITTED,
    History,
    LabelVersion,
    read_log,
    write_line,
)

logger = logging.getLogger(__name__)

_SEGMENTATION = ".dcm"
_NUMBERED = re.compile(r"(\d+)(\..+)")


class VersionStore:
    """The versions of a datastore's labels.

    What changes a history is called by whoever holds it (`hold`): one thread of one process at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[Stamp, History, str]] = {}
        self._held = threading.local()

    def images(self) -> list[str]:
        """Images with a history that can be read, or with files of one that was lost."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        kept = (entry.name for entry in found if (entry / LOG).is_file() or self._numbered(entry.name))
        return sorted(image for image in kept if not self.problem(image))

    @contextlib.contextmanager
    def hold(self, image: str) -> Iterator[None]:
        """Keep everybody else from changing an image's history; within it, holding once more is free.

        Versions whose lines the log lost are there again once it is held.
        """
        held = self._held.__dict__.setdefault("images", set())
        if image in held:
            yield
            return
        folder = self._folder / image
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / "lock").open("wb") as file:
            lock(file.fileno())
            held.add(image)
            try:
                self._recover(image)
                yield
            finally:
                held.remove(image)

    def history(self, image: str) -> History:
        """What is known of an image's labels.

        Raises:
            LabelVersionError: a newer iopfl wrote the log; it stays as it is.
        """
        history, problem = self._look_up(image)
        if problem:
            raise LabelVersionError(problem)
        return history

    def problem(self, image: str) -> str:
        """Why an image's history cannot be read; "" = it can be, or there is none."""
        return self._look_up(image)[1]

    def _look_up(self, image: str) -> tuple[History, str]:
        """What the log says, or why it cannot be read; it is read again once it has changed."""
        path = self._folder / image / LOG
        stamp = find_stamp(path)
        if stamp is None:
            return History(), ""
        known = self._read.get(image)
        if known is None or known[0] != stamp:
            history, problem = History(), ""
            try:
                history = read_log(path)
            except LabelVersionError as error:
                problem = f"the labels of {image} cannot be read, nor others taken for it: {error}"
                logger.warning("%s", problem)
            known = (stamp, history, problem)
            self._read[image] = known
        return known[1:]

    def recover(self) -> None:
        """Find versions again, from their files, whose lines the logs have lost."""
        for image in self.images():
            if self._unknown_files(image):
                with contextlib.suppress(OSError), self.hold(image):  # with the next hold, where the disk is full
                    pass

    def file(self, image: str, version: LabelVersion) -> Path:
        """Where a version's file lies.

        Raises:
            LabelVersionError: it has none here.
        """
        path = self._folder / image / version.file
        if not version.file or not path.is_file():
            where = "ask again when the PACS answers" if version.sop_instance_uid else "it was damaged or taken away"
            raise LabelVersionError(f"version {version.number} has no file here: {where}")
        return path

    def is_whole(self, image: str, version: LabelVersion) -> bool:
        """Whether a version's file is there, as it was when it came."""
        path = self._folder / image / version.file
        return bool(version.file) and path.is_file() and _digest(path) == version.sha256

    def give_up(self, image: str, version: LabelVersion) -> None:
        """Let a version whose file is not whole count no more, unless the PACS has it: then it is fetched again."""
        logger.warning("version %d of %s: its file is damaged or gone", version.number, image)
        set_aside(self._folder / image / version.file)
        if version.is_stored:
            self.note(image, "file", number=version.number, file="", sha256="")
        else:
            self.withdraw(image, [version], why=DAMAGED)

    def segmentation_file(self, image: str, number: int) -> Path:
        """Where a version's SEG lies until the PACS has it."""
        return self._folder / image / f"{number}{_SEGMENTATION}"

    def beside_file(self, image: str, number: int, index: int) -> Path:
        """Where what is stored beside a version's SEG lies as long, counted from 1."""
        return self._folder / image / f"beside-{number}-{index:04d}{_SEGMENTATION}"

    def beside_files(self, image: str, number: int) -> list[Path]:
        """All of them, in order."""
        return sorted((self._folder / image).glob(f"beside-{number}-*{_SEGMENTATION}"))

    def add(
        self,
        image: str,
        file: Path | None,
        *,
        annotator: str,
        kind: str = SUBMITTED,
        when: datetime | None = None,
        **about: Any,
    ) -> LabelVersion:
        """Keep a label; the same again from the same annotator, for the same tasks, is the version there is.

        One that was found again without knowing whose it is, is of whoever brings it once more.

        Args:
            image: its image.
            file: the label; it is copied. None for what only the PACS has yet.
            annotator: whose it is.
            kind: where it comes from.
            when: it was drawn; None = now.
            about: other attributes of `LabelVersion`.

        Raises:
            OSError: the disk is full, or not to be written to; nothing was kept.
        """
        history = self.history(image)
        digest = _digest(file) if file else ""
        same = history.of(annotator)[-1:] if kind in (SUBMITTED, FOLDER) else []
        if digest and same and same[0].sha256 == digest and same[0].tasks == about.get("tasks", same[0].tasks):
            return same[0]
        ownerless = (v for v in history.counting if v.kind == RECOVERED and v.sha256 == digest != "")
        claimed = next(ownerless, None)
        number = claimed.number if claimed else self._next_number(image, history)
        name = f"{number}{find_suffix(file.name) or file.suffix}" if file else ""
        version = LabelVersion(
            number=number,
            annotator=annotator,
            when=(when or self._now(history)).astimezone(UTC).isoformat(),
            kind=kind,
            file=claimed.file if claimed else name,
            sha256=digest,
            **about,
        )
        with self._keeping(image, version.file, None if claimed else file):
            self._note_version(image, version)
        logger.info("label of %s: version %d (%s)", image, number, kind)
        return version

    def attach(self, image: str, number: int, file: Path, *, tasks: Iterable[str]) -> LabelVersion:
        """Keep the file of a version that was in the PACS alone, and what it is a label for."""
        name = f"{number}{find_suffix(file.name) or file.suffix}"
        with self._keeping(image, name, file):
            self.note(image, "file", number=number, file=name, sha256=_digest(file), tasks=list(tasks))
        return self.history(image).find(number)

    def withdraw(self, image: str, versions: Iterable[LabelVersion], *, why: str, by: str = "") -> None:
        """Let versions not count any more; nothing of them is removed."""
        numbers = [version.number for version in versions]
        if numbers:
            self.note(image, "withdrawn", numbers=numbers, why=why, by=by)

    def note(self, image: str, what: str, **values: Any) -> None:
        """Add a line to an image's log; it is on the disk when this returns."""
        write_line(self._folder / image / LOG, what, **values)

    def _note_version(self, image: str, version: LabelVersion) -> None:
        kept = {key: value for key, value in vars(version).items() if value or key in ("number", "annotator")}
        self.note(image, "version", **kept)

    @contextlib.contextmanager
    def _keeping(self, image: str, name: str, file: Path | None) -> Iterator[None]:
        """Keep a copy of a file, unless noting it fails."""
        if file is None:
            yield
            return
        target = self._folder / image / name
        with create(target) as temporary:
            shutil.copyfile(file, temporary)
        try:
            yield
        except OSError:
            target.unlink(missing_ok=True)
            raise

    def _next_number(self, image: str, history: History) -> int:
        """A number that no version and no file has or had."""
        return 1 + max([0, *(version.number for version in history.versions), *self._numbered(image)])

    def _numbered(self, image: str) -> dict[int, list[Path]]:
        """The numbers that files of an image bear, whatever they are -> those of them that hold a label."""
        folder, found = self._folder / image, dict[int, list[Path]]()
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if match := _NUMBERED.fullmatch(path.name):
                files = found.setdefault(int(match[1]), [])
                if path.name == f"{match[1]}{find_suffix(path.name)}":
                    files.append(path)
        return found

    def _unknown_files(self, image: str) -> list[tuple[int, Path]]:
        """Files of labels that the log does not know, with their versions' numbers."""
        history = self.history(image)
        files = [(number, path) for number, paths in self._numbered(image).items() for path in paths[:1]]
        with_file = {version.number for version in history.versions if version.file}
        return [(number, path) for number, path in sorted(files) if number not in with_file]

    def _recover(self, image: str) -> None:
        """Find versions again, from their files, whose lines the log has lost; who drew them, only those told."""
        if self.problem(image):
            return
        found = self._unknown_files(image)
        for number, path in found:
            known, digest = self.history(image).get(number), _digest(path)
            if known is not None and known.kind != RECOVERED:  # fetched from the PACS, before a crash
                self.note(image, "file", number=number, file=path.name, sha256=digest)
                continue
            when = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat()
            about: dict[str, Any] = {"when": when, "kind": RECOVERED, "file": path.name, "sha256": digest}
            self._note_version(image, LabelVersion(number=number, annotator="", **about))
            logger.warning(
                "version %d of %s is found again by its file alone, the log has lost it: who drew it is not known",
                number,
                image,
            )

    def _now(self, history: History) -> datetime:
        """Now, and after everything that was drawn before: clocks are set back at times."""
        last = max((datetime.fromisoformat(v.when) for v in history.versions), default=datetime.min.replace(tzinfo=UTC))
        return max(datetime.now(UTC), last + timedelta(microseconds=1))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
