// The panel that MONAI Label ships for OHIF, repaired from outside: a subclass of its React component.
//
// As shipped it waits for the person to type the server's address, cannot read labels that are not in a list, colors
// labels by a hash of their name, throws away what the server says besides the mask, writes a mask over whatever series is
// shown, overwrites the mask when it connects once more, ignores the chosen strategy, and gives no reason when
// something fails. Upstream: MONAI Label 0.8.5, static/ohif, module extensions/monai-label.

import { explain, getJson, Refused } from "../common/server.js";
import "./card.js";
import { watchTools } from "./drawing.js";
import { findLabelmap, show } from "./labelmaps.js";
import { readNrrd } from "./nrrd.js";
import { childrenOf, makeElement, withChildren } from "./react.js";
import { openInPlace } from "./segs.js";
import { attempt, state, update } from "./state.js";
import { loadHistory } from "./submit.js";
import { choose, describeForTabs, describeTasks, findReasons, findTask, sayOutside } from "./tasks.js";
import { followTraining, orderTraining, withBars } from "./training.js";
import { findUser, whoami } from "./user.js";
import { awaitImages, findDisplaySet, hasImages, hasSlices } from "./viewports.js";
import { follow } from "./work.js";

const SETTLED_MILLISECONDS = 300; // of the viewports' layout

/**
 * What an answer of axios that failed means; its body may have come as bytes.
 * @param {any} failed
 */
function explainAxios(failed) {
  const response = failed?.response ?? failed;
  const data = response?.data ?? "";
  const text = data instanceof ArrayBuffer ? new TextDecoder().decode(data) : data;
  return explain(response?.status ?? 0, typeof text === "string" ? text : JSON.stringify(text));
}

/**
 * The mask and what the server says about it: multipart, or JSON alone where there is no mask.
 * @param {OHIF.Response} response
 * @returns {Promise<{ params: API.AnswerParams, mask: import("./grid.js").Mask }>}
 */
async function readAnswer({ data, headers }) {
  const parts = await new Response(data, { headers: { "content-type": headers["content-type"] } }).formData();
  const [params, image] = [parts.get("params"), parts.get("image")];
  if (!(image instanceof Blob)) throw new Refused("The server sent no mask.");
  return { params: JSON.parse(await new Response(params).text()), mask: readNrrd(await image.arrayBuffer()) };
}

/**
 * The shipped panel without the tabs for models that take clicks or classes: here are none, and they stumble over our masks.
 * @param {OHIF.Element} panel
 */
function withoutPrompts(panel) {
  /** @param {OHIF.Element} part */
  const isTabs = (part) => part?.props?.className?.split(" ").includes("tabs");
  /** @param {OHIF.Element} tab */
  const isOurs = (tab) => Number(tab.props.tabIndex) <= 2; // active learning, and segmentation
  const parts = childrenOf(panel);
  return withChildren(
    panel,
    parts.map((part) => (isTabs(part) ? withChildren(part, childrenOf(part).filter(isOurs)) : part)),
  );
}

/**
 * Our panel, a component for OHIF.
 * @param {OHIF.PanelClass} Shipped
 * @param {object} props that the shipped one is given
 * @param {OHIF.Services} services
 */
export function makePanel(Shipped, props, services) {
  return class Panel extends Shipped {
    static defaultProps = props;

    isGone = false;
    isConnecting = false;
    /** @type {(() => void)[]} */
    stops = [];
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    following = undefined;

    /** @param {object} given */
    constructor(given) {
      super(given);
      const makeClient = this.client;
      this.client = () => this.repairClient(makeClient());
      this.onInfo = async () => {
        this.isConnecting = true;
        await attempt("Connecting to the label server…", () => this.connect());
        this.isConnecting = false;
      };
      this.updateView = async () => {}; // the mask is shown by `run`, on the images that it was asked for
    }

    componentDidMount() {
      const { viewportGridService } = services;
      const { ACTIVE_VIEWPORT_ID_CHANGED, GRID_STATE_CHANGED } = viewportGridService.EVENTS;
      const events = [ACTIVE_VIEWPORT_ID_CHANGED, GRID_STATE_CHANGED];
      const subscriptions = events.map((event) => viewportGridService.subscribe(event, () => this.follow()));
      this.stops = [...subscriptions.map(({ unsubscribe }) => unsubscribe), watchTools(), openInPlace(services)];
      this.onInfo();
    }

    componentDidUpdate() {
      const tab = this.actions.activelearning.current;
      if (!tab || repaired.has(tab)) return;
      repaired.add(tab);
      tab.onChangeStrategy = (event) => tab.setState({ strategy: event.target.value });
      tab.onClickNextSample = () => attempt("Looking for the next image…", () => this.openNext(tab.state.strategy));
      tab.forceUpdate();
    }

    componentWillUnmount() {
      this.isGone = true;
      for (const stop of this.stops) stop();
    }

    async connect() {
      /** @type {[API.Info, API.Status, void]} */
      const [info, status] = await Promise.all([getJson("/info/"), getJson("/iopfl/status"), findUser()]);
      update({ tasks: describeTasks(info, status) });
      const shown = describeForTabs(withBars(info, false));
      this.setState({ info: shown, isDataReady: true, options: this.state.options ?? {} });
      if (!state.tasks.length) throw new Refused("This server has no task: it needs a model bank.");
      followTraining(this, { onlyIfRunning: true });
      const displaySet = await awaitImages(services, () => this.isGone);
      if (displaySet) await this.open(displaySet, await choose(displaySet));
    }

    /**
     * @param {OHIF.ImageSet} displaySet
     * @param {import("./state.js").Task} task
     */
    async open(displaySet, task) {
      if (displaySet !== state.labelmap?.displaySet) update({ done: "", problem: "" }); // of other images
      const labelmap = await findLabelmap(services, displaySet, task);
      const reason = (await findReasons(displaySet))[task.name];
      update({ outside: reason ? sayOutside(task, reason) : "" });
      if (!labelmap.history) await loadHistory(labelmap);
      return labelmap;
    }

    /** The viewports show something else now: so does the card. */
    follow() {
      clearTimeout(this.following);
      this.following = setTimeout(async () => {
        if (this.isGone || this.isConnecting || !state.tasks.length || !hasImages(findDisplaySet(services))) return;
        try {
          const displaySet = await awaitImages(services, () => this.isGone);
          if (!displaySet) return;
          if (displaySet === state.labelmap?.displaySet) await show(services, state.labelmap);
          else await this.open(displaySet, await choose(displaySet));
        } catch (problem) {
          if (!this.isGone) update({ problem: problem.message });
        }
      }, SETTLED_MILLISECONDS);
    }

    /** @param {OHIF.Client} client */
    repairClient(client) {
      const { infer, next_sample: nextSample } = client;
      client.server_url = new URL("/", window.location.href);
      client.infer = async (model, image, params) => {
        const ask = () => infer.call(client, model, image, { ...params, client_id: whoami() }, null, ".nrrd", "all");
        const isDone = await attempt(
          `${model} is computing. A first answer takes some seconds, a large series longer.`,
          () => this.run(model, () => follow(model, image, ask())),
        );
        return { status: isDone ? 200 : 0, data: null, headers: {} };
      };
      client.next_sample = async (strategy, params) => {
        const response = await nextSample.call(client, strategy, { ...params, client_id: whoami() });
        if (response.status !== 200) throw explainAxios(response);
        return response.data;
      };
      client.run_train = async (params = {}) => {
        const isStarted = await attempt("Starting the training…", () => this.train(params));
        return { status: isStarted ? 200 : 0 };
      };
      client.stop_train = async () => {
        const isStopped = await attempt("Stopping the training…", () => orderTraining("DELETE", "/train/"));
        return { status: isStopped ? 200 : 0 };
      };
      return client;
    }

    /**
     * Ask for a mask and show it on the images that it was asked for; says whether it is shown.
     * @param {string} model
     * @param {() => Promise<OHIF.Response>} ask
     */
    async run(model, ask) {
      const displaySet = findDisplaySet(services);
      if (!hasSlices(displaySet)) {
        throw new Refused("The viewer shows no images to segment: choose a series on the left.");
      }
      const task = findTask(model);
      const labelmap = await this.open(displaySet, task);
      const reason = (await findReasons(displaySet))[task.name];
      if (reason && !window.confirm(`${sayOutside(task, reason)} Compute a mask all the same?`)) return false;
      const response = await ask();
      if (response.status !== 200) throw explainAxios(response);
      const { params, mask } = await readAnswer(response);
      if (this.isGone) return false;
      labelmap.fill(mask, params, model);
      return true;
    }

    /**
     * Train the task at hand alone: as shipped, all that the server has are trained.
     * @param {Record<string, object>} params
     */
    async train(params) {
      const { name } = state.labelmap?.task ?? state.tasks[0];
      const body = new Blob([JSON.stringify(params[name] ?? {})], { type: "application/json" });
      await orderTraining("POST", `/train/${name}`, { body });
      followTraining(this);
      return true;
    }

    /** @param {string} strategy */
    async openNext(strategy) {
      const found = await this.client().next_sample(strategy, this.state.options?.activelearning?.[strategy] ?? {});
      if (!found?.id) {
        update({ done: "Every image of this server has a label: there is no next one." });
        return;
      }
      const study = found.StudyInstanceUID ?? (await findStudy(found.id));
      const address = new URLSearchParams({ StudyInstanceUIDs: study, initialSeriesInstanceUID: found.id });
      window.location.assign(`/ohif/monai-label?${address}`);
    }

    render() {
      const panel = withoutPrompts(super.render());
      const className = this.state.isDataReady ? "iopfl-panel is-connected" : "iopfl-panel";
      const children = [
        makeElement(panel, panel.type, panel.props, "panel"),
        makeElement(panel, "iopfl-card", {}, "card"),
      ];
      return makeElement(panel, "div", { className, children });
    }
  };
}

/** @type {WeakSet<OHIF.ActiveLearningTab>} tabs that do what they are told */
const repaired = new WeakSet();

/** @param {string} series */
async function findStudy(series) {
  const query = { SeriesInstanceUID: series, includefield: "0020000D" };
  const [found] = await getJson("/proxy/dicom/qido/series", { query });
  const study = found?.["0020000D"]?.Value?.[0];
  if (!study) throw new Refused("The next image is not in the PACS any more: try again.");
  return study;
}
