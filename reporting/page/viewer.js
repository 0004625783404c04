"use strict";
/* The slice viewer: a subject's slices with the outlines of truth and prediction, or with the errors. */

const ERRORS = [
  { name: "false positive", color: "--okabe-7" },
  { name: "false negative", color: "--okabe-6" },
  { name: "wrong class", color: "--okabe-5" },
];

const IGNORED = 255; // in the truth: nobody annotated the pixel

/* base64 of a zlib stream -> Uint8Array. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/* The edges around the pixels of class k in mask (height x width bytes), joined to closed lines of corners [x, y]. */
function outlines(mask, width, height, k) {
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] === k;
  const next = new Map(); // corner -> corners that an edge leads to, with the class on its right
  const add = (x1, y1, x2, y2) => {
    const from = y1 * (width + 1) + x1, to = y2 * (width + 1) + x2;
    if (next.has(from)) next.get(from).push(to);
    else next.set(from, [to]);
  };
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      if (mask[y * width + x] !== k) continue;
      if (!at(x, y - 1)) add(x, y, x + 1, y);
      if (!at(x + 1, y)) add(x + 1, y, x + 1, y + 1);
      if (!at(x, y + 1)) add(x + 1, y + 1, x, y + 1);
      if (!at(x - 1, y)) add(x, y + 1, x, y);
    }
  const loops = [];
  for (const [start, ends] of next)
    while (ends.length) {
      const loop = [];
      let corner = start;
      do {
        loop.push([corner % (width + 1), Math.floor(corner / (width + 1))]);
        corner = next.get(corner).pop();
      } while (corner !== start);
      loops.push(loop);
    }
  return loops;
}

/* 2 |A and B| / (|A| + |B|) of class k in two masks, where the truth is annotated; null where neither has it. */
function diceOf(truth, prediction, k) {
  let both = 0, sum = 0;
  for (let i = 0; i < truth.length; i++) {
    if (truth[i] === IGNORED) continue;
    const t = truth[i] === k, p = prediction[i] === k;
    sum += t + p;
    both += t && p;
  }
  return sum ? (2 * both) / sum : null;
}

/* Of each pixel, with the classes that are on(k): 0 right, 1 prediction only, 2 truth only, 3 two classes that differ. */
function errorsOf(truth, prediction, on) {
  return truth.map((t, i) => {
    const p = prediction[i];
    return t === p || t === IGNORED ? 0 : on(t) && on(p) ? 3 : on(p) ? 1 : on(t) ? 2 : 0;
  });
}

/* Fill `container` with the viewer of data.viewer; returns show(subject), which chooses a subject by name. */
function sliceViewer(container, subjects, classes) {
  const canvas = el("canvas", { tabindex: 0, role: "img", "aria-describedby": "keys" });
  const select = el("select", { id: "subject" }, ...subjects.map((s, k) => el("option", { value: k }, s.subject)));
  const slider = el("input", { type: "range", id: "slice", min: 0, step: 1 });
  const place = el("output", { for: "slice" });
  const bars = "Dice of each slice: mean over the classes that truth or prediction has in it";
  const strip = el("div", { class: "strip", "aria-hidden": "true", title: bars });
  const legend = el("p", { class: "key" });
  const shown = { truth: true, prediction: true, errors: false, classes: classes.map(() => true) };
  const buttons = classes.map((name, k) => el("button", { type: "button", "aria-pressed": "true", class: "class" },
    swatch(k), el("span", { class: "text" }, name), el("span", { class: "value" })));
  buttons.forEach((button, k) => toggle(button, () => (shown.classes[k] = !shown.classes[k])));
  const layers = ["truth", "prediction"].map((layer) => {
    const button = el("button", { type: "button", "aria-pressed": "true", class: `layer ${layer}` }, layer);
    toggle(button, () => (shown[layer] = !shown[layer]));
    return button;
  });
  const mode = el("div", { class: "choice", role: "group", "aria-label": "View" });
  const worst = el("button", { type: "button", onclick: () => go(subject.worst) }, "slice with the most errors");
  let subject, masks, index = 0;
  const pictures = new Map();

  container.replaceChildren(el("div", { class: "viewer" },
    el("div", { class: "stage" }, canvas, strip, el("p", { class: "strip-title", title: bars }, "Dice of each slice, 0 to 100 %"),
      el("div", { class: "scroll" }, el("label", { for: "slice" }, "Slice"), slider, place)),
    el("div", { class: "panel" },
      el("div", { class: "field" }, el("label", { for: "subject" }, "Subject"), select, worst),
      el("div", { class: "field" }, mode, el("div", { class: "choice", role: "group", "aria-label": "Outlines" }, ...layers)),
      legend,
      el("div", { class: "classes", role: "group", "aria-label": "Classes, with their Dice in this slice" }, ...buttons),
      el("p", { class: "note", id: "keys" }, "Scroll by wheel, slider or arrow keys; Home and End go to the first and the last slice. Numbers beside the classes are their Dice in this slice."))));
  choice(mode, ["outlines", "errors"], (k) => { shown.errors = k === 1; draw(); });

  function toggle(button, change) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(change()));
      draw();
    });
  }

  async function show(k) {
    const chosen = subjects[k];
    const [truth, prediction] = await Promise.all([unpack(chosen.truth), unpack(chosen.prediction)]);
    subject = chosen;
    masks = { truth, prediction };
    select.value = String(k);
    pictures.clear();
    slider.max = subject.numbers.length - 1;
    strip.replaceChildren(...subject.dice.map((dice, z) => el("span", {
      onclick: () => go(z), title: `slice ${subject.numbers[z]}: Dice ${number(known(dice) ? 100 * dice : null)} %` },
      known(dice) ? el("i", { style: { height: `${Math.max(4, 100 * dice)}%` } }) : null)));
    go(subject.worst);
  }

  function go(z) {
    if (!subject) return;
    index = Math.max(0, Math.min(subject.numbers.length - 1, z));
    slider.value = index;
    slider.setAttribute("aria-valuetext", `slice ${subject.numbers[index]}`);
    place.textContent = `${subject.numbers[index]} (${index + 1} of ${subject.numbers.length})`;
    [...strip.children].forEach((bar, k) => bar.classList.toggle("here", k === index));
    draw();
  }

  function picture(z) {
    if (!pictures.has(z)) {
      const image = new Image();
      image.onload = () => { if (z === index) draw(); };
      image.src = `data:image/jpeg;base64,${subject.images[z]}`;
      pictures.set(z, image);
    }
    return pictures.get(z);
  }

  function slice(mask) {
    const area = subject.size[0] * subject.size[1];
    return mask.subarray(index * area, (index + 1) * area);
  }

  function draw() {
    if (!subject) return;
    const [height, width] = subject.size;
    canvas.style.aspectRatio = String(subject.aspect);
    const zoom = Math.max(1, Math.round((canvas.clientWidth * devicePixelRatio) / width));
    canvas.width = width * zoom;
    canvas.height = Math.round((width * zoom) / subject.aspect);
    const context = canvas.getContext("2d");
    const image = picture(index);
    if (image.complete && image.naturalWidth) context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const truth = slice(masks.truth), prediction = slice(masks.prediction);
    context.scale(canvas.width / width, canvas.height / height);
    const judged = (k) => !subject.unknown.includes(k);
    const errors = errorsOf(truth, prediction, (k) => k > 0 && shown.classes[k - 1] && judged(k));
    if (shown.errors || shown.truth) drawHatching(context, truth, width);
    if (shown.errors) drawErrors(context, errors, width);
    else {
      const pixel = width / canvas.clientWidth; // of the screen, in those of the slice
      if (shown.truth) drawOutlines(context, truth, width, height, pixel, false);
      if (shown.prediction) drawOutlines(context, prediction, width, height, pixel, true);
    }
    const dice = classes.map((_, k) => (judged(k + 1) ? diceOf(truth, prediction, k + 1) : null));
    buttons.forEach((button, k) => (button.lastChild.textContent = number(known(dice[k]) ? 100 * dice[k] : null)));
    layers.forEach((button) => (button.hidden = shown.errors));
    describe(dice, errors, truth.includes(IGNORED));
  }

  /* Oblique lines where nobody annotated the truth. */
  function drawHatching(context, truth, width) {
    const line = Math.max(1, Math.floor(truth.length / width / 96));
    context.fillStyle = "rgb(200 200 200 / 50%)";
    truth.forEach((t, i) => {
      const x = i % width, y = Math.floor(i / width);
      if (t === IGNORED && Math.floor((x + y) / line) % 4 === 0) context.fillRect(x, y, 1, 1);
    });
  }

  /* Solid, or dashed with black between the dashes, so that it is seen where it covers the other. */
  function drawOutlines(context, mask, width, height, pixel, dashed) {
    shown.classes.forEach((on, k) => {
      if (!on) return;
      context.beginPath();
      for (const loop of outlines(mask, width, height, k + 1)) {
        loop.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
        context.closePath();
      }
      context.lineWidth = 2 * pixel;
      context.lineJoin = "round";
      const passes = dashed ? [["#000", []], [pixelColor(k), [4 * pixel, 4 * pixel]]] : [[pixelColor(k), []]];
      for (const [color, dash] of passes) {
        context.strokeStyle = color;
        context.setLineDash(dash);
        context.stroke();
      }
    });
  }

  function drawErrors(context, kinds, width) {
    context.globalAlpha = 0.85;
    kinds.forEach((kind, i) => {
      if (!kind) return;
      context.fillStyle = errorColors[kind - 1];
      context.fillRect(i % width, Math.floor(i / width), 1, 1);
    });
    context.globalAlpha = 1;
  }
  const style = getComputedStyle(document.documentElement);
  const errorColors = ERRORS.map((kind) => style.getPropertyValue(kind.color));

  function describe(dice, errors, hatched) {
    const open = hatched ? [el("span", {}, el("span", { class: "swatch hatched" }), "not annotated")] : [];
    legend.replaceChildren(...open, ...(shown.errors
      ? ERRORS.map((kind, k) => el("span", {}, el("span", { class: "swatch", style: { background: errorColors[k] } }),
        `${kind.name}, ${errors.filter((e) => e === k + 1).length} px`))
      : [el("span", {}, el("span", { class: "stroke" }), "truth"), el("span", {}, el("span", { class: "stroke dashed" }), "prediction")]));
    const scores = classes.map((name, k) => (known(dice[k]) ? `${name} ${number(100 * dice[k])}` : null)).filter(Boolean);
    canvas.setAttribute("aria-label", `Subject ${subject.subject}, slice ${subject.numbers[index]}. Dice in percent: ${scores.join(", ") || "no class in it"}.`);
  }

  select.addEventListener("change", () => show(Number(select.value)));
  slider.addEventListener("input", () => go(Number(slider.value)));
  canvas.addEventListener("wheel", (event) => {
    const z = index + Math.sign(event.deltaY);
    if (!subject || z < 0 || z >= subject.numbers.length) return; // at either end the page scrolls
    event.preventDefault();
    go(z);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const last = subject ? subject.numbers.length - 1 : 0;
    const steps = { ArrowUp: index + 1, ArrowRight: index + 1, ArrowDown: index - 1, ArrowLeft: index - 1, Home: 0, End: last };
    if (event.key in steps) { event.preventDefault(); go(steps[event.key]); }
  });
  drawAtWidth(canvas, draw);
  show(0);
  return (name) => show(subjects.findIndex((s) => s.subject === name));
}
