"""What takes space in the home folder, and what of it can go."""

from __future__ import annotations

from html import escape

import gradio as gr

from app.service.usage import Share
from app.service.workbench import Workbench
from app.web.parts.markup import size
from app.web.parts.shell import QUIET, WORKING, Shell, inform, told


def storage_view(shell: Shell) -> None:
    """Lay out the view; it is measured when it is opened or asked for, not with every change."""
    workbench = shell.workbench
    with gr.Accordion("Storage", open=False) as view:
        table = gr.HTML()
        with gr.Row(equal_height=True, elem_classes="asked"):
            clean = gr.Button("Clean up", size="md", scale=0, min_width=110)
            again = gr.Button("Measure again", size="md", scale=0, min_width=140)

    def show() -> str:
        return storage_html(workbench)

    @told
    def tidy() -> str:
        freed = workbench.usage.clean_up()
        inform(f"{size(freed)} became free.", "Cleaned up")
        return show()

    view.expand(show, None, table, **QUIET)
    again.click(show, None, table, **WORKING)
    clean.click(tidy, None, table, **WORKING)


def storage_html(workbench: Workbench) -> str:
    """Everything that takes space, the largest first."""
    shares = workbench.usage.shares()
    rows = "".join(_row(one) for one in shares)
    total, limit = sum(one.bytes for one in shares), workbench.usage.quota()
    said = f"{size(total)} in all" + (f" of {limit:g} GB allowed" if limit else "")
    over = (
        " <b class='fault'>More than the quota: clean up, or raise it.</b>"
        if limit and total > limit * 1e9
        else ""
    )
    head = "<thead><tr><th>What</th><th>Size</th><th>Can go</th><th></th></tr></thead>"
    return (
        f"<p class='lead'>{said}.{over}</p><div class='wide'><table "
        f"class='rows'>{head}<tbody>{rows}</tbody></table></div>"
    )


def _row(one: Share) -> str:
    removable = size(one.removable_bytes) if one.removable_bytes else "–"
    cells = (escape(one.what), size(one.bytes), removable, escape(one.advice))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
