// What the start page and OHIF say alike.

/** Which model answered, as `params.model` of an answer names it. @type {Record<string, string>} */
const KINDS = {
  routed: "routed",
  global: "the global model",
  personalized: "this site's personalized model",
  local: "this site's own training",
  average: "the average of the bank",
};

/** @param {string} kind */
export const describeKind = (kind) => KINDS[kind] ?? kind;

export const QUALITY_MEANING =
  "How well the experts agree on this image, 0 to 1. It needs no label; a low score asks for a closer look, a high one is no proof.";

/** @param {number} share of 1 */
export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** @param {number} seconds */
const duration = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`);

/**
 * How far an answer is that is being computed.
 * @param {API.Work} work
 */
export function describeWork({ passes, done, percent: share, elapsed, expected }) {
  if (!passes) return `waiting for its turn, or reading the image, ${duration(elapsed)} so far`;
  const inAll = expected == null ? "" : `, about ${duration(expected)} in all`;
  return `${done} of ${passes} passes (${Math.floor(share)} %), ${duration(elapsed)} so far${inAll}`;
}
