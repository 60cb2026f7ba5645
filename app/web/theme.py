"""The look of the page: one theme, one style sheet, and what goes into the page's head."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import gradio as gr

from app.web.installable import ACCENT

_FONT = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

_TEXT = gr.themes.Size(
    name="text_workbench", xxs="12px", xs="12px", sm="12px", md="13px", lg="13px", xl="15px", xxl="18px"
)


def head() -> str:
    """What goes into the page's head."""
    script = (resources.files("assets") / "around.js").read_text(encoding="utf-8")
    # Gradio puts what is in @media below its container, where rules of the frame find nothing.
    style = "<link rel='stylesheet' href='/workbench/style.css'>"
    frame = f"{style}\n<script src='/workbench/frame.js'></script>"
    color = f"<meta name='theme-color' content='{ACCENT}'>"
    return f"{color}\n<script>{script}</script>\n{frame}\n<script>{{{_speed()}}}</script>"


def _speed() -> str:
    """assets/gradio_speed.js with the addresses of the modules it is about; their names carry a version."""
    found = [
        f"/assets/{one.name}"
        for kind in ("core", "statustracker")
        for one in gradio_assets().glob(f"{kind}-*.js")
    ]
    script = (resources.files("assets") / "gradio_speed.js").read_text(encoding="utf-8")
    return f"const sources = {json.dumps(found)};\n{script}"


def gradio_assets() -> Path:
    """Where Gradio has the scripts and styles that it serves under /assets/."""
    return Path(gr.__file__).parent / "templates" / "frontend" / "assets"


def theme() -> gr.themes.Base:
    """Calm greys with one accent; compact enough for work.

    System fonts only, so nothing is fetched from outside.
    """
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_md,
        text_size=_TEXT,
        font=_FONT,
        font_mono=_MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="#0d1320",
        block_background_fill="white",
        block_background_fill_dark="#141c2b",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="#263145",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_title_text_weight="500",
        block_shadow="none",
        input_background_fill="white",
        input_background_fill_dark="#0f1726",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="#33415a",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="#1c2739",
        button_secondary_background_fill_hover_dark="#263449",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="#3a4a66",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_info_text_size="*text_xs",
        block_label_text_size="*text_sm",
        block_title_text_size="*text_sm",
        input_text_size="*text_md",
        button_small_text_size="*text_sm",
        button_medium_text_size="*text_md",
        color_accent="*primary_700",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_400",
        button_border_width="1px",
        button_large_padding="6px 14px",
        button_large_text_size="*text_md",
        button_large_text_weight="600",
    )


def style_sheet() -> str:
    """assets/style.css."""
    return (resources.files("assets") / "style.css").read_text(encoding="utf-8")
