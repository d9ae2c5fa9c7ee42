// Asks /version ten times a second, one request after the other, and draws a mark for each
// answer. Tests read the data attributes of the strip.

const MARKS = 320;
const TIMEOUT_MS = 3000; // an answer that takes longer counts as failed
// Every mark moves the strip, so users who prefer less motion get one a second.
const PACE_MS = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 100;
// Easy to tell from each other and from red.
const HUES = [260, 165, 75, 310, 215, 120, 285, 190];

const $ = (id) => document.getElementById(id);
const strip = $("strip");

const versions = new Map(); // by name, in the order in which they were seen
let live = null;
let pageVersion = null; // the first that answered, so most likely the one that sent this page
let answered = 0;
let failed = 0;
let switches = 0;
let streams = 0;

function parse(name) {
  const parts = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z-([0-9a-f]+)(-dirty)?-([0-9a-f]+)$/.exec(name);
  if (!parts) return { title: name, hash: name };
  const [, year, month, day, hour, minute, second, commit, dirty, hash] = parts;
  const built = new Date(Date.UTC(year, month - 1, day, hour, minute, second));
  return { title: commit, hash, dirty: Boolean(dirty), built };
}

// The hash decides, so that a version has the same colour on every screen. If another
// version on this page has it already, the next colour is used.
function hueOf(hash) {
  let sum = 0;
  for (const char of hash) sum = (sum * 31 + char.charCodeAt(0)) % 65521;
  const taken = new Set([...versions.values()].map((version) => version.hue));
  for (let i = 0; i < HUES.length; i++) {
    const hue = HUES[(sum + i) % HUES.length];
    if (!taken.has(hue)) return hue;
  }
  return HUES[sum % HUES.length];
}

function findOrAdd(name) {
  if (versions.has(name)) return versions.get(name);
  const version = { ...parse(name), count: 0 };
  version.hue = hueOf(version.hash);

  const item = document.createElement("li");
  item.style.setProperty("--hue", version.hue);
  item.title = name;
  item.innerHTML = `<span class="swatch"></span><span><b></b></span><span class="count"></span>
    <span class="note detail"></span><span class="note when"></span>`;
  item.querySelector("b").textContent = version.title;
  version.countText = item.querySelector(".count");
  version.whenText = item.querySelector(".when");
  item.querySelector(".detail").textContent =
    version.built ? `built ${dateOf(version.built)}${version.dirty ? ", uncommitted" : ""}` : "not deployed";
  $("versions").prepend(item);

  versions.set(name, version);
  return version;
}

function onAnswer(answer, ms) {
  const version = findOrAdd(answer.version);
  const isSwitch = live !== null && live !== version;
  version.count++;
  answered++;
  if (isSwitch) switches++;
  if (live !== version) goLive(version, isSwitch);

  document.body.className = "";
  $("state").textContent = `Serving, process ${answer.pid}`;
  $("latency").textContent = `latest ${Math.round(ms)} ms`;
  mark(version.hue, ms, isSwitch ? "switch" : "", `${version.title}, ${Math.round(ms)} ms`);
}

function onFailure(reason) {
  failed++;
  document.body.className = "failing";
  $("state").textContent = `No answer: ${reason}`;
  mark(0, TIMEOUT_MS, "failed", `failed: ${reason}`);
}

function goLive(version, isSwitch) {
  live = version;
  pageVersion ??= version;
  version.whenText.textContent = `${isSwitch ? "took over" : "seen from"} ${timeOf(new Date())}`;
  document.documentElement.style.setProperty("--hue", version.hue);
  document.title = `${version.title} · app`;
  $("name").textContent = version.title;
  $("reload").hidden = version === pageVersion;
  if (isSwitch) $("announce").textContent = `${version.title} took over, ${failed} requests failed`;
  showAge();
}

function mark(hue, ms, kind, title) {
  const bar = document.createElement("i");
  bar.className = kind;
  bar.title = `${timeOf(new Date())} ${title}`;
  bar.style.setProperty("--hue", hue);
  // Logarithmic: a millisecond and a second are both worth seeing.
  bar.style.setProperty("--height", `${Math.min(100, 22 + 26 * Math.log10(1 + ms))}%`);
  bar.time = Date.now();
  strip.append(bar);
  strip.firstElementChild.remove();
  showCounts();
}

function showCounts() {
  const names = [...versions.keys()];
  Object.assign(strip.dataset, {
    answers: answered, failed, switches, reconnects: Math.max(0, streams - 1), versions: names.join(" "),
  });
  $("failed").textContent = failed;
  $("answered").textContent = answered;
  $("switches").textContent = switches;
  $("reconnects").textContent = strip.dataset.reconnects;
  $("since").textContent = ageOfFirstVisibleMark();
  document.documentElement.classList.toggle("lossy", failed > 0);
  for (const version of versions.values()) {
    version.countText.textContent = `${version.count} answers`;
  }
}

function ageOfFirstVisibleMark() {
  const visible = Math.floor(strip.clientWidth / 4);
  const first = strip.children[Math.max(0, MARKS - visible)];
  return first.time ? `${Math.round((Date.now() - first.time) / 1000)} s ago` : "";
}

// Called every few seconds: what it shows changes slowly.
function showAge() {
  if (!live) return;
  $("about").textContent =
    live.built ? `Built ${ageOf(live.built)}${live.dirty ? " with uncommitted changes" : ""}` : "Not deployed";
  strip.setAttribute("aria-label", `${answered} answers, ${failed} failed, ${versions.size} versions`);
}

const timeOf = (date) => date.toLocaleTimeString([], { timeStyle: "medium", hourCycle: "h23" });
const dateOf = (date) => date.toLocaleString([], { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

function ageOf(date) {
  const format = new Intl.RelativeTimeFormat([], { numeric: "auto" });
  const seconds = (date - Date.now()) / 1000;
  for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (Math.abs(seconds) >= size) return format.format(Math.round(seconds / size), unit);
  }
  return "just now";
}

async function poll() {
  for (;;) {
    const start = performance.now();
    try {
      const answer = await fetch("/version", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      onAnswer(await answer.json(), performance.now() - start);
    } catch (error) {
      onFailure(error.message);
    }
    await new Promise((done) => setTimeout(done, PACE_MS - (performance.now() - start)));
  }
}

function follow() {
  const source = new EventSource("/events");
  source.addEventListener("version", () => {
    streams++;
    $("stream").textContent = "Event stream: connected";
  });
  source.onerror = () => {
    $("stream").textContent = "Event stream: reconnecting";
    // After an answer that is not a stream, the browser does not reconnect by itself.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 1000);
  };
}

document.body.className = "waiting";
for (let i = 0; i < MARKS; i++) strip.append(Object.assign(document.createElement("i"), { className: "empty" }));
poll();
follow();
setInterval(showAge, 5000);
