// The list of images: those of the chosen task first.

import { make } from "../common/elements.js";
import { find, findInput, plural, server, state } from "./state.js";

/**
 * Why an image is none of the chosen task's; undefined = it is one, as far as is known.
 * @param {API.Image} image
 * @returns {string | undefined}
 */
const whyNot = (image) => image.not_of?.[state.task];

/** The image that is shown where none was asked for; "" = there is none. */
export const firstImage = () => (server.images.find((image) => !whyNot(image)) ?? server.images[0])?.id ?? "";

/**
 * The task's images first; others are gray, and answered with a warning.
 * @param {(image: string) => void} choose
 */
export function showImages(choose) {
  const wanted = findInput("filter").value.trim().toLowerCase();
  const own = server.images.filter((image) => !whyNot(image));
  const others = server.images.filter(whyNot);
  const matching = [...own, ...others].filter((image) => image.id.toLowerCase().includes(wanted));
  const rows = matching.map((image) => make("li", {}, makeButton(image, choose)));
  find("images")
    .querySelector("ul")
    ?.replaceChildren(...rows);
  markImage();
  const labeled = own.filter((image) => image.is_labeled).length;
  const rest = others.length ? `; ${plural(others.length, "other")}, not of this task` : "";
  find("count").textContent = `${plural(own.length, "image")}, ${labeled} labeled${rest}`;
}

/**
 * @param {API.Image} image
 * @param {(image: string) => void} choose
 */
function makeButton(image, choose) {
  const reason = whyNot(image);
  return make(
    "button",
    { type: "button", className: reason ? "other" : "", title: reason ?? "", onclick: () => choose(image.id) },
    make("span", {}, image.id),
    image.is_labeled ? make("span", { className: "tag" }, "labeled") : null,
    reason ? make("span", { className: "tag" }, `not ${state.task}`) : null,
  );
}

/** Mark the image that is shown. */
export function markImage() {
  for (const button of find("images").querySelectorAll("li button")) {
    button.setAttribute("aria-current", String(button.firstChild?.textContent === state.image));
  }
}
