// What the server said about a mask, in the words of the start page.

import { make, makeBars, small } from "../common/elements.js";
import { describeKind, percent, QUALITY_MEANING } from "../common/words.js";

/**
 * A part of the card, with its heading.
 * @param {string} title
 * @param {(Node | string | null)[]} children
 */
export const section = (title, ...children) => make("section", {}, make("h3", {}, title), ...children);

/**
 * @param {number | null | undefined} quality
 * @param {number} evidence
 */
function describeQuality(quality, evidence) {
  if (quality == null) {
    return small(
      'No quality score: it takes a pass of every expert. Tick "quality" under Options / Configurations, or run the routed model.',
    );
  }
  const isLow = quality < evidence;
  const verdict = isLow
    ? "The experts disagree: check this mask."
    : "The experts mostly agree. Look at every slice all the same.";
  return make(
    "div",
    {},
    make("p", {}, make("span", { className: "big" }, quality.toFixed(2)), " quality score"),
    make("p", { className: isLow ? "verdict is-low" : "verdict" }, verdict),
    small(QUALITY_MEANING),
  );
}

/** @param {[string, number][]} weights */
function describeWeights(weights) {
  if (!weights.length) return null;
  const mark = small(`The mark is the uniform average, ${percent(1 / weights.length)}.`);
  return section("Whose knowledge made this mask", makeBars(weights, percent), mark);
}

/** @param {API.Size} size */
const describeSize = ({ volume_ml: volume, long_axis_mm: axis = 0, pixels, long_axis_pixels: reach = 0 }) =>
  volume == null ? `${pixels} pixels, ${reach.toFixed(0)} across` : `${volume.toFixed(2)} mL, ${axis.toFixed(1)} mm`;

/**
 * Volume and long axis of each label, or pixels of a photograph.
 * @param {[string, API.Size][]} sizes
 */
function describeSizes(sizes) {
  if (!sizes.length) return null;
  const rows = sizes.flatMap(([name, size]) => [make("dt", {}, name), make("dd", {}, describeSize(size))]);
  const note = small("Volume, and the long axis in one slice. They do not follow what you draw.");
  return section("Size as computed", make("dl", {}, ...rows), note);
}

/**
 * Elements that say where a mask comes from and how far to trust it.
 * @param {API.AnswerParams | null} answer
 * @param {number} evidence quality below which the experts disagree
 */
export function describeAnswer(answer, evidence) {
  if (!answer) return [small("No mask yet: choose a model above and run it, or draw one.")];
  const facts = [
    ["Answered by", describeKind(answer.model)],
    ["Bank version", answer.bank],
    ["From file to mask", `${answer.seconds.toFixed(1)} s`],
  ];
  if (answer.shortened) facts.push(["Fewer passes", answer.shortened]);
  const list = make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  const { warning } = answer;
  return [
    warning ? make("p", { className: "verdict is-low", role: "alert" }, warning) : null,
    section("This mask", describeQuality(answer.quality, evidence), list),
    describeSizes(Object.entries(answer.measurements ?? {})),
    describeWeights(Object.entries(answer.routing_weights ?? {})),
  ].filter((part) => part !== null);
}
