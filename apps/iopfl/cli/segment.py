"""`iopfl segment`: masks of image files, one after the other."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from iopfl.base.errors import ConfigError, SeriesError
from iopfl.cli.models import add_model, open_predictor

SOME_FAILED = 1
"""Exit status where some images got what was asked for and others did not."""
_COLUMNS = ("image", "task", "bank", "model", "quality", "label", "volume_ml", "long_axis_mm")
_IN_PIXELS = ("pixels", "long_axis_pixels")
"""Of photographs, which have no millimeters."""

_STRAIGHT = "its axes lean, which ITK does not open: the mask is on the straight grid on which a server sends the image"

WriteSizes = Callable[[Path, dict[str, Any]], None]


def add_segment(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `iopfl segment`."""
    example = "iopfl segment case1.nii.gz case2.nii.gz --bank bank/ --model routed -o masks/"
    text = (
        "Segment images; masks keep each image's grid, but for a NIfTI whose axes lean: ITK opens none. "
        "Exit status 1: some images could not be segmented."
    )
    parser = add(commands, "segment", _segment, text, example)
    parser.add_argument("images", nargs="+", type=Path, help="NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF or BMP")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the masks")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write volume and long axis of each label there")
    parser.add_argument(
        "--disagreement",
        type=Path,
        metavar="FILE",
        help="write there where the bank's experts disagree, in percent of them; of several images, a folder",
    )
    add_model(parser)


def _segment(arguments: Any) -> None:
    import numpy as np
    from tqdm import tqdm

    from iopfl.cli.passes import PassBar
    from iopfl.core.criteria import describe_mismatch, find_mismatch
    from iopfl.core.handing_out import to_straight
    from iopfl.core.image_facts import read_facts
    from iopfl.core.writers import mask_name, write_disagreement, write_mask

    predictor = open_predictor(arguments)
    if arguments.disagreement is not None:
        predictor.check_disagreement()
    targets = [arguments.output / mask_name(image) for image in arguments.images]
    names = [target.name.removesuffix(".gz") for target in targets]  # ITK reads case.nii where case.nii.gz is beside it
    double = sorted({target.name for target, name in zip(targets, names, strict=True) if names.count(name) > 1})
    if double:
        raise ConfigError(f"several images would write {', '.join(double)}: give them different names, or folders each")
    wheres = _place_maps(arguments.disagreement, targets)
    failures: list[SeriesError] = []
    with _open_table(arguments.csv) as write_sizes:
        images = tqdm(arguments.images, unit="image", disable=None)
        for image, target, where in zip(images, targets, wheres, strict=True):
            try:
                with PassBar(image.name) as show:
                    result = predictor.segment(
                        image,
                        arguments.model,
                        with_quality=arguments.quality,
                        with_disagreement=where is not None,
                        progress=show,
                    )
                straight = to_straight(result)
                is_moved = straight.mask.shape != result.mask.shape or not np.allclose(
                    straight.image.affine, result.image.affine, atol=1e-4
                )
                result = straight
                write_mask(target, result)
                if where is not None:
                    write_disagreement(where, result)
            except SeriesError as error:  # of this image: the others go on
                failures.append(error)
                if arguments.json:
                    print(json.dumps({"image": str(image), "error": str(error)}), flush=True)
                if len(arguments.images) > 1:
                    print(f"iopfl: {error}", file=sys.stderr, flush=True)
                continue
            params = result.answer.to_params()
            if is_moved:
                params["grid"] = _STRAIGHT
                print(f"iopfl: {image.name}: {_STRAIGHT}", file=sys.stderr, flush=True)
            if warning := describe_mismatch(predictor.task, find_mismatch(predictor.task, read_facts(image))):
                params["warning"] = warning
                print(f"iopfl: {image.name}: {warning}", file=sys.stderr, flush=True)
            write_sizes(image, params)
            _say(image, target, params, as_json=arguments.json)
    if len(failures) == len(arguments.images) == 1:
        raise failures[0]
    if failures:
        print(f"iopfl: {len(failures)} of {len(arguments.images)} images were not segmented", file=sys.stderr)
        raise SystemExit(2 if len(failures) == len(arguments.images) else SOME_FAILED)


def _place_maps(asked: Path | None, targets: Sequence[Path]) -> list[Path | None]:
    """Where each image's map of disagreement goes.

    Raises:
        ConfigError: a file for several images, or over a mask.
    """
    from iopfl.images.names import find_suffix

    if asked is None:
        return [None] * len(targets)
    is_file = find_suffix(asked.name) is not None
    if is_file and len(targets) > 1:
        raise ConfigError(f"--disagreement: {len(targets)} images do not fit into {asked.name}: give a folder")
    places = [asked] if is_file else [asked / target.name for target in targets]
    if {place.resolve() for place in places} & {target.resolve() for target in targets}:
        raise ConfigError("--disagreement: it would be written over a mask: give another name, or another folder")
    return list(places)


def _say(image: Path, target: Path, params: dict[str, Any], *, as_json: bool) -> None:
    for line in params.get("left_out", ()):
        print(f"iopfl: {image.name}: left out of its series: {line}", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps({"image": str(image), "mask": str(target), **params}), flush=True)
        return
    quality = f", quality {params['quality']:.2f}" if "quality" in params else ""
    print(f"{target}: {params['model']} of bank {params['bank']}{quality}, {params['seconds']:.1f} s", flush=True)
    if "shortened" in params:
        print(f"{target}: {params['shortened']}", flush=True)


@contextlib.contextmanager
def _open_table(path: Path | None) -> Iterator[WriteSizes]:
    """Give what writes an image's sizes, a line for each label, as soon as they are known."""
    if path is None:
        yield lambda image, params: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, (*_COLUMNS, *_IN_PIXELS), extrasaction="ignore")
        table.writeheader()

        def write(image: Path, params: dict[str, Any]) -> None:
            for label, size in params["measurements"].items():
                table.writerow({**params, "image": str(image), "label": label, **size})
            file.flush()

        yield write
