"""Other machines that train with this one, which is the first: asked in, told what they train on, watched."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator

from app.shared.join_address import parsed_address, require_key
from app.shared.settings import Settings
from app.shared.user_settings import PreferenceStore
from core.base_model.source import BaseSource
from core.errors import WorkerLost
from core.train.config import TrainConfig
from core.train.joining import Door, listen, own_address, versions
from core.train.meeting import network_of

_JOIN_SECONDS = 600.0  # as torchrun's rendezvous waits
_LOOK_SECONDS = 0.05


def machine_name() -> str:
    """As this one calls itself."""
    return platform.node() or "a machine without a name"


class Machines:
    """The others, as many as runs with these options want beside this one."""

    def __init__(self, settings: Settings, source: BaseSource, train: TrainConfig) -> None:
        """Listen for them. Raises InvalidConfig where that cannot be, or no key is set."""
        preferences = PreferenceStore(settings).values()
        require_key(preferences.join_key)
        self._address, (host, port) = preferences.join_address, parsed_address(preferences.join_address)
        listening = listen(host, port)
        self._devices = train.devices
        names = ("name", "fingerprint", "config", "quantisation")
        task = {
            "base": {name: getattr(source, name) for name in names},
            "devices": train.devices,
            "count": train.processes,
        }
        self._door = Door(listening, preferences.join_key, train.machines, versions(), task)
        self.store, self.secret = self._door.meeting, self._door.secret
        self.place = {
            "address": self._address,
            "name": self._door.name,
            "network": network_of(own_address(host, port)),
            "where": machine_name(),
        }

    def name_of(self, number: int) -> str:
        """What the machine is called on which a process of the group is; empty of this one."""
        return self._door.name_of(number // self._devices) if number >= self._devices else ""

    def gather(self, require: Callable[[], None]) -> Iterator[str]:
        """Pause again and again until all have joined, with what is to be told. Raises WorkerLost, with what
        to do, if they do not, and what require() raises.
        """
        until = time.monotonic() + _JOIN_SECONDS
        yield (
            f"Waiting at {self._address} for {_others(self._door.missing)}; start there, with the same "
            f"join_key: lora-workbench worker --join {self._address}"
        )
        while self._door.missing:
            yield from self._door.look()
            require()
            if time.monotonic() > until:
                raise WorkerLost(
                    f"{_others(self._door.missing)} did not join at {self._address} within "
                    f"{_JOIN_SECONDS / 60:.0f} minutes. Start there: lora-workbench worker --join "
                    f"{self._address}; then resume the run."
                )
            yield ""
            time.sleep(_LOOK_SECONDS)

    def lost(self) -> str:
        """Which is gone, and why; empty while all are there."""
        return self._door.lost()

    def end(self, why: str) -> None:
        """Let all go, and listen no more. why: what ended the work, if not its end."""
        self._door.close(why)
        del self._door, self.store


def _others(count: int) -> str:
    return f"{count} other machine{'s' if count > 1 else ''}"
