"""Takes the pictures of TensorBoard and of the HTML report for docs/training.md.

Needs two runs of the demo in lightning_logs, Chromium with playwright (pip install playwright), and a Chinese font.

kyon-pl fit --config demo
kyon-pl fit --config demo --model.optimizer.init_args.lr 3e-3 --trainer.max_epochs 2
python docs/report_png.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

PORT = 6123
DOCS = Path(__file__).parent
# picture -> tab of TensorBoard, width, height
TABS = {
    "scalars": ("custom_scalars&_smoothingWeight=0", 1300, 900),
    "hparams": ("hparams", 1700, 420),
    "text": ("text", 1100, 760),
}
# picture -> language, width, height
REPORTS = {"report": ("en", 1000, 1000), "report_zh": ("zh", 1000, 1000)}
COLOURS = 128
LOAD_MS = 9000  # TensorBoard has no event for a page that is drawn


def picture(browser: Browser, address: str, width: int, height: int, png: Path, wait_ms: int) -> None:
    """Take the first screen of a page."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(address)
    page.wait_for_timeout(wait_ms)
    page.screenshot(path=png)
    page.close()
    with Image.open(png) as image:
        image.convert("RGB").quantize(COLOURS).save(png, optimize=True)


def main() -> None:
    """Serve the runs here with TensorBoard, write reports of the first one, and take the pictures."""
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", "lightning_logs", "--port", str(PORT)]
    server = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (language, width, height) in REPORTS.items():
            report = [sys.executable, "-m", "kyon_pl", "report", "lightning_logs/version_0", "--language", language]
            subprocess.run([*report, "--output", f"{folder}/{name}"], check=True)
            address = f"file://{folder}/{name}/report.html"
            picture(browser, address, width, height, DOCS / f"{name}.png", wait_ms=500)
        for name, (tab, width, height) in TABS.items():
            address = f"http://127.0.0.1:{PORT}/#{tab}"
            picture(browser, address, width, height, DOCS / f"tensorboard_{name}.png", LOAD_MS)
        browser.close()
    server.terminate()
    server.wait()


if __name__ == "__main__":
    main()
