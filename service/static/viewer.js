// A picture with boxes on a canvas, to zoom and move by mouse, touch and keyboard; and the same picture to keep.

const MOST_ZOOM = 40; // screen pixels of one picture pixel
const LABEL_SIZE = 13;

/** Draw boxes and their labels; `toScreen` takes the picture's x, y to the context's. */
export function drawBoxes(context, boxes, { toScreen, lineWidth, fontSize, selected = -1 }) {
  context.font = `600 ${fontSize}px system-ui, sans-serif`;
  context.textBaseline = "top";
  context.lineJoin = "round";
  const pad = fontSize * 0.3;
  const height = fontSize * 1.35;
  const unit = context.getTransform().a;
  const [right, bottom] = [context.canvas.width / unit, context.canvas.height / unit];
  const visible = [];
  boxes.forEach((box, index) => {
    const corners = [...toScreen(box.box_xyxy[0], box.box_xyxy[1]), ...toScreen(box.box_xyxy[2], box.box_xyxy[3])];
    if (corners[2] >= 0 && corners[3] >= 0 && corners[0] <= right && corners[1] <= bottom) {
      visible.push({ box, corners, chosen: index === selected });
    }
  });
  visible.sort((a, b) => b.chosen - a.chosen); // stable: the best come first after the chosen one
  const places = [];
  for (const each of visible) { // the best one chooses the place of its label first
    each.text = `${each.box.class_name} ${each.box.score.toFixed(2)}`;
    each.place = labelPlace(each.corners, context.measureText(each.text).width + 2 * pad, height, lineWidth, right, bottom, places);
    places.push(each.place);
  }
  visible.reverse(); // and is drawn over the others
  for (const { box, corners: [x1, y1, x2, y2], chosen } of visible) {
    context.strokeStyle = box.colour;
    context.lineWidth = lineWidth * (chosen ? 2 : 1);
    if (chosen) {
      context.fillStyle = box.colour + "33";
      context.fillRect(x1, y1, x2 - x1, y2 - y1);
    }
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
  for (const { box, text, place: [left, top, width] } of visible) {
    context.fillStyle = box.colour;
    context.fillRect(left, top, width, height);
    context.fillStyle = box.textColour;
    context.fillText(text, left + pad, top + (height - fontSize) / 2);
  }
}

/** Where a label covers the least of those placed before it, as imaging/draw.py: [left, top, width, height]. */
function labelPlace([x1, y1, , y2], width, height, lineWidth, right, bottom, places) {
  const left = Math.max(0, Math.min(x1 - lineWidth / 2, right - width));
  const tops = [y1 - height, y1, y2, y2 - height].filter((top) => top >= 0 && top + height <= bottom);
  if (!tops.length) tops.push(Math.max(0, Math.min(y1 - height, bottom - height)));
  let best = null;
  let least = Infinity;
  for (const top of tops) {
    let covered = 0;
    for (const [otherLeft, otherTop, otherWidth, otherHeight] of places) {
      const across = Math.min(left + width, otherLeft + otherWidth) - Math.max(left, otherLeft);
      const down = Math.min(top + height, otherTop + otherHeight) - Math.max(top, otherTop);
      if (across > 0 && down > 0) covered += across * down;
    }
    if (covered < least) [best, least] = [top, covered];
  }
  return [left, best, width, height];
}

/** The picture with its boxes in full size, as a Blob. */
export async function renderResult(image, boxes, type) {
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const side = (image.width + image.height) / 2;
  drawBoxes(context, boxes, {
    toScreen: (x, y) => [x, y],
    lineWidth: Math.max(1.5, side * 0.003),
    fontSize: Math.max(10, side * 0.024),
  });
  return new Promise((resolve) => canvas.toBlob(resolve, type, 0.93));
}

export class Viewer {
  /** @param onSelect is told the index of the box that was clicked, or -1. */
  constructor(canvas, onSelect) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.onSelect = onSelect;
    this.image = null;
    this.boxes = [];
    this.selected = -1;
    this.zoom = 1; // times the size that fits
    this.centre = [0, 0]; // the picture's point in the middle of the canvas
    this.pointers = new Map();
    this.waiting = false;
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.onDown(event));
    canvas.addEventListener("pointermove", (event) => this.onMove(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.onUp(event));
    canvas.addEventListener("dblclick", (event) => this.zoomBy(2, this.place(event)));
    canvas.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Show another picture; `keepView` leaves zoom and place as they are (the next frame of a webcam). */
  setImage(image, keepView = false) {
    const same = keepView && this.image && this.image.width === image.width && this.image.height === image.height;
    this.image = image;
    if (!same) this.fit();
    this.draw();
  }

  setBoxes(boxes, selected = -1) {
    this.boxes = boxes;
    this.selected = selected;
    this.draw();
  }

  get size() {
    return [this.canvas.clientWidth, this.canvas.clientHeight];
  }

  /** Screen pixels of one picture pixel. */
  get scale() {
    const [width, height] = this.size;
    return Math.min(width / this.image.width, height / this.image.height) * this.zoom;
  }

  toScreen(x, y) {
    const [width, height] = this.size;
    return [(x - this.centre[0]) * this.scale + width / 2, (y - this.centre[1]) * this.scale + height / 2];
  }

  toImage(x, y) {
    const [width, height] = this.size;
    return [(x - width / 2) / this.scale + this.centre[0], (y - height / 2) / this.scale + this.centre[1]];
  }

  fit() {
    if (!this.image) return;
    this.zoom = 1;
    this.centre = [this.image.width / 2, this.image.height / 2];
    this.moved();
  }

  /** Zoom by a factor so that the picture's point under `place` (screen pixels) stays there. */
  zoomBy(factor, place = this.size.map((side) => side / 2)) {
    if (!this.image) return;
    const before = this.toImage(...place);
    const most = Math.max(1, (MOST_ZOOM * this.zoom) / this.scale);
    this.zoom = Math.min(Math.max(this.zoom * factor, 1), most);
    const after = this.toImage(...place);
    this.centre = [this.centre[0] + before[0] - after[0], this.centre[1] + before[1] - after[1]];
    this.moved();
  }

  panBy(dx, dy) {
    if (!this.image) return;
    this.centre = [this.centre[0] - dx / this.scale, this.centre[1] - dy / this.scale];
    this.moved();
  }

  /** Bring a box to the middle, so that it fills a good part of the view. */
  showBox([x1, y1, x2, y2]) {
    const [width, height] = this.size;
    const fitScale = this.scale / this.zoom;
    const wanted = 0.5 * Math.min(width / Math.max(x2 - x1, 1), height / Math.max(y2 - y1, 1));
    this.zoom = Math.min(Math.max(wanted / fitScale, 1), Math.max(1, MOST_ZOOM / fitScale));
    this.centre = [(x1 + x2) / 2, (y1 + y2) / 2];
    this.moved();
  }

  moved() {
    const [width, height] = this.size;
    const half = [width / 2 / this.scale, height / 2 / this.scale];
    [this.image.width, this.image.height].forEach((side, axis) => {
      const low = Math.min(half[axis], side / 2);
      this.centre[axis] = Math.min(Math.max(this.centre[axis], low), side - low);
    });
    // a finger scrolls the page until there is something to move here
    this.canvas.style.touchAction = this.zoom > 1 ? "none" : "pan-y";
    this.canvas.style.cursor = this.zoom > 1 ? "grab" : "default";
    this.draw();
  }

  place(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  onWheel(event) {
    if (!this.image) return;
    event.preventDefault();
    this.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), this.place(event));
  }

  onDown(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { at: this.place(event), from: this.place(event) });
  }

  onMove(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer || !this.image) return;
    const at = this.place(event);
    const others = [...this.pointers.entries()].filter(([id]) => id !== event.pointerId).map(([, other]) => other.at);
    if (others.length === 1) {
      const [other] = others;
      const before = Math.hypot(pointer.at[0] - other[0], pointer.at[1] - other[1]);
      const now = Math.hypot(at[0] - other[0], at[1] - other[1]);
      this.zoomBy(now / Math.max(before, 1), [(at[0] + other[0]) / 2, (at[1] + other[1]) / 2]);
      this.panBy((at[0] - pointer.at[0]) / 2, (at[1] - pointer.at[1]) / 2);
    } else if (this.zoom > 1) {
      this.panBy(at[0] - pointer.at[0], at[1] - pointer.at[1]);
    }
    pointer.at = at;
  }

  onUp(event) {
    const pointer = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (!pointer || !this.image || event.type === "pointercancel") return;
    const [x, y] = this.place(event);
    if (Math.hypot(x - pointer.from[0], y - pointer.from[1]) < 5) this.onSelect(this.boxAt(x, y));
  }

  /** The smallest box at a place of the screen, or -1. */
  boxAt(x, y) {
    const [px, py] = this.toImage(x, y);
    let best = -1;
    let least = Infinity;
    this.boxes.forEach(({ box_xyxy: [x1, y1, x2, y2] }, index) => {
      const area = (x2 - x1) * (y2 - y1);
      if (px >= x1 && px <= x2 && py >= y1 && py <= y2 && area < least) [best, least] = [index, area];
    });
    return best;
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 40;
    const actions = {
      "+": () => this.zoomBy(1.25),
      "=": () => this.zoomBy(1.25),
      "-": () => this.zoomBy(0.8),
      0: () => this.fit(),
      ArrowLeft: () => this.panBy(step, 0),
      ArrowRight: () => this.panBy(-step, 0),
      ArrowUp: () => this.panBy(0, step),
      ArrowDown: () => this.panBy(0, -step),
    };
    if (!actions[event.key] || !this.image) return;
    event.preventDefault();
    actions[event.key]();
  }

  /** Draw with the screen's next frame, once however often it is asked for. */
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.drawNow();
    });
  }

  drawNow() {
    const { canvas, context } = this;
    const [width, height] = this.size;
    if (!width || !height) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    if (!this.image) return;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.imageSmoothingEnabled = this.scale < 4;
    context.imageSmoothingQuality = "high";
    const [left, top] = this.toScreen(0, 0);
    context.drawImage(this.image, left, top, this.image.width * this.scale, this.image.height * this.scale);
    this.drawOverlay();
  }

  /** Draw what lies over the picture. */
  drawOverlay() {
    drawBoxes(this.context, this.boxes, {
      toScreen: (x, y) => this.toScreen(x, y),
      lineWidth: 2,
      fontSize: LABEL_SIZE,
      selected: this.selected,
    });
  }
}
