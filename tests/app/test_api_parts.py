"""The HTTP API without an engine: who may use it, who waits, who has gone, and where an answer stops."""

import asyncio
import json
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from typer.testing import CliRunner

from app.cli.main import app
from app.service.serving import Serving
from app.service.workbench import Workbench
from app.shared.errors import EngineUnavailable
from app.shared.user_settings import PreferenceStore
from app.web.api.api_app import beside_page, guarded_api
from app.web.api.api_key import api_key
from app.web.api.stop_texts import StopFinder
from app.web.api.waiting_line import LineFull, Turn, WaitingLine
from app.web.guard import RequestGuard
from app.web.server import Listening, _look_after, serve, uvicorn_server
from app.web.window import NoWindow
from core.errors import InvalidConfig, WorkbenchError
from core.events import TokenDone
from tests.api_server import BODY, HOSTS, KEY, home_with_a_base, listening
from tests.workbenches import free_port, wait_for

home = pytest.fixture(home_with_a_base)


class Endless:
    """Answers that go on until somebody ends them."""

    def __init__(self, monkeypatch):
        self.begun, self.ended, self.cancelled = threading.Semaphore(0), threading.Event(), []
        self.given = 0
        monkeypatch.setattr(Serving, "answer", lambda _, model, prompts, name: self._tokens())
        monkeypatch.setattr(Serving, "cancel", lambda _, name, row: self.cancelled.append(row))

    def _tokens(self):
        self.begun.release()
        number = 0
        try:
            while not self.ended.wait(0.01):
                number += 1
                yield TokenDone(0, "word ", False, "", number, 5)
                self.given = number
        finally:
            self.ended.set()


@pytest.fixture
def endless(monkeypatch):
    found = Endless(monkeypatch)
    yield found
    found.ended.set()


def _client(address):
    return httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)


# Who may use it.


def test_the_key_opens_the_api_alone_and_the_pages_token_the_page_alone(home):
    async def page(scope, receive, send):
        await PlainTextResponse("the page")(scope, receive, send)

    both = beside_page(RequestGuard(page, HOSTS, "token"), guarded_api(home, HOSTS))
    client = TestClient(both, base_url="http://127.0.0.1:7860")
    for path in ("/v1/models", "/api/tags", "/metrics"):
        bearing = {
            "key": f"Bearer {KEY}",
            "token": "Bearer token",
            "other": "Bearer x",
            "scheme": f"Basic {KEY}",
        }
        status = {
            name: client.get(path, headers={"authorization": value}).status_code
            for name, value in bearing.items()
        }
        assert status == {"key": 200, "token": 401, "other": 401, "scheme": 401}, path
        assert client.get(path, headers={"cookie": "lora_workbench_7860=token"}).status_code == 401
    refused = client.get("/v1/models").json()["error"]
    assert (refused["code"], refused["type"]) == ("invalid_api_key", "authentication_error")
    assert "The key is missing" in client.get("/api/tags").json()["error"]
    assert client.get("/", headers={"authorization": f"Bearer {KEY}"}).status_code == 401
    assert client.get("/", headers={"authorization": "Bearer token"}).text == "the page"
    elsewhere = {"authorization": f"Bearer {KEY}", "host": "proxy.example", "origin": "https://app.example"}
    assert client.get("/v1/models", headers=elsewhere).status_code == 200
    assert client.get("/v1/nothing", headers=elsewhere).json()["error"]["code"] == "not_served"


def test_without_a_key_only_requests_of_this_machine_and_of_no_web_page_are_let_in(home):
    client = TestClient(guarded_api(home, HOSTS, open_here=True), base_url="http://127.0.0.1:7860")
    assert client.get("/api/tags").json()["models"][0]["name"] == "small"
    for stranger in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        assert client.get("/api/tags", headers=stranger).status_code == 403


def test_a_key_is_made_once_for_its_user_alone_unless_one_is_set(settings):
    preferences = PreferenceStore(settings)
    made = api_key(settings, preferences)
    assert len(made) > 30
    assert api_key(settings, preferences) == made
    if settings.api_key_file.stat().st_mode & 0o111 == 0:
        assert stat.S_IMODE(settings.api_key_file.stat().st_mode) == 0o600
        settings.api_key_file.chmod(0o644)
        assert api_key(settings, preferences) != made  # others could have read it
    preferences.change({"api_key": "chosen-by-me"})
    assert api_key(settings, preferences) == "chosen-by-me"
    for wrong in ("short", "with a space in it", "größer-als-nötig"):
        with pytest.raises(InvalidConfig, match="api_key must be 8 to 200"):
            preferences.change({"api_key": wrong})


def test_the_command_tells_address_key_and_a_line_to_try(home, monkeypatch):
    served = []
    monkeypatch.setattr("uvicorn.Server.run", lambda server: served.append(server.config))
    monkeypatch.setattr("app.shared.engine_client.EngineClient.keep_attached", lambda client: None)
    monkeypatch.setattr("signal.signal", lambda *about: None)
    base = ["serve", "--home", str(home.settings.home), "--port", "8123"]
    done = CliRunner().invoke(app, [*base, "--api-key", KEY])
    assert done.exit_code == 0, done.output
    assert "http://127.0.0.1:8123/v1" in done.stdout
    assert f"-H 'Authorization: Bearer {KEY}'" in done.stdout
    told = json.loads(CliRunner().invoke(app, [*base, "--json"]).stdout)
    assert told["key"] == api_key(home.settings, PreferenceStore(home.settings))
    assert told["models"] == ["small"]
    assert [one.port for one in served] == [8123, 8123]
    refused = CliRunner().invoke(app, [*base, "--host", "0.0.0.0", "--no-key"])
    assert refused.exit_code == 1
    assert "for this machine alone" in refused.stderr


def test_the_pages_server_serves_the_api_beside_the_page(home, monkeypatch):
    class Looks(NoWindow):
        def run(self, server, address):
            client = TestClient(server.config.app, base_url=f"http://127.0.0.1:{port}")
            given = {"authorization": f"Bearer {KEY}"}
            answers.append(client.get("/v1/models", headers=given).json()["data"][0]["id"])
            answers.append(client.get("/", headers=given).status_code)
            answers.append("LoRA Workbench" in client.get(address).text)

    class Show:
        def window(self, workbench, pages):
            return Looks()

    answers, port = [], free_port()
    monkeypatch.setattr("app.web.application.build_app", lambda workbench: None)  # the guard answers here
    monkeypatch.setattr("app.web.server._look_after", lambda *about: None)
    monkeypatch.setattr("signal.signal", lambda *about: None)
    serve(home.settings, Listening("127.0.0.1", port), Show(), lambda *about: None, {"api_key": KEY})
    assert answers == ["small", 401, True]


def test_what_runs_is_looked_after_although_the_engine_did_not_start(home, monkeypatch, caplog):
    def fails():
        raise EngineUnavailable("The engine did not start.")

    closing = threading.Event()
    monkeypatch.setattr(home.engine, "keep_attached", fails)
    monkeypatch.setattr(Workbench, "look_after", lambda self: closing.set())
    looking = threading.Thread(target=_look_after, args=(home, closing), daemon=True)
    looking.start()
    looking.join(30)
    assert closing.is_set()
    assert caplog.messages == ["looking after what runs: The engine did not start."]


# Who has gone, and who waits.


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_what_it_asked_for(home, endless, stream):
    with listening(guarded_api(home, HOSTS)) as address, _client(address) as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=BODY) as response:
                assert "word" in next(line for line in response.iter_lines() if "word" in line)
        else:
            asked = client.build_request("POST", "/v1/chat/completions", json={**BODY, "stream": False})
            with socket.create_connection((asked.url.host, asked.url.port)) as connection:
                headers = "".join(f"{name}: {value}\r\n" for name, value in asked.headers.items())
                connection.sendall(
                    f"POST {asked.url.path} HTTP/1.1\r\n{headers}\r\n".encode() + asked.content
                )
                wait_for(lambda: endless.given > 2)
        assert endless.ended.wait(60)
        wait_for(lambda: endless.cancelled == [0])
        wait_for(lambda: "requests_running 0\n" in client.get("/metrics").text)
        assert 'cancelled_total{model="small"} 1\n' in client.get("/metrics").text


def test_beyond_a_full_line_requests_are_told_when_to_come_again(home, endless):
    line = WaitingLine(most_rows=1, most_waiting=1)
    with listening(guarded_api(home, HOSTS, line=line)) as address, _client(address) as client:

        @contextmanager
        def waiting():
            thread = threading.Thread(
                target=client.post, args=("/v1/chat/completions",), kwargs={"json": BODY}
            )
            thread.start()
            yield
            thread.join()

        with client.stream("POST", "/v1/chat/completions", json=BODY), waiting():
            wait_for(lambda: line.waiting)
            refused = client.post("/v1/chat/completions", json=BODY)
            endless.ended.set()
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "2"
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_whoever_reads_slowly_holds_nobody_up(home, monkeypatch):
    count, text = 400, "word " * 10_000  # more than the sockets of both ends hold

    def answers(_, model, prompts, name):
        for at in range(1, count + 1):
            yield TokenDone(0, text, at == count, "length" if at == count else "", at, 5)

    monkeypatch.setattr(Serving, "answer", answers)
    line = WaitingLine(most_rows=1)
    with listening(guarded_api(home, HOSTS, line=line)) as address, _client(address) as client:
        with client.stream("POST", "/v1/chat/completions", json=BODY) as response:
            slowly = response.iter_text()
            first = next(slowly)
            other = client.post("/v1/chat/completions", json={**BODY, "stream": False}, timeout=20)
            assert other.json()["choices"][0]["finish_reason"] == "length"
            rest = "".join([first, *slowly])
        assert rest.count(text) == count  # and nothing is lost to the slow one
        assert rest.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineUnavailable("it is gone"), 503, "engine_unavailable"),
        (WorkbenchError("another base is trained on right now"), 503, "busy"),
        (RuntimeError("a secret"), 500, None),
    ],
)
def test_what_fails_in_the_engine_is_told_by_its_status(home, monkeypatch, error, status, code):
    def fails(*about):
        raise error
        yield

    monkeypatch.setattr(Serving, "answer", fails)
    client = TestClient(guarded_api(home, HOSTS), headers={"Authorization": f"Bearer {KEY}"})
    answer = client.post("/v1/chat/completions", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert ("retry-after" in answer.headers) == (status == 503)
    assert "secret" not in answer.text


def test_an_answer_that_breaks_off_says_so_in_its_stream(home, monkeypatch):
    def breaks(*about):
        yield TokenDone(0, "word", False, "", 1, 5)
        raise EngineUnavailable("it is gone")

    monkeypatch.setattr(Serving, "answer", breaks)
    client = TestClient(guarded_api(home, HOSTS), headers={"Authorization": f"Bearer {KEY}"})
    *_, last = client.post("/v1/chat/completions", json=BODY).text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "it is gone"
    lines = client.post("/api/chat", json=BODY).text.splitlines()
    assert json.loads(lines[-1]) == {"error": "it is gone"}


def test_a_server_that_ends_tells_whoever_it_answers_and_whoever_waits(home, endless, capsys):
    line, port = WaitingLine(most_rows=3), free_port()
    application = guarded_api(home, HOSTS, line=line)
    server = uvicorn_server(application, Listening("127.0.0.1", port), line.close)
    serving = threading.Thread(target=server.run)
    serving.start()
    wait_for(lambda: server.started)
    asked = [("/v1/chat/completions", True), ("/api/chat", True), ("/api/chat", False)]
    late = ("/v1/chat/completions", False)
    with _client(f"http://127.0.0.1:{port}") as client, ThreadPoolExecutor(5) as pool:

        def ask(path, stream):
            return pool.submit(client.post, path, json=BODY | {"stream": stream})

        answers = [ask(*one) for one in asked]
        wait_for(lambda: len(line.running) == 3)
        answers += [ask(*late)]
        wait_for(lambda: line.waiting)
        unread = pool.submit(client.post, "/api/chat", content=_slowly(serving))
        wait_for(lambda: len(server.server_state.tasks) == 5)
        server.should_exit = True
        serving.join(20)  # what is still being sent comes behind it, or ten seconds later
        assert not serving.is_alive()
        openai, ollama, *others, waiting = [one.result() for one in answers]
    said = "The server is closing, and answers nobody any more."
    last = json.loads(openai.text.strip().rpartition("data: ")[2])
    assert (last["error"]["message"], last["error"]["code"]) == (said, "closing")
    assert json.loads(ollama.text.splitlines()[-1]) == {"error": said}
    for one in (*others, unread.result()):
        assert (one.status_code, one.json()) == (503, {"error": said})
    assert (waiting.status_code, waiting.json()["error"]["message"]) == (503, said)
    assert "Traceback" not in capsys.readouterr().err


async def _never_ends(scope, receive, send):
    """Nothing, the beginning of an answer, or all of one, and then for ever nothing more."""
    if scope["path"] != "/v1/nothing":
        length = [(b"content-length", b"9")] if scope["path"] == "/counted" else []
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"so", "more_body": scope["path"] != "/whole"})
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [("/v1/nothing", 503, "closing"), ("/begun", 200, "so"), ("/whole", 200, "so"), ("/counted", 200, None)],
)
def test_what_never_ends_is_cut_off_without_a_traceback(capsys, path, status, said):
    server = uvicorn_server(_never_ends, Listening("127.0.0.1", port := free_port()), lambda: None)
    serving = threading.Thread(target=server.run)
    serving.start()
    wait_for(lambda: server.started)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.get, f"http://127.0.0.1:{port}{path}", timeout=30)
        wait_for(lambda: server.server_state.tasks)
        server.should_exit = True
        serving.join(30)
    if said is None:
        with pytest.raises(httpx.RemoteProtocolError):
            asked.result()
    else:
        assert (asked.result().status_code, said in asked.result().text) == (status, True)
    assert "Traceback" not in capsys.readouterr().err


def _slowly(serving):
    """A request whose rest does not come before the server has ended."""
    yield b"{"
    serving.join(30)


def test_waiting_in_line_is_no_reading_of_the_prompt(home, monkeypatch):
    class Long(WaitingLine):
        async def enter(self, turn):
            await asyncio.sleep(0.2)
            await super().enter(turn)

    monkeypatch.setattr(Serving, "answer", lambda *about: iter([TokenDone(0, "word", True, "end", 1, 5)]))
    application = guarded_api(home, HOSTS, line=Long())
    client = TestClient(application, headers={"Authorization": f"Bearer {KEY}"})
    told = client.post("/api/chat", json=BODY | {"stream": False}).json()
    parts = [told[f"{name}_duration"] for name in ("load", "prompt_eval", "eval")]
    assert parts[0] >= 0.19e9
    assert sum(parts) <= told["total_duration"]


def _begun(turns):
    return [turn.begun.is_set() for turn in turns]


def test_the_line_waits_for_another_base_and_is_fair_among_clients():
    async def walk():
        line = WaitingLine(most_rows=2)
        mine = [Turn("a", 1, "me") for _ in range(4)]
        other, yours = Turn("b", 1, "them"), Turn("a", 1, "you")
        tasks = [asyncio.ensure_future(line.enter(one)) for one in (*mine, yours)]
        await asyncio.sleep(0)
        assert _begun([*mine, yours]) == [True, True, False, False, False]
        line.leave(mine[0])
        assert _begun([*mine, yours]) == [True, True, False, False, True]  # before my third
        tasks.append(asyncio.ensure_future(line.enter(other)))
        await asyncio.sleep(0)
        line.leave(yours)
        assert not other.begun.is_set()  # its base is not the one that answers
        assert _begun(mine) == [True, True, False, False]  # and nobody goes past it
        line.leave(mine[1])
        assert other.begun.is_set()
        tasks[2].cancel()
        await asyncio.gather(tasks[2], return_exceptions=True)
        assert mine[2] not in line.waiting  # who gives up is out of the line
        line.leave(other)
        assert mine[3].begun.is_set()
        await asyncio.gather(*tasks, return_exceptions=True)
        line.leave(mine[3])
        full = WaitingLine(most_rows=1, most_waiting=0)
        with pytest.raises(LineFull, match="wait already"):
            await full.enter(Turn("a", 1, "me"))

    asyncio.run(walk())


# Where an answer stops.


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_stop_text_is_never_shown_however_it_is_cut(size):
    text = "one END? two END. three"
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    finder = StopFinder(["END.", "STOP", ""])
    assert "".join(map(finder.take, pieces)) == "one END? two "
    assert finder.found
    none = StopFinder(["END!", "three!"])
    shown = "".join(map(none.take, pieces))
    assert text.startswith(shown)
    assert shown + none.rest() == text
    assert not none.found
