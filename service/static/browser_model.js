// A worker that runs the exported network in the visitor's browser: fits the picture in, runs it, reads its answer.
// Preparation and reading do what imaging/letterbox.py and nets/postprocess.py do.

const MOST_CANDIDATES = 1000;
let ort;
let session;
let model;

/** Weights of the source pixels that make one destination pixel, along one axis. */
function taps(source, target, interpolation) {
  const scale = source / target;
  const rows = [];
  const cubic = (t) => {
    const a = -0.5; // Pillow's
    t = Math.abs(t);
    if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
    return t < 2 ? ((t - 5) * t + 8) * t * a - 4 * a : 0;
  };
  for (let i = 0; i < target; i++) {
    const centre = (i + 0.5) * scale;
    const row = [];
    if (interpolation === "bicubic") {
      const stretch = Math.max(scale, 1);
      const last = Math.min(source - 1, Math.ceil(centre + 2 * stretch));
      for (let j = Math.max(0, Math.floor(centre - 2 * stretch)); j <= last; j++) {
        row.push([j, cubic((j + 0.5 - centre) / stretch)]);
      }
    } else if (scale > 1) { // the mean of the area that the pixel covers
      const from = i * scale;
      const to = Math.min((i + 1) * scale, source);
      for (let j = Math.floor(from); j < Math.min(source, Math.ceil(to)); j++) {
        row.push([j, Math.min(j + 1, to) - Math.max(j, from)]);
      }
    } else {
      const left = Math.floor(centre - 0.5);
      const share = centre - 0.5 - left;
      row.push([Math.max(left, 0), 1 - share], [Math.min(left + 1, source - 1), share]);
    }
    const sum = row.reduce((total, [, weight]) => total + weight, 0);
    rows.push(row.map(([j, weight]) => [j, weight / sum]));
  }
  return rows;
}

/** RGBA pixels of (height, width) to RGB floats in [0, 255] of (newHeight, newWidth). */
function resize(pixels, height, width, newHeight, newWidth, interpolation) {
  const columns = taps(width, newWidth, interpolation);
  const rows = taps(height, newHeight, interpolation);
  const narrow = new Float32Array(height * newWidth * 3);
  for (let y = 0, out = 0; y < height; y++) {
    for (let x = 0; x < newWidth; x++, out += 3) {
      for (const [j, weight] of columns[x]) {
        const at = (y * width + j) * 4;
        narrow[out] += weight * pixels[at];
        narrow[out + 1] += weight * pixels[at + 1];
        narrow[out + 2] += weight * pixels[at + 2];
      }
    }
  }
  const result = new Float32Array(newHeight * newWidth * 3);
  const line = newWidth * 3;
  for (let y = 0; y < newHeight; y++) {
    for (const [j, weight] of rows[y]) {
      for (let i = 0; i < line; i++) result[y * line + i] += weight * narrow[j * line + i];
    }
  }
  return result;
}

/** Where a picture goes in the network's input: imaging/letterbox.py, `geometry`. */
function geometry(height, width) {
  const [inputHeight, inputWidth] = model.input_size;
  if (model.resize_mode === "stretch") return { newHeight: inputHeight, newWidth: inputWidth, top: 0, left: 0 };
  const scale = Math.min(inputHeight / height, inputWidth / width);
  const newHeight = Math.min(Math.max(Math.round(height * scale), 1), inputHeight);
  const newWidth = Math.min(Math.max(Math.round(width * scale), 1), inputWidth);
  return { newHeight, newWidth, top: (inputHeight - newHeight) >> 1, left: (inputWidth - newWidth) >> 1 };
}

function prepare(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const place = geometry(bitmap.height, bitmap.width);
  const { newHeight, newWidth, top, left } = place;
  const small = resize(data, bitmap.height, bitmap.width, newHeight, newWidth, model.interpolation);
  const [height, width] = model.input_size;
  const bytes = model.form.uint8_input;
  const input = bytes ? new Uint8Array(height * width * 3) : new Float32Array(height * width * 3);
  input.fill(bytes ? model.pad_value : model.pad_value / 255);
  for (let y = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++) {
      for (let c = 0; c < 3; c++) {
        const value = Math.min(Math.max(Math.round(small[(y * newWidth + x) * 3 + c]), 0), 255);
        if (bytes) input[((y + top) * width + x + left) * 3 + c] = value;
        else input[(c * height + y + top) * width + x + left] = value / 255;
      }
    }
  }
  const tensor = new ort.Tensor(bytes ? "uint8" : "float32", input, bytes ? [1, height, width, 3] : [1, 3, height, width]);
  return { tensor, place };
}

/** Candidates above a score: { label, score, box } in input pixels, best first. */
function candidates(boxes, scores, classes, least) {
  const found = [];
  for (let i = 0; i < scores.length / classes; i++) {
    let best = 0;
    for (let c = 0; c < classes; c++) {
      const score = scores[i * classes + c];
      if (model.multi_label && score >= least) found.push({ label: c, score, at: i });
      if (score > scores[i * classes + best]) best = c;
    }
    const score = scores[i * classes + best];
    if (!model.multi_label && score >= least) found.push({ label: best, score, at: i });
  }
  found.sort((a, b) => b.score - a.score);
  return found.slice(0, MOST_CANDIDATES).map((each) => ({ ...each, box: boxes.slice(4 * each.at, 4 * each.at + 4) }));
}

function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const both = width * height;
  return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both);
}

/** Greedy suppression within each class. */
function suppress(found) {
  const kept = [];
  for (const each of found) {
    if (!kept.some((other) => other.label === each.label && overlap(other.box, each.box) > model.iou_threshold)) {
      kept.push(each);
    }
  }
  return kept;
}

async function detect(bitmap, least) {
  const { tensor, place } = prepare(bitmap);
  const outputs = await session.run({ images: tensor });
  const classes = model.class_names.length;
  let found;
  if (model.form.nms) {
    const [boxes, scores, labels] = ["boxes", "scores", "labels"].map((name) => outputs[`detection_${name}`].data);
    found = [...scores].map((score, i) => ({ label: Number(labels[i]), score, box: boxes.slice(4 * i, 4 * i + 4) }));
    found = found.filter(({ score }) => score >= least);
  } else {
    found = suppress(candidates(outputs.boxes.data, outputs.scores.data, classes, least));
  }
  const across = bitmap.width / place.newWidth;
  const down = bitmap.height / place.newHeight;
  const clip = (value, most) => Math.min(Math.max(value, 0), most);
  return found.map(({ label, score, box: [x1, y1, x2, y2] }) => ({
    class_id: label,
    class_name: model.class_names[label],
    score,
    box_xyxy: [
      clip((x1 - place.left) * across, bitmap.width),
      clip((y1 - place.top) * down, bitmap.height),
      clip((x2 - place.left) * across, bitmap.width),
      clip((y2 - place.top) * down, bitmap.height),
    ],
  }));
}

/** Whether this browser has a graphics processor that it lets a page compute on. */
async function hasWebGpu() {
  try {
    return Boolean(navigator.gpu && (await navigator.gpu.requestAdapter()));
  } catch {
    return false;
  }
}

async function load(description, base) {
  model = description;
  let provider = model.webgpu && (await hasWebGpu()) ? "webgpu" : "wasm";
  try {
    await open(provider, base);
  } catch (error) {
    if (provider === "wasm") throw error;
    provider = "wasm"; // a driver that does not keep what it promises
    await open(provider, base);
  }
  return { provider, threads: ort.env.wasm.numThreads };
}

async function open(provider, base) {
  ort = await import(new URL(`ort/ort.${provider}.min.mjs`, base).href);
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = new URL("ort/", base).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 4) : 1;
  session = await ort.InferenceSession.create(new URL("model.onnx", base).href, { executionProviders: [provider] });
}

self.onmessage = async ({ data }) => {
  try {
    const answer = data.load ? await load(data.load, data.base) : await detect(data.bitmap, data.least);
    self.postMessage({ id: data.id, answer });
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error && error.message ? error.message : error) });
  } finally {
    if (data.bitmap) data.bitmap.close();
  }
};
