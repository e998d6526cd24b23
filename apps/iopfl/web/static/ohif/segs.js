// Segmentations that the PACS holds: shown over the images that they belong to, where the shipped mode, with its three
// views, fails to show them ("Cannot read properties of undefined (reading 'volumeId')").

import { Refused } from "../common/server.js";
import { labelmapType, paint } from "./labelmaps.js";
import { attempt, state, update } from "./state.js";
import { awaitViewport, hasSlices, viewportsOf } from "./viewports.js";
import { join } from "./voxels.js";

/** @param {Iterable<number>} rgba 0 to 255 */
const toHex = (rgba) =>
  `#${[...rgba]
    .slice(0, 3)
    .map((value) => Math.round(value).toString(16).padStart(2, "0"))
    .join("")}`;

/**
 * @param {OHIF.DisplaySet | undefined} displaySet
 * @returns {displaySet is OHIF.SegSet}
 */
const isSegmentation = (displaySet) => displaySet?.Modality === "SEG";

/**
 * Open SEG series in place, as long as the mode lasts; gives a function that ends it.
 * @param {OHIF.Services} services
 */
export function openInPlace(services) {
  const { viewportGridService, displaySetService, hangingProtocolService } = services;
  /** @param {string} uid */
  const find = (uid) => displaySetService.getDisplaySetByUID(uid);
  const { setDisplaySetsForViewports } = viewportGridService;
  const { getViewportsRequireUpdate } = hangingProtocolService;
  // Asked first where a series goes, and a SEG would find no place.
  hangingProtocolService.getViewportsRequireUpdate = (viewportId, uid, ...rest) =>
    isSegmentation(find(uid))
      ? [{ viewportId, displaySetInstanceUIDs: [uid] }]
      : getViewportsRequireUpdate.call(hangingProtocolService, viewportId, uid, ...rest);
  viewportGridService.setDisplaySetsForViewports = (changes) => {
    const segmentation = changes
      .flatMap((change) => change.displaySetInstanceUIDs)
      .map(find)
      .find(isSegmentation);
    if (!segmentation) return setDisplaySetsForViewports.call(viewportGridService, changes);
    return attempt("Opening the segmentation…", () => layOver(services, segmentation));
  };
  return () => {
    viewportGridService.setDisplaySetsForViewports = setDisplaySetsForViewports;
    hangingProtocolService.getViewportsRequireUpdate = getViewportsRequireUpdate;
  };
}

/**
 * The segments of a SEG, as OHIF read them.
 * @param {OHIF.SegSet} segmentation
 * @returns {import("./state.js").Segment[]}
 */
export const segmentsOf = ({ segMetadata }) =>
  segMetadata.data
    .filter((segment) => segment !== undefined)
    .map(({ SegmentNumber, SegmentLabel, rgba }) => ({
      value: Number(SegmentNumber),
      name: SegmentLabel,
      color: toHex(rgba),
    }));

/**
 * @param {OHIF.Services} services
 * @param {OHIF.SegSet} segmentation
 */
async function layOver(services, segmentation) {
  const { segmentationService, displaySetService, viewportGridService } = services;
  const images = displaySetService.getDisplaySetByUID(segmentation.referencedDisplaySetInstanceUID);
  if (!hasSlices(images)) throw new Refused("The images of this segmentation are not in this study.");
  if (!viewportsOf(services, images).length) {
    const viewports = [...viewportGridService.getState().viewports.keys()];
    const uids = [images.displaySetInstanceUID];
    await viewportGridService.setDisplaySetsForViewports(
      viewports.map((viewportId) => ({ viewportId, displaySetInstanceUIDs: uids })),
    );
    await awaitViewport(services, images);
  }
  hideOverlay(services);
  const id = segmentation.displaySetInstanceUID;
  try {
    await segmentation.load({ headers: {} });
  } catch (problem) {
    console.error(problem);
    throw new Refused(
      "OHIF cannot read this segmentation. Of photographs, which have no place in the patient, it reads none.",
    );
  }
  const segments = segmentsOf(segmentation);
  for (const viewportId of viewportsOf(services, images)) {
    const what = { segmentationId: id, type: labelmapType() };
    await segmentationService.addSegmentationRepresentation(viewportId, what);
    paint(viewportId, id, segments);
  }
  update({ overlay: { id, title: segmentation.SeriesDescription, segments, images } });
  segmentationService.jumpToSegmentCenter(id, segments[0].value, undefined, 0.9, false);
}

/** @param {OHIF.Services} services */
export function hideOverlay({ segmentationService }) {
  if (!state.overlay) return;
  const which = { segmentationId: state.overlay.id };
  for (const viewportId of segmentationService.getViewportIdsWithSegmentation(which.segmentationId)) {
    segmentationService.removeSegmentationRepresentations(viewportId, which);
  }
  update({ overlay: null });
}

/**
 * Which of a task's values each value of a SEG becomes, by the labels' names: 256 of them, 0 for what is no segment;
 * null where the task has not all of the labels.
 * @param {import("./state.js").Segment[]} segments
 * @param {import("./state.js").Segment[]} labels
 */
export function matchValues(segments, labels) {
  const values = new Uint8Array(256);
  for (const { value, name } of segments) {
    const label = labels.find((one) => one.name === name);
    if (!label) return null;
    values[value] = label.value;
  }
  return values;
}

/**
 * Whether a labelmap can take an overlay over: it is of the same images, and has all of its labels.
 * @param {import("./labelmaps.js").Labelmap} labelmap
 * @param {import("./state.js").Overlay} overlay
 */
export const canTakeOver = (labelmap, overlay) =>
  labelmap.displaySet === overlay.images && matchValues(overlay.segments, labelmap.task.labels) !== null;

/**
 * Put the overlay in place of a mask, so that it can be corrected and submitted.
 * @param {OHIF.Services} services
 * @param {import("./labelmaps.js").Labelmap} labelmap
 */
export const takeOver = (services, labelmap) =>
  attempt("Taking the segmentation over…", () => {
    const { overlay } = state;
    const values = overlay && matchValues(overlay.segments, labelmap.task.labels);
    if (!overlay || !values) return;
    const slices = readSlices(services, overlay, labelmap);
    labelmap.remember();
    labelmap.write(join(slices).map((value) => values[value]));
    labelmap.commit();
    labelmap.comesFrom({ answer: null, answeredBy: "" });
    labelmap.markEdited();
    hideOverlay(services);
  });

/**
 * An overlay's voxel arrays, in the order of a labelmap's slices.
 * @param {OHIF.Services} services
 * @param {import("./state.js").Overlay} overlay
 * @param {import("./labelmaps.js").Labelmap} labelmap
 */
function readSlices({ segmentationService }, overlay, { grid, displaySet }) {
  const { imageIds } = segmentationService.getSegmentation(overlay.id).representationData[labelmapType()];
  const images = imageIds.map((imageId) => window.cornerstone.cache.getImage(imageId));
  const byImage = new Map(images.map((image) => [image.referencedImageId, image.voxelManager.getScalarData()]));
  return grid.order.map((index) => {
    const slice = byImage.get(displaySet.imageIds[index]);
    if (!slice) throw new Refused("The segmentation leaves some of these slices out: it cannot be corrected here.");
    return slice;
  });
}
