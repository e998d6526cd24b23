"""What is being computed: listed while it is, told how far it is, stopped when it is to be."""

from __future__ import annotations

from iopfl.base.running import Running, asked_by, has_left


def test_an_answer_is_listed_until_it_is_there():
    running = Running()
    with running.follow("prostate", "case1", "anna") as mine:
        (listed,) = running.answers()
        assert listed is mine is running.find(mine.number)
        assert listed.describe()["state"] == "waiting"
        mine.progress(2, 8, 3.14)
        about = mine.describe()
        assert (about["state"], about["done"], about["passes"], about["percent"]) == ("computing", 2, 8, 25.0)
        assert about["expected"] == 3.1
    assert not running.answers()
    assert running.find(mine.number) is None


def test_what_an_answer_is_made_within_is_the_same_one():
    running = Running()
    with running.follow("prostate", "case1") as outer, running.follow("prostate", "file.nii") as inner:
        assert inner is outer
        assert len(running.answers()) == 1


def test_it_is_stopped_when_told_to_or_when_who_asked_has_left():
    running, left = Running(), []
    token = has_left.set(lambda: bool(left))
    try:
        with running.follow("prostate", "a") as told:
            assert not told.cancelled()
            told.cancel()
            assert told.cancelled()
        with running.follow("prostate", "b") as abandoned:
            assert not abandoned.cancelled()
            left.append(1)
            assert abandoned.cancelled()
    finally:
        has_left.reset(token)


def test_who_signed_in_counts_more_than_what_a_program_says():
    token = asked_by.set(lambda: "anna")
    try:
        with Running().follow("prostate", "a", "somebody else") as mine:
            assert mine.who == "anna"
    finally:
        asked_by.reset(token)
