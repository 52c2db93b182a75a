"""The page of `kyon-pl web` in Chromium. tests/cli/test_web.py has the same over HTTP, where there is no browser."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from limits import HANG_S
from playwright.sync_api import Browser, Page, ProxySettings, Route, expect, sync_playwright
from web_host import (
    HOSTILE,
    CountingModel,
    Recorder,
    free_port,
    make_sessions,
    with_counting_model,
    with_hostile_model,
    write_role,
    write_small_adapter,
)

from kyon_pl.chat.model import Sampling
from kyon_pl.chat.web.app import open_page
from kyon_pl.chat.web.page.labels import CHINESE, PANEL_CHINESE
from kyon_pl.chat.web.sessions import SessionLimits, Sessions, SessionSettings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUESTION = "Will you cross in fog?"
PHONE_PIXELS = 390
OF_CHROMIUM = "CONNECT content-autofill.googleapis.com:443"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    folder = tmp_path_factory.mktemp("sessions")
    adapters = [write_small_adapter(folder / name, seed) for seed, name in ((2, "one"), (3, "two"))]
    roles = [write_role(folder, name) for name in ("Ada", "Bo")]
    return make_sessions(adapters, roles, SessionLimits(max_new_tokens=700))


@pytest.fixture
def address(sessions: Sessions, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A page whose server would send requests to other hosts through the recorder."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, recorder.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    page = open_page(sessions, SessionSettings("Ada", sampling=Sampling(24)), "127.0.0.1", free_port(), None)
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    words = ["--no-sandbox", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=words)
        yield browser
        browser.close()


def opened(browser: Browser, address: str, recorder: Recorder, language: str = "en-US", width: int = 1200) -> Page:
    """The loaded page; the browser would send requests to other hosts through the recorder."""
    proxy: ProxySettings = {"server": recorder.url, "bypass": "127.0.0.1"}
    page = browser.new_context(locale=language, viewport={"width": width, "height": 900}, proxy=proxy).new_page()
    page.goto(address)
    for part in ("#message textarea", "#tuned"):
        expect(page.locator(part)).to_be_visible(timeout=HANG_S * 1000)
    return page


def say(page: Page, text: str) -> None:
    page.fill("#message textarea", text)
    page.click("#send")


def replied(page: Page, act: Callable[[], object], where: str = "tuned") -> str:
    """The last reply after an action, once unchanged for a second; `window.lengths` are its lengths until then."""
    page.evaluate(
        """where => {
          const part = document.querySelector(where), last = () => [...part.querySelectorAll(".bot.message")].at(-1);
          window.lengths = []; window.changed = 0; window.watcher?.disconnect();
          window.watcher = new MutationObserver(() => {
            window.changed = performance.now(); window.lengths.push(last()?.innerText.length ?? 0);
          });
          window.watcher.observe(part, {subtree: true, childList: true, characterData: true});
        }""",
        f"#{where}",
    )
    act()
    page.wait_for_function("() => window.changed && performance.now() - window.changed > 1000", timeout=HANG_S * 1000)
    return page.locator(f"#{where} .bot.message").last.inner_text()


def outside_requests(recorder: Recorder) -> list[str]:
    """Requests to other hosts, except those that Chromium sends by itself on pages with text fields."""
    return [line for line in recorder.requests if OF_CHROMIUM not in line]


def test_a_conversation_on_the_page(browser: Browser, address: str, recorder: Recorder, tmp_path: Path) -> None:
    page = opened(browser, address, recorder)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.click("#role input")
    page.get_by_role("option", name="Bo").click()
    first = replied(page, lambda: say(page, QUESTION))
    lengths = page.evaluate("window.lengths")
    assert len({*lengths}) > 3, "it comes piece by piece"
    expect(page.locator("#message textarea")).to_have_value("")
    assert replied(page, lambda: page.click("#retry")) != first  # sampled, though the temperature is 0
    page.click("#tuned .previous")
    expect(page.locator("#tuned .bot.message")).to_have_text(first)
    expect(page.locator("#base")).to_be_hidden()
    page.click("#compare input")
    expect(page.locator("#base")).to_be_visible()
    assert replied(page, lambda: page.click("#retry"), "base") != first
    page.click("#tuned details.memories summary")
    expect(page.locator("#tuned details.memories li").first).to_have_text("In fog the bell is rung twice.")
    page.click("#tuned .previous")
    page.click("#tuned .previous")
    expect(page.locator("#tuned .number")).to_have_text("1/3")
    with page.expect_download() as saved:
        page.click("#export")
    saved.value.save_as(tmp_path / "row.jsonl")
    system, asked, answered = json.loads((tmp_path / "row.jsonl").read_text(encoding="utf-8"))["messages"]
    assert (system["content"], asked["content"]) == ("You are Bo, who rows the ferry.", QUESTION)
    assert answered["content"].split() == first.removesuffix(" […]").split()
    page.click("#undo")
    expect(page.locator("#tuned .bot.message")).to_have_count(0)
    expect(page.locator("#export")).to_be_disabled()
    assert len(requests) > 5
    assert [url for url in requests if not url.startswith((address, "blob:", "data:"))] == []
    assert outside_requests(recorder) == []


def test_the_recorder_sees_outside_requests(browser: Browser) -> None:
    other = Recorder()
    page = browser.new_context(proxy={"server": other.url}).new_page()
    page.set_content('<img src="http://example.org/b.png">')
    page.wait_for_timeout(500)
    other.close()
    assert other.requests == ["GET http://example.org/b.png HTTP/1.1"]


def test_hostile_text_is_shown_and_does_nothing(
    browser: Browser, address: str, sessions: Sessions, recorder: Recorder
) -> None:
    """From the visitor, from the model, and in an error."""
    server = open_page(with_hostile_model(sessions), SessionSettings(), "127.0.0.1", free_port(), None)
    try:
        page = opened(browser, server.local_url, recorder)
        assert replied(page, lambda: say(page, HOSTILE)) == HOSTILE
        assert page.locator("#tuned .user.message").inner_text() == HOSTILE
        assert page.locator("#tuned .message img, #tuned .message script").count() == 0
        assert page.title() == "kyon_pl"
    finally:
        server.close()
    assert outside_requests(recorder) == []


@pytest.fixture
def counting(sessions: Sessions) -> Iterator[tuple[str, CountingModel]]:
    """The address of a page, and its model, which replies until it is stopped."""
    counting_sessions, model = with_counting_model(sessions)
    server = open_page(counting_sessions, SessionSettings(), "127.0.0.1", free_port(), None)
    yield server.local_url, model
    server.close()


@pytest.fixture
def endless(browser: Browser, counting: tuple[str, CountingModel], recorder: Recorder) -> Iterator[Page]:
    """The page during a reply."""
    page = opened(browser, counting[0], recorder)
    say(page, QUESTION)
    page.wait_for_selector("#tuned .bot.message")
    yield page
    page.context.close()


def test_stop_ends_a_reply_and_keeps_what_was_typed(endless: Page, counting: tuple[str, CountingModel]) -> None:
    box, reply = endless.locator("#message textarea"), endless.locator("#tuned .bot.message")
    expect(box).to_have_value("")
    box.fill("And in snow?")
    number = int(reply.inner_text().split()[-2])
    expect(reply).to_contain_text(f" {number + 3} ", timeout=HANG_S * 1000)  # pieces that came after it was typed
    expect(box).to_have_value("And in snow?")
    endless.click("#stop")
    assert counting[1].was_stopped.wait(30)
    endless.wait_for_timeout(1000)
    stopped = reply.inner_text()
    endless.wait_for_timeout(500)
    assert reply.inner_text() == stopped
    assert stopped.endswith("[…]")
    expect(box).to_have_value("And in snow?")


def test_nothing_comes_after_clear(endless: Page) -> None:
    """Even if the request to cancel the reply arrives late."""

    def late(route: Route) -> None:
        time.sleep(0.5)
        route.continue_()

    endless.route("**/cancel", late)
    endless.click("#clear")
    endless.click(".kyon-dialog .go-on")
    expect(endless.locator("#tuned .bot.message")).to_have_count(0, timeout=HANG_S * 1000)
    endless.wait_for_timeout(1000)
    assert endless.locator("#tuned .bot.message").count() == 0
    expect(endless.locator("#export")).to_be_disabled()


def test_a_phone_in_chinese(browser: Browser, address: str, recorder: Recorder) -> None:
    page = opened(browser, address, recorder, "zh-CN", PHONE_PIXELS)
    replied(page, lambda: say(page, "长" * 200))
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE_PIXELS
    page.click("#open-settings")
    for part in ("#role", "#asker", "#compare", "#message", "#send", "#export", "#parameters"):
        box = page.locator(part).bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE_PIXELS
    assert page.locator("#compare label").evaluate("part => part.scrollWidth <= part.clientWidth + 1")
    assert page.locator("#compare").bounding_box()["height"] < 80  # type: ignore[index]  # its words are not stacked
    text = page.inner_text("body")
    for name in ("role", "send", "parameters", "compare"):
        assert CHINESE[name] in text
    for name in ("stop", "retry", "undo", "clear", "export", "import", "memories", "copy", "edit", "settings"):
        assert PANEL_CHINESE[name] in text
