// Keeps a page of the console as it is at the gateway: without this, it is as it was when it was loaded.
// It only puts what the gateway has rendered in the place of what it had rendered before, and counts the time down.
"use strict";

const LATEST = 1000; // ms between two looks
const AGAIN = 5000; // ms after which it is tried again to follow

const news = document.getElementById("news");
const link = document.getElementById("link");
let ahead = 0; // ms by which the gateway's clock is ahead of this one's
let source = null;
let looking = false;
let wanted = false;
let lookedAt = 0;
let dropped = false;

function regions(page) {
  return page.querySelectorAll("[data-live]");
}

function setClock() {
  const shown = document.querySelector("[data-now]");
  if (shown) ahead = Number(shown.dataset.now) - Date.now();
}

function left(ms) {
  const whole = Math.max(0, Math.floor(ms / 1000));
  for (const [unit, size, smaller, part] of [["d", 86400, "h", 3600], ["h", 3600, "min", 60], ["min", 60, "s", 1]]) {
    if (whole >= size) return `${Math.floor(whole / size)} ${unit} ${Math.floor((whole % size) / part)} ${smaller}`;
  }
  return `${whole} s`;
}

function tick() {
  const now = Date.now() + ahead;
  for (const each of document.querySelectorAll("[data-until]")) {
    const ms = Number(each.dataset.until) - now;
    const text = left(ms);
    if (each.textContent !== text) each.textContent = text;
    each.classList.toggle("late", ms < 60000);
  }
}

function show(on) {
  link.textContent = on ? "●" : "○";
  link.classList.toggle("on", on);
  link.setAttribute("aria-label", on ? "live" : "not live: load the page again for news");
}

// What has changed takes the place of what was there; what somebody writes in, or has opened, stays.
function renew(page) {
  for (const old of regions(document)) {
    const fresh = page.getElementById(old.id);
    if (!fresh || fresh.dataset.key === old.dataset.key) continue;
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    const kept = [...old.querySelectorAll("textarea[id], input[id]")].filter((each) => each.value !== each.defaultValue);
    const written = kept.map((each) => [each.id, each.value]);
    const opened = [...old.querySelectorAll("details")].map((each) => each.open);
    const adopted = document.importNode(fresh, true);
    old.replaceWith(adopted);
    for (const [id, value] of written) {
      const field = adopted.querySelector(`#${CSS.escape(id)}`);
      if (field) field.value = value;
    }
    adopted.querySelectorAll("details").forEach((each, place) => { each.open = opened[place] || false; });
    if (focused) (document.getElementById(focused) || document.getElementById("main")).focus({ preventScroll: true });
    if (adopted.dataset.say) news.textContent = adopted.dataset.say;
  }
  document.title = page.title;
  setClock();
  tick();
}

async function look() {
  if (looking) { wanted = true; return; }
  looking = true;
  do {
    wanted = false;
    const pause = lookedAt + LATEST - Date.now();
    if (pause > 0) await new Promise((done) => setTimeout(done, pause));
    lookedAt = Date.now();
    try {
      const answer = await fetch(location.pathname + location.search, { headers: { "x-weighbridge-live": "1" }, redirect: "manual" });
      if (answer.type === "opaqueredirect" || answer.status === 401) { location.reload(); return; }
      if (answer.ok) renew(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch (error) {
      show(false);
    }
  } while (wanted);
  looking = false;
}

function concerns(event) {
  const about = JSON.parse(event.data).id;
  return [...regions(document)].some((each) => each.dataset.live === "all" || each.dataset.live === about);
}

function follow() {
  const shown = document.querySelector("[data-seen]");
  source = new EventSource(`/console/events?seen=${shown ? shown.dataset.seen : ""}`);
  source.addEventListener("open", () => {
    show(true);
    dropped = false;
  });
  source.addEventListener("approval", (event) => { if (concerns(event)) look(); });
  source.addEventListener("missed", look);
  source.addEventListener("error", () => {
    show(false);
    if (!dropped) look(); // it may be that nobody is logged in any more
    dropped = true;
    if (source && source.readyState === EventSource.CLOSED) {
      stop();
      setTimeout(() => { if (!source && !document.hidden) { look(); follow(); } }, AGAIN);
    }
  });
}

function stop() {
  if (source) source.close();
  source = null;
  show(false);
}

// A browser opens few connections to one host: a page that nobody sees gives its own back.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { stop(); dropped = true; } else if (!source) follow();
});

addEventListener("pagehide", stop);
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

// Escape closes what was opened, and leads back to what opened it.
document.addEventListener("keydown", (event) => {
  const opened = event.key === "Escape" && document.activeElement ? document.activeElement.closest("details[open]") : null;
  if (!opened) return;
  opened.open = false;
  opened.querySelector("summary").focus();
});

// Who presses twice means it once.
document.addEventListener("submit", (event) => {
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "1";
});

setClock();
tick();
setInterval(tick, 1000);
if (!document.hidden) follow();
