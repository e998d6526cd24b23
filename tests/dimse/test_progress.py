"""`iopfl dicom queue` says how far the series at work is."""

from __future__ import annotations

import json

import pytest

from iopfl.cli import main
from iopfl.dimse.progress import read_progress
from iopfl.dimse.queue import State

from .nodes import eventually, make_slices, send_plainly, storage_peer
from .test_listening import Model, listening_node, state_of


def test_the_queue_says_how_far_the_series_at_work_is_and_nothing_afterwards(tmp_path, capsys):
    model, series = Model(), make_slices(2)
    uid = series[0].SeriesInstanceUID
    said = []

    def look(progress) -> None:
        progress(150, 600, 480.0)
        progress(151, 600, 480.0)  # at once: not written again
        for words in ([], ["--json"]):
            assert main(["dicom", "queue", "--state", str(tmp_path), *words]) == 0
            said.append(capsys.readouterr().out)

    model.tell = look
    with storage_peer() as pacs, listening_node(tmp_path / "dimse", model, pacs.port) as listener:
        send_plainly(listener.port, series)
        state_of(listener, uid, State.DONE)
        eventually(lambda: len(said) == 2, "the listings")
    line, programs = said
    assert f"{uid}  segmenting 25 %, 360 s left  " in line
    [job] = json.loads(programs)
    assert job["progress"] == {"series": uid, "done": 150, "passes": 600, "expected": 480.0}
    assert main(["dicom", "queue", "--state", str(tmp_path), "--json"]) == 0
    [job] = json.loads(capsys.readouterr().out)
    assert (job["state"], job["progress"]) == ("done", None)


@pytest.mark.parametrize(
    "content",
    ["", "[1]", '["1.2", 0, 0, null]', '["1.2", 5, 4, null]', '["1.2", 1, Infinity, 2]', '["1.2", 1, 2, NaN]'],
)
def test_a_damaged_file_of_progress_says_nothing(content, tmp_path):
    (tmp_path / "progress.json").write_text(content)
    assert read_progress(tmp_path) is None
