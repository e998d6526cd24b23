// The server's tasks: their labels, which of them a series is of, and which is at hand.

import { getJson } from "../common/server.js";
import { state } from "./state.js";

/** @typedef {import("./state.js").Task} Task */

/**
 * The values of a model's labels; those of a list are numbered from 1.
 * @param {string[] | Record<string, number>} labels
 * @returns {[label: string, value: number][]}
 */
const valuesOf = (labels) =>
  Array.isArray(labels) ? labels.map((label, index) => [label, index + 1]) : Object.entries(labels ?? {});

/**
 * The server's description in the form in which the shipped tabs read it.
 * @param {API.Info} info
 */
export function describeForTabs(info) {
  const models = Object.keys(info.models).filter((name) => info.models[name].type === "segmentation");
  const values = models.map((name) => ({ name, pairs: valuesOf(info.models[name].labels) }));
  /**
   * @template Value
   * @param {(pairs: [label: string, value: number][]) => Value} read
   */
  const byModel = (read) => Object.fromEntries(values.map(({ name, pairs }) => [name, read(pairs)]));
  return {
    models,
    data: info,
    initialSegs: {},
    labels: [...new Set(values.flatMap(({ pairs }) => pairs.map(([label]) => label)))].sort(),
    modelLabelToIdxMap: byModel((pairs) => Object.fromEntries(pairs)),
    modelIdxToLabelMap: byModel((pairs) => Object.fromEntries(pairs.map(([label, value]) => [value, label]))),
    modelLabelNames: byModel((pairs) => pairs.map(([label]) => label).sort()),
    modelLabelIndices: byModel((pairs) => pairs.map(([, value]) => value).sort((a, b) => a - b)),
  };
}

/**
 * The tasks with their labels' values and colors, from both descriptions of the server.
 * @param {API.Info} info
 * @param {API.Status} status
 * @returns {Task[]}
 */
export const describeTasks = (info, status) =>
  status.tasks
    .filter((task) => info.models[task.name])
    .map(({ name, modality, evidence, labels }) => {
      const values = Object.fromEntries(valuesOf(info.models[name].labels));
      const found = labels.map((label) => ({ ...label, value: values[label.name] }));
      return { name, modality, evidence, labels: found.sort((a, b) => a.value - b.value) };
    });

/** @type {Map<string, Record<string, string>>} series -> task -> why the series is none of the task's */
const reasons = new Map();

/**
 * @param {OHIF.DisplaySet} displaySet
 * @returns {Promise<Record<string, string>>}
 */
export async function findReasons({ SeriesInstanceUID: image }) {
  const known = reasons.get(image);
  if (known) return known;
  /** @type {{ not_of: Record<string, string> } | null} */
  const found = await getJson("/iopfl/image", { query: { image } }).catch(() => null); // not listed yet, or the server is away
  if (!found) return {};
  reasons.set(image, found.not_of);
  return found.not_of;
}

/**
 * The task at hand if it is one for these images, else one that is.
 * @param {OHIF.DisplaySet} displaySet
 */
export async function choose(displaySet) {
  const notOf = await findReasons(displaySet);
  const all = state.labelmap ? [state.labelmap.task, ...state.tasks] : state.tasks;
  const ofModality = all.filter((task) => task.modality === displaySet.Modality);
  return ofModality.find((task) => !notOf[task.name]) ?? ofModality[0] ?? state.tasks[0];
}

/**
 * @param {Task} task
 * @param {string} reason
 */
export const sayOutside = (task, reason) => `This series is outside task ${task.name}: ${reason}.`;

/**
 * The task that a model of the server is for.
 * @param {string} model
 */
export const findTask = (model) =>
  state.tasks.find((task) => model === task.name || model === `${task.name}_routed`) ?? state.tasks[0];
