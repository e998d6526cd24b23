// Our part of the panel: whose knowledge made the mask, how far to trust it, tools to correct it, and Submit.

import { describeAnswer } from './answer.js';
import { BRUSH, drawing, ERASER, setRadius, take } from './drawing.js';
import { make, section, swatch } from './elements.js';
import { canTakeOver, hideOverlay, takeOver } from './segs.js';
import { state, subscribe } from './state.js';
import { canTakeBack, describeHistory, submit, takeBack } from './submit.js';
import { rememberedName, rememberName, signOut } from './user.js';

const NOTES = { outside: 'status', work: 'status', problem: 'alert', done: 'status', training: 'status' };

class Card extends HTMLElement {
  connectedCallback() {
    this.notes = Object.entries(NOTES).map(([name, role]) => make('p', { className: `note ${name}`, role }));
    this.answer = make('div');
    this.tools = this.makeTools();
    this.sending = this.makeSending();
    this.session = this.makeSession();
    this.stop = make('button', { type: 'button', onclick: () => state.stop?.() }, 'Stop');
    this.overlay = make('div');
    this.root ??= this.attachShadow({ mode: 'open' }); // OHIF's styles stay outside
    const styles = make('link', { rel: 'stylesheet', href: '/ohif/iopfl/card.css' });
    const foot = make('section', { className: 'foot' }, this.session.ended, ...this.notes, this.stop, this.sending.box); // always in view
    this.root.replaceChildren(styles, this.session.box, this.overlay, this.answer, this.tools.box, foot);
    this.unsubscribe = subscribe(() => this.show());
    this.show();
  }

  disconnectedCallback() {
    this.unsubscribe();
  }

  show() {
    this.notes.forEach((note, index) => {
      const text = state[Object.keys(NOTES)[index]];
      if (note.textContent !== text) note.textContent = text;
      note.hidden = !text;
    });
    this.stop.hidden = !state.stop;
    this.showSession();
    this.showOverlay();
    const { labelmap } = state;
    for (const part of [this.answer, this.tools.box, this.sending.box]) part.hidden = !labelmap;
    if (!labelmap) return;
    if (this.answerOf !== labelmap || this.shownAnswer !== labelmap.answer) this.answer.replaceChildren(...describeAnswer(labelmap.answer, labelmap.task.evidence));
    Object.assign(this, { answerOf: labelmap, shownAnswer: labelmap.answer });
    this.showTools(labelmap);
    this.showSending(labelmap);
  }

  // ---- who ----

  makeSession() {
    const name = make('input', { type: 'text', id: 'iopfl-annotator', autocomplete: 'name', value: rememberedName(), maxLength: 64, onchange: () => rememberName(name.value) });
    const asked = make('p', { className: 'row' }, make('label', { htmlFor: name.id }, 'Annotator'), name);
    const account = make('span');
    const who = make('p', { className: 'row' }, account, make('button', { type: 'button', className: 'link', onclick: signOut }, 'Sign out'));
    const ended = make('p', { className: 'note problem', role: 'alert' },
      'Your session has ended. What you drew is still here: ',
      make('a', { href: '/iopfl/signin', target: '_blank', rel: 'noopener' }, 'sign in in a new tab'), ', come back here and go on.');
    return { box: make('div', {}, who, asked), asked, account, who, ended };
  }

  showSession() {
    const { asked, account, who, ended } = this.session;
    ended.hidden = !state.isSignedOut;
    asked.hidden = Boolean(state.user);
    who.hidden = !state.user;
    if (state.user) account.textContent = `Signed in as ${state.user.name}`;
  }

  // ---- a segmentation of the PACS ----

  showOverlay() {
    const { overlay, labelmap } = state;
    this.overlay.hidden = !overlay;
    if (!overlay || this.overlayShown === overlay) return;
    this.overlayShown = overlay;
    const { services } = labelmap;
    const list = make('ul', { className: 'labels' }, ...overlay.segments.map(({ name, color }) => make('li', {}, swatch(color), name)));
    const buttons = make('div', { className: 'buttons' },
      make('button', { type: 'button', onclick: () => hideOverlay(services) }, 'Hide'),
      canTakeOver(labelmap, overlay) ? make('button', { type: 'button', onclick: () => takeOver(services, labelmap) }, 'Correct it') : null);
    this.overlay.replaceChildren(section('Segmentation from the PACS', make('p', {}, overlay.title), list, buttons));
  }

  // ---- correcting ----

  makeTools() {
    const services = () => state.labelmap.services;
    const tool = (name, text) => make('button', { type: 'button', onclick: () => take(services(), name) }, text);
    const brush = tool(BRUSH, 'Brush');
    const eraser = tool(ERASER, 'Eraser');
    const undo = make('button', { type: 'button', title: 'Ctrl+Z', onclick: () => state.labelmap.undo() }, 'Undo');
    const size = make('output', {}, `${drawing.radius} mm`);
    const radius = make('input', { type: 'range', id: 'iopfl-radius', min: 0.5, max: 30, step: 0.5, value: drawing.radius });
    radius.oninput = () => { setRadius(Number(radius.value)); size.textContent = `${radius.value} mm`; };
    const labels = make('fieldset', {}, make('legend', {}, 'Label to draw'));
    const box = section('Correct it', labels, make('div', { className: 'buttons' }, brush, eraser, undo),
      make('p', { className: 'row' }, make('label', { htmlFor: radius.id }, 'Radius'), radius, size));
    return { box, brush, eraser, undo, labels };
  }

  showTools(labelmap) {
    const { brush, eraser, undo, labels } = this.tools;
    brush.setAttribute('aria-pressed', String(drawing.tool === BRUSH));
    eraser.setAttribute('aria-pressed', String(drawing.tool === ERASER));
    undo.disabled = !labelmap.undoable.length;
    if (labels.ofTask !== labelmap.task) {
      labels.ofTask = labelmap.task;
      const choices = labelmap.task.labels.map(({ name, value, color }) => make('label', {},
        make('input', { type: 'radio', name: 'iopfl-label', value, onchange: () => state.labelmap.select(value) }), swatch(color), name));
      labels.replaceChildren(labels.firstChild, ...choices);
    }
    for (const input of labels.querySelectorAll('input')) input.checked = Number(input.value) === labelmap.segment;
  }

  // ---- submitting ----

  makeSending() {
    const button = make('button', { type: 'button', className: 'primary', onclick: () => submit(state.labelmap) });
    const hint = make('small');
    const history = make('small');
    const back = make('button', { type: 'button', className: 'link', onclick: () => takeBack(state.labelmap) }, 'Take mine back');
    const box = make('div', {}, button, make('p', {}, hint), make('p', {}, history, ' ', back));
    return { box, button, hint, history, back };
  }

  showSending(labelmap) {
    const { button, hint, history, back } = this.sending;
    const isBusy = Boolean(state.work);
    button.disabled = isBusy || labelmap.isSubmitted;
    button.textContent = labelmap.isSubmitted ? 'Submitted' : 'Submit label';
    const what = labelmap.isEdited ? 'Your changes are not submitted yet.' : 'Stores the mask as shown, for this site\'s next training.';
    hint.textContent = labelmap.isSubmitted ? 'Change the mask to submit it again.' : what;
    history.textContent = describeHistory(labelmap.history);
    back.hidden = !canTakeBack(labelmap.history);
    back.disabled = isBusy;
  }
}

customElements.define('iopfl-card', Card);
