"use strict";
// A case by keyboard: verdict, undo, next, release, assign, override, replay.

const box = document.getElementById("case");
const path = `/cases/${box.dataset.id}`;
const verdictDialog = document.getElementById("verdict");
const verdictForm = document.getElementById("verdict-form");

// What is told after the page was loaded again.
function later(text, ids = []) { sessionStorage.setItem("said", JSON.stringify({ text, ids, path })); }
const left = JSON.parse(sessionStorage.getItem("said") ?? "null");
sessionStorage.removeItem("said");
if (left) {
  toast(left.text, "good", left.ids.length ? { title: "Undo", run: () => undo(left.ids) } : null);
}

async function act(name, values = {}) {
  try {
    return await post(`${path}/${name}`, values);
  } catch (error) {
    toast(error.message, "error", error.action);
    return null;
  }
}

// --- verdict ---
let linkedLoaded = false;
function openVerdict(word) {
  if (!document.querySelector(`[data-verdict="${word}"]`)) return;
  verdictForm.elements.verdict.value = word;
  document.getElementById("verdict-title").textContent = `Verdict: ${word}`;
  for (const set of verdictForm.querySelectorAll("fieldset")) {
    set.hidden = set.disabled = set.dataset.for !== word;
  }
  document.getElementById("verdict-error").hidden = true;
  const first = verdictForm.querySelector(`fieldset[data-for="${word}"] input`);
  first.checked = true;
  verdictDialog.showModal();
  first.focus();
}
for (const button of document.querySelectorAll("[data-verdict]")) {
  button.addEventListener("click", () => openVerdict(button.dataset.verdict));
}
document.getElementById("linked").addEventListener("toggle", async (event) => {
  if (!event.target.open || linkedLoaded) return;
  linkedLoaded = true;
  const list = document.getElementById("linked-list");
  try {
    const answer = await fetch(`${path}/linked`, { credentials: "same-origin" });
    if (!answer.ok) throw new Error();
    list.innerHTML = await answer.text(); // our own page, escaped by its template
    localTimes(list);
  } catch {
    linkedLoaded = false;
    list.textContent = "The linked cases could not be read. Close this and open it again.";
  }
});
verdictDialog.addEventListener("keydown", (event) => {
  if (event.target.closest("textarea, summary") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^[1-9]$/.test(event.key)) {
    const choice = verdictForm.querySelectorAll("fieldset:not([hidden]) input")[Number(event.key) - 1];
    if (choice) { choice.checked = true; choice.focus(); event.preventDefault(); }
  } else if (event.key === "b") {
    document.querySelector("#linked summary").click();
    event.preventDefault();
  }
});
function values(form) {
  const found = {};
  for (const [name, value] of new FormData(form)) (found[name] ??= []).push(value);
  return found;
}
async function send(form, done) {
  const button = form.querySelector("[type=submit]");
  const error = form.querySelector(".error");
  button.disabled = true;
  try {
    const told = await post(form.getAttribute("action"), values(form));
    dropDraft(form);
    done(told);
  } catch (refused) {
    error.textContent = refused.message; // what was written stays in the form
    if (refused.action) error.append(" ", actionButton(refused.action));
    error.hidden = false;
    button.disabled = false;
  }
}
verdictForm.addEventListener("submit", (event) => {
  event.preventDefault();
  send(verdictForm, (told) => { later(told.text, told.ids); location.reload(); });
});

async function undo(ids = []) {
  const told = await act("undo", { also: ids });
  if (told) { later(told.text); location.reload(); }
}
document.getElementById("undo")?.addEventListener("click", () => undo(left?.ids));

// --- the rest ---
async function next() {
  try {
    location.assign((await post("/queue/next", { but: box.dataset.id })).path);
  } catch (error) {
    toast(error.message, "error", error.action ?? { title: "Queue", run: () => location.assign("/queue") });
  }
}
async function release() {
  const told = await act("release");
  if (told) location.assign("/queue");
}
async function replay() {
  const button = document.getElementById("replay");
  const said = document.getElementById("replayed");
  button.disabled = true;
  said.textContent = "reading the log…";
  const told = await act("replay");
  button.disabled = false;
  said.className = told?.ok ? "badge status-legitimate" : "bad";
  said.textContent = told ? told.text + (told.differences.length ? `: ${told.differences.map((d) => d.field).join(", ")}` : "") : "not done";
}
function dialogOf(button, dialog, form, done) {
  const opener = document.getElementById(button);
  const box = document.getElementById(dialog);
  if (!opener || !box) return () => {};
  const show = () => { box.showModal(); box.querySelector("input:not([type=hidden])").focus(); };
  opener.addEventListener("click", show);
  const sent = document.getElementById(form);
  sent.addEventListener("submit", (event) => { event.preventDefault(); send(sent, (told) => { box.close(); done(told); }); });
  return show;
}
const assign = dialogOf("assign", "assign-dialog", "assign-form", () => location.assign("/queue"));
const override = dialogOf("override", "override-dialog", "override-form", (told) => {
  document.querySelector("#override-form [type=submit]").disabled = false;
  toast(told.text, "good");
});
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
document.getElementById("next")?.addEventListener("click", next);
document.getElementById("release")?.addEventListener("click", release);
document.getElementById("replay").addEventListener("click", replay);
onKey("f", () => openVerdict("fraud"));
onKey("l", () => openVerdict("legitimate"));
onKey("u", () => openVerdict("unclear"));
onKey("z", () => document.getElementById("undo")?.click());
onKey("n", next);
onKey("r", release);
onKey("a", assign);
onKey("o", override);
onKey("p", replay);
onKey("q", () => location.assign("/queue"));

// --- live: say what changed, and keep the claim while the page is looked at ---
const stream = new EventSource(`/events?since=${box.dataset.since}&case=${box.dataset.id}`);
let saidLabels = Number(box.dataset.labels);
let saidHolder = box.dataset.holder;
stream.addEventListener("message", (event) => {
  const told = JSON.parse(event.data);
  if (told.labels > saidLabels) {
    saidLabels = told.labels;
    toast("Somebody said something of this case.", "plain", { title: "Show it", run: () => location.reload() });
  }
  if (told.holder !== undefined && told.holder !== saidHolder) {
    saidHolder = told.holder;
    document.getElementById("holder").textContent = (told.holder === box.dataset.me ? "me" : told.holder) || "nobody";
    if (told.holder && told.holder !== box.dataset.me) toast(`${told.holder} holds this case now.`);
  }
});
if (box.dataset.open && box.dataset.holder === box.dataset.me) {
  setInterval(() => {
    if (!document.hidden) post(`${path}/claim`).catch((error) => toast(error.message, "error", error.action));
  }, Math.max(20, Number(box.dataset.claim) / 3) * 1000);
}
