// The data of the page, and what all parts share: elements, colours, numbers, what is selected.
const data = await unpacked(document.getElementById("data").textContent);
const INFINITE = 1e300;
const ROOT = "the root";
const INTRODUCED = "INTRODUCED";
const RETURNED = "##returned";

function bytes(text) {
  const raw = atob(text), found = new Uint8Array(raw.length);
  for (let place = 0; place < raw.length; place++) found[place] = raw.charCodeAt(place);
  return found;
}

// The data of a text that is deflated JSON in base64.
async function unpacked(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

// ---------------------------------------------------------------------------------------------------------------- elements

// An element with attributes and children; texts stay texts, whatever they hold.
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(made.style, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const byId = (id) => document.getElementById(id);
const isDark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Pixels of a canvas for each of CSS: small plots are stretched, and stay sharp.
const sharpness = 2;

// A canvas of a size in CSS pixels, sharp on every screen.
function canvas(width, height, attributes = {}) {
  const made = el("canvas", attributes);
  const ratio = sharpness;
  made.width = Math.max(1, Math.round(width * ratio));
  made.height = Math.max(1, Math.round(height * ratio));
  Object.assign(made.style, { width: `${width}px`, height: `${height}px` });
  const pen = made.getContext("2d");
  pen.scale(ratio, ratio);
  return [made, pen];
}

// ----------------------------------------------------------------------------------------------------------------- numbers

function number(value) {
  if (value === null || value === undefined) return "–";
  if (Math.abs(value) >= INFINITE) return "not finite";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 0.01 && size < 10000 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

function multiple(value) {
  if (value === null) return "";
  if (value >= INFINITE) return "beyond";
  if (value === 0) return "0";
  if (value < 0.01) return "< 0.01";
  return value < 10 ? value.toFixed(2) : value < 1e6 ? Math.round(value).toLocaleString("en") : value.toExponential(1);
}

// -------------------------------------------------------------------------------------------------------------------- runs

const callTexts = new Map([[-1, ""]]);
function callText(place) {
  if (!callTexts.has(place)) {
    const [around, own] = data.calls[place];
    callTexts.set(place, around < 0 ? data.names[own] : `${callText(around)}/${data.names[own]}`);
  }
  return callTexts.get(place);
}

// The scopes of a call, by name.
const callScopes = new Map([[-1, []]]);
function scopesOf(place) {
  if (!callScopes.has(place)) {
    const [around, own] = data.calls[place], name = data.names[own], outer = scopesOf(around);
    callScopes.set(place, name.startsWith("@") ? [...outer, name.slice(1).split("=")] : outer);
  }
  return callScopes.get(place);
}

// Of a call the scopes, and the frames that were not entered for the first time.
const shortCall = (call) => call.split("/").filter((part) => !part.endsWith("[0]")).join("/");
const siteName = (name) => (name === "" ? ROOT : name === RETURNED ? "what the run returned" : name);
const SAME = new Set(["same", "identical", "rounding"]);
const FAR = new Set([INTRODUCED, "differs"]);

// One run of the port: a column of each thing known of its pairs, asked by row.
class Run {
  constructor(columns, place) {
    Object.assign(this, { columns, place, mode: columns.mode, count: columns.reference.length });
    this.introduced = [];
    this.ratios = new Float64Array(this.count).fill(NaN);
    for (let row = 0; row < this.count; row++) {
      if (this.state(row) === INTRODUCED) this.introduced.push(row);
      const ratio = this.measured(row);
      if (ratio !== null) this.ratios[row] = ratio;
    }
    this.searched = [];
  }
  text(column, row) { return data.names[this.columns[column][row]]; }
  reference(row) { return this.text("reference", row); }
  port(row) { return this.text("port", row); }
  end(row) { return this.text("end", row); }
  stage(row) { return this.text("stage", row); }
  state(row) { return this.text("state", row); }
  call(row) { return callText(this.columns.call[row]); }
  error(row) { return this.columns.error[row]; }
  limit(row) { return this.columns.limit[row]; }
  // The error as a multiple of what is allowed: at most 1 where it is no divergence, more than 1 where it is one, null where unknown.
  ratio(row) { return Number.isNaN(this.ratios[row]) ? null : this.ratios[row]; }
  measured(row) {
    const state = this.state(row), error = this.error(row), limit = this.limit(row);
    if (state === "not compared" && !error) return null;
    const plain = error === null ? (FAR.has(state) ? INFINITE : null) : error === 0 ? 0 : limit ? Math.min(error / limit, INFINITE) : null;
    if (FAR.has(state)) return Math.max(plain ?? INFINITE, 1.0001);
    if (plain === null) return SAME.has(state) ? 0 : null;
    return Math.min(plain, 1);
  }
  isExcused(row) { return !FAR.has(this.state(row)) && !SAME.has(this.state(row)) && this.state(row) !== "not compared"; }
  searchable(row) {
    return (this.searched[row] ??= [this.reference(row), this.port(row), this.end(row), this.call(row), this.stage(row), this.state(row)].join(" ").toLowerCase());
  }
  find(site, call, end) {
    for (let row = 0; row < this.count; row++)
      if ((this.reference(row) === site || this.port(row) === site) && (!end || this.end(row) === end) && (call === null || this.call(row) === call)) return row;
    return -1;
  }
}

const runs = data.runs.map((columns, place) => new Run(columns, place));
const panels = new Map(data.panels.map((panel) => [`${panel.run}:${panel.row}`, panel]));

// --------------------------------------------------------------------------------------------------------------- selection

const listeners = { run: [], row: [], site: [], theme: [] };
const on = (what, listener) => listeners[what].push(listener);
const tell = (what, ...values) => listeners[what].forEach((listener) => listener(...values));
const chosen = { run: runs[0], row: -1 };

function chooseRun(place) {
  if (!runs[place] || runs[place] === chosen.run) return;
  chosen.run = runs[place];
  chosen.row = -1;
  tell("run", chosen.run);
}

// Opens a pair of records: in the panel, and in all that show where it is.
function chooseRow(row, { isQuiet = false } = {}) {
  if (row < 0 || row >= chosen.run.count) return;
  chosen.row = row;
  tell("row", row, isQuiet);
  const parts = { run: runs.length > 1 ? chosen.run.mode : null, site: chosen.run.port(row), call: chosen.run.call(row), end: chosen.run.end(row) };
  const link = Object.entries(parts).filter(([, value]) => value !== null).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
  try {
    history.replaceState(null, "", `#${link.join("&")}`);
  } catch {
    // a page inside a notebook's cell has no address to change
  }
}

// ----------------------------------------------------------------------------------------------------------------- colours

const STEPS = [0, 0.01, 0.1, 1, 3, 30, 1000];
const STEP_NAMES = ["identical", "< 0.01", "< 0.1", "allowed", "1–3 ×", "3–30 ×", "30–1000 ×", "beyond"];
// The step of the scale of errors: 0 for none, 3 up to what is allowed, 4 and more beyond it.
function step(ratio) {
  if (ratio === 0) return 0;
  if (ratio <= 1) return ratio < 0.01 ? 1 : ratio < 0.1 ? 2 : 3;
  return ratio < 3 ? 4 : ratio < 30 ? 5 : ratio < 1000 ? 6 : 7;
}
const stepColour = (place) => colour(`step-${place}`);

// A table of 256 colours through the given stops.
function ramp(stops) {
  const parts = stops.map((stop) => [1, 3, 5].map((place) => parseInt(stop.slice(place, place + 2), 16)));
  return Array.from({ length: 256 }, (_, place) => {
    const at = (place / 254) * (parts.length - 1), low = Math.min(Math.floor(at), parts.length - 2), share = Math.min(at - low, 1);
    return parts[low].map((value, channel) => Math.round(value + share * (parts[low + 1][channel] - value)));
  });
}
const VALUES = ramp(["#00224e", "#3b496c", "#7c7b78", "#bcae6c", "#fee838"]);
const SHARES = VALUES.map((_, place) => VALUES[Math.round(Math.sqrt(place / 255) * 255)]);
const signed = () => ramp(isDark.matches ? ["#6fc3ff", "#1f5f99", "#15181c", "#b3471f", "#ff9a5c"] : ["#053f7a", "#5aa0d6", "#f7f7f7", "#ef8a48", "#8f2300"]);

// Cells as a picture of the given size; 255 stands for what is no number.
function picture(cells, height, width, table, isFlipped = false) {
  const drawn = document.createElement("canvas");
  drawn.width = width;
  drawn.height = height;
  const pen = drawn.getContext("2d"), image = pen.createImageData(width, height), none = isDark.matches ? [70, 76, 84] : [200, 204, 210];
  for (let row = 0; row < height; row++)
    for (let column = 0; column < width; column++) {
      const cell = cells[(isFlipped ? height - 1 - row : row) * width + column];
      image.data.set([...(cell === 255 ? none : table[cell]), 255], (row * width + column) * 4);
    }
  pen.putImageData(image, 0, 0);
  return drawn;
}

// The tip beside the pointer.
function showTip(x, y, ...lines) {
  const tip = byId("tip");
  tip.replaceChildren(...lines.filter(Boolean).map((line, place) => el("div", place ? {} : { class: "first" }, line)));
  tip.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tip;
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? Math.max(8, y - height - 12) : y + 18}px`;
}
const hideTip = () => { byId("tip").hidden = true; };

function legend(id, ...entries) {
  byId(id).replaceChildren(...entries.map(([kind, name]) => el("span", { class: "key" }, el("i", { class: `swatch ${kind}`, "aria-hidden": "true" }), name)));
}
