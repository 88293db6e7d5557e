// Asks for status.json once a second and keeps the page's nodes up to date, in place.
// Everything that came from outside enters as text: no markup is ever made of it.
"use strict";

(() => {
  const EVERY_MS = 1000;
  const TIMEOUT_MS = 5000;
  const MOST_PARTITIONS = 200;
  const MOST_MODELS = 50;
  const MOST_SETTINGS = 1000;
  const MOST_CHARACTERS = 1000;
  const MOST_OF_A_NAME = 120;
  const NAME = "Softmax Service";
  const NBSP = "\u00a0";
  const NONE = "–";

  const CAUSES = {
    records: "enough records",
    bytes: "enough bytes",
    delay: "waited enough",
    idle: "nothing more",
    drain: "stopping",
  };
  const STATES = { ready: "Ready", "not-ready": "Not ready", stalled: "Stalled", unknown: "Unknown" };

  // --- numbers for people ---------------------------------------------------------------------

  const digits = (value) => value.toFixed(Math.abs(value) < 99.95 ? 1 : 0);

  function scaled(value, base, units) {
    let step = 0;
    while (step < units.length - 1 && Math.abs(Number(digits(value))) >= base) {
      value /= base;
      step += 1;
    }
    const plain = step === 0 && Number.isInteger(value);
    const number = plain ? String(value) : value > 0 && value < 0.05 ? "<0.1" : digits(value);
    return units[step] ? number + NBSP + units[step] : number;
  }

  const known = (format) => (value) => (Number.isFinite(value) ? format(value) : NONE);
  const count = known((value) => scaled(value, 1000, ["", "k", "M", "G", "T"]));
  const bytes = known((value) => scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]));
  const rate = known((value) => `${count(value)}/s`);
  const decimal = known((value) => value.toFixed(3));

  function wholeSeconds(seconds) {
    const [s, min, h, d] = [seconds, seconds / 60, seconds / 3600, seconds / 86400].map(Math.floor);
    if (d) return `${d}${NBSP}d ${h % 24}${NBSP}h`;
    if (h) return `${h}${NBSP}h ${min % 60}${NBSP}min`;
    if (min) return `${min}${NBSP}min ${s % 60}${NBSP}s`;
    return `${s}${NBSP}s`;
  }

  const duration = known((seconds) => {
    if (seconds >= 60) return wholeSeconds(seconds);
    if (seconds === 0) return `0${NBSP}s`;
    const [factor, unit] = seconds >= 0.9995 ? [1, "s"] : seconds >= 0.0009995 ? [1e3, "ms"] : [1e6, "µs"];
    return digits(seconds * factor) + NBSP + unit;
  });

  function share(part, whole) {
    if (!whole) return NONE;
    const percent = (100 * part) / whole;
    // A few are not none, and not quite all are not all.
    if (percent > 0 && percent < 0.05) return "<0.1%";
    return `${(percent < 100 ? Math.min(percent, 99.9) : percent).toFixed(1)}%`;
  }

  const local = (seconds) => new Date(seconds * 1000).toLocaleString("sv-SE");
  const sum = (items, of) => items.reduce((total, item) => total + (of(item) || 0), 0);
  const most = (items, of) => items.reduce((top, item) => Math.max(top, of(item) || 0), 0);
  const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

  function clipped(value, limit = MOST_CHARACTERS) {
    const text = String(value);
    return text.length <= limit ? text : `${text.slice(0, limit)}… (${count(text.length - limit)} characters more)`;
  }

  const named = (value) => clipped(value, MOST_OF_A_NAME);

  // --- nodes ------------------------------------------------------------------------------------

  const byId = (id) => document.getElementById(id);

  function make(tag, className = "", ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  }

  function setText(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  function setAttribute(node, name, value) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }

  function say(id, words) {
    setText(byId(id), words);
    byId(id).hidden = !words;
  }

  const put = (figures) => Object.entries(figures).forEach(([id, text]) => setText(byId(id), text));

  /** Make parent's children those of the items, keeping the nodes whose key stays. */
  function keep(parent, items, keyOf, create, update) {
    const old = new Map([...parent.children].map((node) => [node.dataset.key, node]));
    let next = parent.firstElementChild;
    for (const [index, item] of items.entries()) {
      const key = keyOf(item, index);
      let node = old.get(key);
      old.delete(key);
      if (!node) {
        node = create(item);
        node.dataset.key = key;
      }
      if (node === next) next = next.nextElementSibling;
      else parent.insertBefore(node, next);
      update(node, item);
    }
    old.forEach((node) => node.remove());
  }

  /** Rows of a table: a name and cells of text, or bars as [start, end] within 0 and 1. */
  function rows(id, items, keyOf, cellsOf) {
    const isBar = (cell) => Array.isArray(cell);
    keep(
      byId(id),
      items,
      keyOf,
      (item) => {
        const name = make("th", "name");
        name.scope = "row";
        const cells = cellsOf(item).slice(1);
        return make("tr", "", name, ...cells.map((cell) => (isBar(cell) ? make("td", "bar", make("span")) : make("td"))));
      },
      (row, item) => {
        const cells = cellsOf(item);
        cells.forEach((cell, i) => (isBar(cell) ? drawBar(row.cells[i].firstChild, cell) : setText(row.cells[i], cell)));
        setAttribute(row.cells[0], "title", cells[0]);
      },
    );
  }

  function drawBar(node, [start, end]) {
    node.style.marginLeft = `${(100 * start).toFixed(2)}%`;
    node.style.width = `${(100 * (end - start)).toFixed(2)}%`;
    node.classList.toggle("none", end <= start);
  }

  const barOf = (part, whole) => [0, whole ? (part || 0) / whole : 0];

  /** The largest models, and a line on the rest. */
  function largestModels(models, moreId) {
    const all = Object.entries(models).sort(([a, x], [b, y]) => y.count - x.count || (a < b ? -1 : 1));
    const rest = all.slice(MOST_MODELS);
    say(moreId, rest.length ? `and ${plural(rest.length, "more model")} with ${plural(sum(rest, ([, m]) => m.count), "record")}` : "");
    return all.slice(0, MOST_MODELS);
  }

  // --- sections ---------------------------------------------------------------------------------

  const stateOf = ({ ready, stalled }) => (stalled ? "stalled" : ready ? "ready" : "not-ready");

  function showHeader(status) {
    const { service, health } = status;
    showState(stateOf(health), health.why);
    put({
      updated: `As of ${local(status.time).slice(-8)}`,
      route: `${service.input} → ${service.output}`,
      "dead-letter-topic": service.dead_letter,
      group: service.group,
      guarantee: service.guarantee.replaceAll("_", " "),
      uptime: wholeSeconds(status.uptime_seconds),
      versions: `${NAME} ${service.version} · Python ${service.python} · numpy ${service.numpy} · aiokafka ${service.aiokafka}`,
    });
    for (const node of document.querySelectorAll(".window")) setText(node, `last ${wholeSeconds(status.window_seconds)}`);
  }

  function showState(state, why) {
    setAttribute(byId("state"), "data-state", state);
    put({ state: STATES[state], why: clipped(why) });
  }

  function showThroughput({ throughput, in_flight: inFlight, partitions }) {
    put({
      throughput: rate(throughput.records_per_second),
      consumed: rate(throughput.consumed_per_second),
      "dead-letter-rate": rate(throughput.dead_letters_per_second),
      "in-flight": `${plural(inFlight.records, "record")}, ${bytes(inFlight.bytes)}`,
      lag: `${plural(sum(partitions, (p) => p.lag_records), "record")}, ${duration(most(partitions, (p) => p.lag_seconds))}`,
    });
    drawSpark(throughput.history);
  }

  function drawSpark(history) {
    const [spark, caption] = [byId("spark"), byId("spark-range")];
    const rates = history.map((point) => point.records_per_second);
    const [low, high, oldest] = [Math.min(...rates), Math.max(...rates), history[0]?.age_seconds ?? 0];
    const enough = history.length > 1 && oldest > 0;
    const points = enough
      ? history.map(({ age_seconds: age, records_per_second: r }) => `${(120 * (1 - age / oldest)).toFixed(2)},${(39 - 38 * (high ? r / high : 0)).toFixed(2)}`)
      : [];
    setAttribute(spark.querySelector(".line"), "d", enough ? `M${points.join("L")}` : "");
    setAttribute(spark.querySelector(".area"), "d", enough ? `M0,40L${points.join("L")}L120,40Z` : "");
    const range = enough ? `least ${rate(low)}, most ${rate(high)}` : "No history yet";
    setText(caption, range);
    put({ "spark-start": enough ? `${wholeSeconds(oldest)} ago` : "", "spark-end": enough ? "now" : "" });
    setAttribute(spark, "aria-label", enough ? `Records per second over the last ${wholeSeconds(oldest)}: ${range}` : range);
  }

  function showLatency({ latency, window_seconds: window }) {
    const percentiles = (of) => [of.p50, of.p90, of.p99, of.p999].map(duration);
    ["p50", "p90", "p99", "p999"].forEach((id) => setText(byId(id), duration(latency[id])));
    say("latency-empty", latency.count ? "" : `No records in the last ${wholeSeconds(window)}`);
    const models = largestModels(latency.models, "latency-more");
    rows("latency-models", models, ([name]) => name, ([name, of]) => [named(name), count(of.count), ...percentiles(of)]);
    byId("latency-models").closest(".scroll").hidden = !models.length;
  }

  function showStages({ stages, window_seconds: window }) {
    const whole = sum(stages, (stage) => stage.mean_seconds);
    let end = 0;
    const placed = stages.map((stage) => {
      const start = end;
      end += stage.mean_seconds || 0;
      return { ...stage, bar: whole ? [start / whole, end / whole] : [0, 0] };
    });
    say("stages-empty", whole ? "" : `No micro-batches in the last ${wholeSeconds(window)}`);
    byId("stages-figures").hidden = !whole;
    rows("stages", placed, (s) => s.stage, (s) => [s.stage, s.bar, duration(s.mean_seconds), count(s.batches), duration(s.total_seconds)]);
  }

  function sizeNames(histogram) {
    return histogram.map(({ upto }, i) => {
      const above = i ? histogram[i - 1].upto : 0;
      if (upto === null) return `over ${above}`;
      return above + 1 === upto ? String(upto) : `${above + 1}–${upto}`;
    });
  }

  function showBatches({ batches, window_seconds: window }) {
    put({
      "batch-rate": rate(batches.per_second),
      "batch-records": count(batches.mean_records),
      "batch-bytes": bytes(batches.mean_bytes),
    });
    const [sizes, causes] = [batches.records_histogram, Object.entries(batches.closed_by)];
    const some = sum(sizes, (size) => size.batches) + sum(causes, ([, number]) => number) > 0;
    say("batches-empty", some ? "" : `No micro-batches in the last ${wholeSeconds(window)}`);
    byId("batches-figures").hidden = !some;
    const names = sizeNames(sizes);
    const fullest = most(sizes, (size) => size.batches);
    const bars = sizes.map((size, i) => [names[i], size.batches]);
    rows("batch-sizes", bars, ([name]) => name, ([name, number]) => [name, barOf(number, fullest), count(number)]);
    const whole = sum(causes, ([, number]) => number);
    rows("closed-by", causes, ([cause]) => cause, ([cause, number]) => [CAUSES[cause] ?? cause, barOf(number, whole), count(number)]);
  }

  function showPaths({ paths, window_seconds: window }) {
    const all = Object.entries(paths);
    const whole = sum(all, ([, number]) => number);
    say("paths-empty", whole ? "" : `No records in the last ${wholeSeconds(window)}`);
    byId("paths-figures").hidden = !whole;
    rows("paths", all, ([path]) => path, ([path, number]) => [path, barOf(number, whole), share(number, whole), count(number)]);
  }

  function showTrouble({ retries, rebalances, offsets_lost: lost }) {
    const facts = Object.entries(retries).map(([what, number]) => [`Retries of ${what}`, number]);
    facts.push(["Rebalances", rebalances], ["Offsets lost", lost]);
    keep(
      byId("trouble"),
      facts,
      ([name]) => name,
      ([name]) => make("div", "", make("dt", "", name), make("dd")),
      (node, [, number]) => setText(node.lastChild, count(number)),
    );
  }

  const ORDERS = {
    partition: (a, b) => (a.topic === b.topic ? a.partition - b.partition : a.topic < b.topic ? -1 : 1),
    lag: (a, b) => a.lag_records - b.lag_records,
    behind: (a, b) => a.lag_seconds - b.lag_seconds,
    rate: (a, b) => a.records_per_second - b.records_per_second,
  };
  const order = { by: "lag", sign: -1 };

  function showPartitions({ partitions }) {
    const sorted = [...partitions].sort((a, b) => order.sign * ORDERS[order.by](a, b) || ORDERS.partition(a, b));
    const [shown, rest] = [sorted.slice(0, MOST_PARTITIONS), sorted.slice(MOST_PARTITIONS)];
    const longest = most(partitions, (p) => p.lag_records);
    const name = (p) => `${p.topic}-${p.partition}`;
    rows("partitions", shown, name, (p) => [
      name(p), barOf(p.lag_records, longest), count(p.lag_records), duration(p.lag_seconds), rate(p.records_per_second),
    ]);
    byId("partitions-table").closest(".scroll").hidden = !partitions.length;
    say("partitions-empty", partitions.length ? "" : "No partitions are assigned");
    const lag = sum(rest, (p) => p.lag_records);
    say("partitions-more", rest.length ? `and ${plural(rest.length, "more partition")} with ${plural(lag, "record")} of lag` : "");
  }

  function sortBy(header) {
    const by = header.dataset.sort;
    order.sign = order.by === by ? -order.sign : by === "partition" ? 1 : -1;
    order.by = by;
    for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
    if (last) showPartitions(last);
  }

  function showPredictions({ predictions }) {
    byId("predictions-section").hidden = !Object.keys(predictions).length;
    const models = largestModels(predictions, "predictions-more");
    rows("predictions", models, ([name]) => name, ([name, of]) => [
      named(name), count(of.count), decimal(of.mean_confidence), `${decimal(of.mean_entropy)}${NBSP}nat`,
    ]);
  }

  function showDeadLetters({ dead_letters: { by_reason: reasons, last: letters } }) {
    const some = Object.entries(reasons).sort(([, x], [, y]) => y - x);
    say("dead-letters-empty", some.length || letters.length ? "" : "No dead letters");
    byId("reasons").hidden = !some.length;
    byId("letters").hidden = !letters.length;
    keep(
      byId("reasons"),
      some,
      ([reason]) => reason,
      ([reason]) => make("li", "", make("bdi", "", named(reason)), make("b")),
      (node, [, number]) => setText(node.lastChild, count(number)),
    );
    const seen = new Map();
    const key = (letter) => {
      const place = `${letter.at} ${letter.topic}-${letter.partition} @${letter.offset}`;
      seen.set(place, (seen.get(place) ?? 0) + 1);
      return `${place} ${seen.get(place)}`;
    };
    keep(byId("letters"), letters, key, makeLetter, () => {});
  }

  function makeLetter(letter) {
    const time = make("time", "", local(letter.at));
    time.dateTime = new Date(letter.at * 1000).toISOString();
    const where = `${letter.topic}-${letter.partition} @${letter.offset}`;
    const what = make("p", "what", make("bdi", "reason", named(letter.reason)), make("span", "where", where), time);
    const detail = make("p", "detail", clipped(letter.detail));
    detail.dir = "auto";
    const node = make("li", "", what, detail);
    if (letter.payload) node.append(make("code", "payload", clipped(letter.payload)));
    return node;
  }

  function flattened(tree, path = "") {
    return Object.entries(tree).flatMap(([name, value]) => {
      const inner = value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length;
      return inner ? flattened(value, `${path}${name}.`) : [[path + name, typeof value === "string" ? value : JSON.stringify(value)]];
    });
  }

  function showSettings({ settings }) {
    keep(
      byId("settings"),
      flattened(settings).slice(0, MOST_SETTINGS),
      ([name]) => name,
      ([name]) => make("li", "", make("code", "", make("span", "key", `${named(name)} = `), make("span"))),
      (node, [, value]) => setText(node.firstChild.lastChild, clipped(value)),
    );
    filterSettings();
  }

  function filterSettings() {
    const wanted = byId("filter").value.trim().toLowerCase();
    const all = [...byId("settings").children];
    for (const node of all) node.hidden = !node.textContent.toLowerCase().includes(wanted);
    setText(byId("filter-count"), wanted ? `${all.filter((node) => !node.hidden).length} of ${all.length}` : "");
  }

  /** Only what scrolls needs a stop on the way of the Tab key. */
  function markScrollable() {
    for (const region of document.querySelectorAll(".scroll")) {
      const scrolls = region.scrollWidth > region.clientWidth || region.scrollHeight > region.clientHeight;
      if (scrolls) region.tabIndex = 0;
      else if (region !== document.activeElement) region.removeAttribute("tabindex");
    }
  }

  function show(status) {
    [
      showHeader, showThroughput, showLatency, showStages, showBatches, showPartitions, showPaths, showTrouble,
      showPredictions, showDeadLetters, showSettings, markScrollable,
    ].forEach((part) => part(status));
  }

  // --- asking -----------------------------------------------------------------------------------

  let last = null;
  let answeredAt = performance.now();
  let failure = "";
  let paused = false;
  let asking = null;
  let timer = 0;

  const shouldAsk = () => !paused && !document.hidden;

  /** An answer that came but says nothing; its message is for people. */
  class Unusable extends Error {}

  async function ask(signal) {
    const response = await fetch("status.json", { cache: "no-store", signal });
    if (!response.ok) throw new Unusable(`The answer is HTTP${NBSP}${response.status}`);
    const text = await response.text();
    try {
      return JSON.parse(text);
    } catch {
      throw new Unusable("The answer is not JSON");
    }
  }

  function showAll(status) {
    try {
      show(status);
    } catch (error) {
      console.error(error);
      throw new Unusable("The answer was not understood");
    }
  }

  async function round() {
    const mine = new AbortController();
    asking = mine;
    const limit = setTimeout(() => mine.abort(), TIMEOUT_MS);
    try {
      const status = await ask(mine.signal);
      if (asking !== mine) return;
      showAll(status);
      [last, answeredAt, failure] = [status, performance.now(), ""];
    } catch (error) {
      if (asking !== mine) return;
      failure = error instanceof Unusable ? error.message : "No answer";
    } finally {
      clearTimeout(limit);
    }
    showFreshness();
    timer = setTimeout(round, EVERY_MS);
  }

  function start() {
    if (asking || !shouldAsk()) return;
    round();
  }

  function stop() {
    asking?.abort();
    asking = null;
    clearTimeout(timer);
  }

  function showFreshness() {
    document.body.classList.toggle("stale", Boolean(failure));
    byId("banner").hidden = !failure;
    if (failure) {
      const note = last ? "The figures below are old." : "There is nothing to show yet.";
      put({
        "banner-what": failure,
        "banner-since": `for ${wholeSeconds((performance.now() - answeredAt) / 1000)}.`,
        "banner-note": `${note} Asking again every second.`,
      });
      showState("unknown", "");
    }
    const state = failure || (last ? STATES[stateOf(last.health)] : "Waiting");
    const title = `${state}${paused ? " (paused)" : ""} · ${NAME}`;
    if (document.title !== title) document.title = title;
  }

  function togglePause() {
    paused = !paused;
    byId("pause").setAttribute("aria-pressed", String(paused));
    if (paused) stop();
    else start();
    showFreshness();
  }

  byId("pause").addEventListener("click", togglePause);
  byId("filter").addEventListener("input", filterSettings);
  for (const header of document.querySelectorAll("th[data-sort]")) {
    header.firstElementChild.addEventListener("click", () => sortBy(header));
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
  window.addEventListener("resize", markScrollable);
  // The age of a silence grows while an attempt is under way, too.
  setInterval(() => failure && shouldAsk() && showFreshness(), EVERY_MS);
  start();
})();
