"""The service page in a browser: detection by mouse, by keyboard and at a phone's width."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_makers import Address, Painted, encoded, other_painted, running, scene, until

from imaging.image_io import decode_image, read_image
from nets.model_config import ModelConfig
from prediction.detector import Detector
from prediction.video import VideoWriter
from scripts.screenshot_serve import CHROMIUM_FLAGS
from service.app import build_app

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install selenium")

from selenium import webdriver  # noqa: E402 -- only where it is installed
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("no browser: apt-get install chromium chromium-driver", allow_module_level=True)

FLAGS = (*CHROMIUM_FLAGS, "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
# where npm's onnxruntime-web was unpacked (npm pack onnxruntime-web)
ORT_WEB = os.environ.get("ORT_WEB_DIST")


@pytest.fixture(scope="module")
def detector() -> Painted:
    return Painted()


@pytest.fixture(scope="module")
def service(detector: Painted) -> Iterator[Address]:
    with running(build_app(detector, name="painted.pth")) as address:
        yield address


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


class Page:
    """The actions of a user and what the page shows."""

    def __init__(self, browser: webdriver.Chrome, address: Address, size: tuple[int, int] = (1200, 800)) -> None:
        self.browser = browser
        browser.set_window_size(*size)
        browser.get("about:blank")  # ends requests of the previous page
        browser.get_log("browser")  # without its messages
        browser.get(address.url)
        until(lambda: browser.execute_script("return document.body.dataset.ready === 'yes'"))

    def find(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)

    def objects(self) -> list[str]:
        script = "return [...document.querySelectorAll('#objects li')].map(li => li.querySelector('.name').textContent)"
        return self.browser.execute_script(script)

    def set_threshold(self, value: float) -> None:
        self.browser.execute_script(
            "const s = document.getElementById('threshold'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input', {bubbles: true}))",
            value,
        )

    def show(self, path: Path) -> None:
        self.find("#file").send_keys(str(path))
        self.wait_for(path.name)

    def wait_for(self, name: str) -> None:
        until(lambda: " ms " in self.text("#status") and name in self.find("#view").get_attribute("aria-label"))

    def pixel(self, x: float, y: float) -> list[int]:
        """The colour of the canvas at a position given as fractions of its width and height."""
        self.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        return self.browser.execute_script(
            "const c = document.getElementById('view');"
            "return [...c.getContext('2d').getImageData(c.width * arguments[0], c.height * arguments[1], 1, 1).data]",
            x,
            y,
        )

    def complaints(self) -> list[str]:
        """Errors in the browser's console."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def page(browser: webdriver.Chrome, service: Address) -> Iterator[Page]:
    page = Page(browser, service)
    yield page
    assert page.complaints() == []


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "three things.png"
    path.write_bytes(encoded(scene(400, 400)))
    return path


def test_a_chosen_image_shows_its_boxes_and_the_slider_sends_no_request(
    page: Page, picture: Path, service: Address
) -> None:
    page.show(picture)
    assert page.objects() == ["red", "green"]
    assert "2 objects: 1 red, 1 green" in page.text("#status") and "400" in page.text("#status")
    asked = service.metric("detector_answer_seconds_count")
    page.set_threshold(0.1)
    assert page.objects() == ["red", "green", "blue"] and page.text("#threshold-value") == "0.10"
    page.set_threshold(0.7)
    assert page.objects() == ["red"]
    assert service.metric("detector_answer_seconds_count") == asked


def test_boxes_are_drawn_where_the_objects_are(page: Page, picture: Path) -> None:
    page.show(picture)
    page.set_threshold(0.99)
    width, height = page.browser.execute_script(
        "const c = document.getElementById('view'); return [c.clientWidth, c.clientHeight]"
    )
    side = min(width, height)
    # across the left edge of the green rectangle, below its label
    y = (height / 2 - side / 2 + 0.5 * side) / height
    places = [(width / 2 - side / 2 + 0.1 * side + offset) / width for offset in range(-8, 9)]
    plain = [page.pixel(x, y) for x in places]
    page.set_threshold(0.5)
    drawn = [page.pixel(x, y) for x in places]
    colour = page.browser.execute_script(
        "return fetch('info').then(r => r.json())"
        ".then(i => i.colours[1].match(/[0-9a-f]{2}/g).map(h => parseInt(h, 16)))"
    )
    assert drawn != plain
    assert np.abs(np.array(drawn)[:, :3] - colour).max(axis=1).min() < 40


def test_classes_are_picked_and_all_or_none_of_them(page: Page, picture: Path) -> None:
    page.show(picture)
    boxes = page.browser.find_elements(By.CSS_SELECTOR, "#classes input")
    assert len(boxes) == 3 and "red 1" in page.text("#classes label:first-child")
    boxes[0].click()
    assert page.objects() == ["green"]
    page.find("#no-classes").click()
    assert page.objects() == [] and "no objects" in page.text("#status")
    page.find("#all-classes").click()
    assert page.objects() == ["red", "green"]


def test_everything_can_be_done_by_keyboard(page: Page, picture: Path) -> None:
    page.show(picture)
    slider = page.find("#threshold")
    slider.send_keys(Keys.HOME)
    assert page.objects() == ["red", "green", "blue"]
    page.find("#classes input").send_keys(Keys.SPACE)
    assert page.objects() == ["green", "blue"]
    before = page.pixel(0.5, 0.5)
    first = page.find("#objects button")
    first.send_keys(Keys.ENTER)
    assert first.get_attribute("aria-pressed") == "true"
    view = page.find("#view")
    view.send_keys("+", "+", Keys.ARROW_LEFT)
    assert page.pixel(0.5, 0.5) != before, "the green rectangle is in the middle now"
    view.send_keys("0")
    assert page.pixel(0.5, 0.5) == before
    reached = set()
    page.browser.execute_script("document.activeElement.blur()")
    for _ in range(40):
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        reached.add(page.browser.execute_script("return document.activeElement.id"))
    wanted = {
        "theme",
        "view",
        "file",
        "webcam",
        "zoom-in",
        "fit",
        "threshold",
        "all-classes",
        "save-picture",
        "save-json",
    }
    assert wanted <= reached


def test_every_control_has_a_name_and_the_page_fits_a_phone(
    browser: webdriver.Chrome, service: Address, picture: Path
) -> None:
    page = Page(browser, service)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        browser.refresh()
        until(lambda: browser.execute_script("return document.body.dataset.ready === 'yes'"))
        page.show(picture)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth && innerWidth === 360")
        small = browser.execute_script(
            "return [...document.querySelectorAll('button, .button')].filter(b => b.offsetParent"
            " && (b.offsetHeight < 32 || b.offsetWidth < 32)).map(b => b.id)"
        )
        assert small == [], "big enough for a finger"
        tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        roles = {"button", "checkbox", "radio", "slider", "textbox", "link", "img"}
        nameless = [n for n in tree if n["role"]["value"] in roles and not n.get("name", {}).get("value")]
        assert nameless == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_detection_runs_on_a_dropped_image(page: Page) -> None:
    page.browser.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        """,
        base64.b64encode(encoded(scene())).decode(),
    )
    page.wait_for("dropped.png")
    assert page.objects() == ["red", "green"]


def test_invalid_and_too_large_images_are_reported(page: Page, tmp_path: Path, picture: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    page.find("#file").send_keys(str(bad))
    until(lambda: "cannot show it" in page.text("#problem"))
    page.show(picture)
    assert page.find("#problem").get_attribute("hidden")


def test_image_and_json_are_saved_as_they_are_shown(page: Page, picture: Path, downloads: Path) -> None:
    page.show(picture)
    page.set_threshold(0.7)
    page.find("#save-json").click()
    page.find("#save-picture").click()
    drawn, rows = downloads / "three things_detections.png", downloads / "three things_detections.json"
    until(lambda: drawn.is_file() and rows.is_file())
    (row,) = json.loads(rows.read_text(encoding="utf-8"))
    assert [found["class_name"] for found in row["detections"]] == ["red"]
    assert (row["image"], row["width"], row["height"]) == (picture.name, 400, 400)
    assert list(row["detections"][0]) == ["class_id", "class_name", "score", "box_xyxy"]
    image = read_image(drawn)
    different = np.argwhere((image != scene(400, 400)).any(axis=-1))
    assert image.shape == (400, 400, 3) and len(different) and different[:, 0].max() < 130, "only the red one is framed"


def test_detection_runs_on_the_webcam_until_it_is_stopped(page: Page, service: Address) -> None:
    asked = service.metric("detector_answer_seconds_count")
    page.find("#webcam").click()
    until(lambda: service.metric("detector_answer_seconds_count") > asked + 2)
    until(lambda: "webcam.jpg" in page.find("#view").get_attribute("aria-label"))
    assert page.find("#webcam").get_attribute("aria-pressed") == "true"
    page.find("#webcam").click()
    assert page.text("#webcam") == "Webcam"
    page.browser.execute_async_script("setTimeout(arguments[0], 300)")
    stopped = service.metric("detector_answer_seconds_count")
    page.browser.execute_async_script("setTimeout(arguments[0], 500)")
    assert service.metric("detector_answer_seconds_count") == stopped


def test_nothing_above_the_threshold_names_the_best_and_what_to_do(page: Page, picture: Path) -> None:
    page.show(picture)
    page.set_threshold(0.95)
    assert "no objects above 0.95; the best is red at 0.90: lower the confidence" in page.text("#status")


def test_several_images_give_a_table(page: Page, picture: Path, tmp_path: Path, downloads: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(encoded(scene(200, 200)))
    page.find("#file").send_keys(f"{picture}\n{other}")
    until(lambda: "2 of 2 files" in page.text("#status"))
    assert "three things.png" in page.text("#rows") and "other.png" in page.text("#rows")
    page.find("#save-table").click()
    table = downloads / "detections.csv"
    until(table.is_file)
    lines = table.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("image,time,class_id,class_name,score,x1") and len(lines) == 5


def test_a_video_file_is_detected_frame_by_frame(page: Page, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.webm", 10.0, (200, 200), "vp9") as writer:
        for _ in range(10):
            writer.write(scene(200, 200))
    page.find("#file").send_keys(str(tmp_path / "clip.webm"))
    until(lambda: page.text("#rows").count("clip.webm") >= 3 and not page.find("#stop").is_displayed())
    assert "1 red, 1 green" in page.text("#rows") and page.text("#problem") == ""


def test_an_example_image_is_one_click_away(page: Page) -> None:
    buttons = page.browser.find_elements(By.CSS_SELECTOR, "#examples button")
    assert len(buttons) == 3
    until(lambda: page.browser.execute_script("return document.querySelector('#examples img').naturalWidth > 0"))
    buttons[0].click()
    page.wait_for("drawing-1.jpg")


def test_the_programs_ask_for_what_is_on_screen(page: Page, picture: Path, service: Address) -> None:
    page.show(picture)
    page.set_threshold(0.5)
    page.browser.find_elements(By.CSS_SELECTOR, "#classes input")[0].click()
    page.find("#programs summary").click()
    curl = page.text("#snippet")
    assert curl.startswith("curl --data-binary @'three things.png' '") and "score_threshold=0.50" in curl
    assert "classes=green&classes=blue" in curl and "classes=red" not in curl
    if shutil.which("curl"):
        done = subprocess.run(curl, shell=True, cwd=picture.parent, capture_output=True, text=True, timeout=1500)
        assert [found["class_name"] for found in json.loads(done.stdout)["detections"]] == ["green"]
    page.find("[data-language=python]").click()
    done = subprocess.run(
        [sys.executable, "-c", page.text("#snippet")], cwd=picture.parent, capture_output=True, text=True, timeout=1500
    )
    assert done.stdout.startswith("green 0.6"), done.stderr
    page.find("[data-language=javascript]").click()
    assert "await fetch(" in page.text("#snippet")


def test_a_menu_chooses_among_several_models(browser: webdriver.Chrome, detector: Painted, picture: Path) -> None:
    with running(build_app(detector, name="painted", more={"other": other_painted()})) as service:
        page = Page(browser, service)
        menu = page.find("#models")
        assert menu.is_displayed() and menu.text.split() == ["painted", "other"]
        page.show(picture)
        assert page.objects() == ["red", "green"] and "3 classes" in page.text("#model")
        page.find("#classes input").click()
        menu.send_keys(Keys.ARROW_DOWN)  # by keyboard
        until(lambda: page.objects() == ["rot"])
        assert "4 classes · 64×128" in page.text("#model") and page.text("#threshold-value") == "0.70"
        assert {"rot 1", "gruen", "blau", "gelb"} == set(page.find("#classes").text.split("\n"))
        assert "model=other" in page.text("#snippet")
        page.browser.execute_script("document.getElementById('webcam').click()")
        until(
            lambda: page.find("#webcam").get_attribute("aria-pressed") == "true" and "webcam" in page.text("#snippet")
        )
        menu.send_keys(Keys.ARROW_UP)  # while frames are under way
        until(lambda: "3 classes" in page.text("#model"))
        page.browser.execute_async_script("setTimeout(arguments[0], 500)")
        assert page.text("#problem") == "" and page.find("#webcam").get_attribute("aria-pressed") == "true"
        page.find("#webcam").click()


def test_a_single_model_has_no_menu(page: Page) -> None:
    assert not page.find("#models").is_displayed() and page.text("#model").startswith("painted.pth · 3 classes")


def test_an_error_is_over_the_image_and_the_objects_are_above_the_slider(page: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    page.find("#file").send_keys(str(bad))
    until(lambda: "cannot show it" in page.text("#problem"))
    stage, problem = page.find("#stage").rect, page.find("#problem").rect
    assert stage["y"] <= problem["y"] and problem["y"] + problem["height"] <= stage["y"] + stage["height"]
    assert page.find("#objects-title").rect["y"] < page.find("#threshold").rect["y"]


def test_light_and_dark_are_both_there_and_remembered(page: Page) -> None:
    def back() -> str:
        return page.browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    first = back()
    page.find("#theme").click()
    second = back()
    assert first != second
    page.browser.refresh()
    until(lambda: page.browser.execute_script("return document.body.dataset.ready === 'yes'"))
    assert back() == second
    page.find("#theme").click()
    assert back() == first


def test_without_an_exported_model_the_page_says_how_to_get_it(page: Page) -> None:
    assert not page.find("input[value=browser]").is_enabled()
    assert "export.py --checkpoint" in page.text("#place-note") and "--browser-model" in page.text("#place-note")


def cell_model(path: Path, uint8_input: bool) -> Path:
    """An ONNX file whose scores of three classes in each 8 x 8 cell are its red, green and blue values."""
    from onnx import TensorProto, checker, helper, numpy_helper

    from nets.export.form import Form, write_metadata

    config = ModelConfig(
        class_names=("red", "green", "blue"), input_size=(96, 96), score_threshold=0.6, iou_threshold=0.3
    )
    rows, columns = np.mgrid[0:12, 0:12] * 8 + 4
    boxes = np.stack([columns - 7, rows - 7, columns + 7, rows + 7], axis=-1).reshape(1, -1, 4)  # neighbours overlap
    constants = {"fixed": boxes.astype(np.float32), "flat": np.array([1, 3, 144])}
    nodes = [
        helper.make_node("Identity", ["fixed"], ["boxes"]),
        helper.make_node("AveragePool", ["float"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Reshape", ["cells", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["scores"], perm=[0, 2, 1]),
    ]
    if uint8_input:
        constants["most"] = np.array(255, np.float32)
        first = [
            helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["cast"], ["channels"], perm=[0, 3, 1, 2]),
            helper.make_node("Div", ["channels", "most"], ["float"]),
        ]
    else:
        first = [helper.make_node("Identity", ["images"], ["float"])]
    value = helper.make_tensor_value_info
    kind, shape = (TensorProto.UINT8, [1, 96, 96, 3]) if uint8_input else (TensorProto.FLOAT, [1, 3, 96, 96])
    graph = helper.make_graph(
        [*first, *nodes],
        "cells",
        [value("images", kind, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 144, n])
            for name, n in (("boxes", 4), ("scores", 3))
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, write_metadata(config, Form(uint8_input=uint8_input)))
    checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.skipif(
    ORT_WEB is None, reason="ORT_WEB_DIST does not name the folder dist of the npm package onnxruntime-web"
)
@pytest.mark.parametrize("uint8_input", [False, True], ids=["float", "uint8"])
def test_detection_in_the_browser_is_equal_and_sends_no_image(
    browser: webdriver.Chrome, tmp_path: Path, uint8_input: bool
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    from nets.export.onnx_runtime import OnnxRuntime
    from service.browser import load_browser_model

    path = cell_model(tmp_path / "model.onnx", uint8_input)
    detector = Detector(OnnxRuntime(path))
    source = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    source.write_bytes(encoded(np.kron(noise, np.ones((7, 7, 1), np.uint8))))
    wanted = detector(decode_image(source.read_bytes()), max_detections=1000)
    bundle = load_browser_model(path, Path(str(ORT_WEB)))
    with running(build_app(detector, browser_model=bundle)) as address:
        page = Page(browser, address)
        page.find("input[value=browser]").click()
        page.show(source)
        assert "in this browser" in page.text("#status")
        assert address.metric("detector_answer_seconds_count") == 0
        assert browser.execute_script("return crossOriginIsolated"), "threads are allowed"
        found = browser.execute_script(
            "return [...document.querySelectorAll('#objects li')].map(li => +li.querySelector('.score').textContent)"
        )
    assert abs(len(found) - len(wanted)) <= 0.05 * len(wanted) + 1 and len(wanted) > 20
    assert np.allclose(found[:20], wanted.scores[:20], atol=0.011)
    assert page.complaints() == []
