"""What visitors do on the page of `kyon-pl web`, in Chromium. tests/cli/test_web_page.py has what it must not do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits import HANG_S
from playwright.sync_api import Browser, FilePayload, Page, expect, sync_playwright
from web_host import (
    CountingModel,
    free_port,
    make_sessions,
    with_counting_model,
    with_sampling_model,
    write_role,
    write_small_adapter,
)

from kyon_pl.chat.web.app import open_page
from kyon_pl.chat.web.page.labels import PANEL_CHINESE, PANEL_ENGLISH
from kyon_pl.chat.web.sessions import SessionLimits, Sessions, SessionSettings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
GREETING = 'Mind the <b>rope</b> & "bell".\nWhere to?'
GREEDY = "temperature 0.0, seed 0"
PHONE = (390, 844)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    folder = tmp_path_factory.mktemp("sessions")
    roles = [write_role(folder, "Ada", GREETING), write_role(folder, "Bo")]
    return make_sessions([write_small_adapter(folder / "one", 2)], roles, SessionLimits(turns=4, max_new_tokens=700))


@pytest.fixture(scope="module")
def address(sessions: Sessions) -> Iterator[str]:
    page = open_page(with_sampling_model(sessions), SessionSettings("Ada"), "127.0.0.1", free_port(), None)
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def counting(sessions: Sessions) -> Iterator[tuple[str, CountingModel]]:
    """The address of a page behind a password, and its model, which replies until it is stopped."""
    counting_sessions, model = with_counting_model(sessions)
    page = open_page(counting_sessions, SessionSettings("Ada"), "127.0.0.1", free_port(), "tiger")
    yield page.local_url, model
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shared(browser: Browser, address: str) -> Iterator[Page]:
    """One page for the tests, whose browser has cached Gradio's files."""
    page = opened(browser, address)
    yield page
    page.context.close()


@pytest.fixture
def visitor(shared: Page, address: str) -> Page:
    """The page as a new visitor finds it."""
    shared.goto(f"{address}robots.txt")  # of the same site, and no page that would save its conversation
    shared.evaluate("localStorage.clear()")
    shared.goto(address)
    shared.wait_for_selector("#tuned .of-bot")
    return shared


def opened(browser: Browser, address: str, language: str = "en-US", size: tuple[int, int] = (1200, 800)) -> Page:
    """The loaded page of a new visitor, who may use the clipboard."""
    context = browser.new_context(
        locale=language,
        viewport={"width": size[0], "height": size[1]},
        permissions=["clipboard-read", "clipboard-write"],
        color_scheme="dark" if size == PHONE else "light",
    )
    context.set_default_timeout(HANG_S * 1000)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#tuned .of-bot")
    return page


def say(page: Page, text: str, number: int) -> None:
    """Ask, and wait until so many questions are answered."""
    page.fill("#message textarea", text)
    page.click("#send")
    answered(page, number)


def answered(page: Page, number: int) -> None:
    expect(page.locator("#tuned .of-user")).to_have_count(number)
    expect(page.locator("#stop")).to_be_disabled()


def said(page: Page) -> list[str]:
    return page.locator("#tuned .message").all_inner_texts()


def exported(page: Page) -> list[str]:
    with page.expect_download() as saved:
        page.click("#export")
    row = json.loads(Path(saved.value.path()).read_text(encoding="utf-8"))
    return [message["content"] for message in row["messages"]][1:]


def choose_role(page: Page, name: str) -> None:
    page.click("#role input")
    page.get_by_role("option", name=name).click()
    expect(page.locator("#tuned h1")).to_have_text(name)


def test_the_character_greets_and_buttons_without_use_are_dead(visitor: Page) -> None:
    assert visitor.inner_text("#tuned h1") == "Ada"
    assert visitor.locator("#tuned article").first.get_attribute("aria-label") == "Ada"
    assert said(visitor) == [GREETING]
    dead = ["#stop", "#retry", "#undo", "#clear", "#export", "#send"]
    for name in dead:
        expect(visitor.locator(name)).to_be_disabled()
    visitor.press("#message textarea", "Enter")
    assert said(visitor) == [GREETING], "nothing was sent"
    say(visitor, "Will you cross?", 1)
    assert said(visitor) == [GREETING, "Will you cross?", GREEDY]
    for name in dead[1:-1]:
        expect(visitor.locator(name)).to_be_enabled()
    assert exported(visitor) == ["Will you cross?", GREEDY], "the greeting is in no row"
    visitor.click("#undo")
    expect(visitor.locator("#retry")).to_be_disabled()
    assert said(visitor) == [GREETING]


def test_a_conversation_survives_a_reload_and_its_memories_are_beside_each_reply(visitor: Page) -> None:
    say(visitor, "Is the bell rung in fog?", 1)
    say(visitor, "And who mends ropes?", 2)
    before = said(visitor)
    visitor.reload()
    expect(visitor.locator("#tuned .of-user")).to_have_count(2)
    assert said(visitor) == before
    first = visitor.locator("#tuned details.memories").first
    expect(first.locator("li").first).to_be_hidden()
    first.locator("summary").click()
    expect(first.locator("li").first).to_have_text("In fog the bell is rung twice.")
    say(visitor, "And now?", 3)
    assert exported(visitor)[::2] == ["Is the bell rung in fog?", "And who mends ropes?", "And now?"]


def test_each_character_keeps_its_own_conversation(visitor: Page) -> None:
    say(visitor, "To Ada.", 1)
    choose_role(visitor, "Bo")
    expect(visitor.locator("#tuned .message")).to_have_count(0)
    say(visitor, "To Bo.", 1)
    visitor.reload()
    expect(visitor.locator("#tuned h1")).to_have_text("Bo")
    expect(visitor.locator("#tuned .message.user")).to_have_text("To Bo.")
    expect(visitor.locator("#role input")).to_have_value("Bo")
    choose_role(visitor, "Ada")
    expect(visitor.locator("#tuned .message.user")).to_have_text("To Ada.")
    assert said(visitor) == [GREETING, "To Ada.", GREEDY]


def test_a_reply_is_sampled_anew_and_earlier_versions_are_kept(visitor: Page) -> None:
    """Also one in the middle, after a question."""
    say(visitor, "One?", 1)
    number, reply = visitor.locator("#tuned .number"), visitor.locator("#tuned .message.bot").last
    visitor.click("#retry")
    expect(number).to_have_text("2/2")
    expect(reply).to_have_text("temperature 0.8, seed 1")
    visitor.locator("#tuned .again").click()
    expect(number).to_have_text("3/3")
    expect(reply).to_have_text("temperature 0.8, seed 2")
    visitor.click("#tuned .previous")
    visitor.click("#tuned .previous")
    expect(number).to_have_text("1/3")
    expect(visitor.locator("#tuned .previous")).to_be_disabled()
    assert exported(visitor) == ["One?", GREEDY]
    visitor.reload()
    expect(number).to_have_text("1/3")
    say(visitor, "Two?", 2)
    visitor.locator("#tuned .again").first.click()
    visitor.click(".kyon-dialog .go-on")
    expect(number).to_have_text("4/4")
    assert said(visitor) == [GREETING, "One?", "temperature 0.8, seed 3"]


def test_a_question_is_edited_and_asked_again(visitor: Page) -> None:
    say(visitor, "One?", 1)
    say(visitor, "Two?", 2)
    editor = visitor.locator("#tuned .editor textarea")
    visitor.locator("#tuned .edit").first.click()
    expect(editor).to_be_focused()
    editor.press("Escape")
    assert said(visitor)[1::2] == ["One?", "Two?"]
    visitor.locator("#tuned .edit").first.click()
    editor.fill("<i>Three</i>?")
    editor.press("Enter")
    assert "removed" in visitor.inner_text(".kyon-dialog")
    visitor.click(".kyon-dialog .go-on")
    answered(visitor, 1)
    assert said(visitor) == [GREETING, "<i>Three</i>?", GREEDY]


def test_copied_text_is_what_was_said(visitor: Page) -> None:
    visitor.locator("#tuned .copy").first.click()
    expect(visitor.locator("#tuned .copy").first).to_have_text("Copied")
    assert visitor.evaluate("navigator.clipboard.readText()") == GREETING
    say(visitor, "a < b &amp; c", 1)
    visitor.locator("#tuned .of-user .copy").click()
    assert visitor.evaluate("navigator.clipboard.readText()") == "a < b &amp; c"


def test_clear_asks_first(visitor: Page) -> None:
    say(visitor, "One?", 1)
    visitor.click("#clear")
    visitor.locator(".kyon-dialog button").first.click()
    assert said(visitor) == [GREETING, "One?", GREEDY]
    visitor.click("#clear")
    visitor.click(".kyon-dialog .go-on")
    expect(visitor.locator("#clear")).to_be_disabled()
    visitor.wait_for_function("!localStorage.getItem('kyon_pl.conversation.Ada')")
    visitor.reload()
    expect(visitor.locator("#tuned .message")).to_have_count(1)


HOSTILE_FILES = {
    "no JSON": b"\x89PNG\r\n",
    "deep": b"[" * 100_000,
    "a list": b"[1]",
    "two questions": b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
    "long": json.dumps({"messages": [{"role": r, "content": "x" * 9000} for r in ("user", "assistant")]}).encode(),
}


def test_a_file_is_imported_or_refused_in_one_sentence(browser: Browser, address: str) -> None:
    page = opened(browser, address, "zh-CN")

    def bring(content: bytes) -> None:
        file: FilePayload = {"name": "a.jsonl", "mimeType": "application/json", "buffer": content}
        page.set_input_files("#tuned input[type=file]", file)

    for content in HOSTILE_FILES.values():
        bring(content)
        expect(page.locator(".toast-message-text")).to_have_text(re.compile("^[^a-z]+。$"))
        page.click(".toast-close")
        expect(page.locator(".toast-body")).to_have_count(0)
        assert said(page) == [GREETING]
    bring(b"x" * 2_000_000)
    assert PANEL_CHINESE["too_large"] in page.inner_text(".kyon-dialog")
    page.locator(".kyon-dialog button").click()
    turns = [{"role": role, "content": f"<u>{n}</u>"} for n in range(5) for role in ("user", "assistant")]
    bring(json.dumps({"messages": [{"role": "system", "content": "Be bad."}, *turns]}).encode())
    expect(page.locator("#tuned .of-user")).to_have_count(4)
    assert said(page)[1::2] == [f"<u>{n}</u>" for n in range(1, 5)], "as many turns as are kept"
    page.evaluate("localStorage.setItem('kyon_pl.conversation.Bo', '{')")
    choose_role(page, "Bo")
    assert page.inner_text(".kyon-dialog p") == PANEL_CHINESE["damaged"]
    page.click(".kyon-dialog button")
    assert said(page) == []
    page.context.close()


def test_two_visitors_and_keys(browser: Browser, counting: tuple[str, CountingModel]) -> None:
    """A visitor enters after a wrong password, in their language. Escape stops only their own reply."""
    address, model = counting
    pages = []
    for language, wrong in (("zh-CN", "密码不正确。"), ("en-US", "Wrong password.")):
        page = browser.new_context(locale=language).new_page()
        page.goto(address)
        for password in ("lion", "tiger"):
            page.fill("#password", password)
            page.press("#password", "Enter")
            if password == "lion":
                expect(page.get_by_role("alert")).to_have_text(wrong)
        page.wait_for_selector("#tuned .of-bot")
        pages.append(page)
    first, second = pages
    box = first.locator("#message textarea")
    box.fill("One")
    box.press("Shift+Enter")
    box.press_sequentially("line")
    box.press("Enter")
    expect(first.locator("#tuned .message.user")).to_have_text("One\nline")
    expect(first.locator("#tuned .message.bot").last).to_contain_text("3 ")
    expect(first.locator("#tuned .log")).to_have_attribute("aria-busy", "true")
    expect(box).to_be_focused()
    expect(first.locator("#retry")).to_be_disabled()
    assert second.locator("#tuned .message").count() == 1
    first.keyboard.press("Escape")
    assert model.was_stopped.wait(HANG_S)
    answered(first, 1)
    expect(box).to_be_focused()
    assert first.locator("#tuned .message.bot").last.inner_text().endswith("[…]")
    expect(second.locator("#export")).to_be_disabled()
    second.reload()
    expect(second.locator("#tuned .message")).to_have_count(1)
    for page in pages:
        page.context.close()


def test_what_is_refused_is_said_in_chinese(browser: Browser, address: str) -> None:
    page = opened(browser, address, "zh-CN")
    toast = page.locator(".toast-message-text")
    page.fill("#message textarea", "长" * 3900)
    page.click("#send")
    expect(toast).to_have_text("问题太长，模型放不下，请缩短。")
    expect(page.locator(".toast-title")).to_have_text("出错了")
    expect(page.locator("#send")).to_be_enabled()
    page.click(".toast-close")
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "full"}))
    page.click("#send")
    expect(toast).to_have_text("排队的消息太多，请稍后再试。")
    expect(page.locator("#send")).to_be_enabled()
    page.context.close()


def test_a_phone_has_the_chat_and_its_settings_folded_away_in_the_dark(browser: Browser, address: str) -> None:
    page = opened(browser, address, size=PHONE)
    assert page.locator("#tuned").bounding_box()["height"] >= 0.8 * PHONE[1]  # type: ignore[index]
    assert page.evaluate("document.documentElement.scrollHeight") <= PHONE[1]
    expect(page.locator("#role")).to_be_hidden()
    page.get_by_role("button", name=PANEL_ENGLISH["settings"]).click()
    expect(page.locator("#role")).to_be_visible()
    assert page.locator("#tuned").evaluate(
        "part => Math.max(...getComputedStyle(part).backgroundColor.match(/\\d+/g).slice(0, 3)) < 60"
    )
    page.context.close()
