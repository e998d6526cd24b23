"""The files in which a site keeps its part in a federation, any of which may be damaged. Next: `site_rounds`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from iopfl.base.errors import ConfigError, WeightsError
from iopfl.base.names import check_name
from iopfl.core.order import Order, SharedModel
from iopfl.core.personalization import PersonalizedModel
from iopfl.core.weights import Weights, read_weights

logger = logging.getLogger(__name__)

LOCAL, PERSONALIZED, SHARED = "local.safetensors", "personalized.safetensors", "shared.safetensors"
ROUND, PROGRESS = "round.json", "progress.json"


def federation_folder(folder: Path, federation: str) -> Path:
    """Where a site keeps what is of one federation.

    Raises:
        ConfigError: the id could be a path.
    """
    return folder / check_name(federation, "a federation id")


def read_answer(folder: Path, order: Order) -> dict[str, Any] | None:
    """`samples` and `metrics` of a finished round; None while the order is not the one answered last."""
    finished = read_record(folder)
    return finished if finished.get("order") == order.to_meta() else None


def accumulate(folder: Path, alpha: float) -> None:
    """Bring P_k up to the local model that is kept; does nothing where it is."""
    kept = read_local(folder)
    if kept is None:
        return
    weights, round_index, path = kept[0], kept[1]["order"]["round_index"], folder / PERSONALIZED
    if not path.is_file():
        if (folder / ROUND).exists():
            logger.warning("%s of %s is gone: the personalized model begins anew", path.name, folder.name)
        PersonalizedModel.start(weights, round_index=round_index).save(path)
        return
    before = PersonalizedModel.load(path)
    after = before.accumulate(weights, round_index=round_index, alpha=alpha)
    if after is not before:
        after.save(path)


def read_local(folder: Path) -> tuple[Weights, dict[str, Any]] | None:
    """The local model that is kept and what it answers; None where there is none."""
    if not (folder / LOCAL).is_file():
        return None
    weights, metadata = read_weights(folder / LOCAL)
    about = _read_object(metadata.get("about", ""))
    try:
        Order.from_meta(about["order"])
    except (LookupError, TypeError, AttributeError, ConfigError) as error:
        raise WeightsError(f"{LOCAL}: expected a local model of a round, found no order: move the file away") from error
    return weights, about


def read_shared(folder: Path, content: str) -> SharedModel | None:
    """P_k as it was shared; None where what was shared last is another P_k, by its hash."""
    if not (folder / SHARED).is_file():
        return None
    try:
        weights, metadata = read_weights(folder / SHARED)
        about = _read_object(metadata.get("about", ""))
        return SharedModel(weights, **about) if metadata.get("content") == content else None
    except (WeightsError, TypeError):
        logger.warning("%s of %s is damaged: it is made again of the same model", SHARED, folder.name)
        return None


def read_record(folder: Path) -> dict[str, Any]:
    """The answer that is finished; one that is damaged is as none, and found again from the local model."""
    path = folder / ROUND
    return _read_object(path.read_bytes()) if path.is_file() else {}


def _read_object(content: bytes | str) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
