"""The demo: sites, a federation, its bank, a report, and the outside site's label server.

`make demo` runs it on phantoms; `make demo DATA=folder TASK=task OUTSIDE=site`
on real images. What was done before is taken up again; Ctrl-C stops all of it.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NoReturn

import requests
import torch
from tqdm import tqdm

from fl_bridge.simulate import Simulation, simulate
from iopfl.base.errors import ConfigError, IOPFLError
from iopfl.core.bank.bank import ModelBank
from iopfl.core.evaluation import Evaluation, evaluate, score_case, select_cases
from iopfl.core.predictor import LocalModel, Predictor
from iopfl.core.sites import Case, find_cases, find_sites, labeled, split_cases
from iopfl.core.task import Task, read_task
from iopfl.core.transforms import read_image, read_label
from iopfl.core.weights import read_weights
from iopfl.datasets import write_phantoms
from scripts.findings import Example, Report, SiteSummary
from scripts.report import write_report

ROOT = Path(__file__).resolve().parents[1]
PHANTOM_TASK = ROOT / "sample-datasets" / "prostate_phantom" / "task.yaml"
PHANTOM_OUTSIDE = "site_d"
ROUNDS = 16
INSIDE_KINDS = ("global", "local", "personalized")
OUTSIDE_KINDS = ("global", "average", "published", "routed")
MAX_IMAGES = 8
"""Test images per site that the demo scores; `iopfl evaluate` scores all."""
EXAMPLES = 3


def main() -> int:
    """Run the demo; returns the exit status."""
    # SIGTERM ends as Ctrl-C does: through every `finally` on the way out.
    signal.signal(signal.SIGTERM, _stop)
    torch.set_num_threads(2)
    arguments = _parse()
    try:
        run(arguments)
    except IOPFLError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here")
        return 130
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Each step of the demo, and how long it took."""
    started = time.monotonic()
    folder = Path(arguments.folder)
    data = Path(arguments.data) if arguments.data else _phantoms(folder / "sites")
    task = read_task(arguments.task or (PHANTOM_TASK if not arguments.data else ""))
    outside = arguments.outside or (PHANTOM_OUTSIDE if not arguments.data else find_sites(data)[-1])
    rounds = int(arguments.rounds or ROUNDS)
    work = folder / f"{data.resolve().name}-{task.name}-{outside}"
    print(f"a federation of all sites of {data} but {outside}, {rounds} rounds", flush=True)
    result = simulate(data, task, outside=[outside], rounds=rounds, bank=work / "bank")
    bank = ModelBank.open(result.bank)
    inside = [score for site in result.inside for score in _score_inside(bank, task, data / site, result)]
    outer, examples = _score_outside(bank, task, data / outside)
    print_table(inside, outer)
    report = work / "report.html"
    seconds = time.monotonic() - started
    settings = {"rounds": str(rounds), "seed": "0", "device": "cpu", "seconds until here": f"{seconds:.0f}"}
    summaries = [_summarize(data / site, task, is_inside=site != outside) for site in (*result.inside, outside)]
    write_report(
        report,
        Report(
            title=f"{task.description or task.name}: {outside} outside the federation",
            task=task,
            created=date.today().isoformat(),
            sites=summaries,
            bank=bank.manifest,
            inside=inside,
            outside=outer,
            examples=examples,
            settings=settings,
        ),
    )
    print(f"\nbank    {result.bank}\nreport  {report}\n{seconds:.0f} s until here", flush=True)
    _serve(data / outside, result.bank, work / "state", once=arguments.once, port=arguments.port)


def print_table(inside: Sequence[Evaluation], outside: Sequence[Evaluation]) -> None:
    """Dice, distances and seconds of each model at each site, as they came out."""
    rows = [*inside, *outside]
    unit = rows[0].cases[0].unit
    print(f"\n{'site':<14}{'model':<14}{'images':>7}{'Dice':>8}{'HD95 ' + unit:>13}{'ASSD ' + unit:>13}{'s/image':>9}")
    for row in rows:
        figures = f"{row.mean('dice'):8.3f}{row.mean('hd95'):13.2f}{row.mean('assd'):13.2f}{row.seconds:9.2f}"
        note = "  outside" if row in outside else ""
        print(f"{row.site:<14}{row.kind:<14}{len(row.cases):>7}{figures}{note}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="demo", help="where everything is kept (default: %(default)s)")
    parser.add_argument("--data", default="", help="folder of site folders (default: phantoms)")
    parser.add_argument("--task", default="", help="name or YAML file")
    parser.add_argument("--outside", default="", help="site that takes no part (default: the last)")
    parser.add_argument("--rounds", default="", help=f"(default: {ROUNDS})")
    parser.add_argument(
        "--port", type=int, default=8000, help="another is taken if it is not free (default: %(default)s)"
    )
    parser.add_argument("--once", action="store_true", help="stop once the server has answered")
    arguments = parser.parse_args()
    if arguments.data and not arguments.task:
        parser.error("TASK is needed with DATA: a task's name or YAML file, e.g. TASK=vessel")
    return arguments


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _phantoms(folder: Path) -> Path:
    if not folder.is_dir():
        with tqdm(desc="phantoms", unit="case", disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            write_phantoms(folder, progress=progress)
    return folder


def _score_inside(bank: ModelBank, task: Task, site_folder: Path, result: Simulation) -> list[Evaluation]:
    site = site_folder.name
    weights, _ = read_weights(result.local_models[site])
    predictor = Predictor(bank, site=site, task=task, local=LocalModel(weights, {}))
    cases = select_cases(site_folder, task, "test")[:MAX_IMAGES]
    kinds = [kind for kind in INSIDE_KINDS if kind != "personalized" or bank.find(site)]
    return [_evaluate(predictor, cases, kind, site) for kind in kinds]


def _score_outside(bank: ModelBank, task: Task, site_folder: Path) -> tuple[list[Evaluation], list[Example]]:
    site = site_folder.name
    predictor = Predictor(bank, task=task)
    cases = select_cases(site_folder, task, "test")[:MAX_IMAGES]
    evaluations = [_evaluate(predictor, cases, kind, site) for kind in OUTSIDE_KINDS]
    examples = []
    for case in cases[:EXAMPLES]:
        shown = {kind: predictor.segment(case.image, kind) for kind in ("global", "routed")}
        dice = {}
        for kind, segmentation in shown.items():
            scores = list(score_case(segmentation, case, task).dice.values())
            dice[kind] = sum(scores) / len(scores)
        examples.append(Example(site, case.stem, shown, _reference(case, task), dice))
    return evaluations, examples


def _evaluate(predictor: Predictor, cases: Sequence[Case], kind: str, site: str) -> Evaluation:
    with tqdm(total=len(cases), desc=f"{site}, {kind}", unit="image", leave=False, disable=None) as bar:
        return evaluate(predictor, cases, kind, site=site, progress=lambda done, _: bar.update(done - bar.n))


def _reference(case: Case, task: Task) -> torch.Tensor | None:
    if case.label is None:
        return None
    classes = read_label(case.label, task, like=read_image(case.image, task))[0].as_tensor().long()
    return torch.tensor(task.label_values, dtype=torch.uint8)[classes]


def _summarize(site_folder: Path, task: Task, *, is_inside: bool) -> SiteSummary:
    split = split_cases(find_cases(site_folder), task, site_folder=site_folder)
    train = len(labeled(split["train"])) if is_inside else 0
    return SiteSummary(site_folder.name, is_inside, train, min(MAX_IMAGES, len(labeled(split["test"]))))


def _serve(studies: Path, bank: Path, state: Path, *, once: bool, port: int) -> None:
    """Start the outside site's label server, and stop it with the demo."""
    command = [sys.executable, "-m", "iopfl.cli", "serve", "--studies", str(studies), "--bank", str(bank)]
    command += ["--state", str(state), "--log-level", "WARNING", "--port"]
    state.mkdir(parents=True, exist_ok=True)
    log = state / "server.log"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            print(f"port {port} is taken, another is used", flush=True)
            port = 0
    with log.open("w") as errors:
        server = subprocess.Popen([*command, str(port)], stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        url = next((line.strip() for line in server.stdout or () if line.startswith("http")), None)
        if url is None:
            raise ConfigError(f"the label server did not start: {log.read_text().strip().splitlines()[-1:]}")
        models = ", ".join(requests.get(f"{url}/info/", timeout=60).json()["models"])
        print(f"\nlabel server at {url} (its page: the same address; Slicer: MONAI Label server): {models}")
        print("Ctrl-C stops it", flush=True)
        if not once:
            server.wait()
    finally:
        server.terminate()
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())
