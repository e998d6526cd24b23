// An extension of OHIF: the panel that MONAI Label ships, repaired, with our card below it. OHIF loads it (app-config.js).

import { makePanel } from './panel.js';

const SHIPPED = '@ohif/extension-monai-label.panelModule.monailabel';

function addStyles() {
  const link = document.createElement('link');
  Object.assign(link, { rel: 'stylesheet', href: '/ohif/iopfl/panel.css' });
  document.head.append(link);
}

export default {
  id: 'iopfl',
  preRegistration: addStyles,
  getPanelModule: ({ servicesManager, extensionManager }) => [
    {
      name: 'panel',
      iconName: 'tab-patient-info',
      iconLabel: 'MONAI',
      label: 'MONAI Label',
      secondaryLabel: 'MONAI Label',
      component: makePanel(() => extensionManager.getModuleEntry(SHIPPED).component(), servicesManager.services),
    },
  ],
};
