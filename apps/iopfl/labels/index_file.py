"""The index of a site folder on the disk: MONAI Label's `datastore_v2.json`, and a line for each change since.

What was changed is written, however many images there are; once the changes are more than the index, both become one
file again. All in it but what clients said of images and labels can be had from the folder: an index that is damaged
is set aside and made anew, a line that is damaged is passed over, and a disk that is full is written to later.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iopfl.base.files import MODE, set_aside, write_bytes
from iopfl.base.finite import finite
from iopfl.base.locks import lock
from iopfl.base.stamps import Stamp, find_stamp

logger = logging.getLogger(__name__)

INDEX, CHANGES = "datastore_v2.json", "datastore_v2.changes.jsonl"

_MANY = 1000
"""Changes at once, from which on the whole index is written."""

_SPARE_BYTES = 2**20


@dataclass(slots=True)
class Item:
    """An image, or a label.

    Attributes:
        ext: the ending of its file's name, whose beginning is the image's id.
        info: what is known of it, as JSON has it.
    """

    ext: str = ""
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Entry:
    """An image and its labels, by their tags."""

    image: Item
    labels: dict[str, Item] = field(default_factory=dict)


class IndexFile:
    """The entries of an index, as this process and others change them; for one thread at a time.

    Attributes:
        entries: image id -> entry; changed by `set_image` and `set_label` alone.
        name: the name of the datastore.
        description: the description of the datastore.
    """

    def __init__(self, folder: Path) -> None:
        self.entries: dict[str, Entry] = {}
        self.name, self.description = "new-dataset", "New Dataset"
        self._index, self._changes, self._lock = folder / INDEX, folder / CHANGES, folder / ".lock"
        self._index_seen: Stamp | None = None
        self._changes_seen = 0  # inode
        self._read_to = 0
        self._digest = ""
        self._pending: list[bytes] = []
        self._is_held = False
        self._is_due = False  # to be written as a whole

    def load(self) -> None:
        """Read it all; where there is nothing to read, what is known stays and is written with the next `save`."""
        with self._holding():
            self._load()
            self._apply_pending()

    def catch_up(self) -> bool:
        """Take in what others wrote; says whether it was all read anew."""
        index, changes = find_stamp(self._index), find_stamp(self._changes)
        inode, size = (changes.inode, changes.size) if changes else (0, 0)
        if index != self._index_seen or inode != self._changes_seen or size < self._read_to:
            self.load()
            return True
        if size > self._read_to:
            self._read_on()
            self._apply_pending()
        return False

    def set_image(self, image: str, item: Item | None) -> None:
        """Note an image, or, for None, forget it and its labels; `save` writes it."""
        item = _finite(item)
        if item is None:
            self.entries.pop(image, None)
        elif image in self.entries:
            self.entries[image].image = item
        else:
            self.entries[image] = Entry(item)
        self._note({"id": image, "image": _to_json(item)})

    def set_label(self, image: str, tag: str, item: Item | None) -> None:
        """Note the label of an image with a tag, or, for None, forget it; `save` writes it."""
        item = _finite(item)
        _put(self.entries[image].labels, tag, item)
        self._note({"id": image, "tag": tag, "label": _to_json(item)})

    def save(self) -> bool:
        """Write what was noted; what the disk does not take is written with the next change.

        Returns:
            Whether there are other files in the folder than before.
        """
        if not (self._pending or self._is_due):
            return False
        before = self._index_seen, self._changes_seen
        try:
            with self._holding():
                self.catch_up()
                if self._is_due or len(self._pending) > _MANY or self._is_long():
                    self._write_index()
                else:
                    self._append()
        except OSError as error:
            logger.warning("the index of the images is written later (%s)", error.strerror or type(error).__name__)
        return before != (self._index_seen, self._changes_seen)

    def to_json(self) -> dict[str, Any]:
        """The index as MONAI Label has it."""
        about = {"name": self.name, "description": self.description, "images_dir": ".", "labels_dir": "labels"}
        objects = {
            image: {
                "image": _to_json(entry.image),
                "labels": {tag: _to_json(label) for tag, label in entry.labels.items()},
            }
            for image, entry in self.entries.items()
        }
        return {**about, "objects": objects}

    def dumps(self) -> str:
        """The same as text."""
        return json.dumps(self.to_json(), default=str)

    def describe(self, name: str, description: str) -> None:
        """Set the datastore's name and description; `save` writes them."""
        self.name, self.description, self._is_due = name, description, True

    def _note(self, change: dict[str, Any]) -> None:
        self._pending.append(json.dumps(change, default=str).encode() + b"\n")

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        """Keep other processes from writing; MONAI Label locks the same file."""
        if self._is_held:
            yield
            return
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a folder that cannot be written to is nobody's to write to
                lock(stack.enter_context(open(self._lock, "ab", opener=_open)).fileno())
            self._is_held = True
            try:
                yield
            finally:
                self._is_held = False

    def _load(self) -> None:
        self._index_seen = find_stamp(self._index)
        content = self._index.read_bytes() if self._index_seen else None
        about: dict[str, Any] = {}
        if content is not None:
            try:
                about = json.loads(content)
                entries = {str(image): _to_entry(values) for image, values in about["objects"].items()}
            except (ValueError, LookupError, TypeError, AttributeError):
                aside = set_aside(self._index)
                logger.warning(
                    "%s was damaged: it is kept as %s, and made anew from the folder", INDEX, aside and aside.name
                )
                content = None
        if content is None:
            # What was known is known still; what changed since the index that is gone was written, too.
            self._index_seen, self._is_due, about = None, True, {}
            entries = self.entries
        self.name, self.description = about.get("name", self.name), about.get("description", self.description)
        self.entries = entries
        self._digest = hashlib.sha256(content).hexdigest() if content is not None else ""
        self._changes_seen, self._read_to = 0, 0
        if (changes := find_stamp(self._changes)) is not None:
            self._changes_seen = changes.inode
            self._read_on()

    def _apply_pending(self) -> None:
        for line in self._pending:
            self._apply(json.loads(line))

    def _read_on(self) -> None:
        """Apply the lines that others added."""
        with self._changes.open("rb") as file:
            file.seek(self._read_to)
            content = file.read()
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)  # the last may be half written yet
        damaged = 0
        is_first = self._read_to == 0
        for line in lines:
            self._read_to += len(line)
            try:
                change = json.loads(line)
                if is_first and self._digest and change.get("of") != self._digest:
                    self._read_to = _size(find_stamp(self._changes))  # of an index that was replaced since
                    self._is_due = True
                    return
                self._apply(change)
            except (ValueError, LookupError, TypeError, AttributeError):
                damaged += 1
            is_first = False
        if damaged:
            logger.warning("%s: %d damaged line(s) are passed over", CHANGES, damaged)

    def _apply(self, change: dict[str, Any]) -> None:
        if "of" in change:
            return
        image = change["id"]
        if "tag" in change:  # of an image that is not known where the index is gone: its file tells the rest
            entry = self.entries.setdefault(image, Entry(Item()))
            _put(entry.labels, change["tag"], _to_item(change["label"]))
        elif change["image"] is None:
            self.entries.pop(image, None)
        elif image in self.entries:
            self.entries[image].image = _to_item(change["image"])
        else:
            self.entries[image] = Entry(_to_item(change["image"]))

    def _append(self) -> None:
        head = [] if self._read_to else [json.dumps({"of": self._digest}).encode() + b"\n"]
        lines = b"".join([*head, *self._pending])
        with open(self._changes, "ab", buffering=0, opener=_open) as file:  # Path.open takes none
            size = file.tell()
            if size > self._read_to:  # half a line, of a process that was killed
                lines = b"\n" + lines
            written = file.write(lines)
            if written != len(lines):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            status = os.fstat(file.fileno())
        self._changes_seen, self._read_to = status.st_ino, status.st_size
        self._pending = []

    def _write_index(self) -> None:
        content = self.dumps().encode()
        write_bytes(self._index, content)
        self._changes.unlink(missing_ok=True)
        self._index_seen, self._digest = find_stamp(self._index), hashlib.sha256(content).hexdigest()
        self._changes_seen, self._read_to, self._pending, self._is_due = 0, 0, [], False

    def _is_long(self) -> bool:
        return self._read_to > _SPARE_BYTES + 2 * _size(self._index_seen)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags, MODE)


def _size(stamp: Stamp | None) -> int:
    return stamp.size if stamp else 0


def _put(labels: dict[str, Item], tag: str, item: Item | None) -> None:
    if item is None:
        labels.pop(tag, None)
    else:
        labels[tag] = item


def _to_json(item: Item | None) -> dict[str, Any] | None:
    return None if item is None else {"ext": item.ext, "info": item.info}


def _finite(item: Item | None) -> Item | None:
    return item and Item(item.ext, finite(item.info))  # a NaN would make every listing fail


def _to_item(values: dict[str, Any] | None) -> Any:
    return None if values is None else Item(str(values["ext"]), dict(values["info"]))


def _to_entry(values: dict[str, Any]) -> Entry:
    labels = {str(tag): _to_item(label) for tag, label in (values.get("labels") or {}).items()}
    return Entry(_to_item(values["image"]), labels)
