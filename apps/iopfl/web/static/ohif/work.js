// How far an answer is while OHIF waits for it, and stopping it.

import { getJson, request } from "../common/server.js";
import { describeWork } from "../common/words.js";
import { update } from "./state.js";

const MILLISECONDS = 1000;

/**
 * Show how far the answer of a model for an image is, and offer to stop it, until `promise` is settled.
 * @template Result
 * @param {string} model
 * @param {string} image
 * @param {Promise<Result>} promise
 */
export async function follow(model, image, promise) {
  let isOver = false;
  const timer = setInterval(async () => {
    /** @type {API.Work[]} */
    const all = await getJson("/iopfl/work").catch(() => []);
    const found = all.find((one) => one.yours && one.task === model && one.image === image);
    if (!found || isOver) return;
    const stop = () =>
      request("DELETE", `/iopfl/work/${found.id}`).catch((problem) => update({ problem: problem.message }));
    update({ work: `${model}: ${describeWork(found)}`, stop });
  }, MILLISECONDS);
  try {
    return await promise;
  } finally {
    isOver = true;
    clearInterval(timer);
    update({ stop: null });
  }
}
