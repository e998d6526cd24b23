"""Figures over rounds for TensorBoard, through FLARE's receiver, in the federation's state: they outlive the job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.analytix import AnalyticsDataType
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.widgets.streaming import create_analytic_dxo
from nvflare.app_opt.tracking.tb.tb_receiver import TBAnalyticsReceiver

FIGURES = ("dice", "dice_global", "dice_local", "loss", "samples", "seconds")


class MetricsReceiver(TBAnalyticsReceiver):
    """Writes one series of each figure a site: `tensorboard --logdir kits/server/state/metrics`."""

    def __init__(self, folder: str) -> None:
        """Args:
        folder: where to write.
        """
        super().__init__()
        self.folder = folder

    def initialize(self, fl_ctx: FLContext) -> None:
        """Write to the folder given; FLARE's own would be the job's, which is put away when the job ends."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        self.root_log_dir = self.folder

    def record(self, client: str, round_index: int, fate: Mapping[str, Any], fl_ctx: FLContext) -> None:
        """Write what a site did in a round; `took_part` is 0 where it was refused or sat out."""
        figures = {name: fate[name] for name in FIGURES if name in fate}
        for tag, value in {**figures, "took_part": float("reason" not in fate)}.items():
            dxo = create_analytic_dxo(
                tag=tag, value=float(value), data_type=AnalyticsDataType.SCALAR, global_step=round_index + 1
            )
            self.save(fl_ctx, dxo.to_shareable(), client)
