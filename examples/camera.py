"""Find objects in a camera's pictures without torch, on a Raspberry Pi or any computer: python camera.py best.onnx

    python camera.py best.onnx                       the first camera (V4L2)
    python camera.py best.onnx picamera2             a Raspberry Pi's own camera module, by its Python library
    python camera.py best.onnx rtsp://address/path   a network camera, or a video file

Needs ONNX Runtime, OpenCV and NumPy, and onnx_only.py beside it; docs/devices/raspberry-pi.md says how to install them.
A thread takes the pictures and keeps the newest, so that a slow network shows what is and not what was.
"""

import argparse
import sys
import threading
import time
from pathlib import Path

import cv2
from onnx_only import OnnxDetector

THERMOMETER = Path("/sys/class/thermal/thermal_zone0/temp")  # thousandths of a degree Celsius
HOT = 80.0  # degrees Celsius at which a Raspberry Pi 4 or 5 begins to lower its clock


class Camera:
    """The newest picture of a source, (H, W, 3) uint8 RGB; `latest` waits for one that was not given before."""

    def __init__(self, source, width=640, height=480):
        self.condition, self.image, self.ended = threading.Condition(), None, False
        if source == "picamera2":
            from picamera2 import Picamera2  # Debian's package python3-picamera2

            camera = Picamera2()
            # libcamera's BGR888 is what NumPy sees as RGB
            camera.configure(camera.create_video_configuration({"size": (width, height), "format": "BGR888"}))
            camera.start()
            self.read = lambda: (True, camera.capture_array("main"))
        else:
            capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
            if not capture.isOpened():
                sys.exit(f"error: {source}: cannot be opened; name a camera's number, picamera2, a file or an address")
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
    """Degrees Celsius of the processor, or None where the system does not tell."""
    try:
        return int(THERMOMETER.read_text()) / 1000
    except (OSError, ValueError):
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="an ONNX file of export.py")
    parser.add_argument("source", nargs="?", default="0", help="camera number, picamera2, file or address")
    parser.add_argument("--threads", type=int, default=0, help="of the network; 0: one per core")
    parser.add_argument("--rate", type=float, default=0, help="pictures a second at most, against heat; 0: no limit")
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
            print(f"{1e3 * sum(spent) / len(spent):.0f} ms a picture{heat}", file=sys.stderr)
            if degrees is not None and degrees >= HOT:
                print("warning: the processor is about to slow down; add a fan, or --rate 5", file=sys.stderr)
            spent, shown = [], time.monotonic()
        if options.rate:
            time.sleep(max(0.0, 1 / options.rate - (time.monotonic() - started)))


if __name__ == "__main__":
    main()
