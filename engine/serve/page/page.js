const $ = (id) => document.getElementById(id);
const make = (name, props = {}, ...children) => {
  const made = document.createElement(name);
  Object.assign(made, props);
  made.append(...children);
  return made;
};

// What is kept in this browser. A browser may refuse to keep anything; then it lasts as long as the page.
const kept = {
  read(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(name)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  write(name, value) {
    try {
      localStorage.setItem(name, JSON.stringify(value));
    } catch (error) {
      showError(`This browser keeps nothing more: ${error.message}`);
    }
  },
};

const FIELDS = ["temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "penalty_decay", "max_tokens", "seed"];
const conversations = kept.read("conversations", []);
let current = null;
let underway = null;
let key = kept.read("key", null);

const showError = (text) => ($("error").textContent = text);
const tell = (text) => ($("told").textContent = text);

// Requests, with the key if there is one, which is asked for where the server wants one.
async function ask(path, options = {}) {
  for (;;) {
    const headers = { ...options.headers };
    if (key) headers.Authorization = `Bearer ${key}`;
    const answer = await fetch(path, { ...options, headers });
    if (answer.status !== 401) return answer;
    const why = key ? "The key is not known here." : "Requests here need one.";
    if (!(await askForKey(why))) throw new Error("no key was given");
  }
}

let asking = null;
function askForKey(why) {
  asking ??= new Promise((settle) => {
    const dialog = $("ask-key");
    $("key-why").textContent = why;
    dialog.returnValue = "";
    dialog.onclose = () => {
      asking = null;
      const given = dialog.returnValue === "ok" && $("key").value;
      $("key").value = "";
      if (given) {
        key = given;
        kept.write("key", $("keep-key").checked ? key : null);
      }
      settle(Boolean(given));
    };
    dialog.showModal();
  });
  return asking;
}

async function failure(answer) {
  const text = await answer.text();
  try {
    return new Error(JSON.parse(text).error.message);
  } catch {
    return new Error(`${answer.status} ${answer.statusText} ${text.slice(0, 200)}`);
  }
}

async function json(path, options) {
  const answer = await ask(path, options);
  if (!answer.ok) throw await failure(answer);
  return answer.json();
}

// The list. Another tab may have added to what is kept or taken from it: only one conversation is changed there.
function keep(conversation, isGone = false) {
  const all = kept.read("conversations", []);
  const at = all.findIndex((one) => one.id === conversation.id);
  all.splice(at < 0 ? all.length : at, at < 0 ? 0 : 1, ...(isGone ? [] : [conversation]));
  kept.write("conversations", all);
}

window.addEventListener("storage", (event) => {
  if (event.key !== "conversations") return;
  const all = kept.read("conversations", []);
  conversations.push(...all.filter((one) => !conversations.some((known) => known.id === one.id)));
  showList();
});

function begin(session) {
  const conversation = { id: crypto.randomUUID?.() ?? String(Math.random()), messages: [], settings: {} };
  if (session) conversation.session = session;
  return conversation;
}

const titleOf = (conversation) => conversation.session ?? conversation.messages[0]?.content.slice(0, 60) ?? "New conversation";

function showList() {
  const entry = (conversation) => {
    const open = make("button", { type: "button", onclick: () => show(conversation) }, titleOf(conversation));
    if (conversation === current) open.setAttribute("aria-current", "true");
    const remove = make("button", { type: "button", onclick: () => forget(conversation) }, "×");
    remove.setAttribute("aria-label", `Delete ${titleOf(conversation)}`);
    return make("li", {}, open, remove);
  };
  const own = conversations.filter((one) => !one.session);
  $("conversations").replaceChildren(...own.toReversed().map(entry));
}

function forget(conversation) {
  if (conversation === current) stop();
  const at = conversations.indexOf(conversation);
  if (at >= 0) conversations.splice(at, 1);
  keep(conversation, true);
  if (conversation === current) show(conversations.at(-1) ?? begin());
  else showList();
}

// Those of the model that is chosen: each has its own.
async function showSessions() {
  const model = `?model=${encodeURIComponent($("model").value)}`;
  const found = (await json(`/v1/sessions${model}`)).data ?? [];
  const entry = ({ id, name = id }) => {
    const open = () => show(conversations.find((one) => one.session === name) ?? begin(name));
    const remove = async () => {
      await json(`/v1/sessions/${encodeURIComponent(name)}${model}`, { method: "DELETE" });
      const known = conversations.find((one) => one.session === name);
      if (known) forget(known);
      await showSessions();
    };
    const button = make("button", { type: "button", onclick: () => remove().catch((e) => showError(e.message)) }, "×");
    button.setAttribute("aria-label", `Delete session ${name}`);
    return make("li", {}, make("button", { type: "button", onclick: open }, name), button);
  };
  const entries = found.map(entry);
  $("sessions").replaceChildren(...(entries.length ? entries : [make("li", {}, "none")]));
}

// Settings belong to a conversation; a new one has those of the last.
function readSettings() {
  const settings = { think: $("think").value, system: $("system").value, model: $("model").value };
  for (const name of FIELDS) settings[name] = $(name).value;
  current.settings = settings;
  kept.write("settings", settings);
}

function showSettings() {
  const settings = { ...kept.read("settings", {}), ...current.settings };
  for (const name of [...FIELDS, "system"]) $(name).value = settings[name] ?? "";
  $("think").value = settings.think ?? "off";
  if ([...$("model").options].some((option) => option.value === settings.model)) $("model").value = settings.model;
}

// Messages.
const isNearEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;
const toEnd = () => ($("log").scrollTop = $("log").scrollHeight);

function show(conversation) {
  if (conversation !== current) stop();
  current = conversation;
  showError("");
  showSettings();
  showList();
  $("log").replaceChildren(...conversation.messages.map((message, at) => article(message, at)));
  toEnd();
  toggleList(false);
}

function article(message, at) {
  const isUser = message.role === "user";
  const made = make("article", { className: message.role }, make("h3", {}, isUser ? "You" : "Model"));
  made.append(make("div", { className: "text" }), make("p", { className: "facts" }), make("div", { className: "tools" }));
  fill(made, message);
  const tools = made.querySelector(".tools");
  const tool = (label, work) => tools.append(make("button", { type: "button", onclick: work }, label));
  if (!current.session) {
    if (isUser) tool("Edit", () => edit(made, at));
    else tool("Regenerate", () => regenerate(at));
  }
  if (!isUser) tool("Copy", () => navigator.clipboard?.writeText(message.content));
  return made;
}

function fill(made, message) {
  const text = made.querySelector(".text");
  if (message.role === "user") text.textContent = message.content;
  else text.replaceChildren(...markdown(message.content));
  let thought = made.querySelector(".thought");
  if (message.thought) {
    if (!thought) {
      thought = make("details", { className: "thought" }, make("summary", {}, "Thought"), make("div"));
      text.before(thought);
    }
    thought.lastChild.textContent = message.thought;
  }
  made.querySelector(".facts").textContent = message.facts ?? "";
}

function edit(made, at) {
  const message = current.messages[at];
  const area = make("textarea", { value: message.content, rows: 4 });
  area.setAttribute("aria-label", "Edited message");
  const again = () => {
    if (underway) return;
    current.messages.length = at;
    show(current);
    send(area.value);
  };
  const tools = make("div", { className: "tools" });
  tools.append(
    make("button", { type: "button", onclick: again }, "Send edited"),
    make("button", { type: "button", onclick: () => show(current) }, "Cancel"),
  );
  made.replaceChildren(made.querySelector("h3"), area, tools);
  area.focus();
}

function regenerate(at) {
  if (underway) return;
  const { content } = current.messages[at - 1];
  current.messages.length = at - 1;
  show(current);
  send(content);
}

const stop = () => underway?.abort();

function requestOf(conversation) {
  const { settings, messages } = conversation;
  const request = { stream: true, stream_options: { include_usage: true }, think: settings.think };
  if (settings.model) request.model = settings.model;
  for (const name of FIELDS) if (settings[name] !== "" && settings[name] !== undefined) request[name] = Number(settings[name]);
  const system = settings.system?.trim() ? [{ role: "system", content: settings.system }] : [];
  const said = messages.map(({ role, content }) => ({ role, content }));
  // The state of a session has read what was said before.
  if (conversation.session) request.session = conversation.session;
  request.messages = conversation.session ? [...(said.length > 1 ? [] : system), said.at(-1)] : [...system, ...said];
  return request;
}

async function send(content) {
  if (underway || !content.trim()) return;
  const conversation = current;
  readSettings();
  showError("");
  if (!conversations.includes(conversation)) conversations.push(conversation);
  conversation.messages.push({ role: "user", content });
  const request = requestOf(conversation);
  const message = { role: "assistant", content: "" };
  const question = article(conversation.messages.at(-1), conversation.messages.length - 1);
  conversation.messages.push(message);
  const made = article(message, conversation.messages.length - 1);
  $("log").append(question, made);
  $("log").setAttribute("aria-busy", "true");
  toEnd();
  showList();
  underway = new AbortController();
  busy(true);
  const clock = { begin: performance.now(), first: 0, last: 0 };
  let usage = null;
  let failed = "";
  // At most one change of the page for each of its frames, however fast tokens come.
  let waiting = false;
  const refresh = () => {
    waiting = false;
    const follows = isNearEnd();
    fill(made, message);
    if (follows) toEnd();
  };
  try {
    const answer = await ask("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request),
      signal: underway.signal,
    });
    if (!answer.ok) throw await failure(answer);
    for await (const event of events(answer.body)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const delta = event.choices?.[0]?.delta ?? {};
      if (!delta.content && !delta.reasoning_content) continue;
      clock.last = performance.now();
      clock.first ||= clock.last;
      message.content += delta.content ?? "";
      if (delta.reasoning_content) message.thought = (message.thought ?? "") + delta.reasoning_content;
      if (!waiting) requestAnimationFrame(refresh);
      waiting = true;
    }
  } catch (error) {
    if (error.name !== "AbortError") failed = error.message;
  }
  const stopped = underway.signal.aborted;
  underway = null;
  message.facts = facts(clock, usage, stopped);
  if (failed && !message.content && !message.thought) {
    // What could not be asked can be asked again.
    conversation.messages.splice(-2);
    if (conversation === current) {
      question.remove();
      made.remove();
      $("message").value ||= content;
    }
  }
  keep(conversation);
  busy(false);
  if (conversation === current) {
    refresh();
    $("log").setAttribute("aria-busy", "false");
    if (failed) showError(failed);
    else tell(stopped ? "Stopped." : "The answer is complete.");
  }
  showList();
  if (conversation.session) showSessions().catch(() => {});
}

function facts(clock, usage, stopped) {
  const told = [];
  if (clock.first) told.push(`${Math.round(clock.first - clock.begin)} ms to the first token`);
  if (usage) {
    const seconds = (clock.last - clock.first) / 1000;
    const n = usage.completion_tokens;
    told.push(`${n} tokens${seconds > 0 && n > 1 ? `, ${((n - 1) / seconds).toFixed(1)} a second` : ""}`);
    const known = usage.prompt_tokens_details?.cached_tokens ?? 0;
    told.push(`${usage.prompt_tokens - known} of ${usage.prompt_tokens} prompt tokens read, ${known} known`);
  }
  if (stopped) told.push("stopped");
  return told.join(" · ");
}

// The JSON of server-sent events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line.trim() !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  if (is) tell("The model answers.");
}

function toggleList(open = !$("list").classList.contains("open")) {
  $("list").classList.toggle("open", open);
  $("toggle-list").setAttribute("aria-expanded", String(open));
}

$("form").onsubmit = (event) => {
  event.preventDefault();
  if (underway) return;
  const content = $("message").value;
  $("message").value = "";
  send(content);
};
$("message").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
$("stop").onclick = stop;
$("new").onclick = () => {
  show(begin());
  $("message").focus();
};
$("toggle-list").onclick = () => toggleList();
$("settings").onchange = readSettings;
$("model").onchange = () => showSessions().catch((error) => showError(error.message));
// What there is of an answer when the page goes.
window.addEventListener("pagehide", () => underway && keep(current));

// Tabs, by arrow keys as well.
const tabs = ["chat", "server"];
function choose(name) {
  for (const one of tabs) {
    $(`tab-${one}`).setAttribute("aria-selected", String(one === name));
    $(`tab-${one}`).tabIndex = one === name ? 0 : -1;
    $(`view-${one}`).hidden = one !== name;
  }
  watchServer(name === "server");
}
for (const name of tabs) {
  $(`tab-${name}`).onclick = () => choose(name);
  $(`tab-${name}`).onkeydown = (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = tabs[1 - tabs.indexOf(name)];
    choose(other);
    $(`tab-${other}`).focus();
  };
}

async function start() {
  show(conversations.at(-1) ?? begin());
  const models = (await json("/v1/models")).data;
  $("model").replaceChildren(...models.map(({ id }) => make("option", { value: id }, id)));
  showSettings();
  await showSessions();
}
start().catch((error) => showError(error.message));
