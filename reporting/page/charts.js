"use strict";
/* Line charts and box plots in plain SVG. */

/* Round values between low and high, about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

const short = (value) => String(Number(value.toPrecision(3)));

/* Powers of ten between low and high, and 2 and 5 times them where there are few. */
function logTicks(low, high) {
  const found = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++)
    for (const m of high / low > 1000 ? [1] : [1, 2, 5]) found.push(m * 10 ** p);
  return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

/* Lines: series {name, x, values, color, dash, width}; those without a name are only drawn. `mark` is a place in x or
   null, domain [low, high], unit what x counts. The value of a line at a chosen x is that of its last point until there. */
function lineChart(container, { title, series, unit = "epoch", mark = null, domain = null, digits = 2 }) {
  const lines = series.filter((line) => line.name !== undefined);
  const x = [...new Set(series.flatMap((line) => line.x))].sort((a, b) => a - b);
  const all = series.flatMap((line) => line.values).filter(known);
  if (!all.length) {
    container.replaceChildren(el("h3", {}, title), el("p", { class: "note" }, "No values yet."));
    return;
  }
  const [low, high] = domain ?? [Math.min(...all), Math.max(...all)];
  const logarithmic = !domain && low > 0 && high / low > 20;
  const values = lines.map(() => el("td", { class: "value" }));
  const epoch = el("th", { scope: "col", class: "value" });
  const legend = el("table", { class: "legend" },
    el("caption", { class: "hidden" }, `${title}: values at the chosen ${unit}`),
    el("thead", {}, el("tr", {}, el("td"), epoch)),
    el("tbody", {}, ...lines.map((line, k) => el("tr", {},
      el("th", { scope: "row" }, lineSample(line), line.name), values[k]))));
  const holder = el("div", { class: "plot" });
  container.replaceChildren(el("h3", {}, title + (logarithmic ? ", logarithmic" : "")), holder, legend);

  let chosen = x.length - 1;
  drawAtWidth(holder, (width) => {
    const height = 220, left = 38, right = 8, top = 8, bottom = 24;
    const scale = logarithmic ? Math.log : (value) => value;
    const [from, to] = [scale(low), scale(high) === scale(low) ? scale(low) + 1 : scale(high)];
    const [first, last] = [x[0], x.at(-1)];
    const toX = (e) => left + ((width - left - right) * (last === first ? 0.5 : (e - first) / (last - first)));
    const toY = (v) => top + (height - top - bottom) * (1 - (scale(v) - from) / (to - from));
    const grid = svg("g", { class: "axis" });
    for (const tick of logarithmic ? logTicks(low, high) : ticks(low, high, 4))
      grid.append(svg("line", { x1: left, x2: width - right, y1: toY(tick), y2: toY(tick) }),
        svg("text", { x: left - 6, y: toY(tick) + 4, "text-anchor": "end" }, short(tick)));
    for (const tick of ticks(first, last, Math.min(6, width / 80)).filter((tick) => unit !== "epoch" || Number.isInteger(tick)))
      grid.append(svg("text", { x: toX(tick), y: height - 6, "text-anchor": "middle" }, short(tick)));
    const drawn = series.map((line) => {
      const points = line.values.map((v, k) => (known(v) && (!logarithmic || v > 0) ? [toX(line.x[k]), toY(v)] : null));
      const path = points.map((p, k) => p && `${points[k - 1] ? "L" : "M"}${p[0].toFixed(1)} ${p[1].toFixed(1)}`);
      const style = { stroke: line.color, "stroke-width": line.width ?? 1.5, "stroke-dasharray": line.dash, opacity: line.opacity };
      const alone = points.filter((p, k) => p && !points[k - 1] && !points[k + 1]);
      return svg("g", {}, svg("path", { class: "line", d: path.filter(Boolean).join(""), style }),
        ...alone.map((p) => svg("circle", { cx: p[0], cy: p[1], r: 2.5, style: { fill: line.color } })));
    });
    const best = mark !== null && svg("line", { class: "best", x1: toX(mark), x2: toX(mark), y1: top, y2: height - bottom });
    const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom });
    const dots = lines.map((line) => svg("circle", { r: 3.5, style: { fill: line.color } }));
    const label = `${title} over ${x.length} ${unit === "epoch" ? "epochs" : "points in time"}: ` +
      lines.map((line) => `${line.name} ${number(line.values[0], digits)} to ${number(line.values.at(-1), digits)}`).join(", ");
    const picture = svg("svg", { width, height, role: "img", tabindex: 0, "aria-label": label },
      svg("title", {}, label), grid, ...(best ? [best] : []), ...drawn, cursor, ...dots);

    function choose(k) {
      chosen = Math.max(0, Math.min(x.length - 1, k));
      cursor.setAttribute("x1", toX(x[chosen]));
      cursor.setAttribute("x2", toX(x[chosen]));
      epoch.textContent = `${unit} ${unit === "epoch" ? x[chosen] : short(x[chosen])}`;
      lines.forEach((line, s) => {
        const k = line.x.findLastIndex((at) => at <= x[chosen]), value = line.values[k];
        values[s].textContent = number(value, digits);
        dots[s].style.display = known(value) ? "" : "none";
        if (known(value)) fillElement(dots[s], { cx: toX(line.x[k]), cy: toY(value) }, []);
      });
    }
    picture.addEventListener("pointermove", (event) => {
      const at = event.clientX - picture.getBoundingClientRect().left;
      choose(x.reduce((near, e, k) => (Math.abs(toX(e) - at) < Math.abs(toX(x[near]) - at) ? k : near), 0));
    });
    picture.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: x.length - 1 };
      if (event.key in steps) { event.preventDefault(); choose(steps[event.key]); }
    });
    holder.replaceChildren(picture);
    choose(chosen);
  });
}

function lineSample(line) {
  const style = { stroke: line.color, "stroke-width": 3, "stroke-dasharray": line.dash };
  return svg("svg", { class: "sample", width: 18, height: 8, "aria-hidden": "true" },
    svg("line", { x1: 0, x2: 18, y1: 4, y2: 4, style }));
}

/* The q-quantile of sorted values, interpolated between neighbors as NumPy does. */
function quantile(sorted, q) {
  const at = q * (sorted.length - 1), k = Math.floor(at);
  return sorted[k] + (at - k) * ((sorted[k + 1] ?? sorted[k]) - sorted[k]);
}

/* The axis of percentages: to 100, from a round value below all of them. */
const percents = (values) => [Math.min(80, 20 * Math.floor(Math.min(100, ...values.filter(known)) / 20)), 100];

/* Horizontal box plots: rows {name, color, points: [{name, value}]}; boxes are quartiles, whiskers reach 1.5 of them. */
function boxPlot(container, { title, rows, unit, digits, domain }) {
  const values = rows.flatMap((row) => row.points.map((point) => point.value)).filter(known);
  if (!values.length) {
    container.replaceChildren(el("p", { class: "note" }, "No values."));
    return;
  }
  const [low, high] = domain ?? [0, Math.max(...values) || 1];
  const holder = el("div", { class: "plot" });
  container.replaceChildren(holder);
  drawAtWidth(holder, (width) => {
    const left = 8, right = 12, rowHeight = 46, axis = 24, height = rows.length * rowHeight + axis;
    const toX = (v) => left + ((width - left - right) * (v - low)) / (high - low);
    const grid = svg("g", { class: "axis" });
    for (const tick of ticks(low, high, Math.min(6, width / 70)))
      grid.append(svg("line", { x1: toX(tick), x2: toX(tick), y1: 0, y2: height - axis }),
        svg("text", { x: toX(tick), y: height - 6, "text-anchor": "middle" }, short(tick)));
    const medians = [];
    const boxes = rows.map((row, k) => {
      const points = row.points.filter((point) => known(point.value));
      const sorted = points.map((point) => point.value).sort((a, b) => a - b);
      const y = k * rowHeight + 30, group = svg("g", { style: { "--color": row.color } });
      group.append(svg("text", { class: "row", x: left, y: y - 14 }, row.name));
      if (!sorted.length) return group;
      const [q1, median, q3] = [0.25, 0.5, 0.75].map((q) => quantile(sorted, q));
      const inside = sorted.filter((v) => v >= q1 - 1.5 * (q3 - q1) && v <= q3 + 1.5 * (q3 - q1));
      medians.push(`${row.name} ${number(median, digits)}`);
      group.append(
        svg("text", { class: "row value", x: width - right, y: y - 14, "text-anchor": "end" }, `median ${number(median, digits)}`),
        svg("line", { class: "whisker", x1: toX(inside[0]), x2: toX(inside.at(-1)), y1: y, y2: y }),
        svg("rect", { class: "box", x: toX(q1), width: Math.max(1, toX(q3) - toX(q1)), y: y - 8, height: 16, rx: 2 }),
        svg("line", { class: "median", x1: toX(median), x2: toX(median), y1: y - 8, y2: y + 8 }),
        ...points.map((point) => svg("circle", { cx: toX(point.value), cy: y, r: 3 },
          svg("title", {}, `${point.name}: ${number(point.value, digits)} ${unit}`))));
      return group;
    });
    const label = `${title}, medians: ${medians.join(", ")}`;
    holder.replaceChildren(svg("svg", { class: "boxes", width, height, role: "img", "aria-label": label },
      svg("title", {}, label), grid, ...boxes));
  });
}
