"""The labelling API: conflicts, full disks, invalid requests, orders, queues, and many images."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_makers import make_voc
from service_makers import Painted
from starlette.testclient import TestClient
from test_labelling_page import Labeller, photos

import service.labelling.store as store_module
from imaging.image_io import write_image
from service.app import build_app
from service.labelling.order import appearance, diverse_order, read_queue, step, uncertainty
from service.labelling.routes import Labelling
from service.labelling.store import open_store
from service.labelling.suggest import Suggester
from service.labelling.trainer import VAL_SHARE, LabelTrainer, _hash, _held_back, snapshot_labels
from utils.errors import RunError, UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILENET_YOLO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    store = open_store(photos(tmp_path / "photos"))
    labelling = Labelling(store, Suggester(store, Labeller(), "painted.pth"))  # type: ignore[arg-type]
    with TestClient(build_app(Painted(), labelling=labelling), base_url="http://127.0.0.1:8000") as client:
        yield client


BOX = {"class_name": "dog", "box": [10, 20, 60, 80]}


def save(client: TestClient, number: int, version: str, *boxes: dict[str, Any]) -> Any:
    return client.put(f"/label/pictures/{number}", json={"version": version, "boxes": list(boxes)})


def test_an_image_is_labelled_and_a_second_save_of_the_old_version_is_a_conflict(client: TestClient) -> None:
    picture = client.get("/label/pictures/0").json()
    assert (picture["version"], picture["labelled"], picture["boxes"]) == ("none", False, [])
    saved = save(client, 0, "none", BOX)
    assert saved.status_code == 200 and saved.json()["boxes"][0]["ref"] == 0
    late = save(client, 0, "none")
    assert late.status_code == 409
    assert late.json()["current"]["boxes"][0]["class_name"] == "dog"
    assert client.get("/label/pictures/0").json()["version"] == saved.json()["version"]
    state = client.get("/label/state").json()
    assert (state["labelled"], state["pictures"], state["boxes"]) == (1, 3, 1)
    assert state["classes"][0]["name"] == "dog"


def test_a_save_names_its_image(client: TestClient) -> None:
    """A number that a restarted server has given to another image changes nothing."""
    before = client.get("/label/pictures/0").json()
    body = {"name": "other.jpg", "version": before["version"], "boxes": []}
    answer = client.put("/label/pictures/0", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "renumbered") and "other.jpg" in answer.json()["error"]
    assert client.get("/label/pictures/0").json() == before
    assert client.put("/label/pictures/0", json=body | {"name": before["name"]}).status_code == 200


def test_a_save_that_cannot_be_written_is_507_and_changes_nothing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> None:
        raise RunError(path, "cannot be written: No space left on device", "make room")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_atomically", full)
        answer = save(client, 0, "none", BOX)
    assert answer.status_code == 507 and "No space left" in answer.json()["error"]
    assert client.get("/label/pictures/0").json()["version"] == "none"
    assert save(client, 0, "none", BOX).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"version": "none", "boxes": [{"class_name": "", "box": [1, 2, 3, 4]}]},
        {"version": "none", "boxes": [{"class_name": "dog", "box": [1, 2, 3]}]},
        {"version": "none", "boxes": [{"class_name": "dog", "box": [1, 2, 1, 4]}]},
        {"version": "none", "boxes": [{"class_name": "dog", "box": [1, 2, 30, 40], "ref": 5}]},
        {"version": "none", "boxes": [{"class_name": "d" * 300, "box": [1, 2, 30, 40]}]},
        {"version": "none"},
        {"boxes": []},
        [],
    ],
)
def test_invalid_labels_are_rejected_in_one_line(client: TestClient, body: Any) -> None:
    answer = client.put("/label/pictures/0", json=body)
    assert answer.status_code == 422 and "; " in answer.json()["error"]
    assert client.get("/label/pictures/0").json()["version"] == "none"


def test_only_declared_json_changes_anything(client: TestClient) -> None:
    body = json.dumps({"version": "none", "boxes": []})
    answer = client.put("/label/pictures/0", content=body, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert (
        client.put("/label/pictures/0", content=b"{", headers={"Content-Type": "application/json"}).status_code == 422
    )
    assert client.get("/label/pictures/99").status_code == 404
    assert client.get("/label/pictures/0").json()["version"] == "none"


def test_images_are_sent_as_they_are_or_as_jpeg(client: TestClient, tmp_path: Path) -> None:
    answer = client.get("/label/pictures/0/image")
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == (tmp_path / "photos" / "p0.png").read_bytes()
    write_image(tmp_path / "photos" / "scan.tif", np.full((20, 30, 3), 90, np.uint8))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    assert client.get("/label/state?rescan=true").json()["pictures"] == 5
    names = {row["name"]: row["id"] for row in client.get("/label/list").json()["rows"]}
    assert client.get(f"/label/pictures/{names['scan.tif']}/image").headers["content-type"] == "image/jpeg"
    broken = client.get(f"/label/pictures/{names['broken.jpg']}")
    assert broken.status_code == 415 and "broken.jpg" in broken.json()["error"]


def test_two_tabs_are_given_different_images(client: TestClient) -> None:
    given = [client.get(f"/label/next?client=c{number}").json()["id"] for number in range(3)]
    assert sorted(given) == [0, 1, 2]
    assert client.get(f"/label/pictures/{given[0]}?client=c1").json()["others"] == 1
    save(client, given[1], "none")
    following = client.get(f"/label/next?client=c1&after={given[1]}&order=name").json()["id"]
    assert following is None or following not in (given[1], given[2])


def test_the_list_is_given_in_parts_and_searched(client: TestClient) -> None:
    part = client.get("/label/list?order=name&offset=1&limit=1").json()
    assert (part["total"], [row["name"] for row in part["rows"]]) == (3, ["p1.png"])
    assert [row["name"] for row in client.get("/label/list?find=P2").json()["rows"]] == ["p2.png"]


def test_suggestions_use_the_names_that_the_user_gave(client: TestClient) -> None:
    rows = client.get("/label/pictures/0/suggestions").json()["suggestions"]
    assert {row["class_name"] for row in rows} == {"red", "green", "blue"}
    client.post("/label/renames", json={"model_class": "red", "name": "brick"})
    client.post("/label/renames", json={"model_class": "blue", "name": ""})
    rows = client.get("/label/pictures/0/suggestions").json()["suggestions"]
    assert {row["class_name"] for row in rows} == {"brick", "green"}
    assert [each["name"] for each in client.get("/label/state").json()["classes"]] == ["brick"]


def test_training_that_is_switched_off_says_how_to_switch_it_on(client: TestClient) -> None:
    answer = client.post("/label/training", json={"action": "start"})
    assert answer.status_code == 404 and "--train" in answer.json()["error"]


def test_the_page_and_the_page_to_try_are_there(client: TestClient) -> None:
    assert "label.js" in client.get("/").text and "page.js" in client.get("/try").text
    for name in ("label.js", "label.css", "label_canvas.js"):
        answer = client.get(f"/static/{name}")
        assert answer.status_code == 200 and "http://" not in answer.text and "https://" not in answer.text


def test_twenty_thousand_images_are_listed_at_once(tmp_path: Path) -> None:
    year = make_voc(tmp_path, 1, 1)
    for number in range(20_000):
        (year / "JPEGImages" / f"{number:06}.jpg").touch()
        if number % 2:
            (year / "Annotations" / f"{number:06}.xml").touch()
    started = time.process_time()
    store = open_store(tmp_path)
    assert len(store.paths) == 20_002 and len(store.labelled) == 10_002
    assert len(store.by_name()) == 20_002
    assert time.process_time() - started < 5.0
    suggester = Suggester(store, Labeller(), "painted.pth")  # type: ignore[arg-type]
    started = time.process_time()
    numbers = suggester.order()
    assert len(numbers) == 10_000 and step(numbers, numbers[5000], 1, set()) == numbers[5001]
    assert suggester.progress == (0, 10_000)
    assert time.process_time() - started < 1.0


# --- orders ----------------------------------------------------------------------------------------------------------


def test_a_score_of_one_half_is_more_uncertain_than_a_high_score() -> None:
    assert uncertainty(np.array([0.5])) == 1.0
    assert uncertainty(np.array([0.99, 0.98])) < 0.1
    assert uncertainty(np.array([0.99] * 10 + [0.5])) > uncertainty(np.array([0.99] * 10))
    assert 0 < uncertainty(np.zeros(0)) < 1


def test_similar_images_are_not_adjacent_in_the_queue() -> None:
    rng = np.random.default_rng(0)
    kinds = [appearance(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]
    looks = np.stack([kinds[0]] * 5 + [kinds[1]] * 5 + [kinds[2]] * 5)
    doubt = np.array([0.9] * 5 + [0.8] * 5 + [0.2] * 5, np.float32)
    order = diverse_order(doubt, looks, np.zeros((0, looks.shape[1]), np.float32))
    assert sorted(order.tolist()) == list(range(15))
    assert sorted(order[:3] // 5) == [0, 1, 2]  # one of each kind first
    known = diverse_order(doubt, looks, kinds[0][None])
    assert known[0] // 5 == 1  # the first kind is labelled already


def test_the_next_image_passes_over_what_is_skipped() -> None:
    assert step([4, 2, 7], None, 1, set()) == 4
    assert step([4, 2, 7], 4, 1, {2}) == 7
    assert step([4, 2, 7], 7, 1, set()) == 4  # from the start again, as long as something is left
    assert step([4, 2, 7], 7, 1, {4, 2}) is None
    assert step([4, 2, 7], 2, -1, set()) == 4
    assert step([4, 2, 7], 4, -1, set()) is None
    assert step([], None, 1, set()) is None


def test_a_queue_file_gives_images_in_its_order(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    store = open_store(folder)
    rows = [
        {"image": str(folder / "p2.png"), "kind": "missing"},
        {"image": "p0.png"},
        {"image": str(folder / "p2.png")},
    ]
    file = tmp_path / "queue.json"
    file.write_text(json.dumps({"findings": [*rows, {"image": "other.png"}]}))
    queue = read_queue(file, store)
    assert [store.name(number) for number in queue.numbers] == ["p2.png", "p0.png"]
    assert len(queue.findings[queue.numbers[0]]) == 2
    file.write_text(json.dumps({"findings": [{"image": "other.png"}]}))
    with pytest.raises(UserError, match="1 image, none in"):
        read_queue(file, store)
    for bad in ("[]", "{}", '{"findings": [1]}', "{"):
        file.write_text(bad)
        with pytest.raises(UserError):
            read_queue(file, store)


# --- training --------------------------------------------------------------------------------------------------------


def labelled_store(tmp_path: Path, count: int) -> Any:
    store = open_store(make_voc(tmp_path, count, 2).parent)
    store.count_all()
    return store


def test_a_snapshot_is_a_data_set_of_what_is_labelled(tmp_path: Path) -> None:
    from data.open import open_dataset

    store = labelled_store(tmp_path / "set", 12)
    train, val = snapshot_labels(store, tmp_path / "snapshot")
    assert train + val == 14 and train >= 7 and val >= 1
    indices = [open_dataset(tmp_path / "snapshot", split, use_cache=False) for split in ("train", "val")]
    assert [len(index) for index in indices] == [train, val]
    assert sum(index.num_boxes for index in indices) == 28 and not [s for i in indices for s in i.skips]


def test_one_image_in_five_is_for_validation_and_never_trained_on(tmp_path: Path) -> None:
    store = labelled_store(tmp_path, 30)
    paths = [path for path in store.paths if path.stem.startswith("a")]
    held = _held_back(paths[:10], [True] * 10)
    assert 1 <= held.sum() <= 2
    trained = {path for path, is_held in zip(paths[:10], held, strict=True) if not is_held}
    later = {path for path, is_held in zip(paths, _held_back(paths, [True] * 30, trained), strict=True) if is_held}
    assert later and not later & trained and len(later) <= 6
    unlucky = [Path(f"{n}.jpg") for n in range(1000) if _hash(f"{n}.jpg") % VAL_SHARE == 0][:10]
    for source, target in zip(paths, unlucky, strict=False):
        (tmp_path / target).write_bytes(source.read_bytes())
    assert _held_back([tmp_path / each for each in unlucky], [True] * 10).sum() == 2


def test_a_training_needs_labels(tmp_path: Path) -> None:
    store = open_store(photos(tmp_path / "photos"))
    trainer = LabelTrainer(store, tmp_path / "x.pth", lambda _: None, 1.0)
    with pytest.raises(UserError, match="0 images are labelled"):
        trainer.start()
    with pytest.raises(UserError, match="label more images"):
        snapshot_labels(store, tmp_path / "snapshot")


def follow(trainer: LabelTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: tuple[float, float]) -> None:
    """One training with scripts in place of train.py and eval.py."""
    import service.labelling.trainer as module

    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "train.py").write_text(
        "import pathlib, sys\n"
        "run = pathlib.Path(sys.argv[sys.argv.index('--run-dir') + 1])\nrun.mkdir()\n"
        f"(run / 'metrics.csv').write_text('epoch,train_box,voc10_mAP50\\n1,2.5,0.1\\n2,1.5,{scores[1]}\\n')\n"
        "(run / 'best.pth').write_bytes(b'weights')\n"
    )
    (scripts / "eval.py").write_text(
        "import json, pathlib, sys\n"
        f"pathlib.Path(sys.argv[sys.argv.index('--json') + 1]).write_text(json.dumps({{'voc10_mAP50': {scores[0]}}}))\n"
    )
    monkeypatch.setattr(module, "ROOT", scripts)
    monkeypatch.setattr(module, "RUNS", tmp_path / "logs")
    trainer._train()


@pytest.mark.parametrize(("before", "after"), [(0.2, 0.6), (0.7, 0.6)])
def test_better_weights_are_loaded_and_worse_are_not(
    before: float, after: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Path] = []
    trainer = LabelTrainer(labelled_store(tmp_path / "set", 12), tmp_path / "old.pth", taken.append, 1.0)
    follow(trainer, tmp_path, monkeypatch, (before, after))
    assert bool(taken) == (after > before)
    assert trainer.state.status == "idle" and f"{after:.3f}" in trainer.state.message
    assert trainer.state.rows[-1]["voc10_mAP50"] == after
    assert trainer.state.history[0]["taken"] == (after > before)
    assert not trainer._is_due()  # not again before much more is labelled


@pytest.mark.parametrize(
    ("after", "is_broken", "given"),
    [(0.6, False, "old.pth"), (0.1, False, "old.pth"), (0.6, True, "old.pth"), (0.6, False, "new.pth")],
)
def test_a_restart_continues_with_the_best_weights(
    after: float, is_broken: bool, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = labelled_store(tmp_path / "set", 12)
    first = LabelTrainer(store, tmp_path / "old.pth", lambda _: None, 1.0)
    follow(first, tmp_path, monkeypatch, (0.2, after))
    other = tmp_path / "logs" / "label-7"
    other.mkdir()
    (other / "result.json").write_text("[]")
    taken: list[Path] = []

    def take(path: Path) -> None:
        if is_broken:
            raise UserError(path, "is not a checkpoint", "use another")
        taken.append(path)

    again = LabelTrainer(store, tmp_path / given, take, 1.0)
    again.restore()
    best = tmp_path / "logs" / "label-1" / "train" / "best.pth"
    assert taken == ([best] if after == 0.6 and not is_broken and given == "old.pth" else [])
    assert again.checkpoint == (best if taken else tmp_path / given)
    if given == "old.pth":
        assert again.state.history == first.state.history and again._trained == first._trained
        assert again._trained and not again._is_due()
    else:
        assert not again.state.history


def test_a_training_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import service.labelling.trainer as module

    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.py").write_text(
        "import sys\nprint('error: memory: not enough; less')\nsys.exit(1)\n"
    )
    monkeypatch.setattr(module, "ROOT", tmp_path / "scripts")
    monkeypatch.setattr(module, "RUNS", tmp_path / "logs")
    trainer = LabelTrainer(labelled_store(tmp_path / "set", 12), tmp_path / "old.pth", lambda _: None, 1.0)
    with pytest.raises(RunError, match="memory: not enough"):
        trainer._train()
