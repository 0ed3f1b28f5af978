"""Draw the README's images: detections of the bundled detector, its objectness map and a class activation map."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from imaging.draw import contact_sheet, draw_detections, draw_heatmap
from imaging.image_io import read_image, write_image
from prediction.detector import load_detector
from prediction.explain import layer_cam, objectness_map
from utils.config import option, parse_options
from utils.errors import UserError, run_command


@dataclass(frozen=True)
class PictureOptions:
    photos: tuple[str, ...] = option(
        (), "photographs with a suitable licence; the first is used for the heat maps", positional=True, nargs="*"
    )
    checkpoint: str = option("small", "model file or name", metavar="FILE")
    output: str = option("docs/images", "output folder; readme.jpg and explain.jpg are replaced", metavar="DIR")


def main(argv: list[str] | None = None) -> None:
    options = parse_options(PictureOptions, argv, description=__doc__ or "", prog="readme_pictures.py")
    if not options.photos:
        raise UserError("photos", "none given", "give photographs to draw")
    detector = load_detector(options.checkpoint, runtime="torch")  # class activation needs the gradients
    names = detector.config.class_names
    images = [read_image(path) for path in options.photos]
    drawn = [draw_detections(image, detector(image), names) for image in images]
    write_image(Path(options.output) / "readme.jpg", contact_sheet(drawn, len(drawn), tile_size=(300, 360)))
    seen = detector(images[0])
    if not len(seen):
        raise UserError(options.photos[0], "nothing is detected in it", "give another photograph first")
    cam = layer_cam(detector, images[0], seen.boxes[0], int(seen.labels[0]))
    panels = {
        "detected": drawn[0],
        "objectness (--heatmap)": draw_heatmap(images[0], objectness_map(detector, images[0])),
        f"why {names[seen.labels[0]]} (--cam)": draw_heatmap(images[0], cam),
    }
    sheet = contact_sheet(list(panels.values()), len(panels), tile_size=(300, 360), captions=list(panels))
    write_image(Path(options.output) / "explain.jpg", sheet)


if __name__ == "__main__":
    run_command(main)
