"use strict";

const element = (id) => document.getElementById(id);
const log = element("log");
const input = element("input");
const send = element("send");
const KEPT = ["system", "temperature", "top_p", "max_tokens"];

let messages = [];
let running = null;
let template = true;

function tell(text, bad = false) {
  element("status").textContent = text;
  element("status").classList.toggle("bad", bad);
}

function headers() {
  const key = element("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function show(role, text) {
  const article = document.createElement("article");
  article.className = role;
  article.tabIndex = 0;
  article.setAttribute("aria-label", role === "user" ? "You" : "Model");
  article.textContent = text;
  log.append(article);
  log.scrollTop = log.scrollHeight;
  return article;
}

function grow() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

/** The JSON objects of a stream of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    for (let end; (end = held.indexOf("\n\n")) >= 0; held = held.slice(end + 2)) {
      for (const line of held.slice(0, end).split("\n")) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  }
}

function request() {
  const common = {
    stream: true,
    stream_options: { include_usage: true },
    temperature: Number(element("temperature").value),
    top_p: Number(element("top_p").value),
    max_tokens: Math.max(1, Math.round(Number(element("max_tokens").value))),
  };
  const system = element("system").value.trim();
  if (template) {
    const first = system ? [{ role: "system", content: system }] : [];
    return ["v1/chat/completions", { ...common, messages: [...first, ...messages] }];
  }
  // A model that was never taught to converse goes on writing.
  const prompt = (system ? `${system}\n\n` : "") + messages.map((m) => m.content).join("");
  return ["v1/completions", { ...common, prompt }];
}

async function answer() {
  running = new AbortController();
  send.textContent = "Stop";
  tell("…");
  const article = show("assistant", "");
  const begun = performance.now();
  let text = "";
  let tokens = null;
  let finish = "";
  const mine = messages;
  const own = running;
  try {
    const [address, body] = request();
    const response = await fetch(address, {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: own.signal,
    });
    if (!response.ok) {
      const problem = await response.json().catch(() => null);
      throw new Error(problem?.error?.message ?? `status ${response.status}`);
    }
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) tokens = event.usage.completion_tokens;
      const choice = event.choices[0];
      if (!choice) continue;
      finish = choice.finish_reason ?? finish;
      text += choice.delta ? choice.delta.content ?? "" : choice.text;
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      article.textContent = text;
      if (atEnd) log.scrollTop = log.scrollHeight;
    }
    const seconds = (performance.now() - begun) / 1000;
    const cut = finish === "length" ? " · cut off at the most tokens" : "";
    tell(tokens === null ? "" : `${tokens} tokens, ${(tokens / seconds).toFixed(1)} a second${cut}`);
  } catch (error) {
    if (mine !== messages) return;
    if (error.name === "AbortError") tell("stopped");
    else tell(error.message, true);
  }
  if (mine !== messages) return;
  if (text) messages.push({ role: "assistant", content: text });
  else {
    article.remove();
    // What got no answer goes back to where it can be sent again.
    const last = messages.pop();
    log.lastElementChild?.remove();
    if (last && !input.value) { input.value = last.content; grow(); }
  }
  running = null;
  send.textContent = "Send";
  input.focus();
}

function submit() {
  if (running) { running.abort(); return; }
  const text = input.value;
  if (!text.trim()) return;
  messages.push({ role: "user", content: text });
  show("user", text);
  input.value = "";
  grow();
  answer();
}

function restart() {
  running?.abort();
  running = null;
  send.textContent = "Send";
  messages = [];
  log.replaceChildren();
  tell("");
  input.focus();
}

/** Takes the last message back for editing. */
function edit() {
  let last;
  while ((last = messages.pop())) {
    log.lastElementChild?.remove();
    if (last.role === "user") break;
  }
  if (last) { input.value = last.content; grow(); }
}

element("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
element("new").addEventListener("click", restart);
input.addEventListener("input", grow);
input.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); submit(); }
  if (event.key === "ArrowUp" && !input.value && !running) { event.preventDefault(); edit(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { if (running) running.abort(); else input.focus(); }
  if (event.altKey && event.code === "KeyN") { event.preventDefault(); restart(); }
  if (event.altKey && event.code === "KeyS") {
    event.preventDefault();
    element("settings").open = !element("settings").open;
    if (element("settings").open) element("system").focus();
  }
});
for (const id of KEPT) {
  const kept = localStorage.getItem(`sharp.${id}`);
  if (kept !== null) element(id).value = kept;
  element(id).addEventListener("change", () => localStorage.setItem(`sharp.${id}`, element(id).value));
}
element("key").value = sessionStorage.getItem("sharp.key") ?? "";
element("key").addEventListener("change", () => sessionStorage.setItem("sharp.key", element("key").value));

fetch("health").then((response) => response.json()).then((health) => {
  element("model").textContent = health.model ?? health.status;
  template = health.chat !== false;
  if (!template) tell("This model has no chat template: it goes on writing what you begin.");
}).catch(() => tell("the server does not answer", true));
