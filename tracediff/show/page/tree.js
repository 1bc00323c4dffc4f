// The modules of one side as a tree, with what is known of the pairs in each.
const NUMBER = /^\d+$/;

// The segments of a printed site: the path, then what is no module in it.
const segmented = new Map();
function segments(site) {
  if (!segmented.has(site)) segmented.set(site, split(site));
  return segmented.get(site);
}
function split(site) {
  const mark = site.search(/[:#!]/);
  const path = mark < 0 ? site : site.slice(0, mark);
  return [...(path ? path.split(".") : []), ...(mark < 0 ? [] : [site.slice(mark)])];
}

class Node {
  constructor(label, path, above) {
    Object.assign(this, { label, path, above, below: new Map(), rows: [], numbers: new Set(), unpaired: 0, isOpen: false });
  }
  get depth() { return this.above ? this.above.depth + 1 : 0; }
  get title() { return this.numbers.size > 1 ? `${this.label} ×${this.numbers.size}` : this.label; }
  *walk() {
    yield this;
    for (const node of this.below.values()) yield* node.walk();
  }
  // All rows in it and below.
  get all() { return (this.known ??= [...this.walk()].flatMap((node) => node.rows)); }
  get missing() { return (this.lost ??= [...this.walk()].reduce((sum, node) => sum + node.unpaired, 0)); }
}

// The tree of a run's sites on one side; where it is folded, siblings that differ only in their number are one.
function moduleTree(run, side, isFolded) {
  const root = new Node(side === "port" ? "port" : "reference", "", null);
  const place = (site, number) => {
    let node = root;
    const walked = [];
    for (const segment of segments(site)) {
      const isNumber = isFolded && NUMBER.test(segment), key = isNumber ? "*" : segment;
      walked.push(key);
      if (!node.below.has(key)) node.below.set(key, new Node(key, walked.join("."), node));
      node = node.below.get(key);
      if (isNumber) node.numbers.add(segment);
    }
    if (number === undefined) node.unpaired += 1;
    else node.rows.push(number);
    return node;
  };
  const known = new Map();
  for (let row = 0; row < run.count; row++) {
    const name = run.columns[side][row];
    if (known.has(name)) known.get(name).rows.push(row);
    else known.set(name, place(run.text(side, row), row));
  }
  for (const number of run.columns.unpaired[side]) place(data.names[number].split(" ")[0], undefined);
  return merged(root);
}

// A chain of nodes with one child each and no rows becomes one.
function merged(node) {
  for (const [key, child] of [...node.below]) {
    let last = merged(child);
    while (last.below.size === 1 && !last.rows.length && !last.unpaired) {
      const [only] = last.below.values();
      only.label = `${last.title}.${only.label}`.replace(/\.([:#!])/, "$1");
      last = only;
    }
    last.above = node;
    node.below.set(key, last);
  }
  return node;
}

// How bad the worst pair of some rows is: its row and its multiple of what is allowed.
function worst(run, rows) {
  let row = -1, most = null, isIntroduced = false, isExcused = false;
  for (const one of rows) {
    const ratio = run.ratio(one);
    isIntroduced ||= run.state(one) === INTRODUCED;
    isExcused ||= run.isExcused(one);
    if (ratio !== null && (most === null || ratio > most || (ratio === most && run.state(one) === INTRODUCED && run.state(row) !== INTRODUCED))) [row, most] = [one, ratio];
  }
  return { row: row < 0 && rows.length ? rows[0] : row, ratio: most, isIntroduced, isExcused };
}

// The nodes that are seen, each opened one followed by its children.
function shownNodes(root) {
  const found = [];
  const walk = (node) => {
    found.push(node);
    if (node.isOpen) node.below.forEach(walk);
  };
  root.below.forEach(walk);
  return root.rows.length ? [root, ...found] : found;
}

// Opens the levels of a tree that fit into so many lines, then the way to what was introduced.
function openTo(root, run, most) {
  let level = [root];
  root.isOpen = true;
  while (level.length) {
    const next = level.flatMap((node) => [...node.below.values()]).filter((node) => node.below.size);
    level.forEach((node) => { node.isOpen = true; });
    if (shownNodes(root).length > most) {
      level.forEach((node) => { node.isOpen = node === root; });
      break;
    }
    level = next;
  }
  const guilty = new Set(run.introduced);
  let left = most;
  for (const node of root.walk())
    if (left > 0 && node.rows.some((row) => guilty.has(row)))
      for (let up = node.above; up; up = up.above) {
        left -= up.isOpen ? 0 : up.below.size;
        up.isOpen = true;
      }
}
