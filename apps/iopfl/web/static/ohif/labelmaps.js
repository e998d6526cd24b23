// The mask of a series as OHIF holds it: one cornerstone segmentation for each series and task, whose segment
// numbers are the task's label values.

import { makeGrid, place, takeSlices } from './grid.js';
import { Refused } from './server.js';
import { update } from './state.js';
import { viewportsOf } from './viewports.js';

const MAX_UNDO = 30_000_000; // voxels that are kept to be put back, 5 bytes each

const open = new Map(); // segmentation id -> Labelmap
const drafts = new Map(); // segmentation id -> what was left undone when the viewer was closed

// OHIF's cornerstone extension puts both on `window`.
const cornerstone = () => window.cornerstone;
const tools = () => window.cornerstoneTools;
const labelmapType = () => tools().Enums.SegmentationRepresentations.Labelmap;

export class Labelmap {
  /** Shown by `findLabelmap`. `task`: {name, labels: [{name, value, color}]}. */
  constructor(services, id, displaySet, task) {
    Object.assign(this, { services, id, displaySet, task });
    this.series = displaySet.SeriesInstanceUID;
    this.answer = null; // `params` of the inference that it began with
    this.answeredBy = ''; // model that was asked
    this.isEdited = false; // by the person, and not submitted since
    this.isSubmitted = false; // as it is now
    this.segment = task.labels[0].value; // drawn next
    this.history = null; // labels that these images have, see submit.js
    this.undoable = [];
    const planes = displaySet.imageIds.map((imageId) => cornerstone().metaData.get('imagePlaneModule', imageId));
    this.grid = makeGrid(planes);
  }

  /** Voxel arrays of the slices, along their normal. */
  slices() {
    const { imageIds } = this.services.segmentationService.getSegmentation(this.id).representationData[labelmapType()];
    return this.grid.order.map((index) => cornerstone().cache.getImage(imageIds[index]).voxelManager.getScalarData());
  }

  read() {
    const slices = this.slices();
    const data = new Uint8Array(slices.length * slices[0].length);
    slices.forEach((slice, index) => data.set(slice, index * slice.length));
    return data;
  }

  write(data) {
    this.slices().forEach((slice, index) => slice.set(data.subarray(index * slice.length, (index + 1) * slice.length)));
    tools().segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(this.id);
  }

  /** Put an answer of the server in place of what is there. */
  fill(mask, answer, answeredBy) {
    const data = takeSlices(mask, this.grid);
    const known = new Set([0, ...this.task.labels.map((label) => label.value)]);
    const strange = data.find((value) => !known.has(value));
    if (strange !== undefined) throw new Refused(`The mask holds the value ${strange}, which no label of ${this.task.name} has: it is not shown.`);
    this.remember();
    this.write(data);
    this.commit();
    Object.assign(this, { answer, answeredBy, isEdited: false, isSubmitted: false });
    update({});
    this.jump();
  }

  /** Note what there is, before it changes. */
  remember() {
    this.before = this.read();
  }

  /** Keep what changed since `remember`, so that it can be undone; says whether anything did. */
  commit() {
    if (!this.before) return false;
    const now = this.read();
    const changed = [];
    for (let index = 0; index < now.length; index += 1) if (now[index] !== this.before[index]) changed.push(index);
    const { answer, answeredBy } = this;
    if (changed.length) {
      const values = Uint8Array.from(changed, (index) => this.before[index]);
      this.undoable.push({ indices: Uint32Array.from(changed), values, answer, answeredBy });
      const count = () => this.undoable.reduce((sum, { indices }) => sum + indices.length, 0);
      while (this.undoable.length > 1 && count() > MAX_UNDO) this.undoable.shift();
    }
    this.before = null;
    return changed.length > 0;
  }

  undo() {
    const last = this.undoable.pop();
    if (!last) return;
    const data = this.read();
    last.indices.forEach((index, position) => { data[index] = last.values[position]; });
    this.write(data);
    Object.assign(this, { answer: last.answer, answeredBy: last.answeredBy });
    this.markEdited();
  }

  markEdited() {
    this.isEdited = true;
    this.isSubmitted = false;
    update({});
  }

  isEmpty() {
    return this.slices().every((slice) => !slice.some(Boolean));
  }

  /** Show the slices that hold most of what is drawn. */
  jump() {
    const [width] = this.grid.sizes;
    const counts = this.grid.sizes.map((size) => new Uint32Array(size));
    this.slices().forEach((slice, z) => slice.forEach((value, index) => {
      if (!value) return;
      counts[0][index % width] += 1;
      counts[1][Math.floor(index / width)] += 1;
      counts[2][z] += 1;
    }));
    const most = counts.map((along) => along.indexOf(along.reduce((a, b) => Math.max(a, b))));
    if (!counts[2][most[2]] || !this.grid.isPlaced) return;
    for (const id of this.services.segmentationService.getViewportIdsWithSegmentation(this.id)) {
      this.services.cornerstoneViewportService.getCornerstoneViewport(id)?.jumpToWorld?.(place(this.grid, most));
    }
  }

  /** Choose the label that the brush draws. */
  select(value) {
    this.segment = value;
    this.services.segmentationService.setActiveSegment(this.id, value);
    update({ labelmap: this });
  }
}

const makeId = (displaySet, task) => `${task.name}-${displaySet.SeriesInstanceUID}`;

let last = Promise.resolve();

/** The mask of these images for a task; an empty one where there is none yet. One at a time: none is made twice. */
export function findLabelmap(services, displaySet, task) {
  const found = last.catch(() => {}).then(() => find(services, displaySet, task));
  last = found;
  return found;
}

async function find(services, displaySet, task) {
  const { segmentationService } = services;
  const id = makeId(displaySet, task);
  let labelmap = open.get(id);
  if (!labelmap || !segmentationService.getSegmentation(id)) {
    labelmap = new Labelmap(services, id, displaySet, task);
    const segments = Object.fromEntries(task.labels.map((label, index) => [
      label.value, { segmentIndex: label.value, label: label.name, active: index === 0, locked: false },
    ]));
    await segmentationService.createLabelmapForDisplaySet(displaySet, { segmentationId: id, label: task.name, segments });
    open.set(id, labelmap);
    await show(services, labelmap);
    restore(labelmap);
  } else {
    await show(services, labelmap);
  }
  labelmap.select(labelmap.segment);
  return labelmap;
}

const tables = new Map(); // segmentation id -> its color table

/**
 * Give a segmentation its colors. It gets a table of its own: cornerstone gives all the first one, whatever it is told,
 * and changing a color there changes it for all.
 */
export function paint(viewportId, id, labels) {
  const { addColorLUT, setColorLUT } = tools().segmentation.config.color;
  if (!tables.has(id)) {
    const colors = Array.from({ length: 256 }, () => [0, 0, 0, 0]);
    for (const { value, color } of labels) colors[value] = [...[1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16)), 255];
    tables.set(id, addColorLUT(colors));
  }
  setColorLUT(viewportId, id, tables.get(id));
}

/** Draw a mask into the viewports that show its images, in the task's colors; other tasks' masks are taken out. */
export async function show(services, labelmap) {
  const { segmentationService } = services;
  for (const viewportId of viewportsOf(services, labelmap.displaySet)) {
    for (const { segmentationId } of segmentationService.getSegmentationRepresentations(viewportId)) {
      if (segmentationId !== labelmap.id && open.has(segmentationId)) segmentationService.removeSegmentationRepresentations(viewportId, { segmentationId });
    }
    if (!segmentationService.getSegmentationRepresentations(viewportId, { segmentationId: labelmap.id }).length) {
      await segmentationService.addSegmentationRepresentation(viewportId, { segmentationId: labelmap.id, type: labelmapType() });
    }
    paint(viewportId, labelmap.id, labelmap.task.labels);
    segmentationService.setActiveSegmentation(viewportId, labelmap.id);
  }
}

/** Masks with changes by the person that were not submitted, also of series that were closed. */
export const countUnsubmitted = () => drafts.size + [...open.values()].filter((labelmap) => labelmap.isEdited).length;

/** The viewer is closed: keep what the person changed until the series is opened again. */
export function keepDrafts({ segmentationService }) {
  for (const [id, labelmap] of open) {
    const { answer, answeredBy } = labelmap;
    if (labelmap.isEdited) drafts.set(id, { data: labelmap.read(), answer, answeredBy });
    segmentationService.remove(id);
  }
  open.clear();
  update({ labelmap: null });
}

function restore(labelmap) {
  const draft = drafts.get(labelmap.id);
  if (!draft) return;
  drafts.delete(labelmap.id);
  labelmap.write(draft.data);
  Object.assign(labelmap, { answer: draft.answer, answeredBy: draft.answeredBy });
  labelmap.markEdited();
  update({ done: 'Your changes to this series, not submitted yet, are back.' });
}

/** Ask before the page is left with work in it. */
window.addEventListener('beforeunload', (event) => {
  if (countUnsubmitted()) event.preventDefault();
});
