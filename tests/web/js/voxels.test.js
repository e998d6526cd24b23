// Masks as voxels: joined, compared and put back, and where most of them lie.

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  compare,
  findFullest,
  findStranger,
  forgetOldest,
  join,
  putBack,
  split,
} from "../../../apps/iopfl/web/static/ohif/voxels.js";
import { seeded } from "./seeded.js";

const empty = (count, length = 6) => Array.from({ length: count }, () => new Uint8Array(length));

test("slices that are joined and split are as before", () => {
  const random = seeded(0);
  const slices = empty(3).map((slice) => slice.map(() => 256 * random()));
  const data = join(slices);
  assert.deepEqual([...data], [...slices[0], ...slices[1], ...slices[2]]);
  const copies = empty(3);
  split(data, copies);
  assert.deepEqual(copies, slices);
});

test("changes are put back one by one, the newest first", () => {
  const random = seeded(1);
  const data = Uint8Array.from({ length: 50 }, () => 6 * random());
  const [states, steps] = [[], []];
  for (let change = 0; change < 20; change += 1) {
    const before = data.slice();
    for (let stroke = 0; stroke < 5; stroke += 1) data[Math.floor(50 * random())] = 6 * random();
    const step = compare(before, data);
    if (!step) continue;
    states.push(before);
    steps.push(step);
  }
  assert.ok(steps.length > 10);
  while (steps.length) {
    putBack(data, steps.pop());
    assert.deepEqual(data, states.pop());
  }
});

test("where nothing changed there is no step", () => {
  assert.equal(compare(new Uint8Array(9), new Uint8Array(9)), null);
});

test("the oldest steps are forgotten when all are too much, and the newest never", () => {
  const step = (size) => ({ indices: new Uint32Array(size), values: new Uint8Array(size) });
  const sizesLeft = (sizes, limit) => {
    const steps = sizes.map(step);
    forgetOldest(steps, limit);
    return steps.map(({ indices }) => indices.length);
  };
  assert.deepEqual(sizesLeft([4, 3, 2], 9), [4, 3, 2]);
  assert.deepEqual(sizesLeft([4, 3, 2], 8), [3, 2]);
  assert.deepEqual(sizesLeft([4, 3, 20], 8), [20]);
});

test("the fullest column, row and slice are each found by themselves", () => {
  const slices = empty(3); // 3 columns, 2 rows
  slices[2].set([0, 1, 1, 0, 0, 1]);
  slices[0].set([5, 0, 0, 0, 0, 0]);
  assert.deepEqual(findFullest(slices, [3, 2, 3]), [2, 0, 2]);
  assert.equal(findFullest(empty(3), [3, 2, 3]), null);
});

test("a value that no label has is found; the background is none", () => {
  assert.equal(findStranger(Uint8Array.of(0, 2, 5, 5), [2, 5]), undefined);
  assert.equal(findStranger(Uint8Array.of(0, 2, 4, 5), [2, 5]), 4);
});
