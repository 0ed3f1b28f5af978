// The page: images are sent to the server or detected in the browser; slider and classes filter the detections.

import { describe, toCsv } from "./programs.js";
import { Viewer, renderResult } from "./viewer.js";

const WEBCAM_SIDE = 640; // longer side of a sent frame, pixels
const FRAMES_PER_SECOND = 5; // frames of a video file in which objects are detected
const HOW_TO_ENABLE =
  "To detect in the browser, export the model (python export.py --checkpoint FILE --format onnx), " +
  "and start serve.py with --browser-model FILE.onnx.";

const $ = (id) => document.getElementById(id);
const state = {
  info: null,
  image: null, // ImageBitmap
  name: "image",
  type: "image/png",
  detections: [],
  shown: [],
  selected: -1,
  hidden: new Set(), // class ids
  turn: 0, // of pictures: answers to older ones are dropped
  blob: null,
  stream: null,
  rows: [], // { name, time, detections } of several pictures, or of frames
  language: "curl",
};
const viewer = new Viewer($("view"), (index) => select(index));

// --- detection -------------------------------------------------------------------------------------------------------

/** The server's answer: detections above the lowest score the slider can show. */
async function askServer(blob) {
  const { name: model, lowest_score: least, max_body: most } = state.info;
  if (blob.size > most) throw new Error(`The picture has ${megabytes(blob.size)} MB; the limit of the server is ${megabytes(most)} MB.`);
  const query = new URLSearchParams({ score_threshold: least, max_detections: 300, model });
  const answer = await fetch(`detect?${query}`, { method: "POST", body: blob });
  const row = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (model !== state.info.name) return askServer(blob); // another model was chosen meanwhile
  if (!answer.ok) throw new Error(row.error);
  return row.detections;
}

let worker = null;
let workerLoaded = null;
const questions = new Map();

/** One message to the worker and its reply. */
function tellWorker(message, transfer = []) {
  if (!worker) {
    worker = new Worker(new URL("./browser_model.js", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }) => {
      const { resolve, reject } = questions.get(data.id);
      questions.delete(data.id);
      if (data.error) reject(new Error(data.error));
      else resolve(data.answer);
    };
    worker.onerror = (event) => {
      for (const { reject } of questions.values()) reject(new Error(event.message || "the worker could not start"));
      questions.clear();
    };
  }
  const id = crypto.getRandomValues(new Uint32Array(1))[0];
  return new Promise((resolve, reject) => {
    questions.set(id, { resolve, reject });
    worker.postMessage({ id, ...message }, transfer);
  });
}

/** `clock.started` is set anew when the model is there: loading it is not the time of a picture. */
async function askBrowser(image, clock) {
  if (!workerLoaded) {
    say(`Loading the model (${state.info.browser_model.megabytes} MB) and the runtime…`);
    workerLoaded = tellWorker({ load: state.info.browser_model, base: document.baseURI });
    workerLoaded.then(({ provider, threads }) => {
      state.engine = provider === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`;
    }, () => (workerLoaded = null));
  }
  await workerLoaded;
  clock.started = performance.now();
  const { name: model, lowest_score: least } = state.info;
  const bitmap = await createImageBitmap(image);
  const found = await tellWorker({ bitmap, least }, [bitmap]);
  return model === state.info.name ? found : []; // another model was chosen meanwhile
}

const inBrowser = () => document.querySelector("input[name=place]:checked").value === "browser";

// --- pictures --------------------------------------------------------------------------------------------------------

/** Show a picture and detect in it; whether nothing newer came meanwhile. */
async function open(file) {
  stopWebcam();
  const turn = ++state.turn;
  complain("");
  let image;
  try {
    image = await createImageBitmap(file);
  } catch {
    complain(`${file.name || "This"}: this browser cannot show it as a picture; convert it to JPEG or PNG.`);
    state.failed = true;
    return true;
  }
  if (turn !== state.turn) return false;
  Object.assign(state, { image, blob: file, name: file.name || "image", type: file.type, detections: [], selected: -1 });
  showPicture(false);
  say("Detecting…");
  state.failed = !(await look(turn, file, image));
  return turn === state.turn;
}

async function look(turn, blob, image) {
  const clock = { started: performance.now() };
  try {
    const found = inBrowser() ? await askBrowser(image, clock) : await askServer(blob);
    if (turn !== state.turn) return false;
    state.detections = found;
    state.milliseconds = performance.now() - clock.started;
    sortClasses();
    update();
    return true;
  } catch (error) {
    if (turn === state.turn) {
      say("");
      complain(`No answer: ${error.message}`);
    }
    return false;
  }
}

function showPicture(keepView) {
  $("view").hidden = false;
  $("empty").hidden = true;
  for (const id of ["zoom-in", "zoom-out", "fit", "save-picture", "save-json"]) $(id).disabled = false;
  viewer.setImage(state.image, keepView);
  update();
}

/** One file or many: pictures and videos, in order; of more than one picture a table is kept. */
async function openAll(files) {
  const list = [...files];
  const isVideo = (file) => file.type.startsWith("video/");
  $("table").hidden = true;
  $("rows").replaceChildren();
  state.rows = [];
  if (list.length === 1 && !isVideo(list[0])) return open(list[0]);
  $("stop").hidden = false;
  for (const [number, file] of list.entries()) {
    const goesOn = isVideo(file) ? await watch(file) : await open(file);
    if (!goesOn) break;
    if (!isVideo(file) && !state.failed) addRow(file.name, "");
    if (list.length > 1) say(`${number + 1} of ${list.length} files · ${$("status").textContent}`);
  }
  $("stop").hidden = true;
}

/** Detect in some frames of each second of a video file; whether it was not stopped. */
async function watch(file) {
  stopWebcam();
  const turn = ++state.turn;
  complain("");
  const video = Object.assign(document.createElement("video"), { muted: true, preload: "auto" });
  try {
    await new Promise((resolve, reject) => {
      video.onloadeddata = resolve;
      video.onerror = () => reject(new Error("this browser cannot play it; predict.py reads more formats"));
      video.src = URL.createObjectURL(file);
    });
    const end = Number.isFinite(video.duration) ? video.duration : 0;
    Object.assign(state, { name: file.name, type: "image/jpeg", selected: -1, detections: [] });
    for (let frame = 0; frame / FRAMES_PER_SECOND <= end && turn === state.turn; frame++) {
      const time = frame / FRAMES_PER_SECOND;
      if (frame) {
        await new Promise((resolve) => {
          video.onseeked = resolve;
          video.currentTime = time;
        });
      }
      const { image, blob } = await grab(video);
      const clock = { started: performance.now() };
      const found = inBrowser() ? await askBrowser(image, clock) : await askServer(blob);
      if (turn !== state.turn) break;
      Object.assign(state, { image, blob, detections: found, milliseconds: performance.now() - clock.started });
      if (!frame) sortClasses();
      showPicture(frame > 0);
      addRow(file.name, time.toFixed(2));
      say(`${time.toFixed(1)} of ${end.toFixed(1)} s · ${$("status").textContent}`);
    }
  } catch (error) {
    if (turn === state.turn) complain(`${file.name}: ${error.message}`);
  } finally {
    URL.revokeObjectURL(video.src);
  }
  return turn === state.turn;
}

/** Keep what was just found for the table. */
function addRow(name, time) {
  state.rows.push({ name, time, detections: state.detections });
  const row = document.createElement("tr");
  for (const text of [time ? `${name} at ${time} s` : name, summarise()]) {
    row.append(Object.assign(document.createElement("td"), { textContent: text }));
  }
  $("rows").append(row);
  $("table").hidden = false;
}

// --- webcam ----------------------------------------------------------------------------------------------------------

async function startWebcam() {
  if (!navigator.mediaDevices) {
    complain("Browsers allow the webcam only on this machine (127.0.0.1) or over https.");
    return;
  }
  complain("");
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
  } catch (error) {
    complain(`No webcam: ${error.message}`);
    return;
  }
  showWebcam(true);
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;
  video.srcObject = state.stream;
  await video.play();
  const turn = ++state.turn;
  Object.assign(state, { name: "webcam.jpg", type: "image/jpeg", selected: -1, detections: [] });
  let first = true;
  while (turn === state.turn) { // the next frame is taken when the last one is answered: never a queue
    const { image, blob } = await grab(video);
    const clock = { started: performance.now() };
    try {
      const found = inBrowser() ? await askBrowser(image, clock) : await askServer(blob);
      if (turn !== state.turn) break;
      complain("");
      Object.assign(state, { image, blob, detections: found, milliseconds: performance.now() - clock.started });
      if (first) sortClasses();
      showPicture(!first);
      first = false;
    } catch (error) {
      if (turn !== state.turn) break;
      complain(`No answer: ${error.message}`);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

async function grab(video) {
  const scale = Math.min(1, WEBCAM_SIDE / Math.max(video.videoWidth, video.videoHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(video.videoWidth * scale);
  canvas.height = Math.round(video.videoHeight * scale);
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  const blob = inBrowser() ? null : await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
  return { image: canvas, blob };
}

function stopWebcam() {
  if (!state.stream) return;
  for (const track of state.stream.getTracks()) track.stop();
  state.stream = null;
  state.turn++;
  showWebcam(false);
}

function showWebcam(on) {
  $("webcam").setAttribute("aria-pressed", String(on));
  $("webcam").textContent = on ? "Stop webcam" : "Webcam";
  $("status").setAttribute("aria-live", on ? "off" : "polite"); // a reader would never come to rest
}

// --- what is shown ---------------------------------------------------------------------------------------------------

/** Choose what is shown from what was found, without another request. */
function update() {
  const least = Number($("threshold").value);
  $("threshold-value").textContent = least.toFixed(2);
  const chosen = state.shown[state.selected];
  const above = state.detections.filter(({ score }) => score >= least);
  state.shown = above
    .filter((found) => !state.hidden.has(found.class_id))
    .map((found) => {
      const colour = state.info.colours[found.class_id];
      return { ...found, colour, textColour: contrast(colour), source: found };
    });
  state.selected = chosen ? state.shown.findIndex(({ source }) => source === chosen.source) : -1;
  viewer.setBoxes(state.shown, state.selected);
  showCounts(above);
  listObjects();
  if (state.image) {
    const summary = summarise();
    $("view").setAttribute("aria-label", `${state.name}: ${summary}`);
    showSnippet();
    say(`${summary} · ${state.image.width}×${state.image.height} · ${timeText()}`);
  }
}

function summarise() {
  const counts = new Map();
  for (const { class_name: name } of state.shown) counts.set(name, (counts.get(name) || 0) + 1);
  const parts = [...counts].sort((a, b) => b[1] - a[1]).map(([name, count]) => `${count} ${name}`);
  const total = state.shown.length;
  return total ? `${total} ${total === 1 ? "object" : "objects"}: ${parts.join(", ")}` : nothing();
}

/** Why nothing is shown, and what to do. */
function nothing() {
  const least = Number($("threshold").value);
  const visible = state.detections.filter(({ class_id: id }) => !state.hidden.has(id));
  const best = visible.reduce((top, found) => (!top || found.score > top.score ? found : top), null);
  const above = `no objects above ${least.toFixed(2)}`;
  if (best) return `${above}; the best is ${best.class_name} at ${best.score.toFixed(2)}: lower the confidence`;
  return state.hidden.size && state.detections.length ? "no objects of the classes that are ticked" : above;
}

function timeText() {
  if (!state.milliseconds) return "";
  return `${Math.round(state.milliseconds)} ms ${inBrowser() ? `in this browser (${state.engine})` : "with the server"}`;
}

function buildClasses() {
  $("classes").replaceChildren();
  state.info.class_names.forEach((name, id) => {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
    box.dataset.id = id;
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = state.info.colours[id];
    const text = document.createElement("span");
    label.append(box, swatch, text);
    $("classes").append(label);
  });
}

function showCounts(above) {
  const counts = new Array(state.info.class_names.length).fill(0);
  for (const { class_id: id } of above) counts[id]++;
  [...$("classes").children].forEach((label) => {
    const id = Number(label.firstChild.dataset.id);
    label.lastChild.textContent = counts[id] ? `${state.info.class_names[id]} ${counts[id]}` : state.info.class_names[id];
    label.classList.toggle("none", !counts[id]);
    label.firstChild.checked = !state.hidden.has(id);
  });
}

/** Found classes first, unless the keyboard is among them. */
function sortClasses() {
  if ($("classes").contains(document.activeElement)) return;
  const best = new Map();
  for (const { class_id: id, score } of state.detections) best.set(id, Math.max(best.get(id) || 0, score));
  const id = (label) => Number(label.firstChild.dataset.id);
  const labels = [...$("classes").children];
  labels.sort((a, b) => (best.get(id(b)) || 0) - (best.get(id(a)) || 0) || id(a) - id(b));
  $("classes").append(...labels);
  $("classes").scrollTop = 0;
}

/** Rows are changed, not made anew: the keyboard's focus stays where it is while a webcam runs. */
function listObjects() {
  const list = $("objects");
  while (list.children.length > state.shown.length) list.lastChild.remove();
  while (list.children.length < state.shown.length) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    for (const name of ["swatch", "name", "score"]) {
      button.append(Object.assign(document.createElement("span"), { className: name }));
    }
    const row = document.createElement("li");
    row.append(button);
    list.append(row);
  }
  state.shown.forEach((found, index) => {
    const button = list.children[index].firstChild;
    const [swatch, name, score] = button.children;
    swatch.style.background = found.colour;
    name.textContent = found.class_name;
    score.textContent = found.score.toFixed(2);
    button.setAttribute("aria-pressed", String(index === state.selected));
  });
  $("objects-title").textContent = `Objects (${state.shown.length})`;
}

function select(index, zoom = false) {
  state.selected = index === state.selected && !zoom ? -1 : index;
  viewer.setBoxes(state.shown, state.selected);
  listObjects();
  if (index >= 0) {
    $("objects").children[index].scrollIntoView({ block: "nearest" });
    if (zoom) viewer.showBox(state.shown[index].box_xyxy);
  }
}

/** Black or white, whichever is easier to read on `colour` (as imaging/draw.py). */
function contrast(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000000" : "#ffffff";
}

const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1);

function say(text) {
  $("status").textContent = text;
}

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// --- to keep ---------------------------------------------------------------------------------------------------------

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const stem = () => state.name.replace(/\.[^.]*$/, "") || "image";

async function savePicture() {
  const type = state.type === "image/jpeg" ? "image/jpeg" : "image/png";
  save(await renderResult(state.image, state.shown, type), `${stem()}_detections.${type === "image/jpeg" ? "jpg" : "png"}`);
}

/** What is shown, in the form of predict.py's detections.json. */
function saveJson() {
  const detections = state.shown.map(({ source }) => source);
  const row = { image: state.name, width: state.image.width, height: state.image.height, detections };
  save(new Blob([JSON.stringify([row], null, 1)], { type: "application/json" }), `${stem()}_detections.json`);
}

/** A program that asks for what is on screen. */
function showSnippet() {
  const classes = state.hidden.size ? state.info.class_names.filter((_, id) => !state.hidden.has(id)) : [];
  const least = Number($("threshold").value).toFixed(2);
  $("snippet").textContent = describe(
    state.language, new URL("detect", document.baseURI), state.name, least, classes, hasSeveral() && state.info.name,
  );
}

async function copySnippet() {
  try {
    await navigator.clipboard.writeText($("snippet").textContent);
    $("copy").textContent = "Copied";
  } catch { // not over plain http from another machine
    getSelection().selectAllChildren($("snippet"));
    $("copy").textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => ($("copy").textContent = "Copy"), 2000);
}

function saveTable() {
  const least = Number($("threshold").value);
  const isShown = ({ score, class_id: id }) => score >= least && !state.hidden.has(id);
  const rows = state.rows.map((row) => ({ ...row, detections: row.detections.filter(isShown) }));
  save(new Blob([toCsv(rows)], { type: "text/csv" }), "detections.csv");
}

function showExamples() {
  for (const [number, address] of (state.info.examples || []).entries()) {
    const button = Object.assign(document.createElement("button"), { type: "button", title: "Detect in this drawing" });
    button.append(Object.assign(document.createElement("img"), { src: address, alt: `Example ${number + 1}` }));
    button.addEventListener("click", async () => {
      const blob = await (await fetch(address)).blob();
      openAll([new File([blob], address.split("/").pop(), { type: blob.type })]);
    });
    $("examples").append(button);
  }
}

// --- wiring ----------------------------------------------------------------------------------------------------------

function setTheme(theme) {
  document.documentElement.style.colorScheme = theme;
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // storage is switched off: the choice lasts as long as the page
  }
}

function connect() {
  $("file").addEventListener("change", ({ target }) => {
    if (target.files.length) openAll(target.files);
    target.value = ""; // the same file may be chosen again
  });
  $("webcam").addEventListener("click", () => {
    if (state.stream) {
      stopWebcam();
      if (state.image) update();
    } else startWebcam();
  });
  document.addEventListener("paste", ({ clipboardData }) => {
    const file = [...clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (file) openAll([file]);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("dropping").hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("dropping").hidden = true;
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("dropping").hidden = true;
    if (event.dataTransfer.files.length) openAll(event.dataTransfer.files);
  });
  $("threshold").addEventListener("input", update);
  $("classes").addEventListener("change", ({ target }) => {
    const id = Number(target.dataset.id);
    if (target.checked) state.hidden.delete(id);
    else state.hidden.add(id);
    update();
  });
  $("all-classes").addEventListener("click", () => {
    state.hidden.clear();
    update();
  });
  $("no-classes").addEventListener("click", () => {
    state.hidden = new Set(state.info.class_names.keys());
    update();
  });
  $("objects").addEventListener("click", ({ target }) => {
    const row = target.closest("li");
    if (row) select([...$("objects").children].indexOf(row), true);
  });
  $("zoom-in").addEventListener("click", () => viewer.zoomBy(1.25));
  $("zoom-out").addEventListener("click", () => viewer.zoomBy(0.8));
  $("fit").addEventListener("click", () => viewer.fit());
  $("save-picture").addEventListener("click", savePicture);
  $("save-json").addEventListener("click", saveJson);
  $("save-table").addEventListener("click", saveTable);
  $("copy").addEventListener("click", copySnippet);
  $("stop").addEventListener("click", () => {
    state.turn++;
    $("stop").hidden = true;
  });
  for (const button of document.querySelectorAll("[data-language]")) {
    button.addEventListener("click", () => {
      state.language = button.dataset.language;
      for (const each of document.querySelectorAll("[data-language]")) each.setAttribute("aria-pressed", String(each === button));
      showSnippet();
    });
  }
  $("place").addEventListener("change", lookAgain);
  $("models").addEventListener("change", ({ target }) => {
    useModel(state.info.models[target.selectedIndex]);
    lookAgain();
  });
  $("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme;
    const isDark = dark === "dark" || (dark !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    setTheme(isDark ? "light" : "dark");
  });
}

/** Detect once more in the picture on screen; a webcam or video does so with its next frame. */
function lookAgain() {
  if (!state.image || state.stream || !state.blob || !$("stop").hidden) return;
  say("Detecting…");
  look(++state.turn, state.blob, state.image);
}

const hasSeveral = () => (state.info.models || []).length > 1;

/** Take a model's classes, colours and thresholds; what other models found is dropped. */
function useModel(model) {
  Object.assign(state.info, model);
  const { info } = state;
  const name = hasSeveral() ? [] : [info.name];
  $("model").textContent = [...name, `${info.class_names.length} classes`, info.input_size.join("×")].join(" · ");
  Object.assign($("threshold"), { min: info.lowest_score, max: 0.99, value: info.score_threshold });
  $("threshold-source").textContent = `${info.score_threshold.toFixed(2)} is the model's default (${info.score_threshold_source}).`;
  const browser = document.querySelector("input[name=place][value=browser]");
  browser.disabled = !info.browser_model;
  if (browser.checked && browser.disabled) document.querySelector("input[name=place][value=server]").checked = true;
  const first = (info.models || [info])[0];
  const ofFirst = `Only ${first.name} can run in this browser.`;
  $("place-note").textContent = info.browser_model ? "" : first.browser_model ? ofFirst : HOW_TO_ENABLE;
  state.hidden.clear();
  Object.assign(state, { detections: [], rows: [], selected: -1 });
  $("rows").replaceChildren();
  $("table").hidden = true;
  buildClasses();
  update();
}

/** Threads for a page from a server that sends no headers for them: see isolate.js. The page is loaded once more. */
async function isolate() {
  if (crossOriginIsolated || !navigator.serviceWorker || sessionStorage.getItem("isolated")) return;
  try {
    await navigator.serviceWorker.register("isolate.js");
    await navigator.serviceWorker.ready;
    sessionStorage.setItem("isolated", "tried");
    location.reload();
    await new Promise(() => {}); // the rest is for the page that comes
  } catch {
    // one thread is enough
  }
}

async function begin() {
  try {
    const theme = localStorage.getItem("theme");
    if (theme === "light" || theme === "dark") setTheme(theme);
  } catch {
    // as above
  }
  state.info = await (await fetch("info")).json();
  const { info } = state;
  for (const { name } of info.models || []) $("models").append(new Option(name, name));
  $("models").hidden = !hasSeveral();
  if (info.without_server) {
    document.querySelector("input[name=place][value=browser]").checked = true;
    document.body.classList.add("without-server");
    await isolate();
  }
  document.title = info.title || "Detector";
  document.querySelector("h1").textContent = document.title;
  useModel((info.models || [info])[0]);
  showExamples();
  showSnippet();
  connect();
  document.body.dataset.ready = "yes"; // for tests
}

begin().catch((error) => complain(`The page could not start: ${error.message}`));
