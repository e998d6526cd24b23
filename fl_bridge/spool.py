"""Answers of a round as they come in: checked, then on disk, never all in memory.

One safetensors file per site in the federation's state folder, with the order it
answers. So the server's memory does not grow with the number of sites, what
had come in before a crash is there after it, and the sum is made in the fixed
order of sites whatever the order of arrival.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from iopfl.core.order import Order
from iopfl.core.weights import write_weights


class Spool:
    """What has been accepted of one order's answers."""

    def __init__(self, folder: Path, order: Order) -> None:
        """Open a folder; what is in it of another order is removed."""
        self._folder = folder
        self._order = order
        self._about: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            about = _read_about(path)
            if about is not None and about["order"] == order.to_meta():
                self._about[about["site"]] = about
            else:
                path.unlink()

    @property
    def sites(self) -> dict[str, dict[str, Any]]:
        """Site -> what it said of its answer: `samples`, `metrics` and whatever else was given to `add`."""
        return self._about

    def add(self, site: str, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Keep a site's answer."""
        kept = {**about, "site": site, "order": self._order.to_meta()}
        write_weights(self._path(site), weights, {"about": json.dumps(kept)})
        self._about[site] = kept

    def remove(self, site: str) -> None:
        """Drop a site's answer."""
        self._path(site).unlink(missing_ok=True)
        self._about.pop(site, None)

    def read(self, site: str, key: str) -> Tensor:
        """One tensor of a site's answer."""
        with safe_open(self._path(site), framework="pt") as file:
            return file.get_tensor(key)

    def read_all(self, site: str) -> dict[str, Tensor]:
        """All of a site's answer."""
        with safe_open(self._path(site), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def clear(self) -> None:
        """Remove everything: the round has been counted."""
        for site in list(self._about):
            self.remove(site)

    def _path(self, site: str) -> Path:
        return self._folder / f"{site.encode().hex()}.safetensors"  # a site's name may be anything


def _read_about(path: Path) -> dict[str, Any] | None:
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["about"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
