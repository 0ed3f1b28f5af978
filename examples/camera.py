"""Detect objects in camera images without torch, on a Raspberry Pi or any computer: python camera.py best.onnx

    python camera.py best.onnx                       the first camera (V4L2)
    python camera.py best.onnx picamera2             the camera module of a Raspberry Pi, through its Python library
    python camera.py best.onnx rtsp://address/path   a network camera, or a video file

Requires ONNX Runtime, OpenCV and NumPy, and onnx_only.py in the same folder. docs/devices/raspberry-pi.md describes the
installation. A thread reads the images and keeps only the newest, so that a slow network does not lag behind.
"""

import argparse
import sys
import threading
import time
from pathlib import Path

import cv2
from onnx_only import OnnxDetector

THERMOMETER = Path("/sys/class/thermal/thermal_zone0/temp")  # thousandths of a degree Celsius
HOT = 80.0  # degrees Celsius above which a Raspberry Pi 4 or 5 reduces its clock


class Camera:
    """The newest image of a source, (H, W, 3) uint8 RGB. `latest` waits for an image that was not returned before."""

    def __init__(self, source, width=640, height=480):
        self.condition, self.image, self.ended = threading.Condition(), None, False
        if source == "picamera2":
            from picamera2 import Picamera2  # Debian's package python3-picamera2

            camera = Picamera2()
            # libcamera's BGR888 is RGB in memory order
            camera.configure(camera.create_video_configuration({"size": (width, height), "format": "BGR888"}))
            camera.start()
            self.read = lambda: (True, camera.capture_array("main"))
        else:
            capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
            if not capture.isOpened():
                sys.exit(f"error: {source}: cannot be opened; give a camera number, picamera2, a file or a URL")
            if source.isdigit():
                capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
                capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)

            def read():
                good, image = capture.read()
                return good, cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if good else None

            self.read = read
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self):
        while not self.ended:
            good, image = self.read()
            with self.condition:
                if good:
                    self.image = image
                self.ended = not good
                self.condition.notify()

    def latest(self):
        with self.condition:
            self.condition.wait_for(lambda: self.image is not None or self.ended)
            image, self.image = self.image, None
            return image


def temperature():
    """Temperature of the processor in degrees Celsius, or None if the system does not report it."""
    try:
        return int(THERMOMETER.read_text()) / 1000
    except (OSError, ValueError):
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="ONNX file written by export.py")
    parser.add_argument("source", nargs="?", default="0", help="camera number, picamera2, video file or URL")
    parser.add_argument("--threads", type=int, default=0, help="threads of the network; 0: one per core")
    parser.add_argument("--rate", type=float, default=0, help="maximum images per second, to limit heat; 0: no limit")
    options = parser.parse_args()
    detector, camera = OnnxDetector(options.model, options.threads), Camera(options.source)
    names, spent, shown = detector.config["class_names"], [], time.monotonic()
    while (image := camera.latest()) is not None:
        started = time.monotonic()
        boxes, scores, labels = detector(image)
        spent.append(time.monotonic() - started)
        for (x1, y1, x2, y2), score, label in zip(boxes, scores, labels, strict=True):
            print(f"{names[label]} {score:.2f} {x1:.0f} {y1:.0f} {x2:.0f} {y2:.0f}", flush=True)
        if time.monotonic() - shown > 5:
            degrees = temperature()
            heat = "" if degrees is None else f", {degrees:.0f} C"
            print(f"{1e3 * sum(spent) / len(spent):.0f} ms per image{heat}", file=sys.stderr)
            if degrees is not None and degrees >= HOT:
                print(
                    "warning: the processor is close to thermal throttling; add a fan or use --rate 5", file=sys.stderr
                )
            spent, shown = [], time.monotonic()
        if options.rate:
            time.sleep(max(0.0, 1 / options.rate - (time.monotonic() - started)))


if __name__ == "__main__":
    main()
