"use strict";
// The queue by keyboard, and what is new without moving what is read.

const rows = [...document.querySelectorAll("#cases tbody tr")];
let selected = -1;

function select(index) {
  if (!rows.length) return;
  rows[selected]?.classList.remove("selected");
  selected = Math.max(0, Math.min(index, rows.length - 1));
  rows[selected].classList.add("selected");
  rows[selected].querySelector("a").focus({ preventScroll: true });
  rows[selected].scrollIntoView({ block: "nearest" });
}
function open(index) { if (rows[index]) location.assign(`/cases/${rows[index].dataset.case}`); }

rows.forEach((row, index) => row.addEventListener("click", (event) => {
  if (!event.target.closest("a") && !String(getSelection())) open(index);
}));
onKey("j", () => select(selected + 1));
onKey("k", () => select(selected - 1));
onKey("Enter", (event) => {
  if (event.target.closest("a, button") && selected < 0) return false;
  open(Math.max(selected, 0));
  return true;
});
onKey("n", () => document.querySelector("#next button")?.click());
onKey("/", () => document.querySelector("#filters select")?.focus());
onKey("x", () => location.assign("/queue"));
onKey("]", () => document.getElementById("more")?.click());
onKey(".", () => location.reload());

const live = document.getElementById("live");
const stream = new EventSource(`/events?since=${live.dataset.since}`);
let said = null;
stream.addEventListener("message", (event) => {
  const told = JSON.parse(event.data);
  if (told.status !== "ok") {
    said ??= toast("The console cannot read what is decided: what is shown may be old.", "error");
    return;
  }
  said?.remove();
  said = null;
  document.getElementById("live-count").textContent = told.new;
  live.hidden = !told.new;
  document.title = document.title.replace(/^(\(\d+\) )?/, told.new ? `(${told.new}) ` : "");
});
