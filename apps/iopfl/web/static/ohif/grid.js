// Where a series' slices lie in the patient, as the server sees it (iopfl/dicomio/geometry.py): x along a row, y down
// a column, z along their normal. Where slices shift sideways, its masks lie on a straight grid that holds them all
// (iopfl/images/straightening.py).

import { Refused } from "../common/server.js";

/** @typedef {number[]} Vector LPS mm */

/**
 * @typedef {object} Box
 * @property {number[]} sizes columns, rows, slices
 * @property {Vector[]} axes the step of each index
 * @property {Vector} origin of the first voxel
 */

/** @typedef {Box & { offsets: number[][] }} Straight offsets: voxels before each slice along x and y */

/**
 * @typedef {object} Placing
 * @property {number[]} order index of the k-th slice along the normal
 * @property {boolean} isPlaced whether the slices have a place in the patient, which a photograph has not
 * @property {Straight} [straight] the server's grid, where they have
 */

/** @typedef {Box & Placing} Grid */

/**
 * @typedef {object} Mask
 * @property {number[]} sizes
 * @property {Vector[] | null} axes null in the mask of a single slice, which the server writes as a picture
 * @property {Vector | null} origin
 * @property {Uint8Array} data
 */

const TOLERANCE = 0.1; // voxels by which a corner of the mask may lie beside the image's
const [STRAIGHT, TIE] = [1e-6, 1e-3]; // as in straightening.py

/** @type {(a: Vector, b: Vector, factor?: number) => Vector} */
const plus = (a, b, factor = 1) => a.map((value, index) => value + factor * b[index]);
/** @type {(a: Vector, b: Vector) => number} */
const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);
/** @type {(a: Vector, factor: number) => Vector} */
const times = (a, factor) => a.map((value) => value * factor);
/** @type {(a: Vector, b: Vector) => Vector} */
const cross = ([a, b, c], [x, y, z]) => [b * z - c * y, c * x - a * z, a * y - b * x];
/** @type {(a: Vector) => number} */
const length = (a) => Math.sqrt(dot(a, a));

/**
 * The closest two directions at right angles: scanners round theirs.
 * @param {Vector} a
 * @param {Vector} b
 */
function orthonormalize(a, b) {
  const [p, q, r] = [dot(a, a), dot(a, b), dot(b, b)];
  const s = Math.sqrt(p * r - q * q);
  const t = s * Math.sqrt(p + r + 2 * s);
  return [times(plus(times(a, r + s), b, -q), 1 / t), times(plus(times(b, p + s), a, -q), 1 / t)];
}

/**
 * The straight grid, and how many of its voxels lie before each slice along x and y.
 * @param {Box} box
 * @returns {Straight}
 */
function straighten({ sizes: [columns, rows, count], axes: [x, y, step], origin }) {
  const [row, column] = [times(x, 1 / length(x)), times(y, 1 / length(y))];
  const normal = cross(row, column);
  const leans = [dot(step, row) / length(x), dot(step, column) / length(y)];
  const lean = leans.map((value) => (Math.abs(value) < STRAIGHT ? 0 : value));
  const shifts = Array.from({ length: count }, (_, k) => lean.map((value) => Math.floor(k * value + 0.5 + TIE)));
  const [first, last] = [Math.min, Math.max].map((pick) =>
    [0, 1].map((axis) => pick(...shifts.map((shift) => shift[axis]))),
  );
  return {
    sizes: [columns + last[0] - first[0], rows + last[1] - first[1], count],
    axes: [x, y, times(normal, dot(normal, step))],
    origin: plus(plus(origin, x, first[0]), y, first[1]),
    offsets: shifts.map((shift) => [shift[0] - first[0], shift[1] - first[1]]),
  };
}

/** @typedef {Required<Pick<Cornerstone.Plane, "imagePositionPatient" | "rowPixelSpacing" | "columnPixelSpacing">>} Place */

/**
 * Whether a plane is of the patient; where DICOM says nothing of it, OHIF makes something up, and says so.
 * @param {Cornerstone.Plane} plane
 * @returns {plane is Cornerstone.Plane & Place}
 */
const hasPlace = (plane) =>
  Boolean(plane.imagePositionPatient && plane.rowPixelSpacing && plane.columnPixelSpacing) &&
  !plane.isDefaultValueSetForRowCosine &&
  !plane.usingDefaultValues;

/**
 * Order slices as the server does.
 * @param {Cornerstone.Plane[]} planes one for each slice, in any order
 * @returns {Grid}
 */
export function makeGrid(planes) {
  const [{ columns, rows }] = planes;
  const count = planes.length;
  const sizes = [columns, rows, count];
  const order = planes.map((_, index) => index);
  if (!planes.every(hasPlace)) {
    const axes = [
      [-1, 0, 0],
      [0, -1, 0],
      [0, 0, 1],
    ];
    return { sizes, order, axes, origin: [0, 0, 0], isPlaced: false };
  }
  const [first] = planes;
  const [row, column] = orthonormalize([...first.rowCosines], [...first.columnCosines]);
  const normal = cross(row, column);
  const positions = planes.map((plane) => [...plane.imagePositionPatient]);
  order.sort((a, b) => dot(positions[a], normal) - dot(positions[b], normal));
  const [start, end] = [positions[order[0]], positions[order[count - 1]]];
  const step = count > 1 ? times(plus(end, start, -1), 1 / (count - 1)) : times(normal, first.sliceThickness || 1);
  const axes = [times(row, first.columnPixelSpacing), times(column, first.rowPixelSpacing), step];
  const box = { sizes, axes, origin: start };
  return { ...box, order, isPlaced: true, straight: straighten(box) };
}

/**
 * What of a mask lies on a series' slices, one after the other; refused where it does not lie on the server's grid.
 * @param {Mask} mask
 * @param {Grid} grid
 */
export function takeSlices(mask, grid) {
  checkSameGrid(mask, grid.straight ?? grid, grid.isPlaced);
  const [columns, rows, count] = grid.sizes;
  const [width, height] = mask.sizes;
  if (!grid.straight || (width === columns && height === rows)) return mask.data;
  const data = new Uint8Array(columns * rows * count);
  grid.straight.offsets.forEach(([x, y], z) => {
    for (let row = 0; row < rows; row += 1) {
      const start = x + width * (y + row + height * z);
      data.set(mask.data.subarray(start, start + columns), columns * (row + rows * z));
    }
  });
  return data;
}

/**
 * @param {Mask} mask
 * @param {Box} grid
 * @param {boolean} isPlaced
 */
function checkSameGrid({ sizes, axes, origin }, grid, isPlaced) {
  if (sizes.some((size, index) => size !== grid.sizes[index])) {
    throw new Refused(
      `The mask has ${sizes.join(" x ")} voxels, the images have ${grid.sizes.join(" x ")}: were images added to the series? Reload this page.`,
    );
  }
  if (!isPlaced || !axes || !origin) return;
  // A single slice's thickness moves no voxel.
  const apart = [0, 1, 2]
    .filter((axis) => grid.sizes[axis] > 1)
    .map((axis) => length(plus(axes[axis], grid.axes[axis], -1)) * (grid.sizes[axis] - 1))
    .reduce((sum, way) => sum + way, length(plus(origin, grid.origin, -1)));
  if (apart > TOLERANCE * Math.min(...grid.axes.map(length))) {
    throw new Refused(
      `The mask lies ${apart.toFixed(2)} mm beside the images: it is not shown. Please report this series to your administrator.`,
    );
  }
}

/**
 * LPS position of a voxel.
 * @param {Box} grid
 * @param {number[]} index
 */
export const place = (grid, index) =>
  index.reduce((sum, value, axis) => plus(sum, grid.axes[axis], value), grid.origin);
