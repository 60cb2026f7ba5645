"""The key of the HTTP API: as it is set, or one of the home folder's own, made at the first start."""

from __future__ import annotations

import re
import secrets

from app.shared.private import is_private, write_private
from app.shared.settings import Settings
from app.shared.user_settings import PreferenceStore

_FORM = re.compile(r"[!-~]{8,200}")


def api_key(settings: Settings, preferences: PreferenceStore) -> str:
    """The key that counts: the one that is set, else the home folder's. One that others could have read is
    made anew.

    Raises InvalidConfig for a key that is set wrongly.
    """
    if chosen := preferences.values().api_key:
        return chosen
    path = settings.api_key_file
    if path.is_file() and is_private(path):
        key = path.read_text(encoding="utf-8").strip()
        if _FORM.fullmatch(key):
            return key
    key = f"lw-{secrets.token_urlsafe(24)}"
    write_private(path, key)
    return key
