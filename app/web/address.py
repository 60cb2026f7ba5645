"""Where the page listens: which names it answers to, and which address works from where people are."""

from __future__ import annotations

import os
import socket

import psutil

from app.shared.errors import AlreadyRunning

_NEARBY = 20
_EVERYWHERE = ("0.0.0.0", "::")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the server."""
    return host in ("127.0.0.1", "localhost", "::1")


def require_free_port(host: str, port: int) -> None:
    """Raise AlreadyRunning if something listens on the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise AlreadyRunning(
                f"Port {port} on {host} cannot be used ({error.strerror}); choose another with --port."
            ) from None


def first_free_port(host: str, port: int) -> int:
    """This port, or the next that nothing listens on. Raises AlreadyRunning if there is none nearby."""
    for found in range(port, port + _NEARBY):
        try:
            require_free_port(host, found)
        except AlreadyRunning:
            continue
        return found
    raise AlreadyRunning(
        f"The ports {port} to {port + _NEARBY - 1} on {host} are taken; choose one with --port."
    )


def allowed_hosts(host: str, port: int) -> set[str]:
    """The Host headers that a server started on host and port answers to."""
    names = {_bracketed(host).lower()}
    if is_loopback(host) or host in _EVERYWHERE:
        names = {"127.0.0.1", "localhost", "[::1]"}
    if host in _EVERYWHERE:
        names |= {*_own_addresses(), socket.gethostname().lower()}
    return {f"{name}:{port}" for name in names} | (names if port in (80, 443) else set())


def address_of(host: str, port: int, *, encrypted: bool) -> str:
    """The address to open: for a server that listens everywhere, the one that works from other machines."""
    if host in _EVERYWHERE:
        host = next((one for one in _own_addresses() if not one.startswith("127.")), "127.0.0.1")
    return f"{'https' if encrypted else 'http'}://{_bracketed(host)}:{port}/"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _own_addresses() -> list[str]:
    """IPv4 addresses of the interfaces that are up, in the system's order."""
    up = {name for name, about in psutil.net_if_stats().items() if about.isup}
    return [
        one.address
        for name, many in psutil.net_if_addrs().items()
        if name in up
        for one in many
        if one.family == socket.AF_INET
    ]
