"""The icons of the app as PNG, drawn from assets/icon.svg by Chromium: `python -m tests.icons` writes them.

A maskable icon has no corners of its own, and keeps what it shows inside of what every system leaves of it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ASSETS = Path(__file__).parents[1] / "assets"
SIZES = (192, 512)
_INSIDE = 0.72  # of the width: a circle of 0.8 of it stays visible


def _maskable(svg: str) -> str:
    """The same with its ground up to the edges, and what stands on it smaller."""
    head, ground, rest = re.fullmatch(r"(<svg[^>]*>)\s*(<rect[^>]*>)(.*)</svg>\s*", svg, re.DOTALL).groups()
    smaller = f"translate({16 * (1 - _INSIDE)} {16 * (1 - _INSIDE)}) scale({_INSIDE})"
    square = ground.replace(' rx="7"', "")
    return f'{head}{square}<g transform="{smaller}">{rest}</g></svg>'


def drawn(browser: Browser) -> dict[str, bytes]:
    """Each icon by its file's name."""
    svg = (ASSETS / "icon.svg").read_text(encoding="utf-8")
    found = {}
    for name, content in (("icon", svg), ("maskable", _maskable(svg))):
        for size in SIZES:
            page = browser.new_page(viewport={"width": size, "height": size})
            page.set_content(
                f"<style>body {{ margin: 0 }} svg {{ width: 100vw; display: block }}</style>{content}"
            )
            found[f"{name}-{size}.png"] = page.screenshot(omit_background=True)
            page.close()
    return found


def main() -> None:
    with sync_playwright() as playwright:
        executable = shutil.which("chromium") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for name, content in drawn(browser).items():
            (ASSETS / "icons" / name).write_bytes(content)
        browser.close()


if __name__ == "__main__":
    main()
