"use strict";
// What every page has: keys, theme, times in the viewer's zone, and messages.

const csrf = document.body.dataset.csrf;
const keyActions = new Map();

// A page adds its keys with onKey("f", action); an action that returns false passes the key on.
function onKey(key, action) {
  keyActions.set(key, action);
}

function actionButton(action) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = action.title;
  button.addEventListener("click", () => action.run());
  return button;
}

function toast(text, kind = "plain", action = null) {
  const box = document.createElement("div");
  box.className = `toast toast-${kind}`;
  const said = document.createElement("span");
  said.textContent = text;
  box.append(said);
  if (action) {
    const button = actionButton(action);
    button.addEventListener("click", () => box.remove());
    box.append(button);
  }
  const close = document.createElement("button");
  close.type = "button";
  close.className = "quiet";
  close.setAttribute("aria-label", "Dismiss");
  close.textContent = "✕";
  close.addEventListener("click", () => box.remove());
  box.append(close);
  document.getElementById("toasts").append(box);
  if (kind !== "error") setTimeout(() => box.remove(), 12000);
  return box;
}

// Post a form's values; resolves to the answer's JSON, or throws an Error with what to tell.
async function post(path, values = {}) {
  const form = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const each of Array.isArray(value) ? value : [value]) form.append(name, each);
  }
  form.set("csrf", csrf);
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST", body: form, credentials: "same-origin", redirect: "error",
      headers: { accept: "application/json", "x-csrf-token": csrf },
    });
  } catch {
    throw new Error("The console did not answer. Nothing was changed: try again.");
  }
  let told = {};
  try { told = await answer.json(); } catch { /* said below */ }
  if (answer.status === 401) throw signInNeeded();
  if (!answer.ok) throw new Error(told.error ? `${told.error.title}: ${told.error.message}` : `Refused (${answer.status})`);
  return told;
}

function signInNeeded() {
  const error = new Error("Your session ran out: nothing was changed, and what you typed is kept.");
  error.action = {
    title: "Sign in",
    run: () => location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`),
  };
  return error;
}

// --- drafts: what is typed outlives a session that ran out, and a refusal ---
// In this tab alone, of one person, page and form, until the console has taken the form.
const drafted = "textarea, select, input[type=text], input:not([type])";
const who = document.querySelector(".person")?.textContent ?? "";
function draftKey(form) {
  const hidden = form.closest("dialog") ? [] : form.querySelectorAll("input[type=hidden]:not([name=csrf])");
  const what = [...hidden].map((each) => each.value).join(" ");
  return `draft ${who} ${location.pathname} ${form.getAttribute("action")} ${what}`;
}
function keepDraft(form, sent = false) {
  const values = {};
  for (const field of form.querySelectorAll(drafted)) values[field.name] = field.value;
  sessionStorage.setItem(draftKey(form), JSON.stringify({ values, sent }));
}
function dropDraft(form) { sessionStorage.removeItem(draftKey(form)); }
function restoreDraft(form) {
  const draft = JSON.parse(sessionStorage.getItem(draftKey(form)) ?? "null");
  let restored = false;
  for (const field of draft ? form.querySelectorAll(drafted) : []) {
    const value = draft.values[field.name];
    if (value === undefined || value === field.value) continue;
    field.value = value;
    restored = true;
  }
  return restored;
}
// A page that is no refusal follows a form that was taken.
for (const key of Object.keys(sessionStorage).filter((each) => each.startsWith("draft "))) {
  const draft = JSON.parse(sessionStorage.getItem(key));
  if (!draft.sent) continue;
  if (!document.querySelector(".message, [role=alert].trouble")) sessionStorage.removeItem(key);
  else sessionStorage.setItem(key, JSON.stringify({ ...draft, sent: false }));
}
let restored = 0;
for (const form of document.querySelectorAll("form[method=post]")) {
  if (form.closest(".who") || !form.querySelector(drafted)) continue;
  restored += restoreDraft(form);
  form.addEventListener("input", () => keepDraft(form));
  form.dataset.kept = "";
}
document.addEventListener("submit", (event) => { // after the form's own handlers
  if (!event.defaultPrevented && event.target.dataset.kept !== undefined) keepDraft(event.target, true);
});
if (restored) toast("What you had typed here, and the console has not taken, is in its form again.");
document.getElementById("sign-out")?.form.addEventListener("submit", () => sessionStorage.clear());

// --- times in the viewer's zone; UTC stays in the title ---
const zone = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});
function localTimes(root = document) {
  for (const each of root.querySelectorAll("time[datetime]")) {
    const parts = Object.fromEntries(zone.formatToParts(new Date(each.dateTime)).map((p) => [p.type, p.value]));
    const day = `${parts.month}-${parts.day} ${parts.hour}:${parts.minute}`;
    each.textContent = each.dataset.short ? day : `${parts.year}-${day}:${parts.second}`;
  }
}
localTimes();

// --- theme ---
function turnTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  document.cookie = `theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
}
document.getElementById("theme").addEventListener("click", turnTheme);

// --- keys ---
const keysDialog = document.getElementById("keys");
document.getElementById("help").addEventListener("click", () => keysDialog.showModal());
onKey("?", () => (keysDialog.open ? keysDialog.close() : keysDialog.showModal()));
onKey("t", turnTheme);

let goPending = 0;
document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input, textarea, select, [contenteditable]");
  if (event.key === "Escape" && field && !event.target.closest("dialog")) { event.target.blur(); return; }
  if (field || event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector("dialog[open]") && event.key !== "?") return;
  if (goPending && Date.now() - goPending < 1500) {
    goPending = 0;
    const place = document.querySelector(`a[data-go="${CSS.escape(event.key)}"]`);
    if (place) { event.preventDefault(); location.assign(place.href); return; }
  }
  if (event.key === "g") { goPending = Date.now(); return; }
  const action = keyActions.get(event.key);
  if (action && action(event) !== false) event.preventDefault();
});
