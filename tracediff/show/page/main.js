// Puts the parts together: keys, links, the switch between runs, the picture of each finding.
const hasPairs = runs.some((run) => run.count);

function shown() {
  document.querySelectorAll(".switch button").forEach((button) => button.setAttribute("aria-pressed", String(Number(button.dataset.run) === chosen.run.place)));
  if (runs.length > 1) document.querySelectorAll("#findings .run").forEach((part) => { part.hidden = Number(part.dataset.run) !== chosen.run.place; });
}

// What a finding looks like: its difference, or what else there is of it.
function thumb(box) {
  const [run, row] = [Number(box.dataset.run), Number(box.dataset.row)], panel = panels.get(`${run}:${row}`);
  if (!panel) return;
  const open = el("button", { type: "button", class: "open", onclick: () => { chooseRun(run); chooseRow(row); } }, "Open the tensors");
  const parts = [];
  if (panel.difference) {
    const cells = bytes(panel.difference), size = panel.height * panel.width;
    let most = 0, slice = 0;
    for (let place = 0; place < cells.length; place++) if (cells[place] !== 255 && Math.abs(cells[place] - 127) > most) [most, slice] = [Math.abs(cells[place] - 127), Math.floor(place / size)];
    const own = cells.subarray(slice * size, (slice + 1) * size), axis = panel.along?.reduce((best, one) => (unevenness(one) > unevenness(best) ? one : best), panel.along[0]);
    if (panel.height > 1 || !axis) {
      const drawn = picture(own, panel.height, panel.width, signed(), FLIPPED.has(panel.kind));
      drawn.setAttribute("role", "img");
      drawn.setAttribute("aria-label", `The difference: ${panel.height} by ${panel.width} cells, up to ${number(panel.largest)}`);
      drawn.style.aspectRatio = `${Math.max(1.2, Math.min(5, panel.width / panel.height))}`;
      parts.push(el("figure", {}, el("figcaption", {}, el("b", {}, "port − reference"), el("span", { class: "scale signed" }, number(-panel.largest), el("i"), number(panel.largest))), drawn));
    }
    if (axis) parts.push(el("figure", { class: "plot" }, el("figcaption", {}, `RMS along axis ${axis.axis} of ${axis.size}`, el("span", { class: "legend" }, el("span", { class: "key" }, el("i", { class: "swatch line-same" }), "reference"), el("span", { class: "key" }, el("i", { class: "swatch line-differs" }), "difference"))), along(axis)));
  } else if (panel.kind === "ids") {
    parts.push(tensorPanel.ids(panel, 8));
  } else if (panel.kind === "text") {
    parts.push(...SIDES.map((side) => el("figure", {}, el("figcaption", {}, side), el("pre", {}, panel[side].slice(0, 300)))));
  } else if (panel.kind === "apart") {
    parts.push(...panel.sides.map((side, place) => tensorPanel.pictures(side, [SIDES[place]], false)));
  } else if (panel.kind === "none") {
    parts.push(el("p", { class: "quiet" }, `No picture: ${panel.why}.`));
  }
  box.replaceChildren(...parts, open);
}

// How unevenly the difference lies along an axis.
function unevenness({ difference }) {
  const mean = difference.reduce((sum, value) => sum + value, 0) / difference.length || 1;
  return Math.sqrt(difference.reduce((sum, value) => sum + (value / mean - 1) ** 2, 0) / difference.length) * Math.sqrt(difference.length);
}

const drawThumbs = () => document.querySelectorAll(".thumb").forEach(thumb);

function nextIntroduced(by) {
  const { introduced } = chosen.run;
  if (!introduced.length) return;
  const place = by > 0 ? introduced.find((row) => row > chosen.row) : introduced.findLast((row) => row < chosen.row || chosen.row < 0);
  chooseRow(place ?? introduced[by > 0 ? 0 : introduced.length - 1]);
}

function keys(event) {
  const target = event.target, isTyping = target.matches?.("input, select, textarea");
  if (event.key === "Escape") { hideTip(); tensorPanel.close(); if (isTyping) target.blur(); return; }
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !hasPairs) return;
  const done = {
    "/": () => { byId("pairs").scrollIntoView(); byId("pairs-search").focus(); },
    n: () => nextIntroduced(1),
    p: () => nextIntroduced(-1),
    f: () => chooseRun((chosen.run.place + 1) % runs.length),
  }[event.key];
  if (!done) return;
  event.preventDefault();
  done();
}

const showAll = (part) => {
  part.querySelectorAll("[data-late]").forEach((card) => card.removeAttribute("data-late"));
  part.querySelector(".more")?.remove();
};

// A link to a pair, as the panel writes it, or to a finding, which may be of the other run or not shown yet.
function follow() {
  const card = location.hash.startsWith("#finding-") ? byId(location.hash.slice(1)) : null;
  if (card) {
    chooseRun(Number(card.dataset.run));
    if ("late" in card.dataset) showAll(card.parentElement);
    card.scrollIntoView();
    return;
  }
  const asked = new URLSearchParams(location.hash.slice(1).replace(/\+/g, "%2B"));
  if (!asked.has("site")) return;
  const run = runs.find((one) => one.mode === asked.get("run"));
  if (run) chooseRun(run.place);
  const row = chosen.run.find(asked.get("site"), asked.get("call"), asked.get("end"));
  if (row >= 0) chooseRow(row);
}

async function copy(button) {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    const field = el("textarea", { readonly: true, class: "copied" });
    field.value = button.dataset.copy;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

document.documentElement.classList.add("scripted");
document.addEventListener("keydown", keys);
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button");
  if (button?.dataset.copy) copy(button);
  if (button?.closest(".switch")) chooseRun(Number(button.dataset.run));
  if (button?.classList.contains("more")) showAll(button.parentElement);
});
isDark.addEventListener("change", () => tell("theme"));
on("run", shown);
on("theme", drawThumbs);
if (hasPairs) {
  for (const part of [heatMap, order, models, pairs, tensorPanel]) part.start();
  drawThumbs();
} else document.documentElement.classList.add("bare");
shown();
addEventListener("hashchange", follow);
follow();
let before = innerWidth;
addEventListener("resize", () => { if (hasPairs && Math.abs(innerWidth - before) > 40) { before = innerWidth; heatMap.draw(); } });
document.documentElement.dataset.ready = "yes";
