"""The request guard, over the app's own list of routes, uploads included."""

import re

import pytest
from starlette.testclient import TestClient

from app.service.workbench import Workbench
from app.shared.settings import settings_for
from app.web.address import address_of, allowed_hosts, is_loopback
from app.web.application import build_app
from app.web.guard import RequestGuard
from app.web.token import page_token

HOST, TOKEN = "127.0.0.1:7860", "secret"
OWN = {"host": HOST, "authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """One home for all: nothing here changes what another test asks about."""
    return settings_for(tmp_path_factory.mktemp("guarded") / "home")


@pytest.fixture(scope="module")
def application(settings):
    workbench = Workbench(settings)
    yield build_app(workbench)
    workbench.close()


def routes_of(application):
    """Every (method, path) that the application serves, mounted ones included."""
    for route in application.routes:
        included = getattr(route, "original_router", None)  # FastAPI keeps an included router as one route
        mounted = getattr(getattr(route, "app", None), "routes", None)
        if included is not None:
            yield from routes_of(included)
        elif getattr(route, "methods", None):
            for method in route.methods - {"HEAD", "OPTIONS"}:
                yield method, re.sub(r"\{[^}]*\}", "x", route.path)
        elif mounted is not None:
            yield from ((method, route.path.rstrip("/") + path) for method, path in routes_of(route.app))


@pytest.mark.parametrize(
    "stranger",
    [
        {"host": "evil.example:7860"},
        {"host": "127.0.0.1:1"},
        {"host": ""},
        {**OWN, "origin": "https://evil.example"},
        {**OWN, "origin": "null"},
        {**OWN, "origin": "http://127.0.0.1:9999"},
        {**OWN, "sec-fetch-site": "cross-site"},
        {**OWN, "sec-fetch-site": "same-site"},
    ],
)
def test_strangers_get_403_on_every_route(application, stranger):
    client = TestClient(RequestGuard(application, allowed_hosts("127.0.0.1", 7860), TOKEN))
    routes = sorted(set(routes_of(application)))
    assert len(routes) > 30
    assert any("upload" in path for _, path in routes)
    assert ("GET", "/workbench/plotly.min.js") in routes
    for method, path in [*routes, ("GET", "/"), ("OPTIONS", "/gradio_api/upload"), ("HEAD", "/")]:
        response = client.request(method, path, headers=stranger, follow_redirects=False)
        assert response.status_code == 403, (method, path)


def test_a_foreign_upload_is_refused_and_stores_nothing(application, settings):
    client = TestClient(RequestGuard(application, allowed_hosts("127.0.0.1", 7860), TOKEN))
    files = {"files": ("evil.txt", b"evil")}
    response = client.post(
        "/gradio_api/upload", files=files, headers={**OWN, "origin": "https://evil.example"}
    )
    assert response.status_code == 403
    assert not any(path.is_file() for path in settings.uploads.rglob("*"))
    response = client.post("/gradio_api/upload", files=files, headers={**OWN, "origin": f"http://{HOST}"})
    assert response.status_code == 200
    assert [path.read_bytes() for path in settings.uploads.rglob("*") if path.is_file()] == [b"evil"]


def test_the_page_itself_is_served_to_its_own_address(application):
    client = TestClient(RequestGuard(application, allowed_hosts("127.0.0.1", 7860), TOKEN))
    for host in ("127.0.0.1:7860", "localhost:7860", "LOCALHOST:7860"):
        assert client.get("/", headers={**OWN, "host": host, "sec-fetch-site": "none"}).status_code == 200
    assert (
        client.get(
            "/config", headers={**OWN, "origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}
        ).status_code
        == 200
    )


@pytest.mark.parametrize("name", ["registry.db", "engine.json", "blobs", "locks/engine.lock", "app.json"])
def test_the_home_folder_is_not_served(application, settings, name):
    (settings.home / "engine.json").write_text("{}")
    (settings.home / "app.json").write_text("{}")
    client = TestClient(RequestGuard(application, allowed_hosts("127.0.0.1", 7860), TOKEN))
    response = client.get(f"/gradio_api/file={settings.home / name}", headers=OWN)
    assert response.status_code in (403, 404)


def _client(application):
    return TestClient(RequestGuard(application, {"box:7860"}, TOKEN), base_url="http://box:7860")


def test_without_the_token_every_route_says_401(application):
    client = _client(application)
    for method, path in [
        *sorted(set(routes_of(application))),
        ("GET", "/"),
        ("HEAD", "/"),
        ("GET", "/config"),
    ]:
        response = client.request(method, path, follow_redirects=False)
        assert response.status_code == 401, (method, path)


def test_the_token_of_the_address_becomes_a_cookie(application, monkeypatch):
    monkeypatch.setattr("app.web.guard._FAILED_TOKEN_SECONDS", 0.01)
    client = _client(application)
    assert client.get("/?token=guess").status_code == 401
    assert client.get("/", headers={"authorization": "Bearer guess"}).status_code == 401
    assert client.get("/", headers={"cookie": "lora_workbench_7860=guess"}).status_code == 401
    welcome = client.get(f"/?token={TOKEN}", headers={"sec-fetch-site": "cross-site"})
    assert (welcome.status_code, 'content="0;url=/"' in welcome.text) == (200, True)
    for word in ("lora_workbench_7860=", "HttpOnly", "SameSite=Strict", "Path=/"):
        assert word in welcome.headers["set-cookie"]
    assert "gradio" not in welcome.text, "only the next request, which the page itself makes, gets the page"
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_the_page_asks_people_for_the_token_and_tells_programs(application):
    client = _client(application)
    asked = client.get("/", headers={"accept": "text/html,*/*"})
    assert (asked.status_code, "lora-workbench address" in asked.text, "<form" in asked.text) == (
        401,
        True,
        True,
    )
    assert "Bearer" in client.get("/config").text


def test_over_https_the_cookie_is_for_https_alone(application):
    guarded = RequestGuard(application, {"box:7860"}, TOKEN, encrypted=True)
    welcome = TestClient(guarded, base_url="https://box:7860").get(f"/?token={TOKEN}")
    assert "Secure" in welcome.headers["set-cookie"]


def test_the_token_stays_for_as_long_as_only_this_user_could_read_it(settings):
    token = page_token(settings)
    assert (page_token(settings), settings.token_file.stat().st_mode & 0o777) == (token, 0o600)
    assert page_token(settings, anew=True) != token
    settings.token_file.chmod(0o644)
    assert page_token(settings) not in (token, settings.token_file.with_name("none"))
    assert settings.token_file.stat().st_mode & 0o777 == 0o600


def test_the_printed_address_works_from_where_people_are(monkeypatch):
    monkeypatch.setattr("app.web.address._own_addresses", lambda: ["127.0.0.1", "192.168.1.5"])
    assert address_of("127.0.0.1", 7860, encrypted=False) == "http://127.0.0.1:7860/"
    assert address_of("0.0.0.0", 7860, encrypted=True) == "https://192.168.1.5:7860/"
    assert address_of("::1", 7860, encrypted=False) == "http://[::1]:7860/"
    assert "192.168.1.5:7860" in allowed_hosts("0.0.0.0", 7860)


def test_which_names_a_server_answers_to():
    assert allowed_hosts("127.0.0.1", 7860) == {"127.0.0.1:7860", "localhost:7860", "[::1]:7860"}
    assert allowed_hosts("192.168.1.5", 7860) == {"192.168.1.5:7860"}
    assert "127.0.0.1:7860" in allowed_hosts("0.0.0.0", 7860)
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "192.168.1.5")] == [
        True
    ] * 3 + [False] * 2
