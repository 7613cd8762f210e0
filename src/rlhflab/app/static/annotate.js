"use strict";
// Keys and the time on the page. Without this script the forms work by mouse.

const judge = document.getElementById("judge");
const keys = document.getElementById("keys");
if (keys) {
  keys.checked = localStorage.getItem("keys") !== "off";
  keys.addEventListener("change", () => localStorage.setItem("keys", keys.checked ? "on" : "off"));
}

if (judge) {
  // Only time in which the page could be seen counts.
  let seen = 0, since = document.hidden ? null : performance.now();
  const spent = () => (seen + (since === null ? 0 : performance.now() - since)) / 1000;
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && since !== null) { seen += performance.now() - since; since = null; }
    else if (!document.hidden && since === null) { since = performance.now(); }
  });
  judge.addEventListener("submit", () => { judge.elements.seconds.value = spent().toFixed(1); });

  // To the browser, what lies under the bar of verdicts is in view; what is not, it scrolls to by the style's padding.
  const bar = judge.querySelector(".verdicts");
  judge.addEventListener("focusin", (event) => {
    const under = event.target.getBoundingClientRect().bottom + 8 - bar.getBoundingClientRect().top;
    if (under > 0 && under < bar.offsetHeight + 8 && !bar.contains(event.target)) { scrollBy(0, under); }
  });
}

let sent = false;
document.addEventListener("submit", (event) => {
  // Two clicks send one form; the store would know the second one anyway.
  if (sent) { event.preventDefault(); }
  sent = true;
});
addEventListener("pageshow", (event) => { if (event.persisted) { location.reload(); } });

document.addEventListener("keydown", (event) => {
  const writing = event.target.matches("textarea, input:not([type=checkbox]):not([type=radio])");
  if (writing) { if (event.key === "Escape") { event.target.blur(); } return; }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || (keys && !keys.checked)) { return; }
  if (event.target.type === "radio" && event.key.startsWith("Arrow")) { return; }  // There they choose a strength.
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const focused = document.querySelector(`[data-focus="${CSS.escape(key)}"]`);
  const target = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!focused && !target) { return; }
  event.preventDefault();
  if (focused) { focused.focus(); } else { target.click(); }
});
