"""The page of `kyon-pl judge` in Chromium: keys, languages, hostile replies, no request to other hosts."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright
from web_host import HOSTILE, Recorder, free_port

from kyon_pl.judge.page import HandJudge, page_app
from kyon_pl.judge.questions import Question
from kyon_pl.judge.verdicts import Pair, Verdicts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OF_CHROMIUM = "content-autofill.googleapis.com"
PHONE_PIXELS = 390

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-component-update"]
        )
        yield browser
        browser.close()


@pytest.fixture
def judge(tmp_path: Path) -> HandJudge:
    pairs = [
        Pair(
            n, Question(f"{HOSTILE}###{HOSTILE}###Q{n} {HOSTILE}", HOSTILE), f"{n} one {HOSTILE}", f"{n} two {HOSTILE}"
        )
        for n in range(8)
    ]
    return HandJudge(pairs, Verdicts(tmp_path / "v.jsonl", "person", ("base", "tuned"), pairs))


@pytest.fixture
def address(judge: HandJudge) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(page_app(judge), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def opened(browser: Browser, address: str, recorder: Recorder, language: str = "en-US", width: int = 1200) -> Page:
    proxy = {"server": recorder.url, "bypass": "127.0.0.1"}
    context = browser.new_context(locale=language, viewport={"width": width, "height": 800}, proxy=proxy)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#left")).to_contain_text("script")
    return page


def press(page: Page, key: str, decided: int) -> None:
    page.keyboard.press(key)
    expect(page.locator("#progress")).to_have_text(f"{decided} of 8 judged")


def test_keys_decide_and_undo(browser: Browser, address: str, judge: HandJudge) -> None:
    recorder = Recorder()
    page = opened(browser, address, recorder)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    sides = []
    for decided, key in enumerate(("1", "ArrowLeft", "2", "ArrowRight", "0", " "), start=1):
        sides.append((page.inner_text("#left").split()[1], page.inner_text("#right").split()[1]))
        press(page, key, decided)
    wanted = [*(left for left, _ in sides[:2]), *(right for _, right in sides[2:4]), "tie", "tie"]
    names = {"one": "first", "two": "second", "tie": "tie"}
    assert [row["verdict"] for row in judge.verdicts.journal.rows] == [names[side] for side in wanted]
    rate = 100 * (wanted.count("two") + 1) / 6
    expect(page.locator("#rate")).to_contain_text(f"tuned wins {rate:.1f} % against base (95 %: ")
    press(page, "u", 5)
    page.click("#choose-left")
    expect(page.locator("#progress")).to_have_text("6 of 8 judged")
    press(page, " ", 7)  # the button that was clicked is not pressed again
    assert judge.verdicts.journal.rows[-1]["verdict"] == "tie"
    page.reload()
    expect(page.locator("#progress")).to_have_text("7 of 8 judged")
    press(page, "2", 8)
    expect(page.locator("#done")).to_be_visible()
    expect(page.locator("#pair")).to_be_hidden()
    assert errors == []
    recorder.close()
    assert [line for line in recorder.requests if OF_CHROMIUM not in line] == []


def test_hostile_text_is_shown_and_does_nothing(browser: Browser, address: str) -> None:
    recorder = Recorder()
    page = opened(browser, address, recorder)
    page.click("#context summary")
    for part in ("#question", "#left", "#right", "#context div p:last-child"):
        assert HOSTILE in page.inner_text(part)
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "Which reply is better?"
    recorder.close()
    assert [line for line in recorder.requests if OF_CHROMIUM not in line] == []


def test_a_phone_in_chinese(browser: Browser, address: str) -> None:
    recorder = Recorder()
    page = opened(browser, address, recorder, "zh-CN", PHONE_PIXELS)
    recorder.close()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE_PIXELS
    for name, text in {
        "choose-left": "1 更好",
        "choose-tie": "差不多",
        "choose-right": "2 更好",
        "undo": "撤销",
    }.items():
        expect(page.locator(f"#{name}")).to_have_text(text)
        box = page.locator(f"#{name}").bounding_box()
        assert box
        assert box["height"] >= 44
        assert box["x"] + box["width"] <= PHONE_PIXELS
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.get_by_role("button", name="差不多").click()
    expect(page.locator("#progress")).to_contain_text("已评 1 / 8")
