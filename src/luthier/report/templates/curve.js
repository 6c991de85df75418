"use strict";
// Enlarging a part of the curves and reading single points. Without this script the page shows the same curves, whole.
(() => {
  const plot = document.querySelector(".plot"), chart = plot.parentElement;
  const { axes, runs } = JSON.parse(plot.dataset.curves);
  const layer = made("div", "zoom"), cursor = made("div", "cursor"), tip = made("div", "tip"), chosen = made("div", "chosen");
  const whole = chart.querySelector(".whole");
  let axis = 0, part = null, start = null, read = 0; // `part`: [from, to] on the axis; `start`: of a drag; `read`: step that is told

  const right = () => Math.max(...every().map((point) => point.x[axis])) || 1;
  const checked = (id) => document.getElementById(id)?.checked ?? true;
  const shown = () => runs.filter((_, number) => checked(`run-${number}`));
  const every = (some = runs) => some.flatMap((run) => run.train.concat(run.heldout));
  const nearest = (points, x) => points.reduce((best, point) => (best && Math.abs(best.x[axis] - x) <= Math.abs(point.x[axis] - x) ? best : point), null);
  const share = (x) => { const [from, to] = part ?? [0, right()]; return (100 * (x - from)) / (to - from); };
  const place = (event) => {
    const box = plot.getBoundingClientRect(), [from, to] = part ?? [0, right()];
    return from + Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * (to - from);
  };

  function made(tag, kind, text = "") {
    const element = tag === "svg" || tag === "g" || tag.includes("line") ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    element.setAttribute("class", kind);
    element.textContent = text;
    return element;
  }

  function ticks(low, high) { // as in curve.py
    const span = high - low || Math.abs(high) || 1, power = 10 ** Math.floor(Math.log10(span / 5));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => span / size <= 5);
    const first = Math.floor(low / step + 1e-9), last = Math.max(Math.ceil(high / step - 1e-9), first + 1);
    return Array.from({ length: last - first + 1 }, (_, number) => Number(((first + number) * step).toPrecision(12)));
  }

  const short = (count) => count >= 1e6 ? `${Number((count / 1e6).toPrecision(10))}M` : count >= 1e4 ? `${Number((count / 1e3).toPrecision(10))}k` : count.toLocaleString("en");

  function draw() {
    plot.classList.toggle("zoomed", part !== null);
    whole.hidden = part === null;
    layer.replaceChildren();
    if (!part) return;
    const [from, to] = part, inside = ({ x }) => x[axis] >= from && x[axis] <= to;
    const losses = shown().flatMap((run) => [
      ...(checked("show-raw") ? run.train.filter(inside).map((point) => point.y) : []),
      ...(checked("show-smooth") ? run.train.filter(inside).map((point) => point.smooth) : []),
      ...(checked("show-heldout") ? run.heldout.filter(inside).map((point) => point.y) : []),
    ]);
    if (!losses.length) losses.push(0);
    const values = ticks(Math.min(...losses), Math.max(...losses)), low = values[0], high = values.at(-1);
    const y = (loss) => (100 * (high - loss)) / (high - low);
    const digits = Math.max(0, -Math.floor(Math.log10(values[1] - low) + 1e-9));
    const svg = made("svg", "");
    svg.setAttribute("viewBox", "0 0 100 100");
    svg.setAttribute("preserveAspectRatio", "none");
    for (const value of values) {
      const label = made("span", "y", value.toFixed(digits)), line = made("line", "");
      label.style.top = `${y(value)}%`;
      for (const [name, number] of [["x1", 0], ["x2", 100], ["y1", y(value)], ["y2", y(value)]]) line.setAttribute(name, number);
      layer.append(label);
      svg.append(line);
    }
    const { name, scale, unit } = axes[axis];
    for (const value of ticks(from / scale, to / scale)) {
      if (value * scale < from || value * scale > to) continue;
      const label = made("span", "x", name === "tokens" ? short(value) : value.toLocaleString("en", { maximumFractionDigits: 10 }));
      label.style.left = `${share(value * scale)}%`;
      layer.append(label);
    }
    layer.append(made("span", "unit", unit), svg);
    runs.forEach((run, number) => {
      const group = made("g", `run-${number}`);
      for (const [kind, points, loss] of [["raw", run.train, "y"], ["smooth", run.train, "smooth"], ["heldout", run.heldout, "y"]]) {
        const line = made("polyline", kind), first = points.findIndex(inside), last = points.findLastIndex(inside);
        const near = first < 0 ? [] : points.slice(Math.max(0, first - 1), last + 2); // one more on each side: the line goes on
        line.setAttribute("points", near.map((point) => `${share(point.x[axis])},${y(point[loss])}`).join(" "));
        group.append(line);
      }
      svg.append(group);
      for (const point of run.heldout.filter(inside)) {
        const dot = made("b", `heldout run-${number}`);
        dot.style.left = `${share(point.x[axis])}%`;
        dot.style.top = `${y(point.y)}%`;
        layer.append(dot);
      }
    });
  }

  /** The point of each run that is nearest to a place on the axis, and held-out losses that stand as near. */
  function tell(x) {
    const found = shown().flatMap((run) => {
      const step = nearest(run.train, x), heldout = nearest(run.heldout, x);
      const close = heldout && (!step || Math.abs(share(heldout.x[axis]) - share(step.x[axis])) < 1);
      return [step, close && heldout].filter(Boolean).map((point) => ({ ...point, name: run.name }));
    });
    if (!found.length) return;
    read = nearest(found, x).x[axis];
    const at = share(read);
    cursor.hidden = tip.hidden = at < 0 || at > 100;
    cursor.style.left = `${at}%`;
    tip.replaceChildren(...found.map((point) => made("div", "", runs.length > 1 ? `${point.name} · ${point.text}` : point.text)));
    tip.style.left = at > 50 ? "auto" : `${at}%`;
    tip.style.right = at > 50 ? `${100 - at}%` : "auto";
  }

  function quiet() {
    cursor.hidden = tip.hidden = chosen.hidden = true;
    start = null;
  }

  /** From the point that is nearest to one end to that nearest to the other; `null`: the whole. */
  function zoom(ends) {
    const next = ends?.map((end) => nearest(every(shown()), end).x[axis]);
    if (next && next[0] === next[1]) return;
    part = next ?? null;
    quiet();
    draw();
  }

  plot.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    start = place(event);
    plot.setPointerCapture(event.pointerId);
    event.preventDefault(); // no text is selected
  });
  plot.addEventListener("pointermove", (event) => {
    tell(place(event));
    if (start === null) return;
    const [from, to] = [share(start), share(place(event))].sort((a, b) => a - b);
    chosen.hidden = false;
    chosen.style.left = `${from}%`;
    chosen.style.width = `${to - from}%`;
  });
  plot.addEventListener("pointerup", (event) => {
    const ends = [start, place(event)].sort((a, b) => a - b), wide = start !== null && share(ends[1]) - share(ends[0]) > 2;
    start = null;
    chosen.hidden = true;
    if (wide && shown().length) zoom(ends);
    else tell(place(event));
  });
  plot.addEventListener("pointercancel", quiet);
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && start === null && quiet());
  plot.addEventListener("dblclick", () => zoom(null));
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") zoom(null);
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way) return;
    const places = shown().flatMap((run) => run.train.map((point) => point.x[axis])).sort((a, b) => a - b);
    const next = way > 0 ? places.find((x) => x > read) : places.findLast((x) => x < read);
    if (next !== undefined && share(next) >= 0 && share(next) <= 100) tell(next);
    event.preventDefault();
  });
  whole.addEventListener("click", () => zoom(null));
  chart.addEventListener("change", () => {
    const next = Math.max(0, axes.findIndex(({ name }) => document.getElementById(`by-${name}`)?.checked));
    if (part && next !== axis) {
      const held = every().filter(({ x }) => x[axis] >= part[0] && x[axis] <= part[1]).map(({ x }) => x[next]);
      part = [Math.min(...held), Math.max(...held)];
    }
    axis = next;
    quiet();
    draw();
  });

  chart.classList.add("live");
  chart.querySelector(".hint").hidden = false;
  plot.tabIndex = 0;
  quiet();
  plot.append(layer, cursor, chosen, tip);
})();
