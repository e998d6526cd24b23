"""Requests of every kind to every route of a running label server, shown or not in its description."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from label_server import PACKAGES, LabelServer

SECONDS = 60.0
"""Who waits longer for an answer calls it a hang."""

NASTY = [
    "", ".", "..", "../../secret", "/etc/passwd", "..\\..\\secret", "%2e%2e%2fsecret", "a\x00b", "a\nb", "~root", "*",
    "x" * 300, "\u202eid", "\U0001f9b4" * 80, "-1", "0", str(2**31), str(2**63), str(10**30), "nan", "1e999", "null",
    "[]", "{}", "true", "' OR 1=1 --", "<script>", "eye0/../eye1", "labels", "datastore_v2.json", ".lock", "MD5:x",
]  # fmt: skip
"""Values that something in a server may choke on, or take for a file."""

_KEYS = (
    "adaptation batch_size client_id device dtype enqueue epochs gpus image images info label labels label_info "
    "label_names label_tag largest learning_rate max_batch_size max_epochs max_workers method min_epochs min_labels "
    "model multi_gpu name quality restore_label_idx result_compress result_dtype result_extension "
    "result_write_to_file run_sync save_label seed session site strategy tag task tracking train_ds user val_split "
    "version y y_pred"
)
KEYS = _KEYS.split()
"""Keys of `params` that MONAI Label or the app reads."""
VALUES = [
    None, True, False, 0, 1, -1, 2, 1.5, 1e308, 10**30, "", "x", "1", "final", "cpu", "cuda:7", "spot", "eye0",
    "../../secret", "/etc/passwd", "a\x00b", "\ud800", "x" * 5000, ".png", ".nii.gz", [], [1], ["eye0"], [None], [[]],
    ["../x"], {}, {"a": 1}, {"eye0": 1}, [{"name": "spot", "idx": 1}], [{"name": None}], [{"idx": "x"}],
    {"name": {"name": []}}, {"epochs": 1},
]  # fmt: skip
NO_OBJECTS = ["{", "[" * 100_000, "NaN", '{"a": NaN}', "3", "null", '"x"', ""]

# `{model}` and `{image}` stand for what the server knows.
WITH_BODY = [
    "/train/{model}",
    "/train/",
    "/batch/infer/{model}",
    "/activelearning/random",
    "/scoring/dice",
    "/scoring/",
]
SYNC = ["", "?run_sync=true", "?enqueue=true", "?run_sync=x"]
WITH_FORM = [
    ("POST", "/infer/{model}?image={image}", "params"),
    ("POST", "/infer/{model}_routed?image={image}&output=json", "params"),
    ("POST", "/infer/wsi_v2/{model}?image={image}", "wsi"),
    ("PUT", "/datastore/image/info?image={image}", "info"),
    ("PUT", "/datastore/label/info?label={image}&tag=final", "info"),
    ("PUT", "/datastore/updatelabelinfo?label={image}&tag=final", "params"),
]
UPLOADS = [
    ("PUT", "/datastore/image", "file"),
    ("PUT", "/datastore/image?image=fresh", "file"),
    ("PUT", "/datastore/label?image={image}", "label"),
    ("PUT", "/datastore/label?image={image}&tag=original", "label"),
    ("PUT", "/session/", "files"),
    ("PUT", "/session/?uncompress=true", "files"),
    ("POST", "/infer/{model}", "file"),
    ("POST", "/infer/{model}?image={image}", "label"),
    ("POST", "/infer/wsi_v2/{model}", "file"),
]
FILE_NAMES = [
    "a.png", "a.nii.gz", "a.zip", "a.tar", "a.tar.gz", "a", "", ".", "..", "../../evil.png", "/etc/cron.d/x.png",
    "..\\x.png", "a.png/../../x.png", "a\x00.png", "x" * 300 + ".png", "a." + "x" * 300, ".png", "datastore_v2.json",
    "a\n.png", "\u202e.png", "meta.info", "a.b.c.d.e.f.png", "\U0001f9b4" * 80 + ".png", "~.png", "a;b.png", 'a"b.png',
]  # fmt: skip

# In a process of its own: building the app changes MONAI Label for good.
DESCRIBE = """
import json, sys
from pathlib import Path
from iopfl.server import build_app
from iopfl.access.settings import AccessSettings

def show(routes):
    for route in routes:
        if hasattr(route, "original_router"):
            show(route.original_router.routes)
        elif getattr(route, "path", "/") != "/":  # a page without parameters
            route.include_in_schema = True

app = build_app(AccessSettings(mode="local", state=Path(sys.argv[1])))
show(app.routes)
app.openapi_schema = None
json.dump(app.openapi(), sys.stdout)
"""


def describe_all(folder: Path) -> dict[str, Any]:
    """The server's OpenAPI description, with the routes that it leaves out."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", DESCRIBE, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=240)
    return json.loads(done.stdout[done.stdout.index('{"openapi"') :])


@dataclass
class Fuzz:
    """What was sent, and what came back that should not.

    Attributes:
        server: a running one, with authentication on.
        schema: its description.
        known: parameter -> values that mean something to it: without these, little but 404 would come back.
        tokens: first part of an address -> token to send with it; "" = all others.
        statuses: the statuses of all answers.
        bare: the same of the same requests, each sent once more without a token.
        failures: what may not be: a 500, a hang, a lost connection, a 503 that does not say when to come back, an
            answer in words that tells where the server's folders are.
        place: what lies above all of the server's folders; none of the requests names it.
    """

    server: LabelServer
    schema: Mapping[str, Any]
    known: Mapping[str, list[str]]
    tokens: Mapping[str, str]
    statuses: Counter[int] = field(default_factory=Counter)
    bare: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    place: str = ""

    def run(self, examples: int, *, start: int = 0) -> None:
        """Send so many requests of each mode to each route; `start` seeds them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for result in schemathesis.openapi.from_dict(dict(self.schema)).get_all_operations():
                operation = result.ok()
                self._send_to(operation, GenerationMode.POSITIVE, examples, start)
                if _can_be_wrong(operation):
                    self._send_to(operation, GenerationMode.NEGATIVE, examples, start)

    def run_params(self, count: int, *, start: int = 0) -> None:
        """Send so many requests whose `params` hold keys that are read, with values that are not expected."""
        random = Random(start)
        for _ in range(count):
            values = {key: random.choice(VALUES) for key in random.sample(KEYS, random.randint(1, 4))}
            text = json.dumps(values) if random.random() < 0.9 else random.choice(NO_OBJECTS)
            if random.random() < 0.5:
                path = random.choice(WITH_BODY) + random.choice(SYNC)
                self._ask("POST", path, data=text.encode(), headers={"Content-Type": "application/json"})
            else:
                method, path, name = random.choice(WITH_FORM)
                self._ask(method, path, files={name: (None, text)})

    def run_uploads(self, count: int, contents: list[bytes], *, start: int = 0) -> None:
        """Send so many files under names and with contents that are not expected, whole ones among them."""
        random = Random(start)
        for _ in range(count):
            method, path, name = random.choice(UPLOADS)
            content = random.choice(contents)
            if random.random() < 0.3:
                content = content[: random.randrange(len(content) + 1)]
            elif content and random.random() < 0.3:
                place = random.randrange(len(content))
                content = content[:place] + random.randbytes(4) + content[place + 4 :]
            sent = [(name, (random.choice(FILE_NAMES), content))] * random.choice([1, 1, 1, 2])
            self._ask(method, path, files=sent)

    def _send_to(self, operation: Any, mode: GenerationMode, examples: int, start: int) -> None:
        chosen = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )

        @seed(start)
        @chosen
        @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
        def send(case: Any, data: st.DataObject) -> None:
            for name, value in self._replacements(case, data):
                (case.query if name in case.query else case.path_parameters)[name] = value
            self._call(case)

        try:
            send()
        except Exception as error:  # of the generator: nothing in this mode that could be sent
            if "Unsatisfiable" not in type(error).__name__:
                raise

    def _replacements(self, case: Any, data: st.DataObject) -> Iterator[tuple[str, str]]:
        """Names that are known, or values that are nasty, in place of some of those made up."""
        for name in [*(case.query or {}), *(case.path_parameters or {})]:
            kind = data.draw(st.integers(0, 3))
            if kind > 1 and name in self.known:
                yield name, data.draw(st.sampled_from(self.known[name]))
            elif kind == 1:
                yield name, data.draw(st.sampled_from(NASTY))

    def _call(self, case: Any) -> None:
        def send(headers: Mapping[str, str]) -> Any:
            return case.call(base_url=self.server.url, headers=headers, timeout=SECONDS, allow_redirects=False)

        token = next((token for path, token in self.tokens.items() if path and case.path.startswith(path)), None)
        self._judge(f"{case.method} {case.path}", send, token or self.tokens[""], case.as_curl_command)

    def _ask(self, method: str, path: str, **options: Any) -> None:
        for place, name in (("{model}", self.known["model"][0]), ("{image}", self.known["image"][0])):
            path = path.replace(place, name)
        own = options.pop("headers", {})

        def send(headers: Mapping[str, str]) -> Any:
            return requests.request(
                method, self.server.url + path, headers={**own, **headers}, timeout=SECONDS, **options
            )

        self._judge(f"{method} {path}", send, self.tokens[""], lambda: str(options))

    def _judge(self, what: str, send: Callable[[Mapping[str, str]], Any], token: str, describe: Callable) -> None:
        """Send a request with its token and without, and note what may not come of it."""
        for counter, headers in ((self.statuses, {"Authorization": f"Bearer {token}"}), (self.bare, {})):
            try:
                answer = send(headers)
            except (requests.RequestException, OSError) as error:
                self.failures.append(f"{what}: {type(error).__name__} {error}\n  {describe()[:1500]}")
                continue
            status = answer.status_code
            counter[status] += 1
            if status >= 500 and not (status == 503 and "retry-after" in {name.lower() for name in answer.headers}):
                self.failures.append(f"{what}: {status} {answer.text[:300]}\n  {describe()[:1500]}")
            elif self.place and tells(answer, self.place):
                self.failures.append(f"{what}: tells {self.place}: {answer.text[:600]}\n  {describe()[:1500]}")


def tells(answer: requests.Response, place: str) -> bool:
    """Whether an answer in words, or its headers, names a place on the server."""
    values = [value for value in answer.headers.values() for value in ([value] if isinstance(value, str) else value)]
    is_words = any(value.startswith(("text/", "application/json")) for value in values)
    return (is_words and place in answer.text) or any(place in value for value in values)


def make_uploads(image: bytes) -> list[bytes]:
    """Files to send: a real one, archives of it that lead outside, and what is none at all."""
    packed, rolled = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x/../../../evil.png", image)
    with tarfile.open(fileobj=rolled, mode="w:gz") as archive:
        member = tarfile.TarInfo("../evil.png")
        member.size = len(image)
        archive.addfile(member, io.BytesIO(image))
    return [image, packed.getvalue(), rolled.getvalue(), b"", b"x" * 1000]


def snapshot(folder: Path, *, besides: tuple[Path, ...]) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below a folder, except in some."""
    found = {}
    for path in folder.rglob("*"):
        if not any(path.is_relative_to(other) for other in besides) and path.is_file():
            found[str(path)] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def _can_be_wrong(operation: Any) -> bool:
    """Whether something other than text fits a place in a request; a path alone is text whatever it holds."""
    return bool(list(operation.body)) or any(one.location != "path" for one in operation.iter_parameters())
