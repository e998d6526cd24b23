"""The task: one frozen dataclass, written as YAML, that says everything about a segmentation problem.

Training, inference, adaptation, the benchmark and the federation read it and
nothing else. Built-in tasks are the YAML files in `tasks/`; a user's own file
is accepted wherever a name is, and may start from a built-in one (`base:`).
Symbols of the paper: alpha is `Training.alpha`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iopfl.base.errors import ConfigError
from iopfl.core.criteria import Criteria
from iopfl.core.settings_files import read_settings

_FOLDER = Path(__file__).parent / "tasks"
_INTENSITIES = ("zscore", "percentile")


@dataclass(frozen=True)
class Network:
    """A network of `monai.networks.nets`, by name.

    Attributes:
        name: the class, e.g. `BasicUNet`; one of `networks.NETWORKS`.
        args: its keyword arguments, without dimensions and channels, which follow from the task.
    """

    name: str = "BasicUNet"
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """Local training of one round.

    Attributes:
        local_steps: optimizer steps in a round; 0 = as many as cover the site's training images once.
        batch_size: instances in a step.
        learning_rate: what Adam (amsgrad) starts from, as published.
        alpha: weight of the history in the personalized model, alpha in the paper.
        fine_tune_epochs: epochs of fine-tuning a personalized model before it is shared; 0 = none, as published.
        min_labels: labeled images below which a site does not train.
        validation_share: share of a site's training subjects that only validates.
        augment: whether random affine changes, contrast and noise are added to the task's symmetries.
    """

    local_steps: int = 0
    batch_size: int = 4
    learning_rate: float = 1e-3
    alpha: float = 0.1
    fine_tune_epochs: int = 5
    min_labels: int = 5
    validation_share: float = 0.2
    augment: bool = True


@dataclass(frozen=True)
class Adaptation:
    """Test-time adaptation of a series (`core/adaptation.py`).

    Attributes:
        shares: candidate shares of the series' own normalization statistics, each in [0, 1].
        zooms: magnifications of the image, from 1: how many times an edge grows in 2D; in 3D its 2/3 power, at the
            same cost. Only for tasks without `spacing`, whose images do not say how large things are.
        tolerance: difference of the experts' agreement up to which two ways to see the series are equally good.
        evidence: agreement below which the experts tell nothing, and the global model answers as it is.
        temperature: difference of an expert's agreement that changes its routing weight by a factor e.
        max_voters: experts that vote, the first of the bank; the others count as their mean. The cost stays flat so.
        max_instances: instances (slices, or windows of a volume) that the experts look at.
        max_views: views in the final prediction, at most all that the task's symmetries give.
        max_passes: passes of the final prediction, over a slice or a window each; a large series gets fewer views.
        seconds: time that adaptation may take; when it is spent, what was found by then is used.
        fast: whether to take a third of the passes: two voters, no magnification, five views.
        seed: seed of the published baseline's dropout and noise; the default has nothing random.
    """

    shares: tuple[float, ...] = (0.0, 1.0)
    zooms: tuple[float, ...] = (1.0, 1.5)
    tolerance: float = 0.01
    evidence: float = 0.5
    temperature: float = 0.1
    max_voters: int = 4
    max_instances: int = 3
    max_views: int = 8
    max_passes: int = 48
    seconds: float = 20.0
    fast: bool = False
    seed: int = 0

    @property
    def effective(self) -> Adaptation:
        """These settings, with what `fast` stands for."""
        if not self.fast:
            return self
        voters, views = min(2, self.max_voters), min(5, self.max_views)
        return dataclasses.replace(self, fast=False, zooms=(1.0,), max_voters=voters, max_views=views)


@dataclass(frozen=True)
class Task:
    """A segmentation problem.

    Attributes:
        name: lower-case identifier; the label server's infer and train tasks carry it.
        labels: each label's name and its value in the label image, without background (0); values order the classes.
        spatial_dims: dimensions of the network, 2 or 3.
        description: what is segmented, in words for people.
        modality: DICOM modality of the images, e.g. MR or OP.
        channels: channels of an image: 1, or 3 for color.
        slices: neighboring slices given as channels to a 2D network (2.5D in the paper); an odd number.
        size: the network's window in pixels: `spatial_dims` numbers. Without `spacing` images are resized to it; with
            `spacing` they are resampled and seen through it.
        spacing: the distance of pixels in mm: `spatial_dims` numbers, or none.
        intensity: `zscore`, each channel by itself, or `percentile`, the same after clipping to the 0.5th and 99.5th.
        flips: spatial axes along which the anatomy may be mirrored, in augmentation and views.
        rotations: whether quarter turns in the plane are harmless too.
        codes: what each label is, by code value, coding scheme and meaning (PS3.3, C.8.20.4); tissue without one.
        regions: what is scored: names, and the labels taken together under each; empty = each label.
        subject: regular expression whose first group is the subject in a file name; empty = each file is a subject.
        images: which images are the task's, besides their modality.
        network: the network that each expert is.
        training: how a site trains.
        adaptation: how a series is adapted to.
    """

    name: str
    labels: Mapping[str, int]
    spatial_dims: int
    description: str = ""
    modality: str = "MR"
    channels: int = 1
    slices: int = 1
    size: tuple[int, ...] = (256, 256)
    spacing: tuple[float, ...] | None = None
    intensity: str = "zscore"
    flips: tuple[int, ...] = ()
    rotations: bool = False
    codes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subject: str = ""
    images: Criteria = field(default_factory=Criteria)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    adaptation: Adaptation = field(default_factory=Adaptation)

    def __post_init__(self) -> None:
        checks = (
            (re.fullmatch(r"[a-z][a-z0-9_]*", self.name), "name: lower-case letters, digits and _", self.name),
            (not self.name.endswith("_routed"), "name: not ending in _routed, which the server appends", self.name),
            (self.spatial_dims in (2, 3), "spatial_dims: 2 or 3", self.spatial_dims),
            (self.labels, "labels: at least one name: value", dict(self.labels)),
            (all(0 < value < 256 for value in self.labels.values()), "labels: values 1 to 255", dict(self.labels)),
            (len(set(self.labels.values())) == len(self.labels), "labels: different values", dict(self.labels)),
            (self.channels in (1, 3), "channels: 1 or 3", self.channels),
            (self.slices % 2 == 1 and self.slices > 0, "slices: an odd number", self.slices),
            (self.spatial_dims == 2 or self.slices == 1, "slices: 1 for a 3D task", self.slices),
            (len(self.size) == self.spatial_dims, f"size: {self.spatial_dims} numbers", self.size),
            (all(edge > 0 for edge in self.size), "size: positive numbers", self.size),
            (
                self.spacing is None or (len(self.spacing) == self.spatial_dims and min(self.spacing) > 0),
                f"spacing: {self.spatial_dims} positive numbers, or none",
                self.spacing,
            ),
            (self.intensity in _INTENSITIES, f"intensity: one of {', '.join(_INTENSITIES)}", self.intensity),
            (all(0 <= axis < self.spatial_dims for axis in self.flips), "flips: spatial axes from 0", self.flips),
            (set().union(*self.regions.values()) <= set(self.labels), "regions: made of labels", dict(self.regions)),
            (set(self.codes) <= set(self.labels), "codes: of labels", dict(self.codes)),
            (
                all(len(code) == 3 and all(code) and len(code[0]) <= 16 for code in self.codes.values()),
                "codes: [value, scheme, meaning] of each label, e.g. [41216001, SCT, Prostate]",
                dict(self.codes),
            ),
            (0 <= self.training.alpha <= 1, "training.alpha: 0 to 1", self.training.alpha),
            (
                0 <= self.training.validation_share < 1,
                "training.validation_share: 0 to below 1",
                self.training.validation_share,
            ),
            (
                self.training.fine_tune_epochs >= 0,
                "training.fine_tune_epochs: 0 or more",
                self.training.fine_tune_epochs,
            ),
            (self.training.batch_size > 0, "training.batch_size: positive", self.training.batch_size),
            (self.training.local_steps >= 0, "training.local_steps: 0 or more", self.training.local_steps),
            (self.adaptation.max_instances > 0, "adaptation.max_instances: positive", self.adaptation.max_instances),
            (
                self.adaptation.shares and all(0 <= share <= 1 for share in self.adaptation.shares),
                "adaptation.shares: numbers from 0 to 1",
                self.adaptation.shares,
            ),
            (all(1 <= zoom <= 4 for zoom in self.adaptation.zooms), "adaptation.zooms: 1 to 4", self.adaptation.zooms),
            (self.adaptation.max_voters > 0, "adaptation.max_voters: positive", self.adaptation.max_voters),
            (self.adaptation.temperature > 0, "adaptation.temperature: positive", self.adaptation.temperature),
        )
        for holds, expected, given in checks:
            if not holds:
                raise ConfigError(f"task {self.name!r}: {expected} expected, given {given!r}")
        try:
            groups = re.compile(self.subject).groups
        except re.error as error:
            raise ConfigError(f"task {self.name!r}: subject is no regular expression: {error}") from error
        if self.subject and groups == 0:
            raise ConfigError(f"task {self.name!r}: subject needs a group that is the subject: {self.subject!r}")
        # A class is a label's position here: a manifest, which sorts its keys, must not change it.
        by_value = dict(sorted(self.labels.items(), key=lambda item: item[1]))
        object.__setattr__(self, "labels", by_value)

    @property
    def num_classes(self) -> int:
        """K, background included."""
        return len(self.labels) + 1

    @property
    def in_channels(self) -> int:
        """Channels of an instance: those of the image, for each neighboring slice."""
        return self.channels * self.slices

    @property
    def label_values(self) -> tuple[int, ...]:
        """Value in the label image of each class, background first: (K,)."""
        return (0, *self.labels.values())

    @property
    def scored_regions(self) -> dict[str, tuple[int, ...]]:
        """Region name -> class indices (1 .. K-1) taken together."""
        regions = self.regions or {name: (name,) for name in self.labels}
        index = {name: position for position, name in enumerate(self.labels, start=1)}
        return {region: tuple(index[name] for name in names) for region, names in regions.items()}

    def find_subject(self, stem: str) -> str:
        """The subject that a file stem belongs to; the stem itself where the expression finds none."""
        match = re.search(self.subject, stem) if self.subject else None
        return (match.group(1) if match else None) or stem

    def to_dict(self) -> dict[str, Any]:
        """The task as plain values, as YAML and the bank's manifest hold it.

        Criteria that ask for nothing are left out, so that an iopfl that does not know them reads the bank.
        """
        values = _plain(dataclasses.asdict(self))
        return values if self.images != Criteria() else {k: value for k, value in values.items() if k != "images"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """Build a task from plain values.

        Raises:
            ConfigError: an unknown or missing key, or a value of another kind; each is named.
        """
        return _build(cls, values, where="task")


def builtin_tasks() -> tuple[str, ...]:
    """Names of the tasks that come with iopfl."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def read_task(name_or_path: str | Path) -> Task:
    """Read a built-in task by name, or a user's own YAML file.

    A file may begin with `base: NAME_OR_FILE` and then holds only what differs.

    Raises:
        ConfigError: no such task or file, no valid YAML, or a wrong value.

    >>> read_task("vessel").label_values
    (0, 1)
    """
    return Task.from_dict(_read_values(name_or_path, seen=()))


def _read_values(name_or_path: str | Path, seen: Sequence[Path]) -> dict[str, Any]:
    path = _FOLDER / f"{name_or_path}.yaml" if str(name_or_path) in builtin_tasks() else Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"no task {str(name_or_path)!r}: expected one of {', '.join(builtin_tasks())}, or a YAML file of your own"
        )
    if path.resolve() in seen:
        raise ConfigError(f"task {path.name}: its base leads back to itself; name a built-in task as base")
    values = read_settings(path, f"task {path.name}")
    if "base" not in values:
        return values
    base = str(values.pop("base"))
    beside = path.parent / base
    return _merge(_read_values(beside if beside.is_file() else base, (*seen, path.resolve())), values)


def _merge(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values over base; the nested settings key by key, all else whole. Other labels have other codes and regions."""
    merged = {key: value for key, value in base.items() if "labels" not in values or key not in ("codes", "regions")}
    for key, value in values.items():
        below = base.get(key)
        nested = key in ("training", "adaptation", "images") and isinstance(value, Mapping | None)
        merged[key] = {**(below or {}), **(value or {})} if nested and isinstance(below, Mapping | None) else value
    return merged


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected 'key: value' lines, given {values!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints), key=str)
    if unknown:
        raise ConfigError(f"{where}: unknown key {', '.join(map(str, unknown))}; there are {', '.join(hints)}")
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} is missing")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """A YAML value as the field's type; bool is never taken for a number."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _convert(arguments[0], value, where)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if hint is Any:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, where) for item in value)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-3 as text
        with contextlib.suppress(ValueError):
            return float(value)
    if hint in (int, bool, str) and type(value) is hint:
        return value
    raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, given {value!r}")


def _plain(value: Any) -> Any:
    """Tuples as lists, so that a task equals itself after a trip through JSON or YAML."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
