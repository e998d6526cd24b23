"""10,000 damaged data sets and PDUs at a running SCP; the counts are for the closing note."""

from __future__ import annotations

import json

import pytest

from dimse.fuzzing import fuzz

pytestmark = pytest.mark.long


def test_ten_thousand_damaged_things(tmp_path, caplog):
    answered = fuzz(tmp_path, caplog, datasets=7000, conversations=3000, first=1_000_000)
    print(json.dumps(answered))  # noqa: T201  # pytest -s
    assert answered.total() == 10_000
