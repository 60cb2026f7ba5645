"""The playground's fields without a browser: what they hold on a page that is loaded anew."""

from __future__ import annotations

import json

import gradio as gr
import pytest

from app.web.parts.kept import kept_states
from app.web.parts.routes import router
from app.web.parts.shell import Shell
from app.web.sections.playground import section


@pytest.fixture
def playground(workbench):
    """The section's shell, and its fields by label."""
    with gr.Blocks() as page:
        shell = Shell(workbench, page, gr.State(""), router(), kept_states())
        section.build(shell)
    return shell, {one.label: one for one in page.blocks.values() if getattr(one, "label", None)}


def test_sampling_is_as_it_was_also_where_a_conversation_was_faster(playground):
    shell, fields = playground
    kept = shell.kept["sampling"]
    (refresh,) = [one for one in shell.refreshes if kept in one.inputs]
    given = {one: one.value for one in refresh.inputs} | {kept: json.dumps({"temperature": 0.25})}
    # The conversation in the page's address has chosen its base and columns before this is asked.
    given |= {one: "llama" for one in refresh.inputs if one is fields["Base model"]}
    answer = dict(zip(refresh.outputs, refresh.answer(given), strict=True))
    assert answer[fields["Temperature"]] == 0.25
    assert answer[fields["Max tokens"]] == gr.skip()
    # From then on what stands there counts, whatever was kept.
    given |= {one: answer[one] for one in refresh.inputs if one in answer}
    answer = dict(zip(refresh.outputs, refresh.answer(given), strict=True))
    assert answer[fields["Temperature"]] == gr.skip()
