"""The commands of `iopfl`, and those that are one action; each calls one function of the package.

Results on stdout, logs and progress on stderr; exit status 2 and one plain line on bad input.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from iopfl import __version__
from iopfl.base.allocation import keep_blocks
from iopfl.base.errors import CancelledError, IOPFLError, SeriesError
from iopfl.cli.models import add_bank, add_keys, add_model, open_predictor
from iopfl.cli.segment import SOME_FAILED, add_segment
from iopfl.datasets import IMPORTABLE

if TYPE_CHECKING:
    from iopfl.core.evaluation import Evaluation
    from iopfl.core.predictor import Predictor
    from iopfl.core.sites import Case

_EXAMPLE = "example:\n  "


def main(argv: Sequence[str] | None = None) -> int:
    """Run `iopfl`; returns the exit status."""
    keep_blocks()  # before anything starts a thread
    arguments = build_parser().parse_args(argv)
    warnings.simplefilter("ignore", FutureWarning)  # MONAI's, about its own arguments
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        arguments.run(arguments)
    except CancelledError as error:
        print(error, file=sys.stderr)
        return 130
    except IOPFLError as error:
        print(f"iopfl: {' '.join(str(error).split())}", file=sys.stderr)  # a YAML's error has many lines
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written to
        print(f"iopfl: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("iopfl: stopped", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; docs and tests read its help."""
    parser = _Parser(prog="iopfl", description="Personalized federated segmentation in MONAI Label.")
    parser.add_argument("--version", action="version", version=f"iopfl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    add_segment(commands, _add)
    _add_evaluate(commands)
    _add_bank(commands)
    _add_datasets(commands)
    _add_users(commands)
    _add_dicom(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line; the usage is in `--help`."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _add(commands: Any, name: str, run: Callable[[Any], None], text: str, example: str) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=text, description=text, epilog=_EXAMPLE + example, formatter_class=raw)
    parser.set_defaults(run=run)
    return parser


def _add_serve(commands: Any) -> None:
    from iopfl.server_options import add_arguments

    example = "iopfl serve --studies sites/site_d --bank bank/ --site site_d"
    parser = _add(
        commands, "serve", _serve, "Start the label server for Slicer, OHIF and the page of our own.", example
    )
    add_arguments(parser)
    add_bank(
        parser,
        bank="folder of a bank; one to come from a federation, with --site and --task",
        site="this site's name in the bank; none for an outside site",
    )


def _serve(arguments: Any) -> None:
    from dataclasses import replace

    from iopfl.core.bank.manifest import MANIFEST, read_manifest
    from iopfl.core.bank.signing import Keyring
    from iopfl.core.task import read_task
    from iopfl.server_options import limits_conf, settings_from

    task = read_task(arguments.task) if arguments.task else None
    awaited = bool(arguments.site and task) and not (arguments.bank / MANIFEST).is_file()
    if not awaited:
        read_manifest(arguments.bank)
    from iopfl.server import serve  # imports the half of what a server needs; after mistakes that need none of it

    def check_bank() -> None:
        """Open the bank once, so that what is wrong is said in one line before anything answers."""
        from iopfl.core.bank.bank import ModelBank

        if not awaited:
            ModelBank.open(arguments.bank, task=task, keys=Keyring(arguments.keys))

    settings = settings_from(arguments)
    task_file = Path(arguments.task).resolve() if arguments.task and Path(arguments.task).is_file() else arguments.task
    conf = {
        "bank": str(arguments.bank.resolve()),
        "tasks": str(task_file or ""),
        "site": arguments.site,
        "device": arguments.device,
        "keys": str(arguments.keys.resolve()),
        **limits_conf(arguments),
    }
    serve(replace(settings, conf={**conf, **settings.conf}), check=check_bank)


def _add_evaluate(commands: Any) -> None:
    example = "iopfl evaluate --studies sites/site_d --bank bank/ --model routed"
    text = "Score a model on a site's labeled images, each on its own grid. Exit status 1: some could not be."
    parser = _add(commands, "evaluate", _evaluate, text, example)
    parser.add_argument("--studies", type=Path, required=True, metavar="SITE_FOLDER", help="images and labels/final/")
    parser.add_argument("--split", default="test", help="train, validation, test or all (default: %(default)s)")
    add_model(parser)


def _evaluate(arguments: Any) -> None:
    predictor = open_predictor(arguments)

    from tqdm import tqdm

    from iopfl.cli.passes import PassBar
    from iopfl.core.evaluation import evaluate, select_cases

    cases = select_cases(arguments.studies, predictor.task, arguments.split)
    site = arguments.studies.resolve().name
    failures: dict[str, str] = {}

    def refuse(case: Case, error: SeriesError) -> None:
        failures[case.stem] = str(error)

    with tqdm(total=len(cases), unit="image", disable=None) as bar:
        result = evaluate(
            predictor,
            cases,
            arguments.model,
            site=site,
            progress=lambda done, _: bar.update(done - bar.n),
            follow=lambda case: PassBar(case.image.name),
            refuse=refuse,
        )
    _say_evaluation(arguments, site, result, failures, predictor)
    for failure in failures.values():
        print(f"iopfl: {failure}", file=sys.stderr)
    if failures:
        print(f"iopfl: {len(failures)} of {len(cases)} images were not evaluated", file=sys.stderr)
        raise SystemExit(SOME_FAILED)


def _say_evaluation(
    arguments: Any, site: str, result: Evaluation, failures: Mapping[str, str], predictor: Predictor
) -> None:
    if arguments.json:
        print(json.dumps({**result.to_dict(), "failed": failures}, indent=1))
        return
    unit = result.cases[0].unit
    print(f"{site}, {result.kind}, {len(result.cases)} images of split {arguments.split}, bank {predictor.bank.label}")
    print(f"{'region':<14}{'Dice':>8}{'HD95 ' + unit:>13}{'ASSD ' + unit:>13}")
    for region in predictor.task.scored_regions:
        dice, hd95, assd = (result.mean(metric, region) for metric in ("dice", "hd95", "assd"))
        print(f"{region:<14}{dice:8.3f}{hd95:13.2f}{assd:13.2f}")
    print(f"{result.seconds:.2f} s per image")
    if result.undefined("dice") or result.undefined("hd95"):
        print(
            f"left out: {result.undefined('dice')} Dice (nothing in the reference), "
            f"{result.undefined('hd95')} distances (nothing in the reference or the mask)"
        )


def _add_bank(commands: Any) -> None:
    text = "Show, verify, compare, roll back, export, import and trust model banks."
    example = "iopfl bank show bank/"
    parser = _add(commands, "bank", lambda _: None, text, example)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    from iopfl.cli.bank import add_actions

    add_actions(lambda name, run, text, example: _add(actions, name, run, text, example), add_keys)


def _add_dicom(commands: Any) -> None:
    from iopfl.cli.dicom import add_actions

    text = "Receive, segment and send DICOM (DIMSE)."
    parser = _add(commands, "dicom", lambda _: None, text, "iopfl dicom echo pacs.hospital 104 -aec ORTHANC")
    add_actions(parser.add_subparsers(required=True, metavar="ACTION"), _add, add_keys)


def _add_users(commands: Any) -> None:
    from iopfl.cli.users import add_audit_actions, add_user_actions

    text = "Add, list and remove who may sign in, and make tokens for programs."
    parser = _add(commands, "users", lambda _: None, text, "iopfl users add anna --role annotator")
    users = parser.add_subparsers(required=True, metavar="ACTION")
    add_user_actions(lambda name, run, text, example: _add(users, name, run, text, example))
    text = "Show who did what at a label server, and check that the record was not altered."
    parser = _add(commands, "audit", lambda _: None, text, "iopfl audit show --user anna")
    audit = parser.add_subparsers(required=True, metavar="ACTION")
    add_audit_actions(lambda name, run, text, example: _add(audit, name, run, text, example))


def _add_datasets(commands: Any) -> None:
    text = "Make phantoms, or bring public data sets into site folders."
    parser = _add(commands, "datasets", lambda _: None, text, "iopfl datasets phantom -o sites/")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    phantom = _add(
        actions,
        "phantom",
        _phantom,
        "Write multi-site prostate phantoms.",
        "iopfl datasets phantom -o sites/ --cases 10",
    )
    phantom.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="new folder of site folders")
    phantom.add_argument("--cases", type=int, default=10, help="a site (default: %(default)s)")
    phantom.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    importer = _add(
        actions,
        "import",
        _import_dataset,
        "Bring a downloaded data set into site folders with splits.",
        "iopfl datasets import drive ~/Downloads/DRIVE -o sites/",
    )
    importer.add_argument("name", help=f"one of {', '.join(IMPORTABLE)}")
    importer.add_argument("folder", type=Path, help="the data set as downloaded and unpacked")
    importer.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of site folders")


def _phantom(arguments: Any) -> None:
    from tqdm import tqdm

    from iopfl.datasets import write_phantoms

    with tqdm(unit="case", disable=None) as bar:
        progress = _follow(bar)
        print(write_phantoms(arguments.output, cases=arguments.cases, seed=arguments.seed, progress=progress))


def _import_dataset(arguments: Any) -> None:
    from tqdm import tqdm

    from iopfl.datasets import import_dataset

    with tqdm(unit="image", disable=None) as bar:
        summary = import_dataset(arguments.name, arguments.folder, arguments.output, progress=_follow(bar))
    print(summary)


def _follow(bar: Any) -> Callable[[int, int], None]:
    """A callback that moves a progress bar."""

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return progress
