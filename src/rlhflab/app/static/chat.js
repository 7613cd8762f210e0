"use strict";
// The chat: one message to two models, both answers as they are written. Each side keeps its own conversation.
// Names and answers are put on the page as text; markdown comes from the server, without HTML of the answer's own.

const form = document.getElementById("chat");
const log = document.getElementById("log");
const empty = document.getElementById("empty");
const status = document.getElementById("status");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const KEPT = "rlhflab chat";  // In this tab only, so that a look at another page loses nothing.

const within = (element, name) => element.querySelector(`[data-${name}]`);
const sides = [...document.querySelectorAll(".picker")].map((picker) => ({
  letter: picker.dataset.side, picker, model: picker.querySelector("[name=model]"),
  strength: picker.querySelector("[name=strength]"), mix: picker.querySelector("[name=mix]"),
  dials: within(picker, "dials"), about: within(picker, "about"), messages: [],
}));
let models = [];
let exchanges = [];
let running = null;  // What stops the answers that are being written.
let conversation = 0;  // Goes up when it is cleared: what is still being written then belongs to none.

// -- Models and dials

const kindOf = (model) => (model.rlhflab || {}).kind || "model";
const find = (name) => models.find((model) => model.id === name);
const short = (text) => (/^[0-9a-f]{20,}$/.test(text) ? text.slice(0, 12) : text);
const HEADINGS = [["active", "Deployments"], ["adapter", "Adapters"], ["base", "Base"], ["model", "Models"]];

async function loadModels() {
  try {
    const answer = await fetch("/v1/models", { headers: { Accept: "application/json" } });
    if (!answer.ok) { throw new Error(await wordsOf(answer)); }
    const listed = await answer.json();
    models = (Array.isArray(listed.data) ? listed.data : []).filter((model) => typeof model.id === "string");
    if (!models.length) { throw new Error("The server lists no models."); }
  } catch (error) {
    complain(`The models cannot be listed. ${sentence(error)}`);
    return;
  }
  sides.forEach(fillPicker);
  restore();
}

function fillPicker(side, place) {
  side.model.replaceChildren();
  for (const [kind, heading] of HEADINGS) {
    const found = models.filter((model) => kindOf(model) === kind);
    if (!found.length) { continue; }
    const group = document.createElement("optgroup");
    group.label = heading;
    group.append(...found.map((model) => new Option(model.id, model.id)));
    side.model.append(group);
  }
  const adapters = models.filter((model) => kindOf(model) === "adapter");
  side.dials.replaceChildren(...adapters.map((model) => dialFor(model.id, side.letter)));
  side.mix.disabled = !adapters.length;
  side.model.disabled = false;
  const last = models.find((model) => kindOf(model) === "active") || adapters[adapters.length - 1];
  const first = models.find((model) => kindOf(model) === "base");
  side.model.value = ((place === 0 ? first : last) || models[0]).id;
}

function dialFor(name, letter) {
  const label = document.createElement("label");
  label.className = "dial";
  const text = document.createElement("span");
  text.textContent = name;
  const range = document.createElement("input");
  Object.assign(range, { type: "range", min: "0", max: sides[0].strength.max, step: "0.05", value: "0" });
  range.dataset.adapter = name;
  range.setAttribute("aria-label", `Weight of ${name} in ${letter}`);
  const value = document.createElement("span");
  value.className = "value";
  value.setAttribute("aria-hidden", "true");
  label.append(text, range, value);
  return label;
}

function refresh(side) {
  const model = find(side.model.value);
  const mixing = side.mix.checked;
  const base = Boolean(model) && kindOf(model) === "base";
  side.model.parentElement.hidden = mixing;
  side.strength.disabled = base;
  side.strength.parentElement.hidden = mixing;
  side.dials.hidden = !mixing;
  side.picker.querySelectorAll("input[type=range]").forEach((range) => {
    range.parentElement.querySelector(".value").textContent = Number(range.value).toFixed(2);
  });
  const facts = (model && model.rlhflab) || {};
  const parent = models.find((each) => facts.parent && each.rlhflab && each.rlhflab.digest === facts.parent);
  side.about.textContent = mixing ? "A sum of what each adapter adds to the base, by weight."
    : base ? "The base alone; there is nothing to dial."
    : facts.parent ? `Strength scales its change from ${parent ? parent.id : short(String(facts.parent))}.`
    : "Strength scales its change from the base.";
}

// A mixture begins with the adapter that was picked, so that it is one from the first moment.
function startMixture(side) {
  const dials = [...side.dials.querySelectorAll("input")];
  if (!side.mix.checked || dials.some((range) => Number(range.value) > 0)) { return; }
  const digest = ((find(side.model.value) || {}).rlhflab || {}).digest;
  const picked = dials.find((range) => range.dataset.adapter === side.model.value)
    || dials.find((range) => digest && find(range.dataset.adapter).rlhflab.digest === digest) || dials[0];
  picked.value = 1;
}

function chosen(side) {
  const dials = [...side.dials.querySelectorAll("input")].filter((range) => Number(range.value) > 0);
  if (side.mix.checked) {
    const mixture = Object.fromEntries(dials.map((range) => [range.dataset.adapter, Number(range.value)]));
    return { model: dials.length ? dials[0].dataset.adapter : side.model.value, mixture };
  }
  const model = find(side.model.value);
  return kindOf(model || {}) === "base" ? { model: side.model.value }
    : { model: side.model.value, strength: Number(side.strength.value) };
}

function describe(choice) {
  if (choice.mixture) {
    return Object.entries(choice.mixture).map(([name, weight]) => `${weight.toFixed(2)} × ${name}`).join(" + ");
  }
  return choice.strength === undefined ? choice.model : `${choice.model}, strength ${choice.strength.toFixed(2)}`;
}

// -- Sending and reading

function settings() {
  const body = { temperature: form.elements.temperature.valueAsNumber, max_tokens: form.elements.max_tokens.valueAsNumber };
  const seed = form.elements.seed.valueAsNumber;
  if (!Number.isNaN(seed)) { body.seed = seed; }
  for (const key of Object.keys(body)) { if (Number.isNaN(body[key])) { delete body[key]; } }
  return body;
}

async function ask(event) {
  event.preventDefault();
  const prompt = form.elements.prompt.value.trim();
  if (running || !models.length) { return; }
  const unset = sides.find((side) => side.mix.checked && !Object.keys(chosen(side).mixture).length);
  if (unset) { complain(`The mixture of ${unset.letter} has no weight above 0.`); return; }
  if (!prompt) { complain("Write a message first."); form.elements.prompt.focus(); return; }
  const exchange = { prompt, replies: {} };
  const shown = show(exchange);
  form.elements.prompt.value = "";
  setRunning(new AbortController());
  say("Both are answering.");
  const mine = conversation;
  await Promise.all(sides.map((side) => answer(side, exchange, shown)));
  if (mine !== conversation) { setRunning(null); return; }
  exchanges.push(exchange);
  const failed = sides.filter((side) => exchange.replies[side.letter].error).map((side) => side.letter);
  const stopped = running.signal.aborted;
  setRunning(null);
  if (failed.length) { complain(`${failed.join(" and ")} did not answer; the message stays out of that conversation.`); }
  else { say(stopped ? "Stopped." : "Both have answered."); }
  keep();
}

async function answer(side, exchange, shown) {
  const choice = chosen(side), mine = conversation;
  const reply = { who: describe(choice), text: "", how: "", error: "" };
  exchange.replies[side.letter] = reply;
  const place = shown.querySelector(`[data-side="${side.letter}"]`);
  paint(place, reply, true);
  const began = performance.now();
  const system = form.elements.system.value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...side.messages,
    { role: "user", content: exchange.prompt }];
  try {
    const finish = await read({ ...choice, ...settings(), messages, stream: true }, (piece) => {
      reply.text += piece;
      within(place, "reply").textContent = reply.text;
      follow();
    });
    reply.how = finish === "length" ? "cut off at the most tokens" : finish === "stop" ? "" : finish || "";
  } catch (error) {
    if (running.signal.aborted) { reply.how = "stopped"; } else { reply.error = sentence(error); }
  }
  const seconds = `${((performance.now() - began) / 1000).toFixed(1)} s`;
  reply.how = reply.how ? `${reply.how}, ${seconds}` : seconds;
  if (!reply.error && reply.text && mine === conversation) {
    side.messages.push({ role: "user", content: exchange.prompt }, { role: "assistant", content: reply.text });
  }
  await paint(place, reply, false);
}

async function read(body, take) {
  const answer = await fetch("/v1/chat/completions", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: running.signal,
  });
  if (!answer.ok) { throw new Error(await wordsOf(answer)); }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", finish = null, ended = false;
  for (;;) {
    const { done, value } = await reader.read();
    const lines = (rest + (done ? "\n" : value)).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) { continue; }
      const data = line.slice(5).trim();
      if (data === "[DONE]") { ended = true; continue; }
      const event = JSON.parse(data);
      if (event.error) { throw new Error(event.error.message || "The answer failed."); }
      const choice = (event.choices || [])[0];
      if (!choice) { continue; }
      if (choice.delta && choice.delta.content) { take(choice.delta.content); }
      finish = choice.finish_reason || finish;
    }
    if (done) { break; }
  }
  if (!ended && !finish) { throw new Error("The answer broke off."); }
  return finish;
}

async function wordsOf(answer) {
  try {
    const said = await answer.json();
    if (typeof said.error.message === "string") { return said.error.message; }
  } catch { /* Not the API's own words: the number has to do. */ }
  return answer.status === 401 ? "This page is no longer known to the server; open your link again."
    : `The server answered with ${answer.status}.`;
}

function sentence(error) {
  const words = error instanceof TypeError ? "The server cannot be reached." : String(error.message || error);
  return /[.!?]$/.test(words) ? words : `${words}.`;
}

// -- Showing

function show(exchange) {
  const made = document.getElementById("exchange").content.firstElementChild.cloneNode(true);
  within(made, "prompt").textContent = exchange.prompt;
  empty.hidden = true;
  log.append(made);
  follow(true);
  return made;
}

async function paint(place, reply, busy) {
  within(place, "who").textContent = reply.who;
  within(place, "how").textContent = reply.how;
  const shown = within(place, "reply");
  shown.classList.toggle("failed", Boolean(reply.error));
  if (reply.error) {
    shown.textContent = reply.text ? `${reply.text}\n\n${reply.error}` : reply.error;
  } else {
    shown.textContent = reply.text || (busy ? "" : "(nothing)");
    if (!busy && reply.text && form.elements.markdown.checked) { await asMarkdown(shown, reply.text); }
  }
  shown.setAttribute("aria-busy", String(busy));
  follow();
}

async function asMarkdown(shown, text) {
  try {
    const answer = await fetch("/markdown", { method: "POST", body: new URLSearchParams({ form_key: form.dataset.key, text }) });
    if (!answer.ok) { return; }  // Too long a text, say: it stays as it is.
    const read = new DOMParser().parseFromString(await answer.text(), "text/html");
    shown.replaceChildren(...read.body.childNodes);
    shown.classList.add("written");
  } catch { /* It stays as it is. */ }
}

function follow(always = false) {
  // Only a reader who is near the end is taken along.
  const end = document.documentElement.scrollHeight - innerHeight;
  if (always || end - scrollY < 160) { scrollTo({ top: end, behavior: "instant" }); }
}

function say(words) { status.textContent = words; status.classList.remove("worse"); }
function complain(words) { status.textContent = words; status.classList.add("worse"); }

function setRunning(controller) {
  running = controller;
  send.disabled = Boolean(controller);
  stop.disabled = !controller;
}

function settingsNow() {
  const said = settings();
  const words = [`temperature ${said.temperature ?? "as the server has it"}`, `${said.max_tokens ?? "any number of"} tokens`,
    said.seed === undefined ? "no seed" : `seed ${said.seed}`];
  document.getElementById("settings-now").textContent = `${words.join(", ")}${form.elements.system.value.trim() ? ", a system message" : ""}`;
}

// -- What this tab remembers

const FIELDS = ["temperature", "max_tokens", "seed", "system"];

function keep() {
  const said = { exchanges, fields: Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value])),
    markdown: form.elements.markdown.checked, sides: sides.map((side) => ({
      model: side.model.value, strength: side.strength.value, mix: side.mix.checked, messages: side.messages,
      weights: Object.fromEntries([...side.dials.querySelectorAll("input")].map((range) => [range.dataset.adapter, range.value])),
    })) };
  try { sessionStorage.setItem(KEPT, JSON.stringify(said)); } catch { /* Too much to keep: it is still on the page. */ }
}

function restore() {
  const said = JSON.parse(sessionStorage.getItem(KEPT) || "null");
  if (said) {
    FIELDS.forEach((name) => { form.elements[name].value = said.fields[name]; });
    form.elements.markdown.checked = said.markdown;
    sides.forEach((side, place) => {
      const was = said.sides[place];
      if (find(was.model)) { side.model.value = was.model; }
      side.strength.value = was.strength;
      side.mix.checked = was.mix && !side.mix.disabled;
      side.messages = was.messages;
      side.dials.querySelectorAll("input").forEach((range) => { range.value = was.weights[range.dataset.adapter] || 0; });
    });
    exchanges = said.exchanges;
    exchanges.forEach((exchange) => {
      const shown = show(exchange);
      sides.forEach((side) => paint(shown.querySelector(`[data-side="${side.letter}"]`), exchange.replies[side.letter], false));
    });
  }
  sides.forEach(refresh);
  settingsNow();
}

function clear() {
  if (running) { running.abort(); }
  conversation += 1;
  exchanges = [];
  sides.forEach((side) => { side.messages = []; });
  log.querySelectorAll(".exchange").forEach((each) => each.remove());
  empty.hidden = false;
  say("The conversation was cleared.");
  keep();
  form.elements.prompt.focus();
}

form.addEventListener("submit", ask);
stop.addEventListener("click", () => running && running.abort());
document.getElementById("clear").addEventListener("click", clear);
form.addEventListener("input", settingsNow);
// A setting that is refused has to be seen, or the browser has nowhere to say so.
form.addEventListener("invalid", () => { form.querySelector(".settings").open = true; }, true);
form.addEventListener("change", keep);
sides.forEach((side) => side.mix.addEventListener("change", () => startMixture(side)));
sides.forEach((side) => ["input", "change"].forEach((name) => side.picker.addEventListener(name, () => { refresh(side); keep(); })));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) { event.preventDefault(); running.abort(); }
  const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target === form.elements.prompt;
  if (sends) { event.preventDefault(); form.requestSubmit(); }
});
sides.forEach(refresh);
settingsNow();
loadModels();
