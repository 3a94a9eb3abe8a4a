"use strict";
const one = (id) => document.getElementById(id);
const LOWEST = 0.05; // what is asked for: the slider then needs no further answer
const state = { info: null, file: null, bitmap: null, answer: null, hidden: new Set(), chosen: null, request: null };

/* A colour for each class, far from its neighbours'. */
const colour = (label, alpha = 1) => `hsl(${(label * 137.508 + 205) % 360} 85% 64% / ${alpha})`;
const swatch = (label) => {
  const box = document.createElement("span");
  box.className = "swatch";
  box.style.background = colour(label);
  return box;
};

function tell(text) {
  one("fault").hidden = !text;
  one("fault").textContent = text || "";
}

/* The image: chosen, photographed, dropped or pasted; it goes to the server as it is. */
async function use(file) {
  if (state.request) state.request.abort();
  const request = state.request = new AbortController();
  Object.assign(state, { file, bitmap: null, answer: null, chosen: null });
  tell("");
  one("result").hidden = one("figure").hidden = true;
  const most = state.info?.limits.max_bytes;
  if (most && file.size > most) {
    tell(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB: the server takes ${(most / 2 ** 20).toFixed(1)} MiB at most.`);
    return;
  }
  document.body.classList.add("busy");
  one("how").textContent = "Looking …";
  try {
    const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null);
    if (request.signal.aborted) return;
    state.bitmap = bitmap;
    draw();
    await told;
    const masks = state.info?.task === "segment";
    const answer = await fetch(`predict?threshold=${LOWEST}&masks=${masks}`, {
      method: "POST", body: file, signal: request.signal,
      headers: { "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream" },
    });
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.detail);
    state.answer = content;
    for (const found of content.detections) found.runs = found.mask_rle ? lengths(found.mask_rle.counts) : null;
    listClasses();
    one("result").hidden = false;
    refresh();
  } catch (error) {
    if (error.name === "AbortError") return; // another image has come
    tell(error instanceof TypeError ? "The server does not answer: is it still running?" : error.message);
    one("figure").hidden = !state.bitmap;
  } finally {
    if (state.request === request) {
      document.body.classList.remove("busy");
      one("how").textContent = "Drop an image here, paste one, or";
    }
  }
}

for (const id of ["choose", "photo"]) {
  one(id).addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = ""; // so that the same file may be chosen again
    if (file) use(file);
  });
}
one("photograph").hidden = !matchMedia("(any-pointer: coarse)").matches; // elsewhere it only chooses a file
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) use(file);
  else tell("What was pasted is no image.");
});
const over = (event) => {
  event.preventDefault();
  document.body.classList.toggle("over", event.type === "dragover");
};
for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, over);
document.addEventListener("drop", (event) => {
  const [file] = event.dataTransfer.files;
  if (file) use(file);
  else tell("What was dropped is no file.");
});

/* What is shown of the answer. */
const threshold = () => Number(one("threshold").value);
const above = () => (state.answer?.detections ?? []).filter((found) => found.confidence >= threshold());
const shown = () => above().filter((found) => !state.hidden.has(found.class_id));

function listClasses() {
  const names = new Map(state.answer.detections.map((found) => [found.class_id, found.class_name]));
  const sorted = [...names].sort((a, b) => a[1].localeCompare(b[1]));
  one("classes-field").hidden = sorted.length === 0;
  one("masks-label").hidden = state.info?.task !== "segment";
  one("classes").replaceChildren(...sorted.map(([label, name]) => {
    const line = document.createElement("label"), box = document.createElement("input");
    line.className = "check";
    Object.assign(box, { type: "checkbox", checked: !state.hidden.has(label) });
    box.dataset.label = label;
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(label);
      else state.hidden.add(label);
      refresh();
    });
    const count = document.createElement("span");
    count.className = "soft count";
    line.append(box, swatch(label), name, count);
    return line;
  }));
}

function refresh() {
  const { answer } = state, list = shown();
  one("threshold-value").textContent = threshold().toFixed(2);
  if (!answer) return;
  if (!list.includes(state.chosen)) state.chosen = null;
  const counts = new Map();
  for (const found of above()) counts.set(found.class_id, (counts.get(found.class_id) ?? 0) + 1);
  for (const box of document.querySelectorAll("#classes input")) {
    box.parentNode.querySelector(".count").textContent = `(${counts.get(Number(box.dataset.label)) ?? 0})`;
  }
  const objects = list.length === 1 ? "1 object" : `${list.length} objects`;
  one("status").textContent = objects;
  one("nothing").hidden = list.length > 0;
  const { total, network } = answer.time_ms;
  const unseen = state.bitmap ? "" : " This browser cannot show the image itself.";
  one("caption").textContent = `${state.file.name}, ${answer.width} × ${answer.height} pixels, answered in `
    + `${total.toFixed(0)} ms (network ${network.toFixed(0)} ms).${unseen}`;
  const kinds = new Map();
  for (const found of list) kinds.set(found.class_name, (kinds.get(found.class_name) ?? 0) + 1);
  const summary = [...kinds].map(([name, count]) => `${count} ${name}`).join(", ");
  one("canvas").setAttribute("aria-label", `The image with ${objects}${summary ? ": " + summary : ""}`);
  one("objects").replaceChildren(...list.map(row));
  draw();
}

function row(found) {
  const line = document.createElement("tr"), button = document.createElement("button");
  button.type = "button";
  button.append(swatch(found.class_id), found.class_name);
  button.setAttribute("aria-pressed", String(found === state.chosen));
  button.addEventListener("click", () => {
    state.chosen = found === state.chosen ? null : found;
    for (const other of one("objects").rows) mark(other, other === line && state.chosen === found);
    draw();
  });
  const texts = [found.confidence.toFixed(2), found.box_xyxy.map((side) => side.toFixed(0)).join(" ")];
  line.append(document.createElement("td"), ...texts.map((text) => {
    const cell = document.createElement("td");
    cell.className = "num";
    cell.textContent = text;
    return cell;
  }));
  line.firstChild.append(button);
  mark(line, found === state.chosen);
  return line;
}

function mark(line, chosen) {
  line.classList.toggle("chosen", chosen);
  line.querySelector("button").setAttribute("aria-pressed", String(chosen));
}

/* Masks: COCO's compressed run lengths, column by column, outside and inside in turn. */
function lengths(counts) {
  const runs = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, shift = 0, digit;
    do {
      digit = counts.charCodeAt(at++) - 48;
      value |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/* Fills the pixels of a layer whose centres lie in the mask; `scale` is layer to image. */
function fill(layer, found, scale, rgb) {
  const height = found.mask_rle.size[0], pixels = new Uint32Array(layer.data.buffer);
  const first = (edge) => Math.max(0, Math.ceil(edge * scale - 0.5));
  let at = 0;
  found.runs.forEach((length, turn) => {
    for (let start = at, end = at + length; turn % 2 && start < end;) {
      const x = Math.floor(start / height), stop = Math.min(end, (x + 1) * height);
      const top = first(start - x * height), bottom = Math.min(layer.height, first(stop - x * height));
      const right = Math.min(layer.width, first(x + 1));
      for (let column = first(x); column < right; column++) {
        for (let y = top; y < bottom; y++) pixels[y * layer.width + column] = rgb;
      }
      start = stop;
    }
    at += length;
  });
}

/* The colour of a class as a pixel of a layer, half transparent. */
const pixelOf = (() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const known = new Map();
  return (label) => {
    if (!known.has(label)) {
      context.fillStyle = colour(label);
      context.fillRect(0, 0, 1, 1);
      const { data } = context.getImageData(0, 0, 1, 1);
      data[3] = 120;
      known.set(label, new Uint32Array(data.buffer)[0]);
    }
    return known.get(label);
  };
})();

function draw() {
  const { bitmap, answer, chosen } = state, canvas = one("canvas");
  const width = answer?.width ?? bitmap?.width, height = answer?.height ?? bitmap?.height;
  if (!width) return;
  one("figure").hidden = false;
  const ratio = window.devicePixelRatio || 1;
  const room = Math.min(one("picture").clientWidth / width, (0.78 * window.innerHeight) / height, 6);
  canvas.style.width = `${Math.round(width * room)}px`;
  const scale = room * ratio;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  if (bitmap) context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const list = shown().reverse(); // the surest last, on top
  if (one("masks").checked && list.some((found) => found.runs)) {
    const layer = new ImageData(canvas.width, canvas.height);
    for (const found of list) {
      if (found.runs && (!chosen || found === chosen)) fill(layer, found, scale, pixelOf(found.class_id));
    }
    const sheet = new OffscreenCanvas(canvas.width, canvas.height);
    sheet.getContext("2d").putImageData(layer, 0, 0);
    context.drawImage(sheet, 0, 0);
  }
  for (const found of list) outline(context, found, scale, ratio, chosen);
}

function outline(context, found, scale, ratio, chosen) {
  const [left, top, right, bottom] = found.box_xyxy.map((side) => side * scale);
  context.globalAlpha = !chosen || found === chosen ? 1 : 0.35;
  context.lineWidth = (found === chosen ? 4 : 2) * ratio;
  context.strokeStyle = colour(found.class_id);
  context.strokeRect(left, top, right - left, bottom - top);
  if (one("names").checked && (!chosen || found === chosen)) {
    const text = `${found.class_name} ${found.confidence.toFixed(2)}`, size = 13 * ratio;
    context.font = `600 ${size}px system-ui, sans-serif`;
    const wide = context.measureText(text).width + 0.6 * size, tall = 1.4 * size;
    const x = Math.max(0, Math.min(left - context.lineWidth / 2, context.canvas.width - wide));
    const y = top >= tall ? top - tall : Math.max(0, top);
    context.fillStyle = colour(found.class_id);
    context.fillRect(x, y, wide, tall);
    context.fillStyle = "#000";
    context.textBaseline = "middle";
    context.fillText(text, x + 0.3 * size, y + tall / 2);
  }
  context.globalAlpha = 1;
}

/* Controls. */
one("threshold").addEventListener("input", refresh);
for (const id of ["names", "masks"]) one(id).addEventListener("change", draw);
for (const [id, checked] of [["all", true], ["none", false]]) {
  one(id).addEventListener("click", () => {
    for (const box of document.querySelectorAll("#classes input")) {
      box.checked = checked;
      if (checked) state.hidden.delete(Number(box.dataset.label));
      else state.hidden.add(Number(box.dataset.label));
    }
    refresh();
  });
}
one("download").addEventListener("click", () => {
  const detections = shown().map(({ runs, ...found }) => found);
  const content = { image: state.file.name, ...state.answer, threshold: threshold(), detections };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = `${state.file.name.replace(/\.[^.]*$/, "") || "image"}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
});
new ResizeObserver(draw).observe(one("picture"));

const told = fetch("info").then((answer) => answer.json()).then((info) => {
  state.info = info;
  const names = Object.values(info.classes), many = names.length === 1 ? "1 class" : `${names.length} classes`;
  one("about").textContent = `${info.variant ?? "A detector"} with ${many} (${names.slice(0, 8).join(", ")}`
    + `${names.length > 8 ? ", …" : ""}), ${info.resolution[0]} × ${info.resolution[1]} pixels, ${info.engine} ${info.dtype} on ${info.device}`;
  document.title = `${info.variant ?? "A detector"}: try the model`;
}).catch(() => tell("The server does not answer: is it still running?"));
