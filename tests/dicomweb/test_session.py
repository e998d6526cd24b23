"""The one client of DICOMweb: patient data goes to the server that was named, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from dimse.nodes import make_slices
from iopfl.base.errors import PACSError
from iopfl.dicomweb import session
from iopfl.dicomweb.client import DICOMweb, Endpoint
from iopfl.dimse.outbox import send
from iopfl.dimse.rules import Stow
from recording import Recorder, recorder

BOTH = ["find", "store"]


@pytest.fixture
def pacs() -> Iterator[Recorder]:
    with recorder() as pacs:
        yield pacs


def ask(what: str, url: str) -> None:
    with closing(DICOMweb(Endpoint(url, name="the PACS", headers=lambda: {"Authorization": "Bearer t"}))) as client:
        if what == "find":
            client.find_series({}, limit=9)
        else:
            client.store(make_slices(1)[0])


@pytest.mark.parametrize("what", BOTH)
def test_no_proxy_and_no_account_of_the_environment_is_used(pacs, stranger, what):
    pacs.body = b"[]" if what == "find" else b"{}"
    ask(what, pacs.url)
    assert stranger.asked == []
    assert len(pacs.asked) == 1 and pacs.asked[0].endswith("Bearer t")


@pytest.mark.parametrize("proxy", [False, True], ids=["directly", "by the proxy that was configured"])
def test_the_listeners_stow_goes_where_the_rule_file_says(tmp_path, pacs, stranger, monkeypatch, proxy):
    monkeypatch.setenv("IOPFL_TEST_TOKEN", "secret")
    (ds,) = make_slices(1)
    ds.save_as(tmp_path / "instance.dcm", enforce_file_format=True)
    with recorder() as ours:
        pacs.body = ours.body = b"{}"
        to = Stow(pacs.url, token_env="IOPFL_TEST_TOKEN", proxy=ours.url if proxy else "")
        send([tmp_path / "instance.dcm"], to, ae_title="IOPFL")
        assert stranger.asked == []
        assert (len(ours.asked), len(pacs.asked)) == ((1, 0) if proxy else (0, 1))
        assert (ours.asked or pacs.asked)[0].endswith("Bearer secret")


@pytest.mark.parametrize("what", BOTH)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_server_is_not_followed(pacs, stranger, what, status):
    pacs.status, pacs.headers = status, {"Location": f"{stranger.url}/dicom-web"}
    with pytest.raises(PACSError, match="with a redirect to elsewhere"):
        ask(what, pacs.url)
    assert stranger.asked == []


def test_an_answer_without_end_is_not_read_to_its_end(pacs, monkeypatch):
    monkeypatch.setattr(session, "MAX_ANSWER", 1000)
    pacs.body = b"[" + b" " * 5000 + b"]"
    with pytest.raises(PACSError, match="without end"):
        ask("find", pacs.url)
