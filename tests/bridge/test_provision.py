"""Kits, and what a federation's and a site's file may say."""

from __future__ import annotations

import json
import stat
from dataclasses import replace

import pytest
import yaml

from fl_bridge.federation_file import read_federation
from fl_bridge.processes import run_kit
from fl_bridge.provision import provision
from fl_bridge.server_kit import read_settings
from fl_bridge.site_policy import SitePolicy
from iopfl.base.errors import ConfigError

SHARES = {"share_personalized": True}
SETTINGS = {
    "name": "retina",
    "task": "vessel",
    "server": {"host": "localhost", "port": 8002},
    "rounds": 3,
    "sites": {
        "DRIVE": {"share_personalized": True},
        "St. Mary's": {"share_personalized": False, "clip": 1, "noise": 0.5},
    },
}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        path = tmp_path / "federation.yaml"
        path.write_text(yaml.safe_dump({**SETTINGS, **changes}))
        return path

    return write


def test_a_kit_for_every_site_and_the_server(write, tmp_path):
    federation = read_federation(write())
    kits = provision(federation, tmp_path / "kits")
    assert kits.made == ("server", "DRIVE", "St-Mary-s") and kits.kept == ()
    settings = read_settings(tmp_path / "kits" / "server")
    assert settings == replace(federation, federation=settings.federation)
    assert SitePolicy.read(tmp_path / "kits" / "St-Mary-s" / "local") == SitePolicy(
        settings.federation, ("vessel",), False, max_rounds=3, clip=1.0, noise=0.5
    ), "a site agrees to the federation's rounds"
    for kit in ("server", "DRIVE", "St-Mary-s"):
        folder = tmp_path / "kits" / kit
        resources = json.loads((folder / "local" / "resources.json").read_text())
        assert not any(name.endswith(".") for name in resources["class_allow_list"]), "exact classes, no packages"
        assert resources["class_list_enforcement_mode"] == "enforce"
        components = {component["id"] for component in resources["components"]}
        assert not components & {"site_log_streamer", "log_receiver"}, "logs stay at the site"
        (launcher,) = (item["path"] for item in resources["components"] if item["id"] == "process_launcher")
        assert launcher.startswith("fl_bridge."), "FLARE's job processes are restricted as their parent is"
        assert not resources.get("allow_log_streaming")
        assert "/tmp/nvflare" not in json.dumps(resources)
        keys = list(folder.rglob("*.key"))
        assert keys and all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in keys)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list(folder.glob("fl-bridge-*.service"))


def test_a_site_that_joins_later_gets_a_kit_of_the_same_authority(write, tmp_path):
    provision(read_federation(write()), tmp_path / "kits")
    certificate = (tmp_path / "kits" / "DRIVE" / "startup" / "client.crt").read_bytes()
    sites = {**SETTINGS["sites"], "HRF": {"share_personalized": True}}
    kits = provision(read_federation(write(sites=sites, rounds=9)), tmp_path / "kits")
    assert kits.made == ("HRF",) and "DRIVE" in kits.kept
    authorities = {
        (tmp_path / "kits" / kit / "startup" / "rootCA.pem").read_bytes() for kit in ("HRF", "DRIVE", "server")
    }
    assert len(authorities) == 1
    assert (tmp_path / "kits" / "DRIVE" / "startup" / "client.crt").read_bytes() == certificate
    assert read_settings(tmp_path / "kits" / "server").rounds == 9
    with pytest.raises(ConfigError, match="kits of another federation"):
        provision(read_federation(write(name="other")), tmp_path / "kits")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sites": {"A": {}, "B": {"share_personalized": True}}}, "an explicit choice"),
        ({"sites": {"A": {"share_personalized": "yes"}, "B": {"share_personalized": True}}}, "an explicit choice"),
        ({"sites": {"A": {"share_personalized": True}}}, "two sites at least"),
        ({"sites": {"A b": {"share_personalized": True}, "A-b": {"share_personalized": True}}}, "differ in letters"),
        ({"sites": {"A": {**SHARES, "noise": 1}, "B": SHARES}}, "needs a clip"),
        ({"sites": {"A": {**SHARES, "clip": float("nan")}, "B": SHARES}}, "clip: expected a number from 0"),
        ({"sites": {"A": {**SHARES, "share_days": float("inf")}, "B": SHARES}}, "share_days: expected a number"),
        (
            {"sites": {"A": {"share_personalised": True}, "B": {"share_personalized": True}}},
            "unknown share_personalised",
        ),
        ({"rounds": 0}, "rounds: expected int"),
        ({"rounds": True}, "rounds: expected int"),
        ({"aggregation": "mean"}, "expected one of weighted_average"),
        ({"quantize": "int4"}, "expected one of none, float16"),
        ({"weight_limit": 1.5}, "weight_limit: expected float in its range"),
        ({"weight_limit": True}, "weight_limit: expected float in its range"),
        ({"server": "localhost"}, "expected server:"),
        ({"name": "a b"}, "expected letters, digits"),
        ({"round": 3}, "unknown round"),
        ({"task": "liver"}, "liver"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(write, changes, words):
    with pytest.raises(ConfigError, match=words):
        read_federation(write(**changes))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"share_personalized: [true\nclip: 1\n", r"no valid YAML in line 2: "),
        (b"max_rounds: 1\n\tclip: 1\n", r"no valid YAML in line 2: "),
        (b"share_personalized: \xff", "expected text in UTF-8"),
        (b"expires: 2026-13-45", "no valid YAML: "),
        (b"[" * 5000, "nested too deep"),
        (b"- a\n- b\n", "expected 'key: value' lines"),
    ],
)
def test_what_is_no_yaml_is_said_in_one_line_with_its_place(tmp_path, content, words):
    for name, read in (("site.yaml", lambda path: SitePolicy.read(path.parent)), ("federation.yaml", read_federation)):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"{name}.*{words}") as refused:
            read(path)
        assert "\n" not in str(refused.value)


def test_a_folder_that_is_no_kit_is_refused(tmp_path):
    for role in ("server", "site"):
        with pytest.raises(ConfigError, match=f"expected the kit of a {role}"):
            run_kit(tmp_path, role)
    with pytest.raises(ConfigError, match="kit of a federation's server"):
        read_settings(tmp_path)
