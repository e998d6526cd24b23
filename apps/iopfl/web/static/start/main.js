// The start page: choose an image and a model, see the mask and whose knowledge made it.

import { make } from "../common/elements.js";
import { getJson, Refused, SIGNED_OUT } from "../common/server.js";
import { showServer } from "./bank.js";
import { firstImage, markImage, showImages } from "./images.js";
import { showPacs } from "./pacs.js";
import { find, findInput, findSelect, isModel, MODELS, server, state, tell } from "./state.js";
import { show } from "./viewer.js";

async function start() {
  try {
    await ask();
  } catch (problem) {
    return tell(problem);
  }
  tell(null);
  readAddress();
  showServer();
  showControls();
  listImages();
  if (!state.task) return tell(new Refused("This server has no task: start it with a model bank."));
  if (!server.images.length) {
    return tell(new Refused("There is no image in this server's datastore yet: add one, then reload this page."));
  }
  return show();
}

/** Ask the server what it has. */
async function ask() {
  /** @type {Promise<API.User>} */
  const who = getJson("iopfl/me");
  /** @type {Promise<API.Labels>} */
  const labels = getJson("iopfl/labels");
  const pacs = Promise.all([labels, who]).then(([about, me]) => showPacs(about, me)); // also where the images cannot be listed
  const [status, { images }, me] = await Promise.all([getJson("iopfl/status"), getJson("iopfl/images"), who, pacs]);
  server.status = status;
  server.images = images;
  find("who").hidden = !me.name;
  find("account").textContent = me.name;
}

/** What the page's address asks for, as far as there is such a thing. */
function readAddress() {
  const { tasks } = server.status;
  const asked = new URLSearchParams(location.search);
  const [task, model, beside, slice] = ["task", "model", "beside", "slice"].map((key) => asked.get(key));
  state.task = tasks.some(({ name }) => name === task) ? (task ?? "") : (tasks[0]?.name ?? "");
  state.image = asked.get("image") || firstImage();
  if (model && isModel(model)) state.model = model;
  if (beside !== null) state.beside = isModel(beside) ? beside : "";
  if (slice !== null) state.slice = Number(slice);
}

function showControls() {
  const { tasks, models } = server.status;
  find("task").replaceChildren(...tasks.map(({ name }) => make("option", { value: name }, name)));
  findSelect("task").value = state.task;
  find("task-box").hidden = tasks.length < 2;
  find("models").replaceChildren(...models.map(makeModelChoice));
  const others = models.map((model) => make("option", { value: model }, MODELS[model][0]));
  find("beside").replaceChildren(make("option", { value: "" }, "nothing"), ...others);
  findSelect("beside").value = state.beside;
}

/** @param {API.ModelName} model */
function makeModelChoice(model) {
  const [name, meaning] = MODELS[model];
  const onchange = () => change({ model });
  const checked = model === state.model;
  const input = make("input", { type: "radio", name: "model", value: model, checked, onchange });
  return make("label", { title: meaning }, input, make("span", {}, name));
}

const listImages = () => showImages((image) => change({ image, slice: null }));

/** @param {Partial<typeof state>} values */
function change(values) {
  Object.assign(state, values);
  if ("task" in values) listImages();
  if ("image" in values) markImage();
  show();
}

window.addEventListener(SIGNED_OUT, () => {
  location.assign(`iopfl/signin?next=${encodeURIComponent(location.pathname + location.search)}`);
});
findInput("filter").oninput = listImages;
findSelect("task").onchange = () => change({ task: findSelect("task").value, slice: null });
findSelect("beside").onchange = () => {
  const { value } = findSelect("beside");
  change({ beside: isModel(value) ? value : "" });
};
start();
