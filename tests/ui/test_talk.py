"""How a conversation stands on the page: where it is scrolled to, what is held against what, and which way
it is written.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from storage.tables import Chat, ChatMessage
from tests.ui.conftest import picture, ready, served, settled

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
_AT_THE_END = """() => {
    const logs = [...document.querySelectorAll('.talk-log')];
    return logs.length === 2 && logs.every(one => one.scrollHeight > 2 * one.clientHeight
        && one.scrollHeight - one.scrollTop - one.clientHeight < 4);
}"""
_SIDES = """one => {
    const range = document.createRange(), around = one.getBoundingClientRect();
    range.selectNodeContents(one);
    const words = range.getBoundingClientRect();
    return [words.left - around.left, around.right - words.right];
}"""
HEBREW = "\u05e9\u05dc\u05d5\u05dd"


@pytest.fixture
def address(workbench, trained, zygote):
    for name in ("first", "second"):
        trained(name)
    with served(workbench.settings.home, zygote) as found:
        yield found


def _stored(workbench, *turns: tuple[str, str]) -> int:
    """A conversation in which the base and "first" have answered the same."""
    chat = workbench.registry.save(Chat(base_name="llama")).id
    for question, answer in turns:
        answers = [
            ChatMessage(chat_id=chat, role="assistant", content=answer, speaker=one, finish="end")
            for one in ("", "first")
        ]
        workbench.registry.chats.begin(ChatMessage(chat_id=chat, role="user", content=question), answers)
    return chat


def _opened(page: Page, chat: int) -> None:
    page.goto(f"{page.url.partition('?')[0]}?section=playground&name={chat}")
    ready(page)
    settled(page)
    expect(page.locator(".talk-column h2")).to_have_text(["Plain base", "first"])


def _add_second(page: Page) -> None:
    page.get_by_label("Adapters, checkpoints, blends (up to seven)").fill("second")
    page.locator("ul").get_by_role("option", name="second", exact=True).click()
    page.keyboard.press("Escape")
    expect(page.locator(".talk-column h2")).to_have_text(["Plain base", "first", "second"])


def test_a_long_conversation_is_opened_at_its_end(workbench, address, open_page):
    page = open_page(address)
    _opened(page, _stored(workbench, *[(f"question {at}", "a long answer " * 60) for at in range(25)]))
    page.wait_for_function(_AT_THE_END)
    # Beside more columns each is narrower, and as much text is higher.
    _add_second(page)
    expect(page.locator(".talk-log").first.get_by_text("question 24")).to_be_in_viewport()


def test_what_is_compared_with_stays_the_same_when_a_column_goes(workbench, address, open_page):
    page = open_page(address)
    _opened(page, _stored(workbench, ("hello", "good day")))
    _add_second(page)
    against = page.get_by_label("Show the differences from")
    against.select_option(label="first")
    page.get_by_label("Plain base too").uncheck()
    expect(page.locator(".talk-column h2")).to_have_text(["first", "second"])
    assert against.evaluate("one => one.selectedOptions[0].textContent") == "first"
    page.locator(".who-answers .token", has_text="second").locator(".token-remove").click()
    expect(page.locator(".talk-column h2")).to_have_text(["first"])
    too, above = page.locator(".talk-others"), page.get_by_role("button", name="New chat")
    expect(too).to_contain_text("Plain base")
    picture(page, "talk-one-column")
    assert too.bounding_box()["y"] >= above.bounding_box()["y"] + above.bounding_box()["height"]
    assert above.bounding_box()["y"] < page.locator(".talk-column").bounding_box()["y"]


def test_what_is_written_from_right_to_left_stands_at_the_right(workbench, address, open_page):
    page = open_page(address)
    _opened(page, _stored(workbench, ("hello", f"{HEBREW}!\n\n1. {HEBREW}\n\n```\ncode\n```\n\nin English")))
    answer = page.locator(".bot .said").first
    for words, at_the_right in ((answer.locator("p").first, True), (answer.locator("p").last, False)):
        left, right = words.evaluate(_SIDES)
        assert (left > right + 50) == at_the_right
    assert answer.locator("ol").evaluate("one => getComputedStyle(one).direction") == "rtl"
    assert answer.locator("pre").evaluate("one => getComputedStyle(one).direction") == "ltr"
