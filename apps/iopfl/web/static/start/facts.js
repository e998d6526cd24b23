// What is said beside a mask: whose knowledge made it, how far to trust it, and how much of each label there is.

import { make, makeBars, small, swatch } from "../common/elements.js";
import { describeKind, percent, QUALITY_MEANING } from "../common/words.js";
import { dice, find, findTask, MODELS, server } from "./state.js";

/** Whose knowledge it is where one model answered. @type {Record<string, string>} */
const WHOSE = {
  global: "every inside site, by the federation's one model",
  average: "every expert of the bank, each with the same weight",
};

/** @param {API.Answer} answer */
export function showKnowledge({ model, params }) {
  const weights = Object.entries(params.routing_weights ?? {});
  const box = find("knowledge");
  box.replaceChildren(make("h2", {}, "Whose knowledge made this mask"));
  if (weights.length) {
    const even = percent(1 / weights.length);
    box.append(
      makeBars(weights, compare),
      small(
        `An expert counts by its agreement with the others on this image. The mark, and the number in brackets, compare with the uniform average (${even}).`,
      ),
    );
    return;
  }
  const own = `${server.status.site ?? "this site"}: ${describeKind(params.model)}`;
  box.append(make("p", {}, WHOSE[params.model] ?? own));
  if (params.reason && model === "site") box.append(small(params.reason));
  if (params.left_out) box.append(small(`Left out of the series: ${params.left_out.join("; ")}`));
}

/**
 * @param {number} share
 * @param {number} even
 */
function compare(share, even) {
  const away = 100 * (share - even);
  return `${percent(share)} (${away < 0 ? "−" : "+"}${Math.abs(away).toFixed(1)})`;
}

/** @param {API.Answer} answer */
export function showResult({ task, params }) {
  const { warning, quality } = params;
  const facts = listFacts(params).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  const parts = warning ? [make("p", { className: "verdict", role: "alert" }, warning)] : [];
  if (quality == null) parts.push(make("h2", {}, "This answer"));
  else parts.push(...describeQuality(quality, findTask(task)?.evidence ?? 0));
  find("result").replaceChildren(...parts, make("dl", { className: "facts" }, ...facts));
}

/**
 * @param {number} quality
 * @param {number} evidence
 */
function describeQuality(quality, evidence) {
  const words = "The experts disagree on this image, so the global model alone answered: check this mask.";
  return [
    make("h2", {}, "Quality score"),
    make("p", { className: "big" }, quality.toFixed(2)),
    ...(quality < evidence ? [make("p", { className: "verdict" }, words)] : []),
    small(QUALITY_MEANING),
  ];
}

/**
 * @param {API.AnswerParams} params
 * @returns {[name: string, value: string][]}
 */
function listFacts({ model, zooms = [], share, shortened, seconds, bank }) {
  /** @type {[string, string | null | undefined][]} */
  const all = [
    ["Answered by", describeKind(model)],
    ["Seen at", zooms.length > 1 ? zooms.map((zoom) => `${zoom} ×`).join(" and ") : null],
    ["Image's own statistics", share == null ? null : `${Math.round(100 * share)} %`],
    ["Fewer passes", shortened],
    ["From file to mask", `${seconds.toFixed(1)} s`],
    ["Bank version", bank],
  ];
  return all.flatMap(([name, value]) => (value == null ? [] : [[name, value]]));
}

/**
 * How much of each label there is, one column for each model.
 * @param {API.Answer[]} answers of one image
 */
export function showLabels(answers) {
  const [{ labels, reference }] = answers;
  /**
   * @param {(Node | string)[]} head
   * @param {(answer: API.Answer) => string} read
   */
  const row = (head, read) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, ...head),
      ...answers.map((answer) => make("td", { className: "number" }, read(answer))),
    );
  const sizes = labels.flatMap(({ name, color, unit, long_axis_unit: axis }, index) => [
    row([swatch(color), `${name}, ${unit}`], (answer) => answer.labels[index].amount.toFixed(1)),
    row([`long axis, ${axis}`], (answer) => answer.labels[index].long_axis.toFixed(1)),
  ]);
  const scores = Object.keys(reference.dice).map((region) =>
    row([swatch("", "dashed"), `${region}, Dice with the clinician's label`], (answer) =>
      dice(answer.reference.dice[region]),
    ),
  );
  const heads = ["", ...answers.map(({ model }) => MODELS[model][0])].map((text, index) =>
    make("th", { scope: "col", className: index ? "number" : "" }, text),
  );
  const head = make("thead", {}, make("tr", {}, ...heads));
  find("labels").replaceChildren(make("table", {}, head, make("tbody", {}, ...sizes, ...scores)));
  if (reference.problem) {
    const words = `This image's label cannot be compared: ${reference.problem}`;
    find("labels").append(make("p", { className: "soft" }, words));
  }
}
