// The panel that MONAI Label ships for OHIF, repaired from outside: a subclass of its React component.
//
// As shipped it waits for the person to type the server's address, cannot read labels that are not in a list, colors
// labels by a hash of their name, throws away what the server says besides the mask, writes a mask over whatever series is
// shown, overwrites the mask when it connects once more, ignores the chosen strategy, and gives no reason when
// something fails. Upstream: MONAI Label 0.8.5, static/ohif, module extensions/monai-label.

import { watchTools } from './drawing.js';
import { findLabelmap, show } from './labelmaps.js';
import { readNrrd } from './nrrd.js';
import { openInPlace } from './segs.js';
import { explain, getJson, Refused } from './server.js';
import { attempt, state, update } from './state.js';
import { loadHistory } from './submit.js';
import { followTraining, orderTraining, withBars } from './training.js';
import { findUser, whoami } from './user.js';
import { awaitImages, findDisplaySet, hasImages } from './viewports.js';
import { follow } from './work.js';
import './card.js';

const SETTLED_MILLISECONDS = 300; // of the viewports' layout

/** What an answer of axios that failed means; its body may have come as bytes. */
function explainAxios(failed) {
  const response = failed?.response ?? failed;
  const data = response?.data;
  const body = data instanceof ArrayBuffer ? new TextDecoder().decode(data) : typeof data === 'string' ? data : JSON.stringify(data ?? '');
  return explain(response?.status ?? 0, body);
}

/** The mask and what the server says about it: multipart, or JSON alone where there is no mask. */
async function readAnswer({ data, headers }) {
  const parts = await new Response(data, { headers: { 'content-type': headers['content-type'] } }).formData();
  return { params: JSON.parse(await new Response(parts.get('params')).text()), mask: readNrrd(await parts.get('image').arrayBuffer()) };
}

/** The server's description in the form in which the shipped tabs read it. */
function describeForTabs(info, names) {
  const found = { models: names, labels: [], data: info, initialSegs: {}, modelLabelToIdxMap: {}, modelIdxToLabelMap: {}, modelLabelNames: {}, modelLabelIndices: {} };
  for (const name of names) {
    const { labels } = info.models[name];
    const values = Array.isArray(labels) ? labels.map((label, index) => [label, index + 1]) : Object.entries(labels ?? {});
    found.modelLabelToIdxMap[name] = Object.fromEntries(values);
    found.modelIdxToLabelMap[name] = Object.fromEntries(values.map(([label, value]) => [value, label]));
    found.modelLabelNames[name] = values.map(([label]) => label).sort();
    found.modelLabelIndices[name] = values.map(([, value]) => value).sort((a, b) => a - b);
    found.labels = [...new Set([...found.labels, ...found.modelLabelNames[name]])].sort();
  }
  return found;
}

/** The tasks with their labels' values and colors, from both descriptions of the server. */
const describeTasks = (info, status) => status.tasks.filter((task) => info.models[task.name]).map((task) => ({
  ...task,
  labels: task.labels.map((label) => ({ ...label, value: info.models[task.name].labels[label.name] })).sort((a, b) => a.value - b.value),
}));

const reasons = new Map(); // series -> task -> why the series is none of the task's

async function findReasons({ SeriesInstanceUID: image }) {
  if (!reasons.has(image)) {
    const found = await getJson('/iopfl/image', { image }).catch(() => null); // not listed yet, or the server is away
    if (!found) return {};
    reasons.set(image, found.not_of);
  }
  return reasons.get(image);
}

/** The task at hand if it is one for these images, else one that is. */
async function choose(displaySet) {
  const notOf = await findReasons(displaySet);
  const ofModality = [state.labelmap?.task, ...state.tasks].filter((task) => task?.modality === displaySet.Modality);
  return ofModality.find((task) => !notOf[task.name]) ?? ofModality[0] ?? state.tasks[0];
}

const sayOutside = (task, reason) => `This series is outside task ${task.name}: ${reason}.`;

const findTask = (model) => state.tasks.find((task) => model === task.name || model === `${task.name}_routed`) ?? state.tasks[0];

/**
 * Make the component of our panel.
 * @param makeShipped makes an element of the shipped one; its type is the component.
 */
export function makePanel(makeShipped, services) {
  let Component;
  return () => {
    const shipped = makeShipped();
    // Elements in the form of OHIF's own React, which no module outside its bundle can import.
    const element = (type, props, key = null) => ({ ...shipped, type, props, key });
    Component ??= repair(shipped.type, services, element);
    return element(Component, shipped.props);
  };
}

const withChildren = (parent, change) => ({ ...parent, props: { ...parent.props, children: change(parent.props.children) } });

/** The shipped panel without the tabs for models that take clicks or classes: here are none, and they stumble over our masks. */
function withoutPrompts(panel) {
  const isTabs = (child) => child?.props?.className?.split(' ').includes('tabs');
  const isOurs = (tab) => tab.props.tabIndex <= 2; // active learning, and segmentation
  return withChildren(panel, (children) => children.map((child) => (isTabs(child) ? withChildren(child, (tabs) => tabs.filter(isOurs)) : child)));
}

function repair(Shipped, services, element) {
  return class Panel extends Shipped {
    constructor(props) {
      super(props);
      const makeClient = this.client;
      this.client = () => this.repairClient(makeClient());
      this.onInfo = async () => {
        this.isConnecting = true;
        await attempt('Connecting to the label server…', () => this.connect());
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
      if (!tab || tab.isRepaired) return;
      tab.isRepaired = true;
      tab.onChangeStrategy = (event) => tab.setState({ strategy: event.target.value });
      tab.onClickNextSample = () => attempt('Looking for the next image…', () => this.openNext(tab.state.strategy));
      tab.forceUpdate();
    }

    componentWillUnmount() {
      this.isGone = true;
      for (const stop of this.stops) stop();
    }

    async connect() {
      const [info, status] = await Promise.all([getJson('/info/'), getJson('/iopfl/status'), findUser()]);
      const names = Object.keys(info.models).filter((name) => info.models[name].type === 'segmentation');
      update({ info, tasks: describeTasks(info, status) });
      this.setState({ info: describeForTabs(withBars(info, false), names), isDataReady: true, options: this.state.options ?? {} });
      if (!state.tasks.length) throw new Refused('This server has no task: it needs a model bank.');
      followTraining(this, { onlyIfRunning: true });
      const displaySet = await awaitImages(services, () => this.isGone);
      if (displaySet) await this.open(displaySet, await choose(displaySet));
    }

    async open(displaySet, task) {
      if (displaySet !== state.labelmap?.displaySet) update({ done: '', problem: '' }); // of other images
      const labelmap = await findLabelmap(services, displaySet, task);
      const reason = (await findReasons(displaySet))[task.name];
      update({ outside: reason ? sayOutside(task, reason) : '' });
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

    repairClient(client) {
      const { infer, next_sample: nextSample } = client;
      client.server_url = new URL('/', window.location.href);
      client.infer = (model, image, params) => attempt(`${model} is computing. A first answer takes some seconds, a large series longer.`,
        () => this.run(model, image, () => follow(model, image, infer.call(client, model, image, { ...params, client_id: whoami() }, null, '.nrrd', 'all'))))
        .then((isDone) => ({ status: isDone ? 200 : 0, data: null }));
      client.next_sample = async (strategy, params) => {
        const response = await nextSample.call(client, strategy, { ...params, client_id: whoami() });
        if (response.status !== 200) throw explainAxios(response);
        return response.data;
      };
      client.run_train = (params) => attempt('Starting the training…', () => this.train(params ?? {}))
        .then((isStarted) => ({ status: isStarted ? 200 : 0 }));
      client.stop_train = () => attempt('Stopping the training…', () => orderTraining('DELETE', '/train/'))
        .then((isStopped) => ({ status: isStopped ? 200 : 0 }));
      return client;
    }

    /** Ask for a mask and show it on the images that it was asked for. */
    async run(model, image, ask) {
      const displaySet = findDisplaySet(services);
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

    /** Train the task at hand alone: as shipped, all that the server has are trained. */
    async train(params) {
      const { name } = state.labelmap?.task ?? state.tasks[0];
      const body = new Blob([JSON.stringify(params[name] ?? {})], { type: 'application/json' });
      await orderTraining('POST', `/train/${name}`, { body });
      followTraining(this, {});
      return true;
    }

    async openNext(strategy) {
      const found = await this.client().next_sample(strategy, this.state.options?.activelearning?.[strategy] ?? {});
      if (!found?.id) {
        update({ done: 'Every image of this server has a label: there is no next one.' });
        return;
      }
      const study = found.StudyInstanceUID ?? (await this.findStudy(found.id));
      const address = new URLSearchParams({ StudyInstanceUIDs: study, initialSeriesInstanceUID: found.id });
      window.location.assign(`/ohif/monai-label?${address}`);
    }

    async findStudy(series) {
      const [found] = await getJson('/proxy/dicom/qido/series', { SeriesInstanceUID: series, includefield: '0020000D' });
      const study = found?.['0020000D']?.Value?.[0];
      if (!study) throw new Refused('The next image is not in the PACS any more: try again.');
      return study;
    }

    render() {
      const panel = withoutPrompts(super.render());
      const className = this.state.isDataReady ? 'iopfl-panel is-connected' : 'iopfl-panel';
      return element('div', { className, children: [{ ...panel, key: 'panel' }, element('iopfl-card', {}, 'card')] });
    }
  };
}
