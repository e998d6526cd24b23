// Segmentations of a PACS: their labels by name, and what of them a task can take over.

import assert from "node:assert/strict";
import { test } from "node:test";

import { makeColorTable } from "../../../apps/iopfl/web/static/ohif/labelmaps.js";
import { canTakeOver, matchValues, segmentsOf } from "../../../apps/iopfl/web/static/ohif/segs.js";

const LABELS = [
  { name: "rim", value: 2, color: "#ff8000" },
  { name: "core", value: 5, color: "#0000fe" },
];
const SEGMENTS = [
  { name: "core", value: 1, color: "#000000" },
  { name: "rim", value: 2, color: "#000000" },
];

test("values are matched by the labels' names, not by their numbers", () => {
  const values = matchValues(SEGMENTS, LABELS);
  assert.deepEqual([...Uint8Array.of(0, 1, 2, 3, 2).map((value) => values[value])], [0, 5, 2, 0, 2]);
});

test("a segmentation with a label that the task has not cannot be taken over", () => {
  const images = {};
  const labelmap = { displaySet: images, task: { labels: LABELS } };
  assert.equal(canTakeOver(labelmap, { images, segments: SEGMENTS }), true);
  assert.equal(canTakeOver(labelmap, { images, segments: SEGMENTS.slice(1) }), true);
  assert.equal(canTakeOver(labelmap, { images: {}, segments: SEGMENTS }), false);
  const strange = [...SEGMENTS, { name: "cyst", value: 3, color: "#000000" }];
  assert.equal(canTakeOver(labelmap, { images, segments: strange }), false);
});

test("segments are read as OHIF lists them: by number, with a gap, and colors of fractions", () => {
  const data = [undefined, { SegmentNumber: "1", SegmentLabel: "rim", rgba: [255, 127.6, 0, 255] }];
  assert.deepEqual(segmentsOf({ segMetadata: { data } }), [{ name: "rim", value: 1, color: "#ff8000" }]);
});

test("a color table has the labels' colors at their values, and nothing elsewhere", () => {
  const table = makeColorTable(LABELS);
  assert.equal(table.length, 256);
  assert.deepEqual([table[2], table[5]], [[255, 128, 0, 255], [0, 0, 254, 255]]); // prettier-ignore
  assert.ok(table.every((color, value) => [2, 5].includes(value) || color.every((part) => part === 0)));
});
