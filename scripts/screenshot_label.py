"""Take the documentation's screenshots of the labelling page with headless Chromium, on scenes of `dataset.py demo`."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from screenshot_serve import chromium, wait

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from data.index import DatasetIndex
from data.open import open_dataset
from data.tools.demo import write_demo
from imaging.detections import Detections
from imaging.image_io import read_image
from nets.model_config import ModelConfig
from service.app import build_app
from service.labelling.routes import Labelling
from service.labelling.store import open_store
from service.labelling.suggest import Suggester
from service.limits import Limits
from service.server import Server
from utils.config import option, parse_options
from utils.errors import run_command
from utils.thresholds import Thresholds

VIEWS = {"label_desktop": (1280, 720), "label_phone": (390, 844)}
IMAGES, LABELLED = 30, 16
CLICK = "const found = document.querySelector(arguments[0]); found?.click(); return Boolean(found)"


@dataclass(frozen=True)
class ScreenshotOptions:
    output: str = option("docs/images", "output folder; existing PNG files are replaced", metavar="DIR")


class NoisyTruth:
    """A detector that returns the true boxes of an image, shifted at random, with random scores."""

    def __init__(self, index: DatasetIndex) -> None:
        self.config = ModelConfig(index.class_names, input_size=(96, 96), score_threshold=0.1)
        self.index = index
        self.places = {read_image(index.path(i)).tobytes(): i for i in range(len(index))}

    def detect_batch(self, images: Sequence[np.ndarray], thresholds: Thresholds) -> list[Detections]:
        return [self._detect(self.places.get(image.tobytes())) for image in images]

    def _detect(self, image: int | None) -> Detections:
        if image is None:  # the grey one that warms up
            return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
        part, random = self.index.boxes_of(image), np.random.default_rng(image)
        boxes = self.index.boxes[part].astype(np.float64)
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        return Detections(
            boxes + random.normal(0, 0.04, boxes.shape) * sides,
            random.uniform(0.5, 0.95, len(boxes)),
            self.index.labels[part],
        )


def main(argv: list[str] | None = None) -> None:
    options = parse_options(ScreenshotOptions, argv, description=__doc__ or "", prog="screenshot_label.py")
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, labelling(Path(folder) / "demo") as address, chromium() as browser:
        browser.get(address)
        wait(lambda: browser.execute_script("return document.querySelectorAll('#suggestions .name').length") > 3)
        for selector in ("#suggestions .name", "#accept", "#objects .name"):
            wait(lambda selector=selector: browser.execute_script(CLICK, selector))
        wait(lambda: browser.execute_script("return document.getElementById('status').textContent") == "Saved.")
        for name, (width, height) in VIEWS.items():
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.execute_script("scrollTo(0, 0)")
            for _ in range(2):  # the new layout, then the boxes in it
                browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
            (output / f"{name}.png").write_bytes(browser.get_screenshot_as_png())
            print(output / f"{name}.png")


@contextmanager
def labelling(folder: Path) -> Iterator[str]:
    """A labelling service on a drawn data set of which only some images are labelled. Yields its address."""
    voc = write_demo(folder, IMAGES, 0, (384, 512))
    detector: Any = NoisyTruth(open_dataset(folder, "all"))
    for path in sorted((voc / "Annotations").iterdir())[LABELLED:]:
        path.unlink()
    store = open_store(folder)
    app = build_app(detector, labelling=Labelling(store, Suggester(store, detector, "small.pth")))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(app, Limits())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(10)


if __name__ == "__main__":
    run_command(main)
