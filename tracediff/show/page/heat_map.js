// The heat map: modules downwards; calls, steps of a loop or layers across; the colour is the error over what is allowed.
const ROW = 20;
const MOST_COLUMNS = 160;

const heatMap = {
  start() {
    byId("map-folded").addEventListener("change", () => this.build());
    byId("map-columns").addEventListener("change", () => this.draw());
    on("run", () => this.build());
    on("theme", () => this.draw());
    on("row", () => this.mark());
    legend("map-legend", ...STEP_NAMES.map((name, place) => [`step-${place}`, name]), ["ringed", "introduced"], ["hatched", "no partner"], ["dotted", "not judged"]);
    this.build();
  },

  build() {
    const run = (this.run = chosen.run);
    this.folded = byId("map-folded").checked;
    this.root = moduleTree(run, "port", this.folded);
    this.root.label = ROOT;
    openTo(this.root, run, 48);
    this.keys = columnKeys(run, this.folded);
    const select = byId("map-columns"), before = select.value;
    select.replaceChildren(...[...this.keys].map(([name, { label }]) => el("option", { value: name }, label)));
    select.value = this.keys.has(before) ? before : bestColumns(this.keys, run);
    this.draw();
  },

  draw() {
    const { values, of } = this.keys.get(byId("map-columns").value);
    const nodes = (this.nodes = shownNodes(this.root));
    const bins = Math.min(values.length, MOST_COLUMNS);
    this.columns = { values, bins, name: byId("map-columns").selectedOptions[0].text };
    const column = (row) => Math.floor((of(row) / values.length) * bins);
    const names = el("div", { class: "map-names" }, ...nodes.map((node, place) => this.name(node, place)));
    this.cells = nodes.map((node) => {
      const rows = Array.from({ length: bins }, () => []);
      for (const row of node.isOpen && node.below.size ? node.rows : node.all) rows[column(row)].push(row);
      return rows.map((own) => (own.length ? worst(this.run, own) : null));
    });
    const room = Math.max(160, byId("map-body").clientWidth - (innerWidth < 640 ? 150 : 300) - 24);
    this.width = Math.max(5, Math.min(56, Math.floor(room / bins)));
    const [drawn, pen] = canvas(this.width * bins + 2, nodes.length * ROW + 2, { class: "map-cells", tabindex: "0", role: "application", "aria-describedby": "map-hint", "aria-label": `Heat map: ${nodes.length} modules by ${bins} ${this.columns.name}; arrow keys move, Enter opens` });
    this.pen = pen;
    nodes.forEach((node, y) => this.cells[y].forEach((cell, x) => this.cell(cell, node, x, y)));
    drawn.addEventListener("pointermove", (event) => this.hover(event, drawn));
    drawn.addEventListener("pointerleave", hideTip);
    drawn.addEventListener("click", (event) => { const [x, y] = this.at(event, drawn); this.open(x, y); });
    drawn.addEventListener("keydown", (event) => this.key(event));
    const head = el("div", { class: "map-head" }, ...this.ticks());
    byId("map-body").replaceChildren(el("div", { class: "map" }, names, el("div", { class: "map-scroll", tabindex: "-1" }, head, drawn)));
    this.cursor = null;
    this.mark();
  },

  ticks() {
    const { values, bins } = this.columns, every = Math.max(1, Math.ceil(34 / this.width));
    const made = [];
    for (let bin = 0; bin < bins; bin += every) made.push(el("span", { style: { left: `${bin * this.width}px` } }, String(values[Math.floor((bin / bins) * values.length)])));
    return made;
  },

  name(node, place) {
    const inner = worst(this.run, node.all);
    const label = node === this.root ? ROOT : node.title;
    const body = [el("i", { class: `dot step-${inner.ratio === null ? "none" : step(inner.ratio)}${inner.isIntroduced ? " ringed" : ""}` }), el("span", {}, label)];
    const style = { paddingLeft: `${Math.max(0, node.depth - 1) * 12 + 2}px` };
    if (!node.below.size || node === this.root) return el("div", { class: "map-name", style, title: node.path }, el("b", { class: "twist" }, ""), ...body);
    const flip = () => {
      node.isOpen = !node.isOpen;
      this.draw();
      byId("map-body").querySelectorAll(".map-name")[place]?.focus();
    };
    return el("button", { class: "map-name", type: "button", style, title: node.path, "aria-expanded": String(node.isOpen), onclick: flip }, el("b", { class: "twist" }, node.isOpen ? "▾" : "▸"), ...body);
  },

  cell(cell, node, x, y) {
    const pen = this.pen, left = x * this.width + 1, top = y * ROW + 1, width = this.width - 1, height = ROW - 2;
    if (!cell) {
      if (node.missing && !node.all.length) this.hatch(left, top, width, height);
      return;
    }
    pen.fillStyle = cell.ratio === null ? colour("sunk") : stepColour(step(cell.ratio));
    pen.fillRect(left, top, width, height);
    if (cell.ratio === null || cell.isExcused) {
      pen.fillStyle = colour("quiet");
      pen.fillRect(left + width / 2 - 1.5, top + height / 2 - 1.5, 3, 3);
    }
    if (cell.isIntroduced) {
      pen.strokeStyle = colour("ring");
      pen.lineWidth = 2.5;
      pen.strokeRect(left + 1, top + 1, Math.max(width - 2, 2), height - 2);
    }
  },

  hatch(left, top, width, height) {
    const pen = this.pen;
    pen.save();
    pen.beginPath();
    pen.rect(left, top, width, height);
    pen.clip();
    pen.strokeStyle = colour("line");
    pen.lineWidth = 1.5;
    for (let x = left - height; x < left + width; x += 6) {
      pen.beginPath();
      pen.moveTo(x, top + height);
      pen.lineTo(x + height, top);
      pen.stroke();
    }
    pen.restore();
  },

  at(event, drawn) {
    const box = drawn.getBoundingClientRect();
    return [Math.floor((event.clientX - box.left) / this.width), Math.floor((event.clientY - box.top) / ROW)];
  },

  told(x, y) {
    const node = this.nodes[y], { values, bins, name } = this.columns;
    if (!node || x < 0 || x >= bins) return null;
    const first = Math.floor((x / bins) * values.length), cell = this.cells[y][x];
    const where = `${node === this.root ? ROOT : node.path.replace(/\.([:#!])/g, "$1")} · ${name} ${values[first]}`;
    if (!cell) return [where, node.missing && !node.all.length ? "no partner in the reference" : "nothing here"];
    const run = this.run, ratio = cell.ratio === null ? "not compared" : cell.ratio > 1 ? `${multiple(cell.ratio)} × what is allowed` : `${multiple(cell.ratio)} of what is allowed`;
    return [where, `${cell.isIntroduced ? "introduced here: " : ""}${ratio}`, `worst at ${siteName(run.port(cell.row))} ${run.end(cell.row)}`];
  },

  hover(event, drawn) {
    const lines = this.told(...this.at(event, drawn));
    if (lines) showTip(event.clientX, event.clientY, ...lines);
    else hideTip();
  },

  open(x, y) {
    const cell = this.cells[y]?.[x];
    if (cell) chooseRow(cell.row);
  },

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    this.cursor ??= [0, 0];
    if (event.key === "Enter") return this.open(...this.cursor);
    if (!moves[event.key]) return;
    event.preventDefault();
    this.cursor = this.cursor.map((value, axis) => Math.max(0, Math.min(value + moves[event.key][axis], axis ? this.nodes.length - 1 : this.columns.bins - 1)));
    byId("map-hint").textContent = (this.told(...this.cursor) ?? []).join(" · ");
    this.mark();
  },

  // A frame round the cell that the keys are at, and a bar beside the module of the pair that is open.
  mark() {
    const scroll = byId("map-body").querySelector(".map-scroll");
    if (!scroll) return;
    scroll.querySelector(".map-cursor")?.remove();
    if (this.cursor) scroll.append(el("div", { class: "map-cursor", style: { left: `${this.cursor[0] * this.width}px`, top: `${this.cursor[1] * ROW + 22}px`, width: `${this.width + 1}px`, height: `${ROW}px` } }));
    const names = byId("map-body").querySelectorAll(".map-name");
    this.nodes.forEach((node, place) => names[place].classList.toggle("chosen", chosen.row >= 0 && (node.isOpen && node.below.size ? node.rows : node.all).includes(chosen.row)));
  },
};

// By name what the columns may be: the number of the call of a site, the values of each scope, the number of the layer.
function columnKeys(run, isFolded) {
  const keys = new Map(), scopes = new Map(), calls = [], counts = new Map();
  const layers = [], layerNumbers = new Set();
  for (let row = 0; row < run.count; row++) {
    const call = run.columns.call[row], site = run.columns.port[row];
    if (!counts.has(site)) counts.set(site, new Map());
    const known = counts.get(site);
    if (!known.has(call)) known.set(call, known.size);
    calls.push(known.get(call));
    for (const [name, value] of scopesOf(call)) {
      if (!scopes.has(name)) scopes.set(name, { values: new Map(), rows: new Map() });
      const scope = scopes.get(name);
      if (!scope.values.has(value)) scope.values.set(value, scope.values.size);
      scope.rows.set(row, scope.values.get(value));
    }
    const numbers = segments(run.port(row)).filter((segment) => NUMBER.test(segment));
    layers.push(numbers.length ? Number(numbers[0]) : -1);
    if (numbers.length) layerNumbers.add(Number(numbers[0]));
  }
  for (const [name, { values, rows }] of scopes)
    if (values.size > 1) keys.set(`scope:${name}`, columns(name, [...values.keys()], run.count > rows.size, (row) => rows.get(row) ?? -1));
  if (isFolded && layerNumbers.size > 1) {
    const sorted = [...layerNumbers].sort((a, b) => a - b), places = new Map(sorted.map((value, place) => [value, place]));
    keys.set("layer", columns("layers", sorted, layers.includes(-1), (row) => places.get(layers[row]) ?? -1));
  }
  const most = calls.reduce((a, b) => Math.max(a, b), 0) + 1;
  keys.set("call", { label: "calls", values: Array.from({ length: most }, (_, place) => place), of: (row) => calls[row] });
  return keys;
}

// Columns of these values, behind one for all that has none of them.
const columns = (label, values, isPartial, place) => ({ label, values: isPartial ? ["–", ...values] : values, of: (row) => place(row) + (isPartial ? 1 : 0) });

// The columns to begin with: the steps of a loop in which at least half of the errors were introduced, or the longest loop where there are none, else layers.
function bestColumns(keys, run) {
  const inside = (name) => run.introduced.filter((row) => scopesOf(run.columns.call[row]).some(([scope]) => `scope:${scope}` === name)).length;
  const loops = [...keys.keys()].filter((name) => name.startsWith("scope:")).sort((a, b) => inside(b) - inside(a) || keys.get(b).values.length - keys.get(a).values.length);
  return loops.find((name) => 2 * inside(name) >= run.introduced.length) ?? (keys.has("layer") ? "layer" : "call");
}
