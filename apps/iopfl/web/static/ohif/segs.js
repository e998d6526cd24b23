// Segmentations that the PACS holds: shown over the images that they belong to, where the shipped mode, with its three
// views, fails to show them ("Cannot read properties of undefined (reading 'volumeId')").

import { paint } from './labelmaps.js';
import { awaitViewport, viewportsOf } from './viewports.js';
import { Refused } from './server.js';
import { attempt, state, update } from './state.js';

const toHex = (rgba) => `#${[...rgba].slice(0, 3).map((value) => Math.round(value).toString(16).padStart(2, '0')).join('')}`;

const isSegmentation = (displaySet) => displaySet?.Modality === 'SEG';

/** Open SEG series in place, as long as the mode lasts; gives a function that ends it. */
export function openInPlace(services) {
  const { viewportGridService, displaySetService, hangingProtocolService } = services;
  const find = (uid) => displaySetService.getDisplaySetByUID(uid);
  const { setDisplaySetsForViewports } = viewportGridService;
  const { getViewportsRequireUpdate } = hangingProtocolService;
  // Asked first where a series goes, and a SEG would find no place.
  hangingProtocolService.getViewportsRequireUpdate = (viewportId, uid, ...rest) => (isSegmentation(find(uid))
    ? [{ viewportId, displaySetInstanceUIDs: [uid] }]
    : getViewportsRequireUpdate.call(hangingProtocolService, viewportId, uid, ...rest));
  viewportGridService.setDisplaySetsForViewports = (changes) => {
    const segmentation = changes.flatMap((change) => change.displaySetInstanceUIDs).map(find).find(isSegmentation);
    if (!segmentation) return setDisplaySetsForViewports.call(viewportGridService, changes);
    return attempt('Opening the segmentation…', () => overlay(services, segmentation));
  };
  return () => {
    viewportGridService.setDisplaySetsForViewports = setDisplaySetsForViewports;
    hangingProtocolService.getViewportsRequireUpdate = getViewportsRequireUpdate;
  };
}

async function overlay(services, segmentation) {
  const { segmentationService, displaySetService, viewportGridService } = services;
  const images = displaySetService.getDisplaySetByUID(segmentation.referencedDisplaySetInstanceUID);
  if (!images) throw new Refused('The images of this segmentation are not in this study.');
  if (!viewportsOf(services, images).length) {
    const viewports = [...viewportGridService.getState().viewports.keys()];
    await viewportGridService.setDisplaySetsForViewports(viewports.map((viewportId) => ({ viewportId, displaySetInstanceUIDs: [images.displaySetInstanceUID] })));
    await awaitViewport(services, images);
  }
  hideOverlay(services);
  const id = segmentation.displaySetInstanceUID;
  try {
    await segmentation.load({ headers: {} });
  } catch (problem) {
    console.error(problem);
    throw new Refused('OHIF cannot read this segmentation. Of photographs, which have no place in the patient, it reads none.');
  }
  const segments = segmentation.segMetadata.data.filter(Boolean)
    .map(({ SegmentNumber, SegmentLabel, rgba }) => ({ value: Number(SegmentNumber), name: SegmentLabel, color: toHex(rgba) }));
  for (const viewportId of viewportsOf(services, images)) {
    await segmentationService.addSegmentationRepresentation(viewportId, { segmentationId: id, type: window.cornerstoneTools.Enums.SegmentationRepresentations.Labelmap });
    paint(viewportId, id, segments);
  }
  update({ overlay: { id, title: segmentation.SeriesDescription, segments, images } });
  segmentationService.jumpToSegmentCenter(id, segments[0].value, undefined, 0.9, false);
}

export function hideOverlay({ segmentationService }) {
  if (!state.overlay) return;
  for (const viewportId of segmentationService.getViewportIdsWithSegmentation(state.overlay.id)) {
    segmentationService.removeSegmentationRepresentations(viewportId, { segmentationId: state.overlay.id });
  }
  update({ overlay: null });
}

/** Whether a labelmap can take an overlay over: it is of the same images, and has all of its labels. */
export const canTakeOver = (labelmap, overlay) => labelmap.displaySet === overlay.images
  && overlay.segments.every((segment) => labelmap.task.labels.some((label) => label.name === segment.name));

/** Put an overlay in place of a mask, so that it can be corrected and submitted. */
export function takeOver(services, labelmap) {
  const { overlay } = state;
  const { cache } = window.cornerstone;
  const { imageIds } = services.segmentationService.getSegmentation(overlay.id).representationData.Labelmap;
  const byImage = new Map(imageIds.map((imageId) => [cache.getImage(imageId).referencedImageId, cache.getImage(imageId).voxelManager.getScalarData()]));
  const values = new Uint8Array(256);
  for (const { value, name } of overlay.segments) values[value] = labelmap.task.labels.find((label) => label.name === name).value;
  const data = labelmap.read();
  const length = data.length / labelmap.grid.order.length;
  labelmap.grid.order.forEach((index, slice) => {
    const source = byImage.get(labelmap.displaySet.imageIds[index]);
    for (let pixel = 0; pixel < length; pixel += 1) data[slice * length + pixel] = values[source[pixel]];
  });
  labelmap.remember();
  labelmap.write(data);
  labelmap.commit();
  Object.assign(labelmap, { answer: null, answeredBy: '' });
  labelmap.markEdited();
  hideOverlay(services);
}
