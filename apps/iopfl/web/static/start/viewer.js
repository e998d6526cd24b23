// One image: its mask by the chosen model, and by another beside it, slice by slice.

import { make } from "../common/elements.js";
import { getJson, request } from "../common/server.js";
import { describeWork } from "../common/words.js";
import { showKnowledge, showLabels, showResult } from "./facts.js";
import { find, findInput, findLink, findTask, MODELS, state, tell } from "./state.js";

/**
 * @typedef {object} View one model's mask
 * @property {API.ModelName} model
 * @property {HTMLElement} figure
 * @property {HTMLImageElement} picture
 * @property {Map<string, Promise<string>>} pictures what is shown -> its address
 * @property {string} wanted what is to be shown by now
 * @property {API.Answer | null} answer
 */

let shown = 0; // number of the newest request: what arrives for an older one is dropped
let asking = new AbortController(); // ends what is being asked for
/** @type {string[]} addresses of what is shown, given back when another image is */
let addresses = [];

/** @param {API.ModelName} model */
const about = (model) => ({ task: state.task, image: state.image, model });

/** Show the chosen image by the chosen models, one after the other. */
export async function show() {
  const mine = ++shown;
  asking.abort(); // nobody waits any more for what was asked for before
  asking = new AbortController();
  history.replaceState(null, "", `?${new URLSearchParams({ ...about(state.model), beside: state.beside })}`);
  tell(null);
  const views = layOut();
  try {
    for (const view of views) {
      work(`Computing: ${MODELS[view.model][0].toLowerCase()}. A first answer takes a few seconds, a volume longer.`);
      watchWork(mine);
      /** @type {API.Answer} */
      const answer = await getJson("iopfl/answer", { query: about(view.model), signal: asking.signal });
      if (mine !== shown) return;
      view.answer = answer;
      if (view === views[0]) showAnswer(answer, views);
      await draw(view);
      if (mine !== shown) return;
    }
    showLabels(views.flatMap(({ answer }) => answer ?? []));
    work("");
  } catch (problem) {
    if (mine !== shown) return;
    work("");
    for (const { figure } of views.filter((view) => !view.picture.src)) figure.remove();
    find("slider").hidden = (views[0].answer?.slices ?? 0) < 2;
    tell(problem);
  }
}

/**
 * Clear the page for an image; gives the views, which are empty yet.
 * @returns {View[]}
 */
function layOut() {
  addresses.forEach((address) => URL.revokeObjectURL(address));
  addresses = [];
  const models = state.beside && state.beside !== state.model ? [state.model, state.beside] : [state.model];
  const views = models.map((model) => {
    const [name, meaning] = MODELS[model];
    const picture = make("img", { alt: "" });
    const caption = make("figcaption", {}, make("strong", {}, name), ` ${meaning}`);
    const figure = make("figure", { className: "busy" }, picture, caption);
    return { model, figure, picture, pictures: new Map(), wanted: "", answer: null };
  });
  find("image-title").textContent = state.image;
  find("figures").replaceChildren(...views.map(({ figure }) => figure));
  for (const id of ["knowledge", "result", "labels"]) find(id).replaceChildren();
  return views;
}

// ---- what is going on ----

/** @param {string} text "" = nothing */
function work(text) {
  find("state").textContent = text;
  find("state").classList.toggle("working", Boolean(text));
  find("progress").hidden = true;
}

/**
 * Say how far the answer is, and offer to stop it.
 * @param {number} mine
 */
async function watchWork(mine) {
  const isOver = () => mine !== shown || !find("state").classList.contains("working");
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    if (isOver()) return;
    /** @type {API.Work[]} */
    const all = await getJson("iopfl/work").catch(() => []);
    const found = all.find((one) => one.yours && one.task === state.task && one.image === state.image);
    if (isOver()) return;
    find("progress").hidden = !found;
    if (!found) continue;
    find("passes").textContent = describeWork(found);
    find("stop").onclick = () => request("DELETE", `iopfl/work/${found.id}`).catch(tell);
  }
}

// ---- slices ----

/** @param {View} view */
async function draw(view) {
  if (!view.answer) return;
  const slice = state.slice ?? view.answer.best_slice;
  const key = `${slice} ${state.reference} ${state.heat}`;
  view.wanted = key;
  let address = view.pictures.get(key);
  if (!address) {
    address = loadPicture({
      ...about(view.model),
      slice,
      reference: state.reference,
      disagreement: state.heat,
    });
    view.pictures.set(key, address);
    address.catch(() => view.pictures.delete(key));
  }
  const source = await address;
  if (view.wanted !== key) return;
  view.picture.src = source;
  view.picture.alt = `${state.image}, slice ${slice + 1} of ${view.answer.slices}, with the mask of the ${view.model} model outlined`;
  view.figure.classList.remove("busy");
}

/** @param {Record<string, string | number | boolean>} query */
async function loadPicture(query) {
  const answer = await request("GET", "iopfl/overlay.png", { query, signal: asking.signal });
  const address = URL.createObjectURL(await answer.blob());
  addresses.push(address);
  return address;
}

/**
 * @param {API.Answer} answer the first one
 * @param {View[]} views
 */
function showAnswer(answer, views) {
  showSlider(answer, views);
  const redraw = () => {
    const mine = shown;
    for (const view of views) draw(view).catch((problem) => mine === shown && tell(problem));
  };
  const reference = findInput("reference");
  find("reference-box").hidden = !answer.reference.is_there;
  if (!answer.reference.is_there) state.reference = reference.checked = false;
  reference.onchange = () => {
    state.reference = reference.checked;
    redraw();
  };
  const slider = findInput("slice");
  slider.oninput = () => {
    state.slice = Number(slider.value);
    saySlice(answer.slices);
    redraw();
  };
  offerHeat(answer, views);
  showKnowledge(answer);
  showResult(answer);
}

/**
 * @param {API.Answer} answer
 * @param {View[]} views
 */
function showSlider({ slices, best_slice: best }, views) {
  const isVolume = slices > 1;
  state.slice = Math.min(state.slice ?? best, slices - 1);
  find("slider").hidden = !isVolume;
  const slider = findInput("slice");
  slider.max = String(slices - 1);
  slider.value = String(state.slice);
  saySlice(slices);
  if (!isVolume) return;
  for (const { figure } of views) {
    figure.append(
      make("span", { className: "side left", title: "the patient's right" }, "R"),
      make("span", { className: "side right", title: "the patient's left" }, "L"),
    );
  }
}

/** @param {number} slices */
function saySlice(slices) {
  find("slice-text").textContent = `${Number(findInput("slice").value) + 1} of ${slices}`;
}

/**
 * Where the experts disagree: computed when somebody wants to see it, as each of them segments the whole image.
 * @param {API.Answer} answer
 * @param {View[]} views
 */
function offerHeat({ task, image }, views) {
  const box = findInput("heat");
  const experts = findTask(task)?.entries?.length ?? 0;
  box.disabled = experts < 2;
  if (box.disabled) state.heat = box.checked = false;
  find("heat-text").textContent = `where experts disagree${box.disabled ? ": the bank has one model" : ""}`;
  const explain = () => {
    find("legend").hidden = !state.heat;
  };
  findLink("regions").href = `iopfl/disagreement?${new URLSearchParams({ task, image })}`;
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
      await Promise.all(views.map(draw));
    } catch (problem) {
      if (mine !== shown) return;
      state.heat = box.checked = false;
      explain();
      tell(problem);
    }
    if (mine === shown) work("");
  };
}
