// Sending the mask that is shown, with the person's corrections, to the label server; and taking a label back.

import { getJson, Refused, request } from "../common/server.js";
import { writeNrrd } from "./nrrd.js";
import { attempt, update } from "./state.js";
import { whoami } from "./user.js";

/** @typedef {import("./labelmaps.js").Labelmap} Labelmap */

let isSubmitting = false;

/**
 * Submit a labelmap once, however often the button is pressed.
 * @param {Labelmap} labelmap
 */
export async function submit(labelmap) {
  if (isSubmitting || labelmap.isSubmitted) return;
  isSubmitting = true;
  try {
    await attempt("Submitting the label…", () => send(labelmap));
  } finally {
    isSubmitting = false;
    update({});
  }
}

/** @param {Labelmap} labelmap */
async function send(labelmap) {
  if (labelmap.isEmpty()) throw new Refused("Nothing is drawn here: run a model or draw first.");
  const sent = labelmap.read();
  const body = new FormData();
  // The values are the task's own: names beside them would be taken for segments in the order of a scene.
  const params = { model: labelmap.answeredBy || labelmap.task.name, client_id: whoami() };
  body.append("params", JSON.stringify(params));
  body.append("label", await writeNrrd(labelmap.grid, sent), "label.nrrd");
  const query = { image: labelmap.series };
  /** @type {{ version: number }} */
  const { version } = await (await request("PUT", "/datastore/label", { query, body })).json();
  // What was drawn while it was on its way is not in it.
  const now = labelmap.read();
  const isSame = now.every((value, index) => value === sent[index]);
  labelmap.isEdited = !isSame;
  labelmap.isSubmitted = isSame;
  const history = await loadHistory(labelmap);
  update({ labelmap, done: describeSaved(history, version) });
}

/** @param {Labelmap} labelmap */
const addressOf = ({ series }) => `/iopfl/labels/${encodeURIComponent(series)}`;

/**
 * What is known of the labels of these images.
 * @param {Labelmap} labelmap
 * @returns {Promise<API.History>}
 */
export async function loadHistory(labelmap) {
  const history = await getJson(addressOf(labelmap));
  labelmap.history = history;
  update({});
  return history;
}

/**
 * @param {API.History} history
 * @param {number} version
 */
function describeSaved({ versions, final, rule }, version) {
  const own = versions.find((one) => one.version === version) ?? versions[versions.length - 1];
  const place = own.is_stored === false ? ". The PACS has not taken it yet: it is offered again until it does" : "";
  const use =
    final === own.version ? "The next training uses it." : `The final label is version ${final} (rule: ${rule}).`;
  return `Saved as version ${own.version}${place}. ${use}`;
}

/**
 * Which label these images have, in a line; '' = none.
 * @param {API.History | null} history
 */
export function describeHistory(history) {
  const final = history?.versions.find((one) => one.version === history.final);
  if (!final) return "";
  const when = new Date(final.when).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  return `Label of these images: version ${final.version}${final.annotator ? ` by ${final.annotator}` : ""}, ${when}`;
}

/**
 * Whether the person's own newest label counts, and can be taken back.
 * @param {API.History | null} history
 */
export const canTakeBack = (history) =>
  Boolean(history?.versions.some((one) => one.is_current && one.annotator === whoami()));

/** @param {Labelmap} labelmap */
export const takeBack = (labelmap) =>
  attempt("Taking your label back…", async () => {
    const body = new Blob([JSON.stringify({ client_id: whoami() })], { type: "application/json" });
    await request("POST", `${addressOf(labelmap)}/undo`, { body });
    await loadHistory(labelmap);
    labelmap.isSubmitted = false;
    update({ labelmap, done: "Your label was taken back. What is drawn here stays." });
  });
