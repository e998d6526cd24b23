// Where slices lie: in the order along their normal, on the grid that the server has.

import assert from "node:assert/strict";
import { test } from "node:test";

import { makeGrid, place, takeSlices } from "../../../apps/iopfl/web/static/ohif/grid.js";

const SIZE = { rows: 3, columns: 4, rowPixelSpacing: 0.7, columnPixelSpacing: 0.8 };

/** Planes of straight axial slices at these places. */
const planes = (positions, changes = {}) =>
  positions.map((imagePositionPatient) => ({
    ...SIZE,
    rowCosines: [1, 0, 0],
    columnCosines: [0, 1, 0],
    imagePositionPatient,
    ...changes,
  }));

const near = (found, expected) =>
  found.forEach((value, index) => assert.ok(Math.abs(value - expected[index]) < 1e-9, `${found} is not ${expected}`));

/** A mask on a grid, every voxel of a value of its own. */
const numbered = ({ sizes, axes, origin }) => {
  const data = Uint8Array.from({ length: sizes[0] * sizes[1] * sizes[2] }, (_, index) => index);
  return { sizes, axes, origin, data };
};

test("slices are put in order along their normal, whatever order they came in", () => {
  const grid = makeGrid(planes([[1, 2, 8], [1, 2, 3], [1, 2, 5.5]])); // prettier-ignore
  assert.deepEqual(grid.order, [1, 2, 0]);
  assert.deepEqual(grid.sizes, [4, 3, 3]);
  near(grid.origin, [1, 2, 3]);
  near(grid.axes[2], [0, 0, 2.5]);
  near(place(grid, [3, 2, 1]), [1 + 3 * 0.8, 2 + 2 * 0.7, 5.5]);
});

test("directions that a scanner rounded are set at right angles", () => {
  const rounded = { rowCosines: [0.87, 0.5, 0], columnCosines: [-0.42, 0.73, 0.54] };
  const { axes } = makeGrid(planes([[0, 0, 0], [0, 0, 2]], rounded)); // prettier-ignore
  const dot = axes[0].reduce((sum, value, index) => sum + value * axes[1][index], 0);
  near([dot, Math.hypot(...axes[0]), Math.hypot(...axes[1])], [0, 0.8, 0.7]);
});

test("a single slice is as thick as it says", () => {
  near(makeGrid(planes([[0, 0, 0]], { sliceThickness: 4 })).axes[2], [0, 0, 4]);
  near(makeGrid(planes([[0, 0, 0]])).axes[2], [0, 0, 1]);
});

for (const missing of [
  { imagePositionPatient: undefined },
  { rowPixelSpacing: undefined },
  { isDefaultValueSetForRowCosine: true },
  { usingDefaultValues: true },
]) {
  test(`a photograph has no place: ${Object.keys(missing)}`, () => {
    const grid = makeGrid(planes([[0, 0, 0]], missing));
    assert.equal(grid.isPlaced, false);
    assert.equal(grid.straight, undefined);
    const mask = { ...numbered(grid), axes: null, origin: null };
    assert.equal(takeSlices(mask, grid), mask.data);
  });
}

test("a mask on the same grid is taken as it is", () => {
  const grid = makeGrid(planes([[0, 0, 0], [0, 0, 2]])); // prettier-ignore
  const mask = numbered(grid.straight);
  assert.equal(takeSlices(mask, grid), mask.data);
});

test("of slices that shift sideways, each takes its part of the straight grid", () => {
  // By two columns to the right and a row up from slice to slice.
  const grid = makeGrid(planes([0, 1, 2].map((k) => [1.6 * k, -0.7 * k, 2 * k])));
  assert.deepEqual(grid.straight.sizes, [8, 5, 3]);
  assert.deepEqual(grid.straight.offsets, [[0, 2], [2, 1], [4, 0]]); // prettier-ignore
  near(grid.straight.origin, [0, -1.4, 0]);
  const mask = numbered(grid.straight);
  const taken = takeSlices(mask, grid);
  for (let k = 0; k < 3; k += 1) {
    for (let y = 0; y < 3; y += 1) {
      for (let x = 0; x < 4; x += 1) {
        const [column, row] = [x + grid.straight.offsets[k][0], y + grid.straight.offsets[k][1]];
        assert.equal(taken[x + 4 * (y + 3 * k)], mask.data[column + 8 * (row + 5 * k)]);
      }
    }
  }
});

test("a mask of another size is refused, with both sizes", () => {
  const grid = makeGrid(planes([[0, 0, 0], [0, 0, 2]])); // prettier-ignore
  const mask = numbered({ ...grid.straight, sizes: [4, 3, 3] });
  assert.throws(() => takeSlices(mask, grid), { message: /has 4 x 3 x 3 voxels, the images have 4 x 3 x 2/ });
});

test("a mask beside the images is refused; a tenth of a voxel is none", () => {
  const grid = makeGrid(planes([[0, 0, 0], [0, 0, 2]])); // prettier-ignore
  const moved = (by) => ({ ...numbered(grid.straight), origin: [by, 0, 0] });
  assert.equal(takeSlices(moved(0.069), grid).length, 24);
  assert.throws(() => takeSlices(moved(0.071), grid), { message: /lies 0.07 mm beside the images/ });
  const turned = numbered(grid.straight);
  turned.axes = [turned.axes[1], turned.axes[0], turned.axes[2]];
  assert.throws(() => takeSlices(turned, grid), { message: /beside the images/ });
});

test("the thickness of a single slice moves no voxel", () => {
  const grid = makeGrid(planes([[0, 0, 0]], { sliceThickness: 4 }));
  const mask = numbered(grid.straight);
  mask.axes = [...mask.axes.slice(0, 2), [0, 0, 1]];
  assert.equal(takeSlices(mask, grid), mask.data);
});
