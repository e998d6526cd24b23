"""A site that was changed: its answers are bombs, streams without an end, and no numbers, in FLARE's own messages.

Started as `python -m bridge.hostile_peer MODULE ...` with one of FLARE's modules and its arguments, for a job too.
"""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path

import numpy as np
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.np.np_downloader import ArrayDownloadable
from nvflare.fuel.f3.streaming.download_service import ProduceRC

from fl_bridge.job_process import run_flare, start_through
from fl_bridge.label_server_trainer import LabelServerTrainer
from iopfl.core.order import SharedModel, SiteUpdate

ATTACKS = ("packed", "endless", "NaN")
"""By round."""
GIGABYTES = 2


class PeerLauncher(ClientProcessJobLauncher):
    """Starts a job's process through this module too."""

    def get_command(self, job_meta: dict, fl_ctx) -> str:
        start_through("bridge.hostile_peer", fl_ctx)
        return super().get_command(job_meta, fl_ctx)


@functools.cache
def make_bomb() -> bytes:
    """An array of gigabytes of zeros, in a few megabytes."""
    head, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (GIGABYTES * 2**28,)})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w", force_zip64=True) as a:
        a.write(head.getvalue())
        for _ in range(GIGABYTES * 2**7):
            a.write(bytes(2**23))
    return file.getvalue()


def attack() -> None:
    """Change what this process answers."""
    mode = [""]

    def train(self, global_weights, order, *, cancelled):
        mode[0] = ATTACKS[order.round_index]
        print(f"attack: {mode[0]}", flush=True)  # noqa: T201
        factor = np.nan if mode[0] == "NaN" else 1.01
        weights = {key: value * factor if value.is_floating_point() else value for key, value in global_weights.items()}
        return SiteUpdate(weights, 9, {})

    def produce(self, state, requester, original=ArrayDownloadable.produce):
        if mode[0] == "packed":
            return ProduceRC.OK, [make_bomb()], {"start": 0, "count": 1}
        if mode[0] == "endless":
            self.first = getattr(self, "first", None) or original(self, state, requester)
            return self.first
        return original(self, state, requester)

    LabelServerTrainer.train = train
    LabelServerTrainer.personalized = lambda self, weights, order, *, cancelled: SharedModel(weights, 0, 9, {})
    LabelServerTrainer.publish = lambda self, bank: ""
    ArrayDownloadable.produce = produce


def change_kit(kit: Path) -> None:
    """Have a kit's jobs started through this module."""
    path = kit / "local" / "resources.json"
    path.write_text(path.read_text().replace("fl_bridge.site_process.SiteJobLauncher", f"{__name__}.PeerLauncher"))


if __name__ == "__main__":
    run_flare(attack)
