// What the card shows, in one place; whoever changes it tells everybody.

/** @typedef {import("./labelmaps.js").Labelmap} Labelmap */
/** @typedef {{ value: number, name: string, color: string }} Segment a label of a task, or a segment of a SEG */
/** @typedef {{ name: string, modality: string, evidence: number, labels: Segment[] }} Task */
/** @typedef {{ id: string, title: string, segments: Segment[], images: OHIF.ImageSet }} Overlay */

/**
 * @typedef {object} State
 * @property {Task[]} tasks of /iopfl/status, with the values of /info/
 * @property {{ name: string, roles: string[] } | null} user null = nobody has to sign in here
 * @property {boolean} isSignedOut the session ended while the page was open
 * @property {Labelmap | null} labelmap what is being looked at
 * @property {Overlay | null} overlay a segmentation of the PACS that lies over the images, see segs.js
 * @property {string} outside why the images are none of the task's
 * @property {string} work what is going on
 * @property {(() => void) | null} stop ends that, where it can be ended
 * @property {string} problem what went wrong
 * @property {string} done what went well
 * @property {string} training where a training is
 */

/** @type {Set<() => void>} */
const listeners = new Set();

/** @type {State} */
export const state = {
  tasks: [],
  user: null,
  isSignedOut: false,
  labelmap: null,
  overlay: null,
  outside: "",
  work: "",
  stop: null,
  problem: "",
  done: "",
  training: "",
};

/** @param {Partial<State>} changes */
export function update(changes) {
  Object.assign(state, changes);
  for (const listener of listeners) listener();
}

/**
 * @param {() => void} listener
 * @returns {() => void} ends it
 */
export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/**
 * Do something and show what became of it: `work` while it lasts, then a problem if there is one.
 * @template Result
 * @param {string} work
 * @param {() => Result | Promise<Result>} action
 * @returns {Promise<Result | undefined>} undefined = it failed
 */
export async function attempt(work, action) {
  update({ work, problem: "", done: "" });
  try {
    return await action();
  } catch (problem) {
    console.error(problem);
    update({ problem: problem.message });
    return undefined;
  } finally {
    update({ work: "" });
  }
}
