"use strict";
/* What all parts of the page share: its data, elements, numbers and colors. Text enters as text, never as markup. */

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function fillElement(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/* An HTML element; children are elements or text. */
function el(name, attributes = {}, ...children) {
  return fillElement(document.createElement(name), attributes, children);
}

/* An SVG element. */
function svg(name, attributes = {}, ...children) {
  return fillElement(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

const known = (value) => typeof value === "number";
const number = (value, digits = 1) => (known(value) ? value.toFixed(digits) : "–");
const meanStd = (mean, std, digits = 1) => number(mean, digits) + (known(std) ? ` ± ${number(std, digits)}` : "");

const titleOf = (metric) => `${metric.name} ${metric.unit}`;

/* The tolerance of NSD as a sentence; tolerances: class or region -> mm. Null where NSD is not among the metrics. */
function toleranceNote(metrics, tolerances) {
  const nsd = metrics.find((metric) => metric.name === "NSD");
  if (!nsd) return null;
  const of = Object.entries(tolerances ?? {});
  const others = of.filter(([, value]) => value !== 1).map(([name, value]) => `${name}: ${value} mm`).join(", ");
  const mm = others ? `1 mm (${others})` : "1 mm";
  const flat = metrics.some((metric) => metric.unit === "pixels") ? "one pixel" : "one voxel";
  return `NSD is the share of the surfaces within ${nsd.key.endsWith("_mm") ? mm : flat} of each other.`;
}

function duration(seconds) {
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return minutes ? `${minutes} min ${String(Math.round(seconds) % 60).padStart(2, "0")} s` : `${Math.round(seconds)} s`;
}

/* Eight colors, then the same again with dashes. */
const COLORS = 8;
const lineColor = (k) => `var(--line-${(k % COLORS) + 1})`;
const pixelColor = (k) => getComputedStyle(document.documentElement).getPropertyValue(`--okabe-${(k % COLORS) + 1}`);
const dashes = (k) => (k < COLORS ? null : "5 3");

function swatch(k) {
  return el("span", { class: "swatch", "aria-hidden": "true", style: { background: pixelColor(k) } });
}

/* A row of buttons of which one is pressed; choose(k) is called at once with the first, and with each one pressed. */
function choice(container, titles, choose) {
  const buttons = titles.map((title, k) => el("button", { type: "button", onclick: () => press(k) }, title));
  function press(chosen) {
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === chosen)));
    choose(chosen);
  }
  container.replaceChildren(...buttons);
  press(0);
}

/* Call draw(width) now and whenever the width of the container changes. */
function drawAtWidth(container, draw) {
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.floor(container.clientWidth);
    if (width > 0 && width !== last) draw((last = width));
  }).observe(container);
}
