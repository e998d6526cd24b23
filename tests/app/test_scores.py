"""Choosing the next image and scoring: of whole stores, some of whose images cannot be had."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from iopfl.base.errors import PACSAwayError, PACSError, SeriesError


class Models:
    """Answers without computing, one image at a time."""

    def __init__(self) -> None:
        self.computing = threading.Lock()
        bank = SimpleNamespace(label="bank-1")
        answer = SimpleNamespace(quality=0.5, model="global", bank=bank.label)
        self.found = SimpleNamespace(
            bank=bank,
            task="task",
            agreement=lambda path: 0.5,
            segment=lambda path, **options: SimpleNamespace(answer=answer),
        )

    @contextmanager
    def lock(self, task_name: str):
        with self.computing:
            yield

    def predictor(self, task_name: str):
        return self.found


class Store:
    """Images and labels that are fetched first, as from a PACS."""

    def __init__(self, models: Models, **failures: Exception) -> None:
        self.models, self.failures, self.info = models, failures, {}

    def list_images(self):
        return ["a", "b"]

    get_labeled_images = get_unlabeled_images = list_images

    def get_image_uri(self, image: str) -> str:
        assert not self.models.computing.locked(), "nobody waits for a download to be answered"
        if image in self.failures:
            raise self.failures[image]
        return image

    def get_label_uri(self, image: str, tag: str) -> str:
        return self.get_image_uri(image)

    def get_label_info(self, image: str, tag: str) -> dict:
        return {"tasks": ["gland"]}

    def update_image_info(self, image: str, info: dict) -> None:
        self.info[image] = info


@pytest.fixture
def models() -> Models:
    from iopfl.compat import apply_tasks

    apply_tasks()
    return Models()


def test_an_image_that_cannot_be_had_just_now_is_not_put_last_for_good(models, monkeypatch):
    from iopfl.lib import activelearning

    choose = activelearning.ExpertDisagreement(models, "gland")
    with pytest.raises(PACSAwayError):
        choose({}, Store(models, a=PACSAwayError("away"), b=PACSAwayError("away")))
    monkeypatch.setattr(models.found, "agreement", lambda path: 0.9)
    assert choose({}, Store(models, b=SeriesError("broken")))["id"] == "a"


def test_one_label_that_cannot_be_had_leaves_the_scores_of_the_others(models, monkeypatch):
    from iopfl.lib import scoring

    monkeypatch.setattr(
        scoring, "score_case", lambda result, case, task: SimpleNamespace(dice={"gland": 0.8}, **vars(result))
    )
    store = Store(models, a=PACSError("gone"))
    assert scoring.SubmittedDice(models, "gland")({}, store) == {"images": 1, "mean": 0.8}
    assert list(store.info) == ["b"]
    assert scoring.ExpertAgreement(models, "gland")({}, store) == {"images": 1, "mean": 0.5}


def test_a_label_for_another_task_is_not_scored(models):
    from iopfl.lib import scoring

    assert scoring.SubmittedDice(models, "lesion")({}, Store(models)) == {"images": 0, "mean": 0.0}
