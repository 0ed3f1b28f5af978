// The image to label: boxes are drawn, moved and resized by mouse, pen, touch or keyboard.

import { Viewer } from "./viewer.js";

const HANDLE = { mouse: 8, pen: 14, touch: 24 }; // screen pixels around an edge or corner that grab it
const STARTS = 4; // screen pixels of movement that turn a click into a drag
const LEAST = 3; // minimum side of a new box, screen pixels
const LABEL = 13;
const SUGGESTED = [7, 5]; // dashes

/** A box with ordered corners, clipped to the image and rounded: to pixels, or quarter pixels at high zoom. */
export function tidy([x1, y1, x2, y2], width, height, scale) {
  const round = scale < 4 ? Math.round : (value) => Math.round(value * 4) / 4;
  const clip = (value, most) => Math.min(Math.max(round(value), 0), most);
  const [left, right] = [Math.min(x1, x2), Math.max(x1, x2)];
  const [top, bottom] = [Math.min(y1, y2), Math.max(y1, y2)];
  return [clip(left, width), clip(top, height), clip(right, width), clip(bottom, height)];
}

export class Editor extends Viewer {
  /**
   * @param canvas where to draw.
   * @param calls `changed(uid, box)` after a move or resize; `drawn(box)` for a new box; `select(item)`; in image pixels.
   */
  constructor(canvas, calls) {
    super(canvas, () => {});
    this.calls = calls;
    this.items = []; // {uid, kind: "object" | "suggestion" | "finding", box, text, colour, textColour}
    this.selectedUid = null;
    this.drag = null;
    this.pans = false;
    this.spaceHeld = false;
    this.hover = null;
    canvas.addEventListener("pointerleave", () => {
      this.hover = null;
      this.draw();
    });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  setItems(items, selectedUid) {
    this.items = items;
    this.selectedUid = selectedUid;
    this.draw();
  }

  get selectedItem() {
    return this.items.find(({ uid }) => uid === this.selectedUid) || null;
  }

  moved() {
    super.moved();
    this.canvas.style.touchAction = "none"; // one finger draws
    this.setCursor();
  }

  setCursor(hold = null) {
    const names = { "-1-1": "nwse-resize", "11": "nwse-resize", "1-1": "nesw-resize", "-11": "nesw-resize" };
    let cursor = this.pans || this.spaceHeld ? "grab" : "crosshair";
    if (hold === "move") cursor = "move";
    else if (hold) cursor = names[`${hold[0]}${hold[1]}`] || (hold[0] ? "ew-resize" : "ns-resize");
    this.canvas.style.cursor = cursor;
  }

  /** Which part of the selected object is at a screen place: [-1|0|1, -1|0|1] an edge or corner, "move", or null. */
  holdAt([x, y], radius) {
    const item = this.selectedItem;
    if (!item || item.kind !== "object") return null;
    const [x1, y1] = this.toScreen(item.box[0], item.box[1]);
    const [x2, y2] = this.toScreen(item.box[2], item.box[3]);
    if (x < x1 - radius || x > x2 + radius || y < y1 - radius || y > y2 + radius) return null;
    const reachX = Math.min(radius, Math.max((x2 - x1) / 3, 3));
    const reachY = Math.min(radius, Math.max((y2 - y1) / 3, 3));
    const across = x < x1 + reachX ? -1 : x > x2 - reachX ? 1 : 0;
    const down = y < y1 + reachY ? -1 : y > y2 - reachY ? 1 : 0;
    return across || down ? [across, down] : "move";
  }

  onDown(event) {
    if (!this.image) return;
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    const at = this.place(event);
    this.pointers.set(event.pointerId, { at, from: at });
    if (this.pointers.size > 1) {
      this.cancelDrag(); // two fingers pan and zoom
      return;
    }
    const radius = HANDLE[event.pointerType] || HANDLE.mouse;
    const pans = event.button === 1 || this.spaceHeld || this.pans;
    const hold = pans || event.shiftKey || event.button === 2 ? null : this.holdAt(at, radius);
    const item = hold ? this.selectedItem : null;
    const kind = pans ? "pan" : hold === "move" ? "move" : hold ? "resize" : "draw";
    this.drag = { kind, hold, uid: item?.uid, before: item?.box, from: this.toImage(...at), started: false };
  }

  onMove(event) {
    if (!this.image) return;
    this.hover = this.place(event);
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) {
      this.setCursor(this.holdAt(this.hover, HANDLE[event.pointerType] || HANDLE.mouse));
      this.draw();
      return;
    }
    if (this.pointers.size > 1 || !this.drag || this.drag.kind === "pan") {
      this.moveView(event, pointer);
      return;
    }
    const at = this.place(event);
    const far = Math.hypot(at[0] - pointer.from[0], at[1] - pointer.from[1]);
    if (!this.drag.started && far < STARTS) return;
    this.drag.started = true;
    pointer.at = at;
    this.drag.now = this.toImage(...at);
    this.draw();
  }

  /** One pointer pans the view, two also zoom it. */
  moveView(event, pointer) {
    const at = this.place(event);
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1].at;
    if (other) {
      const before = Math.hypot(pointer.at[0] - other[0], pointer.at[1] - other[1]);
      const now = Math.hypot(at[0] - other[0], at[1] - other[1]);
      this.zoomBy(now / Math.max(before, 1), [(at[0] + other[0]) / 2, (at[1] + other[1]) / 2]);
      this.panBy((at[0] - pointer.at[0]) / 2, (at[1] - pointer.at[1]) / 2);
    } else {
      if (this.drag && Math.hypot(at[0] - pointer.from[0], at[1] - pointer.from[1]) >= STARTS) this.drag.started = true;
      this.panBy(at[0] - pointer.at[0], at[1] - pointer.at[1]);
    }
    pointer.at = at;
  }

  onUp(event) {
    const pointer = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    const drag = this.drag;
    if (!pointer || !drag || !this.image) return;
    this.drag = null;
    if (event.type === "pointercancel") {
      this.draw();
    } else if (!drag.started) {
      this.calls.select(this.itemAt(...this.place(event)));
    } else if (drag.kind === "move" || drag.kind === "resize") {
      this.calls.changed(drag.uid, this.dragged(drag));
    } else if (drag.kind === "draw") {
      const box = this.dragged(drag);
      const sides = [(box[2] - box[0]) * this.scale, (box[3] - box[1]) * this.scale];
      if (Math.min(...sides) >= LEAST) this.calls.drawn(box);
    }
    this.draw();
  }

  cancelDrag() {
    this.drag = null;
    this.draw();
  }

  /** The box that results from a drag. */
  dragged({ kind, hold, before, from, now }) {
    const { width, height } = this.image;
    const [dx, dy] = [now[0] - from[0], now[1] - from[1]];
    if (kind === "draw") return tidy([...from, ...now], width, height, this.scale);
    if (kind === "move") return this.shifted(before, dx, dy);
    const [x1, y1, x2, y2] = before;
    const [across, down] = hold;
    const box = [x1 + (across < 0 ? dx : 0), y1 + (down < 0 ? dy : 0), x2 + (across > 0 ? dx : 0), y2 + (down > 0 ? dy : 0)];
    const result = tidy(box, width, height, this.scale);
    if (!across) [result[0], result[2]] = [x1, x2]; // untouched edges keep their exact value
    if (!down) [result[1], result[3]] = [y1, y2];
    return result[2] - result[0] < 1 || result[3] - result[1] < 1 ? before : result;
  }

  /** Move a box within the image. */
  shifted([x1, y1, x2, y2], dx, dy) {
    const round = this.scale < 4 ? Math.round : (value) => Math.round(value * 4) / 4;
    const right = Math.min(Math.max(round(dx), -x1), this.image.width - x2);
    const down = Math.min(Math.max(round(dy), -y1), this.image.height - y2);
    return [x1 + right, y1 + down, x2 + right, y2 + down];
  }

  /** The smallest item at a screen position; objects take precedence over suggestions of the same size. */
  itemAt(x, y) {
    const [px, py] = this.toImage(x, y);
    let best = null;
    let least = Infinity;
    for (const item of this.items) {
      const [x1, y1, x2, y2] = item.box;
      const area = (x2 - x1) * (y2 - y1) * (item.kind === "object" ? 1 : 1.001);
      if (px >= x1 && px <= x2 && py >= y1 && py <= y2 && area < least) [best, least] = [item, area];
    }
    return best;
  }

  onKey() {} // label.js handles the keys of the whole document

  drawOverlay() {
    const dragged = this.drag?.started && this.drag.uid ? this.drag.uid : null;
    for (const item of [...this.items].sort((a, b) => rank(a, this.selectedUid) - rank(b, this.selectedUid))) {
      const box = item.uid === dragged ? this.dragged(this.drag) : item.box;
      this.drawItem(item, box, item.uid === this.selectedUid);
    }
    if (this.drag?.started && this.drag.kind === "draw") {
      this.stroke(this.dragged(this.drag), this.drawColour || "#ffffff", 2);
    } else if (this.hover && !this.pointers.size && !this.pans && !this.spaceHeld) {
      this.drawCross();
    }
  }

  drawCross() {
    const { context } = this;
    const [width, height] = this.size;
    const [x, y] = this.hover.map((value) => Math.round(value) + 0.5);
    context.strokeStyle = "rgb(255 255 255 / 55%)";
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(0, y);
    context.lineTo(width, y);
    context.moveTo(x, 0);
    context.lineTo(x, height);
    context.stroke();
  }

  stroke(box, colour, lineWidth, dashes = []) {
    const { context } = this;
    const [x1, y1] = this.toScreen(box[0], box[1]);
    const [x2, y2] = this.toScreen(box[2], box[3]);
    context.setLineDash([]);
    context.lineWidth = lineWidth + 2;
    context.strokeStyle = "rgb(0 0 0 / 45%)"; // visible on any background
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    context.setLineDash(dashes);
    context.lineWidth = lineWidth;
    context.strokeStyle = colour;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    context.setLineDash([]);
    return [x1, y1, x2, y2];
  }

  drawItem(item, box, isSelected) {
    const { context } = this;
    const [x1, y1, x2, y2] = this.stroke(box, item.colour, isSelected ? 3 : 2, item.kind === "object" ? [] : SUGGESTED);
    if (isSelected) {
      context.fillStyle = item.colour + "2e";
      context.fillRect(x1, y1, x2 - x1, y2 - y1);
      if (item.kind === "object") this.drawHandles(x1, y1, x2, y2, item.colour);
    }
    context.font = `600 ${LABEL}px system-ui, sans-serif`;
    context.textBaseline = "top";
    const width = context.measureText(item.text).width + 8;
    const [right, bottom] = this.size;
    const x = Math.max(0, Math.min(x1 - 1, right - width));
    const y = y1 >= LABEL + 6 ? y1 - LABEL - 6 : Math.min(y1, bottom - LABEL - 6);
    context.globalAlpha = item.kind === "object" ? 1 : 0.8;
    context.fillStyle = item.colour;
    context.fillRect(x, y, width, LABEL + 6);
    context.fillStyle = item.textColour;
    context.fillText(item.text, x + 4, y + 3);
    context.globalAlpha = 1;
  }

  drawHandles(x1, y1, x2, y2, colour) {
    const { context } = this;
    const side = 8;
    context.lineWidth = 1.5;
    context.strokeStyle = colour;
    context.fillStyle = "#ffffff";
    for (const x of [x1, (x1 + x2) / 2, x2]) {
      for (const y of [y1, (y1 + y2) / 2, y2]) {
        if (x === (x1 + x2) / 2 && y === (y1 + y2) / 2) continue;
        context.fillRect(x - side / 2, y - side / 2, side, side);
        context.strokeRect(x - side / 2, y - side / 2, side, side);
      }
    }
  }
}

/** Suggestions are drawn first, the selected item last. */
function rank({ kind, uid }, selectedUid) {
  return uid === selectedUid ? 2 : kind === "object" ? 1 : 0;
}
