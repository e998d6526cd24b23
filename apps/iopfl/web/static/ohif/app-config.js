// OHIF's settings, in place of those that MONAI Label ships: the PACS is reached through this server, and no other
// host is; two modules of ours are loaded by OHIF itself, after its own.
window.config = {
  routerBasename: "/ohif/",
  showStudyList: true,
  extensions: ["/iopfl/static/ohif/extension.js"],
  modes: ["/iopfl/static/ohif/mode.js"],
  showWarningMessageForCrossOrigin: true,
  showCPUFallbackMessage: true,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  useSharedArrayBuffer: "FALSE",
  defaultDataSourceName: "dicomweb",
  dataSources: [
    {
      namespace: "@ohif/extension-default.dataSourcesModule.dicomweb",
      sourceName: "dicomweb",
      configuration: {
        friendlyName: "PACS",
        name: "PACS",
        qidoRoot: "/proxy/dicom/qido",
        wadoRoot: "/proxy/dicom/wado",
        wadoUriRoot: "/proxy/dicom/wado",
        stowRoot: "/proxy/dicom/stow",
        qidoSupportsIncludeField: true,
        supportsReject: false,
        supportsFuzzyMatching: true,
        supportsWildcard: true,
        imageRendering: "wadors",
        thumbnailRendering: "wadors",
        enableStudyLazyLoad: false,
        dicomUploadEnabled: false,
        bulkDataURI: { enabled: true },
      },
    },
  ],
  /** @param {{ status: number }} error */
  httpErrorHandler: (error) => {
    if (error.status === 401) window.dispatchEvent(new Event("iopfl-signed-out"));
    console.warn(error.status);
  },
};
