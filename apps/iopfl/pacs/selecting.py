"""Which series of a PACS are a task's, and so are listed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from iopfl.base.errors import PACSError
from iopfl.core.criteria import PICTURE, ImageFacts, find_mismatch
from iopfl.labels.checked import FINAL
from iopfl.labels.datastore import VersionedDatastore
from iopfl.pacs.access import FoundSeries
from iopfl.pacs.cache import SeriesCache

_FIELDS = {"Modality": "modality", "BodyPartExamined": "body_part", "SeriesDescription": "description"}
"""What the administrator asks for by a filter counts instead of the task's own criterion."""


class SelectingPACS(VersionedDatastore):
    """A datastore of series that lists those which are a task's, or have a label."""

    _cache: SeriesCache
    _asked_fields: Collection[str] = ()

    def list_images(self) -> list[str]:
        """Ids of what is a task's, or labeled."""
        return [image for image in super().list_images() if self._is_listed(image)]

    def json(self) -> dict[str, Any]:
        """The index of what is listed."""
        found = super().json()
        return {**found, "objects": {uid: it for uid, it in found["objects"].items() if self._is_listed(uid)}}

    def others(self) -> list[str]:
        """Series that are no task's and have no label: not listed, but served to who names them."""
        return [image for image in super().list_images() if not self._is_listed(image)]

    def start_looking(self) -> None:
        """Nothing: each search looks at what is new."""

    def _look_at_some(self, images: Iterable[str]) -> None:
        """Nothing: a listing waits for no header."""

    def _tell(self, image: str) -> Mapping[str, str]:
        """What is known; the name of a series has no ending."""
        return self._find_known(image) or {}

    def _set_filters(self, filters: Iterable[str]) -> None:
        self._asked_fields = [field for keyword, field in _FIELDS.items() if keyword in filters]

    def _select(self, listed: Iterable[str]) -> None:
        """Find out anew which series are whose task's, by what is known of them."""
        uids = set(listed)
        for uid in self._reasons.keys() - uids:
            self._reasons.pop(uid, None)
        for uid in uids:
            self._learn(uid, look=False)

    def _is_listed(self, image: str) -> bool:
        entry = self._index.entries.get(image)
        return entry is not None and (FINAL in entry.labels or not self._is_no_tasks(image))

    def _stamp_of(self, image: str) -> object:
        """The same for ever: each search looks at all of them again."""
        return None

    def _find_facts(self, image: str, *, look: bool) -> tuple[ImageFacts, Collection[str]] | None:
        """What the search and a header say of a series."""
        entry = self._index.entries.get(image)
        if entry is None:
            return None
        info = entry.image.info
        if look:
            with contextlib.suppress(PACSError):
                self._cache.check(FoundSeries(image, info["StudyInstanceUID"], info["Modality"], info["instances"]))
        about = self._cache.facts(image).about
        if about is None:
            # What the search said is enough to leave it out, and not to take it.
            facts = ImageFacts(modality=info["Modality"])
            return (facts, self._asked_fields) if self._is_of_no_task(facts) else None
        about = {**about, "modality": info["Modality"] or about["modality"]}
        if info["instances"] and about["kind"] != PICTURE:
            about["slices"] = max(info["instances"], about["slices"])
        return ImageFacts(**about), self._asked_fields

    def _is_of_no_task(self, facts: ImageFacts) -> bool:
        return all(find_mismatch(task, facts, but=self._asked_fields) for task in self._tasks)
