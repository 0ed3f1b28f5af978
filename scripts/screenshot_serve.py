"""Take the documentation's screenshot of the service page with headless Chromium, as on a phone in dark mode."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from utils.config import option, parse_options
from utils.errors import RunError, UserError, require_packages, run_command

CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
PATIENCE = 180  # timeout in seconds, long enough for a busy machine


@dataclass(frozen=True)
class ScreenshotOptions:
    picture: str = option("", "image to send to the page", positional=True, metavar="PICTURE")
    checkpoint: str | None = option(None, "model file (default: the bundled weights)", metavar="FILE")
    output: str = option("docs/images", "output folder; an existing serve_phone.png is replaced", metavar="DIR")
    address: str | None = option(None, "URL of a running service (default: start one)", metavar="URL")
    score_threshold: float | None = option(None, "value of the score threshold slider", low=0.05, high=0.99)


def main(argv: list[str] | None = None) -> None:
    options = parse_options(ScreenshotOptions, argv, description=__doc__ or "", prog="screenshot_serve.py")
    picture, output = Path(options.picture).resolve(), Path(options.output)
    if not picture.is_file():
        raise UserError("PICTURE", f"{options.picture!r} does not exist", "give an image file")
    output.mkdir(parents=True, exist_ok=True)
    with service(options) as address, chromium() as browser:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.get(address)
        wait(lambda: browser.execute_script("return document.body.dataset.ready === 'yes'"))
        browser.find_element("id", "file").send_keys(str(picture))
        wait(lambda: " ms " in browser.find_element("id", "status").text)
        if options.score_threshold is not None:
            move_slider(browser, options.score_threshold)
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        path = output / "serve_phone.png"
        path.write_bytes(browser.get_screenshot_as_png())
        print(f"{path}: {browser.find_element('id', 'status').text}")


def move_slider(browser: Any, value: float) -> None:
    browser.execute_script(
        "const s = document.getElementById('threshold'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
        value,
    )


@contextmanager
def service(options: ScreenshotOptions) -> Iterator[str]:
    """Start a service unless one is given. Yields its URL."""
    if options.address is not None:
        yield options.address
        return
    command = [sys.executable, str(REPOSITORY / "serve.py"), "--port", "0"]
    command += ["--checkpoint", options.checkpoint] if options.checkpoint else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise RunError("serve.py", "did not start", "see its messages above")
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def chromium() -> Iterator[Any]:
    """A Selenium driver of the installed Chromium. Raises MissingExtra or RunError if something is not installed."""
    require_packages("screenshots", ["selenium"])
    from selenium import webdriver

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        raise RunError("chromium", "is not installed", "run: apt-get install chromium chromium-driver")
    with TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield browser
        finally:
            browser.quit()


def wait(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RunError("page", "did not finish loading", "open it in a browser")
        time.sleep(0.05)


if __name__ == "__main__":
    run_command(main)
