// What OHIF's viewports show.

import { Refused } from './server.js';

const READY_SECONDS = 120;

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

/** The images that the active viewport shows, or those that its SEG belongs to. */
export function findDisplaySet({ viewportGridService, displaySetService }) {
  const { viewports, activeViewportId } = viewportGridService.getState();
  const uid = viewports.get(activeViewportId)?.displaySetInstanceUIDs?.[0];
  const shown = uid && displaySetService.getDisplaySetByUID(uid);
  if (!shown?.referencedDisplaySetInstanceUID) return shown;
  return displaySetService.getDisplaySetByUID(shown.referencedDisplaySetInstanceUID);
}

/** Ids of the viewports that show slices of these images; a mask has no place in a rendering of a volume. */
export const viewportsOf = ({ viewportGridService }, displaySet) => [...viewportGridService.getState().viewports]
  .filter(([, viewport]) => viewport.displaySetInstanceUIDs?.includes(displaySet.displaySetInstanceUID))
  .filter(([, viewport]) => viewport.viewportOptions?.viewportType !== 'volume3d').map(([id]) => id);

function isDrawn(services, displaySet) {
  const ids = viewportsOf(services, displaySet);
  const drawn = ids.map((id) => services.cornerstoneViewportService.getCornerstoneViewport(id));
  return ids.length > 0 && drawn.every((viewport) => viewport?.getImageData?.() && viewport.getImageIds().includes(displaySet.imageIds[0]));
}

/** Wait until every viewport that shows these images has drawn them; gives them, or nothing where `isGone` ends the wait. */
export async function awaitViewport(services, displaySet, isGone = () => false) {
  for (let waited = 0; waited < READY_SECONDS && !isGone(); waited += 0.1) {
    if (isDrawn(services, displaySet)) return displaySet;
    await pause(100);
  }
  if (isGone()) return undefined;
  throw new Refused('The viewer shows no images to segment: choose a series on the left.');
}

export const hasImages = (displaySet) => Boolean(displaySet?.numImageFrames) && !displaySet.isOverlayDisplaySet;

/**
 * Three views need a volume: photographs, single slices and uneven stacks would leave them black, and get one plain view.
 */
function layOut({ displaySetService, viewportGridService }) {
  const images = displaySetService.getActiveDisplaySets().filter(hasImages);
  const isShown = [...viewportGridService.getState().viewports.values()].some((viewport) => viewport.displaySetInstanceUIDs?.length);
  if (images.length && !isShown && !images.some((displaySet) => displaySet.isReconstructable)) {
    window.commandsManager.runCommand('setHangingProtocol', { protocolId: 'default' });
  }
}

/** Wait until the active viewport has images, and has drawn them. */
export async function awaitImages(services, isGone) {
  for (let waited = 0; waited < READY_SECONDS && !isGone(); waited += 0.1) {
    const displaySet = findDisplaySet(services);
    if (displaySet?.imageIds?.length) return awaitViewport(services, displaySet, isGone);
    if (Math.round(10 * waited) % 10 === 9) layOut(services); // OHIF had its time
    await pause(100);
  }
  if (isGone()) return undefined;
  throw new Refused('The viewer shows no images to segment: choose a series on the left.');
}
