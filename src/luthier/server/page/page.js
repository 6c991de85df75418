"use strict";
// The chat page. Whatever a model writes is put in by textContent: no answer can become markup.

const WORDS = {
  en: {
    model: "Model", beside: "beside", none: "none", new: "New", settings: "Settings", system: "System prompt",
    systemNote: "Empty: each model's own. Side by side, a base model is asked with the tuned one's.",
    temperature: "Temperature", topP: "Top-p", topK: "Top-k (0: all)", maxTokens: "Longest answer, tokens", seed: "Seed (empty: any)",
    thinking: "Thinking", key: "API key of this server", useKey: "Use it", empty: "Ask something. Enter sends, Shift+Enter begins a line, Esc stops.",
    question: "Your message", send: "Send", stop: "Stop", copy: "Copy", copied: "Copied", again: "Again", base: "base",
    tokens: "tokens", perSecond: "tokens/s", thought: "Thought", failed: "The server does not answer.", needsKey: "This server asks for its API key: enter it in the settings.",
    done: "Answer finished.", stopped: "Stopped.", stop_reason: {stop: "", length: "cut at the longest length", cancelled: "stopped"},
  },
  zh: {
    model: "模型", beside: "对比", none: "无", new: "新对话", settings: "设置", system: "系统提示词",
    systemNote: "留空：用各模型自己的。并排对比时，原模型也用调好的模型的系统提示词。",
    temperature: "温度", topP: "Top-p", topK: "Top-k（0：全部）", maxTokens: "回答最长 token 数", seed: "随机种子（留空：任意）",
    thinking: "思考", key: "服务器的 API key", useKey: "使用", empty: "请提问。回车发送，Shift+回车换行，Esc 停止。",
    question: "你的消息", send: "发送", stop: "停止", copy: "复制", copied: "已复制", again: "重新回答", base: "原模型",
    tokens: "token", perSecond: "token/秒", thought: "思考过程", failed: "服务器没有回应。", needsKey: "服务器需要 API key：请在设置中填写。",
    done: "回答完成。", stopped: "已停止。", stop_reason: {stop: "", length: "达到最大长度", cancelled: "已停止"},
  },
};

const $ = (id) => document.getElementById(id);
const keep = {
  get(name) { try { return sessionStorage.getItem(name); } catch { return null; } },
  set(name, value) { try { sessionStorage.setItem(name, value); } catch { /* a private window */ } },
};
let language = keep.get("language") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
let key = keep.get("key") || "";
let models = [];
let turns = []; // {question, answers: [{model, text}]}
let running = null; // an AbortController

const words = () => WORDS[language];

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

function say() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = words()[element.dataset.text];
  $("language").textContent = language === "zh" ? "English" : "中文";
  $("language").lang = language === "zh" ? "en" : "zh-CN";
  $("question").placeholder = words().question;
  listModels();
  for (const turn of turns) for (const answer of turn.answers) answer.show?.();
}

// Models

async function loadModels() {
  try {
    const response = await fetch("/v1/models", {headers: headers()});
    if (response.status === 401) return askForKey();
    models = (await response.json()).data;
  } catch {
    return showEmpty(words().failed);
  }
  showEmpty(words().empty);
  listModels();
  showThinking();
}

function headers() {
  return {"Content-Type": "application/json", ...(key ? {Authorization: `Bearer ${key}`} : {})};
}

function askForKey() {
  $("key-row").hidden = false;
  openSettings(true);
  showEmpty(words().needsKey);
  $("key").focus();
}

function showEmpty(text) {
  $("empty").textContent = text;
}

function listModels() {
  const a = $("model-a"), b = $("model-b");
  const [chosenA, chosenB] = [a.value, b.value];
  const option = (model) => new Option(model.luthier?.base ? `${model.id} (${words().base})` : model.id, model.id);
  a.replaceChildren(...models.map(option));
  b.replaceChildren(new Option(words().none, ""), ...models.map(option));
  const tuned = models.find((model) => !model.luthier?.base) || models[0];
  if (tuned) a.value = models.some((model) => model.id === chosenA) ? chosenA : tuned.id;
  b.value = models.some((model) => model.id === chosenB) ? chosenB : "";
  showSystem();
}

const find = (id) => models.find((model) => model.id === id);

function chosen() {
  return [find($("model-a").value), find($("model-b").value)].filter(Boolean);
}

function ownSystem(model) {
  if (model.luthier?.system) return model.luthier.system;
  return model.luthier?.base ? chosen().find((other) => other.luthier?.system)?.luthier.system : undefined;
}

function showSystem() {
  $("system").placeholder = chosen()[0] ? ownSystem(chosen()[0]) || "" : "";
}

function showThinking() {
  const able = chosen().filter((model) => typeof model.luthier?.thinking === "boolean");
  $("thinking-row").hidden = able.length === 0;
  $("thinking").checked = able.some((model) => model.luthier.thinking);
}

// Asking

function body(model, messages) {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const system = $("system").value || ownSystem(model);
  return {
    model: model.id,
    messages: [...(system ? [{role: "system", content: system}] : []), ...messages],
    stream: true,
    stream_options: {include_usage: true},
    temperature: number("temperature"),
    top_p: number("top-p"),
    top_k: number("top-k"),
    max_tokens: number("max-tokens"),
    seed: number("seed"),
    enable_thinking: typeof model.luthier?.thinking === "boolean" ? $("thinking").checked : undefined,
  };
}

function messagesBefore(turn, side) {
  const messages = [];
  for (const past of turns.slice(0, turns.indexOf(turn))) {
    const answer = past.answers[side] || past.answers[0];
    messages.push({role: "user", content: past.question}, {role: "assistant", content: answer.text});
  }
  return [...messages, {role: "user", content: turn.question}];
}

async function* parts(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    buffer += value;
    const events = buffer.split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      if (event.startsWith("data: ") && event !== "data: [DONE]") yield JSON.parse(event.slice(6));
    }
  }
}

async function ask(answer, messages, signal) {
  const began = performance.now();
  let first = 0;
  try {
    const request = {method: "POST", headers: headers(), signal, body: JSON.stringify(body(answer.model, messages))};
    const response = await fetch("/v1/chat/completions", request);
    if (response.status === 401) askForKey();
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const part of parts(response)) {
      if (part.error) throw new Error(part.error.message);
      const [choice] = part.choices;
      if (choice?.delta.content) {
        first = first || performance.now();
        answer.text += choice.delta.content;
      }
      if (choice?.finish_reason) answer.finish = choice.finish_reason;
      if (part.usage) answer.tokens = part.usage.completion_tokens;
      answer.seconds = (performance.now() - began) / 1000;
      answer.show();
    }
  } catch (error) {
    if (error.name === "AbortError") answer.finish = "cancelled";
    else answer.error = error instanceof TypeError ? words().failed : error.message;
  }
  answer.writing = false;
  answer.show();
}

async function answerAll(turn, answers) {
  running = new AbortController();
  setBusy(true);
  await Promise.all(answers.map((answer) => ask(answer, messagesBefore(turn, turn.answers.indexOf(answer)), running.signal)));
  $("status").textContent = running.signal.aborted ? words().stopped : words().done;
  running = null;
  setBusy(false);
}

function setBusy(busy) {
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  for (const button of document.querySelectorAll(".again")) button.disabled = busy;
}

function send() {
  const question = $("question").value.trim();
  if (!question || running || chosen().length === 0) return;
  $("empty").hidden = true;
  $("question").value = "";
  grow();
  const turn = {question, answers: chosen().map((model) => ({model, text: "", writing: true}))};
  turns.push(turn);
  const row = make("div", "question");
  row.append(make("p", "", question));
  const answers = make("div", turn.answers.length > 1 ? "answers two" : "answers");
  for (const answer of turn.answers) answers.append(card(turn, answer));
  $("talk").append(row, answers);
  $("talk").scrollTop = $("talk").scrollHeight;
  answerAll(turn, turn.answers);
}

// Showing

function card(turn, answer) {
  const box = make("article", "answer");
  const title = make("h2"), text = make("div", "text"), error = make("p", "error"), foot = make("footer");
  const facts = make("span"), copy = make("button"), again = make("button", "again");
  error.setAttribute("role", "alert");
  copy.type = again.type = "button";
  foot.append(facts, copy, again);
  box.append(title, text, error, foot);
  copy.onclick = async () => {
    await navigator.clipboard?.writeText(answer.text);
    $("status").textContent = copy.textContent = words().copied;
  };
  again.onclick = () => {
    if (running) return;
    turns = turns.slice(0, turns.indexOf(turn) + 1);
    while (box.parentElement.nextElementSibling) box.parentElement.nextElementSibling.remove();
    Object.assign(answer, {text: "", error: "", finish: "", tokens: 0, seconds: 0, writing: true});
    answer.show();
    answerAll(turn, [answer]);
  };
  answer.show = () => {
    const atEnd = $("talk").scrollHeight - $("talk").scrollTop - $("talk").clientHeight < 80;
    title.textContent = answer.model.luthier?.base ? `${answer.model.id} (${words().base})` : answer.model.id;
    text.className = answer.writing ? "text writing" : "text";
    text.setAttribute("aria-busy", String(Boolean(answer.writing)));
    text.replaceChildren(...formatted(answer.text));
    error.textContent = answer.error || "";
    error.hidden = !answer.error;
    const speed = answer.tokens ? `${answer.tokens} ${words().tokens} · ${(answer.tokens / answer.seconds).toFixed(1)} ${words().perSecond}` : "";
    facts.textContent = [speed, words().stop_reason[answer.finish]].filter(Boolean).join(" · ");
    copy.textContent = words().copy;
    again.textContent = words().again;
    if (atEnd) $("talk").scrollTop = $("talk").scrollHeight;
  };
  answer.show();
  return box;
}

/* Thinking folded away, fenced code, `code` and **bold**: as elements that are made here, each with its textContent. */
function formatted(text) {
  const thought = /^\s*<think>([\s\S]*?)(<\/think>|$)/.exec(text);
  const nodes = [];
  if (thought?.[1].trim()) {
    const details = make("details");
    details.append(make("summary", "", words().thought), make("div", "", thought[1].trim()));
    nodes.push(details);
  }
  const rest = thought ? text.slice(thought[0].length).trimStart() : text;
  rest.split(/```[^\n`]*\n([\s\S]*?)(?:```\n?|$)/).forEach((part, index) => {
    if (index % 2) {
      const block = make("pre");
      block.tabIndex = 0;
      block.append(make("code", "", part));
      nodes.push(block);
    } else {
      nodes.push(...inline(part));
    }
  });
  return nodes;
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).filter(Boolean).map((part) => {
    if (part.length > 2 && part.startsWith("`")) return make("code", "", part.slice(1, -1));
    if (part.length > 4 && part.startsWith("**")) return make("strong", "", part.slice(2, -2));
    return document.createTextNode(part);
  });
}

// Controls

function openSettings(open) {
  $("panel").hidden = !open;
  $("settings").setAttribute("aria-expanded", String(open));
}

function grow() {
  $("question").style.height = "auto";
  $("question").style.height = `${$("question").scrollHeight + 2}px`;
}

function begin() {
  running?.abort();
  turns = [];
  $("talk").replaceChildren($("empty"));
  $("empty").hidden = false;
  $("question").focus();
}

$("composer").onsubmit = (event) => { event.preventDefault(); send(); };
$("panel").onsubmit = (event) => event.preventDefault();
$("question").oninput = grow;
$("question").onkeydown = (event) => {
  // While an input method composes (Chinese), Enter chooses a word.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
};
document.onkeydown = (event) => { if (event.key === "Escape") running?.abort(); };
$("stop").onclick = () => running?.abort();
$("new").onclick = begin;
$("settings").onclick = () => openSettings($("panel").hidden);
$("model-a").onchange = $("model-b").onchange = () => { showSystem(); showThinking(); };
$("language").onclick = () => { language = language === "zh" ? "en" : "zh"; keep.set("language", language); say(); };
$("use-key").onclick = () => { key = $("key").value; keep.set("key", key); loadModels(); };

say();
loadModels();
