// Live progress by server-sent events. Without this script the page of one restoration loads itself again.
"use strict";
(() => {
  const MOST = 3; // a browser opens few connections to one server
  const shown = (value) => value.toLocaleString("en");

  const follow = (place) => {
    const source = new EventSource(place.dataset.events);
    const put = (event) => {
      const now = JSON.parse(event.data);
      const state = place.querySelector("[data-state] .state");
      state.textContent = now.state;
      state.className = `state ${now.state}`;
      const refused = now.refused ? `, ${shown(now.refused)} refused` : "";
      place.querySelector("[data-counts]").textContent =
        `${shown(now.restored)} restored${refused} of ${shown(now.images)}`;
      const bar = place.querySelector("progress");
      if (bar) {
        bar.max = Math.max(1, now.images);
        bar.value = now.restored + now.refused;
      }
    };
    source.addEventListener("progress", put);
    source.addEventListener("done", (event) => {
      source.close();
      put(event);
      if ("whole" in place.dataset) window.location.reload();
    });
    window.addEventListener("pagehide", () => source.close());
  };

  Array.from(document.querySelectorAll("[data-events]")).slice(0, MOST).forEach(follow);
})();
