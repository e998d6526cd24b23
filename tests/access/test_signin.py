"""Signing in and out: what a browser gets, what other pages and guessers do not."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from iopfl import compat

compat.apply_early()  # before MONAI Label is imported

from monailabel.config import settings  # noqa: E402

from iopfl.access import realm as realms  # noqa: E402
from iopfl.access import users as userfile  # noqa: E402
from iopfl.access.gate import install  # noqa: E402
from iopfl.access.identity import Access  # noqa: E402
from iopfl.access.sessions import Sessions  # noqa: E402
from iopfl.access.settings import AccessSettings  # noqa: E402
from iopfl.access.throttle import FREE_TRIES, SECONDS, TRIES_OF_ALL, TRIES_OF_ONE, Throttle  # noqa: E402
from oidc_provider import CLIENT, SECRET, running_provider, sign_in  # noqa: E402

PASSWORD = "four words nobody guesses"
HTML = {"Accept": "text/html"}
FORM = {"username": "anna", "password": PASSWORD}
SAME = {"Sec-Fetch-Site": "same-origin"}


def make_browser(state, *, mode="local", url="http://testserver", root_path="", secret="", address="10.1.1.1"):
    """A browser at a server with one route of each kind."""
    app = FastAPI()

    @app.get("/data")
    @app.post("/data")
    def data(request: Request) -> dict[str, str]:
        return {"user": request.scope["user"].username if "user" in request.scope else ""}

    @app.get("/page")
    def page() -> dict[str, str]:
        return {}

    install(app, Access(AccessSettings(mode=mode, state=state, client_secret=secret, hosts=frozenset({"testserver"}))))
    return TestClient(app, base_url=url, root_path=root_path, client=(address, 1), follow_redirects=False)


@pytest.fixture
def users(tmp_path, monkeypatch):
    monkeypatch.setattr(userfile, "_HASHER", userfile.PasswordHasher(time_cost=1, memory_cost=64))
    users = userfile.Users(tmp_path)
    users.add("anna", "annotator", PASSWORD)
    return users


@pytest.fixture
def browser(tmp_path, users):
    return make_browser(tmp_path)


def enter(browser, **changes):
    return browser.post("/iopfl/signin", data={**FORM, **changes})


# ---- a browser ----


def test_a_page_leads_to_the_sign_in_and_back_and_a_script_gets_401(browser):
    asked = browser.get("/page?x=1&y=a b", headers=HTML)
    assert asked.status_code == 303
    page = browser.get(asked.headers["location"], headers=HTML)
    assert page.status_code == 200
    target = re.search(r'name="next" value="([^"]*)"', page.text)[1].replace("&amp;", "&")
    done = enter(browser, next=target)
    assert (done.status_code, done.headers["location"]) == (303, "/page?x=1&y=a%20b")
    assert browser.get("/data").json() == {"user": "anna"}
    browser.cookies.clear()
    script = browser.get("/data", headers={**HTML, "Sec-Fetch-Mode": "cors"})
    assert (script.status_code, script.headers["www-authenticate"]) == (401, "Bearer")
    assert browser.get("/data", headers={"Accept": "application/json"}).status_code == 401


@pytest.mark.parametrize("url", ["http://testserver", "https://testserver"])
def test_the_cookie_is_for_this_server_alone_and_no_script_reads_it(tmp_path, users, url):
    cookie = enter(make_browser(tmp_path, url=url)).headers["set-cookie"]
    kept = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= kept
    assert ("secure" in kept) == url.startswith("https")


@pytest.mark.parametrize(
    "evil",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)",
     "data:text/html,x", "/\t/evil.example", "evil", "http:evil.example", "", "///evil.example", "/\n/evil.example"],
)  # fmt: skip
def test_nobody_is_led_elsewhere_after_signing_in(browser, evil):
    location = enter(browser, next=evil).headers["location"]
    assert location == "/" and not urlsplit(location).netloc
    page = browser.get("/iopfl/signin", params={"next": evil})
    assert 'name="next" value="/"' in page.text and "evil" not in page.text


def test_what_is_asked_for_is_shown_as_text(browser):
    page = browser.get("/iopfl/signin", params={"next": '/"><script>alert(1)</script>'})
    assert "<script>alert" not in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]


def test_a_wrong_password_is_said_on_the_page_and_never_repeated(browser):
    page = enter(browser, password="a secret typed wrong")
    assert page.status_code == 401
    assert "User name or password is wrong" in page.text and "typed wrong" not in page.text
    assert "set-cookie" not in page.headers


def test_behind_a_proxy_with_a_prefix_everything_stays_below_it(tmp_path, users):
    browser = make_browser(tmp_path, root_path="/label")
    location = browser.get("/label/page", headers=HTML).headers["location"]
    assert location.startswith("/label/iopfl/signin?next=/label/page")
    page = browser.get("/label/iopfl/signin")
    assert 'action="/label/iopfl/signin"' in page.text
    done = browser.post("/label/iopfl/signin", data={**FORM, "next": "/page"})
    assert done.headers["location"] == "/label/"
    assert "path=/label" in done.headers["set-cookie"].lower()


def test_signing_out_ends_the_session_for_whoever_copied_the_cookie_too(tmp_path, browser):
    enter(browser)
    copied = dict(browser.cookies)
    assert browser.post("/iopfl/signout", headers=SAME).status_code == 303
    assert browser.get("/data").status_code == 401
    assert make_browser(tmp_path).get("/data", cookies=copied).status_code == 401, "also after a restart"


def test_a_new_password_or_a_removal_signs_out_at_once(users, browser):
    enter(browser)
    users.set_password("anna", "five other words nobody guesses")
    assert browser.get("/data").status_code == 401
    assert enter(browser).status_code == 401
    enter(browser, password="five other words nobody guesses")
    assert browser.get("/data").status_code == 200
    users.remove("anna")
    assert browser.get("/data").status_code == 401


def test_a_session_ends_by_itself_and_a_server_restarts_without_ending_any(tmp_path, browser, monkeypatch):
    enter(browser)
    kept = dict(browser.cookies)
    assert make_browser(tmp_path).get("/data", cookies=kept).status_code == 200
    now = realms.time.time()
    monkeypatch.setattr("iopfl.access.sessions.time.time", lambda: now - 9 * 3600)
    old = Sessions(tmp_path)
    token = Access(AccessSettings(mode="local", state=tmp_path)).make_session(
        userfile_user("anna"), userfile.Users(tmp_path).find("anna").generation
    )
    monkeypatch.undo()
    assert make_browser(tmp_path).get("/data", cookies={old.cookie: token}).status_code == 401


def userfile_user(name):
    from monailabel.endpoints.user.auth import User

    return User(username=name)


def test_who_signed_in_before_the_hospitals_service_was_used_signs_in_anew(tmp_path, browser, hospital):
    enter(browser)
    answer = make_browser(tmp_path, mode="oidc", secret=SECRET).get("/data", cookies=dict(browser.cookies))
    assert answer.status_code == 401


def test_who_am_i_says_name_and_roles(browser):
    enter(browser)
    me = browser.get("/iopfl/me").json()
    assert (me["authentication"], me["name"]) == ("local", "anna")
    assert me["roles"] == [settings.MONAI_LABEL_AUTH_ROLE_USER, settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR]


def test_without_authentication_nobody_has_to_sign_in(tmp_path):
    browser = make_browser(tmp_path, mode="off")
    assert browser.get("/data").json() == {"user": ""}
    assert browser.get("/iopfl/me").json() == {"authentication": "off", "name": "", "roles": []}
    assert browser.get("/auth/").json()["enabled"] is False
    assert browser.post("/auth/token", data=FORM).status_code == 400
    assert not (tmp_path / "keys").exists(), "a key that nobody needs"


# ---- other pages ----


@pytest.mark.parametrize(
    ("headers", "by_cookie", "by_token", "off"),
    [
        ({}, 403, 200, 200),
        ({"Origin": "http://testserver"}, 200, 200, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"}, 200, 200, 200),
        ({"Origin": "http://evil.example"}, 403, 200, 403),
        ({"Origin": "http://testserver.evil.example"}, 403, 200, 403),
        ({"Origin": "http://testserver:81"}, 403, 200, 403),
        ({"Origin": "null"}, 403, 200, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403, 200, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://testserver"}, 403, 200, 403),
        ({"Sec-Fetch-Site": "none"}, 403, 200, 403),
    ],
)
def test_another_page_cannot_change_anything_in_somebodys_browser(tmp_path, browser, headers, by_cookie, by_token, off):
    token = browser.post("/auth/token", data=FORM).json()["access_token"]
    program = make_browser(tmp_path)
    assert program.post("/data", headers={**headers, "Authorization": f"Bearer {token}"}).status_code == by_token
    enter(browser)
    assert browser.post("/data", headers=headers).status_code == by_cookie
    assert browser.get("/data", headers=headers).status_code == 200
    assert make_browser(tmp_path, mode="off").post("/data", headers=headers).status_code == off


def test_a_viewer_whose_origin_is_allowed_may_where_there_is_no_sign_in(tmp_path, browser, monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_CORS_ORIGINS", ["https://viewer.example/"])
    headers = {"Origin": "https://viewer.example", "Sec-Fetch-Site": "cross-site"}
    assert make_browser(tmp_path, mode="off").post("/data", headers=headers).status_code == 200
    enter(browser)
    assert browser.post("/data", headers=headers).status_code == 403, "a cookie is not for other sites"


@pytest.mark.parametrize("attempt", [{"Authorization": "Bearer x.y.z"}, {"Authorization": "Bearer"}])
def test_a_wrong_token_is_not_made_good_by_a_cookie(browser, attempt):
    enter(browser)
    assert browser.get("/data", headers=attempt).status_code == 401


# ---- guessers ----


def test_an_unknown_name_costs_what_a_wrong_password_costs(browser, users, monkeypatch):
    users.add("robot", "annotator", None)
    verified = []
    verify = userfile.PasswordHasher.verify
    monkeypatch.setattr(
        userfile.PasswordHasher, "verify", lambda self, *pair: verified.append(1) or verify(self, *pair)
    )
    answers = [enter(browser, username=name, password="wrong") for name in ("anna", "nobody", "robot")]
    assert len(verified) == 3
    assert {(answer.status_code, answer.text) for answer in answers} == {(401, answers[0].text)}


def test_who_guesses_has_to_wait_and_others_do_not(tmp_path, users, browser):
    for _ in range(TRIES_OF_ONE):
        assert enter(browser, password="wrong").status_code == 401
    for path in ("/iopfl/signin", "/auth/token"):
        refused = browser.post(path, data=FORM)
        assert refused.status_code == 429 and 0 < int(refused.headers["retry-after"]) <= SECONDS
    users.add("otto", "reviewer", PASSWORD)
    assert enter(browser, username="otto").status_code == 303
    assert enter(make_browser(tmp_path, address="10.2.2.2")).status_code == 303


def test_nobody_fills_the_disk_with_attempts_that_were_none(tmp_path, users, browser):
    for _ in range(TRIES_OF_ONE + 10):
        enter(browser, password="wrong")
        browser.get("/iopfl/signin/callback?code=x&state=y")
        browser.post("/auth/token", data={})
    recorded = [
        (entry.what, dict(entry.about)) for entry in Access(AccessSettings(mode="off", state=tmp_path)).log.entries()
    ]
    assert recorded == [("POST /iopfl/signin", {"status": "401", "user": "anna"})] * TRIES_OF_ONE


def test_many_addresses_help_nobody_to_guess_and_keep_nobody_out(tmp_path, users):
    """The attack: one password, an address for each try. The user meanwhile comes from where she came from before."""
    home = make_browser(tmp_path, address="10.3.3.3")
    app = home.app
    app.state.access.throttle = Throttle(clock=lambda: 0.0)
    office = TestClient(app, base_url="http://testserver", client=("10.4.4.4", 1), follow_redirects=False)
    assert enter(home).status_code == 303
    assert office.post("/auth/token", data=FORM).status_code == 200
    statuses = {}
    for name in ("anna", "nobody-of-that-name"):
        statuses[name] = []
        for number in range(60):
            stranger = TestClient(app, base_url="http://testserver", client=(f"172.16.0.{number}", 1))
            data = {"username": name, "password": "wrong"}
            statuses[name].append(stranger.post("/auth/token", data=data).status_code)
    assert statuses["anna"] == [401] * FREE_TRIES + [429] * (60 - FREE_TRIES) == statuses["nobody-of-that-name"]
    assert office.post("/auth/token", data=FORM).status_code == 200, "an address that is hers"
    moved = TestClient(app, base_url="http://testserver", client=("10.9.9.9", 1), follow_redirects=False)
    assert enter(moved).status_code == 429, "an address that could be anybody's"
    moved.cookies = home.cookies
    moved.post("/iopfl/signout", headers=SAME)
    assert enter(moved).status_code == 303, "a browser that is hers"
    assert enter(moved, username="otto").status_code == 401 and not FREE_TRIES < TRIES_OF_ONE


def test_a_browser_is_known_for_its_own_user_and_by_its_own_server_alone(tmp_path, users):
    users.add("mallory", "annotator", PASSWORD)
    browser = make_browser(tmp_path)
    browser.app.state.access.throttle = Throttle(clock=lambda: 0.0)
    enter(browser, username="mallory")
    device = next(name for name in browser.cookies if name.endswith("_device"))
    assert browser.get("/data", cookies={device.removesuffix("_device"): browser.cookies[device]}).status_code == 401
    for number in range(FREE_TRIES):
        stranger = TestClient(browser.app, base_url="http://testserver", client=(f"172.16.0.{number}", 1))
        enter(stranger, password="wrong")
    assert enter(browser).status_code == 429
    browser.cookies[device] = browser.cookies[device][:-2] + "xx"
    assert enter(browser).status_code == 429


@pytest.mark.parametrize("content", [b"", b"anna: {role: annotator, passw"])
def test_users_that_are_damaged_while_the_server_runs_let_nobody_in_and_tell_a_stranger_nothing(
    tmp_path, users, browser, caplog, content
):
    header = {"Authorization": f"Bearer {users.make_token('anna', 1)}"}
    (tmp_path / userfile.USERS_FILE).write_bytes(content)
    answers = [browser.get("/data", headers=header), browser.post("/auth/token", data=FORM), enter(browser)]
    for answer in answers:
        assert answer.status_code == 503 and "nobody can sign in just now" in answer.text
        assert str(tmp_path) not in answer.text and userfile.USERS_FILE not in answer.text
    assert caplog.text.count("bring it back from a backup") == 3


# ---- signing out with a token ----


def test_signing_out_with_a_token_ends_that_token_at_every_server(tmp_path, users, browser):
    other = make_browser(tmp_path)
    first, second = (
        {"Authorization": f"Bearer {browser.post('/auth/token', data=FORM).json()['access_token']}"} for _ in range(2)
    )
    assert other.get("/data", headers=first).status_code == 200
    assert browser.post("/iopfl/signout", headers=first).status_code == 204
    assert [each.get("/data", headers=first).status_code for each in (browser, other)] == [401, 401]
    assert [each.get("/data", headers=second).status_code for each in (browser, other)] == [200, 200]
    machine = {"Authorization": f"Bearer {users.make_token('anna', 1)}"}
    assert browser.post("/iopfl/signout", headers=machine).status_code == 204
    assert [each.get("/data", headers=machine).status_code for each in (browser, other)] == [401, 401]


def test_signing_out_with_a_token_of_the_hospitals_service_ends_it_here(tmp_path, hospital):
    browser, other = (make_browser(tmp_path, mode="oidc", secret=SECRET) for _ in range(2))
    header = {"Authorization": f"Bearer {hospital.access_token('anna')}"}
    assert other.get("/data", headers=header).status_code == 200
    assert browser.post("/iopfl/signout", headers=header).status_code == 204
    assert [each.get("/data", headers=header).status_code for each in (browser, other)] == [401, 401]


def test_a_sign_out_that_cannot_be_written_down_is_not_said_to_be_one(browser, monkeypatch):
    header = {"Authorization": f"Bearer {browser.post('/auth/token', data=FORM).json()['access_token']}"}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("iopfl.access.sessions.write_private", full)
    assert browser.post("/iopfl/signout", headers=header).status_code == 507
    assert browser.get("/data", headers=header).status_code == 200


def test_codes_that_are_guessed_do_not_make_this_server_ask_the_hospitals_without_end(tmp_path, hospital, monkeypatch):
    browser = make_browser(tmp_path, mode="oidc", secret=SECRET)
    left = browser.get("/iopfl/signin/service").headers["location"]
    state = parse_qs(urlsplit(left).query)["state"][0]
    answers = [
        browser.get("/iopfl/signin/callback", params={"code": f"x{number}", "state": state}).status_code
        for number in range(TRIES_OF_ALL + 3)
    ]
    assert answers == [401] * TRIES_OF_ALL + [429] * 3


# ---- the hospital's service ----


@pytest.fixture
def hospital(monkeypatch):
    with running_provider(anna=["monailabel-reviewer", "other"], otto=["cleaner"]) as provider:
        provider.client.redirect_uri = "http://testserver/iopfl/signin/callback"
        monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", provider.issuer)
        monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_CLIENT_ID", CLIENT)
        yield provider


def go_through(browser, user="anna", next="/page"):
    """What a person's browser does, from the button to the page it comes back to."""
    left = browser.get("/iopfl/signin/service", params={"next": next})
    assert left.status_code == 303, left.text
    back = sign_in(requests.Session(), left.headers["location"], user)
    return browser.get(back.headers["Location"])


@pytest.mark.parametrize("roles_in", ["id", "access", "userinfo"])
@pytest.mark.parametrize("is_public", [True, False])
def test_a_browser_signs_in_at_the_hospitals_service(tmp_path, hospital, roles_in, is_public):
    hospital.roles_in, hospital.client.is_public = roles_in, is_public
    browser = make_browser(tmp_path, mode="oidc", secret="" if is_public else SECRET)
    page = browser.get("/iopfl/signin", params={"next": "/page"})
    assert 'href="/iopfl/signin/service?next=%2Fpage"' in page.text
    done = go_through(browser)
    assert done.status_code == 200 and 'content="0;url=/page"' in done.text
    me = browser.get("/iopfl/me").json()
    assert (me["name"], "monailabel-annotator" in me["roles"], "monailabel-admin" in me["roles"]) == (
        "anna",
        True,
        False,
    )
    browser.post("/iopfl/signout", headers=SAME)
    assert browser.get("/iopfl/me").status_code == 401


@pytest.mark.parametrize(
    "lie",
    [{"nonce": "of another sign-in"}, {"aud": "another-server"}, {"exp": 1}, {"iss": "http://evil.example"},
     {"aud": [CLIENT, "x"], "azp": "x"}],
)  # fmt: skip
def test_an_identity_that_is_not_for_this_sign_in_is_refused(tmp_path, hospital, lie):
    hospital.lies = lie
    browser = make_browser(tmp_path, mode="oidc", secret=SECRET)
    refused = go_through(browser)
    assert refused.status_code == 401 and "Not signed in" in refused.text
    assert browser.get("/iopfl/me").status_code == 401


def test_an_answer_that_nobody_asked_for_is_refused(tmp_path, hospital):
    browser = make_browser(tmp_path, mode="oidc", secret=SECRET)
    left = browser.get("/iopfl/signin/service")
    back = sign_in(requests.Session(), left.headers["location"], "anna").headers["Location"]
    for attempt in (back.replace("state=", "state=x"), "/iopfl/signin/callback?code=x", "/iopfl/signin/callback"):
        assert browser.get(attempt).status_code == 401
    victim = make_browser(tmp_path, mode="oidc", secret=SECRET)
    assert victim.get(back).status_code == 401, "another one's code, to sign somebody in as the attacker"
    assert browser.get(back).status_code == 200
    assert browser.get(back).status_code == 401, "the same once more"


def test_an_account_without_a_role_here_is_told_so(tmp_path, hospital):
    browser = make_browser(tmp_path, mode="oidc", secret=SECRET)
    refused = go_through(browser, user="otto")
    assert refused.status_code == 403 and "no role here" in refused.text
    assert browser.get("/data").status_code == 401


def test_programs_send_the_services_tokens_or_those_of_machines(tmp_path, hospital, users):
    users.add("bridge", "federation", None)
    machine = users.make_token("bridge", 1)
    browser = make_browser(tmp_path, mode="oidc", secret=SECRET)
    token = browser.post("/auth/token", data={"username": "anna", "password": "a hospital password"}).json()
    assert token["token_type"].lower() == "bearer"
    for value, status in ((token["access_token"], 200), (machine, 403), ("iopfl_no", 401)):
        assert browser.get("/data", headers={"Authorization": f"Bearer {value}"}).status_code == status
    assert browser.post("/auth/token", data=FORM).status_code == 401, "no password of the server's own"
    entries = [
        (entry.who, dict(entry.about)) for entry in Access(AccessSettings(mode="off", state=tmp_path)).log.entries()
    ]
    assert entries == [("", {"status": "200", "user": "anna"}), ("", {"status": "401", "user": "unknown"})]


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"aud": "account"}, 200),  # Keycloak's: to this server's client, with its default audience
        ({"azp": "scheduler", "aud": ["account", CLIENT]}, 200),
        ({"azp": None, "client_id": CLIENT, "aud": "https://hospital.example"}, 200),  # RFC 9068
        ({"azp": None}, 200),  # a service that does not say
        ({"azp": "canteen", "aud": "account"}, 401),
        ({"azp": None, "aud": "canteen"}, 401),
        ({"azp": None, "client_id": "canteen"}, 401),
    ],
)
def test_a_token_for_another_of_the_hospitals_programs_opens_nothing(tmp_path, hospital, claims, status):
    browser = make_browser(tmp_path, mode="oidc", secret=SECRET)
    token = hospital.access_token("anna", **claims)
    answer = browser.get("/data", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == status
    assert ("another program" in answer.text) == (status == 401)


def test_a_service_that_is_away_is_said(tmp_path, hospital, monkeypatch):
    token = hospital.access_token("anna")
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", "http://127.0.0.1:9")
    browser = make_browser(tmp_path, mode="oidc")
    left = browser.get("/iopfl/signin/service")
    asked = browser.get("/data", headers={"Authorization": f"Bearer {token}"})
    for answer in (left, asked):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), answer.text
