"""The whole way on real images: kits, three hospitals, three rounds over mutual TLS, and a fourth that took no part."""

from __future__ import annotations

import json
import shutil

import pytest

from bridge.production import production
from iopfl.cli.pull import pull_bank
from iopfl.core.bank.bank import ModelBank
from iopfl.core.bank.signing import Keyring
from label_server import PACKAGES, running_server

INSIDE, OUTSIDE, ROUNDS = ("DRIVE", "HRF", "STARE"), "CHASE_DB1", 3
TASK = """
base: vessel
size: [128, 128]
network:
  name: BasicUNet
  args: {features: [8, 8, 16, 32, 64, 8], norm: batch, act: relu, upsample: deconv}
training: {local_steps: 10}
"""


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_three_hospitals_make_a_bank_and_a_fourth_is_served_by_it(shared_data, tmp_path):
    sites = tmp_path / "sites"
    shutil.copytree(shared_data / "retina-vessel", sites, copy_function=shutil.copyfile)
    (tmp_path / "vessel.yaml").write_text(TASK)
    with production(tmp_path, tmp_path / "vessel.yaml", sites, INSIDE) as federation:
        federation.provision({"rounds": ROUNDS, "rounds_per_job": ROUNDS, "min_sites": 3})
        federation.start_all()
        state = federation.run_to_the_end(600)
        assert [entry["round_index"] for entry in state.rounds] == list(range(ROUNDS))
        assert {fate["status"] for entry in state.rounds for fate in entry["sites"].values()} == {"averaged"}
        losses = [sum(fate["loss"] for fate in entry["sites"].values()) for entry in state.rounds]
        assert losses[-1] < losses[0]

        keys = Keyring(tmp_path / OUTSIDE / "keys")
        keys.trust(Keyring(federation.server_kit / "keys").public_key)
        bank, url = tmp_path / OUTSIDE / "bank", federation.servers["DRIVE"].url
        assert pull_bank(f"{url}/iopfl/banks/vessel.iopfl", bank, keys=keys)
    assert ModelBank.open(bank, keys=keys).names == ["global", *INSIDE]
    conf = {"bank": bank, "keys": tmp_path / OUTSIDE / "keys"}
    state = tmp_path / OUTSIDE / "state"
    with running_server(PACKAGES / "iopfl", sites / OUTSIDE, state=state, conf=conf) as server:
        answer = server.post("/infer/vessel_routed?image=Image_01L&output=json", data={"params": json.dumps({})})
        assert answer.ok, answer.text
        assert answer.json()["model"] == "routed"
        assert set(answer.json()["routing_weights"]) == {"global", *INSIDE}
