// How it stands with the PACS, if this server works on one.

import { make } from "../common/elements.js";
import { request } from "../common/server.js";
import { find, plural, tell } from "./state.js";

/**
 * @param {API.Labels} labels
 * @param {API.User} me
 */
export function showPacs({ pacs, left_out: leftOut = [], waiting = [] }, me) {
  if (!pacs) return;
  const mayOffer = me.authentication === "off" || me.roles.some((role) => role.endsWith("admin"));
  const aside = waiting.filter((one) => one.is_set_aside);
  const offered = waiting.filter((one) => !one.is_set_aside);
  const lists = [
    list(
      `${plural(aside.length, "submitted label")} that the PACS refused: kept on this server, and not offered again until an administrator does`,
      aside.map((one) => (mayOffer ? [`${describeLabel(one)} `, makeOffer(one)] : [describeLabel(one)])),
    ),
    list(
      `${plural(offered.length, "submitted label")} not in the PACS yet: kept on this server, which offers them again until the PACS takes them`,
      offered.map((one) => [describeLabel(one)]),
    ),
    list(
      `${leftOut.length} series left out: no images to segment`,
      leftOut.map(({ image, reason }) => [`Series ${image}: ${reason}`]),
    ),
  ];
  const cannot = (pacs.cannot ?? []).map((line) => make("p", { className: "soft" }, `The PACS ${line}.`));
  find("pacs").append(describePacs(pacs.problem), ...cannot, ...lists.filter((part) => part !== null));
  find("pacs").hidden = false;
}

/** @param {string} problem */
function describePacs(problem) {
  if (!problem) return make("p", {}, "The PACS answers.");
  const words = "The PACS does not answer as it should. What is listed here is what it had last.";
  return make("div", { className: "problem" }, make("p", {}, words), make("small", {}, problem));
}

/**
 * @param {string} summary
 * @param {(Node | string)[][]} lines
 */
function list(summary, lines) {
  if (!lines.length) return null;
  const items = lines.map((line) => make("li", {}, ...line));
  return make("details", {}, make("summary", {}, summary), make("ul", {}, ...items));
}

/** @param {API.Waiting} label */
const describeLabel = ({ image, version, reason }) =>
  `Series ${image}, version ${version}${reason ? `: ${reason}` : ""}`;

/** @param {API.Waiting} label */
function makeOffer({ image, version }) {
  const button = make("button", { type: "button" }, "Offer it again");
  button.onclick = async () => {
    button.disabled = true;
    try {
      const path = `iopfl/labels/${encodeURIComponent(image)}/versions/${version}/store`;
      /** @type {{ waiting: API.Waiting | null }} */
      const { waiting: left } = await (await request("POST", path)).json();
      if (!left) button.replaceWith("The PACS has it now.");
      else button.before(`Still not: ${left.reason} `);
    } catch (problem) {
      tell(problem);
    }
    button.disabled = false;
  };
  return button;
}
