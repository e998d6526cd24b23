// An extension of OHIF: the panel that MONAI Label ships, repaired, with our card below it. OHIF loads it (app-config.js).

import { guardWork } from "./labelmaps.js";
import { makePanel } from "./panel.js";
import { watchSession } from "./user.js";

const SHIPPED = "@ohif/extension-monai-label.panelModule.monailabel";

function addStyles() {
  const link = document.createElement("link");
  Object.assign(link, { rel: "stylesheet", href: "/iopfl/static/ohif/panel.css" });
  document.head.append(link);
}

export default {
  id: "iopfl",
  preRegistration() {
    addStyles();
    watchSession();
    guardWork();
  },
  /** @param {OHIF.Managers} managers */
  getPanelModule(managers) {
    // The shipped extension is registered by now: OHIF registers those that its settings name after its own.
    const shipped = managers.extensionManager.getModuleEntry(SHIPPED).component();
    return [
      {
        name: "panel",
        iconName: "tab-patient-info",
        iconLabel: "MONAI",
        label: "MONAI Label",
        secondaryLabel: "MONAI Label",
        component: makePanel(shipped.type, shipped.props, managers.servicesManager.services),
      },
    ];
  },
};
