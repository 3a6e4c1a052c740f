"use strict";
// The page keeps the last status and ten minutes of seconds, both as /live sends them. All text is
// shown through textContent, so that it is never parsed as markup.

const PAST_SECONDS = 600;
const BUCKET_SECONDS = 5;
const SILENCE_MS = 6000; // The edge sends an event every second; after this pause it counts as lost.
const RETRY_MS = [500, 1000, 2000, 4000];
const WIDTH = 600, HEIGHT = 100;
const SOON_SECONDS = 30 * 86400; // A spool that is full only after this counts as not filling up.
const LEVELS = {
  ok: ["● OK", "#22a06b"],
  notice: ["▲ Look", "#e2a03f"],
  trouble: ["■ Trouble", "#d64534"],
};
const STATES = {
  ok: ["● delivers", "ok"],
  retrying: ["▲ retries", "notice"],
  down: ["■ down", "trouble"],
  misconfigured: ["■ misconfigured", "trouble"],
  dead_letters_failing: ["■ dead letters fail", "trouble"],
  spool_unreadable: ["■ spool unreadable", "trouble"],
  predecessor_lives: ["▲ waits for the old process", "notice"],
  newer_records: ["▲ newer records wait", "notice"],
  held_back: ["▲ held back", "notice"],
  stopped: ["○ stopped", "notice"],
};

const id = (name) => document.getElementById(name);
const number = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const moment = new Intl.DateTimeFormat("en-GB", { dateStyle: "short", timeStyle: "medium" });

let seconds = []; // [at, accepted, refused, away, delivered, pending, bytes, lag, length]
let shown = {}; // The data that each part shows, so that only changed parts are rendered.
let recent = [];
let recentRejected = [];
let newest = 0;
let heard = null;
let paused = false;

// Formatting.

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function rate(events) {
  return events >= 100 ? number.format(Math.round(events)) : number.format(Math.round(events * 10) / 10);
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (count >= 1024 && at < units.length - 1) { count /= 1024; at += 1; }
  return `${at && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[at]}`;
}

function span(s) {
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} days`;
}

function fills(spool) {
  return spool.seconds_to_full !== null && spool.seconds_to_full < SOON_SECONDS;
}

function fill(element, rows, empty, columns) {
  if (rows.length === 0) {
    const row = make("tr"), cell = make("td", empty, "empty");
    cell.colSpan = columns;
    row.append(cell);
    rows = [row];
  }
  // On a narrow page the style turns tables into lists, which takes their roles and headers away.
  const names = [...element.closest("table").tHead.rows[0].cells].map((name) => name.textContent);
  for (const row of rows) {
    row.setAttribute("role", "row");
    [...row.cells].forEach((cell, at) => {
      cell.setAttribute("role", cell.tagName === "TH" ? "rowheader" : "cell");
      if (row.cells.length === names.length) cell.dataset.name = names[at];
    });
  }
  element.replaceChildren(...rows);
}

// Renders a part only when its data has changed, so that screen readers and selections keep their place.
function change(part, value, draw) {
  const text = JSON.stringify(value);
  if (shown[part] === text) return;
  shown[part] = text;
  draw(value);
}

// The parts of the page.

function headline({ level, text, advice }) {
  document.body.dataset.level = level;
  id("headline").dataset.level = level;
  write(id("level"), LEVELS[level][0]);
  write(id("headline-text"), text);
  write(id("headline-advice"), advice);
  // A screen reader reads it aloud when the condition changes, not whenever a number does.
  change("spoken", text.replace(/[\d,]+( s| min| h| days)?/g, ""), () => write(id("spoken"), text));
  document.title = level === "ok" ? "pixelgate" : `${LEVELS[level][0]} – pixelgate`;
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><rect x="1" y="1" width="6" height="6" rx="1.5" fill="${LEVELS[level][1]}"/></svg>`;
  document.querySelector("link[rel=icon]").href = `data:image/svg+xml,${encodeURIComponent(svg)}`;
}

function tiles(status) {
  const lately = seconds.slice(-10);
  const sum = (at) => lately.reduce((total, second) => total + second[at], 0);
  const length = Math.max(1, sum(8));
  write(id("rate-accepted"), rate(sum(1) / length));
  write(id("rate-refused"), rate((sum(2) + sum(3)) / length));
  const pending = Math.max(0, ...status.upstreams.map((upstream) => upstream.pending));
  write(id("pending"), pending < 1e6 ? number.format(pending) : short.format(pending));
  const lag = span(Math.max(0, ...status.upstreams.map((u) => u.lag_seconds))).split(" ");
  write(id("lag"), lag[0]);
  write(id("lag-unit"), lag[1]);
  const spool = status.spool, share = spool.bytes / spool.bytes_max;
  write(id("spool-used"), bytes(spool.bytes));
  write(id("spool-of"), `of ${bytes(spool.bytes_max)}`);
  id("spool-bar").style.width = `${Math.min(100, 100 * share)}%`;
  id("spool-bar").className = spool.failing || share > 0.9 ? "full" : "";
  write(id("spool-full"), spool.failing ? `refuses events: ${spool.failing}`
    : fills(spool) ? `full in ${span(spool.seconds_to_full)} at this pace` : "does not fill up");
}

function faults(rows) {
  id("faults-card").hidden = rows.length === 0;
  fill(id("faults"), rows.map(({ what, subject, since, text, advice }) => {
    const row = make("tr"), name = make("th");
    name.scope = "row";
    name.append(make("code", what), make("span", subject, "detail"));
    const began = make("td", null, "nowrap"), time = make("time", moment.format(new Date(since)));
    time.dateTime = since;
    began.append(time);
    row.append(name, began, make("td", text, "sentence"), make("td", advice, "sentence"));
    return row;
  }), "none", 4);
}

function upstreams(rows) {
  fill(id("upstreams"), rows.map((upstream) => {
    const row = make("tr", null, upstream.trouble ? "trouble" : "");
    row.dataset.upstream = upstream.name;
    const name = make("th", upstream.name);
    name.scope = "row";
    name.append(make("span", ` ${upstream.kind}`, "small"));
    let [word, kind] = STATES[upstream.state] || [upstream.state, "notice"];
    if (upstream.trouble_seconds !== null) word += ` for ${span(upstream.trouble_seconds)}`;
    const state = make("td");
    state.append(make("span", word, `state ${kind}`));
    row.append(name, state);
    for (const key of ["accepted", "delivered", "dead", "lost", "pending"]) {
      row.append(make("td", number.format(upstream[key]), "n"));
    }
    row.append(make("td", span(upstream.lag_seconds), "n nowrap"));
    row.append(make("td", upstream.last_error || "none", upstream.last_error ? "error" : "error empty"));
    return row;
  }), "none", 9);
}

function share(part, whole, className) {
  const bar = make("span", null, `share ${className}`);
  bar.setAttribute("aria-hidden", "true");
  bar.style.width = `${Math.max(1, (100 * part) / whole)}%`;
  return bar;
}

function reasons(rows) {
  const most = rows.length ? rows[0].count : 1;
  fill(id("reasons"), rows.map(({ reason, count, detail }) => {
    const row = make("tr"), name = make("th");
    name.scope = "row";
    name.append(make("code", reason), make("span", detail, "detail"), share(count, most, ""));
    row.append(name, make("td", number.format(count), "n"));
    return row;
  }), "none", 2);
}

function ranking({ portals, others }) {
  const most = Math.max(1, ...portals.map((portal) => portal.accepted + portal.rejected));
  const rows = portals.map(({ portal, accepted, ignored_params: ignored, rejected, mostly }) => {
    const row = make("tr"), name = make("th", portal);
    name.scope = "row";
    if (mostly) name.append(make("span", `mostly ${mostly}`, "detail"));
    if (ignored) name.append(make("span", `${number.format(ignored)} ignored ${ignored === 1 ? "parameter" : "parameters"}`, "detail"));
    name.append(share(accepted + rejected, most, accepted >= rejected ? "accepted" : ""));
    row.append(name, make("td", number.format(accepted), "n"), make("td", number.format(rejected), "n"));
    return row;
  });
  if (others) {
    const row = make("tr"), name = make("th", "all others");
    name.scope = "row";
    row.append(name, make("td", number.format(others), "n"), make("td", "", "n"));
    rows.push(row);
  }
  fill(id("ranking"), rows, "no events", 3);
}

function totals({ since, portals, other }) {
  write(id("totals-since"), since ? `since ${since.slice(0, 10)}` : "since the first start");
  const rows = portals.map((totals) => totalsRow(totals.portal, totals));
  if (other.accepted + other.rejected) rows.push(totalsRow("all others", other));
  fill(id("totals"), rows, "no events", 4);
}

function totalsRow(title, { accepted, rejected, delivered }) {
  const row = make("tr"), name = make("th", title);
  name.scope = "row";
  row.append(name, ...[accepted, rejected, delivered].map((n) => make("td", number.format(n), "n")));
  return row;
}

function facts(element, pairs) {
  element.replaceChildren(...pairs.flatMap(([what, is]) => [make("dt", what), make("dd", is)]));
}

function list(portals) {
  const age = portals.age_seconds;
  const state = portals.stale ? "■ too old: events are refused"
    : portals.fresh ? "● up to date" : "▲ cannot be refreshed";
  const failure = portals.last_failure;
  facts(id("list"), [
    ["Portals", number.format(portals.count)],
    ["Mode", portals.mode],
    ["State", portals.mode === "off" && !portals.loaded_at ? "○ not used" : state],
    ["Loaded", age === null ? "not yet" : `${span(age)} ago`],
    ["Last failure", failure ? `${clock.format(new Date(failure.at))} ${failure.what}` : "none"],
    ...(portals.retry_at
      ? [["Asked again", `${clock.format(new Date(portals.retry_at))} (Retry-After)`]] : []),
  ]);
}

function spool(spool) {
  facts(id("spool"), [
    ["Takes events", spool.failing ? `■ no: ${spool.failing}` : "● yes"],
    ["Held", `${bytes(spool.bytes)} of ${bytes(spool.bytes_max)}`],
    ["Free on its disk", bytes(spool.free_bytes)],
    ["Full in", fills(spool) ? span(spool.seconds_to_full) : "not filling"],
    ["Damaged", spool.quarantined_bytes ? `▲ ${bytes(spool.quarantined_bytes)}` : "none"],
  ]);
}

function events() {
  const portal = id("filter-portal").value.trim();
  const rejected = id("filter-rejected").checked;
  const rows = (rejected ? recentRejected : recent)
    .filter((event) => !portal || String(event.portal) === portal);
  change("recent", [rows, portal, rejected], () => {
    fill(id("recent"), rows.map((event) => {
      const row = make("tr", null, event.number > newest ? "new" : "");
      const good = event.verdict === "accepted";
      const verdict = make("td");
      verdict.append(make("span", good ? "● accepted" : `✕ ${event.reason}`, `state ${good ? "ok" : "notice"}`));
      const holds = [];
      if (event.revenue) holds.push("revenue");
      if (event.properties) holds.push(`${event.properties} ${event.properties === 1 ? "property" : "properties"}`);
      row.append(
        make("td", clock.format(new Date(event.at)), "nowrap"), verdict,
        make("td", event.portal === null ? "–" : event.portal, "n"),
        make("td", event.event || (good ? "(not shown)" : "–"), event.event ? "" : "empty"),
        make("td", event.email || "–", event.email ? "" : "empty"),
        make("td", holds.join(", ") || "–", holds.length ? "" : "empty"),
      );
      return row;
    }), portal || rejected ? "none of these lately" : "none yet", 6);
    newest = Math.max(newest, ...recent.concat(recentRejected).map((event) => event.number));
  });
}

// The plots: a bucket is a few seconds wide, so that a single event is visible and a phone fits all.

function buckets() {
  const now = seconds.length ? seconds[seconds.length - 1][0] : 0;
  const last = Math.floor(now / BUCKET_SECONDS), count = PAST_SECONDS / BUCKET_SECONDS;
  const all = Array.from({ length: count }, (_, at) => ({
    at: (last - count + 1 + at) * BUCKET_SECONDS, length: 0, accepted: 0, refused: 0, away: 0, waiting: 0,
  }));
  for (const [at, accepted, refused, away, , pending, , , length] of seconds) {
    const bucket = all[Math.floor(at / BUCKET_SECONDS) - (last - count + 1)];
    if (!bucket) continue;
    bucket.length += length;
    bucket.accepted += accepted;
    bucket.refused += refused;
    bucket.away += away;
    bucket.waiting = Math.max(bucket.waiting, pending);
  }
  for (const bucket of all) {
    for (const key of ["accepted", "refused", "away"]) bucket[key] /= bucket.length || 1;
  }
  return all;
}

function niceMax(value) {
  if (value <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value);
}

function draw(figure, all, series, describe) {
  const svg = figure.querySelector("svg");
  const top = niceMax(Math.max(...all.map((bucket) => series.reduce((sum, key) => sum + bucket[key], 0))));
  const step = WIDTH / all.length, gap = step > 3 ? 0.8 : 0;
  const base = all.map(() => 0);
  const paths = series.map((key) => {
    let path = "";
    all.forEach((bucket, at) => {
      if (!bucket[key]) return;
      const height = Math.max(0.8, (HEIGHT * bucket[key]) / top);
      path += `M${(at * step).toFixed(2)} ${(HEIGHT - base[at]).toFixed(2)}v${(-height).toFixed(2)}h${(step - gap).toFixed(2)}v${height.toFixed(2)}z`;
      base[at] += height;
    });
    return [key, path];
  });
  if (!svg.firstChild) {
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    const add = (tag, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      svg.append(element);
    };
    for (const y of [0, HEIGHT / 2, HEIGHT]) add("path", { class: "grid", d: `M0 ${y}H${WIDTH}` });
    for (const key of series) add("path", { class: key, d: "" });
    add("path", { class: "hair", d: "" });
    for (const part of [0, 0.5, 1]) {
      const label = make("span", null, "scale");
      label.setAttribute("aria-hidden", "true");
      label.dataset.part = part;
      figure.append(label);
    }
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      figure.at = Math.min(all.length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * all.length)));
      read(figure);
    });
    svg.addEventListener("pointerleave", () => { figure.at = null; read(figure); });
  }
  for (const [key, path] of paths) svg.querySelector(`.${key}`).setAttribute("d", path);
  for (const label of figure.querySelectorAll(".scale")) {
    const part = Number(label.dataset.part);
    write(label, short.format(top * (1 - part)));
    const box = svg.getBoundingClientRect(), frame = figure.getBoundingClientRect();
    label.style.top = `${box.top - frame.top + box.height * part}px`;
  }
  figure.all = all;
  figure.describe = describe;
  read(figure);
}

function read(figure) {
  const step = WIDTH / figure.all.length, at = figure.at;
  const bucket = at == null ? null : figure.all[at];
  const hair = figure.querySelector(".hair");
  hair.setAttribute("d", bucket ? `M${(at + 0.5) * step} 0V${HEIGHT}` : "");
  const text = figure.describe(bucket || figure.all[figure.all.length - 1]);
  write(figure.querySelector(".reading"), bucket ? `${clock.format(bucket.at * 1000)}: ${text}` : text);
  figure.querySelector("svg").setAttribute("aria-label", `Now ${figure.describe(figure.all[figure.all.length - 1])}`);
}

function plots() {
  const all = buckets();
  draw(id("plot-verdicts"), all, ["accepted", "refused", "away"], (bucket) =>
    `${rate(bucket.accepted)} accepted, ${rate(bucket.refused)} rejected, ${rate(bucket.away)} turned away`);
  draw(id("plot-pending"), all, ["waiting"], (bucket) => `${number.format(bucket.waiting)} wait`);
}

function show({ status, seconds: later }) {
  heard = Date.now();
  link(true);
  seconds = seconds.concat(later).slice(-PAST_SECONDS);
  document.body.classList.remove("stale");
  write(id("about"), `${status.version}, up ${span(status.uptime_seconds)}`);
  change("headline", status.headline, headline);
  tiles(status);
  plots();
  change("faults", status.faults, faults);
  change("upstreams", status.upstreams, upstreams);
  change("reasons", status.lately.reasons, reasons);
  change("ranking", status.ranking, ranking);
  change("totals", status.totals, totals);
  list(status.portals);
  spool(status.spool);
  if (!paused) {
    recent = status.recent;
    recentRejected = status.recent_rejected;
    events();
  }
}

// The connection: fetch reads the stream, because an EventSource cannot send the token.

function link(on, text) {
  const pill = id("link");
  pill.className = `pill ${on ? "on" : "off"}`;
  write(pill, on ? "Live" : text);
}

function lost(text, advice) {
  link(false, "Connection lost");
  document.body.classList.add("stale");
  const when = heard ? ` What is below is from ${clock.format(heard)}.` : "";
  shown.headline = null;
  headline({ level: "trouble", text, advice: advice + when });
}

function headers(more) {
  const token = sessionStorage.getItem("token");
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

function ask(wrong) {
  id("dashboard").hidden = true;
  id("login").hidden = false;
  link(false, "Locked");
  write(id("token-wrong"), wrong ? "That is not its token." : "");
  id("token").value = "";
  id("token").focus();
}

async function listen() {
  const stop = new AbortController();
  let silence = setTimeout(() => stop.abort(), SILENCE_MS);
  try {
    const response = await fetch("/live", { headers: headers({}), signal: stop.signal, cache: "no-store" });
    if (response.status === 401) {
      const had = sessionStorage.getItem("token");
      sessionStorage.removeItem("token");
      ask(had !== null);
      return "locked";
    }
    if (!response.ok) {
      lost("The edge does not report its state.", `It answers ${response.status}: ${(await response.text()).trim()}.`);
      return "refused";
    }
    id("login").hidden = true;
    id("dashboard").hidden = false;
    seconds = [];
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return "ended";
      clearTimeout(silence);
      silence = setTimeout(() => stop.abort(), SILENCE_MS);
      text += value;
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const event = text.slice(0, end);
        text = text.slice(end + 2);
        if (event.startsWith("event: stopping")) return "stopping";
        if (event.startsWith("data: ")) show(JSON.parse(event.slice(6)));
      }
    }
  } catch (error) {
    return "ended";
  } finally {
    clearTimeout(silence);
    stop.abort();
  }
}

async function stay() {
  for (let attempt = 0; ; attempt += 1) {
    const before = heard;
    const end = await listen();
    if (end === "locked") return;
    id("dashboard").hidden = false;
    if (end === "stopping") {
      lost("The edge has been stopped.", "What waits on disk is delivered after its next start.");
    } else if (end === "ended") {
      lost("The edge does not answer.",
        "Is its process running? Look at its log and start it again: what waits on disk is delivered then.");
    }
    if (heard !== before) attempt = 0;
    await new Promise((done) => setTimeout(done, RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]));
  }
}

// User actions.

id("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", id("token").value.trim());
  stay();
});

id("explain-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const out = id("explanation");
  try {
    const response = await fetch("/explain", {
      method: "POST", body: id("explain-text").value,
      headers: headers({ "Content-Type": "text/plain; charset=utf-8" }),
    });
    if (!response.ok) throw new Error((await response.text()).trim());
    const { verdict, accepted, sections } = await response.json();
    const mark = accepted === null ? ["○ ", ""] : accepted ? ["● ", "ok"] : ["✕ ", "notice"];
    const parts = [make("p", mark[0] + verdict, `verdict state ${mark[1]}`)];
    for (const { title, lines } of sections) {
      const all = make("ul");
      all.append(...lines.map((line) => make("li", line)));
      parts.push(make("h3", title), all);
    }
    out.replaceChildren(...parts);
  } catch (error) {
    out.replaceChildren(make("p", `There is no answer: ${error.message}`, "wrong"));
  }
});

id("explain-form").addEventListener("reset", () => id("explanation").replaceChildren());

id("explain-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) id("explain-form").requestSubmit();
});

id("filter").addEventListener("submit", (event) => event.preventDefault());
id("filter").addEventListener("input", events);

id("pause").addEventListener("click", () => {
  paused = !paused;
  id("pause").setAttribute("aria-pressed", String(paused));
  write(id("pause"), paused ? "Go on" : "Pause");
});

stay();
