"""Batch inference goes on after an image that fails, and its last line tells which."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from iopfl.base.errors import SeriesError


@pytest.fixture
def run():
    from iopfl.compat import batch_infer

    batch_infer.apply()
    from monailabel.interfaces.tasks.batch_infer import BatchInferTask

    def run(images, failures, **request):
        def infer(request, datastore):
            if error := failures.get(request["image"]):
                raise error
            return {"params": {}}

        return BatchInferTask()({"device": "cpu", **request}, SimpleNamespace(list_images=lambda: images), infer)

    return run


@pytest.mark.parametrize("workers", [1, 2])
def test_what_failed_is_named_at_the_end_without_what_only_the_log_may_hold(run, caplog, workers):
    from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

    failures = {
        "b": SeriesError("b.nii.gz: no image"),
        "c": MONAILabelException(MONAILabelError.INVALID_INPUT, "c.nii.gz: no volume"),
        "d": ValueError("/srv/patients/DOE.nii"),
    }
    with caplog.at_level(logging.WARNING, "iopfl"):
        found = run(["a", "b", "c", "d"], failures, max_workers=workers)
    assert "error" not in found["a"]
    expected = {"b": "b.nii.gz: no image", "c": "c.nii.gz: no volume", "d": "failed with ValueError"}
    assert {image: found[image]["error"] for image in expected} == expected
    told = caplog.records[-1].getMessage()
    assert told.startswith("3 of 4 images have no answer: b: b.nii.gz: no image") and "DOE" not in told
    assert [record.exc_info is not None and bool(record.exc_info) for record in caplog.records].count(True) == 1


def test_a_batch_without_one_answer_has_failed(run):
    with pytest.raises(SeriesError, match=r"every image failed, the first with: b\.nii\.gz: no image"):
        run(["b"], {"b": SeriesError("b.nii.gz: no image")}, max_workers=1)
