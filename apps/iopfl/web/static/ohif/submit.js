// Sending the mask that is shown, with the person's corrections, to the label server.

import { writeNrrd } from './nrrd.js';
import { Refused, request } from './server.js';
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
  const params = {
    label_info: labelmap.task.labels.map(({ name, value }) => ({ name, idx: value })),
    model: labelmap.answeredBy || labelmap.task.name,
    client_id: whoami(),
    ...(labelmap.answer ? { origin: { ...labelmap.answer, edited: labelmap.isEdited } } : {}),
  };
  const body = new FormData();
  body.append('params', JSON.stringify(params));
  body.append('label', await writeNrrd(labelmap.grid, sent), 'label.nrrd');
  const answer = await (await request('PUT', '/datastore/label', { query: { image: labelmap.series }, body })).json();
  // What was drawn while it was on its way is not in it.
  const now = labelmap.read();
  const isSame = now.every((value, index) => value === sent[index]);
  Object.assign(labelmap, { isEdited: !isSame, isSubmitted: isSame });
  const version = answer.version ? ` as version ${answer.version}` : '';
  update({ labelmap, done: `Saved${version}. The next training uses it.` });
}
