"""The token that opens the page.

It lies in the home folder, so an open tab outlives a restart. Who can read the home folder has the token:
this user. Everybody else on the machine reaches the port, and no more.
"""

from __future__ import annotations

import re
import secrets

from app.shared.private import is_private, write_private
from app.shared.settings import Settings

_FORM = re.compile(r"[A-Za-z0-9_-]{32,64}")


def page_token(settings: Settings, *, anew: bool = False) -> str:
    """The home folder's token; a new one if there is none, others could have read it, or `anew` asks."""
    path = settings.token_file
    if not anew and path.is_file() and is_private(path):
        token = path.read_text(encoding="utf-8").strip()
        if _FORM.fullmatch(token):
            return token
    token = secrets.token_urlsafe(24)
    write_private(path, token)
    return token
