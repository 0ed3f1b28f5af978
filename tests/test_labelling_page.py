"""The labelling page in a browser: mouse, keyboard and touch input, two tabs, a killed server, a full disk."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_makers import make_voc
from service_makers import Address, Painted, running, scene, until

from imaging.detections import Detections
from imaging.image_io import write_image
from service.app import build_app
from service.labelling.documents import Box
from service.labelling.order import read_queue
from service.labelling.routes import Labelling
from service.labelling.store import NO_FILE, open_store
from service.labelling.suggest import Suggester
from utils.errors import RunError
from utils.thresholds import Thresholds

pytest.importorskip("selenium", reason="selenium is not installed: pip install selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from test_serve_page import CHROMIUM, DRIVER, FLAGS  # noqa: E402 -- skips where there is no browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILENET_YOLO_CACHE", str(tmp_path / "cache"))


class Labeller(Painted):
    """`Painted` for full images, with scores high enough that all three rectangles are suggested."""

    def __init__(self) -> None:
        super().__init__()
        self.config = self.config.replace(score_threshold=0.1)

    def detect_batch(self, images: Sequence[np.ndarray], thresholds: Thresholds) -> list[Detections]:
        return [self._detect(image, thresholds.score_threshold or 0.0) for image in images]


def photos(folder: Path, count: int = 3, side: int = 192) -> Path:
    """Images with a red, a green and a blue rectangle, each slightly different."""
    folder.mkdir()
    for number in range(count):
        image = scene(side, side)
        image[-20:, :] = 20 * (number % 12)
        write_image(folder / f"p{number}.png", image)
    return folder


def labelling_of(folder: Path, queue: Path | None = None) -> Labelling:
    store = open_store(folder)
    suggester = Suggester(store, Labeller(), "painted.pth")  # type: ignore[arg-type]
    return Labelling(store, suggester, queue=read_queue(queue, store) if queue else None)


class Page:
    """The actions of a user and what the page shows."""

    def __init__(self, browser: webdriver.Chrome, address: Address, size: tuple[int, int] = (1200, 800)) -> None:
        self.browser = browser
        browser.set_window_size(*size)
        browser.get(address.url)
        self.ready()

    def ready(self) -> None:
        until(lambda: self.js("return document.body.dataset.ready === 'yes'"))

    def js(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def rows(self, name: str) -> list[str]:
        script = "return [...document.querySelectorAll(`#${arguments[0]} .name`)].map((each) => each.textContent)"
        return self.js(script, name)

    def keys(self, *keys: str, control: bool = False, shift: bool = False) -> None:
        chain = ActionChains(self.browser)
        if control:
            chain.key_down(Keys.CONTROL)
        if shift:
            chain.key_down(Keys.SHIFT)
        for key in keys:
            chain.send_keys(key)
        if shift:
            chain.key_up(Keys.SHIFT)
        if control:
            chain.key_up(Keys.CONTROL)
        chain.perform()

    def drag(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Drag between two positions of the image, given as fractions of its sides."""
        (a, b), (c, d) = self.place(x1, y1), self.place(x2, y2)
        chain = ActionChains(self.browser, duration=20)
        chain.move_to_element_with_offset(self.find("#view"), a, b).click_and_hold()
        chain.move_by_offset((c - a) // 2, (d - b) // 2)
        chain.move_to_element_with_offset(self.find("#view"), c, d).release().perform()

    def click(self, x: float, y: float) -> None:
        a, b = self.place(x, y)
        ActionChains(self.browser, duration=20).move_to_element_with_offset(self.find("#view"), a, b).click().perform()

    def place(self, x: float, y: float) -> tuple[int, int]:
        """Offset of a position of the (square) image from the centre of the canvas."""
        size = self.find("#view").size
        side = min(size["width"], size["height"])
        return round((x - 0.5) * side), round((y - 0.5) * side)

    def saved(self) -> None:
        until(lambda: self.text("#status") == "Saved.")

    def shows(self, name: str) -> None:
        until(lambda: self.text("#picture-name").startswith(name))

    def suggested(self, count: int) -> None:
        until(lambda: len(self.rows("suggestions")) == count)

    def name_class(self, name: str) -> None:
        until(lambda: self.js("return document.getElementById('picker').open"))
        field = self.find("#picker-name")
        field.clear()
        field.send_keys(name, Keys.ENTER)
        until(lambda: not self.js("return document.getElementById('picker').open"))


# without its regular look at the server a tab does not learn of a change before it saves
NO_SIGNS = "const f = fetch; window.fetch = (u, o) => (String(u).includes('presence') ? Promise.reject() : f(u, o))"


def test_the_first_box_of_an_empty_folder(browser: webdriver.Chrome, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    labelling = labelling_of(folder)
    with running(build_app(Painted(), labelling=labelling)) as address:
        page = Page(browser, address)
        name = page.text("#picture-name").split(" ")[0]
        page.drag(0.1, 0.1, 0.4, 0.3)
        page.name_class("brick")
        page.saved()
        number = next(n for n in range(3) if labelling.store.name(n) == name)
        box = labelling.store.read(number).labels.boxes[0]
        assert box.class_name == "brick"
        assert box.box == pytest.approx((19.2, 19.2, 76.8, 57.6), abs=2)
        assert (folder / name).with_suffix(".xml").is_file()

        page.drag(0.25, 0.2, 0.35, 0.4)  # inside the selected box: moves it
        page.saved()
        moved = labelling.store.read(number).labels.boxes[0].box
        assert moved == pytest.approx((38.4, 57.6, 96, 96), abs=3)
        page.drag(0.2, 0.3, 0.1, 0.1)  # its top left corner: resizes
        page.saved()
        assert labelling.store.read(number).labels.boxes[0].box == pytest.approx((19.2, 19.2, 96, 96), abs=3)
        page.keys("z", control=True)
        page.saved()
        until(lambda: labelling.store.read(number).labels.boxes[0].box == moved)
        page.keys("y", control=True)
        until(lambda: labelling.store.read(number).labels.boxes[0].box == pytest.approx((19.2, 19.2, 96, 96), abs=3))
        page.keys(Keys.ESCAPE)
        page.click(0.45, 0.45)
        page.keys(Keys.DELETE)
        until(lambda: not labelling.store.read(number).labels.boxes)
        assert labelling.store.read(number).is_labelled


def test_everything_by_keyboard(browser: webdriver.Chrome, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    labelling = labelling_of(folder)
    for name in ("stone", "brick"):
        labelling.store.add_class(name)
    with running(build_app(Painted(), labelling=labelling)) as address:
        page = Page(browser, address)
        page.keys("s")  # suggestions off
        page.keys("b")
        page.saved()
        number = int(page.js("return Number(location.hash.slice(1))"))
        first = labelling.store.read(number).labels.boxes[0]
        assert first.class_name == "stone"
        page.keys("2", Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
        page.keys(Keys.ARROW_RIGHT, shift=True)
        page.keys(Keys.ARROW_LEFT, control=True)
        page.saved()
        x1, y1, x2, y2 = first.box
        now = labelling.store.read(number).labels.boxes[0]
        assert now.class_name == "brick" and now.box == (x1 + 11, y1 + 1, x2 + 10, y2 + 1)
        page.keys("d")
        until(lambda: labelling.store.read(number).labels.boxes[0].difficult)
        page.keys("b", Keys.TAB, "x")
        until(lambda: len(labelling.store.read(number).labels.boxes) == 1)
        page.keys("n")
        until(lambda: page.js("return Number(location.hash.slice(1))") != number)
        second = int(page.js("return Number(location.hash.slice(1))"))
        page.keys("e")
        until(lambda: labelling.store.read(second).is_labelled)
        until(lambda: page.js("return Number(location.hash.slice(1))") not in (number, second))
        page.keys("p")
        until(lambda: page.js("return Number(location.hash.slice(1))") == second)
        assert not labelling.store.read(second).labels.boxes
        page.keys("b")
        page.saved()
        x1, y1, x2, y2 = labelling.store.read(second).labels.boxes[0].box
        page.keys("u")
        page.saved()
        page.keys("+", "+", "+", Keys.ARROW_RIGHT)  # zoom by 1.25 each; no box is selected: the view moves
        page.keys("b")
        page.saved()
        zoomed = labelling.store.read(second).labels.boxes[0].box
        assert zoomed[2] - zoomed[0] == pytest.approx((x2 - x1) / 1.25**3, abs=1.5) and zoomed[0] + zoomed[2] > x1 + x2
        page.keys("?")
        assert page.js("return document.getElementById('keys').open")


def test_one_key_accepts_and_classes_are_renamed(browser: webdriver.Chrome, tmp_path: Path) -> None:
    labelling = labelling_of(photos(tmp_path / "photos"))
    detector_names = Painted().config.class_names
    with running(build_app(Painted(), labelling=labelling)) as address:
        page = Page(browser, address)
        page.suggested(3)
        first = int(page.js("return Number(location.hash.slice(1))"))
        page.keys(Keys.TAB)  # selects a suggestion where there is no box yet
        assert page.js("return document.querySelectorAll('#suggestions [aria-pressed=true]').length") == 1
        page.keys(Keys.ESCAPE, Keys.ENTER)
        for name in detector_names:
            until(lambda name=name: f"“{name}”" in page.text("#picker-title"))  # type: ignore[misc]
            page.name_class(f"my {name}")
        until(lambda: labelling.store.read(first).is_labelled)
        assert sorted(b.class_name for b in labelling.store.read(first).labels.boxes) == sorted(
            f"my {name}" for name in detector_names
        )
        for _ in range(2):  # now nothing is asked any more
            page.suggested(3)
            assert all(name.startswith("my ") for name in page.rows("suggestions"))
            here = int(page.js("return Number(location.hash.slice(1))"))
            page.keys(Keys.ENTER)
            until(lambda here=here: len(labelling.store.read(here).labels.boxes) == 3)  # type: ignore[misc]
        until(lambda: page.text("#progress-text") == "3 of 3 labelled")


def test_the_minimum_score_is_that_of_the_present_weights_until_the_user_sets_it(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    labelling = labelling_of(photos(tmp_path / "photos", 1))

    def new_weights(name: str, threshold: float) -> None:
        detector = Labeller()
        detector.config = detector.config.replace(score_threshold=threshold)
        labelling.suggester.replace(detector, name)  # type: ignore[arg-type]
        until(lambda: page.text("#model") == f"Model: {name}")

    with running(build_app(Painted(), labelling=labelling)) as address:
        page = Page(browser, address)
        assert page.text("#threshold-value") == "0.10"
        new_weights("second.pth", 0.7)
        assert page.text("#threshold-value") == "0.70"
        slider = page.find("#threshold")
        page.js("arguments[0].value = 0.3; arguments[0].dispatchEvent(new Event('input'))", slider)
        new_weights("third.pth", 0.5)
        assert page.text("#threshold-value") == "0.30"


def test_findings_of_an_audit_are_applied_by_key(browser: webdriver.Chrome, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 2)
    labelling = labelling_of(folder)
    old, wrong = Box("brick", (10, 10, 60, 60)), Box("stone", (100, 100, 150, 150))
    labelling.store.write(1, NO_FILE, [old, wrong])
    rows = [
        {"kind": "missing", "suggestion": {"class_name": "brick", "box": [20, 80, 60, 120], "score": 0.9}},
        {"kind": "class", "suggestion": {"class_name": "brick", "box": [101, 101, 149, 150], "score": 0.8}},
        {"kind": "phantom", "label": {"class_name": "brick", "box": [10, 10, 60, 60]}},
    ]
    rows[1]["label"] = {"class_name": "stone", "box": [100, 100, 150, 150]}
    findings = [{"image": "p1.png", "score": 0.5, "label": None, "suggestion": None, "text": "?"} | row for row in rows]
    queue = tmp_path / "audit.json"
    queue.write_text(json.dumps({"findings": findings}))
    labelling = labelling_of(folder, queue)
    with running(build_app(Painted(), labelling=labelling)) as address:
        page = Page(browser, address)
        page.shows("p1.png")
        page.keys("s")
        for left in (2, 1, 0):
            page.js("document.querySelector('#findings button').click()")
            page.keys("a")
            until(lambda left=left: len(page.rows("findings")) == left)  # type: ignore[misc]
            page.saved()
        until(lambda: len(labelling.store.read(1).labels.boxes) == 2)
        boxes = {(box.class_name, box.box) for box in labelling.store.read(1).labels.boxes}
        assert boxes == {("brick", (100, 100, 150, 150)), ("brick", (20, 80, 60, 120))}


def test_two_tabs_on_one_image(browser: webdriver.Chrome, tmp_path: Path) -> None:
    labelling = labelling_of(photos(tmp_path / "photos", 2))
    labelling.store.add_class("brick")
    with running(build_app(Painted(), labelling=labelling)) as address:
        page = Page(browser, address)
        page.keys("s")
        page.js(NO_SIGNS)
        here = int(page.js("return Number(location.hash.slice(1))"))
        first = browser.current_window_handle
        browser.switch_to.new_window("tab")
        second = browser.current_window_handle
        try:
            browser.get(f"{address.url}#{here}")
            page.ready()
            assert "in another tab" in page.text("#problem")
            page.js(NO_SIGNS)
            page.keys("s")
            page.drag(0.1, 0.1, 0.3, 0.3)
            page.saved()
            browser.switch_to.window(first)
            page.drag(0.6, 0.6, 0.9, 0.8)
            until(lambda: page.js("return document.getElementById('conflict').open"))
            assert "Yours have 1 object, theirs 1 object" in page.text("#conflict-text")
            assert page.js("return document.activeElement.id") == "keep-both"  # what Enter chooses loses no box
            page.find("#keep-both").click()
            page.saved()
            assert len(labelling.store.read(here).labels.boxes) == 2

            browser.switch_to.window(second)
            page.drag(0.1, 0.5, 0.3, 0.7)
            until(lambda: page.js("return document.getElementById('conflict').open"))
            page.find("#keep-theirs").click()
            assert len(page.rows("objects")) == 2
            page.keys("z", control=True)  # mine are still there
            assert len(page.rows("objects")) == 2
            page.saved()
        finally:
            browser.switch_to.window(second)
            browser.close()
            browser.switch_to.window(first)


def test_a_change_by_another_program_is_a_conflict(browser: webdriver.Chrome, tmp_path: Path) -> None:
    year = make_voc(tmp_path / "devkit", 2, 1)
    labelling = labelling_of(tmp_path / "devkit")
    with running(build_app(Painted(), labelling=labelling)) as address:
        page = Page(browser, address)
        page.js("location.hash = '#0'; location.reload()")
        time.sleep(0.3)
        page.ready()
        xml = year / "Annotations" / "a0.xml"
        theirs = xml.read_text().replace("<xmax>60</xmax>", "<xmax>66</xmax>")
        xml.write_text(theirs)
        page.keys("b")
        until(lambda: page.js("return document.getElementById('conflict').open"))
        assert xml.read_text() == theirs
        page.find("#keep-both").click()
        page.saved()
        assert "<xmax>66</xmax>" in xml.read_text() and xml.read_text().count("<object>") >= 3


def test_a_full_disk_is_reported_and_labels_are_saved_later(
    browser: webdriver.Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import service.labelling.store as module

    labelling = labelling_of(photos(tmp_path / "photos", 1))
    labelling.store.add_class("brick")

    def full(path: Path, *_: object) -> None:
        raise RunError(path, "cannot be written: No space left on device", "make room")

    with running(build_app(Painted(), labelling=labelling)) as address:
        page = Page(browser, address)
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_atomically", full)
            page.keys("b")
            until(lambda: "No space left on device" in page.text("#status"))
            assert labelling.store.read(0).version == NO_FILE
        page.saved()  # by itself
        assert len(labelling.store.read(0).labels.boxes) == 1


def test_boxes_survive_a_killed_server(browser: webdriver.Chrome, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 2)
    labelling = labelling_of(folder)
    labelling.store.add_class("brick")
    with running(build_app(Painted(), labelling=labelling)) as address:
        page = Page(browser, address)
        here = int(page.js("return Number(location.hash.slice(1))"))
    page.keys("b")
    until(lambda: "Not saved" in page.text("#status"))
    with running(build_app(Painted(), labelling=labelling_of(folder)), port=address.port):
        page.saved()  # by itself, as soon as a server is there
        assert len(open_store(folder).read(here).labels.boxes) == 1
    page.keys("b")
    until(lambda: "Not saved" in page.text("#status"))
    page.js("onbeforeunload = null; location = 'about:blank'")  # and the tab is closed before there is one
    with running(build_app(Painted(), labelling=labelling_of(folder)), port=address.port):
        page = Page(browser, address)
        until(lambda: len(open_store(folder).read(here).labels.boxes) == 2)
        page.saved()
    page.keys("b")
    until(lambda: "Not saved" in page.text("#status"))
    write_image(folder / "a.png", scene(192, 192))  # the numbers of the images change
    with running(build_app(Painted(), labelling=labelling_of(folder)), port=address.port):
        until(lambda: len(open_store(folder).read(here + 1).labels.boxes) == 3)
        page.saved()
        assert not open_store(folder).read(here).labels.boxes


def test_a_phone_draws_by_touch(browser: webdriver.Chrome, tmp_path: Path) -> None:
    labelling = labelling_of(photos(tmp_path / "photos", 1))
    labelling.store.add_class("brick")
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        with running(build_app(Painted(), labelling=labelling)) as address:
            page = Page(browser, address)
            assert page.js("return document.documentElement.scrollWidth <= innerWidth")
            page.js("document.getElementById('threshold').max = 1; document.getElementById('threshold').value = 1")
            box = page.js("const r = document.getElementById('view').getBoundingClientRect(); return r.toJSON()")
            box = [box[name] for name in ("x", "y", "width", "height")]
            side = min(box[2], box[3])
            left, top = box[0] + (box[2] - side) / 2, box[1] + (box[3] - side) / 2

            def touch(kind: str, *points: tuple[float, float]) -> None:
                at = [{"x": left + x * side, "y": top + y * side, "id": n} for n, (x, y) in enumerate(points)]
                browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

            def slide(*paths: tuple[tuple[float, float], tuple[float, float]], steps: int = 8) -> None:
                """Move each finger from the first place of its path to the second."""
                touch("touchStart", *(start for start, _ in paths))
                for step in range(1, steps + 1):
                    share = step / steps
                    touch("touchMove", *((a + (c - a) * share, b + (d - b) * share) for (a, b), (c, d) in paths))
                touch("touchEnd")

            def shows(*boxes: tuple[int, int, int, int]) -> None:
                page.saved()
                until(lambda: len(labelling.store.read(0).labels.boxes) == len(boxes))
                until(lambda: page.text("#status") == "Saved.")
                for box, expected in zip(labelling.store.read(0).labels.boxes, boxes, strict=True):
                    assert box.box == pytest.approx(expected, abs=4)

            slide(((0.1, 0.1), (0.5, 0.5)))
            shows((19, 19, 96, 96))
            slide(((0.3, 0.3), (0.4, 0.35)))  # moves the selected box
            until(lambda: labelling.store.read(0).labels.boxes[0].box[0] > 30)
            shows((38, 29, 115, 106))
            slide(((0.6, 0.55), (0.8, 0.7)))  # resizes it
            until(lambda: labelling.store.read(0).labels.boxes[0].box[2] > 130)
            shows((38, 29, 154, 134))
            slide(((0.4, 0.5), (0.2, 0.5)), ((0.6, 0.5), (0.8, 0.5)))  # zooms: 3 times
            page.keys(Keys.ESCAPE)
            slide(((0.1, 0.1), (0.4, 0.4)))
            shows((38, 29, 154, 134), (70, 70, 90, 90))
            page.keys(Keys.ESCAPE)
            slide(((0.4, 0.4), (0.55, 0.4)), ((0.6, 0.4), (0.75, 0.4)))  # moves the view by 9.6 pixels
            slide(((0.1, 0.6), (0.4, 0.9)))
            shows((38, 29, 154, 134), (70, 70, 90, 90), (61, 102, 80, 122))
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# in one call, because a poll of the server hides the message: the elements that are too wide, and upper and lower edges
MEASURED = """
const find = (name) => document.querySelector(name);
find("#problem").textContent = arguments[0];
find("#problem").hidden = false;
const names = ["#picture-name .file", "#list-rows .file", "#problem", "body"];
const [header, problem, stage] = ["header", "#problem", "#stage"].map((name) => find(name).getBoundingClientRect());
return [names.filter((name) => find(name).scrollWidth > find(name).clientWidth),
        [header.bottom, problem.top, problem.bottom, stage.top].map(Math.round)];
"""


def test_long_names_and_messages_stay_inside_and_the_file_name_is_shown(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    folder = photos(tmp_path / "photos", 1)
    long = "a-folder-with-a-very-long-name-that-fills-the-line/another-one-below-it"
    (folder / long).mkdir(parents=True)
    (folder / "p0.png").rename(folder / long / "IMG_2026_000123.png")
    with running(build_app(Painted(), labelling=labelling_of(folder))) as address:
        for size in ((1200, 800), (500, 800), (900, 420)):
            page = Page(browser, address, size)
            until(lambda page=page: page.js("return document.querySelectorAll('#list-rows .file').length") == 1)  # type: ignore[misc]
            wide, tops = page.js(MEASURED, "x" * 200)
            assert wide == [] and tops == sorted(tops), size
            page.find("#help").click()
            assert page.js("return document.getElementById('keys').scrollTop") == 0


@pytest.mark.slow
def test_fifty_images_and_nothing_in_the_browsers_log(browser: webdriver.Chrome, tmp_path: Path) -> None:
    labelling = labelling_of(photos(tmp_path / "photos", 50))
    for name in Painted().config.class_names:
        labelling.store.add_class(name)
    with running(build_app(Painted(), labelling=labelling)) as address:
        page = Page(browser, address)
        browser.get_log("browser")  # of the tests before
        for count in range(1, 51):
            page.suggested(3)
            page.keys(Keys.ENTER)
            until(lambda count=count: len(labelling.store.labelled) == count)  # type: ignore[misc]
            if count < 50:
                until(lambda: page.text("#status") == "Not labelled yet.")
        total = labelling.store.counts.by_class()
        assert sum(total.values()) == 150 and np.unique(list(total.values())).tolist() == [50]
        assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
