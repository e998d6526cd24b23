"""Searching for series (QIDO-RS, PS3.18 10.6) at servers as they are.

What one does not do is found out once and remembered: fewer series in a page, no pages, no search over all
series. What it ignores is looked at again here. Each such thing is a line for the administrator.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from iopfl.base.errors import PACSError
from iopfl.base.uids import is_uid
from iopfl.dicomweb.answers import Item, first_value
from iopfl.dicomweb.asking import SIGN_IN, Asking, RefusedError
from iopfl.dicomweb.matching import find_mismatch

logger = logging.getLogger(__name__)

OF_STUDY = (
    "AccessionNumber",
    "ModalitiesInStudy",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientSex",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyDescription",
    "StudyID",
    "StudyInstanceUID",
    "StudyTime",
)
"""Keywords that say the same of an image and of its segmentations (PS3.18, 10.6.1); others are of one series."""

_PAGE = 500
_SIZES = [_PAGE >> halvings for halvings in range(_PAGE.bit_length())]
_SERIES, _STUDY, _MODALITY = "0020000E", "0020000D", "00080060"
_COUNT, _STUDY_COUNTS = "00201209", ("00201206", "00201208")
_FIELDS = {"includefield": "NumberOfSeriesRelatedInstances"}
_WHAT = "a search for series"
_OF_A_STUDY = "series of a study"
_NOT_FOUND, _FAILED = 404, (500, 502)
_MOST_KEPT = 50_000  # studies
_KEPT_SECONDS = 10.0
"""How long the series of a study are not asked for again whose numbers of series and instances are not said."""


@dataclass(frozen=True)
class FoundSeries:
    """A series as a search finds it.

    Attributes:
        uid: Series Instance UID.
        study: Study Instance UID.
        modality: e.g. MR.
        instances: how many there are; 0 = the PACS does not say.
    """

    uid: str
    study: str
    modality: str
    instances: int = 0


class SeriesSearch:
    """Searches for series at one server. Any number of threads may use it.

    Attributes:
        cannot: what the server does not do, key -> a plain line.
    """

    def __init__(self, name: str) -> None:
        self.cannot: dict[str, str] = {}
        self._name = name
        self._page: int | None = _PAGE
        self._fields: Mapping[str, str] = _FIELDS
        self._has_pages = True
        self._goes_by_studies = False
        self._answered: set[str] = set()
        self._of_study: dict[tuple[Any, ...], tuple[tuple[Any, ...], float, list[Item]]] = {}

    def find(self, asking: Asking, filters: Mapping[str, Any], *, limit: int) -> list[FoundSeries]:
        """Series that match, at most so many.

        Args:
            asking: the server.
            filters: DICOM keyword -> value.
            limit: how many at most; the rest is left out.

        Raises:
            PACSError: the server does not answer, or something else than series.
        """
        refusal: RefusedError | None = None
        if not self._goes_by_studies:
            try:
                items = self._search(asking, "/series", filters, limit)
            except RefusedError as error:
                if error.status in SIGN_IN:
                    raise
                refusal = error
            else:
                if all(_uid(item, _STUDY) for item in items if _uid(item, _SERIES)):
                    return self._to_series(items, filters)[:limit]
        try:
            items = list(self._find_by_studies(asking, filters, limit))
        except RefusedError as error:
            if refusal is not None:
                raise refusal from error
            raise PACSError(
                f"{self._name} finds series without their Study Instance UID, and refused a search by studies with "
                f"status {error.status}: none of its series can be asked for"
            ) from error
        if refusal is None or refusal.status not in _FAILED:  # what failed once may work again
            self._goes_by_studies = True
        how = f"with status {refusal.status}" if refusal else "without the series' studies"
        self._say("series", f"answers a search over all series {how}: it is searched study by study, which is slower")
        return self._to_series(items, filters)[:limit]

    def _find_by_studies(self, asking: Asking, filters: Mapping[str, Any], limit: int) -> Iterator[Item]:
        """Series of the studies that may have some; they bear their study's UID."""
        of_study = {keyword: value for keyword, value in filters.items() if keyword in OF_STUDY}
        of_series = {keyword: value for keyword, value in filters.items() if keyword not in OF_STUDY}
        modality = of_series.get("Modality")
        asked = {**of_study, **({"ModalitiesInStudy": modality} if modality else {})}
        try:
            studies = self._search(asking, "/studies", asked, limit)
        except RefusedError:
            if asked == of_study:
                raise
            studies = self._search(asking, "/studies", of_study, limit)
        by_uid = {_uid(study, _STUDY): study for study in studies if not find_mismatch(study, asked)}
        for uid, study in by_uid.items():
            if uid:
                counts = tuple(first_value(study, tag) for tag in _STUDY_COUNTS)
                for item in self._read_study(asking, uid, counts, of_series):
                    yield {**item, _STUDY: {"vr": "UI", "Value": [uid]}}

    def _read_study(self, asking: Asking, uid: str, counts: tuple[Any, ...], filters: Mapping[str, Any]) -> list[Item]:
        """Series of a study, as they were before if its counts are."""
        key = (uid, *sorted(map(str, filters.items())))
        known, now = self._of_study.get(key), time.monotonic()
        if known is not None and known[0] == counts and (all(counts) or now < known[1] + _KEPT_SECONDS):
            return known[2]
        try:
            found = self._search(asking, f"/studies/{uid}/series", filters, _PAGE)
        except RefusedError as error:
            if error.status != _NOT_FOUND or _OF_A_STUDY not in self._answered:
                raise
            found = []  # it went meanwhile
        if len(self._of_study) > _MOST_KEPT:
            self._of_study.clear()
        self._of_study[key] = counts, now, found
        return found

    def _search(self, asking: Asking, path: str, filters: Mapping[str, Any], limit: int) -> list[Item]:
        """Pages, up to one that brings nothing new."""
        found = self._first_page(asking, path, filters)
        is_full = bool(self._page) and len(found) == self._page
        if is_full and not self._has_pages:
            return self._ask_for_all(asking, path, filters, limit) or found
        seen, offset = set(map(_key, found)), len(found)
        while found and offset < limit:
            try:
                page = self._ask(asking, path, filters, offset)
            except RefusedError:  # no pages, or nothing behind the end
                is_end = offset > len(found)
                page, new = [], []
            else:
                new = [item for item in page if _key(item) not in seen]
                is_end = not page
            if not new:
                if is_full and not is_end and offset == self._page:
                    self._has_pages = False
                    return self._ask_for_all(asking, path, filters, limit) or found
                break
            offset += len(page)
            seen.update(map(_key, new))
            found += new
        return found

    def _first_page(self, asking: Asking, path: str, filters: Mapping[str, Any]) -> list[Item]:
        """The first page, as large as the server gives it, which is remembered."""
        kind = path if path.count("/") == 1 else _OF_A_STUDY
        try:
            page = self._ask(asking, path, filters)
        except RefusedError as error:
            if error.status in SIGN_IN:
                raise
            if error.status == _NOT_FOUND and self._is_answered(asking, path, kind):
                return []
            page = self._find_page_size(asking, path, filters)
        self._answered.add(kind)
        return page

    def _is_answered(self, asking: Asking, path: str, kind: str) -> bool:
        """Whether there is such a search: a status of 404 may say that nothing is found, or that it is no address."""
        if kind not in self._answered:
            with contextlib.suppress(RefusedError):
                asking.search(_WHAT, path, {"limit": 1})
                self._answered.add(kind)
        return kind in self._answered

    def _find_page_size(self, asking: Asking, path: str, filters: Mapping[str, Any]) -> list[Item]:
        """A first page in another way than the one that was refused.

        Raises:
            RefusedError: it is refused in any way.
        """
        try:
            asking.search(_WHAT, path, {**filters, "limit": 1})
        except RefusedError:
            page = asking.search(_WHAT, path, filters)
            self._page, self._fields = None, {}
            self._say("limit", "refuses to be asked for a number of series: it gives as many as it likes")
            return page
        sizes = [size for size in _SIZES if size <= (self._page or _PAGE)]
        for fields, size in [({}, sizes[0]), *((self._fields_of(path), size) for size in sizes[1:])]:
            with contextlib.suppress(RefusedError):
                page = asking.search(_WHAT, path, {**filters, **fields, "limit": size})
                if size == sizes[0]:
                    self._fields = {}
                    self._say("fields", "does not say how many instances a series has where it is asked for that")
                else:
                    self._page = size
                    self._say("limit", f"refuses to find {sizes[0]} series at a time: it is asked for {size}")
                return page
        raise PACSError(f"{self._name} finds one series, but refuses to find more at a time: see its log")

    def _ask(self, asking: Asking, path: str, filters: Mapping[str, Any], offset: int = 0) -> list[Item]:
        pages = {"limit": self._page, "offset": offset}
        query = {**filters, **self._fields_of(path), **{key: number for key, number in pages.items() if number}}
        return asking.search(_WHAT, path, query)

    def _ask_for_all(self, asking: Asking, path: str, filters: Mapping[str, Any], limit: int) -> list[Item]:
        """All in one page, of a server that has the first one only."""
        with contextlib.suppress(RefusedError):
            found = asking.search(_WHAT, path, {**filters, **self._fields_of(path), "limit": limit})
            if len(found) != self._page:
                return found
        self._say("pages", f"finds the first {self._page} series alone, of more there may be: give it a filter")
        return []

    def _fields_of(self, path: str) -> Mapping[str, str]:
        return self._fields if path.endswith("/series") else {}

    def _to_series(self, items: list[Item], filters: Mapping[str, Any]) -> list[FoundSeries]:
        """What is looked at of them: there may be thousands. What the server should not have found is left out."""
        found: dict[str, FoundSeries] = {}
        for item in items:
            uid, study = _uid(item, _SERIES), _uid(item, _STUDY)
            if not (uid and study):
                continue
            if ignored := find_mismatch(item, filters):
                self._say(ignored, f"ignores the filter {ignored}: what it finds is looked at again here")
                continue
            known = found.get(uid)  # some find a series once for each place where it is kept
            instances = max(_count(item), known.instances if known else 0)
            found[uid] = FoundSeries(uid, known.study if known else study, str(first_value(item, _MODALITY)), instances)
        return list(found.values())

    def _say(self, key: str, line: str) -> None:
        if key not in self.cannot:
            self.cannot[key] = line
            logger.warning("%s %s", self._name, line)


def _key(item: Item) -> str:
    uids = [str(first_value(item, tag)) for tag in (_SERIES, _STUDY)]
    return " ".join(uids) if any(uids) else repr(item)


def _uid(item: Mapping[str, Any], tag: str) -> str:
    text = str(first_value(item, tag)).strip()
    return text if is_uid(text) else ""


def _count(item: Mapping[str, Any]) -> int:
    try:
        return max(0, int(first_value(item, _COUNT) or 0))
    except (TypeError, ValueError):
        return 0
