// Making elements of a page.

/**
 * Make an element; text is never read as HTML.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Partial<HTMLElementTagNameMap[Tag]>} [properties]
 * @param {(Node | string | null | undefined)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child != null));
  return element;
}

/** @param {string} text */
export const small = (text) => make("p", {}, make("small", {}, text));

/**
 * A square in a label's color.
 * @param {string} color as CSS has it; "" = what the class says
 * @param {string} [kind] a further class
 */
export function swatch(color, kind = "") {
  const box = make("span", { className: `swatch ${kind}`.trim(), ariaHidden: "true" });
  box.style.background = color;
  return box;
}

/**
 * Routing weights as a list of bars; the mark in each is the uniform average.
 * @param {[name: string, share: number][]} weights
 * @param {(share: number, even: number) => string} say what is written beside a name
 */
export function makeBars(weights, say) {
  const even = 1 / weights.length;
  const reach = Math.max(2 * even, ...weights.map(([, share]) => share));
  const rows = weights.map(([name, share]) => {
    const fill = make("div", { className: "fill" });
    fill.style.width = `${(100 * share) / reach}%`;
    const mark = make("div", { className: "mark" });
    mark.style.left = `${(100 * even) / reach}%`;
    const words = make("span", { className: "row" }, make("span", {}, name), make("span", {}, say(share, even)));
    return make("li", {}, words, make("div", { className: "track", ariaHidden: "true" }, fill, mark));
  });
  return make("ul", { className: "bars" }, ...rows);
}
