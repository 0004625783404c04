"use strict";
/* The page of one run, finished or not. */

const { config, log, test, classes, regions, evaluation, viewer } = data;
const labels = [...classes, ...regions];
const finished = Boolean(test);
const unit = test?.per_image ? "image" : "subject";
const best = finished ? test.best_epoch : bestEpoch();

function bestEpoch() {
  const scored = log.filter((row) => known(row.val_dsc));
  return scored.length ? scored.reduce((a, b) => (b.val_dsc > a.val_dsc ? b : a)).epoch : null;
}

/* ---------------------------------------------------------------- head */

function figure(title, value, unit) {
  return el("div", {}, el("dt", {}, title), el("dd", {}, value.replaceAll(" ", "\u00a0"), el("span", { class: "unit" }, ` ${unit}`)));
}

function head() {
  document.title = `${data.name} – ${evaluation ? "evaluation" : "segmentation run"}`;
  byId("name").textContent = data.name;
  const epochs = config?.epochs ?? log.length;
  byId("state").textContent = evaluation ? `Evaluation of ${evaluation.predictions}` : finished ? "Segmentation run" : `Segmentation run, epoch ${log.length} of ${epochs}, no test yet`;
  const seconds = finished ? test.seconds : log.reduce((sum, row) => sum + (row.seconds ?? 0), 0);
  const parts = [
    config && `data set ${config.data}`,
    data.network,
    finished && known(test.parameters) && `${test.parameters.toLocaleString("en")} parameters`,
    known(best) && `best epoch ${best} of ${finished ? test.epochs : epochs}`,
    log.length && `trained for ${duration(seconds)}`,
    finished && `${test.subjects} test ${unit}${test.subjects === 1 ? "" : "s"}${test.per_image ? "" : " in 3D"}`,
  ];
  byId("lead").textContent = parts.filter(Boolean).join(" · ");
  const shown = finished
    ? data.metrics.map((metric) => {
      const { mean, std } = test.overall[metric.key];
      return figure(metric.name, meanStd(scaled(mean, metric), scaled(std, metric), metric.unit === "%" ? 1 : 2), metric.unit);
    })
    : [["validation DSC, newest", log.at(-1)], ["validation DSC, best", log.find((row) => row.epoch === best)]]
      .filter(([, row]) => known(row?.val_dsc))
      .map(([title, row]) => figure(title, number(100 * row.val_dsc), "%"));
  byId("figures").replaceChildren(...shown);
}

const scaled = (value, metric) => (known(value) ? value * metric.scale : null);
const digitsOf = (metric) => (metric.unit === "%" ? 1 : 2);

/* ---------------------------------------------------------------- scores */

function scores(showSubject) {
  if (!finished) {
    byId("scores").remove();
    return;
  }
  const units = test.per_image ? "images" : "subjects in 3D";
  byId("scores-note").replaceChildren(...[`Mean ± standard deviation over test ${units}.`, ...scoreNotes()].map((text) => el("span", {}, `${text} `)));
  const marks = ["n", "missed", "spurious"];
  const summaryRow = (title, of) => [title,
    ...data.metrics.map((m) => meanStd(scaled(of[m.key]?.mean, m), scaled(of[m.key]?.std, m), digitsOf(m))),
    String(of.dsc?.n ?? ""), ...marks.slice(1).map((kind) => String(of[kind] ?? ""))];
  plainTable(byId("summary"), {
    caption: regions.length ? "By class and region" : "By class",
    header: [regions.length ? "class or region" : "class", ...data.metrics.map(titleOf), ...marks],
    rows: [...classes.map((name) => summaryRow(named(name), test.per_class[name] ?? {})),
      ...regions.map((name) => summaryRow(named(name), test.per_region?.[name] ?? {})), summaryRow(data.mean, test.overall)],
  });
  choice(byId("metric"), data.metrics.map(titleOf), (k) => scoresOf(data.metrics[k], showSubject));
}

/* Sentences on what is in which mean. */
function scoreNotes() {
  const worst = data.metrics.filter((m) => m.key.includes("_worst")).map((m) => m.name);
  const found = data.metrics.filter((m) => m.lower_is_better && !m.key.includes("_worst")).map((m) => m.name);
  return [
    regions.length && `The mean is over classes; regions (${regions.join(", ")}) join classes.`,
    `n is the number of ${unit}s in which truth or prediction has the class; where only one of them has it, it is missed or spurious.`,
    `${found.join(" and ")} are means over the others, which have a distance.`,
    worst.length && `${worst.join(" and ")} take the diagonal of the image as the distance of a missed or spurious class.`,
    toleranceNote(data.metrics, test.tolerances_mm),
  ].filter(Boolean);
}

function named(name) {
  const k = classes.indexOf(name);
  return el("span", { class: "named" }, k >= 0 ? swatch(k) : null, name);
}

function scoresOf(metric, showSubject) {
  const subjects = new Map();
  for (const row of data.scores) {
    if (!subjects.has(row.subject)) subjects.set(row.subject, { subject: row.subject, cells: Object.create(null) });
    subjects.get(row.subject).cells[row.class] = { value: scaled(row[metric.key], metric), mark: row.missed ? "missed" : row.spurious ? "spurious" : null };
  }
  const rows = [...subjects.values()];
  for (const row of rows) {
    const values = classes.map((name) => row.cells[name]?.value).filter(known);
    row.mean = values.length ? values.reduce((a, b) => a + b) / values.length : null;
  }
  const most = Math.max(...rows.flatMap((row) => Object.values(row.cells).map((cell) => cell.value)).filter(known), 1e-9);
  const badness = badnessIn(metric, most);
  const digits = digitsOf(metric);
  const numbers = (title, of, mark = () => null) => ({
    title, numeric: true, lower: metric.lower_is_better, value: of, shade: (row) => badness(of(row)),
    cell: (row) => el("span", {}, number(of(row), digits), mark(row) && el("small", { class: "mark" }, ` ${mark(row)}`)),
  });
  sortableTable(byId("subjects"), {
    caption: `${metric.name} by subject, ${metric.unit}`,
    columns: [
      { title: "subject", value: (row) => row.subject, cell: (row) => subjectLink(row.subject, showSubject) },
      ...labels.map((name) => numbers(name, (row) => row.cells[name]?.value ?? null, (row) => row.cells[name]?.mark)),
      numbers(data.mean, (row) => row.mean),
    ],
    rows, by: labels.length + 1,
  });
  boxPlot(byId("boxes"), {
    title: `${metric.name} by class`, unit: metric.unit, digits, domain: metric.lower_is_better ? null : percents(rows.flatMap((row) => Object.values(row.cells).map((cell) => cell.value))),
    rows: labels.map((name, k) => ({
      name, color: lineColor(k), points: rows.map((row) => ({ name: `subject ${row.subject}`, value: row.cells[name]?.value })),
    })),
  });
}

function subjectLink(subject, showSubject) {
  if (!showSubject || !viewer.subjects.some((s) => s.subject === subject)) return subject;
  return el("button", { type: "button", class: "link", title: "show its slices", onclick: () => {
    showSubject(subject);
    byId("slices").scrollIntoView();
  } }, subject);
}

/* ---------------------------------------------------------------- slices and maps */

function slices() {
  if (!viewer?.subjects.length) {
    byId("slices").remove();
    return null;
  }
  const kind = viewer.split === "test" ? "test" : "validation";
  const left = viewer.left_out ? ` The ${viewer.subjects.length} worst of ${viewer.subjects.length + viewer.left_out}; the others are left out to keep the page small.` : "";
  byId("slices-note").textContent = `The ${kind} subjects, worst first, each at the slice with the most wrong pixels `
    + `among those with at least a tenth of the foreground of its fullest slice.${left}`;
  return sliceViewer(byId("viewer"), viewer.subjects, classes);
}

function maps() {
  if (!data.inside.length) {
    byId("inside").remove();
    return;
  }
  const chosen = el("div", { class: "choice", role: "group", "aria-label": "Slice" });
  const place = el("div");
  byId("maps").replaceChildren(chosen, place);
  choice(chosen, data.inside.map((s) => `subject ${s.subject}, slice ${s.number} (${s.kind})`), (k) => {
    const slice = data.inside[k];
    const row = (title, pictures) => el("div", { class: "maps" }, el("h3", {}, title), ...pictures);
    place.replaceChildren(row("Truth", [classMap(slice, slice.truth, "Truth", slice.truth_note, slice.point)]), ...slice.rows.map(({ title, classes, heat, cross }) =>
      row(title, classes ? classes.map((mask, s) => classMap(slice, mask, title, scaleName(s, title)))
        : heat.map((map, s) => mapFigure(slice, title, scaleName(s), [`data:image/png;base64,${map}`], cross && slice.point)))));
  });
}

const scaleName = (s, title) => (s < 4 ? `Res-${s + 2}` : title.startsWith("Refined") ? "prediction" : "mean");

function classMap(slice, mask, title, caption, point = null) {
  return mapFigure(slice, title, caption, [`data:image/jpeg;base64,${slice.image}`, `data:image/png;base64,${mask}`], point);
}

/* Pictures of a slice over each other, and a cross at `point` (parts of width and height). */
function mapFigure(slice, title, caption, sources, point = null) {
  const cross = point && el("span", { class: "cross", style: { left: `${100 * point[0]}%`, top: `${100 * point[1]}%` } });
  const images = sources.map((src, layer) => el("img", { src, alt: layer ? "" : [title, caption].filter(Boolean).join(", "), style: { aspectRatio: String(slice.aspect) } }));
  return el("figure", {}, el("div", { class: "map" }, ...images, cross), el("figcaption", {}, caption));
}

/* ---------------------------------------------------------------- training and settings */

function training() {
  if (!log.length) {
    byId("training").remove();
    return;
  }
  const x = log.map((row) => row.epoch);
  const column = (key, factor = 1) => log.map((row) => (known(row[key]) ? factor * row[key] : null));
  const terms = ["total", "segmentation", "guided", "reconstruction"].filter((key) => key in log[0]);
  lineChart(byId("losses"), {
    title: "Losses", mark: best, digits: 3,
    series: terms.map((key, k) => ({ name: key, x, values: column(key), color: k ? lineColor([1, 2, 6][k - 1]) : "var(--text)", width: k ? 1.5 : 2.5 })),
  });
  lineChart(byId("validation"), {
    title: "Validation Dice, %", mark: best, domain: [0, 100], digits: 1,
    series: [{ name: data.mean, x, values: column("val_dsc", 100), color: "var(--text)", width: 2.5 },
      ...classes.map((name, k) => ({ name, x, values: column(`val_dsc ${name}`, 100), color: lineColor(k), dash: dashes(k) }))],
  });
  const keys = Object.keys(log[0]);
  plainTable(byId("log"), {
    caption: "log.csv", header: keys,
    rows: log.map((row) => keys.map((key) => (known(row[key]) ? String(Number(row[key].toPrecision(4))) : "–"))),
  });
}

function settings() {
  const text = (value) => (Array.isArray(value) ? value.map(text).join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value));
  const pairs = (values) => Object.entries(values).map(([name, value]) => [name, value === null ? "–" : text(value) || "–"]);
  const given = config ?? evaluation;
  if (given) plainTable(byId("config"), { caption: config ? "Configuration" : "Evaluation", header: null, rows: pairs(given), numeric: false });
  if (data.environment || finished) {
    const used = known(test?.memory_gib) ? { "peak memory": `${test.memory_gib} GiB` } : {};
    plainTable(byId("environment"), { caption: "Environment", header: null, rows: pairs({ ...data.environment, ...used }), numeric: false });
  }
}

head();
const showSubject = slices();
scores(showSubject);
maps();
training();
settings();
byId("contents").replaceChildren(...[...document.querySelectorAll("section")].map((section) =>
  el("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)));
