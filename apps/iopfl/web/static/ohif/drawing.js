// Correcting a mask by hand: OHIF's own brush and eraser, which the shipped mode has but shows no button for, and undo.

import { state, update } from "./state.js";

export const BRUSH = "CircularBrush";
export const ERASER = "CircularEraser";
const LOOK = "WindowLevel";
const GROUPS = ["default", "mpr"];

export const drawing = { tool: LOOK, radius: 5 }; // mm

/**
 * Take up a tool; the same again lays it down.
 * @param {OHIF.Services} services
 * @param {string} tool
 */
export function take(services, tool) {
  const chosen = drawing.tool === tool ? LOOK : tool;
  setRadius(drawing.radius);
  window.commandsManager.runCommand("setToolActiveToolbar", { toolName: chosen, toolGroupIds: GROUPS });
  const viewportId = services.viewportGridService.getActiveViewportId();
  services.toolbarService.refreshToolbarState({ viewportId });
}

/** @param {number} radius mm */
export function setRadius(radius) {
  drawing.radius = radius;
  window.commandsManager.runCommand("setBrushSize", { value: radius, toolNames: [BRUSH, ERASER] });
}

const isDrawing = () => drawing.tool === BRUSH || drawing.tool === ERASER;

/**
 * Whether an event began at an element; what is in a shadow root counts too.
 * @param {Event} event
 * @param {string} selector
 */
const isAt = (event, selector) => {
  const [target] = event.composedPath();
  return target instanceof Element && target.closest(selector) !== null;
};

/** @param {Event} event */
function onMouse(event) {
  const { labelmap } = state;
  if (!labelmap || !isDrawing() || !(event instanceof MouseEvent) || event.button !== 0) return;
  if (event.type === "mousedown" && isAt(event, ".cornerstone-viewport-element")) labelmap.remember();
  if (event.type === "mouseup") setTimeout(() => labelmap.commit() && labelmap.markEdited()); // the brush has drawn by then
}

/** @param {Event} event */
function onKey(event) {
  if (!(event instanceof KeyboardEvent) || !(event.ctrlKey || event.metaKey) || event.key !== "z") return;
  if (isAt(event, "input[type=text], textarea")) return;
  if (state.labelmap?.undoable.length) state.labelmap.undo();
}

/** @param {Event} event cornerstone's */
function onTool(event) {
  if (!(event instanceof CustomEvent)) return;
  const { toolGroupId, toolName, toolBindingsOptions } = event.detail;
  if (!GROUPS.includes(toolGroupId) || toolBindingsOptions?.bindings?.[0]?.mouseButton !== 1) return;
  drawing.tool = toolName;
  update({});
}

/** Follow which tool is in hand, whoever took it up, and what is drawn with it; gives a function that ends it. */
export function watchTools() {
  drawing.tool = LOOK;
  const { TOOL_ACTIVATED } = window.cornerstoneTools.Enums.Events;
  const ending = new AbortController();
  const { signal } = ending;
  window.cornerstone.eventTarget.addEventListener(TOOL_ACTIVATED, onTool);
  document.addEventListener("mousedown", onMouse, { capture: true, signal });
  document.addEventListener("mouseup", onMouse, { capture: true, signal });
  document.addEventListener("keydown", onKey, { signal });
  return () => {
    ending.abort();
    window.cornerstone.eventTarget.removeEventListener(TOOL_ACTIVATED, onTool); // its own class, which knows no signal
  };
}
