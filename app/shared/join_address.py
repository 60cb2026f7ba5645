"""The address at which other machines join a run: ADDRESS:PORT, as torchrun has its rendezvous endpoint."""

from __future__ import annotations

from ipaddress import ip_address

from core.errors import InvalidConfig


def parsed_address(text: str) -> tuple[str, int]:
    """Host and port. Raises InvalidConfig."""
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise InvalidConfig(f"{text!r} is no ADDRESS:PORT, such as 10.0.0.1:29500.")
    return host, int(port)


def is_everywhere(host: str) -> bool:
    """Whether who listens there listens at all addresses of the machine."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def is_this_machine_alone(host: str) -> bool:
    """Whether no other machine reaches the address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_key(key: str) -> None:
    """Raise InvalidConfig where no key is set."""
    if not key:
        raise InvalidConfig(
            "Machines train together where both have the same join_key, and none is set here. Set one on "
            "both: settings set join_key …, or $LORA_WORKBENCH_JOIN_KEY."
        )
