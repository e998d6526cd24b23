"""The queue of inferences: nobody waits behind all of another's, and no more wait than it says."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from iopfl import compat

compat.apply_early()  # before MONAI Label is imported

from iopfl.base.errors import BusyError  # noqa: E402
from iopfl.compat.plain_errors import RETRY_SECONDS, status_of  # noqa: E402
from iopfl.labels import annotators  # noqa: E402
from iopfl.lib.base_app import BaseApp  # noqa: E402
from iopfl.lib.inference_queue import InferenceQueue  # noqa: E402
from label_server import wait_until  # noqa: E402


class Crowd:
    """People at a queue: `order` is who got a turn, one after the other."""

    def __init__(self, queue: InferenceQueue) -> None:
        self._queue = queue
        self.order: list[str] = []
        self.inside = Counter()
        self.most = 0
        self._threads: list[threading.Thread] = []

    def ask(self, who: str, until: threading.Event | None = None) -> None:
        """Ask for a turn in a thread; returns once it waits, or has its turn."""
        before = len(self._queue._waiting.get(who, ())) + len(self.order)

        def wait_and_run() -> None:
            with self._queue.turn(who):
                self.order.append(who)
                self.inside["now"] += 1
                self.most = max(self.most, self.inside["now"])
                if until is not None:
                    until.wait(30)
                self.inside["now"] -= 1

        thread = threading.Thread(target=wait_and_run, daemon=True)
        thread.start()
        self._threads.append(thread)
        wait_until(lambda: len(self._queue._waiting.get(who, ())) + len(self.order) > before, 30, what="the queue")

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


def test_people_take_turns_and_each_ones_own_requests_keep_their_order():
    crowd, gate = Crowd(InferenceQueue(running=1)), threading.Event()
    crowd.ask("first", gate)
    for who in ("busy", "busy", "busy", "calm", "other"):
        crowd.ask(who)
    gate.set()
    crowd.finish()
    assert crowd.order == ["first", "busy", "calm", "other", "busy", "busy"]
    assert crowd.most == 1


def test_as_many_run_at_once_as_it_says():
    crowd, gate = Crowd(InferenceQueue(running=2)), threading.Event()
    for who in "abc":
        crowd.ask(who, gate)
    assert crowd.order == ["a", "b"]
    gate.set()
    crowd.finish()
    assert crowd.most == 2


def test_beyond_the_bound_one_is_told_to_come_back_and_a_place_that_was_left_is_free_again():
    queue = InferenceQueue(running=1, waiting=2)
    crowd, gate = Crowd(queue), threading.Event()
    crowd.ask("a", gate)
    crowd.ask("b")
    crowd.ask("c")
    with pytest.raises(BusyError, match="2 inferences are waiting already: try again") as refused, queue.turn("d"):
        pass
    assert status_of(refused.value) == 503
    assert int(RETRY_SECONDS) > 0
    gate.set()
    crowd.finish()
    with queue.turn("d"), queue.turn("d"):  # the second of a thread is free: no deadlock
        crowd.order.append("d")
    assert crowd.order == ["a", "b", "c", "d"]


def test_an_inference_that_fails_gives_its_turn_back():
    queue = InferenceQueue(running=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), queue.turn():
            raise ZeroDivisionError
    with queue.turn():
        pass


@pytest.mark.parametrize(("signed_in", "waits"), [("mallory", "mallory"), (None, "anna")])
def test_who_has_signed_in_waits_under_no_other_name(signed_in, waits):
    """Whatever else a request says: under many names somebody had many turns, and was shown as somebody else."""
    asked = []

    class Noting(InferenceQueue):
        def turn(self, who: str = ""):
            asked.append(who)
            return super().turn(who)

    app = object.__new__(BaseApp)  # none of what a server's app needs
    app._queue = Noting(1)
    token = annotators._annotator.set(signed_in)
    try:
        with pytest.raises(AttributeError):
            app.infer({"model": "gland", "client_id": "anna", "image": "case"})
    finally:
        annotators._annotator.reset(token)
    assert asked == [waits]


def test_one_who_holds_every_place_gives_the_newest_to_others():
    queue = InferenceQueue(running=1, waiting=4)
    crowd, gate, refused = Crowd(queue), threading.Event(), []

    def ask_and_be_refused(number: int) -> None:
        try:
            with queue.turn("greedy"):
                crowd.order.append(f"greedy {number}")
        except BusyError:
            refused.append(number)

    crowd.ask("first", gate)
    greedy = [threading.Thread(target=ask_and_be_refused, args=(number,), daemon=True) for number in range(4)]
    for count, thread in enumerate(greedy, start=1):
        thread.start()
        wait_until(lambda count=count: len(queue._waiting.get("greedy", ())) == count, 30, what="the queue")
    crowd.ask("calm")
    wait_until(lambda: refused, 30, what="the refusal")
    with pytest.raises(BusyError), queue.turn("greedy"):  # who has most takes nobody's place
        pass
    gate.set()
    crowd.finish()
    for thread in greedy:
        thread.join(30)
    assert sorted(crowd.order) == ["calm", "first", "greedy 0", "greedy 1", "greedy 2"]
    assert refused == [3]
