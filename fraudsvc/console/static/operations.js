"use strict";
// Pages of operations: figures renewed in place, and a question before what cannot be undone.

for (const live of document.querySelectorAll("[data-live]")) {
  const stream = new EventSource(live.dataset.live);
  let newest = null;
  const show = () => {
    const read = live.contains(document.activeElement) || !getSelection().isCollapsed;
    if (newest === null || document.hidden || read) return;
    const fresh = new DOMParser().parseFromString(newest, "text/html");
    newest = null;
    live.replaceChildren(...fresh.body.childNodes);
    localTimes(live);
  };
  stream.addEventListener("message", (event) => {
    newest = JSON.parse(event.data);
    live.classList.remove("stale");
    show();
    if (live.querySelector("[data-done]")) stream.close();
  });
  stream.addEventListener("error", () => {
    live.classList.add("stale");
    // A stream that was refused is not tried again by itself: the page says why, or asks to sign in.
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 5000);
  });
  for (const what of ["visibilitychange", "selectionchange", "focusout"]) document.addEventListener(what, show);
}

for (const form of document.querySelectorAll("form[data-confirm]")) {
  form.addEventListener("submit", (event) => {
    if (!confirm(form.dataset.confirm)) event.preventDefault();
  });
}
