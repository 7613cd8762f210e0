"use strict";
// Draws each figure when it comes near the screen, in the colours of the reader's theme.
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const drawn = new Set();

function draw(plot) {
  const style = getComputedStyle(document.documentElement);
  const text = plot.nextElementSibling.textContent
    .replace(/var\((--[a-z]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  const figure = JSON.parse(text);
  Plotly.react(plot, figure.data, figure.layout, { displayModeBar: false, responsive: true });
  drawn.add(plot);
}

const plots = document.querySelectorAll(".plot");
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      near.unobserve(entry.target);
      draw(entry.target);
    }
  }
}, { rootMargin: "800px" });
plots.forEach((plot) => near.observe(plot));
document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", () => {
  details.querySelectorAll(".plot").forEach((plot) => drawn.has(plot) && Plotly.Plots.resize(plot));
}));
dark.addEventListener("change", () => drawn.forEach(draw));
window.addEventListener("beforeprint", () => plots.forEach((plot) => drawn.has(plot) || draw(plot)));
