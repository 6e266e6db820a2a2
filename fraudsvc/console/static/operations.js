"use strict";
// Pages of operations: figures renewed in place, and a question before what cannot be undone.

for (const live of document.querySelectorAll("[data-live]")) {
  const renew = async () => {
    if (document.hidden || live.contains(document.activeElement) || !getSelection().isCollapsed) return;
    try {
      const answer = await fetch(live.dataset.live, { credentials: "same-origin" });
      if (answer.redirected || answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error(`${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      live.replaceChildren(...fresh.body.childNodes);
      live.classList.remove("stale");
      if (live.querySelector("[data-done]")) { clearInterval(timer); }
      localTimes(live);
    } catch {
      live.classList.add("stale");
    }
  };
  const timer = setInterval(renew, Number(live.dataset.every || 2000));
}

for (const form of document.querySelectorAll("form[data-confirm]")) {
  form.addEventListener("submit", (event) => {
    if (!confirm(form.dataset.confirm)) event.preventDefault();
  });
}
