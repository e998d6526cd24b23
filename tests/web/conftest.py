"""A small stand-in for the label server's app: real predictors over tiny real banks."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from PIL import Image

from iopfl import compat

compat.apply_early()  # before MONAI Label is imported

from iopfl.base.errors import IOPFLError  # noqa: E402
from iopfl.core.bank.bank import Model, Role, save_bank  # noqa: E402
from iopfl.core.bank.signing import Keyring  # noqa: E402
from iopfl.core.networks import build_network  # noqa: E402
from iopfl.core.predictor import Predictor  # noqa: E402
from iopfl.core.task import Adaptation, Network, Task  # noqa: E402
from iopfl.core.weights import snapshot  # noqa: E402
from iopfl.images.headers import IMAGE_SUFFIXES  # noqa: E402
from iopfl.labels.selecting import SelectingDatastore  # noqa: E402
from iopfl.web import routes, size_routes  # noqa: E402
from iopfl.web.answers import Answers  # noqa: E402
from iopfl.web.routes import router  # noqa: E402

NETWORK = Network("BasicUNet", {"features": [4, 4, 8, 8, 8, 4], "norm": "batch"})
ADAPTATION = Adaptation(zooms=(1.0,), max_instances=2, max_views=2)
FUNDUS = Task(
    name="fundus",
    description="Rim and cup",
    labels={"rim": 1, "cup": 2},
    regions={"disc": ("rim", "cup"), "cup": ("cup",)},
    spatial_dims=2,
    channels=3,
    size=(32, 32),
    flips=(0, 1),
    network=NETWORK,
    adaptation=ADAPTATION,
)
GLAND = Task(
    name="gland", labels={"gland": 3}, spatial_dims=2, slices=3, size=(32, 32), flips=(0,), network=NETWORK,
    adaptation=ADAPTATION,
)  # fmt: skip


@dataclass
class Models:
    """What `iopfl.lib.models.SiteModels` offers."""

    predictors: dict[str, Predictor]
    site: str | None = "north"
    computed: list[tuple[str, str | None]] = field(default_factory=list)
    settings: Any = field(default_factory=lambda: SimpleNamespace(state=Path("none"), page_cache_gb=2.0))

    def __post_init__(self) -> None:
        self._lock = threading.RLock()

    @property
    def tasks(self) -> dict[str, Task]:
        return {name: predictor.task for name, predictor in self.predictors.items()}

    def lock(self, task_name: str) -> threading.RLock:
        return self._lock

    def predictor(self, task_name: str) -> Predictor:
        return self.predictors[task_name]

    def describe(self, task_name: str) -> dict[str, Any]:
        bank = self.predictors[task_name].bank
        choice = self.predictors[task_name].choose()
        entries = [
            {"name": e.name, "role": str(e.role), "round_index": e.round_index, "samples": e.samples}
            | {"metrics": dict(e.metrics)}
            for e in bank.manifest.entries
        ]
        return {
            "bank": bank.label,
            "created": bank.manifest.created,
            "federation": bank.manifest.federation,
            "entries": entries,
            "site": self.site,
            "choice": {"kind": choice.kind, "reason": choice.reason, "metrics": dict(choice.metrics)},
            "error": None,
        }


@dataclass
class StandInApp:
    models: Models
    folder: Path

    def __post_init__(self) -> None:
        extensions = [f"*{suffix}" for suffix in IMAGE_SUFFIXES]
        self._store = SelectingDatastore(self.folder, extensions=extensions, tasks=self.models.tasks)

    def datastore(self) -> SelectingDatastore:
        return self._store


def make_bank(folder: Path, task: Task, sites: tuple[str, ...] = ("north", "south")):
    """Write a bank of random weights."""
    models = []
    for seed, site in enumerate(("", *sites)):
        weights = snapshot(build_network(task, seed=seed))
        metrics = {"dice": 0.8 + seed / 100, "dice_global": 0.8}
        models.append(Model(site, Role.PERSONALIZED if site else Role.GLOBAL, 3, 10 + seed, metrics, weights))
    return save_bank(folder / f"bank_{task.name}", models, task=task, federation="test", keys=Keyring(folder / "keys"))


def make_site_folder(folder: Path) -> Path:
    """Write a color picture, a volume of unequal spacing, and a label for each; a picture without label; no image."""
    rng = np.random.default_rng(0)
    labels = folder / "labels" / "final"
    labels.mkdir(parents=True)
    for name in ("eye1", "eye2"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(np.pad(np.ones((20, 20), np.uint8), 10)[:40, :40].repeat(3, 1)[:, :60]).save(labels / "eye1.png")
    volume = rng.normal(100, 20, (24, 30, 5)).astype(np.float32)
    mask = np.zeros(volume.shape, np.uint8)
    mask[8:16, 10:20, 3] = 3
    affine = np.diag([1.0, 0.5, 3.0, 1.0])
    nib.save(nib.Nifti1Image(volume, affine), folder / "scan.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), labels / "scan.nii.gz")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="session")
def banks(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("banks")
    return {task.name: make_bank(folder, task) for task in (FUNDUS, GLAND)}


@pytest.fixture(scope="session")
def site_folder(tmp_path_factory):
    return make_site_folder(tmp_path_factory.mktemp("site"))


@pytest.fixture
def app(banks, site_folder, monkeypatch):
    """The stand-in app, found by the routes; `models.computed` lists what was segmented."""
    models = Models({name: Predictor(bank, site="north") for name, bank in banks.items()})
    for name, predictor in models.predictors.items():

        def segment(path, kind=None, *, _name=name, _segment=predictor.segment, **options):
            models.computed.append((_name, kind))
            return _segment(path, kind, **options)

        monkeypatch.setattr(predictor, "segment", segment)
    instance = StandInApp(models, site_folder)
    for module in (routes, size_routes):
        monkeypatch.setattr(module, "app_instance", lambda: instance)
    monkeypatch.setattr(routes, "answers", Answers())
    return instance


@pytest.fixture
def client(app):
    """A browser at the routes; errors of ours are answered as the server does."""
    asgi = FastAPI()
    asgi.include_router(router)

    @asgi.exception_handler(IOPFLError)
    def explain(request: Request, error: IOPFLError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    return TestClient(asgi)
