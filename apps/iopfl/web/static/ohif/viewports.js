// What OHIF's viewports show.

import { Refused } from "../common/server.js";

const READY_SECONDS = 120;

/** @param {number} milliseconds */
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/**
 * Whether a display set has images whose slices a mask can lie on.
 * @param {OHIF.DisplaySet | undefined} displaySet
 * @returns {displaySet is OHIF.ImageSet}
 */
export const hasSlices = (displaySet) => Boolean(displaySet?.imageIds?.length);

/**
 * The images that the active viewport shows, or those that its SEG belongs to.
 * @param {OHIF.Services} services
 */
export function findDisplaySet({ viewportGridService, displaySetService }) {
  const { viewports, activeViewportId } = viewportGridService.getState();
  const uid = viewports.get(activeViewportId)?.displaySetInstanceUIDs?.[0];
  const shown = uid ? displaySetService.getDisplaySetByUID(uid) : undefined;
  if (!shown?.referencedDisplaySetInstanceUID) return shown;
  return displaySetService.getDisplaySetByUID(shown.referencedDisplaySetInstanceUID);
}

/**
 * Ids of the viewports that show slices of these images; a mask has no place in a rendering of a volume.
 * @param {OHIF.Services} services
 * @param {OHIF.DisplaySet} displaySet
 */
export const viewportsOf = ({ viewportGridService }, displaySet) =>
  [...viewportGridService.getState().viewports]
    .filter(([, viewport]) => viewport.displaySetInstanceUIDs?.includes(displaySet.displaySetInstanceUID))
    .filter(([, viewport]) => viewport.viewportOptions?.viewportType !== "volume3d")
    .map(([id]) => id);

/**
 * @param {OHIF.Services} services
 * @param {OHIF.ImageSet} displaySet
 */
function isDrawn(services, displaySet) {
  const ids = viewportsOf(services, displaySet);
  const [first] = displaySet.imageIds;
  const drawn = ids.map((id) => services.cornerstoneViewportService.getCornerstoneViewport(id));
  return (
    ids.length > 0 && drawn.every((viewport) => viewport?.getImageData?.() && viewport.getImageIds().includes(first))
  );
}

/**
 * Wait until every viewport that shows these images has drawn them; gives them, or nothing where `isGone` ends the wait.
 * @param {OHIF.Services} services
 * @param {OHIF.ImageSet} displaySet
 */
export async function awaitViewport(services, displaySet, isGone = () => false) {
  for (let waited = 0; waited < READY_SECONDS && !isGone(); waited += 0.1) {
    if (isDrawn(services, displaySet)) return displaySet;
    await pause(100);
  }
  if (isGone()) return undefined;
  throw new Refused("The viewer shows no images to segment: choose a series on the left.");
}

/** @param {OHIF.DisplaySet | undefined} displaySet */
export const hasImages = (displaySet) => Boolean(displaySet?.numImageFrames) && !displaySet?.isOverlayDisplaySet;

/**
 * Three views need a volume: photographs, single slices and uneven stacks would leave them black, and get one plain view.
 * @param {OHIF.Services} services
 */
function layOut({ displaySetService, viewportGridService }) {
  const images = displaySetService.getActiveDisplaySets().filter(hasImages);
  const viewports = [...viewportGridService.getState().viewports.values()];
  const isShown = viewports.some((viewport) => viewport.displaySetInstanceUIDs?.length);
  if (images.length && !isShown && !images.some((displaySet) => displaySet.isReconstructable)) {
    window.commandsManager.runCommand("setHangingProtocol", { protocolId: "default" });
  }
}

/**
 * Wait until the active viewport has images, and has drawn them.
 * @param {OHIF.Services} services
 * @param {() => boolean} isGone
 */
export async function awaitImages(services, isGone) {
  for (let waited = 0; waited < READY_SECONDS && !isGone(); waited += 0.1) {
    const displaySet = findDisplaySet(services);
    if (hasSlices(displaySet)) return awaitViewport(services, displaySet, isGone);
    if (Math.round(10 * waited) % 10 === 9) layOut(services); // OHIF had its time
    await pause(100);
  }
  if (isGone()) return undefined;
  throw new Refused("The viewer shows no images to segment: choose a series on the left.");
}
