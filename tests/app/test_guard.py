"""The request guard, over the app's own list of routes, uploads included."""

import re

import pytest
from starlette.testclient import TestClient

from app.service.workbench import Workbench
from app.web.guard import RequestGuard
from app.web.server import allowed_hosts, build_app, is_loopback

HOST = "127.0.0.1:7860"
OWN = {"host": HOST}


@pytest.fixture
def application(settings):
    workbench = Workbench(settings)
    yield build_app(workbench)
    workbench.close()


def _routes(application):
    """Every (method, path) that the application serves, mounted ones included."""
    for route in application.routes:
        included = getattr(route, "original_router", None)  # FastAPI keeps an included router as one route
        mounted = getattr(getattr(route, "app", None), "routes", None)
        if included is not None:
            yield from _routes(included)
        elif getattr(route, "methods", None):
            for method in route.methods - {"HEAD", "OPTIONS"}:
                yield method, re.sub(r"\{[^}]*\}", "x", route.path)
        elif mounted is not None:
            yield from ((method, route.path.rstrip("/") + path) for method, path in _routes(route.app))


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
    client = TestClient(RequestGuard(application, allowed_hosts("127.0.0.1", 7860)))
    routes = sorted(set(_routes(application)))
    assert len(routes) > 30
    assert any("upload" in path for _, path in routes)
    assert ("GET", "/workbench/plotly.min.js") in routes
    for method, path in [*routes, ("GET", "/"), ("OPTIONS", "/gradio_api/upload"), ("HEAD", "/")]:
        response = client.request(method, path, headers=stranger, follow_redirects=False)
        assert response.status_code == 403, (method, path)


def test_a_foreign_upload_is_refused_and_stores_nothing(application, settings):
    client = TestClient(RequestGuard(application, allowed_hosts("127.0.0.1", 7860)))
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
    client = TestClient(RequestGuard(application, allowed_hosts("127.0.0.1", 7860)))
    for host in ("127.0.0.1:7860", "localhost:7860", "LOCALHOST:7860"):
        assert client.get("/", headers={"host": host, "sec-fetch-site": "none"}).status_code == 200
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
    client = TestClient(RequestGuard(application, allowed_hosts("127.0.0.1", 7860)))
    response = client.get(f"/gradio_api/file={settings.home / name}", headers=OWN)
    assert response.status_code in (403, 404)


def test_beyond_this_machine_a_token_is_asked_for(application, monkeypatch):
    monkeypatch.setattr("app.web.guard._FAILED_TOKEN_SECONDS", 0.01)
    client = TestClient(RequestGuard(application, {"box:7860"}, token="secret"), base_url="http://box:7860")
    assert client.get("/").status_code == 401
    assert client.post("/gradio_api/upload", files={"files": ("a", b"a")}).status_code == 401
    assert client.get("/?token=guess").status_code == 401
    assert client.get("/", cookies={"lora_workbench_token": "guess"}).status_code == 401
    client.cookies.clear()
    welcome = client.get("/?token=secret", follow_redirects=False)
    assert (welcome.status_code, welcome.headers["location"]) == (303, "/")
    assert "HttpOnly" in welcome.headers["set-cookie"]
    assert client.get("/").status_code == 200


def test_which_names_a_server_answers_to():
    assert allowed_hosts("127.0.0.1", 7860) == {"127.0.0.1:7860", "localhost:7860", "[::1]:7860"}
    assert allowed_hosts("192.168.1.5", 7860) == {"192.168.1.5:7860"}
    assert "127.0.0.1:7860" in allowed_hosts("0.0.0.0", 7860)
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "192.168.1.5")] == [
        True
    ] * 3 + [False] * 2
