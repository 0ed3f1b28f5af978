"""export.py --format web: the folder works on a plain web server and detects objects in a browser offline."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from export_makers import checkpoint, pictures
from service_makers import until

import export
from imaging.image_io import write_image
from nets import load_detector
from scripts.screenshot_serve import CHROMIUM_FLAGS
from service import browser
from utils.download import file_digest
from utils.errors import RunError, UserError

# where npm's onnxruntime-web was unpacked (npm pack onnxruntime-web)
ORT_WEB = os.environ.get("ORT_WEB_DIST")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The folder on a server without the headers that threads require, and its URL."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    """A stand-in for onnxruntime-web/dist."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in (*browser.ORT_FILES, *browser.WEBGPU_FILES):
        (folder / name).write_bytes(name.encode())
    return folder


def test_the_folder_holds_all_that_the_page_loads(tmp_path, dist, capsys) -> None:
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "site"
    export.main(["--checkpoint", str(checkpoint()), "--format", "web", "--output", str(folder), "--ort-web", str(dist)])
    assert "parity with the checkpoint" in capsys.readouterr().out
    info = json.loads((folder / "info").read_text())
    assert info["without_server"] and info["browser_model"]["webgpu"] and info["class_names"] == ["bird", "boat", "cow"]
    for name in ("index.html", "isolate.js", "model.onnx", *(f"ort/{name}" for name in browser.ORT_FILES)):
        assert (folder / name).is_file()
    page = (folder / "index.html").read_text()
    linked = re.findall(r'(?:src|href)="(static/[^"]+)"', page)
    assert linked and all((folder / name).is_file() for name in linked)
    assert not re.findall(r'(?:src|href)="https?:', page)
    with pytest.raises(UserError, match="not empty"):
        export.main(["--checkpoint", str(checkpoint()), "--format", "web", "--output", str(folder)])


@pytest.mark.parametrize("flag", ["--raw", "--dynamic", "--nms"])
def test_forms_that_the_page_cannot_read_are_rejected(tmp_path, flag) -> None:
    with pytest.raises(UserError, match="the page reads boxes and scores"):
        export.main(["--checkpoint", str(checkpoint()), "--format", "web", "--output", str(tmp_path / "a"), flag])
    assert not (tmp_path / "a").exists()


def test_the_runtime_is_fetched_from_the_registry_once(server, dist, monkeypatch, tmp_path) -> None:
    folder, address = server
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as package:
        for file in dist.iterdir():
            package.add(file, f"package/dist/{file.name}")
    path = folder / "onnxruntime-web" / "-" / f"onnxruntime-web-{browser.ORT_WEB_VERSION}.tgz"
    path.parent.mkdir(parents=True)
    path.write_bytes(archive.getvalue())
    monkeypatch.setenv("npm_config_registry", address)
    monkeypatch.setattr(browser, "cache_folder", lambda: tmp_path / "cache")
    with pytest.raises(RunError, match="npm pack"):
        browser.find_ort_web(None)  # not the package that this version was tested with
    monkeypatch.setattr(browser, "ORT_WEB_SHA256", file_digest(path))
    found = browser.find_ort_web(None)
    assert {file.name for file in found.iterdir()} == {*browser.ORT_FILES, *browser.WEBGPU_FILES}
    path.unlink()
    assert browser.find_ort_web(None) == found


@pytest.mark.slow
@pytest.mark.skipif(ORT_WEB is None, reason="ORT_WEB_DIST does not name the folder dist of npm's onnxruntime-web")
def test_an_offline_browser_gives_the_detections_of_this_project(server, tmp_path_factory) -> None:
    webdriver = pytest.importorskip("selenium.webdriver")
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    folder, address = server
    site = folder / "site"
    model = str(checkpoint())
    export.main(["--checkpoint", model, "--format", "web", "--output", str(site), "--ort-web", str(ORT_WEB)])
    picture = folder / "photo.png"
    write_image(picture, pictures(1, 104, 80)[0])
    expected = load_detector(checkpoint(), "cpu", "torch")(picture)
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (
        *CHROMIUM_FLAGS,
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    service = webdriver.ChromeService(str(shutil.which("chromedriver")))
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.set_script_timeout(120)
        driver.get(f"{address}/site/")
        until(lambda: driver.execute_script("return document.body.dataset.ready === 'yes'"), 120)
        assert driver.execute_script("return crossOriginIsolated"), "threads are allowed"
        driver.find_element("css selector", "#file").send_keys(str(picture))
        until(lambda: "in this browser" in driver.find_element("css selector", "#status").text, 120)
        assert "WebAssembly" in driver.find_element("css selector", "#status").text
        assert not driver.find_element("css selector", "#place").is_displayed()
        scores = driver.execute_script(
            "return [...document.querySelectorAll('#objects li .score')].map(each => +each.textContent)"
        )
        driver.save_screenshot(str(folder / "page.png"))
    assert len(scores) >= len(expected) > 3  # the page has no limit of its own
    assert np.allclose(scores[: len(expected)], expected.scores, atol=0.011)
