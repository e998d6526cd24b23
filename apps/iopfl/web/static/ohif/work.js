// How far an answer is while OHIF waits for it, and stopping it.

import { getJson, request } from './server.js';
import { update } from './state.js';

const MILLISECONDS = 1000;
const duration = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`);

/** Show how far the answer of a model for an image is, and offer to stop it, until `promise` is settled. */
export async function follow(model, image, promise) {
  const timer = setInterval(async () => {
    const all = await getJson('/iopfl/work').catch(() => []);
    const found = all.find((one) => one.yours && one.task === model && one.image === image);
    if (!found || isOver) return;
    const expected = found.expected == null ? '' : `, about ${duration(found.expected)} in all`;
    const work = found.passes
      ? `${model}: ${found.done} of ${found.passes} passes (${Math.floor(found.percent)} %), ${duration(found.elapsed)} so far${expected}`
      : `${model}: waiting for its turn, or reading the image, ${duration(found.elapsed)} so far`;
    update({ work, stop: () => request('DELETE', `/iopfl/work/${found.id}`).catch((problem) => update({ problem: problem.message })) });
  }, MILLISECONDS);
  let isOver = false;
  try {
    return await promise;
  } finally {
    isOver = true;
    clearInterval(timer);
    update({ stop: null });
  }
}
