"""How machines find each other to train one group: at a port of the first one, where torch's TCPStore
listens.

Who reaches that port can read and write what is there. So nobody is let in, and nothing is trained on, but by
the key which both machines were given, and none of it is anything but text and JSON. Both prove that they
have the key before they say more: each sends a number that was never used before, and gets a code of both
numbers and of what is said that only the key can make (HMAC-SHA256, RFC 2104). From then on they meet under a
name that follows from the key and the first one's number. What travels later, over gloo and NCCL, is neither
encrypted nor proven, and who listens on the network learns that name: this is for a network that one trusts.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
import transformers

from core.errors import InvalidConfig, WorkbenchError, WorkerLost

SILENT_SECONDS = 15.0  # after which a machine that says nothing is taken for gone
_REACH_SECONDS = 2.0  # for one try to reach a port
_ANSWER_SECONDS = 30.0  # for who listens to look at who has come
_BYE_SECONDS = 3.0  # for the others to hear that it is over, of which they ask twice a second
_LOOK_SECONDS = 0.05
_OPERATION = timedelta(seconds=SILENT_SECONDS)
_HELLO, _COMERS = "hello", "comers"
_MOST_COMERS = 1000  # that are looked at: anybody who reaches the port can say that they have come


def versions() -> dict[str, str]:
    """What all machines that train together must have the same of."""
    return {
        "LoRA Workbench": version("lora-workbench"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def listen(host: str, port: int) -> dist.TCPStore:
    """Listen at this address alone. Raises InvalidConfig where that cannot be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InvalidConfig(
            f"{_cannot_listen(host, port, error)} Set another: settings set join_address …"
        ) from None
    return dist.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=_OPERATION,
        master_listen_fd=listening.detach(),
    )


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host}, where other machines are to join, is taken by another program."
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{host}, where other machines are to join, is no address of this machine."
    return f"Other machines cannot join at {host}:{port}: {error.strerror}."


def reach(host: str, port: int) -> dist.TCPStore | None:
    """The place where a first machine listens; None while nobody does."""
    try:
        socket.create_connection((host, port), _REACH_SECONDS).close()
        return _reached(host, port)
    except (OSError, RuntimeError):  # torch's DistNetworkError, too: gone in between
        return None


def _reached(host: str, port: int) -> dist.TCPStore:
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_OPERATION)


def own_address(host: str, port: int) -> str:
    """The address of this machine from which `host` is reached. Raises InvalidConfig if it is not."""
    try:
        family, kind, *_, there = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:  # which sends nothing
            probe.connect(there)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise InvalidConfig(f"{host} cannot be reached from here: {error.strerror}.") from None


class Door:
    """The first machine's side: lets machines in until all are there, and hears whether they still are."""

    def __init__(
        self, store: dist.TCPStore, key: str, machines: int, about: Mapping[str, str], task: Mapping[str, Any]
    ) -> None:
        """machines: with the first. about: versions that all must have, by what they are of. task: what they
        are to train on, as JSON has it.
        """
        self._store, self._key, self._about, self._task = store, key, about, task
        self._seats: dict[int, _Comer | None] = dict.fromkeys(range(1, machines))
        self._answered: set[int] = set()
        self._nonce = secrets.token_hex(16)
        self.name, self.secret = _meeting_name(key, self._nonce), _secret(key, self._nonce)
        self.meeting = dist.PrefixStore(self.name, store)
        # for another thread than all the rest
        self._watched = dist.PrefixStore(self.name, _reached(store.host, store.port))
        store.set(_HELLO, self._nonce)

    @property
    def missing(self) -> int:
        """Machines that are still to come."""
        return sum(one is None or not one.fit for one in self._seats.values())

    def name_of(self, seat: int) -> str:
        """What a machine that was let in is called."""
        comer = self._seats[seat]
        return comer.name if comer else ""

    def look(self) -> list[str]:
        """Let in who has come; what became of each, in sentences."""
        there = range(1, 1 + min(_MOST_COMERS, self._store.add(_COMERS, 0)))
        new = [one for one in set(there) - self._answered if self._store.check([f"asks-{one}"])]
        said = [self._answer(number, self._store.get(f"asks-{number}")) for number in sorted(new)]
        self._answered |= set(new)
        return said + [
            one for seat, comer in self._seats.items() if comer and (one := self._settle(seat, comer))
        ]

    def _answer(self, number: int, words: bytes) -> str:
        try:
            comer, nonce = self._judge(words)
            seat = next((one for one, taken in self._seats.items() if taken is None), 0)
            if not seat:
                raise WorkerLost(f"All {len(self._seats)} other machines are there already.")
        except WorkbenchError as error:
            self._store.set(f"answer-{number}", json.dumps({"refused": str(error)}))
            return f"Another machine was refused: {error}"
        self._seats[seat] = comer
        said = json.dumps({"seat": seat, "task": self._task})
        code = _code(self._key, "answer", self._nonce, nonce, said)
        self._store.set(f"answer-{number}", json.dumps({"said": said, "code": code}))
        return ""

    def _judge(self, words: bytes) -> tuple[_Comer, str]:
        """Who has come, and the number that was never used before. Raises WorkerLost, InvalidConfig."""
        try:
            told = json.loads(words)
            said, nonce, code = (str(told[name]) for name in ("said", "nonce", "code"))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise WorkerLost("What it says is not what a worker of this version says.") from None
        if not hmac.compare_digest(code, _code(self._key, "asks", self._nonce, nonce, said)):
            raise WorkerLost("It does not have this machine's join_key; set the same on both.")
        about = json.loads(said)
        for what, own in self._about.items():
            if about["about"].get(what) != own:
                raise InvalidConfig(
                    f"{about['name']} has {what} {about['about'].get(what)}, the first machine {own}; "
                    "install the same."
                )
        return _Comer(about["name"]), nonce

    def _settle(self, seat: int, comer: _Comer) -> str:
        """Take in one that can train, and let go of one that cannot; what became of it, once."""
        if comer.fit:
            return ""
        if self.meeting.check([f"unfit-{seat}"]):
            why = self.meeting.get(f"unfit-{seat}").decode()
            self.meeting.delete_key(f"unfit-{seat}")
        elif self.meeting.check([f"fit-{seat}"]):
            comer.fit = True
            return f"{comer.name} has joined"
        elif comer.is_silent(self.meeting.add(f"alive-{seat}", 0)):
            why = f"nothing was heard of it for {SILENT_SECONDS:.0f} s"
        else:
            return ""
        self._seats[seat] = None
        return f"{comer.name} cannot join: {why}"

    def lost(self) -> str:
        """Which machine is gone, and why; empty while all are there. For a thread that does nothing else
        here.
        """
        for seat, comer in self._fit():
            if self._watched.check([f"lost-{seat}"]):
                return f"{self._watched.get(f'lost-{seat}').decode()} on {comer.name}"
            if comer.is_silent(self._watched.add(f"alive-{seat}", 0)):
                comer.gone = True
                return f"Nothing was heard of {comer.name} for {SILENT_SECONDS:.0f} s"
        return ""

    def _fit(self) -> list[tuple[int, _Comer]]:
        return [(seat, comer) for seat, comer in self._seats.items() if comer is not None and comer.fit]

    def close(self, why: str) -> None:
        """Let all go, and wait until those that are there have heard of it; why: what ended it, empty where
        it came to its end.
        """
        self._store.delete_key(_HELLO)
        self.meeting.set("over", why)
        until = time.monotonic() + _BYE_SECONDS
        while time.monotonic() < until and not all(
            comer.gone or self.meeting.check([f"heard-{seat}"]) for seat, comer in self._fit()
        ):
            time.sleep(_LOOK_SECONDS)


@dataclass
class _Comer:
    """A machine that was let in."""

    name: str
    fit: bool = False
    """Whether it has the base and the cards."""
    gone: bool = False
    beats: int = -1
    heard: float = 0.0

    def is_silent(self, beats: int) -> bool:
        """Whether it has said nothing for too long. beats: how often it has said that it is there."""
        now = time.monotonic()
        if beats != self.beats:
            self.beats, self.heard = beats, now
        return now - self.heard > SILENT_SECONDS


@dataclass(frozen=True)
class Invitation:
    """What a machine that was let in has."""

    seat: int
    task: dict[str, Any]
    name: str
    """Under which the group meets: nobody without the key knows it."""
    secret: str
    """That who has the key has, and which is told to nobody."""
    meeting: dist.Store

    def fit(self) -> None:
        """Say that this machine can train it."""
        self.meeting.set(f"fit-{self.seat}", "1")

    def unfit(self, why: str) -> None:
        """Say why it cannot."""
        self.meeting.set(f"unfit-{self.seat}", why)

    def lost(self, why: str) -> None:
        """Say that one of its processes is gone."""
        self.meeting.set(f"lost-{self.seat}", why)

    def leave(self, why: str) -> None:
        """Say why this machine ends, and will hear no more."""
        self.lost(why)
        self.meeting.set(f"heard-{self.seat}", "1")

    def beat(self) -> str | None:
        """Say that this machine is there; why it is over, once it is. Raises RuntimeError where the first
        machine is gone.
        """
        self.meeting.add(f"alive-{self.seat}", 1)
        if not self.meeting.check(["over"]):
            return None
        why = self.meeting.get("over").decode()
        self.meeting.set(f"heard-{self.seat}", "1")  # the last word: the first machine waits for no more
        return why


def ask(store: dist.Store, key: str, name: str, about: Mapping[str, str]) -> Invitation | None:
    """Ask to be let in; None where nobody is to be let in now. name: what this machine is called. about: its
    versions.

    Raises WorkerLost with what the first machine has against it, or where that does not have the key.
    """
    if not store.check([_HELLO]):
        return None
    theirs, nonce = store.get(_HELLO).decode(), secrets.token_hex(16)
    said = json.dumps({"name": name, "about": dict(about)})
    code = _code(key, "asks", theirs, nonce, said)
    number = store.add(_COMERS, 1)
    store.set(f"asks-{number}", json.dumps({"said": said, "nonce": nonce, "code": code}))
    until = time.monotonic() + _ANSWER_SECONDS
    while not store.check([f"answer-{number}"]):
        if time.monotonic() > until:
            return None
        time.sleep(_LOOK_SECONDS)
    answer = json.loads(store.get(f"answer-{number}"))
    if "refused" in answer:
        raise WorkerLost(f"The first machine refuses this one: {answer['refused']}")
    if not hmac.compare_digest(answer["code"], _code(key, "answer", theirs, nonce, answer["said"])):
        raise WorkerLost("Who listens there does not have this machine's join_key; set the same on both.")
    told, meeting = json.loads(answer["said"]), _meeting_name(key, theirs)
    own = dist.PrefixStore(meeting, store)
    return Invitation(told["seat"], told["task"], meeting, _secret(key, theirs), own)


def _meeting_name(key: str, nonce: str) -> str:
    return _code(key, "meeting", nonce)


def _secret(key: str, nonce: str) -> str:
    return _code(key, "secret", nonce)


def _code(key: str, *said: str) -> str:
    return hmac.new(key.encode(), json.dumps(said).encode(), hashlib.sha256).hexdigest()
