"""What `iopfl segment` says of an image while it works."""

from __future__ import annotations

import pytest

from iopfl.cli import commands
from iopfl.cli.passes import PassBar


@pytest.mark.parametrize(("seconds", "said"), [(0.01, False), (1.0, True)], ids=["small", "large"])
def test_what_a_large_image_will_take_is_said_once_beforehand(seconds, said, capsys):
    with PassBar("abdomen.nii.gz") as show:
        for done in range(0, 864, 4):
            show(done, 864, 864 * seconds)
    line = "abdomen.nii.gz: 864 passes of the network, about 14 min on this machine\n"
    assert capsys.readouterr().err == (line if said else "")


def test_who_interrupts_a_command_gets_one_line(monkeypatch, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("iopfl.cli.segment._segment", interrupt)
    assert commands.main(["segment", "a.nii", "--bank", "b", "-o", "c"]) == 130
    assert capsys.readouterr().err == "iopfl: stopped\n"
