"""What makes the page an app that a browser can install: its manifest and icons.

A browser fetches a manifest without cookies, and so without the token, unless its link says otherwise:
assets/around.js makes that link.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

ACCENT, BACKGROUND = "#0f766e", "#f8fafc"
"""Of the icon, and of what is seen before the page is there."""
MANIFEST_ROUTE, ICONS_ROUTE = "/workbench/manifest.webmanifest", "/workbench/icons"
_SIZES = (192, 512)
_PURPOSES = {"icon": "any", "maskable": "maskable"}


def manifest() -> dict[str, Any]:
    """The web app's manifest (https://www.w3.org/TR/appmanifest/)."""
    return {
        "id": "/",
        "name": "LoRA Workbench",
        "short_name": "LoRA",
        "description": "Train, keep, compare and merge LoRA adapters on your own machine.",
        "lang": "en",
        "start_url": "/",
        "scope": "/",
        "display": "standalone",
        "theme_color": ACCENT,
        "background_color": BACKGROUND,
        "icons": [
            {
                "src": f"{ICONS_ROUTE}/{name}-{size}.png",
                "sizes": f"{size}x{size}",
                "type": "image/png",
                "purpose": purpose,
            }
            for name, purpose in _PURPOSES.items()
            for size in _SIZES
        ],
    }


def icon_files() -> list[Path]:
    """The icons that it names."""
    folder = Path(str(resources.files("assets") / "icons"))
    return [folder / f"{name}-{size}.png" for name in _PURPOSES for size in _SIZES]
