"""Scripts of the components that are made here."""

from __future__ import annotations

import json
from importlib import resources


def script(*names: str, **fixed: object) -> str:
    """Files of assets/ as one script that finds what is `fixed` under that name.

    That is written into the script, since a component that is filled before it is shown for the first time
    comes up without its own properties in Gradio 6.31.
    """
    constants = json.dumps(fixed, ensure_ascii=False).replace("</", "<\\/")
    files = [(resources.files("assets") / name).read_text(encoding="utf-8") for name in names]
    return "\n".join((f"const fixed = {constants};", *files))
