// Correcting a mask by hand: OHIF's own brush and eraser, which the shipped mode has but shows no button for, and undo.

import { state, update } from './state.js';

export const BRUSH = 'CircularBrush';
export const ERASER = 'CircularEraser';
const LOOK = 'WindowLevel';
const GROUPS = ['default', 'mpr'];

export const drawing = { tool: LOOK, radius: 5 }; // mm

/** Take up a tool; the same again lays it down. */
export function take(services, tool) {
  const chosen = drawing.tool === tool ? LOOK : tool;
  const run = (command, options) => window.commandsManager.runCommand(command, options);
  run('setBrushSize', { value: drawing.radius, toolNames: [BRUSH, ERASER] });
  run('setToolActiveToolbar', { toolName: chosen, toolGroupIds: GROUPS });
  services.toolbarService.refreshToolbarState({ viewportId: services.viewportGridService.getActiveViewportId() });
}

export function setRadius(radius) {
  drawing.radius = radius;
  window.commandsManager.runCommand('setBrushSize', { value: radius, toolNames: [BRUSH, ERASER] });
}

const isDrawing = () => drawing.tool === BRUSH || drawing.tool === ERASER;

function onMouse(event) {
  const { labelmap } = state;
  if (!labelmap || !isDrawing() || event.button !== 0) return;
  if (event.type === 'mousedown' && event.target.closest?.('.cornerstone-viewport-element')) labelmap.remember();
  if (event.type === 'mouseup') setTimeout(() => labelmap.commit() && labelmap.markEdited()); // the brush has drawn by then
}

function onKey(event) {
  if (!(event.ctrlKey || event.metaKey) || event.key !== 'z' || event.composedPath()[0].closest?.('input[type=text], textarea')) return;
  if (state.labelmap?.undoable.length) state.labelmap.undo();
}

function onTool({ detail }) {
  if (!GROUPS.includes(detail.toolGroupId) || detail.toolBindingsOptions?.bindings?.[0]?.mouseButton !== 1) return;
  drawing.tool = detail.toolName;
  update({});
}

/** Follow which tool is in hand, whoever took it up, and what is drawn with it; gives a function that ends it. */
export function watchTools() {
  drawing.tool = LOOK;
  const { TOOL_ACTIVATED } = window.cornerstoneTools.Enums.Events;
  const watched = [
    [window.cornerstone.eventTarget, TOOL_ACTIVATED, onTool], [document, 'mousedown', onMouse, true],
    [document, 'mouseup', onMouse, true], [document, 'keydown', onKey],
  ];
  for (const [target, ...listener] of watched) target.addEventListener(...listener);
  return () => {
    for (const [target, ...listener] of watched) target.removeEventListener(...listener);
  };
}
