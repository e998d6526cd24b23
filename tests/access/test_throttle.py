"""How often somebody may try: a guesser waits ever longer, wherever the guesses come from; a user does not."""

from __future__ import annotations

import pytest

from iopfl.access import throttle as throttles
from iopfl.access.throttle import FREE_TRIES, LONGEST_WAIT, SECONDS, TRIES_OF_ALL, TRIES_OF_ONE, Throttle

DAY = 86400.0


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def throttle(now):
    return Throttle(clock=lambda: now[0])


def test_the_wait_ends_and_a_success_takes_the_tries_back(now, throttle):
    for _ in range(20):
        assert throttle.admit("a", "anna") == 0
        throttle.forgive("a", "anna")
    assert [throttle.admit("a", "anna") for _ in range(TRIES_OF_ONE)] == [0.0] * TRIES_OF_ONE
    assert throttle.admit("a", "anna") == SECONDS
    now[0] = SECONDS
    assert throttle.admit("a", "anna") == 0


def test_names_tried_in_turn_from_one_address_are_counted_together_and_not_for_ever(now, throttle, monkeypatch):
    monkeypatch.setattr(throttles, "_MOST_KEPT", 50)
    admitted = [throttle.admit("a", f"name{number}") == 0 for number in range(TRIES_OF_ALL + 5)]
    assert admitted == [True] * TRIES_OF_ALL + [False] * 5
    for number in range(500):
        now[0] += SECONDS
        throttle.admit(f"address{number}", f"name{number}")
        throttle.forgive(f"address{number}", f"name{number}")
        throttle.admit(f"address{number}", f"other{number}")
    assert max(len(throttle._tries), len(throttle._names), len(throttle._known)) <= 50


def guess_for(seconds, now, throttle, name="anna"):
    """Guess as fast as it goes, each time from another address; how often that was."""
    end, count = now[0] + seconds, 0
    while now[0] < end:
        wait = throttle.admit(f"10.{count >> 16}.{count >> 8 & 255}.{count & 255}", name)
        count += wait == 0
        now[0] += wait
    throttle.admit("10.255.255.255", name)
    return count


def test_a_day_of_guesses_from_everywhere_is_a_few_hundred(now, throttle):
    assert FREE_TRIES <= guess_for(DAY, now, throttle) <= DAY / LONGEST_WAIT + 20


@pytest.mark.parametrize("spelling", ["Anna", " anna", "ANNA "])
def test_another_spelling_of_a_name_is_no_other_name(now, throttle, spelling):
    guess_for(60, now, throttle, "anna")
    assert throttle.admit("10.255.0.1", spelling) > 0


def test_who_is_known_there_signs_in_while_a_stranger_guesses(now, throttle):
    throttle.admit("10.0.0.1", "anna")
    throttle.forgive("10.0.0.1", "anna")
    guess_for(3600, now, throttle)
    assert throttle.admit("10.0.0.1", "anna") == 0
    throttle.forgive("10.0.0.1", "anna")
    assert throttle.admit("10.0.0.2", "anna") > 0, "and takes nothing of the stranger's back"
    assert throttle.admit("10.0.0.2", "anna", device="hers") == 0


def test_where_a_user_is_known_there_are_few_tries_too(now, throttle):
    throttle.forgive("10.0.0.1", "anna")
    assert [throttle.admit("10.0.0.1", "anna") > 0 for _ in range(TRIES_OF_ONE + 2)] == [False] * TRIES_OF_ONE + [
        True
    ] * 2
    tried = [throttle.admit("10.0.0.9", "anna", device="hers") > 0 for _ in range(TRIES_OF_ONE + 2)]
    assert tried == [False] * TRIES_OF_ONE + [True] * 2


def test_a_user_who_waits_gets_in_once_the_stranger_is_gone(now, throttle):
    guess_for(DAY, now, throttle)
    now[0] += LONGEST_WAIT
    assert throttle.admit("10.0.0.1", "anna") == 0
    throttle.forgive("10.0.0.1", "anna")
    assert throttle.admit("10.0.0.2", "anna") == 0


def test_nobody_flushes_a_name_out_by_trying_others(now, throttle, monkeypatch):
    monkeypatch.setattr(throttles, "_MOST_KEPT", 50)
    guess_for(60, now, throttle)
    for number in range(500):
        throttle.admit(f"10.7.{number >> 8}.{number & 255}", f"name{number}")
    assert len(throttle._names) <= 50 and throttle.admit("10.255.0.1", "anna") > 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("", "", True),
    ],
)
def test_the_addresses_of_one_machine_are_one(throttle, one, other, same):
    for number in range(TRIES_OF_ALL):
        throttle.admit(one, f"name{number}")
    assert (throttle.admit(other, "anna") > 0) == same
