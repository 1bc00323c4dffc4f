// The panel of one pair: its values as pictures, its error along each axis, and why the two are a pair.
const FLIPPED = new Set(["mel"]);

const tensorPanel = {
  start() {
    on("row", (row, isQuiet) => { if (!isQuiet || !byId("panel").hidden) this.open(row, !isQuiet); });
    on("run", () => this.close());
    on("theme", () => { if (!byId("panel").hidden) this.open(chosen.row, false); });
  },

  open(row, takesFocus) {
    const run = chosen.run, aside = byId("panel"), panel = panels.get(`${run.place}:${row}`);
    if (aside.hidden) this.back = document.activeElement;
    const state = run.state(row), card = run.columns.cards.indexOf(row);
    aside.replaceChildren(
      el("div", { class: "bar" },
        el("button", { type: "button", class: "step", "aria-label": "Pair before", onclick: () => chooseRow(row - 1) }, "‹"),
        el("button", { type: "button", class: "step", "aria-label": "Pair behind", onclick: () => chooseRow(row + 1) }, "›"),
        el("span", { class: "quiet" }, `pair ${(row + 1).toLocaleString("en")} of ${run.count.toLocaleString("en")}${runs.length > 1 ? `, ${run.mode} run` : ""}`),
        el("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => this.close() }, "✕")),
      el("h2", { id: "panel-head" }, el("span", { class: "name" }, siteName(run.port(row)))),
      el("p", { class: "chips" }, el("span", { class: `chip ${state === INTRODUCED ? "bad" : ""}` }, state === INTRODUCED ? "introduced here" : state), el("span", { class: "chip" }, run.end(row)), run.stage(row) ? el("span", { class: "chip" }, run.stage(row)) : null, panel && !["none", "tensor", "apart"].includes(panel.kind) ? el("span", { class: "chip" }, panel.kind === "wave" ? "sound" : panel.kind) : null, card >= 0 ? el("a", { class: "chip link", href: `#finding-${run.place}-${card + 1}` }, `finding ${card + 1}`) : null),
      this.gauge(run, row),
      ...(panel ? this.values(panel) : [this.nothing(run, row)]),
      this.facts(run, row),
      ...this.code(run, row, card),
    );
    aside.hidden = false;
    document.body.classList.add("with-panel");
    aside.scrollTop = 0;
    if (takesFocus) aside.focus({ preventScroll: true });
  },

  close() {
    if (byId("panel").hidden) return;
    byId("panel").hidden = true;
    document.body.classList.remove("with-panel");
    this.back?.focus?.({ preventScroll: true });
  },

  // The error on a line of decades, with what is allowed and the noise floor.
  gauge(run, row) {
    const error = run.error(row), limit = run.limit(row), floor = run.columns.floor[row], ratio = run.ratio(row);
    if (error === null) return el("p", { class: "size" }, run.text("how", row) === "shape" ? "The two shapes differ." : run.text("how", row) === "raised" ? "One side raised." : "No error was measured.");
    const sized = limit ? `${multiple(ratio)} × what is allowed` : run.text("by", row) === "exact" ? "no difference is allowed" : "";
    const text = el("p", { class: "size" }, el("b", {}, sized || `relative L2 ${number(error)}`), sized ? ` · relative L2 ${number(error)}${limit ? `, allowed ${number(limit)}` : ""}${floor ? `, noise floor ${number(floor)}` : ""}` : "");
    if (!(limit > 0) || error >= INFINITE) return text;
    const place = (value) => Math.max(1, Math.min(99, 50 + Math.log10(Math.max(value, 1e-30) / limit) * 8));
    const mark = (value, kind, name) => (value > 0 ? el("i", { class: kind, title: name, style: { left: `${place(value)}%` } }) : null);
    return el("div", {}, text, el("div", { class: "gauge", role: "img", "aria-label": `${sized}` }, el("span", { class: "over" }), mark(floor, "floor", "noise floor"), mark(limit, "limit", "allowed"), mark(error || limit * 1e-6, "error", "error")));
  },

  nothing(run, row) {
    const { reference, port } = { reference: run.columns.paths[0], port: run.columns.paths[1] };
    const command = `tracediff view ${reference} ${port} --site ${JSON.stringify(run.port(row))}`;
    return el("div", { class: "notice" }, el("p", {}, "The values of this pair are not in the page: it holds those that tell most. This command draws them:"), copyable(command));
  },

  values(panel) {
    if (panel.kind === "none") return [el("p", { class: "notice" }, `No picture: ${panel.why}.`)];
    if (panel.kind === "text") return [el("div", { class: "texts" }, ...SIDES.map((side) => el("figure", {}, el("figcaption", {}, side), el("pre", { tabindex: "0" }, panel[side]))))];
    if (panel.kind === "ids") return [this.ids(panel)];
    if (panel.kind === "apart") return panel.sides.map((side, place) => this.pictures(side, [SIDES[place]], false));
    const sound = panel.kind === "wave" ? [this.sound(panel), el("h3", {}, "Spectrograms, in decibels")] : [];
    return [...sound, this.pictures(panel, ["reference", "port", "difference"], FLIPPED.has(panel.kind)), ...this.measures(panel)];
  },

  // Heat maps of both sides and of the difference, one slice at a time.
  pictures(panel, titles, isFlipped) {
    const table = panel.kind === "attention" ? SHARES : VALUES;
    const size = panel.height * panel.width, cells = [...panel.values, ...(panel.difference ? [panel.difference] : [])].map(bytes);
    const isWide = panel.width > 2.2 * panel.height, box = el("div", { class: `pictures${isWide ? " stacked" : ""}` });
    const draw = (slice) => box.replaceChildren(...titles.map((title, place) => {
      const isSigned = title === "difference", own = cells[place].subarray(slice * size, (slice + 1) * size);
      const drawn = picture(own, panel.height, panel.width, isSigned ? signed() : table, isFlipped);
      const [low, high] = isSigned ? [-panel.largest, panel.largest] : [panel.low, panel.high];
      const value = (cell) => (cell === 255 ? "no number" : number(low + (cell / 254) * (high - low)));
      drawn.addEventListener("pointermove", (event) => {
        const bounds = drawn.getBoundingClientRect();
        const x = Math.min(panel.width - 1, Math.floor(((event.clientX - bounds.left) / bounds.width) * panel.width)), y = Math.min(panel.height - 1, Math.floor(((event.clientY - bounds.top) / bounds.height) * panel.height));
        showTip(event.clientX, event.clientY, `${title} ${value(own[(isFlipped ? panel.height - 1 - y : y) * panel.width + x])}`, `cell ${isFlipped ? panel.height - 1 - y : y}, ${x}`);
      });
      drawn.addEventListener("pointerleave", hideTip);
      drawn.setAttribute("role", "img");
      drawn.setAttribute("aria-label", `${title}: ${panel.height} by ${panel.width} cells from ${number(low)} to ${number(high)}`);
      drawn.style.aspectRatio = `${Math.max(0.5, Math.min(8, panel.width / panel.height))}`;
      return el("figure", {}, el("figcaption", {}, el("b", {}, title === "difference" ? "port − reference" : title), el("span", { class: `scale ${isSigned ? "signed" : ""}` }, number(low), el("i"), number(high))), drawn);
    }));
    draw(0);
    if (panel.slices.length < 2) return box;
    const label = el("output", {}, panel.slices[0]);
    const slider = el("input", { type: "range", min: 0, max: panel.slices.length - 1, value: 0, "aria-label": "Slice", oninput: () => { draw(Number(slider.value)); label.textContent = panel.slices[Number(slider.value)]; } });
    return el("div", {}, el("label", { class: "slider" }, slider, label), box);
  },

  measures(panel) {
    const made = [];
    if (panel.worst) made.push(el("p", { class: "worst" }, "Worst value at ", el("code", {}, `[${panel.worst.index.join(", ")}]`), `: reference ${number(panel.worst.reference)}, port ${number(panel.worst.port)}`));
    if (panel.samples) made.push(el("div", { class: "plots" }, plot("difference against reference", scatter(panel.samples)), plot("values: reference and port", histogram(panel.histogram))));
    if (panel.along) made.push(el("div", { class: "plots" }, ...panel.along.map((axis) => plot(`RMS along axis ${axis.axis} (${axis.size})`, along(axis)))));
    return made;
  },

  ids(panel, most = 24) {
    const rows = Math.max(...panel.ids.map((ids) => ids.length)), first = panel.first < 0 ? 0 : panel.first - panel.start, from = Math.max(0, Math.min(first - 4, rows - most));
    const texts = panel.texts ?? [{}, {}], hasTexts = texts.some((side) => Object.keys(side).length);
    const line = (place) => {
      const [left, right] = panel.ids.map((ids) => ids[place]);
      return el("tr", { class: left !== right ? "far" : null }, el("td", { class: "number" }, String(panel.start + place)), ...[left, right].flatMap((id, side) => [el("td", { class: "number" }, id ?? "–"), ...(hasTexts ? [el("td", { class: "name" }, texts[side][id] ?? "")] : [])]));
    };
    const body = el("tbody", {}, ...Array.from({ length: Math.min(most, rows) }, (_, place) => line(from + place)));
    const all = rows > most ? el("button", { type: "button", onclick: (event) => { body.replaceChildren(...Array.from({ length: rows }, (_, place) => line(place))); event.target.remove(); } }, `All ${rows.toLocaleString("en")}`) : null;
    const said = panel.first < 0 ? "All ids are equal." : `First differs at place ${panel.first}; ${panel.unequal.toLocaleString("en")} of ${Math.min(...panel.sizes).toLocaleString("en")} differ${panel.sizes[0] === panel.sizes[1] ? "" : `; ${panel.sizes[1]} ids, in the reference ${panel.sizes[0]}`}.`;
    return el("div", {}, el("p", { class: "worst" }, said), el("table", { class: "ids" }, el("thead", {}, el("tr", {}, ...["step", "reference", ...(hasTexts ? ["text"] : []), "port", ...(hasTexts ? ["text"] : [])].map((name) => el("th", { scope: "col", class: name === "text" ? null : "number" }, name)))), body), all);
  },

  sound(panel) {
    const names = ["reference", "port"];
    const players = names.map((name, place) => el("figure", {}, el("figcaption", {}, `${name}, played at ${panel.rate / 1000} kHz`), el("audio", { controls: true, src: panel.players[place], preload: "none" })));
    return el("div", {}, el("div", { class: "players" }, ...players), el("div", { class: "plots" }, ...[...names, "difference"].map((name, place) => plot(name, outline(panel.outline[place], panel.outline)))));
  },

  facts(run, row) {
    const call = run.call(row), sure = run.columns.sure[row];
    const rows = [
      ["Reference", siteName(run.reference(row)), true], ["Port", siteName(run.port(row)), true], ["Call", call, true], ["End", run.end(row), true],
      ["Tensor", run.columns.reference_tensor ? (run.text("reference_tensor", row) === run.text("port_tensor", row) ? run.text("reference_tensor", row) : `reference ${run.text("reference_tensor", row)}, port ${run.text("port_tensor", row)}`) : "", true],
      ["Layout", run.text("layout", row) === "same" ? "the same axes on both sides" : `the port's axes read as ${run.text("layout", row)}`], ["Largest difference", run.columns.most[row] === null ? "" : number(run.columns.most[row])],
      ["Why a pair", run.text("evidence", row) ? `${run.text("evidence", row)}${sure === null ? "" : ` (${Math.round(sure * 100)} % sure)`}` : ""],
      ["Called at", run.columns.port_line ? [run.text("port_line", row), run.text("reference_line", row)].filter(Boolean).join(" · reference ") : "", true],
    ];
    return el("dl", { class: "facts" }, ...rows.filter(([, value]) => value).flatMap(([name, value, isName]) => [el("dt", {}, name), el("dd", { class: isName ? "name" : null }, value)]));
  },

  code(run, row, card) {
    const found = SIDES.flatMap((side) => {
      const line = run.columns[`${side}_line`] ? run.text(`${side}_line`, row) : "";
      return [[side, data.code[`class ${side} ${run.place} ${card}`]], [`${side}, the call`, data.code[line]]].filter(([, code]) => code);
    });
    return found.length ? [el("h3", {}, "Code"), ...found.map(([side, code]) => excerpt(side, code))] : [];
  },
};

// ------------------------------------------------------------------------------------------------------------- small plots

const plot = (title, drawn) => el("figure", { class: "plot" }, el("figcaption", {}, title), drawn);

function frame(low, high, draw, { width = 300, height = 130, label = "" } = {}) {
  const [drawn, pen] = canvas(width, height, { role: "img", "aria-label": label });
  pen.strokeStyle = colour("grid");
  pen.fillStyle = colour("quiet");
  pen.font = "10px system-ui, sans-serif";
  pen.strokeRect(0.5, 0.5, width - 1, height - 1);
  draw(pen, (share) => 6 + share * (width - 12), (value) => (high > low ? height - 8 - ((value - low) / (high - low)) * (height - 16) : height / 2));
  return drawn;
}

function scatter([x, y]) {
  const known = (values) => values.filter((value) => value !== null), [left, right] = [Math.min(...known(x)), Math.max(...known(x))], most = Math.max(...known(y).map(Math.abs)) || 1;
  return frame(-most, most, (pen, across, up) => {
    pen.fillText(`± ${number(most)}`, 8, 14);
    pen.beginPath();
    pen.moveTo(0, up(0));
    pen.lineTo(300, up(0));
    pen.stroke();
    pen.fillStyle = colour("point-differs");
    pen.globalAlpha = 0.55;
    x.forEach((value, place) => { if (value !== null && y[place] !== null) pen.fillRect(across(right > left ? (value - left) / (right - left) : 0.5) - 1.5, up(y[place]) - 1.5, 3, 3); });
  }, { label: `Differences up to ${number(most)} over reference values from ${number(left)} to ${number(right)}` });
}

function histogram({ low, high, counts }) {
  const most = Math.max(...counts.flat(), 1), bins = counts[0].length;
  return frame(0, most, (pen, across, up) => {
    counts.forEach((own, side) => {
      pen.beginPath();
      own.forEach((count, bin) => { pen.lineTo(across(bin / bins), up(count)); pen.lineTo(across((bin + 1) / bins), up(count)); });
      pen.strokeStyle = colour(side ? "point-differs" : "point-same");
      pen.lineWidth = side ? 1.5 : 3;
      pen.stroke();
    });
    pen.fillText(number(low), 8, 124);
    pen.fillText(number(high), 292 - pen.measureText(number(high)).width, 124);
  }, { label: `Histograms of both sides from ${number(low)} to ${number(high)}` });
}

function along({ reference, difference }) {
  const known = [...reference, ...difference].filter((value) => value > 0), logs = (value) => Math.log10(Math.max(value, floor));
  const floor = Math.max(Math.min(...known, 1), Math.max(...known, 1e-9) * 1e-9);
  const [low, high] = [Math.log10(floor) - 0.2, Math.log10(Math.max(...known, floor * 10)) + 0.2];
  return frame(low, high, (pen, across, up) => {
    [[reference, "point-same"], [difference, "point-differs"]].forEach(([values, ink]) => {
      pen.beginPath();
      values.forEach((value, place) => pen.lineTo(across(values.length > 1 ? place / (values.length - 1) : 0.5), up(logs(value))));
      pen.strokeStyle = colour(ink);
      pen.lineWidth = 1.6;
      pen.stroke();
      if (values.length < 40) values.forEach((value, place) => { pen.fillStyle = colour(ink); pen.fillRect(across(values.length > 1 ? place / (values.length - 1) : 0.5) - 2, up(logs(value)) - 2, 4, 4); });
    });
    pen.fillStyle = colour("quiet");
    pen.fillText(number(10 ** high), 8, 14);
    pen.fillText(number(10 ** low), 8, 124);
  }, { label: `RMS of the reference and of the difference for ${reference.length} places` });
}

function outline([low, high], all) {
  const most = Math.max(...all[0].flat().map(Math.abs), ...all[1].flat().map(Math.abs)) || 1;
  return frame(-most, most, (pen, across, up) => {
    pen.fillStyle = colour("point-same");
    low.forEach((value, place) => pen.fillRect(across(place / low.length), up(high[place]), 1.5, Math.max(1, up(value) - up(high[place]))));
  }, { height: 90, label: "Outline of a sound" });
}

// ------------------------------------------------------------------------------------------------------------- small parts

function excerpt(side, { file, first, marked, lines }) {
  const body = lines.map((line, place) => el("span", { class: `line${first + place === marked ? " marked" : ""}` }, el("span", { class: "no" }, String(first + place)), `${line}\n`));
  return el("figure", { class: "code" }, el("figcaption", {}, `${side} `, el("span", { class: "name" }, file)), el("pre", { tabindex: "0" }, ...body));
}

function copyable(command) {
  return el("p", { class: "command" }, el("code", {}, command), el("button", { type: "button", class: "copy", "data-copy": command }, "Copy"));
}
