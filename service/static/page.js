// The page: a picture comes in, the server or this browser finds what is on it, slider and classes choose what is shown.

import { Viewer, renderResult } from "./viewer.js";

const WEBCAM_SIDE = 640; // pixels of the longer side of what is sent
const HOW_TO_ENABLE =
  "To look in the browser, export the model (python export.py --checkpoint FILE --format onnx), get ONNX Runtime Web " +
  "(npm pack onnxruntime-web, unpack it), and start serve.py with --browser-model FILE.onnx --ort-web package/dist.";

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
};
const viewer = new Viewer($("view"), (index) => select(index));

// --- who looks -------------------------------------------------------------------------------------------------------

/** The server's answer: detections above the lowest score the slider can show. */
async function askServer(blob) {
  const { lowest_score: least, max_body: most } = state.info;
  if (blob.size > most) throw new Error(`The picture has ${megabytes(blob.size)} MB, the server takes ${megabytes(most)} MB.`);
  const answer = await fetch(`detect?score_threshold=${least}&max_detections=300`, { method: "POST", body: blob });
  const row = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
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

async function askBrowser(image) {
  if (!workerLoaded) {
    say(`Loading the model (${state.info.browser_model.megabytes} MB) and the runtime…`);
    workerLoaded = tellWorker({ load: state.info.browser_model, base: document.baseURI });
    workerLoaded.then(({ provider, threads }) => {
      state.engine = provider === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`;
    }, () => (workerLoaded = null));
  }
  await workerLoaded;
  const bitmap = await createImageBitmap(image);
  return tellWorker({ bitmap, least: state.info.lowest_score }, [bitmap]);
}

const inBrowser = () => document.querySelector("input[name=place]:checked").value === "browser";

// --- pictures --------------------------------------------------------------------------------------------------------

/** Show a file and look at it. */
async function open(file) {
  stopWebcam();
  const turn = ++state.turn;
  complain("");
  let image;
  try {
    image = await createImageBitmap(file);
  } catch {
    complain(`${file.name || "This"}: this browser cannot show it as a picture; convert it to JPEG or PNG.`);
    return;
  }
  if (turn !== state.turn) return;
  Object.assign(state, { image, blob: file, name: file.name || "image", type: file.type, detections: [], selected: -1 });
  showPicture(false);
  say("Looking…");
  await look(turn, file, image);
}

async function look(turn, blob, image) {
  const started = performance.now();
  try {
    const found = inBrowser() ? await askBrowser(image) : await askServer(blob);
    if (turn !== state.turn) return false;
    state.detections = found;
    state.milliseconds = performance.now() - started;
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
    const started = performance.now();
    try {
      const found = inBrowser() ? await askBrowser(image) : await askServer(blob);
      if (turn !== state.turn) break;
      complain("");
      Object.assign(state, { image, blob, detections: found, milliseconds: performance.now() - started });
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

/** Choose what is shown from what was found; nobody is asked again. */
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
    say(`${summary} · ${state.image.width}×${state.image.height} · ${timeText()}`);
  }
}

function summarise() {
  const counts = new Map();
  for (const { class_name: name } of state.shown) counts.set(name, (counts.get(name) || 0) + 1);
  const parts = [...counts].sort((a, b) => b[1] - a[1]).map(([name, count]) => `${count} ${name}`);
  const total = state.shown.length;
  return total ? `${total} ${total === 1 ? "object" : "objects"}: ${parts.join(", ")}` : "no objects";
}

function timeText() {
  if (!state.milliseconds) return "";
  return `${Math.round(state.milliseconds)} ms ${inBrowser() ? `in this browser (${state.engine})` : "with the server"}`;
}

function buildClasses() {
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
  [...$("classes").children].forEach((label, id) => {
    label.lastChild.textContent = counts[id] ? `${state.info.class_names[id]} ${counts[id]}` : state.info.class_names[id];
    label.classList.toggle("none", !counts[id]);
    label.firstChild.checked = !state.hidden.has(id);
  });
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

/** Black or white, whichever is easier to read on `colour` (as utils/draw.py). */
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
    if (target.files.length) open(target.files[0]);
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
    if (file) open(file);
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
    if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
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
  $("place").addEventListener("change", () => {
    if (state.image && !state.stream && state.blob) {
      say("Looking…");
      look(++state.turn, state.blob, state.image);
    }
  });
  $("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme;
    const isDark = dark === "dark" || (dark !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    setTheme(isDark ? "light" : "dark");
  });
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
  $("model").textContent = `${info.name} · ${info.class_names.length} classes · ${info.input_size.join("×")}`;
  Object.assign($("threshold"), { min: info.lowest_score, max: 0.99, value: info.score_threshold });
  $("threshold-source").textContent = `${info.score_threshold.toFixed(2)} is the model's own (${info.score_threshold_source}).`;
  const browser = document.querySelector("input[name=place][value=browser]");
  browser.disabled = !info.browser_model;
  if (info.without_server) {
    browser.checked = true;
    document.body.classList.add("without-server");
    await isolate();
  }
  $("place-note").textContent = info.browser_model ? "" : HOW_TO_ENABLE;
  buildClasses();
  update();
  connect();
  document.body.dataset.ready = "yes"; // for tests
}

begin().catch((error) => complain(`The page could not start: ${error.message}`));
