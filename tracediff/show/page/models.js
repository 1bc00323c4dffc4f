// Both models side by side: what is chosen in one is shown in the other.
const SIDES = ["reference", "port"];

const models = {
  start() {
    byId("models-find").addEventListener("input", () => this.draw());
    byId("models-bad").addEventListener("change", () => this.draw());
    on("run", () => this.build());
    on("row", (row) => this.choose("port", this.leaf.port.get(row)));
    this.build();
  },

  build() {
    const run = (this.run = chosen.run);
    this.roots = {};
    this.leaf = {};
    for (const side of SIDES) {
      const root = (this.roots[side] = moduleTree(run, side, true));
      openTo(root, run, 30);
      this.leaf[side] = new Map([...root.walk()].flatMap((node) => node.rows.map((row) => [row, node])));
    }
    this.selected = { reference: null, port: null };
    this.draw();
  },

  draw() {
    const wanted = byId("models-find").value.toLowerCase().trim(), onlyBad = byId("models-bad").checked;
    for (const side of SIDES) {
      const isShown = (node) => [...node.walk()].some((one) => (!wanted || one.path.toLowerCase().includes(wanted)) && (!onlyBad || one.rows.some((row) => FAR.has(this.run.state(row)))));
      const isFiltered = wanted || onlyBad, lines = [];
      const walk = (node) => {
        if (isFiltered && !isShown(node)) return;
        lines.push(this.line(side, node, isFiltered));
        if (node.isOpen || isFiltered) node.below.forEach(walk);
      };
      this.roots[side].below.forEach(walk);
      if (this.roots[side].rows.length && !wanted) lines.unshift(this.line(side, this.roots[side], isFiltered));
      byId(`tree-${side}`).replaceChildren(...lines);
      this.rove(side);
    }
  },

  line(side, node, isFiltered) {
    const inner = (node.worst ??= worst(this.run, node.all)), isRoot = !node.above;
    const isLost = !node.all.length && node.missing > 0;
    const kind = isLost ? "hatched" : inner.ratio === null ? "step-none" : `step-${step(inner.ratio)}`;
    const made = el(
      "div",
      { class: `leaf${isLost ? " lost" : ""}`, role: "treeitem", tabindex: "-1", style: { paddingLeft: `${Math.max(0, node.depth - 1) * 14 + 4}px` }, "aria-level": Math.max(1, node.depth), "aria-expanded": node.below.size && !isRoot ? String(node.isOpen || Boolean(isFiltered)) : null, title: node.path || ROOT },
      el("b", { class: "twist", "aria-hidden": "true" }, node.below.size && !isRoot ? (node.isOpen || isFiltered ? "▾" : "▸") : ""),
      el("i", { class: `dot ${kind}${inner.isIntroduced ? " ringed" : ""}`, "aria-hidden": "true" }),
      el("span", {}, isRoot ? ROOT : node.title),
      isLost ? el("em", {}, "no partner") : null,
    );
    made.addEventListener("click", (event) => {
      if (event.target.classList.contains("twist") && node.below.size) this.flip(side, node);
      else this.pick(side, node);
    });
    made.addEventListener("dblclick", () => this.open(node));
    made.addEventListener("keydown", (event) => this.key(event, side, node));
    made.node = node;
    made.classList.toggle("chosen", this.selected[side] === node);
    made.setAttribute("aria-selected", String(this.selected[side] === node));
    return made;
  },

  // One line of each tree can be reached by Tab; the arrows go on from there.
  rove(side) {
    const lines = [...byId(`tree-${side}`).children];
    (lines.find((line) => line.node === this.selected[side]) ?? lines[0])?.setAttribute("tabindex", "0");
  },

  flip(side, node) {
    node.isOpen = !node.isOpen;
    this.draw();
    this.focus(side, node);
  },

  focus(side, node) { [...byId(`tree-${side}`).children].find((line) => line.node === node)?.focus(); },

  key(event, side, node) {
    const line = event.currentTarget;
    const steps = { ArrowDown: () => line.nextElementSibling?.focus(), ArrowUp: () => line.previousElementSibling?.focus() };
    if (event.key === "ArrowRight" && node.below.size && !node.isOpen) steps.ArrowRight = () => this.flip(side, node);
    if (event.key === "ArrowLeft") steps.ArrowLeft = () => (node.isOpen && node.below.size && node.above ? this.flip(side, node) : node.above && this.focus(side, node.above));
    if (event.key === "Enter" || event.key === " ") steps[event.key] = () => (this.selected[side] === node ? this.open(node) : this.pick(side, node));
    if (!steps[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    steps[event.key]();
  },

  open(node) {
    const { row } = worst(this.run, node.all);
    if (row >= 0) chooseRow(row);
  },

  // Chooses a module, and in the other tree what holds the partners of all its pairs.
  pick(side, node) {
    this.choose(side, node);
    const { ratio } = worst(this.run, node.all), partner = this.selected[SIDES[1 - SIDES.indexOf(side)]];
    const size = ratio === null ? "not compared" : ratio > 1 ? `worst ${multiple(ratio)} × what is allowed` : "within what is allowed";
    const pairs = `${node.all.length.toLocaleString("en")} ${node.all.length === 1 ? "pair" : "pairs"}`;
    byId("models-hint").textContent = node.all.length ? `${node.path || ROOT} ↔ ${partner?.path || ROOT}: ${pairs}, ${size}. Enter or a double click opens the worst.` : `${node.path}: no partner in the other model, so nothing of it was compared.`;
    this.focus(side, node);
  },

  choose(side, node) {
    if (!node) return;
    const other = SIDES[1 - SIDES.indexOf(side)];
    this.selected = { [side]: node, [other]: this.partner(other, node) };
    for (const one of SIDES) for (let up = this.selected[one]?.above; up; up = up.above) up.isOpen = true;
    this.draw();
    for (const one of SIDES) {
      const pane = byId(`tree-${one}`), line = pane.querySelector(".chosen");
      if (line) pane.scrollTop = line.offsetTop - pane.clientHeight / 2;
    }
  },

  partner(other, node) {
    const nodes = new Set(node.all.map((row) => this.leaf[other].get(row)));
    if (!nodes.size) return null;
    let [shared] = nodes;
    for (const one of nodes) {
      const above = new Set();
      for (let up = one; up; up = up.above) above.add(up);
      while (!above.has(shared)) shared = shared.above;
    }
    return shared;
  },
};
