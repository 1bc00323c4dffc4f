// All pairs as a table of which only the lines that are seen exist: search, filter, sort, open.
const LINE = 34;
const COLUMNS = [
  { name: "#", key: "place", class: "number", value: (run, row) => row, text: (run, row) => String(row + 1) },
  { name: "State", key: "state", class: "state", value: (run, row) => run.columns.state[row], text: (run, row) => run.state(row) },
  { name: "Port", key: "port", class: "name", value: (run, row) => run.columns.port[row], text: (run, row) => siteName(run.port(row)) },
  { name: "Reference", key: "reference", class: "name", value: (run, row) => run.columns.reference[row], text: (run, row) => siteName(run.reference(row)) },
  { name: "End", key: "end", class: "name", value: (run, row) => run.columns.end[row], text: (run, row) => run.end(row) },
  { name: "Call", key: "call", class: "name", value: (run, row) => run.columns.call[row], text: (run, row) => shortCall(run.call(row)) },
  { name: "Error", key: "error", class: "number", value: (run, row) => run.error(row) ?? -1, text: (run, row) => (run.error(row) === null ? run.text("how", row) || "–" : number(run.error(row))) },
  { name: "Allowed", key: "limit", class: "number", value: (run, row) => run.limit(row) ?? -1, text: (run, row) => (run.text("by", row) === "exact" ? "none" : number(run.limit(row))) },
  { name: "× allowed", key: "ratio", class: "number", value: (run, row) => run.ratio(row) ?? -1, text: (run, row) => multiple(run.ratio(row)) },
];

const pairs = {
  start() {
    this.sorted = { column: COLUMNS[0], isDown: false };
    byId("pairs-search").addEventListener("input", () => this.filter());
    for (const id of ["pairs-state", "pairs-stage", "pairs-end"]) byId(id).addEventListener("change", () => this.filter());
    on("run", () => this.build());
    on("row", (row, isQuiet) => this.show(row, isQuiet));
    const heads = COLUMNS.map((column, place) => el("span", { role: "columnheader", class: `cell ${column.class} c-${column.key}`, "aria-colindex": place + 1 }, el("button", { type: "button", onclick: () => this.sort(column) }, column.name)));
    this.head = el("div", { class: "line head", role: "row", "aria-rowindex": "1" }, ...heads);
    this.space = el("div", { class: "space", role: "presentation" });
    this.scroller = el("div", { class: "lines", tabindex: "0", role: "rowgroup" }, this.space);
    this.scroller.addEventListener("scroll", () => { this.frame ??= requestAnimationFrame(() => { this.frame = null; this.draw(); }); }, { passive: true });
    this.scroller.addEventListener("keydown", (event) => this.key(event));
    this.grid = el("div", { class: "grid", role: "grid", "aria-label": "All pairs of records", "aria-colcount": COLUMNS.length }, this.head, this.scroller);
    byId("pairs-body").replaceChildren(this.grid);
    new ResizeObserver(() => this.draw()).observe(this.scroller);
    this.build();
  },

  build() {
    const run = (this.run = chosen.run);
    const kinds = new Map();
    const fill = (id, all, values) => byId(id).replaceChildren(el("option", { value: "" }, all), ...values.map(([value, name]) => el("option", { value }, name)));
    for (let row = 0; row < run.count; row++) kinds.set(run.state(row), (kinds.get(run.state(row)) ?? 0) + 1);
    fill("pairs-state", "all states", [["beyond", `beyond what is allowed (${((kinds.get(INTRODUCED) ?? 0) + (kinds.get("differs") ?? 0)).toLocaleString("en")})`], ...[...kinds].map(([kind, count]) => [kind, `${kind} (${count.toLocaleString("en")})`])]);
    const names = (column) => [...new Set(run.columns[column])].map((place) => [String(place), data.names[place] || "(none)"]);
    fill("pairs-stage", "all stages", names("stage"));
    fill("pairs-end", "all ends", names("end"));
    byId("pairs-stage").parentElement.hidden = names("stage").length < 2;
    this.at = -1;
    this.filter();
  },

  filter() {
    const run = this.run, words = byId("pairs-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [state, stage, end] = ["pairs-state", "pairs-stage", "pairs-end"].map((id) => byId(id).value);
    this.rows = [];
    for (let row = 0; row < run.count; row++) {
      if (state && (state === "beyond" ? !FAR.has(run.state(row)) : run.state(row) !== state)) continue;
      if (stage && run.columns.stage[row] !== Number(stage)) continue;
      if (end && run.columns.end[row] !== Number(end)) continue;
      if (words.length && !words.every((word) => run.searchable(row).includes(word))) continue;
      this.rows.push(row);
    }
    this.order();
  },

  sort(column) {
    this.sorted = { column, isDown: this.sorted.column === column ? !this.sorted.isDown : column.class === "number" && column.key !== "place" };
    this.order();
  },

  order() {
    const { column, isDown } = this.sorted, run = this.run, sign = isDown ? -1 : 1;
    const isText = column.class !== "number";
    const keys = new Map(this.rows.map((row) => [row, isText ? column.text(run, row) : column.value(run, row)]));
    this.rows.sort((a, b) => {
      const [left, right] = [keys.get(a), keys.get(b)];
      return (left < right ? -sign : left > right ? sign : 0) || a - b;
    });
    [...this.head.children].forEach((head, place) => head.setAttribute("aria-sort", COLUMNS[place] === column ? (isDown ? "descending" : "ascending") : "none"));
    byId("pairs-count").textContent = `${this.rows.length.toLocaleString("en")} of ${run.count.toLocaleString("en")}`;
    this.space.style.height = `${this.rows.length * LINE}px`;
    this.grid.setAttribute("aria-rowcount", this.rows.length + 1);
    this.scroller.scrollTop = 0;
    this.draw();
  },

  draw() {
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / LINE) - 8);
    const last = Math.min(this.rows.length, first + Math.ceil(this.scroller.clientHeight / LINE) + 16);
    this.head.style.paddingRight = `calc(.6rem + ${this.scroller.offsetWidth - this.scroller.clientWidth}px)`;
    const lines = [];
    for (let place = first; place < last; place++) lines.push(this.line(place));
    this.space.replaceChildren(...lines);
    if (!this.rows.length) this.space.append(el("div", { role: "row", class: "quiet none" }, el("span", { role: "gridcell" }, "No pair fits. Clear the search or a filter.")));
  },

  line(place) {
    const run = this.run, row = this.rows[place], state = run.state(row);
    const cells = COLUMNS.map((column, number) => {
      const text = column.text(run, row);
      return el("span", { role: "gridcell", class: `cell ${column.class} c-${column.key}`, "aria-colindex": number + 1, title: column.class === "name" ? (column.key === "call" ? run.call(row) : text) : null }, column.key === "state" ? el("i", { class: `dot ${state === INTRODUCED ? "ringed " : ""}step-${run.ratio(row) === null ? "none" : step(run.ratio(row))}`, "aria-hidden": "true" }) : null, column.class === "name" ? el("bdi", {}, text) : text);
    });
    const made = el("div", { class: `line${FAR.has(state) ? " far" : ""}${row === chosen.row ? " chosen" : ""}`, role: "row", "aria-rowindex": place + 2, "aria-selected": String(row === chosen.row), style: { top: `${place * LINE}px` } }, ...cells);
    made.addEventListener("click", () => { this.at = place; chooseRow(row); });
    return made;
  },

  key(event) {
    const page = Math.floor(this.scroller.clientHeight / LINE) - 1, end = this.rows.length;
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -end, End: end }[event.key];
    if (event.key === "Enter" && this.rows[this.at] !== undefined) return chooseRow(this.rows[this.at]);
    if (!by || !end) return;
    event.preventDefault();
    this.at = Math.max(0, Math.min(end - 1, this.at + by));
    chooseRow(this.rows[this.at], { isQuiet: true });
  },

  // Scrolls to a pair that is among those shown.
  show(row) {
    const place = this.rows[this.at] === row ? this.at : this.rows.indexOf(row), view = this.scroller;
    if (place >= 0) {
      this.at = place;
      if (place * LINE < view.scrollTop || (place + 1) * LINE > view.scrollTop + view.clientHeight) view.scrollTop = place * LINE - view.clientHeight / 2;
    }
    this.draw();
  },
};
