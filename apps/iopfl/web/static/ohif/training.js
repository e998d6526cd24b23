// A training that runs: how far it is, for the card and for the shipped panel's bars, until it ends.

import { getJson, Refused, request } from "../common/server.js";
import { update } from "./state.js";

const SECONDS = 2;

let following = false;

/**
 * The last line that is meant for people: those of the log begin with a time in brackets.
 * @param {API.Training} task
 */
function lastLine({ details = [] }) {
  const lines = details.filter((line) => line.trim() && !line.startsWith("["));
  return lines[lines.length - 1] ?? "";
}

/**
 * What a record of GET /train/ means.
 * @param {API.Training} task
 */
function describe(task) {
  const name = task.request?.model ?? "";
  const line = lastLine(task);
  switch (task.status) {
    case "SUBMITTED":
    case "RUNNING":
      return `Training ${name}${line ? `: ${line}` : " is starting"}`;
    case "DONE":
      return `Training ${name} is done${line ? `: ${line}` : ""}. The next answer of ${name} uses it where your labels favor it.`;
    case "STOPPED":
    case "REVOKED":
      return `Training ${name} was stopped. The best epoch so far is kept.`;
    default:
      return `Training ${name} failed: ${line || "the server's log says why"}`;
  }
}

/**
 * The server's description with figures that the shipped bars read as they are meant: they take a training for over when
 * it has a total time, which the one before has until this one's first epoch ends, and one that never was for one that is done.
 * @param {API.Info} info
 * @param {boolean} isRunning
 * @returns {API.Info}
 */
export function withBars(info, isRunning) {
  const stats = Object.entries(info.train_stats ?? {}).map(([name, { total_time: seconds, ...others }]) => [
    name,
    isRunning ? others : { ...others, total_time: seconds || "0" },
  ]);
  return { ...info, train_stats: Object.fromEntries(stats) };
}

/**
 * Start or stop a training; whoever may not is told who may.
 * @param {string} method
 * @param {string} path
 * @param {{ body?: BodyInit }} [options]
 */
export async function orderTraining(method, path, options) {
  try {
    return await request(method, path, options);
  } catch (problem) {
    if (problem.status !== 403) throw problem;
    throw new Refused(
      "Only an administrator of this server may start or stop a training: ask one. What you submit is kept for it.",
      problem.status,
    );
  }
}

/**
 * Say how far the training is, until it ends or the panel is gone; at most one follows it.
 * @param {OHIF.Panel & { isGone: boolean }} panel
 * @param {{ onlyIfRunning?: boolean }} [options]
 */
export async function followTraining(panel, { onlyIfRunning = false } = {}) {
  if (following) return;
  following = true;
  try {
    let isRunning = true;
    for (let first = true; isRunning && !panel.isGone; first = false) {
      /** @type {API.Training} */
      const task = await getJson("/train/");
      isRunning = ["SUBMITTED", "RUNNING"].includes(task.status);
      if (first && onlyIfRunning && !isRunning) return;
      /** @type {API.Info} */
      const info = await getJson("/info/");
      update({ training: describe(task) });
      panel.setState(({ info: shown }) => ({ info: { ...shown, data: withBars(info, isRunning) } }));
      panel.actions.activelearning.current?.setState({ training: isRunning });
      if (isRunning) await new Promise((resolve) => setTimeout(resolve, 1000 * SECONDS));
    }
  } catch (problem) {
    if (problem.status !== 404 || !onlyIfRunning) update({ problem: problem.message });
  } finally {
    following = false;
  }
}
