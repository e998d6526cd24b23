"""The MONAI Label app: tasks, strategies and scoring methods over the models of a bank."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings as monailabel
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from iopfl import __version__
from iopfl.base.allocation import keep_blocks
from iopfl.base.errors import ConfigError, LeaseError
from iopfl.base.names import ROUTED, task_of
from iopfl.core.sites import IMAGE_SUFFIXES
from iopfl.core.task import Task
from iopfl.dicomio.result_kinds import KINDS
from iopfl.labels.annotators import find_annotator
from iopfl.labels.checked import FINAL
from iopfl.labels.datastore import VersionedDatastore
from iopfl.labels.leases import LeaseStore, Offered
from iopfl.labels.selecting import find_warning
from iopfl.labels.submissions import LEFT_OUT
from iopfl.lib.activelearning import ExpertDisagreement, RandomImage
from iopfl.lib.base_app import BaseApp
from iopfl.lib.infers import RoutedSegmentation, SiteSegmentation
from iopfl.lib.leftovers import sweep_leftovers
from iopfl.lib.models import SiteModels
from iopfl.lib.scoring import ExpertAgreement, SubmittedDice
from iopfl.lib.sessions import OwnedSessions
from iopfl.lib.settings import AppSettings
from iopfl.lib.trainers import LocalTraining
from iopfl.pacs.access import PACSAccess
from iopfl.pacs.datastore import PACSDatastore
from iopfl.pacs.results import Results

_DEFAULT_FILTER = type(monailabel).model_fields["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"].default
_DEFAULT_EXTENSIONS = type(monailabel).model_fields["MONAI_LABEL_DATASTORE_FILE_EXT"].default


class IOPFLApp(BaseApp, MONAILabelApp):  # MONAI Label looks for its own class among the direct bases
    """Segments with a personalized model bank, and routes over it at sites outside the federation.

    Attributes:
        models: what the server answers with.
        leases: which image is lent to whom.
        pacs: where the images are; None = in a folder.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        keep_blocks()  # MONAI Label starts processes of its own: to train, and as a server
        settings = AppSettings.from_conf(conf, default_state=Path.home() / ".iopfl")
        self.models = SiteModels(settings)
        is_pacs = studies.startswith(("http://", "https://"))
        self.pacs = PACSAccess(studies.rstrip("/"), settings.pacs_credentials, settings.pacs_ca) if is_pacs else None
        if not is_pacs and settings.results != KINDS[:1]:
            raise ConfigError("--conf results: says what is stored in a PACS; this server's images are in a folder")
        self._labels = settings.state / "labels" / _folder_name(studies)
        self.leases = LeaseStore(self._labels / "leases.json", minutes=settings.lease_minutes)
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
            infers[name + ROUTED] = RoutedSegmentation(self.models, task)
        return infers

    def init_trainers(self) -> dict[str, TrainTask]:
        """`<task>`: the site's own training."""
        return {name: LocalTraining(self.models, task) for name, task in self.models.tasks.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """Random, and the experts' disagreement for each task."""
        disagreement = {f"{name}_disagreement": ExpertDisagreement(self.models, name) for name in self.models.tasks}
        return {**disagreement, "random": RandomImage()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """With labels and without, for each task."""
        methods: dict[str, ScoringMethod] = {}
        for name in self.models.tasks:
            methods[f"{name}_dice"] = SubmittedDice(self.models, name)
            methods[f"{name}_agreement"] = ExpertAgreement(self.models, name)
        return methods

    def init_datastore(self) -> Datastore:
        """The site folder, or the PACS."""
        settings = self.models.settings
        options: dict[str, Any] = {"tasks": self.models.tasks, "labels": self._labels, "rule": settings.final_label}
        if self.pacs is not None:
            folder = settings.state / "pacs" / self._labels.name
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # patients' images
            asked = monailabel.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
            filters = {} if asked == _DEFAULT_FILTER else dict(asked)
            cache_bytes = int(settings.pacs_cache_gb * 1e9)
            results = Results(settings.results, self.models)
            return PACSDatastore(
                self.pacs, folder, cache_bytes=cache_bytes, filters=filters, results=results, **options
            )
        if monailabel.MONAI_LABEL_DATASTORE_FILE_EXT == _DEFAULT_EXTENSIONS:  # they leave out .jpeg, .tiff, .bmp, .mha
            suffixes = [f"*{suffix}" for suffix in IMAGE_SUFFIXES]
            monailabel.MONAI_LABEL_DATASTORE_FILE_EXT = list(dict.fromkeys([*_DEFAULT_EXTENSIONS, *suffixes]))
        return VersionedDatastore(
            self.studies,
            extensions=monailabel.MONAI_LABEL_DATASTORE_FILE_EXT,
            follows_folder=not monailabel.MONAI_LABEL_DATASTORE_READ_ONLY,
            **options,
        )

    def on_init_complete(self) -> None:
        """In the server, not in its children: what a crash left half done is done now."""
        super().on_init_complete()
        sweep_leftovers(self.models.settings, None if self.pacs else Path(self.studies))
        self.datastore().start()
        self.datastore().start_looking()

    def _load_sessions(self, load: bool = False) -> OwnedSessions | None:
        if not load:
            return None
        return OwnedSessions(monailabel.MONAI_LABEL_SESSION_PATH, monailabel.MONAI_LABEL_SESSION_EXPIRY)

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Segment, say where an image is none of the task's, and remember who was answered what.

        A label that comes back may have started from it.
        """
        result = super().infer(request, datastore)
        task = self.models.tasks.get(task_of(request.get("model")))
        warning = find_warning(self.datastore(), task, str(request.get("image"))) if task else ""
        if warning:
            result["params"] = {**(result.get("params") or {}), "warning": warning}
        self.datastore().answers.note(request, result.get("params") or {})
        return result

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> Any:
        """Segment many images: those that are listed by name, or of `all`, `labeled` or `unlabeled` the task's."""
        task = self.models.tasks.get(task_of(request.get("model")))
        store = self.datastore()
        if not isinstance(request.get("images"), list):
            for image in store.list_images():
                store.find_mismatches(image)
        return super().batch_infer(request, datastore or Offered(store, (), task))

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Choose an image to label next, and lend it to whoever asks.

        One that is lent to somebody else is not offered. Who asks again gets another one, and only
        when there is no other, one of those that they have already.

        Raises:
            LeaseError: all that is left is lent to others.
        """
        annotator = find_annotator(request)
        while True:
            leases = self.leases.active()
            lent = {lease.image for lease in leases}
            others = {lease.image for lease in leases if lease.annotator != annotator}
            result = self._choose(request, lent) or (self._choose(request, others) if lent > others else {})
            if not result:
                self._check_lent(others)
                return {}
            if not self._is_offered(request, result["id"]):  # it was looked at only now
                continue
            if self.leases.lend(result["id"], annotator):
                return {**result, "path": self.datastore().get_image_uri(result["id"])}

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """A label came: an image with a final one is lent no more."""
        store = self.datastore()
        if FINAL in store.get_labels_by_image_id(image_id):
            self.leases.end(image_id)
        own = store.history(image_id).of(find_annotator())
        if not own:
            return {}
        told: dict[str, Any] = {"version": own[-1].number}
        if lines := own[-1].info.get(LEFT_OUT):
            told[LEFT_OUT] = lines
        if problem := store.unsettled.get(image_id):
            told["warning"] = problem
        elif self.pacs is not None and not own[-1].is_stored:
            told["warning"] = "the label is kept here; the PACS has not taken it yet and will be asked again"
        return told

    def info(self) -> dict[str, Any]:
        """What clients ask for first, and how many images are lent."""
        found = super().info()
        found["datastore"]["lent"] = len(self.leases.active())
        return found

    def _choose(self, request: dict[str, Any], hidden: set[str]) -> dict[str, Any]:
        name = str(request.get("strategy") or "random")
        if name not in self._strategies:
            raise ConfigError(f"no strategy {name!r}: expected one of {', '.join(self._strategies)}")
        task = self._find_task(request)
        offered = Offered(self.datastore(), hidden, task)
        return self._strategies[name]({**request, "strategy": name}, offered) or {}

    def _find_task(self, request: Mapping[str, Any]) -> Task | None:
        """The task that a strategy chooses images for; None = for any."""
        return self.models.tasks.get(str(request.get("strategy") or "").removesuffix("_disagreement"))

    def _is_offered(self, request: Mapping[str, Any], image: str) -> bool:
        task, own = self._find_task(request), self.datastore().tasks_of(image)
        return bool(own) if task is None else task in own

    def _check_lent(self, others: set[str]) -> None:
        unlabeled = others & set(self.datastore().get_unlabeled_images())
        if unlabeled:
            minutes = self.models.settings.lease_minutes
            raise LeaseError(
                f"all {len(unlabeled)} images without a label are lent to others, for {minutes:g} minutes each: "
                "ask again later, or open an image by its name"
            )


def _folder_name(studies: str) -> str:
    """Where what belongs to these studies lies in the state folder: told apart by their place, and recognizable."""
    is_url = studies.startswith(("http://", "https://"))
    place = studies.rstrip("/") if is_url else str(Path(studies).resolve())
    return f"{'pacs' if is_url else Path(place).name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
