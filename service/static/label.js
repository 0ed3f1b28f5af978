// The labelling page: edit the boxes of one image at a time. Every change is saved at once.

import { Editor } from "./label_canvas.js";

const SAVE_AFTER = 250; // milliseconds after the last change
const RETRY_AFTER = [2, 4, 8, 15]; // seconds until a failed save is retried; the last value repeats
const POLL = 3000; // milliseconds between requests for the server's state
const PRESENT = 15000; // milliseconds between reports of the open image, for warnings in other tabs
const ROW = 32; // height of a row of the image list, pixels
const LIST_PART = 200; // rows per request, the server's maximum
const SAME = 0.5; // a suggestion is hidden from this IoU with an object of its class
const SAME_PLACE = 0.8; // and from this IoU with an object of any class
const TWIN = 0.9; // minimum IoU to match an object in two versions of the labels

const $ = (id) => document.getElementById(id);
const client = tabName();
const state = {
  info: null,
  picture: null, // the server's response for the current image, without its boxes
  boxes: [], // {uid, class_name, box, difficult}
  refs: new Map(), // uid -> position of the object in the file
  suggestions: [],
  suggestionsOf: -1, // number of the model that made the suggestions
  selected: null, // uid
  current: null, // class of the next box
  version: "",
  dirty: false,
  saving: null,
  failures: 0,
  timer: 0,
  visited: [],
  histories: new Map(), // image -> {undo: [boxes], redo: [boxes]}
  turn: 0,
  leaves: false, // the user was warned about unsaved boxes and may leave the image
  list: { rows: new Map(), total: 0, asked: new Set(), turn: 0 },
};

/** An identifier of this tab that survives a reload, so that a reloaded tab is not reported as another tab. */
function tabName() {
  const fresh = crypto.getRandomValues(new Uint32Array(2)).join("-");
  try {
    if (!sessionStorage.getItem("tab")) sessionStorage.setItem("tab", fresh);
    return sessionStorage.getItem("tab");
  } catch {
    return fresh;
  }
}

let uids = 0;
const newUid = () => `u${++uids}`;
const editor = new Editor($("view"), {
  select: (item) => select(item ? item.uid : null),
  changed: (uid, box) => change(state.boxes.map((each) => (each.uid === uid ? { ...each, box } : each))),
  drawn: (box) => addBox(box),
});

// --- requests to the server -------------------------------------------------------------------------------------------

class ServerError extends Error {
  constructor(status, body) {
    super(body.error || `the server responded with status ${status}`);
    this.status = status;
    this.body = body;
  }
}

async function ask(path, options = {}) {
  const settings = options.body === undefined ? {} : { body: JSON.stringify(options.body) };
  if (settings.body) settings.headers = { "Content-Type": "application/json" };
  let answer;
  try {
    answer = await fetch(`label/${path}`, { method: options.method || "GET", keepalive: options.keepalive, ...settings });
  } catch {
    throw new ServerError(0, { error: "the server cannot be reached" });
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ServerError(answer.status, body);
  return body;
}

// --- the current image -----------------------------------------------------------------------------------------------

async function open(id, { remember = true } = {}) {
  const turn = ++state.turn;
  if (remember && state.picture && state.picture.id !== id) state.visited.push(state.picture.id);
  complain("");
  let picture;
  let image = null;
  try {
    picture = await ask(`pictures/${id}?client=${client}`);
    image = await loadImage(id);
  } catch (error) {
    if (turn !== state.turn) return;
    picture ||= { id, name: `image ${id}`, width: 1, height: 1, boxes: [], version: "", problem: error.message, findings: [] };
    picture.problem ||= error.message;
  }
  if (turn !== state.turn) return;
  state.picture = picture;
  state.suggestions = [];
  state.suggestionsOf = -1;
  state.selected = null;
  state.leaves = false;
  takeLabels(picture);
  history.replaceState(null, "", `#${id}`);
  editor.setImage(image);
  $("empty").hidden = Boolean(image);
  $("empty-text").textContent = image ? "" : picture.problem;
  if (picture.problem) complain(picture.problem);
  else if (picture.others) complain(alsoOpenIn(picture.others));
  say(picture.labelled ? "Labelled." : "Not labelled yet.");
  restoreDraft();
  update();
  drawList();
  loadSuggestions();
}

const alsoOpenIn = (tabs) => `This image is also open in ${tabs === 1 ? "another tab" : `${tabs} other tabs`}.`;

async function loadImage(id) {
  const answer = await fetch(`label/pictures/${id}/image`).catch(() => null);
  if (!answer) throw new ServerError(0, { error: "the server cannot be reached" });
  if (!answer.ok) throw new ServerError(answer.status, await answer.json().catch(() => ({})));
  return createImageBitmap(await answer.blob());
}

/** Show the labels that the server returned. */
function takeLabels({ version, boxes, labelled, hidden }) {
  state.version = version;
  state.refs = new Map();
  state.boxes = boxes.map(({ ref, ...box }) => {
    const uid = newUid();
    state.refs.set(uid, ref);
    return { uid, ...box };
  });
  Object.assign(state.picture, { labelled, hidden });
  state.dirty = false;
  state.failures = 0;
}

async function loadSuggestions() {
  const { id } = state.picture;
  try {
    const found = await ask(`pictures/${id}/suggestions`);
    if (!state.picture || state.picture.id !== id) return;
    state.suggestions = found.suggestions.map((each) => ({ uid: newUid(), ...each }));
    state.suggestionsOf = found.model;
  } catch {
    state.suggestions = []; // labelling works without them
  }
  update();
}

const area = ([x1, y1, x2, y2]) => Math.max(x2 - x1, 0) * Math.max(y2 - y1, 0);

function iou(a, b) {
  const both = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  return both / Math.max(area(a) + area(b) - both, 1e-9);
}

/** Suggestions above the threshold that do not cover a labelled object. */
function shownSuggestions() {
  const least = Number($("threshold").value);
  return state.suggestions.filter(
    ({ score, box, class_name: name }) =>
      score >= least && !state.boxes.some((each) => iou(each.box, box) >= (each.class_name === name ? SAME : SAME_PLACE)),
  );
}

// --- changes, undo, save ---------------------------------------------------------------------------------------------

const copy = (boxes) => boxes.map((each) => ({ ...each, box: [...each.box] }));

function historyOf(id) {
  if (!state.histories.has(id)) state.histories.set(id, { undo: [], redo: [] });
  return state.histories.get(id);
}

/** Set the labels to `boxes`, with undo, and save them. */
function change(boxes, selected = state.selected) {
  if (!state.picture || state.picture.problem) return;
  const past = historyOf(state.picture.id);
  past.undo.push(copy(state.boxes));
  past.redo = [];
  put(boxes, selected);
}

function put(boxes, selected = state.selected) {
  state.boxes = boxes;
  state.selected = selected;
  state.dirty = true;
  state.leaves = false;
  keepDraft();
  scheduleSave(SAVE_AFTER);
  say("Saving…");
  update();
}

function undo(back = true) {
  if (!state.picture) return;
  const past = historyOf(state.picture.id);
  const [from, to] = back ? [past.undo, past.redo] : [past.redo, past.undo];
  if (!from.length) return;
  to.push(copy(state.boxes));
  const boxes = from.pop();
  put(boxes, boxes.some(({ uid }) => uid === state.selected) ? state.selected : null);
}

function scheduleSave(delay) {
  clearTimeout(state.timer);
  state.timer = setTimeout(() => save(), delay);
}

/** Save pending changes; resolves to whether everything is saved. */
async function save() {
  clearTimeout(state.timer);
  while (state.saving) await state.saving;
  if (!state.dirty || !state.picture || $("conflict").open) return !state.dirty;
  state.saving = saveOnce();
  const saved = await state.saving;
  state.saving = null;
  return saved;
}

async function saveOnce() {
  const { id, name } = state.picture;
  const sent = copy(state.boxes);
  state.dirty = false;
  try {
    const stored = await ask(`pictures/${id}`, {
      method: "PUT",
      body: { name, version: state.version, boxes: sent.map(({ uid, ...box }) => ({ ...box, ref: state.refs.get(uid) ?? null })) },
    });
    if (state.picture.id !== id) return true;
    takeSaved(sent, stored);
    state.failures = 0;
    if (!state.dirty) {
      dropDraft(name);
      say("Saved.");
    }
    markLabelled(id);
    if (stored.classes.length !== state.info.classes.length) await refresh();
    update();
    return !state.dirty;
  } catch (error) {
    state.dirty = true;
    if (error.body.code === "renumbered") {
      state.dirty = false; // the draft is found again by the name of the image
      location.hash = "";
      location.reload();
    } else if (error.status === 409) {
      askAboutConflict(error.body.current);
    } else {
      const wait = RETRY_AFTER[Math.min(state.failures++, RETRY_AFTER.length - 1)];
      say(`Not saved: ${error.message}. Your boxes are kept in this browser; next attempt in ${wait} s.`, true);
      if (error.status !== 422) scheduleSave(wait * 1000);
    }
    return false;
  }
}

/** The server returns the objects of the file: kept objects in the file's order, then the new ones. */
function takeSaved(sent, stored) {
  const known = sent.filter(({ uid }) => state.refs.get(uid) !== undefined);
  known.sort((a, b) => state.refs.get(a.uid) - state.refs.get(b.uid));
  const fresh = sent.filter(({ uid }) => state.refs.get(uid) === undefined);
  state.version = stored.version;
  state.refs = new Map();
  const exact = new Map();
  [...known, ...fresh].forEach(({ uid, box }, place) => {
    state.refs.set(uid, stored.boxes[place].ref);
    exact.set(uid, [box.join(), stored.boxes[place].box]);
  });
  state.boxes = state.boxes.map((each) => {
    const [before, now] = exact.get(each.uid) || [];
    return before === each.box.join() ? { ...each, box: now } : each; // rounded by the file format
  });
  Object.assign(state.picture, { labelled: true, hidden: stored.hidden });
}

// A draft holds unsaved boxes: it survives a killed server, a full disk and a closed tab.

// Its key has the image's name: numbers are given anew when the server starts.
const draftKey = (name) => `label ${state.info.key} ${name}`;

function keepDraft() {
  const boxes = state.boxes.map((each) => ({ ...each, ref: state.refs.get(each.uid) ?? null }));
  const draft = { version: state.version, boxes };
  try {
    localStorage.setItem(draftKey(state.picture.name), JSON.stringify(draft));
  } catch {
    // storage is disabled or full
  }
}

function dropDraft(name) {
  try {
    localStorage.removeItem(draftKey(name));
  } catch {
    // storage is disabled
  }
}

function readDraft(name) {
  try {
    return JSON.parse(localStorage.getItem(draftKey(name)));
  } catch {
    return null;
  }
}

function restoreDraft() {
  const draft = readDraft(state.picture.name);
  if (!draft || state.picture.problem) return;
  const theirs = { version: state.version, boxes: state.boxes.map((each) => ({ ...each, ref: state.refs.get(each.uid) })), labelled: state.picture.labelled, hidden: state.picture.hidden };
  const mine = draft.boxes.map(({ ref, ...box }) => ({ ref, ...box, uid: newUid() }));
  if (draft.version === state.version) {
    state.refs = new Map(mine.filter(({ ref }) => ref !== null).map(({ uid, ref }) => [uid, ref]));
    change(mine.map(({ ref, ...box }) => box), null);
    say("Unsaved boxes were found in this browser; saving them…");
    return;
  }
  state.boxes = mine.map(({ ref, ...box }) => box);
  state.refs = new Map();
  state.dirty = true;
  askAboutConflict(theirs);
}

/** The number of an image with a draft in this browser, or null. */
async function findDraft() {
  const start = draftKey("");
  try {
    for (const name of Object.keys(localStorage).filter((key) => key.startsWith(start)).map((key) => key.slice(start.length))) {
      const found = await ask(`list?order=name&find=${encodeURIComponent(name)}`);
      const row = found.rows.find((each) => each.name === name);
      if (row) return row.id;
    }
  } catch {
    // storage is disabled
  }
  return null;
}

// Conflicts: the labels of one image were changed in two places.

let theirs = null;

function askAboutConflict(current) {
  theirs = current;
  const count = (boxes) => `${boxes.length} ${boxes.length === 1 ? "object" : "objects"}`;
  $("conflict-text").textContent =
    `While you were editing, another tab, person or program changed the labels of ${state.picture.name}. ` +
    `Yours have ${count(state.boxes)}, theirs ${count(current.boxes)}.`;
  say("Not saved: the labels were changed elsewhere.", true);
  if (!$("conflict").open) $("conflict").showModal();
}

function settle(choice) {
  const mine = copy(state.boxes);
  $("conflict").close();
  takeLabels(theirs);
  if (choice === "theirs") {
    historyOf(state.picture.id).undo.push(mine); // undo restores them
    dropDraft(state.picture.name);
    say("The other version is shown. Undo restores yours.");
    update();
    return;
  }
  const twin = (box) => state.boxes.find((each) => each.class_name === box.class_name && iou(each.box, box.box) >= TWIN);
  // an object in both versions keeps its position in the file and its other data
  const kept = mine.map((box) => ({ ...box, uid: twin(box)?.uid || newUid() }));
  const unique = kept.filter(({ uid }, place) => kept.findIndex((each) => each.uid === uid) === place);
  const own = new Set(unique.map(({ uid }) => uid));
  const rest = choice === "both" ? state.boxes.filter(({ uid }) => !own.has(uid)) : [];
  change([...rest, ...unique], null);
}

// --- editing ---------------------------------------------------------------------------------------------------------

function classInfo(name) {
  const found = state.info.classes.find((each) => each.name === name);
  return found || { name, colour: "#b0b0b0" };
}

async function addBox(box, name = state.current) {
  if (name === null) name = await pickClass("What is it?");
  if (!name) return;
  state.current = name;
  const uid = newUid();
  change([...state.boxes, { uid, class_name: name, box, difficult: false }], uid);
}

function newBoxByKey() {
  if (!editor.image) return;
  const { width, height } = editor.image;
  const [centreX, centreY] = editor.centre;
  const half = [editor.size[0] / editor.scale / 8, editor.size[1] / editor.scale / 8];
  const clip = (value, most) => Math.round(Math.min(Math.max(value, 0), most));
  addBox([clip(centreX - half[0], width), clip(centreY - half[1], height), clip(centreX + half[0], width), clip(centreY + half[1], height)]);
}

const selectedBox = () => state.boxes.find(({ uid }) => uid === state.selected) || null;
const selectedSuggestion = () => shownSuggestions().find(({ uid }) => uid === state.selected) || null;

function deleteSelected() {
  const box = selectedBox();
  const suggestion = selectedSuggestion();
  if (box) change(state.boxes.filter((each) => each !== box), null);
  else if (suggestion) {
    state.suggestions = state.suggestions.filter((each) => each !== suggestion);
    select(null);
  }
}

async function setClass(name) {
  const box = selectedBox();
  const suggestion = selectedSuggestion();
  if (suggestion) return accept([{ ...suggestion, class_name: name }]);
  state.current = name;
  if (box && box.class_name !== name) {
    change(state.boxes.map((each) => (each === box ? { ...each, class_name: name } : each)));
  }
  update();
}

async function askClass() {
  const name = await pickClass(selectedBox() || selectedSuggestion() ? "Class of the selected box" : "Class of new boxes");
  if (name) await setClass(name);
}

function moveSelected(dx, dy, resizes) {
  const box = selectedBox();
  if (!box) return editor.panBy(-40 * Math.sign(dx), -40 * Math.sign(dy));
  let [x1, y1, x2, y2] = box.box;
  if (resizes) {
    x2 = Math.min(Math.max(x2 + dx, x1 + 1), editor.image.width);
    y2 = Math.min(Math.max(y2 + dy, y1 + 1), editor.image.height);
  } else {
    [x1, y1, x2, y2] = editor.shifted(box.box, dx, dy);
  }
  change(state.boxes.map((each) => (each === box ? { ...each, box: [x1, y1, x2, y2] } : each)));
}

/** Convert suggestions to labels. For a class that the data does not have, the user is asked once for its name. */
async function accept(suggestions) {
  const taken = [];
  for (const each of suggestions) {
    let name = each.class_name;
    if (!state.info.classes.some((known) => known.name === name)) {
      name = await pickClass(`Class name for “${each.model_class}” in this data set (empty: do not suggest it)`, name, true);
      if (name === null) return;
      try {
        await ask("renames", { method: "POST", body: { model_class: each.model_class, name } });
        await refresh();
      } catch (error) {
        return complain(error.message);
      }
      for (const other of state.suggestions) if (other.model_class === each.model_class) other.class_name = name;
      for (const other of suggestions) if (other.model_class === each.model_class) other.class_name = name;
      state.suggestions = state.suggestions.filter((other) => other.class_name !== "");
    }
    if (name) taken.push({ uid: newUid(), class_name: name, box: each.box, difficult: false });
  }
  if (taken.length) change([...state.boxes, ...taken], taken.length === 1 ? taken[0].uid : null);
  update();
}

async function acceptKey() {
  const finding = shownFindings().find(({ uid }) => uid === state.selected);
  if (finding) return applyFinding(finding);
  const one = selectedSuggestion();
  await accept(one ? [one] : shownSuggestions());
}

/** Apply the proposal of an audit finding. */
function applyFinding(finding) {
  const { kind, label, suggestion } = finding;
  state.picture.findings.splice(Number(finding.uid.slice(1)), 1); // handled
  const target = label && state.boxes.find((each) => each.class_name === label.class_name && iou(each.box, label.box) > TWIN);
  if (kind === "missing") {
    return addBox(suggestion.box, suggestion.class_name);
  }
  if (!target) return say("This object no longer exists.");
  if (kind === "phantom" || kind === "duplicate") return change(state.boxes.filter((each) => each !== target), null);
  const fix = kind === "class" ? { class_name: suggestion.class_name } : { box: suggestion.box };
  change(state.boxes.map((each) => (each === target ? { ...each, ...fix } : each)), target.uid);
}

function shownFindings() {
  return (state.picture?.findings || []).map((each, place) => ({ ...each, uid: `f${place}`, box: (each.suggestion || each.label).box }));
}

async function markNothing() {
  if (!state.picture || state.picture.problem) return;
  if (state.boxes.length) change([], null);
  state.dirty = true;
  keepDraft();
  if (await save()) await go(1);
}

function select(uid) {
  state.selected = uid;
  const box = selectedBox();
  if (box) state.current = box.class_name;
  update();
}

function selectNext(direction) {
  const order = [...state.boxes, ...shownSuggestions(), ...shownFindings()].map(({ uid }) => uid);
  if (!order.length) return;
  const place = order.indexOf(state.selected);
  select(order[place < 0 ? (direction > 0 ? 0 : order.length - 1) : (place + direction + order.length) % order.length]);
}

function toggleDifficult() {
  const box = selectedBox();
  if (box) change(state.boxes.map((each) => (each === box ? { ...each, difficult: !each.difficult } : each)));
}

// --- next and previous image -----------------------------------------------------------------------------------------

const order = () => $("order").value;

async function go(direction) {
  if (!(await save())) {
    if ($("conflict").open) return;
    if (!state.leaves) {
      state.leaves = true; // the user was warned; the draft stays in this browser
      return;
    }
  }
  if (direction < 0 && state.visited.length) return open(state.visited.pop(), { remember: false });
  try {
    const after = state.picture ? `&after=${state.picture.id}` : "";
    const todo = direction > 0 && $("todo").checked;
    const { id } = await ask(`next?order=${order()}&direction=${direction}&todo=${todo}&client=${client}${after}`);
    if (id === null) say(direction > 0 ? "This is the last image." : "This is the first image.");
    else await open(id);
  } catch (error) {
    complain(error.message);
  }
}

async function acceptAndGo() {
  if (!state.picture || state.picture.problem) return;
  const open = shownSuggestions();
  await accept(open);
  if (open.length && shownSuggestions().length) return; // the class dialog was cancelled
  if (!state.boxes.length && !state.picture.labelled) return say("There is nothing to accept. Draw a box, or press E if there is no object.");
  state.dirty = true; // confirmed: the image counts as labelled even without changes
  if (await save()) await go(1);
}

// --- display ---------------------------------------------------------------------------------------------------------

function contrast(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000000" : "#ffffff";
}

let hidesBoxes = false;

function update() {
  if (!state.info) return;
  const objects = hidesBoxes ? [] : state.boxes;
  const suggestions = hidesBoxes ? [] : shownSuggestions();
  const item = (kind, each, text, colour) => ({ uid: each.uid, kind, box: each.box, text, colour, textColour: contrast(colour) });
  editor.drawColour = classInfo(state.current).colour;
  editor.setItems(
    [
      ...shownFindings().map((each) => item("finding", each, each.text || each.kind, "#ff2fd6")),
      ...suggestions.map((each) => item("suggestion", each, `${each.class_name}? ${each.score.toFixed(2)}`, classInfo(each.class_name).colour)),
      ...objects.map((each) => item("object", each, each.class_name + (each.difficult ? " (difficult)" : ""), classInfo(each.class_name).colour)),
    ],
    state.selected,
  );
  if (state.picture) {
    const hidden = state.picture.hidden ? ` · ${state.picture.hidden} not shown` : "";
    $("picture-name").replaceChildren(...pathParts(state.picture.name), ` · ${state.picture.width}×${state.picture.height}${hidden}`);
    const past = historyOf(state.picture.id);
    $("undo").disabled = !past.undo.length;
    $("redo").disabled = !past.redo.length;
  }
  $("delete").disabled = !selectedBox() && !selectedSuggestion();
  $("accept").disabled = !suggestions.length && !shownFindings().length;
  $("pan").setAttribute("aria-pressed", String(editor.pans));
  $("difficult").disabled = !selectedBox();
  $("difficult").checked = Boolean(selectedBox()?.difficult);
  showClasses();
  showRows($("objects"), state.boxes, (each) => [each.class_name, each.difficult ? "difficult" : ""], (each) => select(each.uid));
  $("objects-title").textContent = `Objects (${state.boxes.length})`;
  showRows($("suggestions"), suggestions, (each) => [each.class_name, each.score.toFixed(2)], (each) => select(each.uid));
  $("suggestions-title").textContent = `Suggestions (${suggestions.length})`;
  const findings = shownFindings();
  $("findings-card").hidden = !findings.length;
  showRows($("findings"), findings, (each) => [each.text || each.kind, each.score.toFixed(2)], (each) => select(each.uid));
  $("threshold-value").textContent = Number($("threshold").value).toFixed(2);
}

/** The folder and the file of a path; where there is too little room, the folder is shortened first. */
function pathParts(path) {
  const cut = path.lastIndexOf("/") + 1;
  const part = (className, textContent) => Object.assign(document.createElement("span"), { className, textContent, title: path });
  return [part("folder", path.slice(0, cut)), part("file", path.slice(cut))];
}

/** A list of buttons with colour, text and a value at the end. */
function showRows(list, items, words, click) {
  list.replaceChildren(
    ...items.map((each) => {
      const [text, end] = words(each);
      return row(each.class_name ? classInfo(each.class_name).colour : "#ff2fd6", "", text, end, each.uid === state.selected, () => click(each));
    }),
  );
}

function row(colour, key, text, end, pressed, click) {
  const button = Object.assign(document.createElement("button"), { type: "button" });
  button.setAttribute("aria-pressed", String(pressed));
  const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
  swatch.style.background = colour;
  const name = Object.assign(document.createElement("span"), { className: "name", textContent: text });
  button.append(swatch, name, Object.assign(document.createElement("span"), { className: "end", textContent: end }));
  if (key) button.prepend(Object.assign(document.createElement("kbd"), { textContent: key }));
  button.addEventListener("click", click);
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function showClasses() {
  const box = selectedBox();
  const chosen = box ? box.class_name : state.current;
  const key = JSON.stringify([state.info.classes, chosen]);
  if ($("class-list").dataset.key === key) return; // keep scroll position and focus
  $("class-list").dataset.key = key;
  $("class-list").replaceChildren(
    ...state.info.classes.map(({ name, colour, boxes }, place) =>
      row(colour, place < 9 ? String(place + 1) : " ", name, boxes || "", name === chosen, () => setClass(name)),
    ),
  );
}

function say(text, isUnsaved = false) {
  $("status").textContent = text;
  $("status").classList.toggle("unsaved", isUnsaved);
}

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

/** Ask for a known class or a new name. Resolves to null if cancelled. */
function pickClass(title, start = "", mayBeEmpty = false) {
  return new Promise((resolve) => {
    const [dialog, input] = [$("picker"), $("picker-name")];
    $("picker-title").textContent = title;
    input.value = start;
    const fill = () => {
      const typed = input.value.trim().toLowerCase();
      const found = state.info.classes.filter(({ name }) => !typed || name === start || name.toLowerCase().includes(typed));
      $("picker-list").replaceChildren(
        ...found.map(({ name, colour }) => row(colour, "", name, "", false, () => finish(name))),
      );
    };
    const finish = (name) => {
      dialog.close();
      input.oninput = dialog.onclose = dialog.querySelector("form").onsubmit = null;
      resolve(name);
    };
    input.oninput = fill;
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      const typed = input.value.trim();
      const same = state.info.classes.find(({ name }) => name.toLowerCase() === typed.toLowerCase());
      const matches = state.info.classes.filter(({ name }) => name.toLowerCase().startsWith(typed.toLowerCase()));
      if (!typed) return finish(mayBeEmpty ? "" : null);
      finish(same ? same.name : matches.length === 1 && !start ? matches[0].name : typed);
    };
    $("picker-cancel").onclick = () => finish(null);
    dialog.onclose = () => finish(null); // Escape
    fill();
    dialog.showModal();
    input.select();
  });
}

// --- progress, training, the image list ------------------------------------------------------------------------------

async function refresh(rescan = false) {
  const before = state.info;
  state.info = await ask(`state?rescan=${rescan}`);
  const { info } = state;
  document.title = `${info.name}: ${info.labelled} of ${info.pictures} labelled`;
  $("data-name").textContent = info.name;
  $("progress").max = Math.max(info.pictures, 1);
  $("progress").value = info.labelled;
  $("progress-text").textContent = `${info.labelled} of ${info.pictures} labelled`;
  $("model").textContent = info.model.seen < info.model.todo
    ? `${info.model.name}: ${info.model.seen} of ${info.model.todo} images processed`
    : `Model: ${info.model.name}`;
  if (!isOwnThreshold && before?.model.number !== info.model.number) suggestFrom(info.model.score_threshold);
  if (!before) {
    if (info.queue) {
      $("order").prepend(new Option(`in the order of ${info.queue.name}`, "queue", true, true));
      $("order").value = "queue";
    }
    state.current = info.classes.length ? info.classes[0].name : null;
  } else if (before.model.number !== info.model.number && state.picture) {
    loadSuggestions();
  }
  $("difficult-row").hidden = info.format === "yolo";
  showTraining(info.training);
  update();
}

function showTraining(training) {
  $("training-card").hidden = !training;
  if (!training) return;
  const { status, message, rows, metric } = training;
  const busy = ["preparing", "training", "comparing"].includes(status);
  const last = rows[rows.length - 1];
  const epoch = status === "training" && last ? `, epoch ${last.epoch}` : "";
  $("training-status").textContent = `${status[0].toUpperCase()}${status.slice(1)}${message ? `: ${message}` : ""}${epoch}`;
  $("train").disabled = busy;
  $("stop-training").disabled = !busy;
  $("training-history").replaceChildren(
    ...training.history.map((each) => {
      const words = `${each.pictures} images: mAP50 ${each.score.toFixed(3)}, ${each.taken ? "used" : "not used"}`;
      return Object.assign(document.createElement("li"), { textContent: words });
    }),
  );
  drawCurve(rows, metric);
}

/** Plot the score and the training loss by epoch. */
function drawCurve(rows, metric) {
  const canvas = $("curve");
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  const scores = rows.filter((each) => each[metric] !== undefined).map((each) => [each.epoch, each[metric]]);
  canvas.hidden = !rows.length;
  const lossOf = (each) => Object.keys(each).filter((key) => key.startsWith("train_")).reduce((sum, key) => sum + each[key], 0);
  const losses = rows.map((each) => [each.epoch, lossOf(each)]);
  const lastEpoch = Math.max(2, ...rows.map((each) => each.epoch));
  const line = (points, most, colour, label, y) => {
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = 2;
    context.beginPath();
    points.forEach(([epoch, value], place) => {
      const at = [6 + ((epoch - 1) / (lastEpoch - 1)) * (width - 12), height - 6 - (value / most) * (height - 30)];
      if (place) context.lineTo(...at);
      else context.moveTo(...at);
      context.fillRect(at[0] - 2, at[1] - 2, 4, 4);
    });
    context.stroke();
    context.font = "12px system-ui";
    context.fillText(label, y, 12);
  };
  if (!rows.length) return;
  const quiet = getComputedStyle($("training-history")).color;
  line(losses, Math.max(...losses.map(([, value]) => value), 1e-9), quiet, `loss ${losses[losses.length - 1][1].toFixed(2)}`, 190);
  if (scores.length) line(scores, 1, getComputedStyle(canvas).color, `mAP50 ${scores[scores.length - 1][1].toFixed(3)}`, 6);
}

function markLabelled(id) {
  for (const each of state.list.rows.values()) if (each.id === id) each.labelled = true;
  drawList();
}

/** Virtual list for folders of 20,000 images: only visible rows exist and are requested. */
function drawList() {
  const list = $("list");
  $("list-space").style.height = `${state.list.total * ROW}px`;
  const first = Math.max(Math.floor(list.scrollTop / ROW) - 5, 0);
  const last = Math.min(first + Math.ceil(list.clientHeight / ROW) + 10, state.list.total);
  $("list-rows").style.transform = `translateY(${first * ROW}px)`;
  const rows = [];
  for (let place = first; place < last; place++) {
    const each = state.list.rows.get(place);
    if (!each) fetchRows(Math.floor(place / LIST_PART) * LIST_PART);
    const button = Object.assign(document.createElement("button"), { type: "button", className: "path" });
    button.append(Object.assign(document.createElement("span"), { className: "done", textContent: each?.labelled ? "✓" : "" }));
    button.append(...(each ? pathParts(each.name) : ["…"]));
    button.setAttribute("aria-current", String(Boolean(each && state.picture && each.id === state.picture.id)));
    if (each) button.addEventListener("click", () => visit(each.id));
    const item = document.createElement("li");
    item.append(button);
    rows.push(item);
  }
  $("list-rows").replaceChildren(...rows);
}

async function visit(id) {
  if ((await save()) || state.leaves) await open(id);
  else state.leaves = true;
}

async function fetchRows(offset) {
  const { list } = state;
  if (list.asked.has(offset)) return;
  list.asked.add(offset);
  const turn = list.turn;
  const find = encodeURIComponent($("find").value);
  const found = await ask(`list?order=${order()}&offset=${offset}&limit=${LIST_PART}&find=${find}`).catch(() => null);
  if (turn !== list.turn) return;
  if (!found) {
    list.asked.delete(offset);
    return;
  }
  list.total = found.total;
  found.rows.forEach((each, place) => list.rows.set(offset + place, each));
  drawList();
}

function resetList() {
  state.list = { rows: new Map(), total: 0, asked: new Set(), turn: state.list.turn + 1 };
  $("list").scrollTop = 0;
  return fetchRows(0);
}

async function beat() {
  if (!state.picture || document.hidden || state.picture.problem) return;
  const { id } = state.picture;
  const answer = await ask(`presence/${id}?client=${client}`, { method: "POST" }).catch(() => null);
  if (!answer || state.picture.id !== id) return;
  complain(answer.others ? alsoOpenIn(answer.others) : "");
  if (answer.version !== state.version && !state.dirty && !state.saving && !editor.drag) {
    const mine = copy(state.boxes);
    const fresh = await ask(`pictures/${id}?client=${client}`).catch(() => null);
    if (!fresh || state.picture.id !== id || state.dirty || fresh.version === state.version) return;
    historyOf(id).undo.push(mine);
    takeLabels(fresh);
    state.selected = null;
    say("The labels were changed elsewhere and have been reloaded.");
    update();
  }
}

// --- keys ------------------------------------------------------------------------------------------------------------

const KEYS = [
  ["N, Page down", "next image"],
  ["P, Page up", "previous image"],
  ["Enter", "accept all suggestions, save, next image"],
  ["A", "accept the selected suggestion, or all shown suggestions"],
  ["E", "no object in this image: save, next image"],
  ["1 … 9", "set the class of the selected box, or of new boxes"],
  ["C", "choose or add a class"],
  ["Tab, Shift+Tab", "select the next or previous box"],
  ["B", "add a box in the middle"],
  ["Arrows", "move the selected box by 1 pixel (Shift: 10), or move the image"],
  ["Ctrl+Arrows", "resize the selected box by 1 pixel (Shift: 10)"],
  ["Del, X", "delete the selected box or suggestion"],
  ["Ctrl+Z, U", "undo"],
  ["Ctrl+Y, R", "redo"],
  ["D", "mark the selected box as difficult, or remove the mark"],
  ["+, −, F", "zoom in, zoom out, show the whole image"],
  ["M, Space", "dragging moves the image (Space: while held)"],
  ["H", "hide or show the boxes"],
  ["S", "hide or show the suggestions"],
  ["/", "find an image"],
  ["Esc", "deselect"],
  ["?", "show this list"],
];
let thresholdBefore = null; // while suggestions are hidden
let isOwnThreshold = false; // the user has set it

/** Show suggestions from the best threshold of a model on. */
function suggestFrom(threshold) {
  const value = String(Math.max(0.05, Math.round(threshold * 20) / 20));
  if (thresholdBefore === null) $("threshold").value = value;
  else thresholdBefore = value;
}

function toggleSuggestions() {
  const slider = $("threshold");
  if (thresholdBefore === null) [thresholdBefore, slider.max, slider.value] = [slider.value, "1", "1"];
  else [slider.max, slider.value, thresholdBefore] = ["0.95", thresholdBefore, null];
  update();
}

const ACTIONS = {
  n: () => go(1),
  PageDown: () => go(1),
  p: () => go(-1),
  PageUp: () => go(-1),
  Enter: () => acceptAndGo(),
  a: () => acceptKey(),
  e: () => markNothing(),
  c: () => askClass(),
  b: () => newBoxByKey(),
  Delete: () => deleteSelected(),
  Backspace: () => deleteSelected(),
  x: () => deleteSelected(),
  u: () => undo(),
  r: () => undo(false),
  d: () => toggleDifficult(),
  "+": () => editor.zoomBy(1.25),
  "=": () => editor.zoomBy(1.25),
  "-": () => editor.zoomBy(0.8),
  f: () => editor.fit(),
  m: () => togglePan(),
  h: () => {
    hidesBoxes = !hidesBoxes;
    update();
  },
  s: () => toggleSuggestions(),
  "/": () => $("find").focus(),
  Escape: () => {
    editor.cancelDrag();
    select(null);
  },
  "?": () => showKeys(),
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function togglePan() {
  editor.pans = !editor.pans;
  editor.setCursor();
  update();
}

function showKeys() {
  $("keys").showModal();
}

function onKey(event) {
  if (document.querySelector("dialog[open]")) return;
  const { target, key } = event;
  const typing = target.matches("input:not([type=checkbox]):not([type=range]), select, textarea");
  if (typing) {
    if (key === "Escape") $("view").focus();
    return;
  }
  const name = key.length === 1 ? key.toLowerCase() : key;
  let action = null;
  const control = event.ctrlKey || event.metaKey;
  if (ARROWS[key] && !event.altKey) {
    if (target.matches("input[type=range], #list")) return;
    const step = event.shiftKey ? 10 : 1;
    action = () => moveSelected(ARROWS[key][0] * step, ARROWS[key][1] * step, control);
  } else if (control && name === "z") action = () => undo(!event.shiftKey);
  else if (control && name === "y") action = () => undo(false);
  else if (control || event.altKey) return;
  else if (key === "Tab") {
    if (target !== $("view") || !(state.boxes.length + shownSuggestions().length + shownFindings().length)) return;
    action = () => selectNext(event.shiftKey ? -1 : 1);
  } else if (key === " ") {
    if (target.matches("button, input")) return;
    action = () => {
      editor.spaceHeld = true;
      editor.setCursor();
    };
  } else if (/^[1-9]$/.test(key)) {
    const chosen = state.info.classes[Number(key) - 1];
    action = () => chosen && setClass(chosen.name);
  } else if (key === "Enter" && target.matches("button, a")) return;
  else action = ACTIONS[name] || ACTIONS[key];
  if (!action) return;
  event.preventDefault();
  action();
}

function listen() {
  document.addEventListener("keydown", onKey);
  document.addEventListener("keyup", (event) => {
    if (event.key === " ") editor.spaceHeld = false;
    editor.setCursor();
  });
  const clicks = {
    previous: () => go(-1),
    next: () => go(1),
    done: acceptAndGo,
    accept: acceptKey,
    nothing: markNothing,
    undo: () => undo(),
    redo: () => undo(false),
    delete: deleteSelected,
    class: askClass,
    pan: togglePan,
    "zoom-in": () => editor.zoomBy(1.25),
    "zoom-out": () => editor.zoomBy(0.8),
    fit: () => editor.fit(),
    help: showKeys,
    train: () => train("start"),
    "stop-training": () => train("stop"),
    "keep-mine": () => settle("mine"),
    "keep-theirs": () => settle("theirs"),
    "keep-both": () => settle("both"),
  };
  for (const [id, action] of Object.entries(clicks)) {
    $(id).addEventListener("click", () => {
      action();
      if (!document.querySelector("dialog[open]")) $("view").focus({ preventScroll: true }); // keys are handled there
    });
  }
  $("conflict").addEventListener("cancel", (event) => event.preventDefault()); // a choice is required
  $("threshold").addEventListener("input", () => {
    isOwnThreshold = true;
    update();
  });
  $("difficult").addEventListener("change", toggleDifficult);
  $("order").addEventListener("change", resetList);
  $("find").addEventListener("input", resetList);
  $("list").addEventListener("scroll", drawList);
  $("new-class").addEventListener("submit", async (event) => {
    event.preventDefault();
    const name = $("new-class-name").value.trim();
    if (!name) return;
    try {
      await ask("classes", { method: "POST", body: { name } });
      $("new-class-name").value = "";
      state.current = name;
      await refresh();
    } catch (error) {
      complain(error.message);
    }
  });
  window.addEventListener("beforeunload", (event) => {
    if (!state.dirty) return;
    save(); // if it fails, the draft remains
    event.preventDefault();
  });
  $("keys-table").append(
    ...KEYS.map(([keys, words]) => {
      const line = document.createElement("tr");
      for (const text of [keys, words]) line.append(Object.assign(document.createElement("td"), { textContent: text }));
      return line;
    }),
  );
}

async function train(action) {
  try {
    await ask("training", { method: "POST", body: { action } });
    await refresh();
  } catch (error) {
    complain(error.message);
  }
}

async function begin() {
  listen();
  try {
    await refresh(true);
  } catch (error) {
    complain(error.message);
    setTimeout(() => location.reload(), 5000);
    return;
  }
  await resetList();
  const unsaved = await findDraft();
  const named = /^#\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : null;
  if (unsaved !== null) await open(unsaved);
  else if (named !== null && named < state.info.pictures) await open(named);
  else await go(1);
  if (!state.picture) {
    $("empty").hidden = false;
    $("empty-text").textContent = "All images are labelled. Choose one from the list to see it again.";
  }
  $("view").focus({ preventScroll: true });
  setInterval(() => document.hidden || refresh().catch(() => {}), POLL);
  setInterval(beat, PRESENT);
  document.body.dataset.ready = "yes";
}

begin();
