// What the start page is about just now, and its parts by name.

import { Refused } from "../common/server.js";

/** What people may choose from, and what each means. @type {Record<API.ModelName, [name: string, meaning: string]>} */
export const MODELS = {
  routed: ["Routed", "mixes all experts of the bank for this image alone"],
  site: ["This site's", "what this site answers with by default"],
  global: ["Global", "the federation's one model"],
  average: ["Average", "all experts of the bank with equal weight"],
};

/**
 * @param {string} text
 * @returns {text is API.ModelName}
 */
export const isModel = (text) => Object.hasOwn(MODELS, text);

/**
 * What was chosen.
 * @type {{ task: string, image: string, model: API.ModelName, beside: API.ModelName | "", slice: number | null,
 *   reference: boolean, heat: boolean }}
 */
export const state = {
  task: "",
  image: "",
  model: "routed",
  beside: "global",
  slice: null,
  reference: false,
  heat: false,
};

/** What the server has: filled once, as the page is opened. @type {{ status: API.Status, images: API.Image[] }} */
export const server = { status: { site: null, tasks: [], models: [] }, images: [] };

/**
 * A task by its name.
 * @param {string} name
 */
export const findTask = (name) => server.status.tasks.find((task) => task.name === name);

/**
 * A part of the page.
 * @template {HTMLElement} Kind
 * @param {string} id
 * @param {new () => Kind} kind its class
 */
function findAs(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`the page has no ${kind.name} with the id ${id}`);
  return found;
}

/** @param {string} id */
export const find = (id) => findAs(id, HTMLElement);
/** @param {string} id */
export const findInput = (id) => findAs(id, HTMLInputElement);
/** @param {string} id */
export const findSelect = (id) => findAs(id, HTMLSelectElement);
/** @param {string} id */
export const findLink = (id) => findAs(id, HTMLAnchorElement);

/**
 * Say what went wrong; null = nothing does any more.
 * @param {Error | null} problem
 */
export function tell(problem) {
  find("problem").hidden = !problem;
  find("problem").textContent = problem ? problem.message : "";
  if (problem && !(problem instanceof Refused)) throw problem;
}

/** @param {number | null | undefined} value */
export const dice = (value) => (value == null ? "–" : value.toFixed(3));

/**
 * @param {number} count
 * @param {string} word
 */
export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
