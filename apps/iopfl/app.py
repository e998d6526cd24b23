"""The MONAI Label app: tasks, strategies and scoring methods over the models of a bank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from monailabel.config import settings as monailabel
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.random import Random

from iopfl import __version__
from iopfl.core.sites import IMAGE_SUFFIXES
from iopfl.lib.activelearning import ExpertDisagreement
from iopfl.lib.datastore import CheckedDatastore
from iopfl.lib.infers import RoutedSegmentation, SiteSegmentation
from iopfl.lib.models import SiteModels
from iopfl.lib.scoring import ExpertAgreement, SubmittedDice
from iopfl.lib.settings import AppSettings
from iopfl.lib.trainers import LocalTraining

_DEFAULT_EXTENSIONS = type(monailabel).model_fields["MONAI_LABEL_DATASTORE_FILE_EXT"].default


class IOPFLApp(MONAILabelApp):
    """Segments with a personalized model bank, and routes over it at sites outside the federation.

    Attributes:
        models: what the server answers with.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        settings = AppSettings.from_conf(conf, default_state=Path.home() / ".iopfl")
        self.models = SiteModels(settings)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf),
            name="iopfl",
            description="Personalized federated segmentation, inside the federation and outside it",
            version=__version__,
        )
        # Scoring all images at each start and label would take the cores from the clinician; it is there on request.
        self._auto_update_scoring = False

    def init_infers(self) -> dict[str, InferTask]:
        """`<task>` and `<task>_routed` of each task."""
        infers: dict[str, InferTask] = {}
        for name, task in self.models.tasks.items():
            infers[name] = SiteSegmentation(self.models, task)
            infers[f"{name}_routed"] = RoutedSegmentation(self.models, task)
        return infers

    def init_trainers(self) -> dict[str, TrainTask]:
        """`<task>`: the site's own training."""
        return {name: LocalTraining(self.models, task) for name, task in self.models.tasks.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """Random, and the experts' disagreement for each task."""
        disagreement = {f"{name}_disagreement": ExpertDisagreement(self.models, name) for name in self.models.tasks}
        return {**disagreement, "random": Random()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """With labels and without, for each task."""
        methods: dict[str, ScoringMethod] = {}
        for name in self.models.tasks:
            methods[f"{name}_dice"] = SubmittedDice(self.models, name)
            methods[f"{name}_agreement"] = ExpertAgreement(self.models, name)
        return methods

    def init_datastore(self) -> Datastore:
        """The site folder, or MONAI Label's own for a PACS."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        if monailabel.MONAI_LABEL_DATASTORE_FILE_EXT == _DEFAULT_EXTENSIONS:  # they leave out .jpeg, .tiff, .bmp, .mha
            suffixes = [f"*{suffix}" for suffix in IMAGE_SUFFIXES]
            monailabel.MONAI_LABEL_DATASTORE_FILE_EXT = list(dict.fromkeys([*_DEFAULT_EXTENSIONS, *suffixes]))
        return CheckedDatastore(
            self.studies,
            extensions=monailabel.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=monailabel.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=monailabel.MONAI_LABEL_DATASTORE_READ_ONLY,
            tasks=self.models.tasks,
        )
