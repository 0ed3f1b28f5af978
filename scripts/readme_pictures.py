"""Draw the pictures of the README from the demo: what its detector finds and follows, why, and what tiles add."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from data.open import open_dataset
from data.tools.demo import Scene, street
from imaging.draw import contact_sheet, draw_detections, draw_heatmap
from imaging.image_io import read_image, write_image
from nets.tiling import TiledDetector
from prediction.detector import Detector, load_detector
from prediction.explain import layer_cam, objectness_map
from prediction.video import VideoReader, VideoWriter
from utils.config import option, parse_options
from utils.errors import RunError, UserError, run_command

SHOWN = 8  # test pictures, the first ones: not chosen
SIDE = 3  # the large picture is so many test pictures wide and high
CLIP = (300, 400)  # height and width of the video that is tracked, pixels
FRAMES, FPS = 48, 12
ACTORS = (  # class, seed of its looks, size, centre in the first frame and in the last one, pixels
    ("car", 6, 84, (40, 195), (420, 195)),
    ("car", 11, 110, (380, 266), (20, 266)),
    ("balloon", 5, 70, (120, 50), (190, 62)),
    ("house", 8, 90, (320, 130), (320, 130)),
)
LINE = "200,300,200,160"


@dataclass(frozen=True)
class PictureOptions:
    checkpoint: str = option("demo/run/best.pth", "the demo's detector", metavar="FILE")
    data: str = option("demo/VOCdevkit", "the demo's pictures", metavar="DIR")
    photos: tuple[str, ...] = option((), "photographs for readme.jpg, by the bundled detector; nothing else is drawn")
    output: str = option("docs/images", "folder of the pictures, which are replaced", metavar="DIR")


def main(argv: list[str] | None = None) -> None:
    options = parse_options(PictureOptions, argv, description=__doc__ or "", prog="readme_pictures.py")
    if options.photos:
        small = load_detector("small")
        drawn = [
            draw_detections(image, small(image), small.config.class_names) for image in map(read_image, options.photos)
        ]
        write_image(Path(options.output) / "readme.jpg", contact_sheet(drawn, len(drawn), tile_size=(300, 360)))
        return
    index = open_dataset(options.data, "test")
    if len(index) < max(SHOWN, SIDE * SIDE):
        raise UserError(options.data, f"has {len(index)} test pictures", "draw the demo's: dataset.py demo DIR")
    images = [read_image(index.path(number)) for number in range(max(SHOWN, SIDE * SIDE))]
    detector = load_detector(options.checkpoint)
    pictures = {
        "demo_found": found(detector, images[:SHOWN]),
        "demo_why": why(detector, images),
        "demo_tiles": tiles(detector, images[: SIDE * SIDE]),
        "demo_tracked": tracked(options.checkpoint),
    }
    for name, picture in pictures.items():
        path = Path(options.output) / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, picture)
        print(path)


def found(detector: Detector, images: list[np.ndarray]) -> np.ndarray:
    """Test pictures with what is found in them."""
    names = detector.config.class_names
    drawn = [draw_detections(image, detector(image), names) for image in images]
    return contact_sheet(drawn, columns=4, tile_size=(240, 240))


def why(detector: Detector, images: list[np.ndarray]) -> np.ndarray:
    """The picture with the most objects: they, where objects are seen at all, and what made it find the best two."""
    names = detector.config.class_names
    all_found = detector(images)
    number = max(range(len(images)), key=lambda i: len(all_found[i]))
    image, seen = images[number], all_found[number]
    panels = [draw_detections(image, seen, names), draw_heatmap(image, objectness_map(detector, image))]
    captions = ["found", "objectness (--heatmap)"]
    for i in range(min(2, len(seen))):
        heat = layer_cam(detector, image, seen.boxes[i], int(seen.labels[i]))
        panels.append(draw_detections(draw_heatmap(image, heat), seen[slice(i, i + 1)], names))
        captions.append(f"why {names[seen.labels[i]]} (--cam)")
    return contact_sheet(panels, columns=4, tile_size=(240, 240), captions=captions)


def tiles(detector: Detector, images: list[np.ndarray]) -> np.ndarray:
    """A large picture of many, looked at as a whole and in tiles."""
    side = min(min(image.shape[:2]) for image in images)
    rows = [images[start : start + SIDE] for start in range(0, len(images), SIDE)]
    large = np.concatenate([np.concatenate([image[:side, :side] for image in row], axis=1) for row in rows])
    names = detector.config.class_names
    panels, captions = [], []
    for caption, each in (("at once", detector), ("--tile", TiledDetector(detector))):
        seen = each.detect_batch([large])[0]
        panels.append(draw_detections(large, seen, names))
        captions.append(f"{caption}: {len(seen)} objects")
    return contact_sheet(panels, columns=2, tile_size=(484, 484), captions=captions)


def tracked(checkpoint: str) -> np.ndarray:
    """Three frames of a drawn video as `predict.py --track --line` leaves them."""
    with TemporaryDirectory() as folder:
        clip = Path(folder) / "street.mp4"
        writer = VideoWriter(clip, FPS, CLIP)
        for frame in drive():
            writer.write(frame)
        writer.close()
        command = [sys.executable, str(REPOSITORY / "predict.py"), str(clip), "--checkpoint", checkpoint]
        command += ["--track", "--line", LINE, "--output", str(Path(folder) / "out")]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            raise RunError("predict.py", "failed", "see above")
        (drawn,) = (Path(folder) / "out").glob("street*.mp4")
        with VideoReader(drawn) as reader:
            frames = [frame.image for frame in reader]
    shown = [len(frames) // 4, len(frames) // 2, len(frames) - 8]
    return contact_sheet([frames[i] for i in shown], columns=3, tile_size=(243, 324))


def drive() -> list[np.ndarray]:
    """A street with things that move along straight lines: (H, W, 3) uint8 RGB each."""
    rng = np.random.default_rng(4)
    empty = Scene(*CLIP)
    street(empty, rng, 0)
    frames = []
    for share in np.linspace(0, 1, FRAMES):
        scene = copy.deepcopy(empty)
        for name, seed, size, first, last in ACTORS:
            x, y = (a + (b - a) * share for a, b in zip(first, last, strict=True))
            scene.place(name, (x, y), size, 0, np.random.default_rng(seed))
        frames.append(np.clip(np.round(scene.image), 0, 255).astype(np.uint8))
    return frames


if __name__ == "__main__":
    run_command(main)
