"""Whether the server's memory stays flat while pages are open: as many ticks as three clients make in an
hour, each of which loads its page anew now and then.

python -m tests.benchmarks.page_memory --ticks 3600 --reload 40
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import uuid
from pathlib import Path

import httpx
import psutil

from app.shared.settings import settings_for
from tests.benchmarks.report import show
from tests.ui.conftest import served

_CLIENTS = 3
_PARTS = 6


def main() -> None:
    """Print the resident memory after each sixth of the ticks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ticks", type=int, default=3600, help="of each client; a page ticks each second")
    parser.add_argument("--reload", type=int, default=40, help="ticks between two loads of a page")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder) / "home") as address:
        about = settings_for(Path(folder) / "home").app_file.read_text()
        server = psutil.Process(int(about.partition('"pid": ')[2].rstrip("}")))
        rows = []
        for part in range(_PARTS + 1):
            rows.append(
                {
                    "ticks of each client": part * given.ticks // _PARTS,
                    "MB": server.memory_info().rss / 1e6,
                    "files": server.num_fds(),
                    "threads": server.num_threads(),
                }
            )
            if part < _PARTS:
                _all_poll(address, given.ticks // _PARTS, given.reload)
        show(f"{_CLIENTS} clients, a page loaded anew after {given.reload} ticks", rows)


def _all_poll(address: str, ticks: int, reload: int) -> None:
    clients = [threading.Thread(target=_poll, args=(address, ticks, reload)) for _ in range(_CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()


def _poll(address: str, ticks: int, reload: int) -> None:
    """What head.js does: ask for news by the session of the page, which a load of it begins anew."""
    with httpx.Client(timeout=120, follow_redirects=True) as client:
        client.get(address)
        root = address.partition("/?")[0]
        parts = client.get(f"{root}/config").json()["components"]
        head = next(one["id"] for one in parts if one["props"].get("elem_id") == "head")
        for tick in range(ticks):
            if tick % reload == 0:
                client.get(f"{root}/")
                session = uuid.uuid4().hex
            asked = {
                "data": {"seen": "", "followed": []},
                "component_id": head,
                "fn_name": "news",
                "session_hash": session,
            }
            client.post(f"{root}/gradio_api/component_server", json=asked).raise_for_status()


if __name__ == "__main__":
    main()
