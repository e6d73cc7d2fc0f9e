/* The explorer of the truth table: choose an encoder, see it drawn, and what is known of it. Plain JavaScript; the data
   is window.landscape, which book/_ext/explorer.py writes when the book is built. */
"use strict";
(function () {
  const told = window.landscape, root = document.getElementById("explorer");
  if (!told || !root) return;

  const SVG = "http://www.w3.org/2000/svg", Z = 1.96; // Z: half of a 95 % interval, in standard errors
  const INPUTS = ["Eₗ₋₂", "Eₗ₋₁", "x₂", "x₃", "Eₗ"], SPOKEN = ["E l−2", "E l−1", "x2"];
  const per = told.operations.length, each = per ** 4, attending = told.mean.length;

  /* ---- What is known of a choice: [wiring, a, b, c, d], the operations as places in told.operations ---- */
  const number = ([wiring, ...four]) => four.reduce((sum, digit) => sum * per + digit, wiring);
  const choiceOf = n => {
    const four = [];
    for (let i = 0; i < 4; i++) { four.unshift(n % per); n = Math.floor(n / per); }
    return [n, ...four];
  };
  const placeOf = choice => told.places[number(choice)];
  const estimate = place => (place < attending ? told.mean[place] / 1e4 : told.guess);
  const better = told.mean.map((mean, place) => place).sort((p, q) => told.mean[q] - told.mean[p] || told.macs[p] - told.macs[q]);
  const ranks = []; // the best is 1; equal estimates share a rank
  better.forEach((place, i) => {
    ranks[place] = i && told.mean[place] === told.mean[better[i - 1]] ? ranks[better[i - 1]] : i + 1;
  });
  const first = []; // the first choice that is a function
  told.places.forEach((place, n) => { if (!(place in first)) first[place] = n; });
  const front = (() => { // cheapest first; equal points are all on it, as in dasvit.front
    const sorted = [...better].sort((p, q) => told.macs[p] - told.macs[q] || told.mean[q] - told.mean[p]), found = [];
    for (const place of sorted) {
      const last = found[found.length - 1];
      const equal = last !== undefined && told.macs[last] === told.macs[place] && told.mean[last] === told.mean[place];
      if (last === undefined || equal || told.mean[place] > told.mean[last]) found.push(place);
    }
    return found;
  })();
  const edges = ([wiring, ...four]) => {
    const [p, q] = told.wirings[wiring];
    return [[0, 2], [1, 2], [p, 3], [q, 3]].map((ends, i) => ({ ends, operation: told.operations[four[i]] }));
  };
  const percent = share => (100 * share).toFixed(1) + " %";
  const millions = macs => (macs / 1e6).toFixed(2) + " M";
  const said = choice => {
    const place = placeOf(choice);
    if (place >= attending) {
      return { accuracy: percent(told.guess), how: "no attention: it sees no image, so this is the accuracy of a guess" };
    }
    const measured = told.measured[place];
    const [mean, error] = measured || [told.mean[place] / 1e4, told.deviation[place] / 1e4];
    const [low, high] = [mean - Z * error, mean + Z * error].map(percent);
    const n = measured && measured[2];
    return {
      accuracy: `${percent(mean)} [${low}, ${high}]`,
      how: measured ? `measured: ${n} training${n > 1 ? "s" : ""}` : "modelled from the trainings of others",
      rank: `${ranks[place].toLocaleString("en")} of ${attending.toLocaleString("en")}`,
      ahead: `expected to be better than ${(told.percentile[place] / 10).toFixed(1)} % of them`,
    };
  };

  /* ---- Elements ---- */
  const make = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "onclick" || key === "onchange") node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const draw = (name, attributes, text) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const picture = (width, height, label) =>
    draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });

  /* ---- The encoder as a graph ---- */
  const SPOTS = [[40, 40], [40, 200], [190, 90], [340, 150], [470, 90]];
  function graph(choice) {
    const words = edges(choice).map(e => `${e.operation.name} from ${SPOKEN[e.ends[0]]} to x${e.ends[1]}`).join(", ");
    const svg = picture(520, 240, `The encoder: ${words}; the sum of x2 and x3 is the output.`);
    const arrow = (from, to, kind, label, bend, at) => {
      const [[x0, y0], [x1, y1]] = [SPOTS[from], SPOTS[to]], length = Math.hypot(x1 - x0, y1 - y0);
      const [ux, uy] = [(x1 - x0) / length, (y1 - y0) / length], cut = 26;
      const [sx, sy, ex, ey] = [x0 + cut * ux, y0 + cut * uy, x1 - cut * ux, y1 - cut * uy];
      const [cx, cy] = [(sx + ex) / 2 - bend * uy, (sy + ey) / 2 + bend * ux];
      svg.append(draw("path", { class: `edge ${kind}`, d: `M${sx} ${sy}Q${cx} ${cy} ${ex} ${ey}` }));
      const [hx, hy] = [ex - cx, ey - cy].map(v => v / Math.hypot(ex - cx, ey - cy));
      const wing = side => `${ex - 9 * hx - side * 4.5 * hy} ${ey - 9 * hy + side * 4.5 * hx}`;
      svg.append(draw("path", { class: `head ${kind}`, d: `M${ex} ${ey}L${wing(1)}L${wing(-1)}Z` }));
      if (!label) return;
      const t = at, [px, py] = [0, 1].map(i =>
        (1 - t) ** 2 * [sx, sy][i] + 2 * t * (1 - t) * [cx, cy][i] + t * t * [ex, ey][i]);
      svg.append(draw("text", { class: `name ${kind}`, x: px, y: py - 5, "text-anchor": "middle" }, label));
    };
    const bends = { "0-2": 0, "1-2": 0, "0-3": -70, "1-3": 30, "2-3": 0 };
    for (const { ends, operation } of edges(choice)) {
      arrow(...ends, operation.kind, operation.name, bends[ends.join("-")], 0.45);
    }
    arrow(2, 4, "sum", "", -40);
    arrow(3, 4, "sum", "", 0);
    SPOTS.forEach(([x, y], i) => {
      svg.append(draw("rect", { class: "node", x: x - 24, y: y - 16, width: 48, height: 32, rx: 6 }));
      svg.append(draw("text", { class: "label", x, y: y + 5, "text-anchor": "middle" }, INPUTS[i]));
    });
    return svg;
  }

  /* ---- All encoders by cost and accuracy ---- */
  const [WIDTH, HEIGHT, LEFT, BOTTOM] = [520, 300, 54, 44];
  const dearest = Math.max(...told.macs.slice(0, attending));
  const [lowest, highest] = [Math.min(...told.mean) / 1e4, Math.max(...told.mean) / 1e4];
  const X = place => LEFT + (told.macs[place] / dearest) * (WIDTH - LEFT - 12);
  const Y = place => 10 + ((highest - estimate(place)) / (highest - lowest)) * (HEIGHT - BOTTOM - 20);
  const backdrop = (() => {
    const parts = [], dots = told.mean.map((_, place) => `M${X(place).toFixed(1)} ${Y(place).toFixed(1)}h0`).join("");
    parts.push(draw("path", { class: "all", d: dots }));
    parts.push(draw("path", { class: "front", d: "M" + front.map(p => `${X(p).toFixed(1)} ${Y(p).toFixed(1)}`).join("L") }));
    const floor = HEIGHT - BOTTOM;
    parts.push(draw("path", { class: "axis", d: `M${LEFT} 4V${floor}H${WIDTH - 4}` }));
    for (let tick = Math.ceil(100 * lowest); tick <= 100 * highest; tick++) {
      const y = 10 + ((highest - tick / 100) / (highest - lowest)) * (floor - 20);
      parts.push(draw("text", { class: "tick", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, `${tick} %`));
    }
    for (let tick = 0; tick * 5e5 <= dearest; tick++) {
      const x = LEFT + ((tick * 5e5) / dearest) * (WIDTH - LEFT - 12);
      parts.push(draw("text", { class: "tick", x, y: floor + 17, "text-anchor": "middle" }, `${tick / 2} M`));
    }
    const middle = (LEFT + WIDTH) / 2;
    parts.push(draw("text", { class: "tick", x: middle, y: HEIGHT - 6, "text-anchor": "middle" }, "multiply-accumulates"));
    return parts;
  })();
  function scatter(choice, neighbours) {
    const place = placeOf(choice), sees = place < attending;
    const where = sees ? `it is at ${millions(told.macs[place])} and ${percent(estimate(place))}` : "it is not among them";
    const svg = picture(WIDTH, HEIGHT, `All encoders with attention by cost and estimated accuracy, with the Pareto front; ${where}.`);
    svg.append(...backdrop.map(part => part.cloneNode(true)));
    for (const other of neighbours.map(placeOf)) {
      if (other < attending) svg.append(draw("circle", { class: "near", cx: X(other), cy: Y(other), r: 4 }));
    }
    if (sees) svg.append(draw("circle", { class: "here", cx: X(place), cy: Y(place), r: 7 }));
    return svg;
  }

  /* ---- The page ---- */
  const wiringName = ([p, q]) => `${INPUTS[p]} and ${INPUTS[q]}`;
  const selects = [0, 1, 2, 3, 4].map(i => {
    const names = i ? told.operations.map(o => o.name) : told.wirings.map(wiringName);
    const options = names.map((name, value) => make("option", { value }, name));
    return make("select", { id: `explorer-${i}`, onchange: () => show(selects.map(s => +s.value)) }, ...options);
  });
  const labels = selects.map(select => make("label", { for: select.id }));
  const parts = Object.fromEntries(["graph", "facts", "near", "scatter", "front"].map(name => [name, make("div", { class: name })]));
  const go = (name, choice) => make("button", { type: "button", onclick: () => show(choice()) }, name);
  const chosen = document.createElement("fieldset");
  chosen.append(make("legend", {}, "Choose an encoder"), ...[1, 2, 0, 3, 4].map(i => make("div", {}, labels[i], selects[i])));
  root.append(
    chosen,
    make("p", { class: "go" },
      go("The published one", () => choiceOf(told.published)),
      go("The best expected", () => choiceOf(first[better[0]])),
      go("A random one", () => choiceOf(Math.floor(Math.random() * told.places.length)))),
    parts.graph, make("div", { role: "status", class: "told" }, parts.facts), parts.near, parts.scatter, parts.front);

  const changed = (choice, i, value) => choice.map((old, j) => (j === i ? value : old));
  function table(caption, head, rows) {
    const line = cells => make("tr", {}, ...cells);
    return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
      make("table", { class: "table" }, make("caption", {}, caption),
        make("thead", {}, line(head.map(text => make(text ? "th" : "td", text ? { scope: "col" } : {}, text)))),
        make("tbody", {}, ...rows.map(([name, ...cells]) =>
          line([make("th", { scope: "row" }, name), ...cells.map(cell => make("td", {}, cell))])))));
  }
  function near(choice, names) {
    const cell = (i, value) => {
      const other = changed(choice, i, value), text = (100 * estimate(placeOf(other))).toFixed(1);
      if (choice[i] === value) return make("strong", {}, text);
      const what = i ? told.operations[value].name : wiringName(told.wirings[value]);
      return make("button", { type: "button", "aria-label": `${names[i]}: ${what}, ${text} %`, onclick: () => show(other) }, text);
    };
    const rows = [1, 2, 3, 4].map(i => [names[i], ...told.operations.map((_, value) => cell(i, value))]);
    const sources = [["x₃ from", ...told.wirings.map((_, value) => cell(0, value))]];
    return [table("If one operation changes: estimated accuracy, in %", ["", ...told.operations.map(o => o.name)], rows),
      table("If the wiring changes", ["", ...told.wirings.map(wiringName)], sources)];
  }
  const fronts = table("The Pareto front", ["", "multiply-accumulates", "estimated accuracy"], front.map(place => {
    const choice = choiceOf(first[place]), name = edges(choice).map(e => `${e.ends.join("→")} ${e.operation.name}`).join(", ");
    return [go(name, () => choice), millions(told.macs[place]), percent(estimate(place))];
  }));
  fronts.classList.add("long");
  parts.front.append(fronts);

  function show(choice) {
    const pressed = parts.near.contains(document.activeElement);
    const names = ["x₃ from", ...edges(choice).map(({ ends: [p, q] }) => `${INPUTS[p]} → ${INPUTS[q]}`)];
    selects.forEach((select, i) => { select.value = choice[i]; labels[i].textContent = names[i]; });
    const place = placeOf(choice), { accuracy, how, rank, ahead } = said(choice);
    const neighbours = [0, 1, 2, 3, 4].flatMap(i =>
      (i ? told.operations : told.wirings).map((_, value) => changed(choice, i, value)).filter(c => c[i] !== choice[i]));
    parts.graph.replaceChildren(graph(choice));
    const facts = [["Test accuracy", accuracy, how], ["Multiply-accumulates", millions(told.macs[place]), "for an image"]];
    if (rank) facts.splice(1, 0, ["Expected rank", rank, ahead]);
    if (front.includes(place)) facts.push(["Pareto front", "yes", "none is expected to be as cheap and more accurate"]);
    parts.facts.replaceChildren(make("dl", {}, ...facts.flatMap(([name, value, more]) =>
      [make("dt", {}, name), make("dd", {}, make("strong", {}, value), " ", make("small", {}, more))])));
    parts.near.replaceChildren(...near(choice, names));
    parts.scatter.replaceChildren(scatter(choice, neighbours));
    if (pressed) parts.near.querySelector(".scroll").focus({ preventScroll: true }); // the button itself is gone
  }
  show(choiceOf(told.published));
})();
