// The start page: choose an image and a model, see the mask and whose knowledge made it.

const MODELS = {
  routed: ["Routed", "mixes all experts of the bank for this image alone"],
  site: ["This site's", "what this site answers with by default"],
  global: ["Global", "the federation's one model"],
  average: ["Average", "all experts of the bank with equal weight"],
};
const KINDS = {
  routed: "routed", global: "the global model", personalized: "this site's personalized model",
  local: "this site's own training", average: "the average of the bank",
};
const find = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const dice = (value) => (value == null ? "–" : value.toFixed(3));
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

const state = { task: "", image: "", model: "routed", beside: "global", slice: null, reference: false, heat: false };
let status = null;
let images = [];
let shown = 0; // number of the newest request: what arrives for an older one is dropped

/** Make an element; text is never read as HTML. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child != null));
  return element;
}

class Refused extends Error {
  constructor(message, code) { super(message); this.code = code; }
}

async function load(path, parameters = {}, options = {}) {
  const query = new URLSearchParams(parameters).toString();
  let response;
  try {
    response = await fetch(`iopfl/${path}${query ? `?${query}` : ""}`, options);
  } catch {
    throw new Refused("The label server does not answer. Is it still running, and is this computer connected to it?", 0);
  }
  if (response.ok) return response;
  if (response.status === 401) location.assign(`iopfl/signin?next=${encodeURIComponent(location.pathname + location.search)}`);
  const body = await response.json().catch(() => ({}));
  const detail = typeof body.detail === "string" ? body.detail : "no reason given";
  const openings = { 401: "Please sign in", 403: "This account may not do that", 503: "The server is busy" };
  throw new Refused(`${openings[response.status] ?? "The server could not do that"}: ${detail}`, response.status);
}
const loadJson = async (...what) => (await load(...what)).json();
let asking = new AbortController(); // ends what is being asked for
let pictures = []; // addresses of what is shown, given back when another image is

async function loadPicture(...what) {
  const address = URL.createObjectURL(await (await load(...what)).blob());
  pictures.push(address);
  return address;
}

function tell(problem) {
  find("problem").hidden = !problem;
  find("problem").textContent = problem ? problem.message : "";
  if (problem && !(problem instanceof Refused)) throw problem;
}

// ---- what there is ----

async function start() {
  try {
    let me;
    const who = loadJson("me");
    const pacs = Promise.all([loadJson("labels"), who]).then(showPacs); // also where the images cannot be listed
    [status, { images }, me] = await Promise.all([loadJson("status"), loadJson("images"), who, pacs]);
    find("who").hidden = !me.name;
    find("who").firstElementChild.textContent = me.name;
  } catch (problem) {
    return tell(problem);
  }
  tell(null);
  const asked = new URLSearchParams(location.search);
  for (const key of ["task", "image", "model", "beside"]) if (asked.has(key)) state[key] = asked.get(key);
  if (asked.has("slice")) state.slice = Number(asked.get("slice"));
  if (!status.tasks.some((task) => task.name === state.task)) state.task = status.tasks[0]?.name ?? "";
  if (!(state.model in MODELS)) state.model = "routed";
  state.image ||= (images.find(isTasks) ?? images[0])?.id ?? "";
  showServer();
  showControls();
  showImages();
  if (!state.task) return tell(new Refused("This server has no task: start it with a model bank.", 0));
  if (!images.length) return tell(new Refused("There is no image in this server's datastore yet: add one, then reload this page.", 0));
  return show();
}

function showServer() {
  const where = status.site ? `Site ${status.site}` : "An outside site: it took no part in training";
  find("where").textContent = where;
  find("tasks").replaceChildren(...status.tasks.map(describeTask));
}

function describeTask(task) {
  const box = make("article", { className: "task" }, make("h3", {}, task.name, " ", make("span", { className: "soft" }, task.description)));
  if (task.error) box.append(make("p", { className: "problem" }, task.error));
  box.append(...(task.federations ?? []).map(describeRound));
  if (!task.entries) return box;
  const { kind, reason, metrics } = task.choice;
  const scores = Object.entries(metrics ?? {}).map(([name, value]) => `${name} ${dice(value)}`).join(", ");
  box.append(make("p", {},
    "Asked for ", make("code", {}, task.name), ", this server answers with ", make("strong", {}, KINDS[kind] ?? kind),
    ` (${reason}${scores ? `; validation Dice: ${scores}` : ""}). Asked for `, make("code", {}, `${task.name}_routed`),
    ", it mixes all experts below anew for each image."));
  const rows = task.entries.map((entry) => make("tr", {},
    make("th", { scope: "row" }, entry.name), make("td", {}, entry.role === "global" ? "global model" : "personalized model"),
    make("td", { className: "number" }, String(entry.round_index)), make("td", { className: "number" }, String(entry.samples)),
    make("td", { className: "number" }, dice(entry.metrics.dice)), make("td", { className: "number" }, dice(entry.metrics.dice_global))));
  const heads = ["Expert", "Role", "Round", "Training images", "Validation Dice", "Global model there"];
  const head = make("tr", {}, ...heads.map((text, index) => make("th", { scope: "col", className: index > 1 ? "number" : "" }, text)));
  const caption = make("p", {}, make("small", {}, `Bank version ${task.bank} of federation ${task.federation}, made ${task.created.replace("T", " ").slice(0, 16)} UTC`));
  box.append(caption, make("div", { className: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))));
  return box;
}

function describeRound(last) {
  const done = { training: "training now", answered: "answered", ready: "about to begin", missing: "about to begin" };
  const steps = last.progress?.steps ? `, step ${last.progress.step} of ${last.progress.steps}` : "";
  const what = last.kind === "share" ? "personalized model asked for" : `round ${last.round}`;
  return make("p", {}, make("small", {}, `Federation ${last.federation}, ${what}: ${last.reason ?? done[last.status] ?? last.status}${steps}`));
}

/** How it stands with the PACS, if this server works on one. */
function showPacs([{ pacs, left_out: leftOut, waiting }, me]) {
  if (!pacs) return;
  const list = (summary, lines) => lines.length && make("details", {}, make("summary", {}, summary), make("ul", {}, ...lines.map((line) => make("li", {}, ...[line].flat()))));
  const label = ({ image, version, reason }) => `Series ${image}, version ${version}${reason ? `: ${reason}` : ""}`;
  const mayOffer = me.authentication === "off" || me.roles.some((role) => role.endsWith("admin"));
  const offer = (one) => mayOffer && make("button", {
    type: "button",
    onclick: async ({ target }) => {
      target.disabled = true;
      try {
        const { waiting: left } = await loadJson(`labels/${encodeURIComponent(one.image)}/versions/${one.version}/store`, {}, { method: "POST" });
        if (!left) target.replaceWith("The PACS has it now.");
        else target.before(`Still not: ${left.reason} `);
      } catch (problem) {
        tell(problem);
      }
      target.disabled = false;
    },
  }, "Offer it again");
  const aside = waiting.filter((one) => one.is_set_aside);
  const offered = waiting.filter((one) => !one.is_set_aside);
  const parts = [
    pacs.problem
      ? make("div", { className: "problem" }, make("p", {}, "The PACS does not answer as it should. What is listed here is what it had last."), make("small", {}, pacs.problem))
      : make("p", {}, "The PACS answers."),
    ...(pacs.cannot ?? []).map((line) => make("p", { className: "soft" }, `The PACS ${line}.`)),
    list(`${plural(aside.length, "submitted label")} that the PACS refused: kept on this server, and not offered again until an administrator does`,
      aside.map((one) => [`${label(one)} `, offer(one) || ""])),
    list(`${plural(offered.length, "submitted label")} not in the PACS yet: kept on this server, which offers them again until the PACS takes them`,
      offered.map(label)),
    list(`${leftOut.length} series left out: no images to segment`, leftOut.map(({ image, reason }) => `Series ${image}: ${reason}`)),
  ];
  find("pacs").append(...parts.filter(Boolean));
  find("pacs").hidden = false;
}

function showControls() {
  find("task").replaceChildren(...status.tasks.map((task) => make("option", { value: task.name }, task.name)));
  find("task").value = state.task;
  find("task-box").hidden = status.tasks.length < 2;
  find("models").replaceChildren(...status.models.map((model) => make("label", { title: MODELS[model][1] },
    make("input", { type: "radio", name: "model", value: model, checked: model === state.model, onchange: () => change({ model }) }),
    make("span", {}, MODELS[model][0]))));
  const nothing = make("option", { value: "" }, "nothing");
  find("beside").replaceChildren(nothing, ...status.models.map((model) => make("option", { value: model }, MODELS[model][0])));
  find("beside").value = state.beside;
}

/** Why an image is none of the chosen task's; undefined = it is one, as far as is known. */
const whyNot = (image) => image.not_of?.[state.task];
const isTasks = (image) => !whyNot(image);

/** The task's images first; others are gray, and answered with a warning. */
function showImages() {
  const wanted = find("filter").value.trim().toLowerCase();
  const own = images.filter(isTasks);
  const others = images.filter(whyNot);
  const matching = [...own, ...others].filter((image) => image.id.toLowerCase().includes(wanted));
  const rows = matching.map((image) => {
    const reason = whyNot(image);
    const mark = image.is_labeled ? make("span", { className: "tag" }, "labeled") : null;
    const other = reason ? make("span", { className: "tag" }, `not ${state.task}`) : null;
    const about = { type: "button", className: reason ? "other" : "", title: reason ?? "", onclick: () => change({ image: image.id, slice: null }) };
    const button = make("button", about, make("span", {}, image.id), mark, other);
    button.setAttribute("aria-current", String(image.id === state.image));
    return make("li", {}, button);
  });
  find("images").querySelector("ul").replaceChildren(...rows);
  const count = own.filter((image) => image.is_labeled).length;
  find("count").textContent = `${plural(own.length, "image")}, ${count} labeled${others.length ? `; ${plural(others.length, "other")}, not of this task` : ""}`;
}

// ---- one image ----

function change(values) {
  Object.assign(state, values);
  if ("task" in values) showImages();
  if ("image" in values) {
    for (const button of find("images").querySelectorAll("li button")) {
      button.setAttribute("aria-current", String(button.firstChild.textContent === state.image));
    }
  }
  show();
}

const about = (model) => ({ task: state.task, image: state.image, model });

async function show() {
  const mine = ++shown;
  asking.abort(); // nobody waits any more for what was asked for before
  asking = new AbortController();
  const models = [state.model, ...(state.beside && state.beside !== state.model ? [state.beside] : [])];
  const address = new URLSearchParams({ task: state.task, image: state.image, model: state.model, beside: state.beside });
  history.replaceState(null, "", `?${address}`);
  tell(null);
  find("image-title").textContent = state.image;
  const figures = models.map((model) => {
    const picture = make("img", { alt: "" });
    const figure = make("figure", { className: "busy" }, picture, make("figcaption", {}, make("strong", {}, MODELS[model][0]), ` ${MODELS[model][1]}`));
    return { model, figure, picture, pictures: new Map() };
  });
  pictures.forEach((address) => URL.revokeObjectURL(address));
  pictures = [];
  find("figures").replaceChildren(...figures.map(({ figure }) => figure));
  find("knowledge").replaceChildren();
  find("result").replaceChildren();
  find("labels").replaceChildren();
  try {
    for (const one of figures) {
      work(`Computing: ${MODELS[one.model][0].toLowerCase()}. A first answer takes a few seconds, a volume longer.`);
      watchWork(mine);
      one.answer = await loadJson("answer", about(one.model), { signal: asking.signal });
      if (mine !== shown) return;
      if (one === figures[0]) showAnswer(one.answer, figures);
      await draw(one);
      if (mine !== shown) return;
    }
    showLabels(figures);
    work("");
  } catch (problem) {
    if (mine !== shown) return;
    work("");
    for (const { figure } of figures.filter((one) => !one.picture.src)) figure.remove();
    find("slider").hidden = !figures[0].answer || figures[0].answer.slices < 2;
    tell(problem);
  }
}

function work(text) {
  find("state").textContent = text;
  find("state").classList.toggle("working", Boolean(text));
  find("progress").hidden = true;
}

/** Say how far the answer is, and offer to stop it. */
async function watchWork(mine) {
  for (;;) {
    await new Promise((done) => setTimeout(done, 1000));
    if (mine !== shown || !find("state").classList.contains("working")) return;
    const all = await loadJson("work").catch(() => []);
    const found = all.find((one) => one.yours && one.task === state.task && one.image === state.image);
    if (mine !== shown || !find("state").classList.contains("working")) return;
    find("progress").hidden = !found;
    if (!found) continue;
    const expected = found.expected == null ? "" : `, about ${duration(found.expected)} in all`;
    find("passes").textContent = found.passes
      ? `${found.done} of ${found.passes} passes (${Math.floor(found.percent)} %), ${duration(found.elapsed)} so far${expected}`
      : `waiting for its turn, or reading the image, ${duration(found.elapsed)} so far`;
    find("stop").onclick = () => load(`work/${found.id}`, {}, { method: "DELETE" }).catch(tell);
  }
}

const duration = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`);

async function draw(one) {
  const slice = state.slice ?? one.answer.best_slice;
  const key = `${slice} ${state.reference} ${state.heat}`;
  one.wanted = key;
  if (!one.pictures.has(key)) {
    one.pictures.set(key, loadPicture("overlay.png", { ...about(one.model), slice, reference: state.reference, disagreement: state.heat }, { signal: asking.signal }));
    one.pictures.get(key).catch(() => one.pictures.delete(key));
  }
  const address = await one.pictures.get(key);
  if (one.wanted !== key) return;
  one.picture.src = address;
  one.picture.alt = `${state.image}, slice ${slice + 1} of ${one.answer.slices}, with the mask of the ${one.model} model outlined`;
  one.figure.classList.remove("busy");
}

function showAnswer(answer, figures) {
  const isVolume = answer.slices > 1;
  state.slice = Math.min(state.slice ?? answer.best_slice, answer.slices - 1);
  find("slider").hidden = !isVolume;
  for (const { figure } of figures) {
    if (isVolume) figure.append(make("span", { className: "side left", title: "the patient's right" }, "R"), make("span", { className: "side right", title: "the patient's left" }, "L"));
  }
  const slider = find("slice");
  slider.max = answer.slices - 1;
  slider.value = state.slice;
  const say = () => { find("slice-text").textContent = `${Number(slider.value) + 1} of ${answer.slices}`; };
  say();
  const redraw = () => {
    state.slice = Number(slider.value);
    say();
    const mine = shown;
    for (const one of figures) if (one.answer) draw(one).catch((problem) => mine === shown && tell(problem));
  };
  slider.oninput = redraw;
  find("reference").onchange = () => { state.reference = find("reference").checked; redraw(); };
  offerHeat(answer, figures);
  find("reference-box").hidden = !answer.reference.is_there;
  if (!answer.reference.is_there) state.reference = find("reference").checked = false;
  showKnowledge(answer);
  showResult(answer);
}

/** Where the experts disagree: computed when somebody wants to see it, as each of them segments the whole image. */
function offerHeat(answer, figures) {
  const box = find("heat");
  const experts = status.tasks.find((task) => task.name === answer.task).entries?.length ?? 0;
  box.disabled = experts < 2;
  if (box.disabled) state.heat = box.checked = false;
  find("heat-text").textContent = box.disabled ? "where experts disagree: the bank has one model" : "where experts disagree";
  const explain = () => { find("legend").hidden = !state.heat; };
  find("regions").href = `iopfl/disagreement?${new URLSearchParams({ task: answer.task, image: answer.image })}`;
  explain();
  box.onchange = async () => {
    const mine = shown;
    state.heat = box.checked;
    explain();
    if (state.heat) {
      work("Computing where the experts disagree. Each of them segments the whole image.");
      watchWork(mine);
    }
    try {
      tell(null);
      await Promise.all(figures.filter((one) => one.answer).map(draw));
    } catch (problem) {
      if (mine !== shown) return;
      state.heat = box.checked = false;
      explain();
      tell(problem);
    }
    if (mine === shown) work("");
  };
}

function showKnowledge(answer) {
  const weights = Object.entries(answer.params.routing_weights ?? {});
  const box = find("knowledge");
  box.replaceChildren(make("h2", {}, "Whose knowledge made this mask"));
  if (!weights.length) {
    const kind = answer.params.model;
    const who = { global: "every inside site, by the federation's one model", average: "every expert of the bank, each with the same weight" };
    box.append(make("p", {}, who[kind] ?? `${status.site ?? "this site"}: ${KINDS[kind] ?? kind}`));
    if (answer.params.reason && answer.model === "site") box.append(make("p", {}, make("small", {}, answer.params.reason)));
    if (answer.params.left_out) box.append(make("p", {}, make("small", {}, `Left out of the series: ${answer.params.left_out.join("; ")}`)));
    return;
  }
  const even = 1 / weights.length;
  const reach = Math.max(2 * even, ...weights.map(([, share]) => share));
  const bars = weights.map(([name, share]) => {
    const fill = make("div", { className: "fill" });
    fill.style.width = `${(100 * share) / reach}%`;
    const mark = make("div", { className: "mark" });
    mark.style.left = `${(100 * even) / reach}%`;
    const away = 100 * (share - even);
    const text = `${percent(share)} (${away < 0 ? "−" : "+"}${Math.abs(away).toFixed(1)})`;
    return make("div", {}, make("div", { className: "name" }, make("span", {}, name), make("span", {}, text)), make("div", { className: "track", ariaHidden: "true" }, fill, mark));
  });
  box.append(make("div", { className: "bars" }, ...bars));
  box.append(make("p", {}, make("small", {}, `An expert counts by its agreement with the others on this image. The mark, and the number in brackets, compare with the uniform average (${percent(even)}).`)));
}

function showResult(answer) {
  const { params } = answer;
  const facts = [];
  const fact = (name, value) => { if (value != null) facts.push(make("dt", {}, name), make("dd", {}, value)); };
  fact("Answered by", KINDS[params.model] ?? params.model);
  if (params.zooms?.length > 1) fact("Seen at", params.zooms.map((zoom) => `${zoom} ×`).join(" and "));
  if (params.share != null) fact("Image's own statistics", `${Math.round(100 * params.share)} %`);
  fact("Fewer passes", params.shortened);
  fact("From file to mask", `${params.seconds.toFixed(1)} s`);
  fact("Bank version", params.bank);
  const box = find("result");
  box.replaceChildren(...(params.warning ? [make("p", { className: "verdict", role: "alert" }, params.warning)] : []));
  if (params.quality != null) {
    const { evidence } = status.tasks.find((task) => task.name === answer.task);
    box.append(make("h2", {}, "Quality score"), make("p", { className: "big" }, params.quality.toFixed(2)));
    if (params.quality < evidence) box.append(make("p", { className: "verdict" }, "The experts disagree on this image, so the global model alone answered: check this mask."));
    box.append(
      make("p", {}, make("small", {}, "How well the experts agree on this image, 0 to 1. It needs no label; a low score asks for a closer look, a high one is no proof.")),
    );
  } else {
    box.append(make("h2", {}, "This answer"));
  }
  const list = make("dl", { className: "facts" }, ...facts);
  box.append(list);
}

function showLabels(figures) {
  const answers = figures.map((one) => one.answer);
  const [{ labels, reference }] = answers;
  const row = (head, values) => make("tr", {}, make("th", { scope: "row" }, ...head), ...values.map((value) => make("td", { className: "number" }, value)));
  const rows = labels.flatMap((label, index) => {
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = label.color;
    return [
      row([swatch, `${label.name}, ${label.unit}`], answers.map((answer) => answer.labels[index].amount.toFixed(1))),
      row([`long axis, ${label.long_axis_unit}`], answers.map((answer) => answer.labels[index].long_axis.toFixed(1))),
    ];
  });
  for (const region of Object.keys(reference.dice)) {
    const swatch = make("span", { className: "swatch dashed" });
    rows.push(row([swatch, `${region}, Dice with the clinician's label`], answers.map((answer) => dice(answer.reference.dice[region]))));
  }
  const heads = ["", ...figures.map((one) => MODELS[one.model][0])].map((text, index) => make("th", { scope: "col", className: index ? "number" : "" }, text));
  find("labels").replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)));
  if (reference.problem) find("labels").append(make("p", { className: "soft" }, `This image's label cannot be compared: ${reference.problem}`));
}

// ---- wiring ----

find("filter").oninput = showImages;
find("task").onchange = (event) => change({ task: event.target.value, slice: null });
find("beside").onchange = (event) => change({ beside: event.target.value });
start();
