"use strict";
/* The page that compares rows of runs: cells[label][metric] of each, the last label being the mean over classes. */

const { runs, labels, metrics } = data;
const mean = labels.length - 1;
const names = runs.map((run) => run.name);
const pValue = (p) => (known(p) ? (p < 0.001 ? "< 0.001" : p.toFixed(3)) : "–");
const between = (low, high) => (known(low) ? ` [${number(low, 2)}, ${number(high, 2)}]` : "");
const rowName = (run) => el("span", { class: "named" }, swatch(runs.indexOf(run)), run.name);

/* Mean ± deviation over subjects, and in brackets the deviation over seeds. */
const meanOf = (cell) => meanStd(cell.mean, cell.std, 2) + (known(cell.seed_std) ? ` (${number(cell.seed_std, 2)})` : "");

byId("name").textContent = names.join(" · ");
byId("note").textContent = data.note;
byId("reference").textContent = data.reference;

const cost = (title, of, show, lower = true) => ({
  title, numeric: true, lower, value: of, cell: (run) => (known(of(run)) ? show(of(run)) : "–"),
});
sortableTable(byId("runs"), {
  caption: "Means over classes",
  columns: [
    { title: "row", value: (run) => run.name, cell: rowName },
    ...metrics.map((metric, m) => ({
      title: titleOf(metric), numeric: true, lower: metric.lower_is_better,
      value: (run) => run.cells[mean][m].mean, cell: (run) => meanOf(run.cells[mean][m]),
    })),
    cost("n", (run) => run.cells[mean][0].n, String, false),
    cost("folds", (run) => run.folds, String, false),
    cost("seeds", (run) => run.seeds.length || null, String, false),
    cost("parameters", (run) => run.parameters, (value) => value.toLocaleString("en")),
    cost("epochs", (run) => run.epochs, String, false),
    cost("time", (run) => run.seconds, duration),
  ],
  rows: runs,
});

const countText = ([missed, spurious]) =>
  [missed && `${missed} missed`, spurious && `${spurious} spurious`].filter(Boolean).join(", ") || "–";
if (data.missing)
  plainTable(byId("counts"), {
    caption: "Missed and spurious, in all runs of a row", header: ["class", ...names],
    rows: labels.slice(0, mean).map((label, l) => [label, ...runs.map(({ counts }) => countText(counts[l]))]),
  });
byId("disjoint").textContent = data.disjoint.length
  ? `${data.disjoint.join(", ")}: no test, as no test subject is also one of ${data.reference}.` : "";

function signed(value) {
  return known(value) ? `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}` : "–";
}

choice(byId("metric"), metrics.map(titleOf), (m) => {
  const metric = metrics[m];
  const cellOf = (run, l) => run.cells[l][m];
  const most = Math.max(...runs.map((run) => cellOf(run, mean).n));
  plainTable(byId("classes"), {
    caption: `${titleOf(metric)} by class`, header: ["class", ...names],
    rows: labels.map((label, l) => [label, ...runs.map((run) => {
      const cell = cellOf(run, l);
      return el(cell.best ? "strong" : "span", {}, meanOf(cell) + (cell.n < most ? ` (n = ${cell.n})` : ""));
    })]),
  });
  plainTable(byId("tests"), {
    caption: `Paired tests of ${titleOf(metric)}`,
    header: ["row", "class", "mean", "subjects", "pairs", "difference", "p", "p, Holm"],
    rows: runs.flatMap((run) => labels.map((label, l) => [run.name, label, cellOf(run, l)]))
      .filter(([, , cell]) => "pairs" in cell)
      .map(([name, label, cell]) => [name, label, number(cell.mean, 2) + between(cell.low, cell.high),
        String(cell.subjects), String(cell.pairs),
        signed(cell.difference) + between(cell.difference_low, cell.difference_high), pValue(cell.p), pValue(cell.p_holm)]),
  });

  const of = (run, subject) => {
    const { values } = cellOf(run, mean);
    return Object.hasOwn(values, subject) ? values[subject] : null;
  };
  const subjects = [...new Set(runs.flatMap((run) => Object.keys(cellOf(run, mean).values)))];
  const largest = Math.max(...subjects.flatMap((s) => runs.map((run) => of(run, s))).filter(known), 1e-9);
  const badness = badnessIn(metric, largest);
  sortableTable(byId("subjects"), {
    caption: `${titleOf(metric)} by subject, mean over classes; worst of ${data.reference} first`,
    columns: [
      { title: "subject", value: (s) => s, cell: (s) => s },
      ...runs.map((run) => ({
        title: run.name, numeric: true, lower: metric.lower_is_better, value: (s) => of(run, s),
        shade: (s) => badness(of(run, s)), cell: (s) => number(of(run, s), 2),
      })),
    ],
    rows: subjects, by: 1 + names.indexOf(data.reference),
  });
  const all = runs.flatMap((run) => run.cells.flatMap((of) => Object.values(of[m].values))).filter(known);
  byId("boxes").replaceChildren(...labels.map((label, l) => {
    const place = el("div");
    boxPlot(place, {
      title: `${metric.name} of ${label}`, unit: metric.unit, digits: 2,
      domain: metric.lower_is_better ? [0, Math.max(...all, 0) || 1] : percents(all),
      rows: runs.map((run, r) => ({
        name: run.name, color: lineColor(r),
        points: Object.entries(cellOf(run, l).values).map(([subject, value]) => ({ name: `subject ${subject}`, value })),
      })),
    });
    return el("div", {}, el("h4", {}, `${label}, ${titleOf(metric)}`), place);
  }));
});

const trained = runs.filter((run) => run.curve);
if (trained.length)
  for (const [place, title, unit, x] of [
    ["epochs", "over epochs", "epoch", (curve) => curve.dice.map((_, k) => k + 1)],
    ["hours", "over hours of training", "hour", (curve) => curve.hours]])
    lineChart(byId(place), {
      title: `Validation Dice, %, ${title}`, unit, domain: [0, 100], digits: 1,
      series: trained.flatMap((run) => {
        const r = runs.indexOf(run), line = (curve) => ({ x: x(curve), values: curve.dice, color: lineColor(r), dash: dashes(r) });
        const thin = run.curves.length > 1 ? run.curves.map((curve) => ({ ...line(curve), width: 0.8, opacity: 0.5 })) : [];
        return [...thin, { name: run.name, ...line(run.curve), width: 2 }];
      }),
    });
else byId("training").remove();

const differences = Object.entries(data.differences);
if (differences.length)
  plainTable(byId("differences"), {
    caption: "Configuration", header: ["value", ...names], numeric: false,
    rows: differences.map(([name, values]) => [name, ...values.map((value) => value ?? "–")]),
  });
else byId("differences").replaceChildren(el("p", { class: "note" }, "Nothing."));
plainTable(byId("folders"), {
  caption: "Run folders", header: ["row", "folders"], numeric: false,
  rows: runs.map((run) => [run.name, run.folders.join(", ")]),
});
