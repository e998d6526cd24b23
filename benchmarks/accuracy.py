"""Accuracy at a site outside the federation, all methods on the same bank and images.

    python benchmarks/accuracy.py --data ../shared/data/retina-vessel --task vessel --outside CHASE_DB1

Trains a bank on the other sites (cached), then segments the outside site's
images with each method and scores them on their own grid. Methods are given
images only; labels are read by the scorer, afterwards. Prints a table and
writes JSON and a CSV of cases.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from federation import train_bank
from iopfl.core.adaptation import RoutingAdapter
from iopfl.core.bank import ModelBank
from iopfl.core.evaluation import score_case
from iopfl.core.inference import predict
from iopfl.core.networks import build_network
from iopfl.core.predictor import Answer, Segmentation
from iopfl.core.published import adapt_published, predict_published
from iopfl.core.routing import route_network
from iopfl.core.sites import Case, find_cases, find_sites, labeled, split_cases
from iopfl.core.task import Task, read_task
from iopfl.core.transforms import Preprocessing, read_image, to_mask
from iopfl.core.views import View, views_of

Method = Callable[[ModelBank, Task, Sequence[Tensor], str], list[Tensor]]
"""Bank, task, prepared images (C, X, Y, Z) and device to class probabilities (K, X, Y, Z). No labels."""


def with_global(bank: ModelBank, task: Task, volumes: Sequence[Tensor], device: str) -> list[Tensor]:
    """The global model."""
    network = bank.build(bank.experts[0])
    return [predict(network, volume, task, device=device) for volume in volumes]


def with_average(share: float, views: bool) -> Method:
    """The uniform average of the bank, with a share of each image's own statistics, over views or not."""

    def method(bank: ModelBank, task: Task, volumes: Sequence[Tensor], device: str) -> list[Tensor]:
        routed = route_network(build_network(task), bank.experts)
        routed.set_share(share)
        seen = views_of(task) if views else [View()]
        return [predict(routed, volume, task, device=device, views=seen) for volume in volumes]

    return method


def with_published(bank: ModelBank, task: Task, volumes: Sequence[Tensor], device: str) -> list[Tensor]:
    """Published routing, last epoch: adapted to all images, then predicting them."""
    with tqdm(desc="published", unit="epoch", disable=None) as bar:
        routed = adapt_published(
            build_network(task), bank.experts, volumes, task, device=device, progress=lambda *_: bar.update()
        )
    return [predict_published(routed, volume, task, device=device) for volume in volumes]


def with_default(bank: ModelBank, task: Task, volumes: Sequence[Tensor], device: str) -> list[Tensor]:
    """Ours: each image adapted to on its own."""
    adapter = RoutingAdapter(route_network(build_network(task), bank.experts), task, device=device)
    outputs = []
    for volume in tqdm(volumes, desc="default", unit="image", disable=None):
        series = adapter(volume)
        outputs.append(predict(series.network, volume, task, device=device, views=series.views))
    return outputs


METHODS: dict[str, Method] = {
    "global": with_global,
    "average": with_average(0.0, views=False),
    "average + views": with_average(0.0, views=True),
    "average + image statistics": with_average(1.0, views=False),
    "average + image statistics + views": with_average(1.0, views=True),
    "published, last epoch": with_published,
    "default": with_default,
}


@dataclass(frozen=True)
class Row:
    """One method at one site with one seed: Dice of each case, seconds and forward-equivalents an image."""

    outside: str
    seed: int
    method: str
    dice: dict[str, float]
    seconds: float
    forwards: float


def run_method(
    name: str, bank: ModelBank, task: Task, cases: Sequence[Case], *, outside: str, seed: int, device: str
) -> Row:
    """Segment all cases with a method, then score them."""
    prepare = Preprocessing(task)
    images = [read_image(case.image, task) for case in cases]
    prepared = [prepare(image) for image in images]
    volumes = [volume.as_tensor() for volume in prepared]
    plain = bank.build(bank.experts[0])
    predict(plain, volumes[0], task, device=device)
    with FlopCounterMode(display=False) as forward:
        predict(plain, volumes[0], task, device=device)
    started = time.perf_counter()
    with FlopCounterMode(display=False) as counter:
        outputs = METHODS[name](bank, task, volumes, device)
    seconds = (time.perf_counter() - started) / len(cases)
    dice = {}
    for case, image, like, output in zip(cases, images, prepared, outputs, strict=True):
        answer = Answer(task.name, bank.label, name, seconds)
        mask = to_mask(prepare.inverse(output, like=like).as_tensor(), task)
        scores = list(score_case(Segmentation(mask, image, answer), case, task).dice.values())
        dice[case.stem] = float(np.nanmean(scores))
    forwards = counter.get_total_flops() / forward.get_total_flops() / len(cases)
    return Row(outside, seed, name, dice, seconds, forwards)


def print_table(rows: Sequence[Row]) -> None:
    """Mean over seeds and cases, a column a site."""
    sites = list(dict.fromkeys(row.outside for row in rows))
    print(
        f"\n{'Dice':<36}"
        + "".join(f"{site:>12}" for site in sites)
        + f"{'mean':>8}{'worst':>8}{'s':>8}{'forwards':>10}"
    )
    for method in METHODS:
        mine = [row for row in rows if row.method == method]
        if not mine:
            continue
        means = [float(np.mean([np.mean(list(r.dice.values())) for r in mine if r.outside == site])) for site in sites]
        cost = f"{np.mean([r.seconds for r in mine]):8.2f}{np.mean([r.forwards for r in mine]):10.1f}"
        cells = "".join(f"{mean:12.3f}" for mean in means)
        print(f"{method:<36}{cells}{np.mean(means):8.3f}{min(means):8.3f}{cost}")


def main() -> None:
    """Run the benchmark."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", type=Path, required=True, help="folder of site folders")
    parser.add_argument("--task", default="vessel", help="name or YAML file (default: %(default)s)")
    parser.add_argument("--outside", nargs="*", help="outside sites, one after the other (default: each)")
    parser.add_argument("--rounds", type=int, default=35, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 (default: %(default)s)")
    parser.add_argument("--images", type=int, help="of the outside site, the first so many (default: all)")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results/accuracy"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    task = read_task(arguments.task)
    sites = find_sites(arguments.data)
    settings = {
        **vars(arguments),
        "task": task.to_dict(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(settings, default=str, sort_keys=True))
    rows: list[Row] = []
    for outside in arguments.outside or sites:
        for seed in range(arguments.seeds):
            inside = [site for site in sites if site != outside]
            options = {"rounds": arguments.rounds, "seed": seed, "device": arguments.device}
            bank = train_bank(arguments.data, inside, task, cache=arguments.out / "banks", **options)
            cases = labeled(
                split_cases(find_cases(arguments.data / outside), task, site_folder=arguments.data / outside)["all"]
            )
            for name in arguments.methods:
                row = run_method(
                    name, bank, task, cases[: arguments.images], outside=outside, seed=seed, device=arguments.device
                )
                rows.append(row)
                print(f"{outside}, seed {seed}, {name}: Dice {np.mean(list(row.dice.values())):.3f}", flush=True)
    print_table(rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "accuracy.json").write_text(
        json.dumps({"settings": settings, "rows": [vars(r) for r in rows]}, default=str)
    )
    with (arguments.out / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["outside", "seed", "method", "case", "dice"])
        writer.writerows([r.outside, r.seed, r.method, case, dice] for r in rows for case, dice in r.dice.items())


if __name__ == "__main__":
    main()
