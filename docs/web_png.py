"""Draws the page of `kyon-pl web` at the widths of a desk and of a phone, for docs/chat.md.

Needs a run of the demo in lightning_logs, Chromium with playwright (pip install playwright), and a font with Chinese.

python docs/web_png.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

PORT = 7899
QUESTIONS = ("钟楼里是谁在忙呀？", "竹笛是什么颜色？")
SIZES = {"desktop": ("en-US", 1200, 760), "phone": ("zh-CN", 390, 844)}
DOCS = Path(__file__).parent


def draw(page: Page, png: Path) -> None:
    """Talk to the first role, and take the picture."""
    page.goto(f"http://127.0.0.1:{PORT}")
    page.wait_for_selector("#tuned .of-bot")
    is_wide = page.viewport_size is not None and page.viewport_size["width"] > 800
    if is_wide:
        page.click("#compare input")
        page.wait_for_selector("#base")
    for number, question in enumerate(QUESTIONS, 1):
        page.fill("#message textarea", question)
        page.click("#send")
        page.wait_for_selector(f"#tuned .of-user >> nth={number - 1}")
        page.wait_for_selector("#stop:disabled")
    if is_wide:
        page.locator("#tuned details.memories summary").last.click()
        page.locator("#tuned .log").evaluate("log => { log.scrollTop = log.scrollHeight; }")
    page.wait_for_timeout(1000)
    page.screenshot(path=png)
    with Image.open(png) as picture:
        picture.convert("RGB").quantize(128).save(png, optimize=True)


def main() -> None:
    """Serve the newest run here, and draw."""
    words = [sys.executable, "-m", "kyon_pl", "web", "--characters", "demo", "--asker", "南枝"]
    server = subprocess.Popen([*words, "--port", str(PORT)], stderr=subprocess.PIPE, text=True)
    assert server.stderr
    while "Ctrl-C ends it" not in server.stderr.readline():
        time.sleep(0.1)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (language, width, height) in SIZES.items():
            size = {"width": width, "height": height}
            context = browser.new_context(locale=language, viewport=size, device_scale_factor=1.5)
            draw(context.new_page(), DOCS / f"web_{name}.png")
        browser.close()
    server.terminate()
    server.wait()


if __name__ == "__main__":
    main()
