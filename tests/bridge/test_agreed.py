"""A site takes part in the one federation, and trains the tasks, that its own administrator agreed to."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from fl_bridge.cli import main
from fl_bridge.exchange import BANK_PARAM, TASK_PUBLISH, TASK_SHARE, TASK_TRAIN
from fl_bridge.federation_file import read_federation
from fl_bridge.label_server_trainer import LabelServerTrainer
from fl_bridge.provision import provision
from fl_bridge.server_kit import read_settings
from fl_bridge.site_policy import SitePolicy
from fl_bridge.supervisor import open_state
from iopfl.base.errors import ConfigError
from iopfl.base.reasons import Reason
from iopfl.core.order import Order, SharedModel, SiteUpdate

from .kit import FEDERATION, TASK, Kit

BASE = {"weight": torch.zeros(8)}
AWAY = "http://127.0.0.1:9"
SITES = {name: {"share_personalized": True} for name in ("north", "south")}
SETTINGS = {"name": "retina", "task": "vessel", "server": {"host": "localhost"}, "rounds": 3, "sites": SITES}


class CountingTrainer:
    """A site's trainer that notes what it was asked for."""

    def __init__(self):
        self.asked = []

    def configure(self, policy, folder):
        pass

    def train(self, global_weights, order, *, cancelled):
        self.asked.append(TASK_TRAIN)
        return SiteUpdate({"weight": torch.ones(8)}, 9, {})

    def personalized(self, global_weights, order, *, cancelled):
        self.asked.append(TASK_SHARE)
        return SharedModel({"weight": torch.ones(8)}, 0, 9, {})

    def publish(self, bank):
        self.asked.append(TASK_PUBLISH)
        return "1-0123456789ab"


def ask_all(kit, order):
    """What the site says to each task of an order."""
    params = {TASK_PUBLISH: {BANK_PARAM: torch.ones(4, dtype=torch.uint8).numpy()}}
    given = {"weight": BASE["weight"].numpy()}
    replies = [
        kit.send(task, params.get(task, given), order.to_meta()) for task in (TASK_TRAIN, TASK_SHARE, TASK_PUBLISH)
    ]
    return {reply.get_header("fl_bridge.reason") for reply in replies}


@pytest.mark.parametrize("agreed", [FEDERATION, ""])
def test_another_federations_orders_are_refused_and_count_nothing(tmp_path, agreed):
    trainer = CountingTrainer()
    kit = Kit(tmp_path, trainer, federation=agreed)
    for other in ("fed-2", "fed-10", "FED-1"):
        assert ask_all(kit, Order(other, 0, "base")) == {Reason.NOT_AGREED}
    assert not trainer.asked and not (tmp_path / "shares").exists()
    assert ask_all(kit, Order(FEDERATION, 0, "base")) == ({None} if agreed else {Reason.NOT_AGREED})


@pytest.mark.parametrize("agreed", [("liver", "vessel"), ()])
def test_a_job_for_another_task_is_refused_before_the_label_server_is_asked(tmp_path, agreed):
    trainer = LabelServerTrainer(TASK)
    asked = []
    trainer._send = lambda *args, **kwargs: asked.append(args)
    kit = Kit(tmp_path, trainer, tasks=agreed, label_server=AWAY)
    assert ask_all(kit, Order(FEDERATION, 0, "base")) == {Reason.NOT_AGREED}
    assert not asked


def test_no_weights_are_sent_for_a_model_that_the_site_has_not(tmp_path):
    trainer = CountingTrainer()
    kit = Kit(tmp_path, trainer)
    assert kit.ask(BASE, Order(FEDERATION, 7, "base"), TASK_SHARE) == Reason.NO_MODEL
    assert not trainer.asked
    kit.ask(BASE, Order(FEDERATION, 7, "base"), TASK_TRAIN)
    assert isinstance(kit.ask(BASE, Order(FEDERATION, 7, "base"), TASK_SHARE), dict)


@pytest.fixture
def federation(tmp_path):
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return read_federation(path)


def test_kits_name_the_federation_that_is_then_run(federation, tmp_path):
    provision(federation, tmp_path / "kits")
    state = open_state(tmp_path / "kits" / "server")
    for site in SITES:
        policy = SitePolicy.read(tmp_path / "kits" / site / "local")
        assert (policy.federation, policy.tasks) == (state.federation, ("vessel",))
    provision(federation, tmp_path / "kits")
    assert read_settings(tmp_path / "kits" / "server").federation == state.federation, "the same ever after"


def test_older_kits_are_completed_and_nothing_else_of_theirs_changes(federation, tmp_path, capsys):
    kits = tmp_path / "kits"
    provision(federation, kits)
    open_state(kits / "server")
    settings = json.loads((kits / "server" / "federation.json").read_text())
    identity = settings.pop("federation")
    (kits / "server" / "federation.json").write_text(json.dumps(settings))
    older = "# ours\nshare_personalized: false  # the board's decision\nmax_rounds: 7\n"
    for site in SITES:
        (kits / site / "local" / "site.yaml").write_text(older)
    kit = str(kits / "north")
    assert main(["update", kit]) == 0
    assert f"fl-bridge update {kit} --federation ID --task NAME" in capsys.readouterr().err
    assert main(["update", kit, "--federation", "vessel-1"]) == 2
    assert main(["update", kit, "--federation", "vessel-1", "--task", "../x"]) == 2
    assert (kits / "north" / "local" / "site.yaml").read_text() == older
    assert main(["update", kit, "--federation", "vessel-1", "--task", "vessel", "--task", "disk"]) == 0
    text = (kits / "north" / "local" / "site.yaml").read_text()
    assert text.startswith(older) and yaml.safe_load(text)["tasks"] == ["vessel", "disk"]
    assert main(["update", kit, "--federation", "vessel-1", "--task", "vessel", "--task", "disk"]) == 0
    assert capsys.readouterr().out.endswith(f"{kit}: up to date\n")
    assert main(["update", kit, "--federation", "vessel-2", "--task", "vessel"]) == 2
    assert "names federation and tasks already" in capsys.readouterr().err
    assert main(["update", str(kits / "server"), "--federation", "vessel-2", "--task", "vessel"]) == 2

    provision(federation, kits)
    assert SitePolicy.read(kits / "north" / "local").federation == "vessel-1", "what its administrator wrote stays"
    assert (kits / "south" / "local" / "site.yaml").read_text().startswith(older)
    policy = SitePolicy.read(kits / "south" / "local")
    assert (policy.federation, policy.tasks) == (identity, ("vessel",)), "that of the rounds that were begun"


@pytest.mark.parametrize(
    "values", [{"tasks": "vessel"}, {"tasks": ["../x"]}, {"tasks": [1]}, {"federation": ["a"]}, {"federation": "a/b"}]
)
def test_what_is_agreed_to_is_named_plainly(values):
    with pytest.raises(ConfigError, match="expected"):
        SitePolicy.from_dict({"share_personalized": True, **values}, what="site.yaml")
