"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== false && value !== undefined) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== "" && child !== undefined));
    return element;
  };

  // The results of this page as a file.
  const download = byId("download");
  download.hidden = false;
  download.addEventListener("click", () => {
    const link = make("a", { download: "results.json" });
    link.href = URL.createObjectURL(new Blob([byId("results").textContent], { type: "application/json" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // Timeline: point, tap or use the arrow keys; the line below the lanes says what a bar is.
  const plot = byId("plot");
  if (plot) {
    const bars = [...plot.querySelectorAll(".bar")];
    const detail = byId("bar-detail");
    let current = -1;
    const show = (index) => {
      if (index < 0 || index >= bars.length) return;
      if (bars[current]) bars[current].classList.remove("current");
      current = index;
      bars[index].classList.add("current");
      detail.textContent = bars[index].dataset.title;
    };
    const under = (event) => bars.indexOf(event.target.closest(".bar"));
    plot.addEventListener("pointerover", (event) => show(under(event)));
    plot.addEventListener("click", (event) => show(under(event)));
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      show(Math.max(0, Math.min(bars.length - 1, current + step)));
      bars[current].scrollIntoView({ block: "nearest", inline: "nearest" });
    });
  }

  // ---- Questions -------------------------------------------------------------------------------------------------
  const form = byId("filters");
  if (!form) return;

  const PAGE_ROWS = 50;
  const CACHED_CHARACTERS = 48e6;
  const TYPING_MS = 200;
  const BUSY_MS = 12; // The longest that a search keeps the page from answering.
  const facts = JSON.parse(byId("facts").textContent);
  const list = byId("question-list");
  const parsed = new Promise((resolve) => {
    if (document.readyState === "loading") addEventListener("DOMContentLoaded", resolve, { once: true });
    else resolve();
  });

  // Data: base64 of deflated text, in script elements that the browser does not run.
  const bytesOf = (base64) => {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64); // several times faster, in browsers since 2025
    const binary = atob(base64);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  };
  const unpack = async (element) => {
    const stream = new Blob([bytesOf(element.textContent)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).text();
  };

  let index;
  const blocks = parsed.then(() => [...document.getElementsByClassName("question-block")]);
  const cache = new Map(); // block number -> its text, the least recently used first
  let cached = 0;
  const textOf = async (block) => {
    let text = cache.get(block);
    if (text === undefined) {
      text = await unpack((await blocks)[block]);
      if (!cache.has(block)) cached += text.length;
    }
    cache.delete(block);
    cache.set(block, text);
    for (const [oldest, old] of cache) {
      if (cached <= CACHED_CHARACTERS || oldest === block) break;
      cache.delete(oldest);
      cached -= old.length;
    }
    return text;
  };
  const blockOf = (number) => {
    let low = 0;
    let high = index.starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (index.starts[middle] <= number) low = middle;
      else high = middle - 1;
    }
    return low;
  };
  const questionAt = async (number) => {
    const block = blockOf(number);
    return JSON.parse((await textOf(block)).split("\n")[number - index.starts[block]]);
  };

  // Search: every term must occur in some text of the question. The block's JSON is looked at first, which is quick and
  // finds too much (names of fields); only what it finds is parsed and looked at again.
  const termsOf = (words) =>
    (words.toLowerCase().match(/"[^"]+"|\S+/g) || []).map((term) => term.replace(/^"(.+)"$/, "$1"));
  const strings = (value, found) => {
    if (typeof value === "string") found.push(value);
    else if (value && typeof value === "object") for (const part of Object.values(value)) strings(part, found);
    return found;
  };
  const holds = (line, terms) => {
    const text = strings(JSON.parse(line), []).join("\n").toLowerCase();
    return terms.every((term) => text.includes(term));
  };
  const pause = () => new Promise((resolve) => setTimeout(resolve));
  async function* search(numbers, words, signal) {
    const terms = termsOf(words);
    const raw = terms.map((term) => JSON.stringify(term).slice(1, -1));
    const byBlock = new Map();
    for (const number of numbers) {
      const block = blockOf(number);
      if (!byBlock.has(block)) byBlock.set(block, []);
      byBlock.get(block).push(number);
    }
    const order = [...byBlock.keys()];
    let next = order.length ? textOf(order[0]) : undefined;
    let since = performance.now();
    const breathe = async () => {
      if (performance.now() - since < BUSY_MS) return;
      await pause();
      since = performance.now();
    };
    for (let i = 0; i < order.length && !signal.aborted; i++) {
      const text = await next;
      next = i + 1 < order.length ? textOf(order[i + 1]) : undefined;
      const hits = [];
      const low = text.toLowerCase();
      if (raw.every((term) => low.includes(term))) {
        const lines = text.split("\n");
        const lowLines = low.split("\n");
        for (const number of byBlock.get(order[i])) {
          const place = number - index.starts[order[i]];
          if (raw.every((term) => lowLines[place].includes(term)) && holds(lines[place], terms)) hits.push(number);
          await breathe();
        }
      }
      yield { hits, done: (i + 1) / order.length };
      await breathe();
    }
    if (next) await next.catch(() => {});
  }

  // What is shown: the questions that a filter, a skill and a search leave, a page of them at a time.
  let matches = [];
  let first = 0;
  let running;
  const status = byId("shown");
  const bar = byId("search-progress");
  const cancel = byId("cancel");
  const count = (number) => number.toLocaleString("en-US");

  const candidates = () => {
    const mark = form.elements.mark.value;
    const bit = mark === "all" ? 0 : 1 << facts.filters.indexOf(mark);
    const chosen = form.elements.skill ? form.elements.skill.value : "";
    const skill = chosen ? index.skill_names.indexOf(chosen) : -1;
    const found = [];
    for (let i = 0; i < index.ids.length; i++) {
      if ((!bit || index.marks[i] & bit) && (skill < 0 || index.skills[i].includes(skill))) found.push(i);
    }
    return found;
  };

  const apply = async () => {
    if (running) running.abort();
    const own = (running = new AbortController());
    const words = form.elements.words.value.trim();
    const chosen = candidates();
    first = 0;
    if (!termsOf(words).length) {
      matches = chosen;
      finish("");
      return;
    }
    matches = [];
    bar.hidden = cancel.hidden = false;
    bar.value = 0;
    status.textContent = "Searching\u2026";
    let drawn = -1;
    for await (const { hits, done } of search(chosen, words, own.signal)) {
      if (own.signal.aborted) return;
      for (const hit of hits) matches.push(hit);
      bar.value = done;
      const shown = Math.min(matches.length, PAGE_ROWS);
      if (shown !== drawn && first === 0) {
        draw();
        drawn = shown;
      }
    }
    if (!own.signal.aborted) finish("");
  };
  const finish = (words) => {
    bar.hidden = cancel.hidden = true;
    draw();
    status.textContent = `${count(matches.length)} of ${count(index.ids.length)} questions${words}`;
  };
  cancel.addEventListener("click", () => {
    running.abort();
    finish(" found before the search was stopped");
    form.elements.words.focus();
  });

  const draw = () => {
    list.replaceChildren(...matches.slice(first, first + PAGE_ROWS).map(row));
    list.start = first + 1;
    const last = Math.min(first + PAGE_ROWS, matches.length);
    byId("pager").hidden = matches.length <= PAGE_ROWS;
    byId("place").textContent = `${count(first + 1)} to ${count(last)} of ${count(matches.length)}`;
    byId("previous").disabled = first === 0;
    byId("next").disabled = last >= matches.length;
    byId("nothing").hidden = matches.length > 0;
  };
  const turn = (pages) => {
    first = Math.max(0, first + pages * PAGE_ROWS);
    draw();
    list.querySelector("summary").focus({ preventScroll: true });
    form.scrollIntoView({ block: "start" });
  };
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));

  // A row of the list; its body is made when it is opened.
  const has = (number, mark) => Boolean(index.marks[number] & (1 << facts.filters.indexOf(mark)));
  const row = (number) => {
    const gold = index.golds[number];
    const right = has(number, "right");
    const details = make(
      "details",
      {},
      make(
        "summary",
        {},
        make("span", { class: "state" }, has(number, "failed") ? bad("! failed") : tick(gold ? right : null)),
        make("span", { class: "ask" }, index.titles[number]),
        make("span", { class: "got" }, index.answers[number] || "no answer", gold && !right ? ` \u00b7 gold ${gold}` : ""),
      ),
    );
    details.addEventListener("toggle", () => details.open && fill(details, number));
    return make("li", { class: "question", id: `q-${index.ids[number]}` }, details);
  };
  const fill = async (details, number) => {
    if (details.querySelector(".body")) return;
    const body = make("div", { class: "body" }, make("p", { class: "small" }, "Unpacking\u2026"));
    details.append(body);
    const question = await questionAt(number);
    body.replaceChildren(...bodyOf(question));
  };

  const good = (text) => make("span", { class: "good" }, text);
  const bad = (text) => make("span", { class: "bad" }, text);
  const faint = (text) => make("span", { class: "faint" }, text);
  const small = (...children) => make("p", { class: "small" }, ...children);
  const tick = (correct) => (correct === null ? faint("no gold") : correct ? good("\u2713 right") : bad("\u2717 wrong"));
  const swatch = (expert) => {
    const colour = facts.colours[expert];
    if (!colour) return "";
    const mark = make("span", { class: "swatch", "aria-hidden": "true" });
    mark.style.setProperty("--hue", colour[0]);
    mark.style.setProperty("--tone", colour[1]);
    return mark;
  };
  const prose = (text) => make("div", { class: "prose", tabindex: "0" }, text);
  const percent = (share) => `${(100 * share).toFixed(1)}%`;

  const bodyOf = (question) => [
    small(make("a", { href: `#q-${encodeURIComponent(question.id)}` }, make("code", {}, question.id))),
    make("div", { class: "prose" }, question.question),
    ...goldOf(question),
    make("h3", {}, "Why these experts"),
    ...routeOf(question),
    make("h3", {}, "Drafts"),
    ...(question.drafts.length ? question.drafts.map(draftOf) : [small("none")]),
    ...finalOf(question.final),
  ];
  const goldOf = (question) => {
    if (!question.choices.length) return question.gold.length ? [small(`gold: ${question.gold.join(" or ")}`)] : [];
    const choice = (text, i) => {
      const letter = String.fromCharCode(65 + i);
      const isGold = question.gold.includes(letter);
      return make("li", { class: isGold && "gold" }, make("b", {}, letter), text, isGold ? good(" \u2713 gold") : "");
    };
    return [make("ol", { class: "choices" }, question.choices.map(choice))];
  };
  const routeOf = (question) => {
    const skill = (name, i) => {
      const mapped = question.mapped[i];
      const cosine = question.cosines[i];
      if (mapped === undefined || mapped === name) return make("li", {}, name);
      const known = typeof cosine === "number" ? faint(` (${cosine.toFixed(2)})`) : "";
      return make("li", {}, `${name} \u2192 ${mapped}`, known);
    };
    const candidate = (expert, i) => {
      const seats = question.experts.filter((drawn) => drawn === expert).length;
      const seated = seats ? make("strong", {}, ` ${seats} ${seats > 1 ? "seats" : "seat"}`) : "";
      return make("li", {}, swatch(expert), `${expert} ${percent(question.weights[i])}`, seated);
    };
    const skills = question.skills.length ? question.skills.map(skill) : make("li", { class: "faint" }, "no skills found");
    return [
      make("ul", { class: "chips", "aria-label": "Skills" }, skills),
      make("ul", { class: "chips", "aria-label": "Weights" }, question.candidates.map(candidate)),
      ...(question.fallback ? [small(`fallback rule: ${question.fallback}`)] : []),
    ];
  };
  const gradersOf = (graded) => {
    const reading = (answer, correct) => [make("strong", {}, answer || "no answer"), " ", tick(correct)];
    const same = graded.answer === graded.reference_answer && graded.correct === graded.reference_correct;
    if (same) return [...reading(graded.answer, graded.correct), faint(" by both graders")];
    const differ = graded.correct !== graded.reference_correct;
    return [
      ...reading(graded.answer, graded.correct),
      faint(" ours, "),
      ...reading(graded.reference_answer, graded.reference_correct),
      faint(" released grader"),
      differ ? make("strong", { class: "differ" }, " \u2260 they disagree") : "",
    ];
  };
  const noticeOf = (graded) => {
    if (graded.truncated) return faint(" (cut off)");
    return graded.unparsed ? faint(" (unreadable)") : "";
  };
  const draftOf = (draft) =>
    make(
      "details",
      { class: "draft" },
      make(
        "summary",
        {},
        swatch(draft.expert),
        `${draft.expert}${draft.sample ? `, sample ${draft.sample}` : ""}: `,
        draft.failure ? bad(`! failed, ${draft.failure}`) : gradersOf(draft),
        noticeOf(draft),
      ),
      prose(draft.text),
    );
  const finalOf = (final) => [
    make("h3", {}, "Final answer"),
    small(final.skipped ? `no aggregator was asked: ${final.skipped}` : `aggregated by ${final.aggregator}`),
    make("p", {}, final.failure ? bad(`! failed, ${final.failure}`) : gradersOf(final), noticeOf(final)),
    ...(final.text ? [prose(final.text)] : []),
  ];

  // A link to a question finds, shows and opens it.
  const follow = () => {
    if (!location.hash.startsWith("#q-")) return;
    const wanted = decodeURIComponent(location.hash.slice(1));
    const number = index.ids.indexOf(wanted.slice(2));
    if (number < 0) return;
    let place = matches.indexOf(number);
    if (place < 0) {
      form.reset();
      if (running) running.abort();
      matches = candidates();
      finish("");
      place = number;
    }
    first = place - (place % PAGE_ROWS);
    draw();
    const details = byId(wanted).querySelector("details");
    details.open = true;
    details.scrollIntoView({ block: "start" });
    details.querySelector("summary").focus({ preventScroll: true });
  };

  let typed;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    clearTimeout(typed);
    if (event.target.name === "words") typed = setTimeout(apply, TYPING_MS);
    else apply();
  });
  byId("toggle").addEventListener("click", () => {
    const all = [...list.querySelectorAll(".question > details")];
    const open = all.some((details) => !details.open);
    for (const details of all) details.open = open;
  });
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll(".question > details[open] .draft")) details.open = true;
  });
  unpack(byId("question-index")).then((text) => {
    index = JSON.parse(text);
    byId("unavailable").hidden = true;
    form.hidden = false;
    form.reset();
    matches = candidates();
    finish("");
    addEventListener("hashchange", follow);
    follow();
  });
})();
