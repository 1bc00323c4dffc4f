// The error of every pair in execution order, with what was allowed: zoom, names on hover, a click opens.
const KINDS = [
  { name: "within what is allowed", key: "dot-same", colour: "point-same", size: 5, takes: (run, row) => SAME.has(run.state(row)) },
  { name: "no divergence (see state)", key: "dot-excused", colour: "quiet", size: 5, takes: (run, row) => run.isExcused(row) },
  { name: "beyond it, inherited", key: "dot-differs", colour: "point-differs", size: 6, takes: (run, row) => run.state(row) === "differs" },
  { name: "introduced", key: "diamond", colour: "ring", size: 0, takes: (run, row) => run.state(row) === INTRODUCED },
];

const order = {
  start() {
    document.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => this.zoom(button.dataset.zoom)));
    on("run", () => this.draw());
    on("theme", () => this.draw());
    on("row", (row) => this.show(row));
    new ResizeObserver(() => this.plot && this.plot.width !== this.width() && this.plot.setSize({ width: this.width(), height: this.height() })).observe(byId("order-body"));
    legend("order-legend", ...KINDS.map(({ key, name }) => [key, name]), ["dashes", "allowed"], ["dots", "noise floor"]);
    this.draw();
  },

  width: () => Math.max(280, byId("order-body").clientWidth),
  height: () => (innerWidth < 640 ? 280 : 380),

  draw() {
    const run = (this.run = chosen.run);
    this.plot?.destroy();
    byId("order-body").replaceChildren();
    if (!run.count) return;
    this.scale(run);
    const x = Array.from({ length: run.count }, (_, row) => row);
    const limits = carriedOn(x.map((row) => run.limit(row))), floors = carriedOn(x.map((row) => run.columns.floor[row]));
    const kinds = KINDS.map(({ takes }) => x.map((row) => (takes(run, row) ? this.height_of(row) : null)));
    const stepped = uPlot.paths.stepped({ align: 1 });
    const points = KINDS.map(({ name, colour: ink, size }) => ({ label: name, stroke: colour(ink), paths: () => null, points: { show: size > 0, size: run.count > 3000 ? size - 2 : size, fill: colour(ink), width: 0 } }));
    const axis = { stroke: colour("quiet"), grid: { stroke: colour("grid"), width: 1 }, ticks: { stroke: colour("grid") }, font: "12px system-ui, sans-serif" };
    this.plot = new uPlot(
      {
        width: this.width(),
        height: this.height(),
        legend: { show: false },
        padding: [26, 12, 0, 0],
        scales: { x: { time: false, range: (_, low, high) => [low - 0.5, high + 0.5] }, y: { distr: 3, range: () => [this.low / 4, this.high * 3] } },
        cursor: { y: false, drag: { x: true, y: false }, points: { show: false } },
        axes: [{ ...axis, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick.toLocaleString("en") : "")), size: 34 }, { ...axis, size: 76, splits: () => this.splits(), filter: (_, splits) => splits, values: (_, ticks) => ticks.map((tick) => this.tick(tick)) }],
        series: [
          {},
          { label: "allowed", stroke: colour("ink"), width: 1.2, dash: [5, 4], paths: stepped, points: { show: false } },
          { label: "noise floor", stroke: colour("good"), width: 1.2, dash: [2, 3], paths: stepped, points: { show: false } },
          ...points,
        ],
        hooks: { drawClear: [(plot) => this.bands(plot)], draw: [(plot) => this.diamonds(plot)], setCursor: [(plot) => this.hover(plot)] },
      },
      [x, limits, floors, ...kinds],
      byId("order-body"),
    );
    const over = this.plot.over;
    let pressed = 0;
    over.setAttribute("tabindex", "0");
    over.setAttribute("role", "application");
    over.setAttribute("aria-describedby", "order-hint");
    over.setAttribute("aria-label", `The errors of ${run.count} pairs in execution order, ${run.introduced.length} of them introduced; the table of all pairs has the same numbers`);
    over.addEventListener("mousedown", (event) => { pressed = event.clientX; });
    over.addEventListener("click", (event) => { if (Math.abs(event.clientX - pressed) < 4 && this.near !== null) chooseRow(this.near); });
    over.addEventListener("mouseleave", hideTip);
    over.addEventListener("keydown", (event) => this.key(event));
  },

  // Whole decades round all errors and limits; zero and what is no number stand on lines of their own.
  scale(run) {
    const known = [];
    for (let row = 0; row < run.count; row++) for (const value of [run.error(row), run.limit(row)]) if (value > 1e-12 && value < 1e12) known.push(value);
    const ends = known.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [1e-6, 1e-4]);
    this.low = 10 ** Math.floor(Math.log10(ends[0]));
    this.high = 10 ** Math.ceil(Math.log10(ends[1] * 1.2));
  },

  height_of(row) {
    const error = this.run.error(row);
    if (error === null) return FAR.has(this.run.state(row)) ? this.high * 1.8 : null;
    return error <= 0 ? this.low / 2.5 : error > 1e12 ? this.high * 1.8 : Math.max(error, this.low);
  },

  splits() {
    const decades = Math.round(Math.log10(this.high / this.low)), every = Math.max(1, Math.ceil(decades / 8)), found = [this.low / 2.5];
    for (let place = 0; place <= decades; place += every) found.push(this.low * 10 ** place);
    return found;
  },
  tick(value) { return value < this.low * 0.99 ? "identical" : `1e${Math.round(Math.log10(value))}`; },

  bands(plot) {
    const run = this.run, pen = plot.ctx, { left, top, width, height } = plot.bbox, ratio = devicePixelRatio || 1;
    pen.save();
    pen.font = `${11 * ratio}px system-ui, sans-serif`;
    pen.textBaseline = "bottom";
    let start = 0, odd = false, free = -Infinity;
    for (let row = 1; row <= run.count; row++)
      if (row === run.count || run.columns.stage[row] !== run.columns.stage[start]) {
        const [from, to] = [start - 0.5, row - 0.5].map((at) => Math.max(left, Math.min(left + width, plot.valToPos(at, "x", true))));
        const name = run.stage(start);
        if (to > from && name) {
          if ((odd = !odd)) { pen.fillStyle = colour("sunk"); pen.fillRect(from, top, to - from, height); }
          const middle = (from + to) / 2, room = pen.measureText(name).width / 2;
          if (middle - room > free && middle - room > left - 8 * ratio && to - from > room * 0.9) {
            pen.fillStyle = colour("quiet");
            pen.fillText(name, middle - room, top - 4 * ratio);
            free = middle + room + 8 * ratio;
          }
        }
        start = row;
      }
    pen.restore();
  },

  diamonds(plot) {
    const run = this.run, pen = plot.ctx, ratio = devicePixelRatio || 1;
    pen.save();
    pen.strokeStyle = colour("card");
    pen.lineWidth = ratio;
    let free = -Infinity;
    run.introduced.forEach((row, place) => {
      if (row < plot.scales.x.min || row > plot.scales.x.max) return;
      const x = plot.valToPos(row, "x", true), y = plot.valToPos(this.height_of(row), "y", true), size = 6.5 * ratio;
      pen.fillStyle = colour("ring");
      pen.beginPath();
      [[0, -size], [size, 0], [0, size], [-size, 0]].forEach(([dx, dy]) => pen.lineTo(x + dx, y + dy));
      pen.closePath();
      pen.fill();
      pen.stroke();
      const card = run.columns.cards.indexOf(row);
      if (x < free) return;
      pen.font = `600 ${11 * ratio}px system-ui, sans-serif`;
      const text = card >= 0 ? String(card + 1) : "";
      pen.fillText(text, x - pen.measureText(text).width / 2, y - 9 * ratio);
      free = x + 14 * ratio;
    });
    if (chosen.row >= 0 && chosen.row >= plot.scales.x.min && chosen.row <= plot.scales.x.max) {
      const x = plot.valToPos(chosen.row, "x", true);
      pen.strokeStyle = colour("link");
      pen.lineWidth = 1.5 * ratio;
      pen.strokeRect(x, plot.bbox.top, 0, plot.bbox.height);
    }
    pen.restore();
  },

  // The pair nearest to the pointer: an introduced one within reach before all others.
  hover(plot) {
    const { left, top, idx } = plot.cursor;
    this.near = null;
    if (idx === null || left < 0) return hideTip();
    const per = Math.max(1, Math.round(plot.posToVal(left + 7, "x") - plot.posToVal(left, "x"))), run = this.run;
    let near = idx, least = Infinity;
    for (let row = Math.max(0, idx - per); row <= Math.min(run.count - 1, idx + per); row++) {
      const height = this.height_of(row);
      if (height === null) continue;
      const away = Math.hypot(plot.valToPos(row, "x") - left, plot.valToPos(height, "y") - top) - (run.state(row) === INTRODUCED ? 8 : 0);
      if (away < least) [near, least] = [row, away];
    }
    this.near = near;
    const box = plot.over.getBoundingClientRect();
    showTip(box.left + left, box.top + top, ...told(run, near));
  },

  key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Enter" && chosen.row >= 0) return chooseRow(chosen.row);
    if (!by) return;
    event.preventDefault();
    chooseRow(Math.max(0, Math.min(this.run.count - 1, chosen.row + by)), { isQuiet: true });
    byId("order-hint").textContent = told(this.run, chosen.row).join(" · ");
  },

  show(row) {
    if (!this.plot || this.run !== chosen.run) return;
    const { min, max } = this.plot.scales.x;
    if (row < min || row > max) this.range(row - (max - min) / 2, row + (max - min) / 2);
    else this.plot.redraw(false);
  },

  zoom(how) {
    const { min, max } = this.plot.scales.x, middle = chosen.row >= min && chosen.row <= max ? chosen.row : (min + max) / 2;
    const half = ((max - min) / 2) * (how === "in" ? 0.4 : 2.5);
    this.range(how === "all" ? 0 : middle - half, how === "all" ? this.run.count - 1 : middle + half);
  },

  range(low, high) {
    const last = this.run.count - 1;
    this.plot.setScale("x", { min: Math.max(0, Math.min(low, last - 1)), max: Math.min(last, Math.max(high, low + 2)) });
  },
};

// The lines that name a pair and its error.
function told(run, row) {
  const call = shortCall(run.call(row)), ratio = run.ratio(row);
  const size = ratio !== null && ratio < INFINITE && run.limit(row) ? `, ${multiple(ratio)} × allowed` : "";
  return [`${siteName(run.port(row))} ${run.end(row)}`, call, `${run.state(row)}: ${run.error(row) === null ? run.text("how", row) || "no error measured" : `relative L2 ${number(run.error(row))}`}${size}`, run.stage(row)];
}

// A line that runs on where there is no value.
function carriedOn(values) {
  let last = null;
  return values.map((value) => (last = value > 0 && value < INFINITE ? value : last));
}
