"""A sign-in service's keys: rotated, of several kinds, away."""

from __future__ import annotations

import time

import pytest
from fastapi import HTTPException

from iopfl import compat

compat.apply_early()  # before MONAI Label is imported

from iopfl.access import realm as realms  # noqa: E402
from iopfl.access.oidc import SignInService  # noqa: E402
from iopfl.access.realm import Realm  # noqa: E402
from oidc_provider import CLIENT, PASSWORD, SECRET, running_provider  # noqa: E402
from recording import recorder  # noqa: E402


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(realms, "_SECONDS_BETWEEN_FETCHES", 0)
    monkeypatch.setattr(realms, "_SECONDS_AFTER_FAILURE", 0)


def test_a_rotated_key_is_asked_for_again_and_a_service_that_is_away_is_said():
    with running_provider(anna=["monailabel-user"]) as provider:
        realm = Realm(provider.issuer, timeout=2)
        old = provider.access_token("anna")
        assert realm.decode(old)["preferred_username"] == "anna"
        provider.rotate()
        new = provider.access_token("anna")
        assert realm.decode(new)["preferred_username"] == "anna", "an EC key after an RSA one"
        with pytest.raises(HTTPException, match="not valid here"):
            realm.decode(old)
    assert realm.decode(new)["preferred_username"] == "anna", "the key that is known still serves"
    with pytest.raises(HTTPException, match="does not answer") as refusal:
        Realm(provider.issuer, timeout=2).decode(new)
    assert (refusal.value.status_code, refusal.value.headers) == (503, {"Retry-After": "5"})


def test_a_service_that_is_away_is_not_waited_for_by_every_request(monkeypatch):
    monkeypatch.setattr(realms, "_SECONDS_AFTER_FAILURE", 60)
    asked = []

    def away(self, url, **options):
        asked.append(url)
        raise realms.requests.ConnectionError("away")

    monkeypatch.setattr(Realm, "get", away)
    realm = Realm("https://away.example", timeout=2)
    for _ in range(5):
        with pytest.raises(HTTPException, match="does not answer"):
            realm.decode("eyJhbGciOiJSUzI1NiJ9.e30.AAAA")
    assert len(asked) == 1


def test_a_service_that_calls_itself_otherwise_is_not_believed():
    with running_provider(anna=[]) as provider:
        token = provider.access_token("anna")
        realm = Realm(provider.issuer.replace("127.0.0.1", "localhost"), timeout=2)
        with pytest.raises(HTTPException, match="does not answer"):
            realm.decode(token)


def test_a_token_that_ended_says_so():
    with running_provider(anna=[]) as provider:
        ended = provider.sign({"iss": provider.issuer, "exp": time.time() - 60})
        with pytest.raises(HTTPException, match="expired"):
            Realm(provider.issuer, timeout=2).decode(ended)


@pytest.mark.parametrize("is_public", [True, False])
def test_a_password_is_exchanged_for_a_token(is_public):
    with running_provider(anna=["monailabel-user"]) as provider:
        provider.client.is_public = is_public
        service = SignInService(Realm(provider.issuer, 2), client=CLIENT, secret="" if is_public else SECRET)
        tokens = service.exchange_password("anna", PASSWORD)
        assert service.realm.decode(tokens["access_token"])["azp"] == CLIENT
        with pytest.raises(HTTPException, match="refuses") as refusal:
            service.exchange_password("anna", "wrong")
        assert refusal.value.status_code == 401
    with pytest.raises(HTTPException, match="does not answer") as refusal:
        service.exchange_password("anna", PASSWORD)
    assert refusal.value.status_code == 503


def test_no_proxy_and_no_account_of_the_environment_gets_what_the_sign_in_service_is_told(stranger):
    with running_provider(anna=["monailabel-user"]) as provider:
        service = SignInService(Realm(provider.issuer, 2), client=CLIENT, secret=SECRET)
        tokens = service.exchange_password("anna", PASSWORD)
        bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
        about = service.realm.get(service.realm.configuration()["userinfo_endpoint"], headers=bearer)
        assert about["preferred_username"] == service.read_token(tokens["access_token"]).username == "anna"
        assert stranger.asked == []
        with recorder() as ours:  # no proxy, as it passes nothing on: but it is the one that is asked
            by_proxy = SignInService(Realm(provider.issuer, 2, proxy=ours.url), client=CLIENT, secret=SECRET)
            with pytest.raises(HTTPException, match="does not answer"):
                by_proxy.exchange_password("anna", PASSWORD)
        assert stranger.asked == [] and ours.asked == [f"GET {provider.issuer}/.well-known/openid-configuration None"]


def test_the_sign_in_service_leads_to_no_other_server(stranger):
    with running_provider(anna=["monailabel-user"]) as provider:
        service = SignInService(Realm(provider.issuer, 2), client=CLIENT, secret=SECRET)
        away = f"{provider.issuer}/elsewhere?to={stranger.url}"
        service.realm.configuration().update(jwks_uri=away, token_endpoint=away)
        for ask in (lambda: service.read_token(provider.access_token("anna")),
                    lambda: service.exchange_password("anna", PASSWORD)):  # fmt: skip
            with pytest.raises(HTTPException, match="does not answer"):
                ask()
        assert stranger.asked == []
