// What the server said about a mask, in the words of the start page (page.js).

import { make, section } from './elements.js';

const KINDS = {
  routed: 'routed', global: 'the global model', personalized: "this site's personalized model",
  local: "this site's own training", average: 'the average of the bank',
};
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const small = (text) => make('p', {}, make('small', {}, text));

function describeQuality(quality, evidence) {
  if (quality == null) return small('No quality score: it takes a pass of every expert. Tick "quality" under Options / Configurations, or run the routed model.');
  const isLow = quality < evidence;
  return make('div', {},
    make('p', {}, make('span', { className: 'big' }, quality.toFixed(2)), ' quality score'),
    make('p', { className: isLow ? 'verdict is-low' : 'verdict' }, isLow ? 'The experts disagree: check this mask.' : 'The experts mostly agree. Look at every slice all the same.'),
    small('How well the experts agree on this image, 0 to 1. It needs no label; a low score asks for a closer look, a high one is no proof.'));
}

function describeWeights(weights) {
  if (!weights.length) return null;
  const even = 1 / weights.length;
  const reach = Math.max(2 * even, ...weights.map(([, share]) => share));
  const rows = weights.map(([name, share]) => {
    const fill = make('div', { className: 'fill' });
    fill.style.width = `${(100 * share) / reach}%`;
    const mark = make('div', { className: 'mark' });
    mark.style.left = `${(100 * even) / reach}%`;
    const words = make('span', { className: 'row' }, make('span', {}, name), make('span', {}, percent(share)));
    return make('li', {}, words, make('div', { className: 'track', ariaHidden: 'true' }, fill, mark));
  });
  return section('Whose knowledge made this mask', make('ul', { className: 'bars' }, ...rows), small(`The mark is the uniform average, ${percent(even)}.`));
}

/** Volume and long axis of each label, or pixels of a photograph. */
function describeSizes(sizes) {
  if (!sizes.length) return null;
  const say = ({ volume_ml: volume, long_axis_mm: axis, pixels, long_axis_pixels: reach }) =>
    volume == null ? `${pixels} pixels, ${reach.toFixed(0)} across` : `${volume.toFixed(2)} mL, ${axis.toFixed(1)} mm`;
  const rows = sizes.flatMap(([name, size]) => [make('dt', {}, name), make('dd', {}, say(size))]);
  return section('Size as computed', make('dl', {}, ...rows), small('Volume, and the long axis in one slice. They do not follow what you draw.'));
}

/** Elements that say where a mask comes from and how far to trust it; `evidence`: quality below which the experts disagree. */
export function describeAnswer(answer, evidence) {
  if (!answer) return [small('No mask yet: choose a model above and run it, or draw one.')];
  const facts = [['Answered by', KINDS[answer.model] ?? answer.model], ['Bank version', answer.bank], ['From file to mask', `${answer.seconds.toFixed(1)} s`]];
  if (answer.shortened) facts.push(['Fewer passes', answer.shortened]);
  const list = make('dl', {}, ...facts.flatMap(([name, value]) => [make('dt', {}, name), make('dd', {}, value)]));
  const warning = answer.warning ? make('p', { className: 'verdict is-low', role: 'alert' }, answer.warning) : null;
  return [warning, section('This mask', describeQuality(answer.quality, evidence), list), describeSizes(Object.entries(answer.measurements ?? {})), describeWeights(Object.entries(answer.routing_weights ?? {}))].filter(Boolean);
}
