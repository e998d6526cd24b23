"""What FLARE may do with a kit: the rights and classes that a run needs, exactly."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.security.security import COMMAND_CATEGORIES, FLAuthorizer

from fl_bridge.cli import main
from fl_bridge.federation_file import read_federation
from fl_bridge.kit_policy import CLASSES, update_kit
from fl_bridge.provision import provision
from iopfl.base.errors import ConfigError

NEEDED = {"site": {"submit_job", "abort_job"}, "server": {"submit_job", "abort_job", "get_job_meta", "check_status"}}
ASKED = {
    *COMMAND_CATEGORIES,
    *COMMAND_CATEGORIES.values(),
    "submit_job",
    "clone_job",
    "byoc",
    "server-predeployed-flwr",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    sites = {name: {"share_personalized": True} for name in ("A", "B")}
    settings = {"name": "retina", "task": "vessel", "server": {"host": "localhost"}, "rounds": 1, "sites": sites}
    (folder / "federation.yaml").write_text(json.dumps(settings))
    provision(read_federation(folder / "federation.yaml"), folder / "kits")
    return folder / "kits"


@pytest.fixture
def kits(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "kits"))


@pytest.mark.parametrize("role", ["site", "server"])
def test_nobody_may_ask_for_more_than_a_run_needs(kits, role):
    folder = kits / ("A" if role == "site" else "server")
    # The file that FLARE reads; there is no other that would count before it.
    found = Workspace(str(folder), "A").get_authorization_file_path()
    authorizer = FLAuthorizer("consortium", json.loads(Path(found).read_text()))
    for person in ("project_admin", "org_admin", "lead", "member"):
        admin = Person("admin@consortium.org", "consortium", person)
        given = {right for right in ASKED if authorizer.authorize(AuthzContext(right, admin, admin))[0]}
        assert given == (NEEDED[role] if person == "project_admin" else set())


def test_a_site_builds_exact_classes(kits):
    for path in (*CLASSES["site"], *CLASSES["server"]):
        module, _, name = path.rpartition(".")
        assert "quantization" in module or hasattr(importlib.import_module(module), name)
    workspace = Workspace(str(kits / "A"), "A")
    authorizer = ComponentPathAuthorizer()
    for path in CLASSES["site"]:
        authorizer.authorize_component_config({"path": path}, workspace=workspace)
    for path in ("fl_bridge.trainer.InProcessTrainer", "fl_bridge.label_server_trainer.requests.get", "os.system"):
        with pytest.raises(UnsafeComponentError):
            authorizer.authorize_component_config({"path": path}, workspace=workspace)


def test_an_older_kit_is_brought_up_to_date_once(kits, capsys):
    kit = kits / "A"
    settings = (kit / "local" / "site.yaml").read_bytes()
    (kit / "local" / "authorization.json").unlink()
    resources = json.loads((kit / "local" / "resources.json").read_text())
    resources["class_allow_list"].append("fl_bridge.")
    (kit / "local" / "resources.json").write_text(json.dumps(resources))
    (kit / "startup" / "start.sh").write_text("python -m nvflare.private.fed.app.client.client_train")
    assert main(["update", str(kit)]) == 0
    assert capsys.readouterr().out == (
        f"{kit}: brought up to date: local/authorization.json, local/resources.json, startup/start.sh removed\n"
    )
    assert main(["update", str(kit)]) == 0
    assert capsys.readouterr().out == f"{kit}: up to date\n"
    assert (kit / "local" / "site.yaml").read_bytes() == settings
    assert "fl_bridge." not in json.loads((kit / "local" / "resources.json").read_text())["class_allow_list"]
    assert not list(kit.glob("startup/*.sh"))


@pytest.mark.parametrize(
    "name",
    ["local/custom/theirs.py", "local/privacy.json", "local/x__p_resources.json", "startup/x__resources.json"],
)
def test_a_kit_that_brings_code_is_refused(kits, name, capsys):
    (kits / "A" / name).parent.mkdir(exist_ok=True)
    (kits / "A" / name).write_text("{}")
    with pytest.raises(ConfigError, match="ask who put it there"):
        update_kit(kits / "A")
    assert main(["site", str(kits / "A")]) == 2
    assert "ask who put it there" in capsys.readouterr().err


def test_a_kit_whose_start_settings_name_classes_is_refused(kits):
    file = kits / "A" / "startup" / "fed_client.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "components": [{"id": "x", "path": "os.system"}]}))
    with pytest.raises(ConfigError, match=r"fed_client\.json: components"):
        update_kit(kits / "A")
