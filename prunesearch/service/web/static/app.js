// Live updates. Every page works without this script; with it, pages follow what happens.
"use strict";

const REFRESH_MS = 1500; // least time between two refreshes of a page
const LIST_MS = 3000; // time between two looks at a list with active jobs
const ANNOUNCE_MS = 20000; // least time between two announcements of progress
const MOST_LINES = 2000; // lines that the log keeps

/* Times in the zone of the browser. */

const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function showTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const when = new Date(time.dateTime);
    if (!Number.isNaN(when.getTime())) {
      time.textContent = exact.format(when);
      time.title = when.toString();
    }
  }
}

/* Refresh: fetch the page again, and replace the parts marked data-live that changed. */

const shown = new Map(); // what the server sent for each part

function remember(root) {
  for (const part of root.querySelectorAll("[data-live]")) {
    shown.set(part.dataset.live, part.innerHTML);
  }
}

function isInUse(part) {
  // Do not replace an open dialog, an open list of options, or a selection of text.
  if (part.querySelector("[popover]:popover-open")) return true;
  const selection = window.getSelection();
  return !selection.isCollapsed && part.contains(selection.anchorNode);
}

function place(part, fresh) {
  // Keep what the user opened, how far boxes are scrolled, and the focus.
  const open = [...part.querySelectorAll("details")].map((each) => each.open);
  const scrolled = [...part.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const order = focused ? focusable(part).indexOf(focused) : -1;
  part.innerHTML = fresh.innerHTML;
  part.querySelectorAll("details").forEach((each, index) => { each.open = Boolean(open[index]); });
  part.querySelectorAll(".scroll").forEach((each, index) => { each.scrollLeft = scrolled[index] || 0; });
  if (order >= 0) (focusable(part)[order] || part.closest("main")).focus({ preventScroll: true });
  showTimes(part);
}

function focusable(part) {
  return [...part.querySelectorAll("a[href], button, input, select, summary, [tabindex]")];
}

async function refresh() {
  const url = new URL(location.href);
  url.hash = "";
  url.searchParams.set("live", "1");
  let answer;
  try {
    answer = await fetch(url, { headers: { Accept: "text/html" }, redirect: "manual", cache: "no-store" });
  } catch {
    say("The server does not answer. This page tries again by itself.");
    return false;
  }
  if (answer.type === "opaqueredirect" || answer.status === 401) {
    say("You were signed out. Reload this page to sign in again.");
    return false;
  }
  if (!answer.ok) {
    if (answer.status === 404) location.assign("/");
    return false;
  }
  say("");
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of fresh.querySelectorAll("[data-live]")) {
    const here = document.querySelector(`[data-live="${CSS.escape(part.dataset.live)}"]`);
    if (!here || shown.get(part.dataset.live) === part.innerHTML || isInUse(here)) continue;
    shown.set(part.dataset.live, part.innerHTML);
    here.toggleAttribute("data-active", part.hasAttribute("data-active"));
    place(here, part);
  }
  return true;
}

function say(text) {
  const line = document.getElementById("connection");
  if (!line) return;
  if (line.textContent !== text) line.textContent = text;
  line.hidden = !text;
}

/* One refresh at a time, not more often than REFRESH_MS; the last request is never lost. */

let pending = null;
let running = false;
let last = 0;

function refreshSoon() {
  if (pending !== null || document.hidden) return;
  const wait = Math.max(0, last + REFRESH_MS - Date.now());
  pending = setTimeout(async () => {
    pending = null;
    if (running) return refreshSoon();
    running = true;
    last = Date.now();
    try {
      await refresh();
    } finally {
      running = false;
    }
  }, wait);
}

/* Lists: look again while something on them is active. */

function followList() {
  if (!document.querySelector("[data-live]") || document.getElementById("job")) return;
  setInterval(() => {
    if (!document.hidden && document.querySelector("[data-active]")) refreshSoon();
  }, LIST_MS);
}

/* A job: server-sent events. A browser opens few connections to a server, so a hidden page closes its own. */

function followJob() {
  const job = document.getElementById("job");
  if (!job) return;
  const final = ["finished", "failed", "cancelled"];
  let after = Number(job.dataset.after);
  let state = job.dataset.state;
  let source = null;
  let announced = 0;

  function announce(text, urgent) {
    if (!urgent && Date.now() - announced < ANNOUNCE_MS) return;
    announced = Date.now();
    document.getElementById("announce").textContent = text;
  }

  function open() {
    if (source !== null || document.hidden || final.includes(state)) return;
    source = new EventSource(`${job.dataset.events}?after=${after}`);
    source.addEventListener("open", () => say(""));
    source.addEventListener("error", () => {
      if (source === null) return;
      // The server ends the stream of a job that has ended.
      if (final.includes(state)) {
        close();
      } else if (source.readyState === EventSource.CLOSED) {
        // The server refused: the session may have ended, or the job was deleted. The page knows.
        close();
        refresh().then((well) => { if (well) setTimeout(open, 2000); });
      } else {
        say("The connection was lost. This page connects again by itself.");
      }
    });
    for (const kind of ["state", "stage", "progress", "search", "heal", "message", "log"]) {
      source.addEventListener(kind, (event) => receive(kind, event));
    }
  }

  function close() {
    if (source !== null) source.close();
    source = null;
  }

  function receive(kind, event) {
    after = Number(event.lastEventId) || after;
    const data = JSON.parse(event.data);
    addLine(lineOf(kind, data));
    if (kind === "log" || kind === "message") return;
    if (kind === "state") {
      state = String(data.state);
      job.dataset.state = state;
      announce(`The job is ${state}.`, true);
    } else if (kind === "stage") {
      announce(`Stage ${data.name}: ${data.state ?? "running"}.`, true);
    } else if (data.total) {
      announce(`${data.done} of ${data.total} done.`, false);
      showProgress(data);
    }
    refreshSoon();
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      close();
    } else {
      open();
      refreshSoon();
    }
  });
  window.addEventListener("pagehide", close);
  open();
}

function showProgress(data) {
  // Between two refreshes the bar moves with the events.
  const bar = document.querySelector("#state progress");
  if (bar && bar.max === data.total) bar.value = data.done;
}

/* The log follows its end until the user scrolls up. */

function lineOf(kind, data) {
  // As views.py makes the lines that the page has at first.
  if (kind === "log") return String(data.line ?? "");
  if (kind === "message") return String(data.text ?? "");
  if (kind === "state") return `[the job is ${data.state}]`;
  if (kind === "stage" && ["running", "finished"].includes(data.state)) return `[${data.name}: ${data.state}]`;
  return "";
}

function addLine(text) {
  const lines = document.getElementById("lines");
  const box = document.getElementById("log");
  if (!lines || !text) return;
  lines.append(`${escapeHidden(text)}\n`);
  while (lines.childNodes.length > MOST_LINES) lines.firstChild.remove();
  if (document.getElementById("follow").checked) box.scrollTop = box.scrollHeight;
}

function escapeHidden(text) {
  // Characters that are invisible, or that turn the direction of the text, as escapes.
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function followLog() {
  const box = document.getElementById("log");
  const follow = document.getElementById("follow");
  if (!box || !follow) return;
  for (const each of document.querySelectorAll("[data-script]")) each.hidden = false;
  box.scrollTop = box.scrollHeight;
  box.addEventListener("scroll", () => {
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    if (!atEnd) follow.checked = false;
  });
  follow.addEventListener("change", () => {
    if (follow.checked) box.scrollTop = box.scrollHeight;
  });
}

/* A form is sent once, and a problem in it gets the focus. */

function watchForms() {
  for (const form of document.querySelectorAll("form[method=post]")) {
    form.addEventListener("submit", (event) => {
      if (form.dataset.sent) event.preventDefault();
      form.dataset.sent = "1";
    });
  }
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });
  const wrong = document.querySelector("[aria-invalid=true]");
  if (wrong) wrong.focus();
}

/* What was done is said once, and not again after a reload. */

function forgetNotice() {
  const url = new URL(location.href);
  if (!url.searchParams.has("done")) return;
  url.searchParams.delete("done");
  history.replaceState(null, "", url);
}

remember(document);
forgetNotice();
showTimes(document);
followLog();
followJob();
followList();
watchForms();
