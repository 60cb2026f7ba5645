"""The playground: columns that answer at once, what is done with answers, and conversations that stay."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, expect

from core.data.chat_options import ChatOptions
from core.generate.config import GenerationConfig
from storage.tables import Adapter, Base, Chat, Dataset
from tests.conftest import make_llama
from tests.ui.conftest import choose, go_to, open_sheet, picture, press, ready, served, settled, slowly
from tests.workbenches import do_job, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


@pytest.fixture
def elsewhere(workbench, other_llama):
    """Another base, added before the page is served."""
    do_job(workbench, "add_model", {"origin": str(other_llama), "name": "elsewhere"})
    return workbench.registry.find(Base, "elsewhere")


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def _prompt(page: Page):
    return page.get_by_role("textbox", name="Prompt", exact=True)


def _ask(page: Page, question: str) -> None:
    _prompt(page).fill(question)
    _prompt(page).press("Enter")
    expect(_prompt(page)).to_have_value("")


def _column(page: Page, name: str):
    return page.locator(".talk-column", has=page.get_by_role("heading", name=name, exact=True))


def _sampled(page: Page, **fields: str) -> None:
    sampling = open_sheet(page, "Sampling")
    for label, value in fields.items():
        name = label.replace("_", " ")
        field = sampling.get_by_role("textbox", name=name).or_(sampling.get_by_role("spinbutton", name=name))
        field.fill(value)
    page.keyboard.press("Escape")


def _add_columns(page: Page, *names: str) -> None:
    field = page.get_by_label("Adapters, checkpoints, blends (up to seven)")
    expect(page.locator(".who-answers .token").first).to_be_visible()  # the newest, which comes by itself
    for name in names:
        if not page.locator(".who-answers .token", has_text=name).count():
            field.fill(name)
            page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")


def _answered(page: Page, columns: int) -> None:
    expect(page.locator(".talk-buttons button:visible", has_text="Again")).to_have_count(
        columns, timeout=60_000
    )


def test_four_columns_answer_and_each_answer_can_be_worked_on(
    workbench, trained, elsewhere, address, open_page
):
    for name in ("first", "second", "third"):
        trained(name)
    page = open_page(address)
    go_to(page, "Playground")
    expect(page.locator(".who-answers .token")).to_have_count(1)
    _add_columns(page, "first", "second", "third")
    _sampled(page, Max_tokens="6", Temperature="0")
    expect(page.locator(".talk-column h2")).to_have_count(4)
    _ask(page, "hello there")
    _answered(page, 4)
    chat = workbench.registry.all(Chat)[0]
    (turn,) = workbench.conversations.turns(chat.id)
    assert set(turn.answers) == {"", "first", "second", "third"}
    first = _column(page, "first")
    expect(first.locator(".talk-figures")).to_have_text(re.compile(r"^\d+ tokens? · .*first after"))
    picture(page, "playground-four")

    page.get_by_label("Show the differences from").select_option(label="Plain base")
    expect(page.locator(".as-written")).to_have_count(3)
    page.get_by_label("Show the differences from").select_option(label="nobody")
    expect(page.locator(".as-written")).to_have_count(0)
    page.get_by_label("Scroll together").uncheck()

    # One answer anew, by other settings: the rest stays.
    _sampled(page, Max_tokens="3")
    first.get_by_role("button", name="Again").click()
    expect(first.locator(".talk-figures")).to_contain_text("3 tokens")
    _answered(page, 4)
    settled(page)  # until the server has heard of the last click it takes no other
    assert workbench.conversations.turns(chat.id)[0].answers["second"].details["tokens"] == 6

    # All go on from one.
    first.get_by_role("button", name="Go on from this").click()
    expect(first.get_by_role("button", name="Go on from this")).to_have_attribute("aria-pressed", "true")
    assert workbench.conversations.turns(chat.id)[0].question.adopted == "first"

    # Another base answers the same question, by its own weights.
    _add_columns(page, "elsewhere (another base, after the others)")
    other = _column(page, "elsewhere")
    other.get_by_role("button", name="Answer this too").click()
    expect(other.locator(".talk-weights")).to_have_text(f"base {elsewhere.fingerprint[:8]}", timeout=60_000)
    _answered(page, 5)
    picture(page, "playground-another-base")
    page.locator(".who-answers .token", has_text="elsewhere").locator(".token-remove").click()
    expect(page.locator(".talk-column h2")).to_have_count(4)

    # ↑ brings the question back, and another one in its place begins a branch.
    _prompt(page).press("ArrowUp")
    expect(_prompt(page)).to_have_value("hello there")
    _prompt(page).fill("")
    first.get_by_role("button", name="Edit").click()
    page.get_by_label("The question anew").fill("good night")
    press(page, "Ask in a new branch")
    expect(first.locator(".user .said")).to_have_text("good night")
    _answered(page, 4)
    assert len(workbench.registry.all(Chat)) == 2

    # A good answer becomes a row, corrected by hand.
    first.get_by_role("button", name="To data").click()
    kept = page.get_by_role("dialog", name="Keep as a row")
    expect(kept.get_by_label("Question")).to_have_value("good night")
    kept.get_by_label("Answer").fill("Sleep well.")
    kept.get_by_label("Name of the new data set").fill("good ones")
    kept.get_by_role("button", name="Keep it").click()
    expect(kept).to_be_hidden()
    data = workbench.registry.find(Dataset, "good ones")
    assert [one["content"] for one in data.preview[0]["messages"]] == ["good night", "Sleep well."]
    first.get_by_role("button", name="To data").click()
    expect(kept.get_by_label("Question")).to_have_value("good night")
    kept.get_by_label("Into").click()
    page.get_by_role("option", name="good ones").click()
    kept.get_by_role("button", name="Keep it").click()
    expect(kept).to_be_hidden()
    assert workbench.registry.find(Dataset, "good ones").rows == 2


def test_a_conversation_goes_on_without_the_page_and_is_found_again(
    workbench, address, open_page, tokenizer, tmp_path
):
    deep = make_llama(tmp_path / "deep", tokenizer, layers=24)  # slow enough to be left in the middle
    workbench.jobs.wait(workbench.models.add(str(deep), "deep"))
    page = open_page(address)
    go_to(page, "Playground")
    choose(page, "Base model", "deep")
    _sampled(page, Max_tokens="200", Temperature="0", System_prompt="Be kind.")
    _ask(page, "tell me a long story")
    said = page.locator(".bot .said")
    expect(said).not_to_have_text(re.compile(r"^\s*…?\s*$"), timeout=60_000)
    before = said.inner_text()
    _prompt(page).fill("half a question")
    page.reload()
    ready(page)
    expect(page.locator(".user .said")).to_have_text("tell me a long story")
    expect(_prompt(page)).to_have_value("half a question")
    expect(said).to_contain_text(before[:20])
    # Left: what is generated meanwhile is kept.
    chat = workbench.registry.all(Chat)[0]
    address_of_it = page.url
    page.goto("about:blank")
    wait_for(lambda: workbench.registry.chats.messages(chat.id)[-1].finish)
    page.goto(address_of_it)
    ready(page)
    expect(page.locator(".talk-figures")).to_contain_text("200 tokens")
    assert chat.system == "Be kind."

    press(page, "New chat")
    expect(page.locator(".talk-empty")).to_be_visible()
    _ask(page, "something else")
    expect(page.locator(".user .said")).to_have_text("something else")
    page.locator(".talk").get_by_role("button", name="Stop").click()
    expect(page.locator(".talk-figures")).to_contain_text("stopped", timeout=60_000)
    _ask(page, "once more")
    page.locator("#stop-answers:enabled").click()
    expect(page.locator(".talk-figures").last).to_contain_text("stopped", timeout=60_000)
    listed = open_sheet(page, "Conversations")
    expect(listed.get_by_role("option")).to_have_count(2)
    listed.get_by_placeholder("Search what was said").fill("long story")
    expect(listed.get_by_role("option")).to_have_count(1)
    listed.get_by_role("option").click()
    expect(page.locator(".user .said")).to_have_count(1)
    expect(page.locator(".user .said")).to_have_text("tell me a long story")
    listed.get_by_label("Name").fill("A story")
    listed.get_by_role("button", name="Rename").click()
    expect(listed.get_by_role("option")).to_contain_text("A story")
    with page.expect_download() as download:
        listed.get_by_role("link", name="As Markdown").click()
    text = download.value.path().read_text()
    assert text.startswith("# A story\n")
    assert "## tell me a long story" in text
    with page.expect_download() as download:
        listed.get_by_role("link", name="As JSONL").click()
    (line,) = download.value.path().read_text().splitlines()
    assert [one["role"] for one in json.loads(line)["messages"]] == ["system", "user", "assistant"]
    picture(page, "conversations")
    listed.get_by_role("button", name="Delete …").click()
    press(page, "Delete it")
    expect(page.locator(".talk-empty")).to_be_visible()
    wait_for(lambda: len(workbench.registry.all(Chat)) == 1)


def test_a_mixture_is_heard_followed_scored_and_kept(workbench, trained, address, open_page):
    trained("calm")
    trained("loud")
    page = open_page(address)
    go_to(page, "Playground")
    _sampled(page, Max_tokens="6", Temperature="0")
    blend = open_sheet(page, "Blend")
    field = blend.get_by_role("combobox", name="Adapters, each with its weight")
    for name in ("calm", "loud"):
        field.fill(name)
        blend.locator(".choice-popup").get_by_role("option", name=name).click()
    blend.get_by_label("Weight of calm", exact=True).fill("0.7")
    blend.get_by_label("Weight of loud", exact=True).fill("0.3")
    blend.get_by_label("Weight of loud", exact=True).press("Tab")
    blend.get_by_role("button", name="Hear it").click()
    expect(_column(page, "calm=0.7+loud=0.3")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator(".talk-column")).to_have_count(3)
    _ask(page, "hello there")
    _answered(page, 3)
    mixed = _column(page, "calm=0.7+loud=0.3")
    expect(mixed.locator(".talk-weights")).to_have_text(
        re.compile(r"^base [0-9a-f]{8} \+ [0-9a-f]{8} × 0.7 \+ [0-9a-f]{8} × 0.3$")
    )

    # Token by token, and a reference answer under every column.
    mixed.get_by_role("button", name="Tokens").click()
    expect(mixed.locator(".scored span").first).to_have_attribute("title", re.compile("% here · KL"))
    expect(mixed.get_by_text("perplexity")).to_be_visible()
    picture(page, "playground-tokens")
    reference = open_sheet(page, "Reference answer")
    reference.get_by_label("The answer that is wished for").fill("good day")
    reference.get_by_role("button", name="Score it").click()
    expect(reference.locator("tbody tr")).to_have_count(3)
    page.keyboard.press("Escape")

    # The column follows the slider, and answers again.
    blend = open_sheet(page, "Blend")
    blend.get_by_label("Weight of loud", exact=True).fill("-0.5")
    blend.get_by_label("Weight of loud", exact=True).press("Tab")
    moved = _column(page, "calm=0.7+loud=-0.5")
    expect(moved.locator(".talk-weights")).to_contain_text("× -0.5", timeout=60_000)
    picture(page, "blend")

    blend.get_by_label("Name of the new adapter").fill("both")
    blend.get_by_role("button", name="Keep and compare").click()
    expect(blend.get_by_text("all 1 greedy answers the same")).to_be_visible(timeout=120_000)
    assert "both" in workbench.registry.names(Adapter)
    blend.get_by_role("button", name="Five steps of the first").click()
    expect(page.locator(".talk-column")).to_have_count(6)
    page.keyboard.press("Escape")
    _answered(page, 6)  # the last question, at once
    expect(page.locator(".talk-others")).to_contain_text("loud")
    page.locator(".talk-others").get_by_role("button", name="loud", exact=True).click()
    expect(_column(page, "loud").locator(".talk-figures")).to_be_visible()
    _add_columns(page, "both")
    _column(page, "both").get_by_role("button", name="Answer this too").click()
    expect(_column(page, "both").locator(".talk-figures")).to_be_visible(timeout=60_000)


def test_what_is_typed_on_after_enter_belongs_to_the_next_question(workbench, address, open_page):
    page = open_page(address)
    go_to(page, "Playground")
    _sampled(page, Max_tokens="2", Temperature="9")
    _prompt(page).click()
    page.keyboard.type("Say hello.\n")
    expect(page.locator(".toast-body")).to_be_visible()  # refused: it comes back
    expect(_prompt(page)).to_have_value("Say hello.")
    with slowly(page, 300):
        page.keyboard.type("\nAnd what now?")
        expect(page.locator(".toast-body")).to_contain_text("(2)")  # refused again
    expect(_prompt(page)).to_have_value("And what now?")
    _sampled(page, Temperature="0")
    _prompt(page).fill("")
    _prompt(page).click()
    with slowly(page, 300):
        page.keyboard.type("Say hello.\nAnd what now?")
        expect(page.locator(".user .said")).to_have_text("Say hello.")
    settled(page)
    expect(_prompt(page)).to_have_value("And what now?")
    # Two that are sent faster than they are heard belong to one conversation.
    page.keyboard.type("\nAnd then?")
    press(page, "Send")
    expect(page.locator(".user .said")).to_have_text(["Say hello.", "And what now?", "And then?"])
    expect(_prompt(page)).to_have_value("")
    (chat,) = workbench.registry.all(Chat)
    turns = workbench.conversations.turns(chat.id)
    assert [one.question.content for one in turns] == ["Say hello.", "And what now?", "And then?"]


def test_how_answers_are_sampled_outlives_a_reload(workbench, address, open_page):
    page = open_page(address)
    go_to(page, "Playground")
    _sampled(page, Max_tokens="3", Temperature="0", System_prompt="Be kind.")
    used = {"Min-p": "0.1", "Presence_penalty": "0.5", "Frequency_penalty": "-0.25"}
    _sampled(page, **used)
    open_sheet(page, "Sampling").get_by_label("Join turns").check()
    page.reload()
    ready(page)
    sampling = open_sheet(page, "Sampling")
    expect(sampling.get_by_label("Max tokens")).to_have_value("3")
    expect(sampling.get_by_label("Temperature")).to_have_value("0")
    expect(sampling.get_by_label("Top-p")).to_have_value("0.95")
    expect(sampling.get_by_role("textbox", name="System prompt")).to_have_value("Be kind.")
    expect(sampling.get_by_label("Join turns")).to_be_checked()
    page.keyboard.press("Escape")
    _ask(page, "hello there")
    expect(page.locator(".talk-figures")).to_contain_text("3 tokens", timeout=60_000)
    (chat,) = workbench.registry.all(Chat)
    assert chat.system == "Be kind."
    answer = workbench.registry.chats.messages(chat.id)[-1]
    said = GenerationConfig.from_dict(answer.details["settings"])
    assert (said.temperature, said.join_turns) == (0.0, True)
    assert (said.min_p, said.presence_penalty, said.frequency_penalty) == (0.1, 0.5, -0.25)


def test_an_answer_is_held_to_a_json_schema_and_keeps_its_lines(workbench, address, open_page):
    page = open_page(address)
    go_to(page, "Playground")
    schema = {"type": "object", "properties": {"kept": {"const": "yes"}}, "required": ["kept"]}
    _sampled(page, Temperature="0", JSON_schema="kept: yes")
    _prompt(page).fill("hello there")
    _prompt(page).press("Enter")
    expect(page.get_by_text("json_schema is not JSON")).to_be_visible()
    _sampled(page, JSON_schema=json.dumps(schema | {"additionalProperties": False}))
    _ask(page, "hello there")
    code = page.locator(".talk-column pre code")
    expect(code).to_contain_text("}", timeout=60_000)
    assert json.loads(code.inner_text()) == {"kept": "yes"}


def test_escape_closes_an_open_list_before_anything_else(workbench, address, open_page, tokenizer, tmp_path):
    deep = make_llama(tmp_path / "deep", tokenizer, layers=24)  # slow enough to be stopped in the middle
    workbench.jobs.wait(workbench.models.add(str(deep), "deep"))
    page = open_page(address)
    go_to(page, "Playground")
    choose(page, "Base model", "deep")
    _sampled(page, Max_tokens="2000", Temperature="0")
    _ask(page, "tell me a long story")
    expect(page.locator("#stop-answers")).to_be_enabled()
    base = page.get_by_role("combobox", name="Base model")
    base.click()
    expect(page.get_by_role("option", name="deep", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("option", name="deep", exact=True)).to_be_hidden()
    expect(base).to_be_focused()
    settled(page)
    assert not workbench.registry.chats.messages(workbench.registry.all(Chat)[0].id)[-1].finish
    page.keyboard.press("Escape")
    expect(page.locator(".talk-figures")).to_contain_text("stopped", timeout=60_000)

    judging = open_sheet(page, "Judge", "Judge answers")
    judging.get_by_label("Base model").click()
    expect(page.get_by_role("option", name="deep", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("option", name="deep", exact=True)).to_be_hidden()
    expect(judging).to_be_visible()
    page.keyboard.press("Escape")
    expect(judging).to_be_hidden()


@pytest.mark.parametrize("width", [1280, 1920])
def test_what_is_heard_while_one_slides_is_in_sight(workbench, trained, address, open_page, width):
    trained("calm")
    trained("loud")
    page = open_page(address, width=width)
    go_to(page, "Playground")
    _add_columns(page, "calm", "loud")
    _sampled(page, Max_tokens="6", Temperature="0")
    blend = open_sheet(page, "Blend")
    field = blend.get_by_role("combobox", name="Adapters, each with its weight")
    for name in ("calm", "loud"):
        field.fill(name)
        blend.locator(".choice-popup").get_by_role("option", name=name).click()
    blend.get_by_role("button", name="Hear it").click()
    expect(_column(page, "calm=0.5+loud=0.5")).to_have_count(1)
    _ask(page, "hello there")  # in the line beside the sheet, which stays open
    _answered(page, 4)
    blend.get_by_label("Weight of loud, to slide").press("ArrowLeft")
    moved = _column(page, "calm=0.5+loud=0.45")
    expect(moved.locator(".talk-weights")).to_contain_text("× 0.45", timeout=60_000)
    expect(blend).to_be_visible()
    expect(page.locator(".shade")).to_have_count(0)
    heard, sheet = moved.bounding_box(), blend.bounding_box()
    narrow = page.locator(".talk").bounding_box()["width"]
    assert heard["x"] >= page.locator("#rail").bounding_box()["width"]
    assert heard["x"] + heard["width"] <= sheet["x"]
    picture(page, f"blend-{width}")

    # Closed, it gives the room back; opened again, the mixture is in sight at once.
    blend.get_by_role("button", name="Close").click()
    expect(blend).to_be_hidden()
    assert page.locator(".talk").bounding_box()["width"] > narrow
    page.locator(".chats").evaluate("all => all.scrollTo(0, 0)")
    open_sheet(page, "Blend")
    assert moved.bounding_box()["x"] + heard["width"] <= sheet["x"]


def test_the_same_question_stands_at_the_same_height_in_all_columns(trained, address, open_page):
    trained("calm")
    trained("loud")
    page = open_page(address)
    go_to(page, "Playground")
    _add_columns(page, "loud")
    _sampled(page, Max_tokens="2")
    _ask(page, "hello there")
    _answered(page, 2)
    _add_columns(page, "calm")
    asked = page.locator(".user .said")
    expect(asked).to_have_count(3)
    expect(_column(page, "calm").get_by_role("button", name="Answer this too")).to_be_visible()
    assert len({one.bounding_box()["y"] for one in asked.all()}) == 1


def test_what_is_refused_is_said_above_the_line_in_the_words_of_the_page(address, open_page):
    page = open_page(address)
    go_to(page, "Playground")
    open_sheet(page, "Sampling").get_by_label("Top-p").fill("5")
    page.keyboard.press("Escape")
    _prompt(page).fill("a question\nof three\nlines")
    _prompt(page).press("Enter")
    told = page.get_by_test_id("toast-body")
    expect(told).to_contain_text("Top-p under Sampling must be between 0.01 and 1, not 5.")
    expect(_prompt(page)).to_have_value("a question\nof three\nlines")
    line, message = page.locator(".ask-line").bounding_box(), told.bounding_box()
    assert message["y"] + message["height"] <= line["y"]
    open_sheet(page, "Sampling").get_by_label("Max tokens").fill("")
    page.keyboard.press("Escape")
    press(page, "Send")
    expect(told.last).to_contain_text("Max tokens under Sampling is empty; it must be a whole number.")


def test_who_was_trained_with_chat_options_is_asked_so_until_that_is_switched_off(
    workbench, trained, address, open_page
):
    row, chat = trained("mine"), ChatOptions(join_turns=True, template_kwargs={"enable_thinking": False})
    row.chat = chat.to_dict()
    workbench.registry.save(row)
    page = open_page(address)
    go_to(page, "Playground")
    _add_columns(page, "mine")
    told = page.get_by_text(re.compile("mine is asked as it was trained: .*enable_thinking = false"))
    expect(told).to_be_visible()
    _sampled(page, Max_tokens="4")
    _ask(page, "hello")
    _answered(page, 2)
    open_sheet(page, "Sampling").get_by_label("Ask each as it was trained").uncheck()
    page.keyboard.press("Escape")
    _ask(page, "hello again")
    wait_for(lambda: len(_settings(workbench)) == 2)
    assert [one.chat for one in _settings(workbench)] == [chat, ChatOptions()]


def _settings(workbench):
    """How "mine" was asked, for each of its answers that have ended."""
    messages = workbench.registry.chats.messages(workbench.registry.all(Chat)[0].id)
    answers = [one for one in messages if one.role != "user" and one.speaker == "mine" and one.finish]
    return [GenerationConfig.from_dict(one.details["settings"]) for one in answers]
