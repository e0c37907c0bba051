"use strict";
/* The page: what is in it, the list, what is opened, and the keys. */

const ROW_HEIGHT = 26;
const TURNS_AT_ONCE = 20;
const OUTCOMES = {
  all: ["all", () => true],
  success: ["success", (t) => t.success === true && !t.cut],
  cut: ["truncated", (t) => t.cut !== null],
  failure: ["failure", (t) => t.success === false && t.cut === null],
};
const ORDERS = {
  time: ["iteration", null],
  spread: ["spread of returns", (g) => -g.spread],
  low: ["lowest return", (g) => g.mean],
  high: ["highest return", (g) => -g.mean],
};
const $ = (id) => document.getElementById(id);
const state = { outcome: "all", order: "time", colour: "logp", context: false, find: "", place: 0, compared: null };
const opened = new Map(); // block -> promise of its trajectories
let index, texts, all, groups, entries = [], serial = 0;

async function unpack(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/* The turns of a trajectory; the last 32 blocks that were unpacked are kept. */
async function turnsOf(t) {
  const block = opened.get(t.chunk) || unpack(`chunk${t.chunk}`);
  opened.delete(t.chunk);
  opened.set(t.chunk, block);
  if (opened.size > 32) opened.delete(opened.keys().next().value);
  const detail = (await block)[t.at];
  if (!detail.ready) {
    detail.turns.forEach(unpackTurn);
    detail.ready = true;
  }
  return detail;
}

function read() {
  const names = "source iteration group index seed return success cut trained turns tokens advantage first chunk at".split(" ");
  all = index.lines.map((line) => Object.fromEntries(names.map((name, i) => [name, line[i]])));
  index.lines = null;
  const found = new Map();
  for (const t of all) {
    // Of one source a group is one of an iteration; of several, what was played of one task.
    const key = JSON.stringify(index.sources.length > 1 ? [t.group, t.seed] : [t.iteration, t.group, t.seed]);
    if (!found.has(key)) found.set(key, { name: t.group, iteration: t.iteration, members: [] });
    found.get(key).members.push(t);
  }
  groups = [...found.values()];
  for (const g of groups) {
    const returns = g.members.map((t) => t.return ?? 0);
    g.mean = returns.reduce((a, b) => a + b, 0) / returns.length;
    g.spread = Math.sqrt(returns.reduce((a, b) => a + (b - g.mean) ** 2, 0) / returns.length);
    // Of several sources, what one seed sampled with each stands together.
    g.members.sort((a, b) => a.index - b.index || a.source - b.source || a.iteration - b.iteration);
    if (index.sources.length > 1) g.means = index.sources.map((_, s) => meanOf(g.members.filter((t) => t.source === s)));
    g.spread = g.means ? Math.max(...g.means.filter((m) => m !== null)) - Math.min(...g.means.filter((m) => m !== null)) : g.spread;
  }
  if (index.sources.length > 1) ORDERS.spread[0] = "difference";
}

const meanOf = (members) => (members.length ? members.reduce((a, t) => a + (t.return ?? 0), 0) / members.length : null);
const short = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(3))));
const letter = (source) => String.fromCharCode(65 + (source % 26));

function filter() {
  const before = entries[state.place];
  const wanted = OUTCOMES[state.outcome][1], words = state.find.toLowerCase();
  const order = ORDERS[state.order][1];
  const chosen = order ? [...groups].sort((a, b) => order(a) - order(b)) : groups;
  entries = [];
  let count = 0;
  for (const g of chosen) {
    const members = g.members.filter(
      (t) => wanted(t) && (!words || g.name.toLowerCase().includes(words) || t.first.toLowerCase().includes(words)),
    );
    if (!members.length) continue;
    entries.push({ group: g });
    for (const t of members) entries.push({ group: g, t });
    count += members.length;
  }
  $("count").textContent = `${count.toLocaleString("en")} of ${all.length.toLocaleString("en")} trajectories`;
  $("space").style.height = `${entries.length * ROW_HEIGHT}px`;
  const same = before ? entries.findIndex((e) => (before.t ? e.t === before.t : e.group === before.group && !e.t)) : -1;
  select(same >= 0 ? same : entries.length > 1 ? 1 : 0);
}

function draw() {
  const list = $("list"), space = $("space");
  const from = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 5);
  const to = Math.min(entries.length, from + Math.ceil(list.clientHeight / ROW_HEIGHT) + 10);
  const rows = [];
  for (let i = from; i < to; i++) rows.push(row(entries[i], i));
  space.replaceChildren(...rows);
  list.setAttribute("aria-activedescendant", `row${state.place}`);
}

function row({ group, t }, i) {
  const made = element("div", `row ${t ? "member" : "group"}`);
  made.id = `row${i}`;
  made.style.top = `${i * ROW_HEIGHT}px`;
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", String(i === state.place));
  made.setAttribute("aria-posinset", String(i + 1));
  made.setAttribute("aria-setsize", String(entries.length));
  if (!t) {
    const wins = group.members.filter((m) => m.success === true).length;
    const where = index.sources.length > 1 || !group.iteration ? "" : `${group.iteration} · `;
    const means = group.means ? group.means.map((m, s) => `${letter(s)} ${short(m)}`).join(" → ") : `${short(group.mean)} ± ${short(group.spread)}`;
    made.append(element("span", "", `${where}group ${seen(group.name)}`), element("span", "rest", `return ${means} · ${wins} of ${group.members.length} succeed`));
    return made;
  }
  const [word, name] = outcome(t);
  const source = index.sources.length > 1 ? `${letter(t.source)} ` : "";
  made.append(element("span", "", `${source}${t.index}`), element("span", name, word), element("span", "", short(t.return)));
  const advantage = t.advantage === null ? (t.trained === false ? "not trained" : "") : `adv ${short(t.advantage)}`;
  made.append(element("span", "rest", [advantage, `${t.turns} turns`, `${t.tokens} tokens`].filter(Boolean).join(" · ")));
  return made;
}

function outcome(t) {
  if (t.cut !== null) return [`cut: ${seen(t.cut)}`, "cut"];
  if (t.success === true) return ["success", "good"];
  return t.success === false ? ["failure", "bad"] : ["ended", "dim"];
}

function select(place) {
  state.place = Math.max(0, Math.min(entries.length - 1, place));
  const list = $("list"), top = state.place * ROW_HEIGHT;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
  draw();
  open();
}

/* Opens what is selected: a trajectory, or the members of a group side by side. */
async function open() {
  const mine = ++serial;
  const entry = entries[state.place];
  $("values").textContent = "";
  if (!entry) {
    $("detail").dataset.shown = mine;
    $("detail").replaceChildren(element("p", "nothing", all.length ? "No trajectory is like that." : "There are no trajectories here."));
    return;
  }
  const compares = !entry.t || state.compared === entry.group;
  if (!compares) state.compared = null;
  const shown = compares ? entry.group.members.slice(0, 32) : [entry.t];
  const details = await Promise.all(shown.map(turnsOf));
  if (mine !== serial) return;
  $("detail").replaceChildren(...shown.map((t, i) => trajectory(t, details[i])));
  $("detail").scrollTop = $("detail").scrollLeft = 0;
  $("detail").dataset.shown = mine; // says that what is seen is what was asked for last
}

function trajectory(t, detail) {
  const made = element("article", "trajectory");
  const [word, name] = outcome(t);
  const source = index.sources.length > 1 ? `${letter(t.source)} · ${seen(index.sources[t.source])} · ` : "";
  const title = element("h2", "", `${source}${t.iteration ? `iteration ${t.iteration} · ` : ""}${seen(t.group)}/${t.index} · `);
  title.append(element("span", name, word));
  made.append(title, element("p", "facts", facts(t, detail)));
  let next = 0;
  const rest = element("button", "chip");
  rest.type = "button";
  const add = () => {
    const part = document.createDocumentFragment();
    for (const end = Math.min(next + TURNS_AT_ONCE, detail.turns.length); next < end; next++) part.append(...turn(detail.turns[next], next, detail));
    rest.before(part);
    rest.textContent = `${detail.turns.length - next} more turns`;
    if (next < detail.turns.length) return;
    watcher.disconnect();
    if (detail.last) {
      const last = element("section", "turn");
      last.append(element("h3", "", "last seen"), textBlock(detail.last, "text"));
      rest.before(last);
    }
    rest.remove();
  };
  made.append(rest);
  const watcher = new IntersectionObserver((seenNow) => seenNow.some((one) => one.isIntersecting) && add(), { root: $("detail"), rootMargin: "600px" });
  watcher.observe(rest);
  rest.addEventListener("click", add);
  add();
  return made;
}

function facts(t, detail) {
  let count = 0, logp = 0, moved = 0, known = true;
  for (const turn of detail.turns) {
    for (let i = 0; i < turn.sampled.length; i++, count++) {
      if (turn.logp) logp += turn.logp[i];
      if (turn.logp && turn.updated) moved += turn.updated[i] - turn.logp[i];
      else known = false;
    }
  }
  const parts = [`return ${short(t.return)}`, `${t.turns} turns`, `${t.tokens} sampled tokens`, `task seed ${t.seed}`];
  if (t.advantage !== null) parts.push(`advantage ${short(t.advantage)}`);
  if (count && detail.turns.every((turn) => turn.logp)) parts.push(`mean log-prob ${short(logp / count)}`);
  if (count && known) parts.push(`ratio of the whole after the update ${String(Number(Math.exp(moved / count).toPrecision(5)))}`);
  if (t.trained === false) parts.push("not trained on");
  return parts.join(" · ");
}

function turn(turn, number) {
  const made = element("section", "turn");
  const head = element("h3", "", `turn ${number + 1}`);
  const reward = element("span", turn.reward > 0 ? "good" : turn.reward < 0 ? "bad" : "dim", `reward ${short(turn.reward)}`);
  const version = turn.versions ? `versions ${Math.min(...turn.versions)} to ${Math.max(...turn.versions)}` : `version ${turn.version ?? "–"}`;
  head.append(reward, element("span", turn.finish === "length" ? "cut" : "dim", turn.finish === "length" ? "ran out of tokens" : turn.finish), element("span", "dim", `${turn.sampled.length} tokens · ${version}`));
  if (turn.summary) head.append(element("span", "cut", "summary"));
  made.append(head);
  if (turn.observation) made.append(textBlock(turn.observation, "text"));
  const tokens = element("div", "tokens");
  if (turn.prompt.length) tokens.append(contextChip(turn));
  if (turn.sampled.length) addTokens(tokens, turn, "sampled", texts, state.colour);
  else tokens.append(...textBlock(turn.reply, "").childNodes);
  made.append(tokens);
  if (turn.sampled.length && turn.reply && !texts.size) made.append(textBlock(turn.reply, "text"));
  for (const [name, what] of turn.tools || []) {
    const call = element("p", "call");
    call.append(element("span", name ? "good" : "bad", name ? `calls ${seen(name)} ` : "call cannot be read: "), seen(what));
    made.append(call);
  }
  return turn.starts ? [element("div", "border", "a new context begins: next segment, same ratio"), made] : [made];
}

/* What the turn appended to the context: it has no loss, and is shown when asked for. */
function contextChip(turn) {
  const chip = element("button", "chip", `${turn.prompt.length} context tokens, no loss`);
  chip.type = "button";
  const place = element("span");
  const show = (on) => {
    chip.setAttribute("aria-expanded", String(on));
    place.replaceChildren();
    if (on) addTokens(place, turn, "prompt", texts, state.colour);
  };
  chip.addEventListener("click", () => show(chip.getAttribute("aria-expanded") !== "true"));
  show(state.context);
  const both = document.createDocumentFragment();
  both.append(chip, place);
  return both;
}

/* -- what the reader does */

function set(name, value) {
  state[name] = value;
  const control = $(name);
  if (control.type === "checkbox") control.checked = value;
  else control.value = value;
  if (name === "colour") {
    for (const span of document.querySelectorAll(".sampled")) paint(span, span.place[0], span.place[2], value);
    $("values").textContent = `${COLOURS[value].label}: ${COLOURS[value].legend}`;
  } else if (name === "context") open();
  else filter();
}

function showValues(span) {
  document.querySelector(".cursor")?.classList.remove("cursor");
  span.classList.add("cursor");
  span.title = values(span.place, texts);
  $("values").textContent = span.title;
}

function step(by) {
  const spans = [...$("detail").querySelectorAll(".sampled, .context")];
  const now = spans.findIndex((span) => span.classList.contains("cursor"));
  const span = spans[Math.max(0, Math.min(spans.length - 1, now < 0 ? 0 : now + by))];
  if (!span) return;
  showValues(span);
  span.scrollIntoView({ block: "nearest" });
}

function toGroup(by) {
  let place = state.place;
  do place += by; while (entries[place] && entries[place].t);
  if (entries[place]) select(place);
}

function compare(on) {
  const entry = entries[state.place];
  if (!entry) return;
  state.compared = on ? entry.group : null;
  open();
}

function page() {
  return Math.max(1, Math.floor($("list").clientHeight / ROW_HEIGHT) - 1);
}

const KEYS = {
  ArrowDown: () => select(state.place + 1), ArrowUp: () => select(state.place - 1),
  PageDown: () => select(state.place + page()), PageUp: () => select(state.place - page()),
  Home: () => select(0), End: () => select(entries.length - 1),
  "[": () => toGroup(-1), "]": () => toGroup(1),
  c: () => compare(true), Escape: () => compare(false), Enter: () => $("detail").focus(),
  l: () => set("colour", "logp"), r: () => set("colour", "ratio"), a: () => set("colour", "advantage"),
  m: () => set("context", !state.context), "/": () => $("find").focus(),
};
Object.keys(OUTCOMES).forEach((name, i) => (KEYS[String(i + 1)] = () => set("outcome", name)));

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("trajectories").hidden) return;
  const typing = ["INPUT", "SELECT"].includes(event.target.tagName) && event.target.type !== "checkbox";
  if (typing) {
    if (event.key === "Escape" || event.key === "Enter") $("list").focus();
    return;
  }
  const inside = $("detail").contains(document.activeElement);
  if (inside && ["ArrowLeft", "ArrowRight"].includes(event.key)) step(event.key === "ArrowRight" ? 1 : -1);
  else if (inside && ["ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End", "Enter"].includes(event.key)) return;
  else if (event.target.tagName === "BUTTON" && event.key === "Enter") return;
  else if (KEYS[event.key]) KEYS[event.key]();
  else return;
  event.preventDefault();
}

function showTab(name) {
  for (const tab of ["trajectories", "curves"]) {
    $(tab).hidden = tab !== name;
    $(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
  }
  if (name === "trajectories") draw();
  if (name === "curves" && !$("curves").firstChild) {
    const named = index.runs.map((panels, i) => [panels, index.sources[i]]).filter(([panels]) => panels.length);
    const made = joinedPanels(named.map(([panels]) => panels), named.map(([, source]) => seen(source)));
    $("curves").replaceChildren(...made.map((panel) => chart(...panel)));
    if (!made.length) $("curves").append(element("p", "nothing", "There are no results of iterations here."));
  }
}

function listen() {
  for (const [name, options] of [["outcome", OUTCOMES], ["order", ORDERS], ["colour", COLOURS]]) {
    for (const [value, option] of Object.entries(options)) $(name).append(new Option(option.label || option[0], value));
    $(name).addEventListener("change", (event) => set(name, event.target.value));
  }
  $("context").addEventListener("change", (event) => set("context", event.target.checked));
  $("find").addEventListener("input", (event) => set("find", event.target.value));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("keys-button").addEventListener("click", () => {
    $("keys").hidden = !$("keys").hidden;
    $("keys-button").setAttribute("aria-expanded", String(!$("keys").hidden));
    draw();
  });
  $("list").addEventListener("scroll", () => requestAnimationFrame(draw));
  $("list").addEventListener("click", (event) => {
    const clicked = event.target.closest(".row");
    if (clicked) select(Number(clicked.id.slice(3)));
  });
  $("detail").addEventListener("pointerover", (event) => event.target.place && showValues(event.target));
  for (const tab of ["trajectories", "curves"]) $(`tab-${tab}`).addEventListener("click", () => showTab(tab));
  document.addEventListener("keydown", onKey);
  new ResizeObserver(draw).observe($("list"));
}

async function begin() {
  document.title = $("title").textContent = seen(document.title);
  index = await unpack("index");
  texts = new Map(index.texts);
  read();
  listen();
  showTab("trajectories");
  filter();
  if (!all.length) showTab("curves");
  $("list").focus();
  document.documentElement.dataset.ready = "yes";
}

begin();
