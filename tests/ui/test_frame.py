"""The page around its sections: the address bar, links, back and forward, sheets, keys, the split and axe."""

from __future__ import annotations

import re
import time

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from storage.tables import FAILED, Chat, Job
from tests.ui.conftest import (
    choose_row,
    drawn,
    go_to,
    open_sheet,
    picture,
    ready,
    row,
    section_link,
    served,
    settled,
)

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
_MADE_ANEW = """() => {
    const old = document.querySelector('.sheet[data-open]'), made = old.cloneNode(true);
    for (const name of ['data-open', 'role']) made.removeAttribute(name);
    old.replaceWith(made);
}"""
SECTIONS = ("Home", "Models", "Data", "Train", "Runs", "Adapters", "Playground", "Export", "Settings")


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def _chosen(page: Page, section: str, name: str) -> None:
    expect(row(page, section, name)).to_have_attribute("aria-selected", "true")
    expect(page.locator(".title-line h2:visible")).to_have_text(name)


def _fail(workbench, name: str) -> None:
    """Not begun first: the server takes a job that nobody does for lost."""
    said = {"title": f"Add {name}", "state": FAILED, "message": f"There is no {name} here."}
    workbench.registry.save(Job(kind="add_model", arguments={}, ended=time.time(), **said))


def test_what_has_ended_takes_little_room_and_none_of_it_is_lost(workbench, address, open_page):
    for number in range(5):
        _fail(workbench, f"model {number}")
    page = open_page(address)
    activity, notices = page.locator(".activity").first, page.locator(".notices .notice")
    counted = page.locator(".notices summary")
    expect(notices.filter(visible=True)).to_have_count(1)
    expect(notices.first).to_contain_text("There is no model 4 here.")
    expect(counted).to_have_text(re.compile(r"^\d more: 4 failed"))
    assert activity.bounding_box()["height"] < 90
    picture(page, "ended-folded")
    counted.click()
    expect(notices.filter(has_text="There is no model 0 here.")).to_be_visible()
    picture(page, "ended-unfolded")
    _fail(workbench, "other")
    expect(notices.first).to_contain_text("There is no other here.")
    expect(notices.filter(has_text="There is no model 0 here.")).to_be_visible()  # it stays unfolded
    notices.first.get_by_role("button", name="Put this away").click()
    expect(notices.first).to_contain_text("There is no model 4 here.")
    page.get_by_role("button", name="Put all away").click()
    expect(notices).to_have_count(0)
    page.reload()
    ready(page)
    expect(notices).to_have_count(0)


def test_the_address_names_what_is_chosen_and_leads_back_to_it(trained, address, open_page):
    for name in ("one", "two"):
        trained(name)
    page = open_page(address)
    go_to(page, "Adapters")
    choose_row(page, "adapters", "one")
    expect(page).to_have_url(re.compile(r"\?section=adapters&name=one$"))
    choose_row(page, "adapters", "two")
    go_to(page, "Models")
    _chosen(page, "models", "llama")
    page.go_back()
    _chosen(page, "adapters", "two")
    page.go_back()
    _chosen(page, "adapters", "one")
    page.go_forward()
    _chosen(page, "adapters", "two")
    page.reload()
    ready(page)
    _chosen(page, "adapters", "two")
    page.goto(page.url.replace("name=two", "name=one"))
    ready(page)
    _chosen(page, "adapters", "one")


def test_names_are_links_to_what_they_name(trained, address, open_page):
    trained("linked")
    page = open_page(address)
    page.get_by_role("tabpanel").get_by_role("link", name="linked", exact=True).click()
    _chosen(page, "adapters", "linked")
    go_to(page, "Home")
    page.get_by_role("tabpanel").get_by_role("link", name="llama", exact=True).click()
    _chosen(page, "models", "llama")
    page.get_by_role("tabpanel").get_by_role("link", name="linked", exact=True).click()
    _chosen(page, "adapters", "linked")


def test_a_sheet_takes_the_focus_and_gives_it_back(address, open_page):
    page = open_page(address)
    go_to(page, "Models")
    opens = page.get_by_role("button", name="Add a base model", exact=True)
    sheet = open_sheet(page, "Add a base model")
    for _ in range(12):  # more often than there are stops: the focus goes round in it
        page.keyboard.press("Tab")
        assert sheet.evaluate("sheet => sheet.contains(document.activeElement)")
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    expect(opens).to_be_focused()
    open_sheet(page, "Add a base model")
    sheet.get_by_role("button", name="Close").click()
    expect(sheet).to_be_hidden()
    open_sheet(page, "Add a base model")
    page.mouse.click(200, 400)  # beside it
    expect(sheet).to_be_hidden()


def test_a_sheet_stays_open_while_its_section_changes_around_it(workbench, trained, address, open_page):
    """Gradio may make anew what it has shown for the first time."""
    trained("mine")
    page = open_page(address)
    first = page.locator(".first-steps")
    expect(first).to_be_visible()
    costs = open_sheet(page, "What LoRA costs …")
    workbench.registry.save(Chat(base_name="llama", title="begun elsewhere", system=""))
    expect(first).to_be_hidden()  # somebody has talked to a model
    page.evaluate(_MADE_ANEW)
    expect(costs).to_be_visible()
    page.keyboard.press("Escape")
    expect(costs).to_be_hidden()
    expect(page.locator(".shade")).to_have_count(0)


def test_keys_go_to_sections_search_and_explain_themselves(trained, address, open_page):
    for name in ("one", "two", "three"):
        trained(name)
    page = open_page(address)
    page.keyboard.press("g")
    page.keyboard.press("a")
    expect(section_link(page, "Adapters")).to_have_attribute("aria-current", "page")
    drawn(page)
    page.keyboard.press("/")
    expect(page.locator("#list-adapters input[type=search]")).to_be_focused()
    page.keyboard.type("two")
    expect(page.locator("#list-adapters .picker-row")).to_have_count(1)
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    expect(page.locator("#list-adapters .picker-row")).to_have_count(3)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    _chosen(page, "adapters", "one")  # the newest comes first
    page.keyboard.press("ArrowUp")
    _chosen(page, "adapters", "two")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    section_link(page, "Adapters").focus()
    page.keyboard.press("ArrowUp")
    expect(section_link(page, "Runs")).to_be_focused()


def test_the_split_is_moved_and_stays(address, open_page):
    page = open_page(address)
    go_to(page, "Models")
    bar = page.get_by_role("separator", name="Width of the list").locator("visible=true")
    before = int(bar.get_attribute("aria-valuenow") or 0)
    bar.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(bar).to_have_attribute("aria-valuenow", str(before + 48))
    page.reload()
    ready(page)
    expect(bar).to_have_attribute("aria-valuenow", str(before + 48))
    box = bar.bounding_box()
    assert box
    page.mouse.move(box["x"] + 4, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] - 96, box["y"] + 200, steps=4)
    page.mouse.up()
    assert abs(int(bar.get_attribute("aria-valuenow") or 0) - (before + 48 - 100)) <= 8


def test_the_theme_is_switched_and_stays(address, open_page):
    page = open_page(address)
    assert page.evaluate("document.body.classList.contains('dark')") is False
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate("document.body.classList.contains('dark')") is True
    page.reload()
    ready(page)
    assert page.evaluate("document.body.classList.contains('dark')") is True


def test_no_request_leaves_the_machine_and_the_first_load_is_small(address, open_page, browser):
    page = browser.new_context().new_page()
    asked: list[str] = []
    sizes: list[int] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfinished", lambda done: sizes.append(done.sizes()["responseBodySize"]))
    page.goto(address)
    ready(page)
    drawn(page)
    own = address.partition("?")[0]
    assert [url for url in asked if not url.startswith((own, "data:", "blob:"))] == []
    print(f"{len(asked)} requests, {sum(sizes) / 1e3:.0f} kB")
    page.context.close()


def test_axe_finds_nothing_serious_or_moderate(trained, address, open_page):
    """In every section and every sheet, light and dark."""
    trained("one")
    page = open_page(address)
    page.evaluate(Axe().axe_script)
    looked_at: set[str] = set()
    for section in SECTIONS:
        go_to(page, section)
        settled(page)
        assert _violations(page) == [], section
        for key in sorted(_offered(page) - looked_at):  # that of the keys is offered in all sections
            page.evaluate("key => workbench.openSheet(key)", key)
            drawn(page)
            expect(page.locator(f"#sheet-{key}"), f"{section}, {key}").to_be_visible()
            assert _violations(page, f"#sheet-{key}") == [], (section, key)
            page.keyboard.press("Escape")
            looked_at.add(key)
    assert looked_at >= {"keys", "add-model", "add-data", "save-preset", "edit-adapter", "judge"}


def _offered(page: Page) -> set[str]:
    """The sheets that can be opened from what is in sight."""
    return set(
        page.evaluate(
            "[...document.querySelectorAll('.sheet')].map(one => one.id.slice(6))"
            ".filter(key => [...document.querySelectorAll(`.opens-${key}, [data-opens=${key}]`)]"
            ".some(workbench.seen))"
        )
    )


def _violations(page: Page, where: str = "html") -> list[str]:
    """What axe finds that is at least moderate; in the dark only the colours are others."""
    found = _found(page, where)
    page.emulate_media(color_scheme="dark")
    expect(page.locator("body.dark")).to_be_attached()
    found += _found(page, where, runOnly=["color-contrast"])
    page.emulate_media(color_scheme="light")
    expect(page.locator("body:not(.dark)")).to_be_attached()
    return found


def _found(page: Page, where: str, **options: object) -> list[str]:
    page.wait_for_function("document.getAnimations().every(one => one.playState !== 'running')")
    asked = [where, {"resultTypes": ["violations"], **options}]
    found = page.evaluate("async all => await axe.run(...all)", asked)
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in found["violations"]
        if one["impact"] in ("moderate", "serious", "critical")
        for node in one["nodes"]
    ]


def test_what_makes_gradio_slow_is_found_and_taken_out(address, open_page):
    page = open_page(address)
    ours = page.evaluate(
        """async () => {
            const names = performance.getEntriesByType('resource').map(one => one.name);
            const modules = names.filter(one => /\\/assets\\/(core|statustracker)-[^/]*\\.js$/.test(one));
            const found = (await Promise.all(modules.map(one => import(one)))).flatMap(Object.values);
            const methods = ['resolve_args', 'find_attached_events', 'get_state', 'update_state', 'reload'];
            return methods.map(name => found
                .filter(one => typeof one === 'function' && one.prototype && name in one.prototype)
                .map(one => /every|known|whole|built/.test(String(one.prototype[name]))));
        }"""
    )
    assert ours == [[True]] * 5
    assert page.evaluate("performance.getEntriesByType('resource').length") <= 110
