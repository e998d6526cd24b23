"""A running label server with authentication on: every route is closed, each role opens its own, all is recorded."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from iopfl import compat, server
from iopfl.access.audit import AuditLog
from iopfl.access.settings import check_certificate
from iopfl.access.throttle import TRIES_OF_ONE
from iopfl.access.users import Users
from iopfl.base.errors import ConfigError
from label_server import PACKAGES, running_server, start_process

from .site import APP, SPOT, conf_of, make_site_bank, write_picture

compat.apply_early()  # before MONAI Label is imported

CHROMIUM = Path("/usr/bin/chromium")
PASSWORD = "four words nobody guesses"
ROUND = "/iopfl/federations/spot/fed-1/rounds/0/train?base_hash=x"
BANK = "/iopfl/banks/spot.iopfl"
CLOSED = {401, 403}
LOADED = re.compile(r"""(?:@import|url\(|import|from|importScripts\()[\s("']*((?:https?:)?//[^"')\s]+)""")
"""What a style sheet or a script has a browser fetch from another host."""

# The routes of the app as it is served, from a process of its own: building it changes MONAI Label for good.
LIST_ROUTES = """
import json, sys
from pathlib import Path
from iopfl.server import build_app
from iopfl.access.settings import AccessSettings

def walk(routes):
    for route in routes:
        if hasattr(route, "original_router"):
            yield from walk(route.original_router.routes)
        elif getattr(route, "methods", None):
            yield from ((method, route.path) for method in route.methods)
        else:  # a mount: whatever is below
            yield from ((method, route.path + "/{path}") for method in ("GET", "POST"))

app = build_app(AccessSettings(mode="local", state=Path(sys.argv[1])))
json.dump(sorted(set(walk(app.routes))), sys.stdout)
"""
PUBLIC = {
    ("GET", "/auth/"), ("POST", "/auth/token"), ("GET", "/iopfl/health"), ("GET", "/iopfl/signin"),
    ("POST", "/iopfl/signin"), ("GET", "/iopfl/signin/{name}"), ("GET", "/iopfl/signin/service"),
    ("GET", "/iopfl/signin/callback"),
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("guarded")
    (home / "clinic").mkdir()
    for number in range(3):
        write_picture(home / "clinic" / f"eye{number}.png", number)
    users = Users(home / "state")
    for role in ("annotator", "reviewer", "admin"):
        users.add(f"an-{role}", role, PASSWORD)
    users.add("another-annotator", "annotator", PASSWORD)
    users.add("bridge", "federation", None)
    users.add("another-clinic", "outside", None)
    return home


@pytest.fixture(scope="module")
def conf(home) -> dict[str, str]:
    return conf_of(make_site_bank(home / "bank", SPOT))


@pytest.fixture(scope="module")
def guarded(home, conf):
    (home / "state" / "tmp").mkdir()
    env = {"TMPDIR": str(home / "state" / "tmp")}
    args = ["--auth", "local", "--max-upload-mb", "8"]
    with running_server(APP, home / "clinic", state=home / "state", conf=conf, args=args, env=env) as running:
        yield running


@pytest.fixture(scope="module")
def tokens(guarded, home) -> dict[str, str]:
    """Role -> token; the bridge's as an administrator makes it, the others' as Slicer asks for them."""
    users = Users(home / "state")
    found = {"federation": users.make_token("bridge", 1), "outside": users.make_token("another-clinic", 1)}
    for role in ("annotator", "reviewer", "admin"):
        form = {"username": f"an-{role}", "password": PASSWORD, "grant_type": "password"}
        found[role] = guarded.post("/auth/token", data=form).json()["access_token"]
    return found


@pytest.fixture(scope="module")
def routes(tmp_path_factory) -> list[tuple[str, str]]:
    command = [sys.executable, "-c", LIST_ROUTES, str(tmp_path_factory.mktemp("routes"))]
    environment = {"PYTHONPATH": str(PACKAGES), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path_factory.mktemp("home"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return [(method, path) for method, path in json.loads(done.stdout[done.stdout.index("[") :])]


def ask(server, token, method, path, **options):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return server.request(method, path, headers=headers, allow_redirects=False, **options)


def fill(path: str) -> str:
    """A path with something in each place."""
    path = path.replace("{path:path}", "index.html").replace("{task}", "spot").replace("{model}", "spot")
    return re.sub(r"\{[^}]+\}", "1", path)


def test_no_route_answers_before_a_sign_in_but_those_that_are_for_signing_in(guarded, routes):
    assert len(routes) > 60 and ("GET", "/static/{path}") in routes and ("GET", "/openapi.json") in routes
    opened = set()
    for method, path in routes:
        for token in (None, "iopfl_no", "a.b.c"):
            if ask(guarded, token, method, fill(path)).status_code != 401:
                opened.add((method, path))
    # /iopfl/signin/1 is none of its files, and a form without a password is answered as a wrong one.
    assert opened == PUBLIC - {("GET", "/iopfl/signin/{name}"), ("POST", "/iopfl/signin")}


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/docs/x", "/redoc", "/openapi.json", "/static/ohif/index.html", "/ohif/", "/ohif/viewer",
     "/proxy/dicom/qido/studies", "/logs/", "/logs/gpu", "/reload", "/favicon.ico", "/iopfl/static/start/main.js",
     "/nothing", "//info/", "/INFO/", "/info", "/iopfl/signin/../../info/", "/iopfl/signin/%2e%2e/%2e%2e/info/",
     "/auth/../info/", "/auth/token/valid", "/auth//", "/iopfl/signin/signin.html", "/iopfl/federations/spot"],
)  # fmt: skip
def test_no_address_leads_around_the_sign_in(guarded, path):
    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE"):
        prepared = requests.Request(method, guarded.url).prepare()
        prepared.url = guarded.url + path  # as it stands: nothing is tidied on the way
        answer = requests.Session().send(prepared, timeout=30, allow_redirects=False)
        assert answer.status_code in (401, 405), (method, path, answer.status_code)
        if method == "GET":
            prepared.headers["Accept"] = "text/html,*/*"
            page = requests.Session().send(prepared, timeout=30, allow_redirects=False)
            assert page.status_code == 303 and page.headers["Location"].startswith("/iopfl/signin?next="), path


# What is asked for, and the lowest role that may.
LOWEST = [
    ("GET", "/", "annotator"),
    ("GET", "/info/", "annotator"),
    ("GET", "/docs", "annotator"),
    ("GET", "/openapi.json", "annotator"),
    ("GET", "/iopfl/status", "annotator"),
    ("GET", "/datastore/?output=all", "annotator"),
    ("GET", "/datastore/image?image=eye1", "annotator"),
    ("POST", "/activelearning/random", "annotator"),
    ("POST", "/infer/spot?image=eye1&output=json", "annotator"),
    ("PUT", "/datastore/image/info?image=eye1", "annotator"),
    ("PUT", "/datastore/label?image=eye1", "annotator"),
    ("GET", "/datastore/dataset", "annotator"),
    ("GET", "/iopfl/sizes.csv", "annotator"),
    ("GET", "/iopfl/disagreement?task=spot&image=eye1", "annotator"),
    ("GET", "/train/", "annotator"),
    ("GET", BANK, "annotator"),
    ("POST", "/train/nothing", "admin"),
    ("DELETE", "/train/", "admin"),
    ("GET", "/scoring/", "annotator"),
    ("POST", "/scoring/nothing", "admin"),
    ("POST", "/scoring/nothing?run_sync=true", "admin"),
    ("DELETE", "/scoring/", "admin"),
    ("POST", "/batch/infer/nothing", "admin"),
    ("POST", "/iopfl/labels/eye1/versions/1/store", "admin"),
    ("DELETE", "/datastore/image?id=nothing", "admin"),
    ("DELETE", "/datastore/label?id=nothing&tag=final", "admin"),
    ("GET", "/logs/", "admin"),
    ("GET", "/model/nothing", "admin"),
    ("GET", ROUND, "federation"),
    ("GET", "/iopfl/federations/spot", "federation"),
]


@pytest.mark.parametrize(("method", "path", "lowest"), LOWEST)
def test_each_role_may_what_is_its_own(guarded, tokens, method, path, lowest):
    ladder = ["annotator", "reviewer", "admin"]
    may = {"federation"} if lowest == "federation" else set(ladder[ladder.index(lowest) :])
    if path == BANK:
        may.add("outside")
    for role, token in tokens.items():
        status = ask(guarded, token, method, path).status_code
        assert (status not in CLOSED) == (role in may), (role, status)
        assert status < 500


def test_who_may_not_train_starts_and_stops_no_scoring(guarded, tokens):
    """An annotator could queue all methods any number of times, and stop what an administrator had begun."""
    for role in set(tokens) - {"admin"}:
        assert ask(guarded, tokens[role], "POST", "/scoring/").status_code == 403, role


def test_the_federations_token_opens_nothing_else(guarded, tokens, routes):
    opened = []
    for method, path in routes:
        is_own = path.startswith(("/iopfl/federations/", "/iopfl/signin")) or (method, path) in PUBLIC
        if not is_own and ask(guarded, tokens["federation"], method, fill(path)).status_code not in CLOSED:
            opened.append(path)
    assert sorted(opened) == ["/auth/token/valid", "/iopfl/me", "/iopfl/signout"]


def test_an_outside_sites_token_opens_the_banks_and_nothing_else(guarded, tokens, routes):
    opened = {}
    for method, path in routes:
        if not path.startswith("/iopfl/signin") and (method, path) not in PUBLIC:
            status = ask(guarded, tokens["outside"], method, fill(path)).status_code
            opened |= {path: status} if status not in CLOSED else {}
    assert sorted(opened) == ["/auth/token/valid", "/iopfl/banks/{task}.iopfl", "/iopfl/me", "/iopfl/signout"]
    assert opened["/iopfl/banks/{task}.iopfl"] == 200
    assert ask(guarded, tokens["outside"], "GET", "/iopfl/banks/../federations/spot").status_code in CLOSED


def test_monai_labels_own_client_signs_in(guarded, tmp_path):
    from monailabel.client import MONAILabelClient
    from monailabel.client.client import MONAILabelClientException

    client = MONAILabelClient(guarded.url, tmpdir=str(tmp_path), client_id="slicer-1")
    assert client.auth_enabled() and not client.auth_valid_token()
    with pytest.raises(MONAILabelClientException, match="401"):
        client.auth_token("an-annotator", "wrong")
    client.update_auth(client.auth_token("an-annotator", PASSWORD))
    assert client.auth_valid_token()
    assert client.info()["labels"] == ["spot"]
    mask, params = client.infer("spot", "eye2", {})
    assert params["model"] == "personalized"
    client.save_label("eye2", mask, "final", {"label_info": [{"name": "spot", "idx": 255}]})
    with pytest.raises(MONAILabelClientException, match="403"):
        client.train_start("spot", {})


def test_a_session_is_its_makers_and_the_admins(guarded, tokens, home):
    files = {"files": ("mine.png", (home / "clinic" / "eye0.png").read_bytes())}
    made = ask(guarded, tokens["annotator"], "PUT", "/session/", files=files).json()["session_id"]
    other = sign_in(guarded, "another-annotator")
    ways = (("GET", f"/session/{made}"), ("GET", f"/session/{made}?image=true"), ("DELETE", f"/session/{made}"))
    for token in (other, tokens["reviewer"]):
        for method, path in (*ways, ("POST", f"/infer/spot?session_id={made}&output=json")):
            refused = ask(guarded, token, method, path)
            assert refused.status_code == 404, (method, path, refused.text)
    assert ask(guarded, tokens["annotator"], "POST", f"/infer/spot?session_id={made}&output=json").ok
    for token, (method, path) in zip((tokens["annotator"], tokens["admin"], tokens["annotator"]), ways, strict=True):
        assert ask(guarded, token, method, path).ok
    assert ask(guarded, tokens["annotator"], "GET", f"/session/{made}").status_code == 404


def sign_in(guarded, name: str) -> str:
    form = {"username": name, "password": PASSWORD, "grant_type": "password"}
    return guarded.post("/auth/token", data=form).json()["access_token"]


def test_what_somebody_else_sent_to_be_segmented_has_no_name_in_the_list_of_work(guarded, tokens, home):
    """It was listed for everybody with its session's name and its file's, which may be a patient's."""
    files = {"files": ("Mueller_Hans.png", (home / "clinic" / "eye0.png").read_bytes())}
    made = ask(guarded, tokens["annotator"], "PUT", "/session/", files=files).json()["session_id"]
    other, seen = sign_in(guarded, "another-annotator"), set()
    asked = (tokens["annotator"], "POST", f"/infer/spot_routed?session_id={made}&output=json")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, guarded, *asked)
        while not answer.done():
            seen |= {(work["image"], work["yours"]) for work in ask(guarded, other, "GET", "/iopfl/work").json()}
    assert answer.result().ok and seen == {("(sent with the request)", False)}


def test_what_is_said_of_a_label_is_its_annotators_to_say_and_has_an_end(guarded, tokens):
    """Others could change it, and any number of short ones made an index of gigabytes."""
    label = ask(guarded, tokens["reviewer"], "POST", "/infer/spot?image=eye0&output=image").content
    files = {"label": ("eye0.png", label)}
    ask(guarded, tokens["reviewer"], "PUT", "/datastore/label?image=eye0", files=files).raise_for_status()
    place, info = "/datastore/label/info?label=eye0&tag=final", {"info": json.dumps({"comment": "approved"})}
    refused = ask(guarded, tokens["annotator"], "PUT", place, data=info)
    assert (refused.status_code, "somebody else" in refused.text) == (409, True)
    assert "comment" not in ask(guarded, tokens["annotator"], "GET", place).json()
    for role in ("reviewer", "admin"):
        assert ask(guarded, tokens[role], "PUT", place, data=info).ok
    for path, role in ((place, "reviewer"), ("/datastore/image/info?image=eye0", "annotator")):
        more = [{"info": json.dumps({f"{number}": "x" * 16_000})} for number in range(5)]
        statuses = [ask(guarded, tokens[role], "PUT", path, data=one).status_code for one in more]
        assert statuses == [200, 200, 200, 400, 400], path
        assert ask(guarded, tokens[role], "PUT", path, data={"info": json.dumps({"0": ""})}).ok


def test_who_takes_an_image_picture_by_picture_stands_in_the_log_once(guarded, tokens, home):
    """Not at all, where the answer or the metadata were never asked for, as the page and OHIF do."""
    log, other = AuditLog(home / "state" / "audit"), sign_in(guarded, "another-annotator")
    series = "/proxy/dicom/wado/studies/1.2/series/1.3"

    def taken(*paths: str) -> list[tuple[str, str, str]]:
        before = sum(1 for _ in log.entries())
        for path in paths:
            ask(guarded, other, "GET", path)
        lines = [(entry.what, dict(entry.about)) for entry in list(log.entries())[before:]]
        return [(what, about.get("image") or about["series"], about["status"]) for what, about in lines]

    page = "/iopfl/overlay.png?task=spot&model=global&image="
    overlay, eyes = "GET /iopfl/overlay.png", [log.pseudonym(f"eye{number}") for number in range(3)]
    assert taken(f"{page}eye2&slice=9", f"{page}eye2", f"{page}eye2&slice=0", f"{page}eye1") == [
        (overlay, eyes[2], "400"),  # took nothing
        (overlay, eyes[2], "200"),
        (overlay, eyes[1], "200"),
    ]
    assert taken("/iopfl/answer?task=spot&model=global&image=eye0", f"{page}eye0") == [
        ("GET /iopfl/answer", eyes[0], "200")
    ]
    for path in (
        "rendered",
        "thumbnail",
        "instances/1.4/frames/1,2",
        "instances/1.4/pixeldata",
        "instances/1.4/bulk/x",
    ):
        assert len(taken(f"{series}/{path}")) == 1, path


def test_a_label_is_recorded_with_who_sent_it_and_what(guarded, tokens, home):
    answer = ask(guarded, tokens["reviewer"], "POST", "/infer/spot?image=eye0&output=image")
    label = answer.content
    files = {"label": ("Mueller_Hans.png", label)}
    kind = {"image": "eye0", "tag": "final"}
    ask(guarded, tokens["reviewer"], "PUT", "/datastore/label", params=kind, files=files).raise_for_status()
    log = AuditLog(home / "state" / "audit")
    *_, last = log.entries()
    assert (last.who, last.what) == ("an-reviewer", "PUT /datastore/label")
    assert last.digest == hashlib.sha256(label).hexdigest()
    assert dict(last.about) == {"image": log.pseudonym("eye0"), "tag": "final", "status": "200"}


def test_the_record_is_whole_and_holds_no_names_of_files(guarded, tokens, home):
    log = AuditLog(home / "state" / "audit")
    for token in (None, "iopfl_no"):
        ask(guarded, token, "POST", "/train/spot")
    assert log.verify().torn == 0
    text = log.path.read_text()
    assert "eye" not in text and "Mueller" not in text and PASSWORD not in text
    assert all(entry.who or "signin" in entry.what or entry.what == "POST /auth/token" for entry in log.entries())


def test_nothing_in_the_state_folder_is_for_other_accounts(guarded, home):
    """Logs and locks were 0644, as the folders' modes were all that kept others out."""
    tops = [path for path in (home / "state").iterdir() if path.name not in ("terminal.log", "tmp")]  # this test's own
    found = [path for top in tops for path in (top, *top.rglob("*"))]
    assert "app.log" in {path.name for path in found}
    assert not [path for path in found if path.lstat().st_mode & 0o027]


def test_who_is_too_long_winded_is_told_and_others_are_served(guarded, tokens):
    files = {"file": ("big.png", bytes(9 * 2**20))}
    refused = ask(guarded, tokens["annotator"], "PUT", "/datastore/image", files=files)
    assert (refused.status_code, "at most 8 MB" in refused.json()["detail"]) == (413, True)
    with suppress(requests.RequestException):  # what it sent is not read to its end
        answer = requests.get(f"{guarded.url}/info/", headers={"X-Long": "x" * 200_000}, timeout=30)
        assert answer.status_code in (400, 431)
    assert ask(guarded, tokens["annotator"], "GET", "/info/").ok


# ---- offline ----


@pytest.mark.parametrize("path", ["/", "/docs", "/ohif/", "/ohif/viewer", "/iopfl/signin"])
def test_a_page_and_all_that_it_names_come_from_this_server(guarded, tokens, path):
    page = ask(guarded, tokens["annotator"], "GET", path)
    assert page.status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith(("default-src 'self'", "default-src 'none'")) and "http" not in policy
    named = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']+)""", page.text)
    outside = [name for name in named if re.match(r"(https?:)?//", name)]
    assert outside == []
    for name in {urljoin(f"{guarded.url}{path}", name) for name in named}:
        # OHIF's own scripts are too large to read: the browser below says what they ask for.
        if name.endswith(".css") or (name.endswith(".js") and "/ohif/" not in name):
            asked = ask(guarded, tokens["annotator"], "GET", name.removeprefix(guarded.url))
            assert asked.status_code == 200, name
            assert LOADED.findall(asked.text) == [], name


# ---- https ----


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for a name and 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate, secret = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    secret.write_bytes(key.private_bytes(*encoding))
    secret.chmod(0o600)
    return certificate, secret


def test_over_https_the_cookie_never_travels_in_the_clear(home, conf, tmp_path, monkeypatch):
    certificate, key = make_certificate(tmp_path, "label.hospital.example")
    Users(tmp_path / "state").add("anna", "annotator", PASSWORD)
    args = ["--auth", "local", "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with running_server(APP, home / "clinic", state=tmp_path / "state", conf=conf, args=args) as running:
        assert running.url.startswith("https://")
        form = {"username": "anna", "password": PASSWORD, "next": "/docs"}
        headers = {"Origin": running.url}
        done = running.post("/iopfl/signin", data=form, headers=headers, allow_redirects=False)
        assert done.status_code == 303 and "secure" in done.headers["Set-Cookie"].lower()
        cookie = done.headers["Set-Cookie"].split(";")[0]
        assert running.get("/info/", headers={"Cookie": cookie}).ok
        elsewhere = {"Cookie": cookie, "Host": "label.hospital.example"}
        assert running.get("/info/", headers=elsewhere).ok, "behind a proxy, by whatever name"


def test_a_key_that_is_not_the_certificates_is_said_plainly(tmp_path):
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
    certificate, key = make_certificate(tmp_path / "own", "label.hospital.example")
    other = make_certificate(tmp_path / "other", "label.hospital.example")[1]
    locked = tmp_path / "locked.pem"
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    locked.write_bytes(secret.private_bytes(*encoding, serialization.BestAvailableEncryption(b"words")))
    check_certificate(certificate, key)
    for wrong in (None, other, locked, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="expected the certificate's own key"):
            check_certificate(certificate, wrong)
    with pytest.raises(ConfigError, match="--ssl-keyfile without --ssl-certfile"):
        check_certificate(None, key)


def test_an_address_that_somebody_claims_to_have_is_not_believed(guarded):
    """Nobody named a reverse proxy; with one named, it is the address that it gives."""
    form = {"username": "nobody", "password": "wrong", "grant_type": "password"}
    statuses = [
        guarded.post("/auth/token", data=form, headers={"X-Forwarded-For": f"10.0.0.{number}"}).status_code
        for number in range(8)
    ]
    assert statuses == [401] * TRIES_OF_ONE + [429] * (8 - TRIES_OF_ONE)
    assert "X-Forwarded-For and X-Forwarded-Proto are not believed" in guarded.log_path.read_text()


# ---- starting ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "give --auth local"),
        (["--auth", "local"], "iopfl users add NAME --role admin"),
        (["--auth", "oidc", "--oidc-issuer", "http://sso.hospital.example"], "expected an https"),
        (["--auth", "oidc", "--oidc-issuer", "https://x", "--oidc-secret-file", "nowhere"], "expected a secret"),
        (["--auth", "oidc", "--oidc-issuer", "https://x", "--oidc-ca", "nowhere"], "expected certificates in PEM"),
        (["--auth", "oidc", "--oidc-issuer", "https://x", "--oidc-proxy", "proxy:3128"], "expected http://host:port"),
        (["--ssl-certfile", "nowhere"], "expected a certificate in PEM"),
        (["--max-upload-mb", "0"], "1 MB or more"),
    ],
)
def test_what_would_leave_the_server_open_or_useless_is_refused_at_once(home, tmp_path, capsys, options, words):
    folders = [
        "--studies",
        home / "clinic",
        "--state",
        tmp_path / "state",
        "--app",
        APP,
        "--conf",
        "bank",
        home / "bank",
    ]
    assert server.main([*map(str, [*folders, "--port", 0]), *options]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1


def test_everybody_is_let_in_from_elsewhere_if_the_administrator_says_so(tmp_path):
    """Told by the parser and the choice alone: a test listens on loopback."""
    program = (
        "import sys; from pathlib import Path; from iopfl.access.settings import choose_mode\n"
        "sys.exit(choose_mode('off', '0.0.0.0', Path('x')) != 'off')"
    )
    assert start_process([sys.executable, "-c", program], tmp_path / "log").wait(60) == 0


# ---- a browser ----


@pytest.mark.skipif(not CHROMIUM.is_file(), reason="no Chromium: apt-get install chromium")
def test_a_person_signs_in_sees_the_page_and_the_viewer_and_signs_out(guarded, home):
    from playwright.sync_api import sync_playwright

    called = set()
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        page = browser.new_page()
        page.on("request", lambda request: called.add(urlsplit(request.url).netloc))
        page.goto(f"{guarded.url}/?image=eye1")
        assert page.title() == "Sign in to iopfl"
        page.fill("#username", "an-annotator")
        page.fill("#password", "not the password at all")
        page.click("button")
        page.wait_for_selector(".problem:has-text('wrong')")
        page.fill("#username", "an-annotator")
        page.fill("#password", PASSWORD)
        page.click("button")
        page.wait_for_selector("#who:has-text('an-annotator')")
        assert "image=eye1" in page.url, "where it was going"
        assert page.evaluate("document.cookie") == ""
        page.wait_for_selector("#figures img")
        # A link from elsewhere: the cookie does not come along, and yet nobody has to sign in again.
        page.goto("about:blank")
        page.set_content(f'<a href="{guarded.url}/docs">a link in a mail</a>')
        page.click("a")
        page.wait_for_selector("h1:has-text('MONAILabel')")
        page.goto(f"{guarded.url}/ohif/")
        page.wait_for_selector("#root > *", timeout=60_000)
        page.goto(f"{guarded.url}/")
        page.click("#who button")
        page.wait_for_selector("#password")
        page.goto(f"{guarded.url}/")
        assert page.title() == "Sign in to iopfl"
        browser.close()
    assert called - {""} == {urlsplit(guarded.url).netloc}
