"use strict";

// The board comes every two seconds from /symbols; between, the last prices come from /live-price. A server that is
// gone is asked again, at first soon and then every few seconds. What isn't recorded is never shown as if it were.

const TITLE = document.title;
const LOOK_MS = 2000, GAP_MS = 100;
const RETRY_MAX_MS = 5000;
const CAUSES = { // as in ingestor/texts.py
  connection: "no connection",
  stall: "connection stalled",
  symbol_mute: "symbol silent",
  refused: "refused by the venue",
  restart: "restarting",
  crash: "recorder crashed",
  backpressure: "recorder too slow",
  disk: "disk refused",
  shutdown: "recorder stopped",
  lost: "trades never came",
  sleep: "computer slept",
  clock: "clock set",
  no_recorder: "no recorder runs",
  no_redis: "no Redis",
};

const ORDERS = { // what a row is sorted by
  symbol: (row) => row.symbol,
  price: (row) => row.last,
  change: changeOf,
  rate: (row) => row.perSecond,
  age: (row) => (row.at === null ? null : -row.at),
  state: (row) => row.element.dataset.state !== "recorded",
};

const byId = (id) => document.getElementById(id);
const rows = new Map(); // symbol → its row on the page and what is shown there
let order = { by: "symbol", rising: true };
let socket = null;
let retryMs = 250;
let gapTimer = 0;
let skewMs = 0; // the server's clock, ahead of ours
let token = sessionStorage.getItem("token");

// What is shown

function rowOf(symbol) {
  if (!rows.has(symbol)) {
    const element = byId("row").content.firstElementChild.cloneNode(true);
    const part = (selector) => element.querySelector(selector);
    part("th a").textContent = part("th").title = symbol;
    if (!token) part("th a").href = `/bars?interval=1m&symbols=${encodeURIComponent(symbol)}`; // a link bears no token
    const row = { symbol, element, price: part(".price"), change: part(".change"), rate: part(".rate"),
      age: part(".age"), line: part("path"), state: part(".state span"), at: null, last: null, first: null, perSecond: 0 };
    rows.set(symbol, row);
    element.hidden = !matches(symbol);
  }
  return rows.get(symbol);
}

/** All rows on the page, in the order that was chosen; what has no value comes last. */
function arrange() {
  const value = ORDERS[order.by];
  const sorted = [...rows.values()].sort((a, b) => {
    const one = value(a), other = value(b);
    if (one === other) return a.symbol < b.symbol ? -1 : 1;
    if (one === null || other === null) return one === null ? 1 : -1;
    return one < other === order.rising ? -1 : 1;
  });
  const there = byId("rows").children;
  if (sorted.some((row, index) => there[index] !== row.element)) byId("rows").append(...sorted.map((row) => row.element));
}

function chooseOrder(button) {
  const by = button.dataset.by;
  order = { by, rising: order.by === by ? !order.rising : by === "symbol" || by === "age" };
  for (const head of document.querySelectorAll("thead th")) head.removeAttribute("aria-sort");
  button.parentElement.setAttribute("aria-sort", order.rising ? "ascending" : "descending");
  arrange();
}

function changeOf(row) {
  return row.first ? row.last / row.first - 1 : null;
}

function showPrice(row, price, at) {
  if (price === null || (row.at !== null && at < row.at)) return;
  if (row.last !== null && price !== row.last) {
    row.price.classList.add("moved");
    requestAnimationFrame(() => requestAnimationFrame(() => row.price.classList.remove("moved")));
  }
  row.last = price;
  row.at = at;
  row.price.textContent = formatPrice(price);
  showChange(row);
}

function showChange(row) {
  const change = changeOf(row);
  const shown = change === null ? 0 : Math.round(change * 10000); // what rounds to nothing has neither sign nor colour
  const sign = shown > 0 ? "+" : shown < 0 ? "−" : "";
  row.change.textContent = change === null ? "" : `${sign}${(Math.abs(shown) / 100).toFixed(2)} %`;
  row.change.dataset.way = shown > 0 ? "up" : shown < 0 ? "down" : "";
}

function showQuote(quote) {
  const row = rowOf(quote.symbol);
  row.first = quote.change === null ? null : quote.price / (1 + quote.change);
  showPrice(row, quote.price, quote.timestamp);
  row.rate.textContent = quote.rate >= 100 ? quote.rate.toFixed(0) : quote.rate.toFixed(1);
  row.perSecond = quote.rate;
  row.line.setAttribute("d", coursePath(quote.course.concat(quote.state === "blind" ? [null] : quote.price ?? [])));
  showState(row, quote.state, quote.cause);
}

function showState(row, state, cause) {
  row.element.dataset.state = state;
  row.state.textContent = state === "blind" ? `blind (${CAUSES[cause] ?? cause})` : state;
}

function showAges() {
  const now = Date.now() + skewMs;
  for (const row of rows.values()) row.age.textContent = row.at === null ? "" : formatAge(Math.max(now - row.at, 0));
}

function showLink(state, text) {
  byId("link").dataset.state = state;
  byId("link").textContent = text;
}

/** The dot is the market's, not this connection's: nobody may take a board that sees nothing for a live one. */
function showBlind(board) {
  const blind = board.symbols.filter((quote) => quote.state === "blind").length;
  const text = `${blind} of ${board.symbols.length} blind`;
  document.title = blind ? `${text} · ${TITLE}` : TITLE;
  if (board.recording === false) showLink("wait", "connected");
  else if (blind) showLink("blind", text);
  else showLink("live", "live");
}

function showTrouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = text === "";
}

/** Nobody tells us anything any more: what stands there is old, and says so. */
function showLost() {
  showLink("lost", "connection lost, trying again…");
  for (const row of rows.values()) {
    row.element.dataset.state = "blind";
    row.state.textContent = "blind (no server)";
  }
}

function formatPrice(price) {
  const digits = Math.abs(price) >= 100 ? 2 : Math.abs(price) >= 1 ? 4 : 6;
  return price.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: digits });
}

function formatAge(ms) {
  const s = ms / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${s.toFixed(0)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  return s < 86400 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;
}

/** A line that breaks where nothing was seen. */
function coursePath(prices) {
  const known = prices.filter((price) => price !== null);
  const low = Math.min(...known), high = Math.max(...known), step = 90 / Math.max(prices.length - 1, 1);
  const y = (price) => (high > low ? 22 - (20 * (price - low)) / (high - low) : 12);
  const point = (price, index) => `${(index * step).toFixed(1)},${y(price).toFixed(1)}`;
  const goesOn = (index) => index > 0 && prices[index - 1] !== null;
  return prices.map((price, index) => (price === null ? "" : `${goesOn(index) ? "L" : "M"}${point(price, index)}`)).join("");
}

function matches(symbol) {
  return symbol.toLowerCase().includes(byId("search").value.trim().toLowerCase());
}

// What comes

async function look() {
  const answer = await fetch("/symbols", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  if (answer.status === 401) {
    askForToken((await answer.json()).error);
    return false;
  }
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  const board = await answer.json();
  skewMs = board.now - Date.now();
  const before = rows.size;
  board.symbols.forEach(showQuote);
  byId("empty").hidden = rows.size > 0;
  showTrouble(board.recording !== false ? "" : "No recorder runs here: nothing is being recorded.");
  if (socket?.readyState === WebSocket.OPEN) showBlind(board);
  if (rows.size > before || order.by !== "symbol") arrange();
  if (rows.size > before && socket?.readyState === WebSocket.OPEN) subscribe();
  return true;
}

function subscribe() {
  if (token) socket.send(JSON.stringify({ action: "authenticate", token }));
  const symbols = [...rows.keys()].slice(0, 1000);
  if (symbols.length) socket.send(JSON.stringify({ action: "subscribe", symbols, mode: "latest", every: "250ms", gaps: true }));
}

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live-price`);
  socket.onopen = () => {
    retryMs = 250;
    showLink("wait", "connected");
    subscribe();
    lookAgain();
  };
  socket.onmessage = (event) => {
    const told = JSON.parse(event.data);
    if (told.event) {
      showState(rowOf(told.symbol), told.state, told.cause);
      clearTimeout(gapTimer);
      gapTimer = setTimeout(lookAgain, GAP_MS); // one look for a gap of all symbols
    } else if (told.symbol) showPrice(rowOf(told.symbol), told.price, told.timestamp);
  };
  socket.onclose = () => {
    showLost();
    retryLater();
  };
}

function retryLater() {
  setTimeout(begin, retryMs);
  retryMs = Math.min(retryMs * 2, RETRY_MAX_MS);
}

/** The board first: without an answer there, there is nobody to connect to. */
async function begin() {
  try {
    if (await look()) connect();
  } catch {
    showLost();
    retryLater();
  }
}

async function lookAgain() {
  if (socket?.readyState !== WebSocket.OPEN || document.hidden) return;
  try {
    await look();
  } catch {
    showTrouble("The server doesn't answer.");
  }
}

function askForToken(reason) {
  token = null;
  sessionStorage.removeItem("token");
  showLink("wait", reason);
  byId("entry").hidden = false;
}

byId("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  sessionStorage.setItem("token", token);
  byId("entry").hidden = true;
  begin();
});
byId("search").addEventListener("input", () => {
  for (const row of rows.values()) row.element.hidden = !matches(row.symbol);
});
for (const button of document.querySelectorAll("thead button")) button.addEventListener("click", () => chooseOrder(button));
setInterval(showAges, 200);
setInterval(lookAgain, LOOK_MS);
begin();
