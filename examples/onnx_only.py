"""Detect objects with ONNX Runtime, OpenCV and NumPy only: python onnx_only.py best.onnx photo.jpg

Copy this file where you need it. It uses nothing else from this project. The ONNX file contains its own settings.
Export it with `python export.py --checkpoint best.pth` (with or without `--uint8-input`, not with `--raw` or `--nms`).
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime  # set ORT_DISABLE_TELEMETRY=1 in the environment to disable its telemetry


class OnnxDetector:
    """An exported file; `config` holds its classes, sizes and thresholds."""

    def __init__(self, path, threads=0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # 0: one per core
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.config, self.form = json.loads(metadata["model"]), json.loads(metadata["form"])

    def __call__(self, image):
        """Detect objects in an (H, W, 3) uint8 RGB image.

        Returns boxes (N, 4) xyxy in image pixels, scores (N,) and labels (N,), sorted by descending score.
        """
        inputs, scale, shift = self.prepare(image)
        boxes, scores = self.session.run(["boxes", "scores"], {"images": inputs})
        boxes, scores, labels = self.suppress(boxes[0], scores[0])
        height, width = image.shape[:2]
        return np.clip((boxes - shift) / scale, 0, [width, height] * 2), scores, labels

    def prepare(self, image):
        """Letterbox an image. Returns the network's input, and scale and shift (x, y, x, y) of image coordinates."""
        height, width = self.config["input_size"]
        new_height, new_width, top, left = height, width, 0, 0
        if self.config["resize_mode"] == "letterbox":
            ratio = min(height / image.shape[0], width / image.shape[1])
            new_height = min(max(round(image.shape[0] * ratio), 1), height)
            new_width = min(max(round(image.shape[1] * ratio), 1), width)
            top, left = (height - new_height) // 2, (width - new_width) // 2
        shrinks = new_height < image.shape[0] or new_width < image.shape[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        canvas = np.full((height, width, 3), self.config["pad_value"], np.uint8)
        part = canvas[top : top + new_height, left : left + new_width]
        part[:] = cv2.resize(image, (new_width, new_height), interpolation=method)
        if not self.form["uint8_input"]:
            canvas = canvas.transpose(2, 0, 1).astype(np.float32) / 255
        scale = np.array([new_width / image.shape[1], new_height / image.shape[0]] * 2)
        return canvas[None], scale, np.array([left, top] * 2)

    def suppress(self, boxes, scores):
        """Apply the score threshold and non-maximum suppression."""
        threshold, labels, best = self.config["score_threshold"], scores.argmax(1), scores.max(1)
        places = np.flatnonzero(best >= threshold)
        sizes = np.concatenate([boxes[places, :2], boxes[places, 2:] - boxes[places, :2]], axis=1)
        found = cv2.dnn.NMSBoxesBatched(sizes, best[places], labels[places], threshold, self.config["iou_threshold"])
        places = places[np.asarray(found, int)]
        places = places[np.argsort(-best[places])][: self.config["max_detections"]]
        return boxes[places], best[places], labels[places]


def main(model, *photos):
    detector = OnnxDetector(model)
    for photo in photos:
        image = cv2.imread(photo, cv2.IMREAD_COLOR_RGB)
        if image is None:
            sys.exit(f"error: {photo}: cannot be read")
        for (x1, y1, x2, y2), score, label in zip(*detector(image), strict=True):
            print(f"{photo}: {detector.config['class_names'][label]} {score:.3f} {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python onnx_only.py MODEL.onnx PHOTO...")
    main(*sys.argv[1:])
