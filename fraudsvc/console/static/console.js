"use strict";
// What every page has: keys, theme, times in the viewer's zone, and messages.

const csrf = document.body.dataset.csrf;
const keyActions = new Map();

// A page adds its keys with onKey("f", action); an action that returns false passes the key on.
function onKey(key, action) {
  keyActions.set(key, action);
}

function toast(text, kind = "plain", action = null) {
  const box = document.createElement("div");
  box.className = `toast toast-${kind}`;
  const said = document.createElement("span");
  said.textContent = text;
  box.append(said);
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = action.title;
    button.addEventListener("click", () => { box.remove(); action.run(); });
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
  if (answer.status === 401) throw new Error("Your session ran out. Sign in again: nothing was changed.");
  if (!answer.ok) throw new Error(told.error ? `${told.error.title}: ${told.error.message}` : `Refused (${answer.status})`);
  return told;
}

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
