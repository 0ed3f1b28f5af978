"""Small data sets in the layouts that labelling tools write; all hold the same eight pictures and boxes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_makers import HEIGHT, WIDTH, picture, voc_xml_text

from imaging.image_io import write_image

DOG_BOX, CAT_BOX = (10, 20, 60, 80), (70, 30, 140, 110)  # xyxy pixels, 0-based
OBJECTS = (("dog", DOG_BOX), ("cat", CAT_BOX))
NAMES = [f"IMG_{2380 + i}" for i in range(8)]
CLASSES = "dog\ncat\n"


def put_pictures(folder: Path, names: Sequence[str] = NAMES, suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / f"{name}{suffix}"
        write_image(path.with_suffix(suffix.lower()), picture(int(name.split("_")[1][:4])))
        path.with_suffix(suffix.lower()).rename(path)


def put(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def yolo_text(first: int = 0) -> str:
    rows = []
    for number, (_, (x1, y1, x2, y2)) in enumerate(OBJECTS, first):
        values = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
        rows.append(" ".join([str(number), *(f"{value:.6f}" for value in values)]))
    return "\n".join([*rows, ""])


def put_yolo(folder: Path, names: Sequence[str] = NAMES, first: int = 0) -> None:
    for name in names:
        put(folder / f"{name}.txt", yolo_text(first))


def put_xml(folder: Path, names: Sequence[str] = NAMES) -> None:
    for name in names:
        objects = [(label, x1 + 1, y1 + 1, x2, y2) for label, (x1, y1, x2, y2) in OBJECTS]
        put(folder / f"{name}.xml", voc_xml_text(name, objects))


def coco_content(file_names: Sequence[str], **image: Any) -> dict[str, Any]:
    images = [{"id": k, "file_name": name, "height": HEIGHT, "width": WIDTH} for k, name in enumerate(file_names)]
    rows = [
        {"id": 10 * k + c, "image_id": k, "category_id": c, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        for k in range(len(images))
        for c, (_, (x1, y1, x2, y2)) in enumerate(OBJECTS, 1)
    ]
    return {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]}


# --- Pascal XML ------------------------------------------------------------------------------------------------------


def labelimg_voc(root: Path) -> None:
    put_pictures(root)
    put_xml(root)
    put(root / ".DS_Store", b"\0\1")
    put(root / "Thumbs.db", b"\0\1")


def two_folders(root: Path) -> None:
    put_pictures(root / "images", suffix=".JPG")
    put_xml(root / "annots")


def voc_without_lists(root: Path) -> None:
    put_pictures(root / "VOC2007/JPEGImages")
    put_xml(root / "VOC2007/Annotations")


def roboflow_voc(root: Path) -> None:
    for split, names in (("train", NAMES[:5]), ("valid", NAMES[5:7]), ("test", NAMES[7:])):
        put_pictures(root / split, names)
        put_xml(root / split, names)
    put(root / "README.roboflow.txt", "exported")


def cvat_voc(root: Path) -> None:
    put_pictures(root / "JPEGImages")
    put_xml(root / "Annotations")
    put(root / "ImageSets/Main/Train.txt", "".join(f"{name}\n" for name in NAMES[:6]))
    put(root / "ImageSets/Main/Validation.txt", "".join(f"{name}\n" for name in NAMES[6:]))
    put(root / "labelmap.txt", "# label:color_rgb:parts:actions\ndog:1,2,3::\n")


# --- YOLO ------------------------------------------------------------------------------------------------------------


def labelimg_yolo(root: Path) -> None:
    put_pictures(root)
    put_yolo(root, first=2)
    put(root / "classes.txt", "person\ncar\ndog\ncat\nbird\n")


def yolo_without_yaml(root: Path) -> None:
    put_pictures(root / "images")
    put_yolo(root / "labels")
    put(root / "classes.txt", CLASSES)


def yolo_with_names(root: Path) -> None:
    put_pictures(root)
    for name in NAMES:
        put(root / f"{name}.txt", yolo_text().replace("0 ", "dog ", 1).replace("\n1 ", "\ncat "))


def label_studio_yolo(root: Path) -> None:
    put_pictures(root / "images")
    put_yolo(root / "labels")
    categories = [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}]
    put(root / "notes.json", json.dumps({"categories": categories, "info": {"year": 2024}}))


def yolo_capital_folders(root: Path) -> None:
    for split, names in (("train", NAMES[:6]), ("val", NAMES[6:])):
        put_pictures(root / "Images" / split, names)
        put_yolo(root / "Labels" / split, names)
    put(root / "data.yaml", "train: images/train\nval: images/val\nnames: [dog, cat]\n")


def yolo_of_another_machine(root: Path) -> None:
    for split, names in (("train", NAMES[:6]), ("val", NAMES[6:])):
        put_pictures(root / "images" / split, names)
        put_yolo(root / "labels" / split, names)
    paths = "path: C:\\Users\\me\\pets\ntrain: C:\\Users\\me\\pets\\images\\train\nval: pets/images/val\n"
    put(root / "data.yaml", paths + "names: {0: dog, 1: cat}\n")


def cvat_yolo(root: Path) -> None:
    put_pictures(root / "obj_train_data")
    put_yolo(root / "obj_train_data")
    put(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    put(root / "obj.names", CLASSES)
    put(root / "train.txt", "".join(f"data/obj_train_data/{name}.jpg\n" for name in NAMES))


def cvat_ultralytics(root: Path) -> None:
    put_pictures(root / "images/Train", NAMES[:6])
    put_yolo(root / "labels/Train", NAMES[:6])
    put_pictures(root / "images/Validation", NAMES[6:])
    put_yolo(root / "labels/Validation", NAMES[6:])
    put(root / "data.yaml", "Train: Train.txt\nValidation: Validation.txt\nnames: {0: dog, 1: cat}\npath: .\n")
    for split, names in (("Train", NAMES[:6]), ("Validation", NAMES[6:])):
        put(root / f"{split}.txt", "".join(f".\\images\\{split}\\{name}.jpg\r\n" for name in names))


def key_points(root: Path) -> None:
    for split, names in (("train", NAMES[:6]), ("val", NAMES[6:])):
        put_pictures(root / "images" / split, names)
        rows = [f"{line} 0.1 0.2 2 0.3 0.4 0" for line in yolo_text().splitlines()]
        for name in names:
            put(root / "labels" / split / f"{name}.txt", "\n".join(rows))
    put(root / "data.yaml", "train: images/train\nval: images/val\nkpt_shape: [2, 3]\nnames: [dog, cat]\n")


# --- lists, tables, JSON ---------------------------------------------------------------------------------------------


def box_list(root: Path) -> None:
    put_pictures(root / "images")
    boxes = " ".join(",".join(map(str, (*box, number))) for number, (_, box) in enumerate(OBJECTS))
    put(root / "2007_train.txt", "".join(f"/home/me/pets/images/{name}.jpg {boxes}\n" for name in NAMES))
    put(root / "voc_classes.txt", CLASSES)


def roboflow_list(root: Path) -> None:
    boxes = " ".join(",".join(map(str, (*box, number))) for number, (_, box) in enumerate(OBJECTS))
    for split, names in (("train", NAMES[:6]), ("valid", NAMES[6:])):
        put_pictures(root / split, names)
        put(root / split / "_annotations.txt", "".join(f"{name}.jpg {boxes}\n" for name in names))
        put(root / split / "_classes.txt", CLASSES)


def table(rows: Sequence[Sequence[object]], separator: str = ",") -> str:
    return "\ufeff" + "".join(separator.join(map(str, row)) + "\r\n" for row in rows)


def tensorflow_csv(root: Path) -> None:
    put_pictures(root / "images")
    for split, names in (("train", NAMES[:6]), ("test", NAMES[6:])):
        rows = [(f"{name}.jpg", WIDTH, HEIGHT, label, *box) for name in names for label, box in OBJECTS]
        header = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
        put(root / f"{split}_labels.csv", table([header, *rows]))


def decimal_comma_csv(root: Path) -> None:
    put_pictures(root)
    rows = [(label, f"{x1},0", x2, f"{y1},0", y2, name) for name in NAMES for label, (x1, y1, x2, y2) in OBJECTS]
    put(root / "boxes.csv", table([("Label", "X_Min", "X_Max", "Y_Min", "Y_Max", "Image"), *rows], ";"))


def kaggle_csv(root: Path) -> None:
    """A column of the class, and boxes as text of x, y, width, height."""
    put_pictures(root / "train")
    rows = [(name, WIDTH, HEIGHT, f'"[{x1}, {y1}, {x2 - x1}, {y2 - y1}]"', label)
            for name in NAMES for label, (x1, y1, x2, y2) in OBJECTS]  # fmt: skip
    put(root / "train.csv", table([("image_id", "width", "height", "bbox", "label"), *rows]))


def retinanet_csv(root: Path) -> None:
    put_pictures(root / "img")
    rows = [(f"img/{name}.jpg", *box, label) for name in NAMES for label, box in OBJECTS]
    put(root / "annotations.csv", table(rows).removeprefix("\ufeff"))


def open_images_csv(root: Path) -> None:
    put_pictures(root / "train")
    codes = {"dog": "/m/0bt9lr", "cat": "/m/01yrx"}
    rows = [(name, "xclick", codes[label], 1, x1 / WIDTH, x2 / WIDTH, y1 / HEIGHT, y2 / HEIGHT, 0)
            for name in NAMES for label, (x1, y1, x2, y2) in OBJECTS]  # fmt: skip
    header = ("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
    put(root / "train-annotations-bbox.csv", table([header, *rows]))
    put(root / "class-descriptions-boxable.csv", "".join(f"{code},{name}\n" for name, code in codes.items()))


def via_json(root: Path) -> None:
    put_pictures(root)
    (x1, y1, x2, y2), polygon = DOG_BOX, {"all_points_x": [70, 140, 100], "all_points_y": [30, 50, 110]}
    shapes = [({"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}, "dog")]
    shapes.append(({"name": "polygon", **polygon}, "cat"))
    regions = [{"shape_attributes": shape, "region_attributes": {"type": label}} for shape, label in shapes]
    put(
        root / "via.json",
        json.dumps({f"{n}.jpg1": {"filename": f"{n}.jpg", "size": 1, "regions": regions} for n in NAMES}),
    )


def via_3(root: Path) -> None:
    """A project of version 3: the class is chosen from a list, and stored by its number."""
    put_pictures(root)
    (x1, y1, x2, y2) = DOG_BOX
    shapes = [[2, x1, y1, x2 - x1, y2 - y1], [7, 70, 30, 140, 50, 100, 110]]
    project = {
        "project": {"pid": "__VIA_PROJECT_ID__", "pname": "pets", "vid_list": [str(k) for k in range(8)]},
        "attribute": {"1": {"aname": "species", "type": 4, "options": {"0": "dog", "1": "cat"}}},
        "file": {str(k): {"fid": str(k), "fname": f"{n}.jpg", "type": 2, "src": ""} for k, n in enumerate(NAMES)},
        "metadata": {f"{k}_{c}": {"vid": str(k), "flg": 0, "z": [], "xy": xy, "av": {"1": str(c)}}
                     for k in range(8) for c, xy in enumerate(shapes)},
        "view": {str(k): {"fid_list": [str(k)]} for k in range(8)},
    }  # fmt: skip
    put(root / "pets.json", json.dumps(project))


def dota(root: Path) -> None:
    for split, names in (("train", NAMES[:6]), ("val", NAMES[6:])):
        put_pictures(root / split / "images", names, ".png")
        rows = [f"{x1}.0 {y1}.0 {x2}.0 {y1}.0 {x2}.0 {y2}.0 {x1}.0 {y2}.0 {label} 0"
                for label, (x1, y1, x2, y2) in OBJECTS]  # fmt: skip
        for name in names:
            put(root / split / "labelTxt" / f"{name}.txt", "\n".join(["imagesource:GoogleEarth", "gsd:0.1", *rows]))


def labelme(root: Path) -> None:
    put_pictures(root / "pictures")
    shapes = [
        {"label": label, "points": [list(box[:2]), list(box[2:])], "shape_type": "rectangle"} for label, box in OBJECTS
    ]
    shapes[1] |= {"shape_type": "polygon", "points": [[70, 30], [140, 60], [90, 110]]}
    for name in NAMES:
        content = {"version": "5.4", "flags": {}, "shapes": shapes, "imagePath": f"..\\pictures\\{name}.jpg"}
        put(root / "json" / f"{name}.json", json.dumps(content | {"imageHeight": HEIGHT, "imageWidth": WIDTH}))


def kitti(root: Path) -> None:
    put_pictures(root / "training/image_2", suffix=".png")
    rows = [
        f"{label} 0.00 0 -1.57 {' '.join(f'{v:.2f}' for v in box)} 1.5 1.6 3.9 1 2 3 -1.5" for label, box in OBJECTS
    ]
    rows.append("DontCare -1 -1 -10 1.00 2.00 30.00 40.00 -1 -1 -1 -1000 -1000 -1000 -10")
    for name in NAMES:
        put(root / "training/label_2" / f"{name}.txt", "\n".join(rows) + "\n")


def supervisely(root: Path) -> None:
    objects = [
        {"classTitle": label, "geometryType": "rectangle", "points": {"exterior": [box[:2], box[2:]], "interior": []}}
        for label, box in OBJECTS
    ]
    for split, names in (("train", NAMES[:6]), ("val", NAMES[6:])):
        put_pictures(root / split / "img", names)
        for name in names:
            content = {"description": "", "size": {"height": HEIGHT, "width": WIDTH}, "objects": objects}
            put(root / split / "ann" / f"{name}.jpg.json", json.dumps(content))
    put(root / "meta.json", json.dumps({"classes": [{"title": "dog"}, {"title": "cat"}]}))


def vott(root: Path) -> None:
    put_pictures(root)
    regions = [
        {"tags": [label], "boundingBox": {"left": x1, "top": y1, "width": x2 - x1, "height": y2 - y1}}
        for label, (x1, y1, x2, y2) in OBJECTS
    ]
    assets = {
        n: {"asset": {"name": f"{n}.jpg", "size": {"width": WIDTH, "height": HEIGHT}}, "regions": regions}
        for n in NAMES
    }
    put(root / "pets-export.json", json.dumps({"name": "pets", "assets": assets}))


def createml(root: Path) -> None:
    put_pictures(root)
    boxes = [
        {"label": label, "coordinates": {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1}}
        for label, (x1, y1, x2, y2) in OBJECTS
    ]
    put(root / "_annotations.createml.json", json.dumps([{"image": f"{n}.jpg", "annotations": boxes} for n in NAMES]))


def cvat_xml(root: Path) -> None:
    shapes = "".join(
        f'<box label="{label}" occluded="0" xtl="{x1}.00" ytl="{y1}.00" xbr="{x2}.00" ybr="{y2}.00"></box>'
        for label, (x1, y1, x2, y2) in OBJECTS
    )
    images = "".join(f'<image id="1" name="{n}.jpg" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>' for n in NAMES)
    put(root / "annotations.xml", f'<?xml version="1.0"?><annotations><version>1.1</version>{images}</annotations>')
    put_pictures(root / "images")


def label_studio(root: Path) -> None:
    put_pictures(root / "images")
    result = [
        {"value": {"x": 100 * x1 / WIDTH, "y": 100 * y1 / HEIGHT, "width": 100 * (x2 - x1) / WIDTH,
                   "height": 100 * (y2 - y1) / HEIGHT, "rotation": 0, "rectanglelabels": [label]}}
        for label, (x1, y1, x2, y2) in OBJECTS
    ]  # fmt: skip
    tasks = [{"id": k, "annotations": [{"result": result}], "data": {"image": f"/data/upload/1/0a1b2c3d-{n}.jpg"}}
             for k, n in enumerate(NAMES)]  # fmt: skip
    put(root / "project.json", json.dumps(tasks))


def label_studio_csv(root: Path) -> None:
    put_pictures(root / "images")
    regions = json.dumps([
        {"x": 100 * x1 / WIDTH, "y": 100 * y1 / HEIGHT, "width": 100 * (x2 - x1) / WIDTH,
         "height": 100 * (y2 - y1) / HEIGHT, "rotation": 0, "rectanglelabels": [label]}
        for label, (x1, y1, x2, y2) in OBJECTS
    ]).replace('"', '""')  # fmt: skip
    rows = [f'/data/upload/1/0a1b2c3d-{n}.jpg,{k},"{regions}",1,2.5' for k, n in enumerate(NAMES)]
    put(root / "project.csv", "\n".join(["image,id,label,annotator,lead_time", *rows]))


def cvat_video(root: Path) -> None:
    put_pictures(root / "images")
    tracks = ""
    for label, (x1, y1, x2, y2) in OBJECTS:
        box = f'xtl="{x1}.00" ytl="{y1}.00" xbr="{x2}.00" ybr="{y2}.00" occluded="0" keyframe="1"'
        seen = "".join(f'<box frame="{k}" outside="0" {box}></box>' for k in range(8))
        tracks += f'<track id="0" label="{label}">{seen}<box frame="8" outside="1" {box}></box></track>'
    for k, name in enumerate(NAMES):
        (root / "images" / f"{name}.jpg").rename(root / "images" / f"frame_{k:06d}.jpg")
    put(root / "annotations.xml", f'<?xml version="1.0"?><annotations><version>1.1</version>{tracks}</annotations>')


def datumaro(root: Path) -> None:
    put_pictures(root / "images/default")
    boxes = [{"type": "bbox", "label_id": c, "bbox": [x1, y1, x2 - x1, y2 - y1]}
             for c, (_, (x1, y1, x2, y2)) in enumerate(OBJECTS)]  # fmt: skip
    items = [{"id": n, "annotations": boxes, "image": {"path": f"{n}.jpg", "size": [HEIGHT, WIDTH]}} for n in NAMES]
    categories = {"label": {"labels": [{"name": "dog", "parent": ""}, {"name": "cat", "parent": ""}]}}
    put(root / "annotations/default.json", json.dumps({"infos": {}, "categories": categories, "items": items}))


def open_images_toolkit(root: Path) -> None:
    for split, names in (("train", NAMES[:6]), ("validation", NAMES[6:])):
        put_pictures(root / split / "dog_cat", names)
        rows = [f"{label} {x1}.0 {y1} {x2}.000000 {y2}" for label, (x1, y1, x2, y2) in OBJECTS]
        for name in names:
            put(root / split / "dog_cat/Label" / f"{name}.txt", "\n".join(rows))


def labelme_web(root: Path) -> None:
    """XML of the LabelMe web page, and of CVAT's "LabelMe 3.0": outlines from 0 on, and objects that were deleted."""
    put_pictures(root / "default")
    objects = ""
    for label, (x1, y1, x2, y2) in (*OBJECTS, ("bird", (1, 1, 9, 9))):
        corners = "".join(f"<pt><x>{x}.00</x><y>{y}.00</y></pt>" for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2)))
        deleted, outline = int(label == "bird"), f"<polygon>{corners}<username>me</username></polygon>"
        objects += f"<object><name>{label}</name><deleted>{deleted}</deleted>{outline}</object>"
    size = f"<imagesize><nrows>{HEIGHT}</nrows><ncols>{WIDTH}</ncols></imagesize>"
    for name in NAMES:
        text = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        put(root / "default" / f"{name}.xml", text)


def make_sense_csv(root: Path) -> None:
    """Without a header, as older versions write it."""
    put_pictures(root / "photos")
    rows = [(label, x1, y1, x2 - x1, y2 - y1, f"{n}.jpg", WIDTH, HEIGHT)
            for n in NAMES for label, (x1, y1, x2, y2) in OBJECTS]  # fmt: skip
    put(root / "labels_my-project.csv", table(rows).removeprefix("\ufeff"))


def marked_yolo(root: Path) -> None:
    """Files that an editor of Windows saved: byte order marks, UTF-16 names."""
    put_pictures(root / "images", suffix=".JPG")
    for name in NAMES:
        put(root / "labels" / f"{name}.txt", yolo_text().replace("\n", "\r\n").encode("utf-8-sig"))
    put(root / "labels.txt", CLASSES.replace("\n", "\r\n").encode("utf-16"))


def labelme_image_first(root: Path) -> None:
    """Sorted keys: the image in the file comes before the key that identifies the format."""
    put_pictures(root)
    shapes = [{"label": label, "points": [box[:2], box[2:]], "shape_type": "rectangle"} for label, box in OBJECTS]
    for name in NAMES:
        content = {"imageData": "A" * (1 << 17), "imagePath": f"{name}.jpg", "shapes": shapes}
        put(root / f"{name}.json", json.dumps(content))


def createml_turi(root: Path) -> None:
    createml(root)
    path = root / "_annotations.createml.json"
    put(path, path.read_text().replace('"image"', '"imagefilename"').replace('"annotations"', '"annotation"'))


def label_studio_own_key(root: Path) -> None:
    label_studio(root)
    path = root / "project.json"
    put(
        path,
        path.read_text().replace('"data": {"image"', '"data": {"text": "a", "photo"').replace('.jpg"', '.jpg?v=1"'),
    )


def label_studio_labels(root: Path) -> None:
    """Labels with Label Studio's upload prefix beside the images as they were before the upload."""
    put_pictures(root / "photos")
    for name in NAMES:
        put(root / "labels" / f"0a1b2c3d-{name}.txt", yolo_text())
    put(root / "classes.txt", CLASSES)


def centres_csv(root: Path) -> None:
    put_pictures(root / "images")
    rows = [(n, label, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            for n in NAMES for label, (x1, y1, x2, y2) in OBJECTS]  # fmt: skip
    put(root / "boxes.CSV", table([("image", "class", "x_center", "y_center", "width", "height"), *rows]))


def voc_with_paths_in_lists(root: Path) -> None:
    put_pictures(root / "VOC2007/JPEGImages")
    put_xml(root / "VOC2007/Annotations")
    for split, names in (("train", NAMES[:6]), ("val", NAMES[6:])):
        lines = "".join(f"C:\\me\\VOC2007\\JPEGImages\\{name}.jpg\r\n" for name in names)
        put(root / f"VOC2007/ImageSets/Main/{split}.txt", lines)


def coco_in_capitals(root: Path) -> None:
    put_pictures(root / "images", suffix=".JPG")
    put(root / "TRAIN.JSON", json.dumps(coco_content([f"{name}.JPG" for name in NAMES])))


def roboflow_yolo_without_test(root: Path) -> None:
    for split, names in (("train", NAMES[:6]), ("valid", NAMES[6:])):
        put_pictures(root / split / "images", names)
        put_yolo(root / split / "labels", names)
    splits = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    put(root / "data.yaml", f"{splits}nc: '2'\nnames: {{'0': dog, 1: cat}}\n")


def visdrone(root: Path) -> None:
    numbers = {"dog": 1, "cat": 2}
    rows = [f"{x1},{y1},{x2 - x1},{y2 - y1},1,{numbers[label]},0,0" for label, (x1, y1, x2, y2) in OBJECTS]
    put(root / "VisDrone-train/labels.txt", CLASSES)
    for split, names in (("train", NAMES[:6]), ("val", NAMES[6:])):
        put_pictures(root / f"VisDrone-{split}/images", names)
        for name in names:
            put(root / f"VisDrone-{split}/annotations/{name}.txt", "\n".join(["1,2,9,9,0,0,0,0", *rows]) + ",\n")


def mot(root: Path) -> None:
    put(root / "labels.txt", CLASSES)
    for split, names in (("train", NAMES[:6]), ("test", NAMES[6:])):
        folder, rows = root / split / "MOT20-01", []
        put_pictures(folder / "img1", names)
        for k, name in enumerate(names, 1):
            (folder / f"img1/{name}.jpg").rename(folder / f"img1/{k:06d}.jpg")
            rows += [f"{k},{c},{x1},{y1},{x2 - x1}.00,{y2 - y1},1,{c},1.0"
                     for c, (_, (x1, y1, x2, y2)) in enumerate(OBJECTS, 1)]  # fmt: skip
        put(folder / "gt/gt.txt", "\n".join([*rows, "1,9,1,1,20,20,0,2,0.5"]))


def bdd100k(root: Path) -> None:
    content = []
    for name in NAMES:
        boxes = [{"category": label, "box2d": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))}
                 for label, box in OBJECTS]  # fmt: skip
        content.append({"name": f"{name}.jpg", "labels": [{"category": "lane", "poly2d": []}, *boxes]})
    put_pictures(root / "images/100k/train", NAMES)
    put(root / "labels/det_20/det_train.json", json.dumps(content))


def _sides(box: Sequence[int]) -> dict[str, int]:
    return {"left": box[0], "top": box[1], "width": box[2] - box[0], "height": box[3] - box[1]}


def json_lines(root: Path, name: str, records: Sequence[Any]) -> None:
    put_pictures(root / "photos", NAMES)
    put(root / name, "".join(json.dumps(each) + "\n" for each in records))


def labelbox(root: Path) -> None:
    objects = [{"name": label, "annotation_kind": "ImageBoundingBox", "bounding_box": _sides(box)}
               for label, box in OBJECTS]  # fmt: skip
    x1, y1, x2, y2 = CAT_BOX
    objects[1] = {"name": "cat", "polygon": [{"x": x, "y": y} for x, y in ((x1, y1), (x2, y1), (x1, y2))]}
    json_lines(root, "export.ndjson", [
        {"data_row": {"id": "c1", "external_id": f"{name}.jpg", "row_data": "https://x"},
         "media_attributes": {"height": HEIGHT, "width": WIDTH},
         "projects": {"p1": {"labels": [{"annotations": {"objects": objects}}]}}} for name in NAMES
    ])  # fmt: skip


def sagemaker(root: Path) -> None:
    boxes = [{"class_id": c, **_sides(box)} for c, (_, box) in enumerate(OBJECTS)]
    size = [{"width": WIDTH, "height": HEIGHT, "depth": 3}]
    json_lines(root, "output.manifest", [
        {"source-ref": f"s3://bucket/x/{name}.jpg", "pets": {"image_size": size, "annotations": boxes},
         "pets-metadata": {"class-map": {"0": "dog", "1": "cat"}}} for name in NAMES
    ])  # fmt: skip


def vertex_ai(root: Path) -> None:
    scale = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    boxes = [{"displayName": label, **{key: value / side for key, value, side in
              zip(("xMin", "yMin", "xMax", "yMax"), box, scale, strict=True)}} for label, box in OBJECTS]  # fmt: skip
    use = "aiplatform.googleapis.com/ml_use"
    json_lines(root, "import.jsonl", [
        {"imageGcsUri": f"gs://b/{name}.jpg", "boundingBoxAnnotations": boxes,
         "dataItemResourceLabels": {use: "training" if k < 6 else "test"}} for k, name in enumerate(NAMES)
    ])  # fmt: skip


def hugging_face(root: Path) -> None:
    put(root / "classes.txt", CLASSES)
    boxes = [list(_sides(box).values()) for _, box in OBJECTS]
    objects = {"bbox": boxes, "categories": [0, 1], "id": [1, 2]}
    json_lines(root, "photos/metadata.jsonl", [{"file_name": f"{name}.jpg", "objects": objects} for name in NAMES])


def v7(root: Path) -> None:
    put_pictures(root / "images", NAMES)
    boxes = [{"bounding_box": {"h": y2 - y1, "w": x2 - x1, "x": x1, "y": y1}, "name": label}
             for label, (x1, y1, x2, y2) in OBJECTS]  # fmt: skip
    for name in NAMES:
        item = {"name": f"{name}.jpg", "path": "/", "slots": [{"height": HEIGHT, "width": WIDTH}]}
        content = {"version": "2.0", "item": item, "annotations": [*boxes, {"name": "good", "tag": {}}]}
        put(root / f"annotations/{name}.json", json.dumps(content, indent=2))


def superannotate(root: Path) -> None:
    put_pictures(root / "images", NAMES)
    boxes = [{"type": "bbox", "className": label, "points": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))}
             for label, box in OBJECTS]  # fmt: skip
    for name in NAMES:
        metadata = {"name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT}
        put(root / f"{name}.jpg.json", json.dumps({"metadata": metadata, "instances": boxes}))


# --- COCO ------------------------------------------------------------------------------------------------------------


def roboflow_coco(root: Path) -> None:
    for split, names in (("train", NAMES[:6]), ("valid", NAMES[6:])):
        put_pictures(root / split, names)
        content = coco_content([f"{name}.jpg" for name in names])
        content["categories"] = [{"id": 0, "name": "pets", "supercategory": "none"},
                                 *({**each, "supercategory": "pets"} for each in content["categories"])]  # fmt: skip
        put(root / split / "_annotations.coco.json", json.dumps(content))


def label_studio_coco(root: Path) -> None:
    put_pictures(root / "images")
    put(root / "result.json", json.dumps(coco_content([f"images\\1\\0a1b2c3d-{name}.jpg" for name in NAMES])))


def coco_with_text_ids(root: Path) -> None:
    put_pictures(root / "images")
    content = coco_content([f"/home/me/pets/{name}.jpg" for name in NAMES])
    for each in content["images"]:
        each["id"] = f"img{each['id']}"
    for each in content["annotations"]:
        each |= {"id": f"a{each['id']}", "image_id": f"img{each['image_id']}"}
    put(root / "annotations.json", json.dumps(content))


Layout = tuple[Callable[[Path], None], str, tuple[str, ...]]
LAYOUTS: dict[str, Layout] = {  # name: (maker, format that recognises it, splits)
    "labelimg_voc": (labelimg_voc, "xml", ("all",)),
    "two_folders": (two_folders, "xml", ("all",)),
    "voc_without_lists": (voc_without_lists, "voc", ("all",)),
    "roboflow_voc": (roboflow_voc, "xml", ("train", "val", "test")),
    "cvat_voc": (cvat_voc, "voc", ("Train", "Validation")),
    "labelimg_yolo": (labelimg_yolo, "plain_yolo", ("all",)),
    "yolo_with_names": (yolo_with_names, "plain_yolo", ("all",)),
    "yolo_without_yaml": (yolo_without_yaml, "plain_yolo", ("all",)),
    "label_studio_yolo": (label_studio_yolo, "plain_yolo", ("all",)),
    "yolo_capital_folders": (yolo_capital_folders, "yolo", ("train", "val")),
    "yolo_of_another_machine": (yolo_of_another_machine, "yolo", ("train", "val")),
    "cvat_yolo": (cvat_yolo, "yolo", ("train",)),
    "cvat_ultralytics": (cvat_ultralytics, "yolo", ("train", "validation")),
    "key_points": (key_points, "yolo", ("train", "val")),
    "box_list": (box_list, "box_list", ("train",)),
    "roboflow_list": (roboflow_list, "box_list", ("train", "val")),
    "tensorflow_csv": (tensorflow_csv, "csv", ("train", "test")),
    "decimal_comma_csv": (decimal_comma_csv, "csv", ("all",)),
    "kaggle_csv": (kaggle_csv, "csv", ("train",)),
    "retinanet_csv": (retinanet_csv, "csv", ("all",)),
    "open_images_csv": (open_images_csv, "csv", ("train",)),
    "via_json": (via_json, "via", ("all",)),
    "via_3": (via_3, "via", ("all",)),
    "dota": (dota, "dota", ("train", "val")),
    "labelme": (labelme, "labelme", ("all",)),
    "kitti": (kitti, "kitti", ("train",)),
    "supervisely": (supervisely, "supervisely", ("train", "val")),
    "vott": (vott, "vott", ("all",)),
    "createml": (createml, "createml", ("all",)),
    "cvat_xml": (cvat_xml, "cvat_xml", ("all",)),
    "label_studio": (label_studio, "label_studio", ("all",)),
    "label_studio_csv": (label_studio_csv, "label_studio", ("all",)),
    "cvat_video": (cvat_video, "cvat_xml", ("all",)),
    "datumaro": (datumaro, "datumaro", ("all",)),
    "open_images_toolkit": (open_images_toolkit, "name_rows", ("train", "val")),
    "visdrone": (visdrone, "visdrone", ("train", "val")),
    "mot": (mot, "mot", ("train", "test")),
    "bdd100k": (bdd100k, "json_records", ("train",)),
    "labelbox": (labelbox, "json_records", ("all",)),
    "sagemaker": (sagemaker, "json_records", ("all",)),
    "vertex_ai": (vertex_ai, "json_records", ("train", "test")),
    "hugging_face": (hugging_face, "json_records", ("all",)),
    "v7": (v7, "json_records", ("all",)),
    "superannotate": (superannotate, "json_records", ("all",)),
    "labelme_web": (labelme_web, "xml", ("all",)),
    "make_sense_csv": (make_sense_csv, "csv", ("all",)),
    "marked_yolo": (marked_yolo, "plain_yolo", ("all",)),
    "labelme_image_first": (labelme_image_first, "labelme", ("all",)),
    "createml_turi": (createml_turi, "createml", ("all",)),
    "label_studio_own_key": (label_studio_own_key, "label_studio", ("all",)),
    "label_studio_labels": (label_studio_labels, "plain_yolo", ("all",)),
    "centres_csv": (centres_csv, "csv", ("all",)),
    "voc_with_paths_in_lists": (voc_with_paths_in_lists, "voc", ("train", "val")),
    "coco_in_capitals": (coco_in_capitals, "coco", ("TRAIN",)),
    "roboflow_yolo_without_test": (roboflow_yolo_without_test, "yolo", ("train", "val")),
    "roboflow_coco": (roboflow_coco, "coco", ("train", "valid")),
    "label_studio_coco": (label_studio_coco, "coco", ("result",)),
    "coco_with_text_ids": (coco_with_text_ids, "coco", ("annotations",)),
}
