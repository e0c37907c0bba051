"use strict";
/* Text and tokens as elements. Whatever is shown goes in as text, never as HTML. */

const MOST_CHARACTERS = 20000;
const MOST_TOKENS = 2000;

// Characters that would not be seen, or that turn others around: named instead. U+200D stays, emoji are made with it.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200c\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;

function seen(text) {
  return text.replace(UNSEEN, (c) => {
    const code = c.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return code === 0x7f ? "\u2421" : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

/* A text, at first as much of it as is shown at once. */
function textBlock(text, name) {
  const block = element("pre", name, seen(text.slice(0, MOST_CHARACTERS)));
  more(block, text.length, MOST_CHARACTERS, "characters", (from, to) => block.append(seen(text.slice(from, to))));
  return block;
}

/* A button for what is left, ten times as much with every press. */
function more(block, total, shown, what, add) {
  if (total <= shown) return;
  const button = element("button", "chip", `show more: ${(total - shown).toLocaleString("en")} of ${total.toLocaleString("en")} ${what} are left`);
  button.type = "button";
  button.addEventListener("click", () => {
    const next = Math.min(total, shown * 10);
    button.remove();
    add(shown, next);
    more(block, total, next, what, add);
  });
  block.append(button);
}

function numbers(packed, Kind) {
  if (packed === undefined) return null;
  if (typeof packed !== "string") return packed;
  const text = atob(packed);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Kind(bytes.buffer);
}

/* Arrays in place of packed bytes, once. */
function unpackTurn(turn) {
  for (const name of ["prompt", "sampled"]) turn[name] = numbers(turn[name], Int32Array) || new Int32Array();
  for (const name of ["logp", "updated", "advantage"]) turn[name] = numbers(turn[name], Float32Array);
  return turn;
}

// Nine digits tell every float32 from its neighbours.
const exact = (value) => (value === undefined || value === null || Number.isNaN(value) ? "unknown" : String(Number(value.toPrecision(9))));

const COLOURS = {
  logp: { label: "log-probability", of: (t, i) => t.logp && -t.logp[i] / 6, legend: "no colour 0, full −6 nats", plain: true },
  ratio: {
    label: "ratio", legend: "after the update: green above 1, red below, full at e^±0.4",
    of: (t, i) => t.logp && t.updated && (t.updated[i] - t.logp[i]) / 0.4,
  },
  advantage: { label: "advantage", of: (t, i) => t.advantage && t.advantage[i] / 2, legend: "green above 0, red below, full at ±2" },
};

function paint(span, turn, i, colour) {
  const value = COLOURS[colour].of(turn, i);
  const alpha = value === null || Number.isNaN(value) ? 0 : Math.min(1, Math.abs(value)) * 0.75;
  const hue = COLOURS[colour].plain ? "--plain" : value > 0 ? "--up" : "--down";
  span.style.backgroundColor = alpha < 0.005 ? "" : `rgba(var(${hue}), ${alpha.toFixed(3)})`;
}

function piece(texts, id) {
  const text = texts.get(id);
  return text === undefined ? `⟨${id}⟩` : seen(text).replace(/\n/g, "↵\n");
}

/* Spans of ids; each knows its turn and place, which `values` reads. */
function addTokens(block, turn, name, texts, colour) {
  const ids = turn[name];
  const add = (from, to) => {
    const part = document.createDocumentFragment();
    for (let i = from; i < to; i++) {
      const span = element("span", name === "sampled" ? "sampled" : "context", piece(texts, ids[i]));
      span.place = [turn, name, i];
      if (name === "sampled") paint(span, turn, i, colour);
      part.append(span);
    }
    block.append(part);
  };
  const first = Math.min(ids.length, MOST_TOKENS);
  add(0, first);
  more(block, ids.length, first, "tokens", add);
}

/* Everything that is known about one token, exactly. */
function values([turn, name, i], texts) {
  const id = turn[name][i];
  const text = texts.has(id) ? ` ${JSON.stringify(texts.get(id))}` : "";
  if (name === "prompt") return seen(`id ${id}${text} · context: not sampled, no loss`);
  const ratio = turn.logp && turn.updated ? Math.exp(turn.updated[i] - turn.logp[i]) : null;
  const version = turn.versions ? turn.versions[i] : turn.version;
  return seen(
    `id ${id}${text} · log-prob ${exact(turn.logp && turn.logp[i])} · after the update ${exact(turn.updated && turn.updated[i])}` +
      ` · ratio ${exact(ratio)} · advantage ${exact(turn.advantage && turn.advantage[i])} · version ${version ?? "unknown"}`,
  );
}
