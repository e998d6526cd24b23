"""The inbox and the queue: what was accepted stays, complete series are noticed, and a new process goes on."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace

import pytest

from iopfl.base.errors import SeriesError
from iopfl.dimse import inbox as inboxes
from iopfl.dimse.inbox import Inbox, Instance, Outcome, check_uid
from iopfl.dimse.queue import Job, Queue, State, list_jobs
from iopfl.dimse.room import InboxFullError

SERIES, STUDY = "1.2.3", "1.2"
QUIET, NOT_YET = 0.0, 60.0


@pytest.fixture
def inbox(tmp_path):
    return open_inbox(tmp_path)


def open_inbox(folder, **options) -> Inbox:
    return Inbox(folder, Queue(folder / "queue"), **options)


def instance(number: int = 1, *, series: str = SERIES, **more) -> Instance:
    values = {"study_instance_uid": STUDY, "calling": "SCANNER", "called": "IOPFL", **more}
    return Instance(series_instance_uid=series, sop_instance_uid=f"{series}.{number}", **values)


def store(inbox: Inbox, *numbers: int, content: bytes = b"pixels", association: object = None, **more) -> list[Outcome]:
    return [inbox.store(instance(number, **more), (b"head", content), association) for number in numbers]


def test_an_instance_lies_under_its_uids_and_its_job_says_who_sent_it(inbox, tmp_path):
    assert store(inbox, 1, 2) == [Outcome.NEW, Outcome.NEW]
    assert [path.relative_to(tmp_path).as_posix() for path in inbox.files(SERIES)] == [
        "series/1.2.3/1.2.3.1.dcm",
        "series/1.2.3/1.2.3.2.dcm",
    ]
    assert inbox.files(SERIES)[0].read_bytes() == b"headpixels"
    job = inbox.queue.get(SERIES)
    assert (job.state, job.study_instance_uid, job.calling_ae_title) == (State.RECEIVED, STUDY, "SCANNER")
    assert inbox.find("1.2.3.2") == inbox.files(SERIES)[1]
    assert inbox.find("1.2.3.4") is None and inbox.find("../1.2.3/1.2.3.1") is None


@pytest.mark.parametrize(
    "uid",
    ["", ".", "..", ".1", "1.", "1..2", "1.2/3", "1.2/../3", "1.2\x00", "a.b", "1.2\n", "1" * 65, "\u0661.\u0662"],
)
def test_only_uids_become_file_names(uid):
    with pytest.raises(SeriesError, match="expected a UID as Series"):
        check_uid(uid, "Series")


@pytest.mark.parametrize("uid", ["1.2", "2.25.329800735698586629295641978511506172918", "1.02.3", "1"])
def test_uids_are_uids(uid):
    assert check_uid(uid, "Series") == uid


def test_a_series_is_complete_when_nothing_came_for_a_while(inbox):
    store(inbox, 1)
    assert inbox.complete(NOT_YET) == []
    assert inbox.complete(QUIET) == [SERIES]


def test_a_series_is_not_complete_while_its_association_is_open(inbox, monkeypatch):
    store(inbox, 1, association="first")
    store(inbox, 2, association="second")
    inbox.ended("first")
    assert inbox.complete(QUIET) == []
    inbox.ended("second")
    assert inbox.complete(QUIET) == [SERIES]
    store(inbox, 3, association="third")
    monkeypatch.setattr(inboxes, "OPEN_ASSOCIATION_SECONDS", 0.0)
    assert inbox.complete(QUIET) == [SERIES], "not for ever"


def test_a_series_that_says_how_many_instances_it_has_is_complete_with_them(inbox):
    store(inbox, 1, association="open", expected=2)
    assert inbox.complete(NOT_YET) == []
    store(inbox, 1, association="open", expected=2)
    assert inbox.complete(NOT_YET) == [], "one of them twice"
    store(inbox, 2, association="open", expected=2)
    assert inbox.complete(NOT_YET) == [SERIES]


def test_a_series_begun_is_complete_no_more_until_something_new_comes(inbox):
    store(inbox, 1, 2)
    job = inbox.begin(SERIES)
    assert (job.state, job.instances) == (State.SEGMENTING, 2)
    assert job.times["first"] <= job.times["last"] <= job.times["complete"]
    assert inbox.complete(QUIET) == []
    assert store(inbox, 2) == [Outcome.SAME]
    assert inbox.complete(QUIET) == [] and inbox.is_unchanged(job)
    assert store(inbox, 3) == [Outcome.NEW]
    assert inbox.complete(QUIET) == [SERIES] and not inbox.is_unchanged(job)


@pytest.mark.parametrize("state", [State.DONE, State.REFUSED, State.FAILED, State.SENDING])
@pytest.mark.parametrize("content", [b"pixels", b"others"])
def test_a_finished_series_that_changes_is_received_again(inbox, state, content, caplog):
    store(inbox, 1)
    inbox.queue.put(replace(inbox.begin(SERIES), state=state, reason="x", waiting=("pacs",), attempts=3))
    outcome = store(inbox, 1, content=content)
    job = inbox.queue.get(SERIES)
    if content == b"pixels":
        assert (outcome, job.state, inbox.complete(QUIET)) == ([Outcome.SAME], state, [])
    else:
        assert (outcome, job.state, inbox.complete(QUIET)) == ([Outcome.REPLACED], State.RECEIVED, [SERIES])
        assert (job.reason, job.waiting, job.attempts) == ("", (), 0)
    assert ("came again with other content, which counts now" in caplog.text) == (content == b"others")


def test_a_series_of_which_nothing_lies_there_is_forgotten(inbox, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inboxes, "_compare", full)
    with pytest.raises(OSError, match="No space"):
        store(inbox, 1)
    assert inbox.complete(QUIET) == [SERIES]
    assert inbox.begin(SERIES) is None
    assert inbox.queue.jobs() == [] and inbox.complete(QUIET) == []


def test_a_new_process_waits_for_what_was_coming_and_redoes_what_was_cut_off(tmp_path):
    first = open_inbox(tmp_path)
    store(first, 1, 2)
    store(first, 1, series="1.5")
    first.begin("1.5")
    store(first, 1, series="1.6")
    done = first.queue.put(replace(first.begin("1.6"), state=State.DONE))
    store(first, 1, series="1.7")
    first.queue.put(replace(first.begin("1.7"), state=State.DONE))
    # Killed between the rename and the note that the series has changed:
    (tmp_path / "series" / "1.7" / "1.7.9.dcm").write_bytes(b"late")
    (tmp_path / "incoming" / "half").write_bytes(b"never accepted")
    (tmp_path / "series" / "1.8").mkdir()
    second = open_inbox(tmp_path)
    assert sorted(second.complete(QUIET)) == ["1.2.3", "1.5", "1.7"]
    assert second.begin("1.7").instances == 2
    assert second.queue.get("1.6") == done
    assert not list((tmp_path / "incoming").iterdir()) and not (tmp_path / "series" / "1.8").exists()
    assert second.size == sum(path.stat().st_size for path in tmp_path.rglob("*.dcm"))


def test_a_job_that_cannot_be_read_costs_no_instance(tmp_path):
    store(open_inbox(tmp_path), 1)
    (tmp_path / "queue" / f"{SERIES}.json").write_text("nonsense")
    inbox = open_inbox(tmp_path)
    assert [path.name for path in inbox.files(SERIES)] == ["1.2.3.1.dcm"]
    assert store(inbox, 1, 2) == [Outcome.SAME, Outcome.NEW]
    assert inbox.complete(QUIET) == [SERIES] and inbox.begin(SERIES).instances == 2
    inbox.queue.remove(SERIES)
    assert len(open_inbox(tmp_path).files(SERIES)) == 2, "what came is no one's to delete"


def test_there_is_a_bound_on_what_is_kept(tmp_path):
    inbox = open_inbox(tmp_path, max_bytes=25)
    assert store(inbox, 1, 2) == [Outcome.NEW, Outcome.NEW]
    with pytest.raises(InboxFullError, match="at most 25"):
        store(inbox, 3)
    assert len(inbox.files(SERIES)) == 2
    assert not list((tmp_path / "incoming").iterdir())
    inbox.queue.put(replace(inbox.begin(SERIES), state=State.DONE))
    assert inbox.remove(inbox.queue.get(SERIES))
    assert inbox.size == 0 and store(inbox, 3) == [Outcome.NEW]


def test_only_what_is_finished_and_unchanged_is_deleted(inbox):
    store(inbox, 1)
    job = inbox.begin(SERIES)
    for state in (State.RECEIVED, State.SEGMENTING, State.SENDING, State.FAILED):
        job = inbox.queue.put(replace(job, state=state))
        assert not inbox.remove(job)
    old = inbox.queue.put(replace(job, state=State.DONE))
    store(inbox, 2)
    assert not inbox.remove(old)
    assert len(inbox.files(SERIES)) == 2
    assert inbox.remove(inbox.queue.get(SERIES), finished=False), "a person may"
    assert not inbox.folder(SERIES).exists()


def test_many_at_once_lose_nothing(inbox):
    def send(which: int) -> None:
        for number in range(1, 21):
            store(inbox, number, content=b"%d" % (number % 3), series=f"1.2.{which % 2}", association=which)
        inbox.ended(which)

    threads = [threading.Thread(target=send, args=(which,)) for which in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(inbox.files(f"1.2.{which}")) for which in range(2)] == [20, 20]
    assert inbox.size == sum(path.stat().st_size for uid in ("1.2.0", "1.2.1") for path in inbox.files(uid))
    assert sorted(inbox.complete(QUIET)) == ["1.2.0", "1.2.1"]


def test_a_job_is_read_as_it_was_written(tmp_path):
    queue = Queue(tmp_path)
    job = queue.put(
        Job(
            series_instance_uid=SERIES,
            study_instance_uid=STUDY,
            state=State.SENDING,
            waiting=("pacs", "web"),
            times={"first": 1.5},
            due=2.5,
            attempts=2,
        )
    )
    assert Queue(tmp_path).get(SERIES) == job == list_jobs(tmp_path)[0]
    assert (tmp_path / f"{SERIES}.json").stat().st_mode & 0o077 == 0


def test_a_job_somebody_else_changed_is_not_changed(tmp_path):
    queue = Queue(tmp_path)
    old = queue.put(Job(series_instance_uid=SERIES, study_instance_uid=STUDY))
    new = queue.put(replace(old, reason="newer"))
    assert queue.change(old, state=State.DONE) is None
    assert queue.change(new, state=State.DONE).state is State.DONE
    queue.remove(SERIES)
    assert queue.change(new, state=State.FAILED) is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "null", "nonsense", json.dumps({"series_instance_uid": "1.9", "study_instance_uid": "1"})]
    + [
        json.dumps({"series_instance_uid": SERIES, "study_instance_uid": "1", **more})
        for more in ({"state": "?"}, {"x": 1})
    ],
)
def test_a_broken_job_is_passed_over_and_named(tmp_path, caplog, content):
    (tmp_path / f"{SERIES}.json").write_text(content)
    with caplog.at_level(logging.ERROR):
        assert Queue(tmp_path).jobs() == []
    assert f"{SERIES}.json is no job" in caplog.text
