"""A federation as a consortium deploys it: kits, mutual TLS, label servers, and a bank at the end."""

from __future__ import annotations

import pytest

from iopfl.base.reasons import Reason
from iopfl.core.bank.bank import ModelBank
from iopfl.core.bank.signing import Keyring

from .conftest import SITES
from .production import bridge, production

ROUNDS = 2


@pytest.fixture
def federation(data, task_file, tmp_path):
    with production(tmp_path, task_file, data, SITES) as running:
        yield running


def test_rounds_over_mutual_tls_make_a_bank_that_is_served_everywhere(federation):
    federation.provision({"rounds": ROUNDS, "min_sites": 3}, {"south": {"share_personalized": False}})
    assert "waiting" not in bridge("provision", federation.folder / "federation.yaml", "-o", federation.folder / "kits")
    federation.start_all()
    state = federation.run_to_the_end(200)

    assert [entry["round_index"] for entry in state.rounds] == list(range(ROUNDS))
    for entry in state.rounds:
        assert {fate["status"] for fate in entry["sites"].values()} == {"averaged"}
    bank = ModelBank.open(federation.server_kit / "bank", keys=Keyring(federation.server_kit / "keys"))
    assert bank.names == ["global", "ISBI_1.5", "north"], "south keeps its personalized model"
    status = federation.status()
    assert status["shared"]["sites"]["south"]["reason"] == Reason.WITHHELD
    assert not status["running"] and status["shares_at_provisioning"]["south"] is False
    check_that_no_site_is_named(federation)
    for site, server in federation.servers.items():
        assert status["shared"]["published"][site] == bank.label
        answer = server.post("/infer/disk?image=case00&output=json", data={"params": "{}"}).json()
        assert answer["model"] in ("global", "personalized") and answer["bank"] == bank.label


def check_that_no_site_is_named(federation):
    """Nothing that came to the server names a folder of a site."""
    folders = [str(federation.folder / name).encode() for name in ("kits/north", "north", "sites/north")]
    for path in federation.server_kit.rglob("*"):
        assert not path.is_file() or not any(folder in path.read_bytes() for folder in folders), path
