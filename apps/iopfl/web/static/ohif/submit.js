// Sending the mask that is shown, with the person's corrections, to the label server; and taking a label back.

import { writeNrrd } from './nrrd.js';
import { getJson, Refused, request } from './server.js';
import { attempt, update } from './state.js';
import { whoami } from './user.js';

let isSubmitting = false;

/** Submit a labelmap once, however often the button is pressed. */
export async function submit(labelmap) {
  if (isSubmitting || labelmap.isSubmitted) return;
  isSubmitting = true;
  try {
    await attempt('Submitting the label…', () => send(labelmap));
  } finally {
    isSubmitting = false;
    update({});
  }
}

async function send(labelmap) {
  if (labelmap.isEmpty()) throw new Refused('Nothing is drawn here: run a model or draw first.');
  const sent = labelmap.read();
  const body = new FormData();
  body.append('params', JSON.stringify({
    // The values are the task's own: names beside them would be taken for segments in the order of a scene.
    model: labelmap.answeredBy || labelmap.task.name,
    client_id: whoami(),
  }));
  body.append('label', await writeNrrd(labelmap.grid, sent), 'label.nrrd');
  const { version } = await (await request('PUT', '/datastore/label', { query: { image: labelmap.series }, body })).json();
  // What was drawn while it was on its way is not in it.
  const now = labelmap.read();
  const isSame = now.every((value, index) => value === sent[index]);
  Object.assign(labelmap, { isEdited: !isSame, isSubmitted: isSame });
  await loadHistory(labelmap);
  update({ labelmap, done: describeSaved(labelmap.history, version) });
}

/** What is known of the labels of these images. */
export async function loadHistory(labelmap) {
  labelmap.history = await getJson(`/iopfl/labels/${encodeURIComponent(labelmap.series)}`);
  update({});
}

function describeSaved(history, version) {
  const own = history.versions.find((one) => one.version === version) ?? history.versions.at(-1);
  const place = own.is_stored === false ? '. The PACS has not taken it yet: it is offered again until it does' : '';
  const use = history.final === own.version ? 'The next training uses it.' : `The final label is version ${history.final} (rule: ${history.rule}).`;
  return `Saved as version ${own.version}${place}. ${use}`;
}

/** Which label these images have, in a line; '' = none. */
export function describeHistory(history) {
  const final = history?.versions.find((one) => one.version === history.final);
  if (!final) return '';
  const when = new Date(final.when).toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' });
  return `Label of these images: version ${final.version}${final.annotator ? ` by ${final.annotator}` : ''}, ${when}`;
}

/** Whether the person's own newest label counts, and can be taken back. */
export const canTakeBack = (history) => Boolean(history?.versions.some((one) => one.is_current && one.annotator === whoami()));

export const takeBack = (labelmap) => attempt('Taking your label back…', async () => {
  const body = new Blob([JSON.stringify({ client_id: whoami() })], { type: 'application/json' });
  await request('POST', `/iopfl/labels/${encodeURIComponent(labelmap.series)}/undo`, { body });
  await loadHistory(labelmap);
  labelmap.isSubmitted = false;
  update({ labelmap, done: 'Your label was taken back. What is drawn here stays.' });
});
