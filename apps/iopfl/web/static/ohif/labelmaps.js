// The mask of a series as OHIF holds it: one cornerstone segmentation for each series and task, whose segment
// numbers are the task's label values.

import { Refused } from "../common/server.js";
import { makeGrid, place, takeSlices } from "./grid.js";
import { update } from "./state.js";
import { viewportsOf } from "./viewports.js";
import { compare, findFullest, findStranger, forgetOldest, join, putBack, split } from "./voxels.js";

/** @typedef {{ answer: API.AnswerParams | null, answeredBy: string }} Source where a mask comes from */

/** @type {Map<string, Labelmap>} by segmentation id */
const open = new Map();
/** @type {Map<string, Source & { data: Uint8Array }>} what was left undone when the viewer was closed */
const drafts = new Map();

// OHIF's cornerstone extension puts both on `window`.
const cornerstone = () => window.cornerstone;
const tools = () => window.cornerstoneTools;

/** How cornerstone names masks among segmentations. */
export const labelmapType = () => tools().Enums.SegmentationRepresentations.Labelmap;

export class Labelmap {
  /**
   * Is shown by `findLabelmap`.
   * @param {OHIF.Services} services
   * @param {string} id
   * @param {OHIF.ImageSet} displaySet
   * @param {import("./state.js").Task} task
   */
  constructor(services, id, displaySet, task) {
    this.services = services;
    this.id = id;
    this.displaySet = displaySet;
    this.task = task;
    this.series = displaySet.SeriesInstanceUID;
    /** What the server said of the mask that it began with. @type {API.AnswerParams | null} */
    this.answer = null;
    this.answeredBy = ""; // model that was asked
    this.isEdited = false; // by the person, and not submitted since
    this.isSubmitted = false; // as it is now
    this.segment = task.labels[0].value; // drawn next
    /** Labels that these images have. @type {API.History | null} */
    this.history = null;
    /** @type {(import("./voxels.js").Step & Source)[]} */
    this.undoable = [];
    /** What there was before it changes. @type {Uint8Array | null} */
    this.before = null;
    this.grid = makeGrid(displaySet.imageIds.map((imageId) => cornerstone().metaData.get("imagePlaneModule", imageId)));
  }

  /** Voxel arrays of the slices, along their normal. */
  slices() {
    const { imageIds } = this.services.segmentationService.getSegmentation(this.id).representationData[labelmapType()];
    return this.grid.order.map((index) => cornerstone().cache.getImage(imageIds[index]).voxelManager.getScalarData());
  }

  read() {
    return join(this.slices());
  }

  /** @param {Uint8Array} data */
  write(data) {
    split(data, this.slices());
    tools().segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(this.id);
  }

  /**
   * Put an answer of the server in place of what is there.
   * @param {import("./grid.js").Mask} mask
   * @param {API.AnswerParams} answer
   * @param {string} answeredBy
   */
  fill(mask, answer, answeredBy) {
    const data = takeSlices(mask, this.grid);
    const values = this.task.labels.map((label) => label.value);
    const stranger = findStranger(data, values);
    if (stranger !== undefined) {
      throw new Refused(
        `The mask holds the value ${stranger}, which no label of ${this.task.name} has: it is not shown.`,
      );
    }
    this.remember();
    this.write(data);
    this.commit();
    this.answer = answer;
    this.answeredBy = answeredBy;
    this.isEdited = false;
    this.isSubmitted = false;
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
    const step = compare(this.before, this.read());
    this.before = null;
    if (!step) return false;
    this.undoable.push({ ...step, answer: this.answer, answeredBy: this.answeredBy });
    forgetOldest(this.undoable);
    return true;
  }

  undo() {
    const last = this.undoable.pop();
    if (!last) return;
    const data = this.read();
    putBack(data, last);
    this.write(data);
    this.comesFrom(last);
    this.markEdited();
  }

  /** @param {Source} source */
  comesFrom({ answer, answeredBy }) {
    this.answer = answer;
    this.answeredBy = answeredBy;
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
    const fullest = findFullest(this.slices(), this.grid.sizes);
    if (!fullest || !this.grid.isPlaced) return;
    const { segmentationService, cornerstoneViewportService } = this.services;
    for (const id of segmentationService.getViewportIdsWithSegmentation(this.id)) {
      cornerstoneViewportService.getCornerstoneViewport(id)?.jumpToWorld?.(place(this.grid, fullest));
    }
  }

  /**
   * Choose the label that the brush draws.
   * @param {number} value
   */
  select(value) {
    this.segment = value;
    this.services.segmentationService.setActiveSegment(this.id, value);
    update({ labelmap: this });
  }
}

/** @type {Promise<unknown>} */
let last = Promise.resolve();

/**
 * The mask of these images for a task; an empty one where there is none yet. One at a time: none is made twice.
 * @param {OHIF.Services} services
 * @param {OHIF.ImageSet} displaySet
 * @param {import("./state.js").Task} task
 */
export function findLabelmap(services, displaySet, task) {
  const found = last.catch(() => {}).then(() => find(services, displaySet, task));
  last = found;
  return found;
}

/**
 * @param {OHIF.Services} services
 * @param {OHIF.ImageSet} displaySet
 * @param {import("./state.js").Task} task
 */
async function find(services, displaySet, task) {
  const { segmentationService } = services;
  const id = `${task.name}-${displaySet.SeriesInstanceUID}`;
  let labelmap = open.get(id);
  if (!labelmap || !segmentationService.getSegmentation(id)) {
    labelmap = new Labelmap(services, id, displaySet, task);
    const segments = Object.fromEntries(
      task.labels.map(({ value, name }, index) => [
        value,
        { segmentIndex: value, label: name, active: index === 0, locked: false },
      ]),
    );
    const options = { segmentationId: id, label: task.name, segments };
    await segmentationService.createLabelmapForDisplaySet(displaySet, options);
    open.set(id, labelmap);
    await show(services, labelmap);
    restore(labelmap);
  } else {
    await show(services, labelmap);
  }
  labelmap.select(labelmap.segment);
  return labelmap;
}

/** @type {Map<string, number>} segmentation id -> its color table */
const tables = new Map();

/**
 * Give a segmentation its colors. It gets a table of its own: cornerstone gives all the first one, whatever it is told,
 * and changing a color there changes it for all.
 * @param {string} viewportId
 * @param {string} id
 * @param {import("./state.js").Segment[]} labels
 */
export function paint(viewportId, id, labels) {
  const { addColorLUT, setColorLUT } = tools().segmentation.config.color;
  const table = tables.get(id) ?? addColorLUT(makeColorTable(labels));
  tables.set(id, table);
  setColorLUT(viewportId, id, table);
}

/**
 * RGBA of each value, 0 to 255; what no label has is transparent.
 * @param {import("./state.js").Segment[]} labels
 */
export function makeColorTable(labels) {
  const colors = Array.from({ length: 256 }, () => [0, 0, 0, 0]);
  for (const { value, color } of labels) {
    colors[value] = [...[1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16)), 255];
  }
  return colors;
}

/**
 * Draw a mask into the viewports that show its images, in the task's colors; other tasks' masks are taken out.
 * @param {OHIF.Services} services
 * @param {Labelmap} labelmap
 */
export async function show(services, labelmap) {
  const { segmentationService } = services;
  const own = { segmentationId: labelmap.id };
  for (const viewportId of viewportsOf(services, labelmap.displaySet)) {
    for (const { segmentationId } of segmentationService.getSegmentationRepresentations(viewportId)) {
      if (segmentationId !== labelmap.id && open.has(segmentationId)) {
        segmentationService.removeSegmentationRepresentations(viewportId, { segmentationId });
      }
    }
    if (!segmentationService.getSegmentationRepresentations(viewportId, own).length) {
      await segmentationService.addSegmentationRepresentation(viewportId, { ...own, type: labelmapType() });
    }
    paint(viewportId, labelmap.id, labelmap.task.labels);
    segmentationService.setActiveSegmentation(viewportId, labelmap.id);
  }
}

/** Masks with changes by the person that were not submitted, also of series that were closed. */
const countUnsubmitted = () => drafts.size + [...open.values()].filter((labelmap) => labelmap.isEdited).length;

/**
 * The viewer is closed: keep what the person changed until the series is opened again.
 * @param {OHIF.Services} services
 */
export function keepDrafts({ segmentationService }) {
  for (const [id, labelmap] of open) {
    const { answer, answeredBy } = labelmap;
    if (labelmap.isEdited) drafts.set(id, { data: labelmap.read(), answer, answeredBy });
    segmentationService.remove(id);
  }
  open.clear();
  update({ labelmap: null });
}

/** @param {Labelmap} labelmap */
function restore(labelmap) {
  const draft = drafts.get(labelmap.id);
  if (!draft) return;
  drafts.delete(labelmap.id);
  labelmap.write(draft.data);
  labelmap.comesFrom(draft);
  labelmap.markEdited();
  update({ done: "Your changes to this series, not submitted yet, are back." });
}

/** Ask before the page is left with work in it. */
export function guardWork() {
  window.addEventListener("beforeunload", (event) => {
    if (countUnsubmitted()) event.preventDefault();
  });
}
