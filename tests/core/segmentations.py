"""Segmentations as 3D Slicer saves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nrrd
import numpy as np


def save_segmentation(
    path: Path,
    layers: Sequence[Mapping[str, tuple[int, np.ndarray]]],
    affine: np.ndarray,
    *,
    crop: bool = False,
    tags: Mapping[str, str] | None = None,
    **fields: Any,
) -> Path:
    """Write segments: in each layer, name -> value and (X, Y, Z) mask.

    Args:
        path: `.seg.nrrd`.
        layers: the segments.
        affine: (4, 4) of the masks, to RAS mm.
        crop: to what is drawn.
        tags: terminology of a segment.
        fields: more of the header.
    """
    masks = [mask for layer in layers for _, mask in layer.values()]
    places = np.argwhere(np.any(masks, axis=0))
    first, last = (places.min(0), places.max(0) + 1) if crop else (np.zeros(3, int), np.array(masks[0].shape))
    arrays = []
    for layer in layers:
        array = np.zeros(masks[0].shape, np.uint8)
        for value, mask in layer.values():
            array[mask] = value
        arrays.append(array[tuple(map(slice, first, last))])
    lps = np.diag([-1, -1, 1, 1]) @ affine
    header = {
        "space": "left-posterior-superior",
        "space origin": (lps @ [*first, 1])[:3],
        "space directions": lps[:3, :3].T,
        "kinds": ["domain"] * 3,
        "encoding": "gzip",
        "Segmentation_ReferenceImageExtentOffset": " ".join(map(str, first)),
    }
    number = 0
    for place, layer in enumerate(layers):
        for name, (value, _) in layer.items():
            about = {"ID": f"Segment_{number + 1}", "Name": name, "LabelValue": value, "Layer": place}
            about |= {"Color": "0.5 0.2 0.1", "Tags": (tags or {}).get(name, "|")}
            header |= {f"Segment{number}_{key}": str(text) for key, text in about.items()}
            number += 1
    data = arrays[0]
    if len(arrays) > 1:
        data = np.stack(arrays)
        header["kinds"] = ["list", *header["kinds"]]
        header["space directions"] = np.vstack([[np.nan] * 3, header["space directions"]])
    nrrd.write(str(path), data, {**header, **fields})
    return path
