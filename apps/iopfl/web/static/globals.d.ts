// Types for `npm run lint`; no page loads this. What the server's routes answer with, and what the pages use of OHIF 3.10
// and cornerstone3D, which give no module outside their bundle any types, or anything else to import.

/** JSON of the label server: web/routes.py, web/label_routes.py, web/work_routes.py, access/signin.py, and MONAI Label. */
declare namespace API {
  type ModelName = "routed" | "site" | "global" | "average";

  interface Label {
    name: string;
    color: string;
  }

  interface Entry {
    name: string;
    role: "global" | "personalized";
    round_index: number;
    samples: number;
    metrics: { dice?: number; dice_global?: number };
  }

  /** What a federation asked for last. */
  interface FederationRound {
    federation: string;
    round: number;
    kind: string;
    status: string;
    reason?: string;
    progress?: { step: number; steps: number };
  }

  interface TaskAlways {
    name: string;
    description: string;
    modality: string;
    labels: Label[];
    /** Quality score below which the experts disagree. */
    evidence: number;
    federations?: FederationRound[];
  }

  /** A task whose bank could not be read. */
  interface BrokenTask extends TaskAlways {
    error: string;
    entries?: undefined;
  }

  interface ServedTask extends TaskAlways {
    error?: string;
    bank: string;
    created: string;
    federation: string;
    entries: Entry[];
    choice: { kind: string; reason: string; metrics: Record<string, number> };
  }

  type Task = BrokenTask | ServedTask;

  interface Status {
    site: string | null;
    tasks: Task[];
    models: ModelName[];
  }

  interface Image {
    id: string;
    is_labeled: boolean;
    /** Task -> why the image is none of its. */
    not_of: Record<string, string>;
  }

  interface User {
    authentication: string;
    name: string;
    roles: string[];
  }

  interface Size {
    volume_ml?: number;
    long_axis_mm?: number;
    pixels?: number;
    long_axis_pixels?: number;
  }

  /** `params` of an inference: core/answers.py. */
  interface AnswerParams {
    model: string;
    bank: string;
    seconds: number;
    routing_weights?: Record<string, number>;
    quality?: number | null;
    share?: number;
    zooms?: number[];
    shortened?: string;
    reason?: string;
    left_out?: string[];
    measurements?: Record<string, Size>;
    warning?: string;
  }

  interface Answer {
    task: string;
    image: string;
    model: ModelName;
    params: AnswerParams;
    slices: number;
    best_slice: number;
    labels: { name: string; color: string; amount: number; unit: string; long_axis: number; long_axis_unit: string }[];
    reference: { is_there: boolean; problem: string; dice: Record<string, number | null> };
  }

  /** An answer that is being computed. */
  interface Work {
    id: string;
    task: string;
    image: string;
    yours: boolean;
    done: number;
    passes: number;
    percent: number;
    elapsed: number;
    expected: number | null;
  }

  interface Version {
    version: number;
    annotator: string;
    when: string;
    is_current: boolean;
    is_stored: boolean | null;
  }

  /** The labels that an image has. */
  interface History {
    image: string;
    rule: string;
    final: number | null;
    versions: Version[];
  }

  interface Waiting {
    image: string;
    version: number;
    reason: string;
    is_set_aside: boolean;
  }

  /** Of /iopfl/labels; the last three where the server works on a PACS. */
  interface Labels {
    pacs?: { problem: string; cannot?: string[] };
    left_out?: { image: string; reason: string }[];
    waiting?: Waiting[];
  }

  interface TrainStats {
    total_time?: string | number;
  }

  /** MONAI Label's /info/. */
  interface Info {
    models: Record<string, { type: string; labels: string[] | Record<string, number> }>;
    train_stats?: Record<string, TrainStats>;
  }

  /** MONAI Label's /train/. */
  interface Training {
    status: string;
    request?: { model?: string };
    details?: string[];
  }
}

declare namespace OHIF {
  interface DisplaySet {
    displaySetInstanceUID: string;
    SeriesInstanceUID: string;
    SeriesDescription: string;
    Modality: string;
    imageIds?: string[];
    numImageFrames?: number;
    isOverlayDisplaySet?: boolean;
    isReconstructable?: boolean;
    referencedDisplaySetInstanceUID?: string;
  }

  interface ImageSet extends DisplaySet {
    imageIds: string[];
  }

  /** A SEG series. */
  interface SegSet extends DisplaySet {
    Modality: "SEG";
    referencedDisplaySetInstanceUID: string;
    load(options: { headers: object }): Promise<void>;
    segMetadata: { data: (SegmentMetadata | undefined)[] };
  }

  interface SegmentMetadata {
    SegmentNumber: number | string;
    SegmentLabel: string;
    rgba: ArrayLike<number> & Iterable<number>;
  }

  interface Viewport {
    displaySetInstanceUIDs: string[];
    viewportOptions?: { viewportType?: string };
  }

  interface Change {
    viewportId: string;
    displaySetInstanceUIDs: string[];
  }

  interface Events {
    EVENTS: Record<string, string>;
    subscribe(event: string, listener: (about: any) => void): { unsubscribe(): void };
  }

  interface ViewportGridService extends Events {
    getState(): { viewports: Map<string, Viewport>; activeViewportId: string };
    getActiveViewportId(): string;
    setDisplaySetsForViewports(changes: Change[]): Promise<void>;
  }

  interface DisplaySetService extends Events {
    getDisplaySetByUID(uid: string | undefined): DisplaySet | undefined;
    getActiveDisplaySets(): DisplaySet[];
  }

  interface HangingProtocolService {
    getViewportsRequireUpdate(viewportId: string, uid: string, ...rest: unknown[]): Change[];
  }

  interface SegmentationService {
    getSegmentation(id: string): { representationData: Record<string, { imageIds: string[] }> };
    createLabelmapForDisplaySet(displaySet: DisplaySet, options: object): Promise<string>;
    getSegmentationRepresentations(
      viewportId: string,
      which?: { segmentationId: string },
    ): { segmentationId: string }[];
    addSegmentationRepresentation(viewportId: string, what: { segmentationId: string; type: string }): Promise<void>;
    removeSegmentationRepresentations(viewportId: string, which: { segmentationId: string }): void;
    getViewportIdsWithSegmentation(id: string): string[];
    setActiveSegmentation(viewportId: string, id: string): void;
    setActiveSegment(id: string, value: number): void;
    jumpToSegmentCenter(id: string, segment: number, viewportId?: string, alpha?: number, highlight?: boolean): void;
    remove(id: string): void;
  }

  interface Services {
    viewportGridService: ViewportGridService;
    displaySetService: DisplaySetService;
    hangingProtocolService: HangingProtocolService;
    segmentationService: SegmentationService;
    cornerstoneViewportService: { getCornerstoneViewport(id: string): Cornerstone.Viewport | null };
    toolbarService: { refreshToolbarState(about: { viewportId: string }): void };
  }

  interface Managers {
    servicesManager: { services: Services };
    commandsManager: object;
    extensionManager: { getModuleEntry(id: string): { component(): Element } };
  }

  interface Mode {
    routes: Route[];
    onModeEnter(context: Managers): void;
    onModeExit(context: Managers): void;
  }

  interface Route {
    layoutTemplate(...context: unknown[]): { props: object };
  }

  interface ModeFactory {
    modeConfiguration: object;
    loadModules(ids: string[]): Promise<{ modeFactory(about: object): Mode }[]>;
  }

  /** An element of OHIF's own React. */
  interface Element {
    type: any;
    key: string | null;
    props: { children?: any; className?: string; tabIndex?: number };
  }

  interface Response {
    status: number;
    data: any;
    headers: Record<string, string>;
  }

  /** MONAI Label's client of its own server. */
  interface Client {
    server_url: URL;
    infer(
      model: string,
      image: string,
      params: object,
      label?: null,
      form?: string,
      output?: string,
    ): Promise<Response>;
    next_sample(strategy: string, params: object): Promise<any>;
    run_train(params?: Record<string, object>): Promise<{ status: number }>;
    stop_train(): Promise<{ status: number }>;
  }

  interface Options {
    activelearning?: Record<string, object>;
  }

  /** The tab that chooses the next image and starts a training. */
  interface ActiveLearningTab {
    state: { strategy: string };
    setState(changes: { strategy?: string; training?: boolean }): void;
    forceUpdate(): void;
    onChangeStrategy(event: { target: HTMLSelectElement }): void;
    onClickNextSample(): void;
  }

  interface PanelState {
    info: { data?: API.Info };
    isDataReady?: boolean;
    options?: Options;
  }

  /** MONAI Label's panel, a component of React. */
  interface Panel {
    state: PanelState;
    actions: { activelearning: { current: ActiveLearningTab | null } };
    client(): Client;
    onInfo(): Promise<void>;
    updateView(): Promise<void>;
    setState(changes: Partial<PanelState> | ((state: PanelState) => Partial<PanelState>)): void;
    componentDidMount(): void;
    componentDidUpdate?(): void;
    componentWillUnmount?(): void;
    render(): Element;
  }

  type PanelClass = new (props: object) => Panel;
}

declare namespace Cornerstone {
  /** Of its `imagePlaneModule`. */
  interface Plane {
    rows: number;
    columns: number;
    rowCosines: Iterable<number>;
    columnCosines: Iterable<number>;
    imagePositionPatient?: Iterable<number>;
    rowPixelSpacing?: number;
    columnPixelSpacing?: number;
    sliceThickness?: number;
    isDefaultValueSetForRowCosine?: boolean;
    usingDefaultValues?: boolean;
  }

  interface Viewport {
    getImageData?(): object | undefined;
    getImageIds(): string[];
    jumpToWorld?(place: number[]): void;
  }

  interface Image {
    referencedImageId: string;
    voxelManager: { getScalarData(): Uint8Array };
  }

  interface ColorTables {
    addColorLUT(colors: number[][]): number;
    setColorLUT(viewportId: string, segmentationId: string, index: number): void;
  }

  interface Core {
    metaData: { get(kind: "imagePlaneModule", imageId: string): Plane };
    cache: { getImage(imageId: string): Image };
    eventTarget: EventTarget;
  }

  interface Tools {
    Enums: { SegmentationRepresentations: { Labelmap: string }; Events: { TOOL_ACTIVATED: string } };
    segmentation: {
      config: { color: ColorTables };
      triggerSegmentationEvents: { triggerSegmentationDataModified(id: string): void };
    };
  }
}

interface Window {
  config: object;
  commandsManager: { runCommand(name: string, options: object): unknown };
  cornerstone: Cornerstone.Core;
  cornerstoneTools: Cornerstone.Tools;
}
