// OHIF's "MONAI Label" mode as shipped, with our panel in it, for the modalities of the tasks that this server has.
// It carries the shipped mode's id: of two modes with one id, OHIF takes the first, and this one is.

import { getJson } from "../common/server.js";
import { keepDrafts } from "./labelmaps.js";

const ID = "@ohif/mode-monai-label";

async function findModalities() {
  try {
    /** @type {API.Status} */
    const { tasks } = await getJson("/iopfl/status");
    return tasks.map((task) => task.modality);
  } catch {
    return ["CT", "MR"]; // as shipped; the panel says what is wrong
  }
}

/**
 * @param {OHIF.Route} route
 * @returns {OHIF.Route}
 */
function withOurPanel(route) {
  return {
    ...route,
    layoutTemplate: (...context) => {
      const layout = route.layoutTemplate(...context);
      return { ...layout, props: { ...layout.props, rightPanels: ["iopfl.panelModule.panel"] } };
    },
  };
}

/**
 * SEG series call themselves volumes, and would be laid out instead of images; they are opened over these (segs.js).
 * @param {OHIF.Services} services
 */
function keepOutOfViewports({ displaySetService }) {
  /** @param {{ displaySetsAdded: OHIF.DisplaySet[] }} event */
  const onAdded = ({ displaySetsAdded }) => {
    for (const displaySet of displaySetsAdded) if (displaySet.Modality === "SEG") displaySet.isReconstructable = false;
  };
  displaySetService.subscribe(displaySetService.EVENTS.DISPLAY_SETS_ADDED, onAdded);
}

/** @param {OHIF.ModeFactory} about */
async function modeFactory({ modeConfiguration, loadModules }) {
  const [[shipped], served] = await Promise.all([loadModules([ID]), findModalities()]);
  const mode = shipped.modeFactory({ modeConfiguration });
  return {
    ...mode,
    routes: mode.routes.map(withOurPanel),
    /** @param {{ modalities: string }} study */
    isValidMode: ({ modalities }) => ({
      valid: modalities.split("\\").some((modality) => served.includes(modality)),
      description: `This server segments ${[...new Set(served)].join(", ")}`,
    }),
    /** @param {OHIF.Managers} context */
    onModeEnter(context) {
      keepOutOfViewports(context.servicesManager.services);
      mode.onModeEnter(context);
    },
    /** @param {OHIF.Managers} context */
    onModeExit(context) {
      keepDrafts(context.servicesManager.services);
      mode.onModeExit(context);
    },
  };
}

export default { id: ID, modeFactory };
