// Elements of React without React: the one place where something of OHIF's is made up.
//
// OHIF bundles its React and gives it to no extension: a module that is loaded at run time can import nothing of the
// bundle, and `window` does not hold it. For the panel itself that is no matter, as OHIF makes the element of whatever
// component an extension names. What a component of ours renders, though, is elements, and no service of OHIF makes
// any: so they are made in the form of one that the shipped panel has rendered, which holds React's own marks.

/**
 * An element like another, with a type and properties of its own.
 * @param {OHIF.Element} like one that OHIF's React made
 * @param {string} type
 * @param {OHIF.Element["props"]} props
 * @param {string | null} [key]
 * @returns {OHIF.Element}
 */
export const makeElement = (like, type, props, key = null) => ({ ...like, type, props, key });

/**
 * An element with other children, as React's `cloneElement` makes it.
 * @param {OHIF.Element} element
 * @param {OHIF.Element[]} children
 * @returns {OHIF.Element}
 */
export const withChildren = (element, children) => ({ ...element, props: { ...element.props, children } });

/**
 * The children of an element that are elements or nothing; without text.
 * @param {OHIF.Element} element
 * @returns {OHIF.Element[]}
 */
export const childrenOf = ({ props: { children } }) => (Array.isArray(children) ? children : []);
