// Making elements.

/** Make an element; text is never read as HTML. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child != null));
  return element;
}

export const section = (title, ...children) => make('section', {}, make('h3', {}, title), ...children);

export function swatch(color) {
  const box = make('span', { className: 'swatch', ariaHidden: 'true' });
  box.style.background = color;
  return box;
}
