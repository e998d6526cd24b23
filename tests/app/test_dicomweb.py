"""A real PACS, Orthanc, as the datastore: its series as they come, grow and go, and whatever may go wrong with it."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom import Dataset

from dicomio.phantoms import build_slices, series_uid, volume
from iopfl.base.errors import PACSAwayError, PACSError, SeriesError, StorageError
from iopfl.base.locks import hold_one

from .archive import CT, SERIES, SHAPE, TASK, columns_of, draw, find_id, send, until, upload, values_of


def test_series_of_the_tasks_modality_are_the_images(pacs, open_store, tmp_path):
    from iopfl.labels.leases import Offered

    send(pacs, tmp_path, "computed", Modality="CT")
    store = open_store(pacs.dicomweb_url)
    assert sorted(store.list_images()) == sorted(SERIES)
    assert sorted(store.get_unlabeled_images()) == sorted(SERIES)
    status = store.status()
    assert (status["total"], status["completed"], status["pacs"]["problem"]) == (2, 0, "")
    both = open_store(pacs.dicomweb_url, tasks={"a": TASK, "b": CT}, state="both")
    assert len(both.list_images()) == 3
    by_task = {name: Offered(both, [], task).get_unlabeled_images() for name, task in (("MR", TASK), ("CT", CT))}
    assert (sorted(by_task["MR"]), by_task["CT"]) == (sorted(SERIES), [series_uid("computed")])
    assert open_store(pacs.dicomweb_url, filters={"PatientID": "P-1"}, state="one").list_images() == [SERIES[1]]


def test_a_pacs_that_ignores_the_modality_has_no_ct_offered_for_an_mr_task(pacs, open_store, tmp_path, monkeypatch):
    from iopfl.pacs.access import PACS

    send(pacs, tmp_path, "computed", Modality="CT")
    search = PACS.find_series

    def ignore(self, filters, *, limit):
        rest = filters if filters["Modality"] != TASK.modality else {}
        return search(self, rest, limit=limit)

    monkeypatch.setattr(PACS, "find_series", ignore)
    assert sorted(open_store(pacs.dicomweb_url).list_images()) == sorted(SERIES)


def test_no_proxy_and_no_account_of_the_environment_gets_an_image(pacs, stranger, open_store):
    store = open_store(pacs.dicomweb_url)
    assert Path(store.get_image_uri(SERIES[0])).is_file() and store.get_image_info(SERIES[1])
    assert stranger.asked == []


def test_an_image_is_downloaded_once_whoever_asks(pacs, open_store):
    store = open_store(pacs.dicomweb_url)
    asked = Counter()
    original = store._pacs.retrieve

    def count(series):
        asked[series.uid] += 1
        return original(series)

    store._pacs.retrieve = count
    paths, ready = [], threading.Barrier(6)

    def work() -> None:
        ready.wait()
        paths.append(store.get_image_uri(SERIES[0]))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1 and asked == {SERIES[0]: 1}
    assert np.array_equal(values_of(paths[0]), volume(SHAPE, seed=0))
    before = Path(paths[0]).stat().st_mtime
    again = open_store(pacs.dicomweb_url, state="other")
    assert Path(again.get_image_uri(SERIES[0])).stat().st_mtime == before, "the same image, to whoever counts new ones"


def test_no_patient_is_named(pacs, open_store, tmp_path, caplog):
    caplog.set_level("DEBUG")
    store = open_store(pacs.dicomweb_url)
    store.get_image_uri(SERIES[0])
    info = store.get_image_info(SERIES[0])
    assert (info["SeriesInstanceUID"], info["StudyInstanceUID"]) == (SERIES[0], series_uid("first study"))
    assert set(info) == {"name", "path", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "instances"}
    kept = "".join(path.read_text() for path in (tmp_path / "state").rglob("*.json"))
    for text in (json.dumps(store.json(), default=str), kept, caplog.text):
        assert not any(name in text for name in ("P-0", "P-1", "Müller", "M\\u00fcller", "Jörg", "19600203", "A1"))
    store.get_image_uri(SERIES[1])
    subjects = [store.find_subject(uid) for uid in SERIES]
    assert all(subjects) and subjects[0] != subjects[1]


def test_images_of_one_patient_never_train_and_test(pacs, open_store, tmp_path):
    from iopfl.labels.checked import split_labeled

    store = open_store(pacs.dicomweb_url)
    for number in range(6):
        send(pacs, tmp_path, f"more{number}", patient=f"P-{number % 3}", seed=number)
    until(lambda: len(store.list_images()) == 8, "the new series")
    for image in store.list_images():
        store.submit(image, draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(image)), {})
    split = split_labeled(store, TASK)
    sides = {side: {case.subject for case in split[side]} for side in ("train", "validation", "test")}
    assert len(split["all"]) == 8 and sum(map(len, sides.values())) == 3
    assert len(set().union(*sides.values())) == 3


def test_what_comes_and_goes_is_seen_within_seconds(pacs, open_store, tmp_path):
    store = open_store(pacs.dicomweb_url)
    assert len(store.list_images()) == 2
    path = Path(store.get_image_uri(SERIES[1]))
    send(pacs, tmp_path, "third")
    started = time.monotonic()
    until(lambda: len(store.list_images()) == 3, "the new series")
    assert time.monotonic() - started < 10
    pacs.request("DELETE", f"/series/{find_id(pacs, SERIES[1])}")
    until(lambda: SERIES[1] not in store.list_images(), "the series to go")
    until(lambda: not path.exists(), "its image to go")
    assert store.get_image_uri(SERIES[1]) == ""


def test_a_new_series_is_waited_for_where_a_search_is_slow(pacs, gateway, open_store, tmp_path, monkeypatch):
    from fastapi import HTTPException

    from iopfl.compat import unknown_names
    from iopfl.pacs import datastore

    monkeypatch.setattr(datastore, "_GLANCE_SECONDS", 0.05)
    monkeypatch.setattr(datastore, "_FRESH_SECONDS", 0.0)
    store = open_store(gateway.url)
    monkeypatch.setattr(unknown_names, "_app", lambda: SimpleNamespace(datastore=lambda: store))
    until(lambda: store._list.age < 60 or store._list.refresh(wait=5), "a first list")
    gateway.refuses = lambda *_: time.sleep(0.3) or 0
    for check in (unknown_names._check_image, store.history):
        name = check.__name__
        until(lambda: store._list._thread is None and time.monotonic() > store._list._due, "a search to be due")
        send(pacs, tmp_path, name)
        check(series_uid(name))
    until(lambda: store._list._thread is None and time.monotonic() > store._list._due, "a search to be due")
    with pytest.raises(HTTPException, match="404"):
        unknown_names._check_image("1.2.3")


def test_a_series_that_grows_is_downloaded_again(pacs, open_store, tmp_path):
    slices = build_slices(volume(SHAPE, seed=7), series="growing")
    upload(pacs, slices[:4], tmp_path / "head")
    store = open_store(pacs.dicomweb_url)
    uid = series_uid("growing")
    assert values_of(store.get_image_uri(uid)).shape == (13, 11, 4)
    upload(pacs, slices[4:], tmp_path / "tail")
    until(lambda: store.list_images() and values_of(store.get_image_uri(uid)).shape == SHAPE, "all of it")


def test_pages_of_the_search_are_followed(pacs, open_store, tmp_path, monkeypatch):
    monkeypatch.setattr("iopfl.dicomweb.searching._PAGE", 2)
    for number in range(5):
        send(pacs, tmp_path, f"page{number}")
    assert len(open_store(pacs.dicomweb_url).list_images()) == 7


def test_what_is_no_image_is_left_out_with_the_reason(pacs, open_store, tmp_path, caplog):
    send(pacs, tmp_path, "localizer", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    slices = build_slices(volume(SHAPE, seed=3), series="gap")
    upload(pacs, [*slices[:2], *slices[4:]], tmp_path / "gap")
    store = open_store(pacs.dicomweb_url)
    assert series_uid("localizer") not in store.list_images()
    assert "localizer" in store.left_out()[series_uid("localizer")]
    with pytest.raises(SeriesError, match="is left out: it is a localizer"):
        store.get_image_uri(series_uid("localizer"))
    with pytest.raises(SeriesError):  # seen only by reading it
        store.get_image_uri(series_uid("gap"))
    until(lambda: series_uid("gap") not in store.list_images(), "the broken series to be left out")
    assert store.status()["pacs"]["left_out"] == 2
    assert sum(series_uid("localizer") in record.message for record in caplog.records) <= 2
    upload(pacs, slices[2:4], tmp_path / "rest")
    until(lambda: series_uid("gap") in store.list_images(), "the series to be whole")


def test_series_that_cannot_be_looked_at_keep_nobody_from_the_others(pacs, gateway, open_store, tmp_path, monkeypatch):
    monkeypatch.setattr("iopfl.pacs.cache._CHECKED_AT_ONCE", 1)
    store = open_store(gateway.url)
    (broken, *_) = store._search(["MR"], {})  # is looked at first
    gateway.refuses = lambda method, path: 404 if broken in path else 0
    others = set(SERIES) - {broken}
    until(lambda: store.list_images() and all(store._cache.facts(uid).checked for uid in others), "the other series")
    assert store._cache.facts(broken).checked == 0
    gateway.refuses = lambda method, path: 0
    until(lambda: store.list_images() and store._cache.facts(broken).checked, "the series that failed")


def test_without_the_pacs_what_is_here_is_still_served(gateway, open_store, tmp_path):
    store = open_store(gateway.url)
    path = store.get_image_uri(SERIES[0])
    store.submit(SERIES[0], draw(tmp_path / "drawn.nii.gz", slice(2, 6), path), {"client_id": "ann"})
    gateway.refuses = lambda *_: 503
    again = open_store(gateway.url)
    assert sorted(again.list_images()) == sorted(SERIES)
    assert again.get_image_uri(SERIES[0]) == path
    assert [columns_of(pair["label"]) for pair in again.datalist()] == [[2, 3, 4, 5]]
    with pytest.raises(PACSError, match="a series with status 503"):
        again.get_image_uri(SERIES[1])
    assert "503" in again.status()["pacs"]["problem"] or "does not answer" in again.status()["pacs"]["problem"]
    with pytest.raises(PACSAwayError):
        open_store(gateway.url, state="new").list_images()
    assert open_store(gateway.url, state="newer").status()["total"] == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (404, "refused a search for series with status 404"),
        (503, "with status 503"),
        (b"<html>", "something else than DICOM"),
        (b'[{"0020000D": 7}]', "something else than DICOM"),
        (b'[{"00080016": {"vr": "UI", "Value": [', "something else than DICOM"),
    ],
)
def test_an_answer_that_is_no_dicom_is_named(open_store, gateway, answer, message):
    gateway.refuses = lambda *_: answer
    store = open_store(gateway.url)
    with pytest.raises(PACSAwayError, match=message):
        store.list_images()
    gateway.refuses = lambda *_: 204  # nothing found
    until(lambda: not store._list.refresh(wait=5) and not store._list.problem, "an answer")
    assert store.list_images() == []


def test_a_slow_pacs_keeps_nobody_from_the_status(gateway, open_store):
    store = open_store(gateway.url)
    store.list_images()

    def slow(*_) -> int:
        time.sleep(1.5)
        return 0

    gateway.refuses = slow
    time.sleep(2.1)
    started = time.monotonic()
    assert store.status()["total"] == 2
    assert time.monotonic() - started < 0.5


def test_the_cache_keeps_its_bound_and_what_is_in_use(pacs, open_store, tmp_path, monkeypatch):
    monkeypatch.setattr("iopfl.pacs.cache._LEFT_ALONE_SECONDS", 0.0)
    for number in range(4):
        send(pacs, tmp_path, f"more{number}", seed=number)
    store = open_store(pacs.dicomweb_url, cache_bytes=1)
    first = Path(store.get_image_uri(SERIES[0]))
    store.submit(SERIES[0], draw(tmp_path / "drawn.nii.gz", slice(2, 6), first), {})
    for image in store.list_images():
        assert Path(store.get_image_uri(image)).exists()
    assert len(list(first.parent.glob("*.nii.gz"))) == 1, "the last one"
    (pair,) = store.datalist()  # held by a training, as far as the cache knows
    for image in store.list_images():
        store.get_image_uri(image)
    assert Path(pair["image"]).exists()
    assert len(list(first.parent.glob("*.nii.gz"))) <= 2


def test_a_download_that_was_cut_off_is_done_again(pacs, open_store, monkeypatch):
    """Of a series that was removed to make room, and whose number of instances is known from before."""
    store = open_store(pacs.dicomweb_url)
    path = Path(store.get_image_uri(SERIES[0]))
    path.unlink()
    shutil.rmtree(path.parent / "dicom" / SERIES[0])

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", kill)
        with pytest.raises(KeyboardInterrupt):
            store.get_image_uri(SERIES[0])
    assert store._cache.read(store._find(SERIES[0])).shape == SHAPE
    assert path.is_file()


def test_what_a_killed_download_left_goes_at_the_next_start(pacs, open_store):
    """Unless it belongs to another process, which downloads just now."""
    store = open_store(pacs.dicomweb_url)
    dicom = store._cache._folder / "dicom"
    for uid in ("1.2.3", "1.2.4"):
        (dicom / f".{uid}.part").mkdir()
        (dicom / f".{uid}.part" / "00001.dcm").write_bytes(b"half")
    again = open_store(pacs.dicomweb_url)
    with hold_one([dicom.parent / "locks" / "1.2.4"]):
        again.start()
        assert [path.name for path in dicom.iterdir()] == [".1.2.4.part"]


def test_a_full_disk_is_named(pacs, open_store, monkeypatch):
    store = open_store(pacs.dicomweb_url)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Dataset, "save_as", full)
    with pytest.raises(StorageError, match="No space left on device"):
        store.get_image_uri(SERIES[0])
    monkeypatch.undo()
    assert Path(store.get_image_uri(SERIES[0])).exists()


def test_images_are_not_added_or_removed_here(pacs, open_store):
    from monailabel.interfaces.exception import MONAILabelException

    store = open_store(pacs.dicomweb_url)
    for change in (lambda: store.add_image("x", "x.nii.gz", {}), lambda: store.remove_image(SERIES[0])):
        with pytest.raises(MONAILabelException) as caught:
            change()
        assert "PACS" in caught.value.msg
