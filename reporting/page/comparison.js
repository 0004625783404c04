"use strict";
/* The page that compares several runs. The last one is what the others are compared with. */

const { runs, labels, metrics } = data; // the last label is the mean over classes
const rowOf = (run, metric) => data.rows.find((row) => row.row === run && row.class === labels.at(-1) && row.metric === metric);
const pValue = (p) => (known(p) ? (p < 0.001 ? "< 0.001" : p.toFixed(3)) : "–");
const titleOf = (metric) => `${metric.name} ${metric.unit}`;

byId("name").textContent = runs.map((run) => run.name).join(" · ");
byId("reference").textContent = data.reference;

const metricColumns = (values) => metrics.map((metric) => ({
  title: titleOf(metric), numeric: true, lower: metric.lower,
  value: (run) => values(run, metric.name)?.mean ?? null,
  cell: (run) => meanStd(values(run, metric.name)?.mean, values(run, metric.name)?.std, 2),
}));

sortableTable(byId("runs"), {
  caption: "Means over classes",
  columns: [
    { title: "run", value: (run) => run.name, cell: (run) => el("span", { class: "named" }, swatch(runs.indexOf(run)), run.name) },
    ...metricColumns((run, metric) => rowOf(run.name, metric)),
    { title: "parameters", numeric: true, lower: true, value: (run) => run.parameters, cell: (run) => run.parameters.toLocaleString("en") },
    { title: "epochs", numeric: true, value: (run) => run.epochs, cell: (run) => String(run.epochs) },
    { title: "time", numeric: true, lower: true, value: (run) => run.seconds, cell: (run) => duration(run.seconds) },
  ],
  rows: runs,
});

plainTable(byId("tests"), {
  caption: "Paired tests",
  header: ["run", "metric", "pairs", "difference", "p", "p, Holm"],
  rows: data.rows.filter((row) => row.class === labels.at(-1) && "pairs" in row).map((row) =>
    [row.row, row.metric, String(row.pairs), signed(row.paired_difference), pValue(row.p_wilcoxon), pValue(row.p_holm)]),
});

function signed(value) {
  return known(value) ? `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}` : "–";
}

choice(byId("metric"), metrics.map((metric) => metric.name), (k) => {
  const metric = metrics[k];
  const best = (cells) => (metric.lower ? Math.min : Math.max)(...cells.map((cell) => cell.mean).filter(known));
  const byClass = labels.slice(0, -1).map((label) => {
    const cells = runs.map((run) => data.classes.find((c) => c.row === run.name && c.class === label && c.metric === metric.name));
    const top = best(cells);
    return [label, ...cells.map((cell) => el(cell.mean === top ? "strong" : "span", {}, meanStd(cell.mean, cell.std, 2)))];
  });
  plainTable(byId("classes"), { caption: `${titleOf(metric)} by class`, header: ["class", ...runs.map((run) => run.name)], rows: byClass });

  const means = (run) => run.values.at(-1)[metric.name];
  const of = (run, subject) => (Object.hasOwn(means(run), subject) ? means(run)[subject] : null);
  const subjects = [...new Set(runs.flatMap((run) => Object.keys(means(run))))];
  const most = Math.max(...subjects.flatMap((s) => runs.map((run) => of(run, s))).filter(known), 1e-9);
  const badness = (value) => (known(value) ? (metric.lower ? value / most : 1 - value / 100) : null);
  sortableTable(byId("subjects"), {
    caption: `${titleOf(metric)} by subject, mean over classes; worst of ${data.reference} first`,
    columns: [
      { title: "subject", value: (s) => s, cell: (s) => s },
      ...runs.map((run) => ({
        title: run.name, numeric: true, lower: metric.lower, value: (s) => of(run, s),
        shade: (s) => badness(of(run, s)), cell: (s) => number(of(run, s), 2),
      })),
    ],
    rows: subjects, by: runs.length,
  });
  byId("boxes").replaceChildren(...labels.map((label, l) => {
    const place = el("div");
    boxPlot(place, {
      title: `${metric.name} of ${label}`, unit: metric.unit, digits: 2, domain: metric.lower ? null : percents(runs.flatMap((r) => r.values.flatMap((of) => Object.values(of[metric.name])))),
      rows: runs.map((run, r) => ({
        name: run.name, color: lineColor(r),
        points: Object.entries(run.values[l][metric.name]).map(([subject, value]) => ({ name: `subject ${subject}`, value })),
      })),
    });
    return el("div", {}, el("h4", {}, label), place);
  }));
});

const longest = runs.reduce((a, b) => (b.log.length > a.log.length ? b : a)).log;
for (const [place, title, key, factor, domain] of [
  ["losses", "Total loss", "total", 1, null], ["validation", "Validation Dice, %", "val_dsc", 100, [0, 100]]])
  lineChart(byId(place), {
    title, x: longest.map((row) => row.epoch), domain, digits: factor === 1 ? 3 : 1,
    series: runs.map((run, r) => ({
      name: run.name, color: lineColor(r), dash: dashes(r),
      values: longest.map((_, k) => (known(run.log[k]?.[key]) ? factor * run.log[k][key] : null)),
    })),
  });

const differences = Object.entries(data.differences);
if (differences.length)
  plainTable(byId("differences"), {
    caption: "Configuration", header: ["value", ...runs.map((run) => run.name)], numeric: false,
    rows: differences.map(([name, values]) => [name, ...values.map((value) => (value === null ? "–" : String(value)))]),
  });
else byId("differences").replaceChildren(el("p", { class: "note" }, "Nothing."));
