// Our part of the panel: whose knowledge made the mask, how far to trust it, tools to correct it, and Submit.

import { make, swatch } from "../common/elements.js";
import { describeAnswer, section } from "./answer.js";
import { BRUSH, drawing, ERASER, setRadius, take } from "./drawing.js";
import { canTakeOver, hideOverlay, takeOver } from "./segs.js";
import { state, subscribe } from "./state.js";
import { canTakeBack, describeHistory, submit, takeBack } from "./submit.js";
import { rememberedName, rememberName, signOut } from "./user.js";

/** @typedef {import("./labelmaps.js").Labelmap} Labelmap */

/** @type {["outside" | "work" | "problem" | "done" | "training", role: string][]} */
const NOTES = [
  ["outside", "status"],
  ["work", "status"],
  ["problem", "alert"],
  ["done", "status"],
  ["training", "status"],
];

/**
 * A button for the mask that is looked at; without one it does nothing.
 * @param {string} text
 * @param {(labelmap: Labelmap) => void} act
 * @param {Partial<HTMLButtonElement>} [properties]
 */
const button = (text, act, properties = {}) =>
  make("button", { type: "button", ...properties, onclick: () => state.labelmap && act(state.labelmap) }, text);

class Card extends HTMLElement {
  #notes = NOTES.map(([name, role]) => ({ name, note: make("p", { className: `note ${name}`, role }) }));
  #stop = make("button", { type: "button", onclick: () => state.stop?.() }, "Stop");
  #session = makeSession();
  #overlay = make("div");
  #answer = make("div");
  #tools = makeTools();
  #sending = makeSending();
  #unsubscribe = () => {};

  /** What is shown by now: these parts are made anew only when something else is to be shown. */
  #shown = {
    /** @type {typeof state.overlay} */
    overlay: null,
    /** @type {Labelmap | null} what can become of the overlay */
    under: null,
    /** @type {Labelmap | null} */
    labelmap: null,
    /** @type {API.AnswerParams | null} */
    answer: null,
    /** @type {Labelmap["task"] | null} */
    task: null,
  };

  constructor() {
    super();
    const styles = make("link", { rel: "stylesheet", href: "/iopfl/static/ohif/card.css" });
    const notes = this.#notes.map(({ note }) => note);
    const foot = make("section", { className: "foot" }, this.#session.ended, ...notes, this.#stop, this.#sending.box); // always in view
    const parts = [styles, this.#session.box, this.#overlay, this.#answer, this.#tools.box, foot];
    this.attachShadow({ mode: "open" }).append(...parts); // OHIF's styles stay outside
  }

  connectedCallback() {
    this.#unsubscribe = subscribe(() => this.#show());
    this.#show();
  }

  disconnectedCallback() {
    this.#unsubscribe();
  }

  #show() {
    for (const { name, note } of this.#notes) {
      if (note.textContent !== state[name]) note.textContent = state[name]; // said once by a screen reader
      note.hidden = !state[name];
    }
    this.#stop.hidden = !state.stop;
    this.#showSession();
    this.#showOverlay();
    const { labelmap } = state;
    for (const part of [this.#answer, this.#tools.box, this.#sending.box]) part.hidden = !labelmap;
    if (!labelmap) return;
    this.#showAnswer(labelmap);
    this.#showTools(labelmap);
    this.#showSending(labelmap);
  }

  #showSession() {
    const { asked, account, who, ended } = this.#session;
    ended.hidden = !state.isSignedOut;
    asked.hidden = Boolean(state.user);
    who.hidden = !state.user;
    if (state.user) account.textContent = `Signed in as ${state.user.name}`;
  }

  /** A segmentation of the PACS. */
  #showOverlay() {
    const { overlay, labelmap } = state;
    this.#overlay.hidden = !overlay || !labelmap;
    if (!overlay || !labelmap || (this.#shown.overlay === overlay && this.#shown.under === labelmap)) return;
    this.#shown.overlay = overlay;
    this.#shown.under = labelmap;
    const names = overlay.segments.map(({ name, color }) => make("li", {}, swatch(color), name));
    const hide = button("Hide", ({ services }) => hideOverlay(services));
    const correct = button("Correct it", (current) => takeOver(current.services, current));
    const buttons = make("div", { className: "buttons" }, hide, canTakeOver(labelmap, overlay) ? correct : null);
    this.#overlay.replaceChildren(
      section(
        "Segmentation from the PACS",
        make("p", {}, overlay.title),
        make("ul", { className: "labels" }, ...names),
        buttons,
      ),
    );
  }

  /** @param {Labelmap} labelmap */
  #showAnswer(labelmap) {
    const { answer, task } = labelmap;
    if (this.#shown.labelmap === labelmap && this.#shown.answer === answer) return;
    this.#shown.labelmap = labelmap;
    this.#shown.answer = answer;
    this.#answer.replaceChildren(...describeAnswer(answer, task.evidence));
  }

  /** @param {Labelmap} labelmap */
  #showTools({ task, segment, undoable }) {
    const { brush, eraser, undo, labels, choices } = this.#tools;
    brush.setAttribute("aria-pressed", String(drawing.tool === BRUSH));
    eraser.setAttribute("aria-pressed", String(drawing.tool === ERASER));
    undo.disabled = !undoable.length;
    if (this.#shown.task !== task) {
      this.#shown.task = task;
      choices.clear();
      for (const { value } of task.labels) choices.set(value, makeChoice(value));
      const named = task.labels.map(({ name, value, color }) =>
        make("label", {}, choices.get(value), swatch(color), name),
      );
      labels.replaceChildren(make("legend", {}, "Label to draw"), ...named);
    }
    for (const [value, choice] of choices) choice.checked = value === segment;
  }

  /** @param {Labelmap} labelmap */
  #showSending({ isSubmitted, isEdited, history }) {
    const { send, hint, known, back } = this.#sending;
    const isBusy = Boolean(state.work);
    send.disabled = isBusy || isSubmitted;
    send.textContent = isSubmitted ? "Submitted" : "Submit label";
    const what = isEdited
      ? "Your changes are not submitted yet."
      : "Stores the mask as shown, for this site's next training.";
    hint.textContent = isSubmitted ? "Change the mask to submit it again." : what;
    known.textContent = describeHistory(history);
    back.hidden = !canTakeBack(history);
    back.disabled = isBusy;
  }
}

/** Who is at work. */
function makeSession() {
  const name = make("input", {
    type: "text",
    id: "iopfl-annotator",
    autocomplete: "name",
    value: rememberedName(),
    maxLength: 64,
    onchange: () => rememberName(name.value),
  });
  const asked = make("p", { className: "row" }, make("label", { htmlFor: name.id }, "Annotator"), name);
  const account = make("span");
  const leave = make("button", { type: "button", className: "link", onclick: signOut }, "Sign out");
  const who = make("p", { className: "row" }, account, leave);
  const ended = make(
    "p",
    { className: "note problem", role: "alert" },
    "Your session has ended. What you drew is still here: ",
    make("a", { href: "/iopfl/signin", target: "_blank", rel: "noopener" }, "sign in in a new tab"),
    ", come back here and go on.",
  );
  return { box: make("div", {}, who, asked), asked, account, who, ended };
}

/** Correcting the mask. */
function makeTools() {
  const brush = button("Brush", ({ services }) => take(services, BRUSH));
  const eraser = button("Eraser", ({ services }) => take(services, ERASER));
  const undo = button("Undo", (labelmap) => labelmap.undo(), { title: "Ctrl+Z" });
  const size = make("output", {}, `${drawing.radius} mm`);
  const radius = make("input", { type: "range", id: "iopfl-radius", min: "0.5", max: "30", step: "0.5" });
  radius.value = String(drawing.radius); // after its bounds, which would cut it
  radius.oninput = () => {
    setRadius(Number(radius.value));
    size.textContent = `${radius.value} mm`;
  };
  const labels = make("fieldset");
  const buttons = make("div", { className: "buttons" }, brush, eraser, undo);
  const width = make("p", { className: "row" }, make("label", { htmlFor: radius.id }, "Radius"), radius, size);
  /** @type {Map<number, HTMLInputElement>} value of a label -> what chooses it */
  const choices = new Map();
  return { box: section("Correct it", labels, buttons, width), brush, eraser, undo, labels, choices };
}

/** @param {number} value */
const makeChoice = (value) =>
  make("input", {
    type: "radio",
    name: "iopfl-label",
    value: String(value),
    onchange: () => state.labelmap?.select(value),
  });

/** Submitting, and what was submitted. */
function makeSending() {
  const send = button("Submit label", submit, { className: "primary" });
  const hint = make("small");
  const known = make("small");
  const back = button("Take mine back", takeBack, { className: "link" });
  const box = make("div", {}, send, make("p", {}, hint), make("p", {}, known, " ", back));
  return { box, send, hint, known, back };
}

customElements.define("iopfl-card", Card);
