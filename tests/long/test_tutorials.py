"""The tutorials' commands and files, one after the other, each in an empty folder with a home of its own.

What is left out: setting up, what the benchmark takes hours for, and most of the rounds.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

REPOSITORY = Path(__file__).parents[2]
TUTORIALS = REPOSITORY / "docs" / "tutorials"
PASSWORD = "a long enough password"
SECONDS = 600
ELSEWHERE = ("make ", ". .venv", "mkdir ", "cd ", ".venv/bin/python benchmarks/")
"""Begins of lines that are for the reader's clone."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


class Reader:
    """Somebody who does what a page says, in a folder of their own.

    Attributes:
        folder: the working directory.
        said: what the commands printed, by command.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        self.said: dict[str, str] = {}
        commands = folder / "commands"
        commands.mkdir()
        for name, module in (("iopfl", "iopfl.cli"), ("fl-bridge", "fl_bridge.cli")):
            (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
            (commands / name).chmod(0o755)
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHONPATH": f"{REPOSITORY / 'apps'}:{REPOSITORY}",
        }
        self._environment.pop("XDG_CONFIG_HOME", None)

    def follow(self, page: Path, until: str = "") -> None:
        """Write the page's files and run its commands, up to a heading."""
        text = page.read_text(encoding="utf-8").partition(until or "\0")[0]
        for language, content in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            if language == "yaml":
                name = content.partition("\n")[0].removeprefix("# ")
                (self.folder / name).write_text(content, encoding="utf-8")
            elif language == "python":
                (self.folder / "program.py").write_text(content, encoding="utf-8")
                self.run(f"'{sys.executable}' program.py")
            else:
                for line in content.splitlines():
                    if not line.startswith((*ELSEWHERE, "iopfl serve")):
                        self.run(line)

    def run(self, line: str) -> None:
        """Run a command, which must succeed."""
        command = re.sub(r"--rounds \d+", "--rounds 2", line)
        if " KEY " in command:
            command = command.replace(" KEY ", f" {self.said['iopfl bank key'].strip()} ")
        if line.startswith("iopfl users add"):
            command += " --password-stdin"
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env=self._environment,
            input=PASSWORD + "\n",
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        self.said[line] = done.stdout

    @contextmanager
    def serving(self, page: Path) -> Iterator[str]:
        """The page's label server, at a free port; yields its address."""
        (line,) = re.findall(r"^iopfl serve .*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        words = ["exec", line, "--port", "0"]
        with (self.folder / "server.log").open("w") as log:
            server = subprocess.Popen(
                " ".join(words),
                shell=True,
                cwd=self.folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            yield next(said.strip() for said in server.stdout or () if said.startswith("http"))
        finally:
            server.terminate()
            server.wait(timeout=60)


def test_a_consortium_and_an_administrator_who_takes_its_bank(tmp_path):
    reader = Reader(tmp_path)
    reader.follow(TUTORIALS / "consortium.md")
    assert (reader.folder / "prostate.iopfl").is_file()
    assert {path.name for path in (reader.folder / "kits").iterdir()} >= {"server", "site-a", "site-b", "site-c"}
    assert len(reader.said["iopfl bank key"].strip()) == 44

    page = TUTORIALS / "administrator.md"
    reader.follow(page, until="## 3. ")
    with reader.serving(page) as url:
        assert requests.get(f"{url}/info/", timeout=60).status_code == 401
        who = {"username": "anna", "password": PASSWORD}
        token = requests.post(f"{url}/auth/token", data=who, timeout=60).json()["access_token"]
        told = requests.get(f"{url}/info/", headers={"Authorization": f"Bearer {token}"}, timeout=60).json()
        assert {"prostate", "prostate_routed"} <= told["models"].keys()
    for line in ("iopfl audit show --state hospital/state", "iopfl audit verify --state hospital/state"):
        assert line in page.read_text(encoding="utf-8")
        reader.run(line)
    assert "anna" in reader.said["iopfl audit show --state hospital/state"]


def test_a_researcher(tmp_path):
    reader = Reader(tmp_path)
    reader.follow(TUTORIALS / "researcher.md")
    evaluated = [line for line in reader.said if line.startswith("iopfl evaluate")]
    assert len(evaluated) == 5 and all("prostate" in reader.said[line] for line in evaluated)
    assert "global" in next(said for line, said in reader.said.items() if "program.py" in line)
