// What this server answers with: its tasks, their banks, and federations that go on.

import { make, small } from "../common/elements.js";
import { describeKind } from "../common/words.js";
import { dice, find, server } from "./state.js";

export function showServer() {
  const { site, tasks } = server.status;
  find("where").textContent = site ? `Site ${site}` : "An outside site: it took no part in training";
  find("tasks").replaceChildren(...tasks.map(describeTask));
}

/** @param {API.Task} task */
function describeTask(task) {
  const title = make("h3", {}, task.name, " ", make("span", { className: "soft" }, task.description));
  const box = make("article", { className: "task" }, title);
  if (task.error) box.append(make("p", { className: "problem" }, task.error));
  box.append(...(task.federations ?? []).map(describeRound));
  if (task.entries) box.append(describeChoice(task), ...describeBank(task));
  return box;
}

/** @type {Record<string, string>} */
const DONE = {
  training: "training now",
  answered: "answered",
  ready: "about to begin",
  missing: "about to begin",
};

/** @param {API.FederationRound} last */
function describeRound({ federation, kind, round, status, reason, progress }) {
  const steps = progress?.steps ? `, step ${progress.step} of ${progress.steps}` : "";
  const what = kind === "share" ? "personalized model asked for" : `round ${round}`;
  return small(`Federation ${federation}, ${what}: ${reason ?? DONE[status] ?? status}${steps}`);
}

/** @param {API.ServedTask} task */
function describeChoice({ name, choice: { kind, reason, metrics } }) {
  const scores = Object.entries(metrics)
    .map(([model, value]) => `${model} ${dice(value)}`)
    .join(", ");
  return make(
    "p",
    {},
    "Asked for ",
    make("code", {}, name),
    ", this server answers with ",
    make("strong", {}, describeKind(kind)),
    ` (${reason}${scores ? `; validation Dice: ${scores}` : ""}). Asked for `,
    make("code", {}, `${name}_routed`),
    ", it mixes all experts below anew for each image.",
  );
}

const HEADS = ["Expert", "Role", "Round", "Training images", "Validation Dice", "Global model there"];

/** @param {API.ServedTask} task */
function describeBank({ bank, federation, created, entries }) {
  const heads = HEADS.map((text, index) => make("th", { scope: "col", className: index > 1 ? "number" : "" }, text));
  const rows = entries.map((entry) => {
    const numbers = [entry.round_index, entry.samples, dice(entry.metrics.dice), dice(entry.metrics.dice_global)];
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, entry.name),
      make("td", {}, entry.role === "global" ? "global model" : "personalized model"),
      ...numbers.map((text) => make("td", { className: "number" }, String(text))),
    );
  });
  const when = created.replace("T", " ").slice(0, 16);
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
  return [
    small(`Bank version ${bank} of federation ${federation}, made ${when} UTC`),
    make("div", { className: "scroll" }, table),
  ];
}
