// What the card shows, in one place; whoever changes it tells everybody.

const listeners = new Set();

export const state = {
  info: null, // of /info/
  tasks: [], // of /iopfl/status
  user: null, // {name, roles}; null = nobody has to sign in here
  isSignedOut: false, // the session ended while the page was open
  labelmap: null, // what is being looked at, see labelmaps.js
  overlay: null, // a segmentation of the PACS that lies over the images, see segs.js
  outside: '', // why the images are none of the task's
  work: '', // what is going on
  stop: null, // ends that, where it can be ended
  problem: '', // what went wrong
  done: '', // what went well
  training: '', // where a training is
};

export function update(changes) {
  Object.assign(state, changes);
  for (const listener of listeners) listener(state);
}

export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Do something and show what became of it: `work` while it lasts, then a problem if there is one. */
export async function attempt(work, action) {
  update({ work, problem: '', done: '' });
  try {
    return await action();
  } catch (problem) {
    console.error(problem);
    update({ problem: problem.message });
    return undefined;
  } finally {
    update({ work: '' });
  }
}
