"""Damaged data sets and PDUs at the SCP: a status or an end, and it goes on serving. The whole is in `tests/long`."""

from __future__ import annotations

from dimse.fuzzing import fuzz


def test_the_scp_outlives_whatever_comes(tmp_path, caplog):
    answered = fuzz(tmp_path, caplog, datasets=400, conversations=100)
    assert answered.total() == 500
    assert answered["status 0x0000"] > 50 and answered["status 0xC000"] > 50 and answered["status 0xA900"] > 50
    assert answered["PDU type 2 first"] > 40, "most conversations should get as far as an association"
