"""Names people give to models, data sets, runs and adapters.

They live in the registry only, never in a path.
"""

from __future__ import annotations

import re
import unicodedata

from storage.errors import InvalidName

MAX_LENGTH = 120
_CHECKPOINT = re.compile(r"run-\d+@\d+", re.IGNORECASE)
_DIRECTION = {chr(code) for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def clean_name(name: str, what: str) -> str:
    """The name in its composed form, without space at its ends. Raises InvalidName with the reason."""
    clean = unicodedata.normalize("NFC", name).strip()
    if not clean:
        raise InvalidName(f"The {what} needs a name.")
    if len(clean) > MAX_LENGTH:
        raise InvalidName(
            f"The {what}'s name may be {MAX_LENGTH} characters long; this one has {len(clean)}."
        )
    if any(char in _DIRECTION or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in clean):
        raise InvalidName(f"The {what}'s name may not hold line breaks or control characters.")
    if _CHECKPOINT.fullmatch(clean):
        raise InvalidName(f"{clean} is how a checkpoint of a run is asked for; choose another name.")
    return clean


def free_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or with the first number behind it that is not taken."""
    if wanted not in taken:
        return wanted
    number = next(n for n in range(2, len(taken) + 3) if f"{wanted}-{n}" not in taken)
    return f"{wanted}-{number}"
