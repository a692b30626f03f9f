"use strict";
// One question at a time: reads the endpoint's stream, in which comments (": symoe {...}") tell what happens.

const $ = (id) => document.getElementById(id);
const make = (tag, text = "", name = "") => {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
};
let running = null;

function headers() {
  const key = $("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function loadModels() {
  try {
    const ready = await fetch("readyz");
    $("state").textContent = ready.ok ? "ready" : `not ready: ${(await ready.json()).reason}`;
    const answer = await fetch("v1/models", { headers: headers() });
    if (answer.status === 401) {
      $("access").open = true;
      $("state").textContent = "an API key is needed";
      return;
    }
    if (!answer.ok) return;
    const chosen = $("model").value;
    $("model").replaceChildren(...(await answer.json()).data.map((model) => make("option", model.id)));
    $("model").value = chosen;
    if (!ready.ok) setTimeout(loadModels, 2000);
  } catch {
    $("state").textContent = "the endpoint does not answer";
  }
}

function reset() {
  $("steps").replaceChildren();
  for (const id of ["skills", "experts", "answer", "scores", "usage", "warnings"]) $(id).replaceChildren();
  for (const id of ["why", "error"]) $(id).hidden = true;
  $("work").hidden = $("result").hidden = false;
}

function begin(stage, experts) {
  for (const step of $("steps").children) step.className = "done";
  const seats = [...new Set(experts)].join(", ");
  $("steps").append(make("li", `${stage}: ${seats}`, "now"));
}

function recruited(event) {
  const { skills, experts } = event.recruitment;
  $("skills").replaceChildren(...(skills.length ? skills : ["none named"]).map((skill) => make("span", skill)));
  for (const expert of new Set(experts)) {
    const seats = experts.filter((name) => name === expert).length;
    const box = make("details");
    box.dataset.expert = expert;
    const summary = make("summary", seats > 1 ? `${expert} (${seats} seats) ` : `${expert} `);
    summary.append(make("span", "writes…", "quiet"));
    box.append(summary);
    $("experts").append(box);
  }
}

function drafted(event) {
  const box = [...$("experts").children].find((each) => each.dataset.expert === event.expert);
  if (!box) return;
  const outcome = event.failure ? `failed: ${event.failure}` : `answered after ${event.seconds.toFixed(1)} s`;
  box.querySelector(".quiet").textContent = outcome;
  for (const text of event.texts ?? []) if (text) box.append(make("p", text));
}

function table(id, caption, head, rows) {
  const body = rows.map(([name, ...cells]) => {
    const row = make("tr");
    const title = make("th", name);
    title.scope = "row";
    row.append(title, ...cells);
    return row;
  });
  const top = make("tr");
  for (const [name, kind] of head) {
    const cell = make("th", name, kind);
    cell.scope = "col";
    top.append(cell);
  }
  $(id).replaceChildren(make("caption", caption), top, ...body);
}

function explain(symoe) {
  const seconds = Object.entries(symoe.usage).map(([stage, used]) => [
    stage, make("td", used.prompt_tokens), make("td", used.completion_tokens), make("td", used.seconds.toFixed(2)),
  ]);
  table("usage", "Tokens and seconds by stage", [["stage"], ["prompt"], ["written"], ["seconds"]], seconds);
  if (symoe.recruitment) {
    const { candidates, weights, experts, cosines, mapped, skills, fallback } = symoe.recruitment;
    const rows = [...new Set(mapped)].map((skill) => {
      const cells = candidates.map((expert) => {
        const score = symoe.scores[skill]?.[expert] ?? 0;
        return make("td", (score > 0 ? "+" : "") + score, score > 0 ? "good" : score < 0 ? "bad" : "");
      });
      return [skill, ...cells];
    });
    rows.push(["chance", ...weights.map((weight) => make("td", `${(100 * weight).toFixed(0)} %`))]);
    const renamed = skills.filter((skill, i) => mapped[i] && mapped[i] !== skill)
      .map((skill) => `${skill} was taken for ${mapped[skills.indexOf(skill)]} (cosine ${(cosines[skills.indexOf(skill)] ?? 0).toFixed(2)})`);
    const head = [["skill"], ...candidates.map((expert) => [expert, experts.includes(expert) ? "seated" : ""])];
    table("scores", "Right minus wrong answers on each skill's validation questions; who was drawn is underlined", head, rows);
    const notes = [...renamed, ...(fallback ? [`fallback: ${fallback}`] : []), ...symoe.warnings];
    $("warnings").replaceChildren(...notes.map((note) => make("li", note)));
  }
  $("why").hidden = false;
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}

function take(line) {
  if (line.startsWith(": symoe ")) {
    const event = JSON.parse(line.slice(8));
    if (event.event === "started") begin(event.stage, event.experts);
    else if (event.event === "recruited") recruited(event);
    else if (event.event === "drafted") drafted(event);
  } else if (line === "data: [DONE]") {
    for (const step of $("steps").children) step.className = "done";
    return true;
  } else if (line.startsWith("data: ")) {
    const chunk = JSON.parse(line.slice(6));
    if (chunk.error) throw new Error(chunk.error.message);
    for (const choice of chunk.choices) $("answer").append(choice.delta.content ?? "");
    if (chunk.symoe) explain(chunk.symoe);
  }
  return false;
}

async function ask(question, model) {
  running = new AbortController();
  const answer = await fetch("v1/chat/completions", {
    method: "POST", signal: running.signal, headers: { "content-type": "application/json", ...headers() },
    body: JSON.stringify({ model, stream: true, symoe: { drafts: true }, messages: [{ role: "user", content: question }] }),
  });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", done = false;
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    const lines = (rest + piece.value).split("\n");
    rest = lines.pop();
    for (const line of lines) done = take(line) || done;
  }
  if (!done) throw new Error("the answer broke off");
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) return;
  reset();
  $("send").disabled = true;
  $("stop").hidden = false;
  $("state").textContent = "working";
  try {
    await ask($("question").value, $("model").value);
    $("state").textContent = "done";
  } catch (error) {
    fail(error.name === "AbortError" ? "stopped" : error.message);
    $("state").textContent = "stopped";
  } finally {
    running = null;
    $("send").disabled = false;
    $("stop").hidden = true;
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("key").addEventListener("change", loadModels);
loadModels();
