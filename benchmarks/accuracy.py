"""Accuracy inside and outside the federation: every method on the same banks, images and seeds.

    python benchmarks/accuracy.py --data ../shared/data/retina-vessel --task vessel

Leaves each site out in turn, trains federations on the others, then scores the inside methods on the inside sites' test
images and the outside methods on all images of the site left out. Methods outside are given images only; labels are
read by the scorer, afterwards, except where a row says "(by labels)". Prints tables and writes them with plots, JSON
and a CSV of cases. Trained models and finished rows are kept in --out: interrupted, the same command goes on.
Two processes with different --seeds may share --out; --report prints what is there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from comparing import Row
from federation import Setup, train_federation
from inside import centralized, fedavg, fedbn, fedprox, local_only
from inside.ours import personalize
from iopfl.base.files import write_bytes
from iopfl.core.inference import predict
from iopfl.core.sites import find_sites
from iopfl.core.task import read_task
from iopfl.core.weights import Weights
from outside import METHODS, OURS, PARTS
from outside.averages import use_expert
from outside.upper_bound import train_and_predict
from reporting import write_report
from scoring import Images, measure, score

INSIDE = ("local only", "FedAvg", "FedProx", "FedBN", "Ditto", "accumulation as published", OURS, "centralized")
BEST_EXPERT, UPPER_BOUND, CEILING = "best single expert (by labels)", "routing (by labels)", "centralized"
OUTSIDE = (*METHODS, *PARTS, BEST_EXPERT, UPPER_BOUND, CEILING)


class Fold:
    """One site left out, one seed: its federations, trained when they are first asked for, and its rows."""

    def __init__(self, setup: Setup, outside: str, out: Path) -> None:
        self.setup = setup
        self.outside = outside
        self._out = out

    def rows(self, inside: tuple[str, ...], methods: tuple[str, ...]) -> Iterator[Callable[[], None]]:
        """What there is to do, one row each."""
        for method in inside:
            for site in self.setup.sites:
                yield lambda method=method, site=site: self._keep(site, method, self._score_inside)
        for method in methods:
            yield lambda method=method: self._keep(self.outside, method, self._score_outside)

    def _keep(self, site: str, method: str, make: Callable[[str, str], Row]) -> None:
        """Make a row that is not there yet."""
        name = f"{self.outside}-{self.setup.seed}-{site}-{method}.json"
        path = self._out / "rows" / "".join(c if c.isalnum() or c in "-._" else "_" for c in name)
        if not path.is_file():
            write_bytes(path, json.dumps(asdict(make(site, method))).encode())

    def _score_inside(self, site: str, method: str) -> Row:
        images = Images.load(self.setup, site, "test")
        network = self.setup.build(self._inside_model(site, method))
        answers = [predict(network, volume, self.setup.task, device=self.setup.device) for volume in images.volumes]
        return Row(self.outside, site, self.setup.seed, method, score(answers, images, self.setup.task))

    def _inside_model(self, site: str, method: str) -> Weights:
        if method == "local only":
            return train_federation(self.setup.at(site), local_only)["global"]
        if method == "FedProx":
            return train_federation(self.setup, fedprox)["global"]
        if method == "FedBN":
            return train_federation(self.setup, fedbn)[f"personalized/{site}"]
        if method == CEILING:
            return train_federation(self.setup, centralized)["global"]
        models = train_federation(self.setup, fedavg)
        if method == OURS:
            return personalize(self.setup, models).answers[site]
        return models[{"FedAvg": "global", "Ditto": f"own/{site}"}.get(method, f"personalized/{site}")]

    def _score_outside(self, site: str, method: str) -> Row:
        images = Images.load(self.setup, site, "all")
        if method == CEILING:
            experts = [train_federation(self.setup, centralized)["global"]]
        else:
            models = train_federation(self.setup, fedavg)
            experts = [models["global"], *personalize(self.setup, models).shared.values()]
        scene = images.as_scene(experts, self.setup)
        if method == BEST_EXPERT:
            rows = [measure(use_expert(e), scene, images, site, method) for e in range(len(experts))]
            return max(rows, key=lambda row: row.mean)
        if method == UPPER_BOUND:
            return measure(
                lambda given: train_and_predict(given, images.shares[: len(given.volumes)], share=1.0),
                scene,
                images,
                site,
                method,
            )
        run = use_expert(0) if method == CEILING else {**METHODS, **PARTS}[method]
        return measure(run, scene, images, site, method)


def main() -> None:
    """Run the benchmark."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", type=Path, required=True, help="folder of site folders")
    parser.add_argument("--task", default="vessel", help="name or YAML file (default: %(default)s)")
    parser.add_argument("--outside", nargs="*", help="outside sites, one after the other (default: each)")
    parser.add_argument("--rounds", type=int, default=35, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--inside-methods", nargs="*", choices=INSIDE, default=INSIDE, metavar="NAME")
    parser.add_argument("--methods", nargs="*", choices=OUTSIDE, default=OUTSIDE, metavar="NAME", help="outside")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results/accuracy"), help="(default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is in --out")
    arguments = parser.parse_args()
    task = read_task(arguments.task)
    sites = find_sites(arguments.data)
    settings: dict[str, Any] = {
        **vars(arguments),
        "task": task.to_dict(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(settings, default=str, sort_keys=True))
    work: list[Callable[[], None]] = []
    for seed in () if arguments.report else arguments.seeds:
        for outside in arguments.outside or sites:
            inside = tuple(site for site in sites if site != outside)
            cache = arguments.out / "models"
            setup = Setup(arguments.data, inside, task, arguments.rounds, seed, cache, arguments.device)
            work += Fold(setup, outside, arguments.out).rows(tuple(arguments.inside_methods), tuple(arguments.methods))
    for step in tqdm(work, unit="row", disable=None, desc=task.name):
        step()
    rows = [Row(**json.loads(path.read_bytes())) for path in sorted((arguments.out / "rows").glob("*.json"))]
    inside_rows = [row for row in rows if row.site != row.fold]
    outside_rows = [row for row in rows if row.site == row.fold]
    print(write_report(arguments.out, settings, inside_rows, outside_rows, INSIDE, OUTSIDE))


if __name__ == "__main__":
    main()
