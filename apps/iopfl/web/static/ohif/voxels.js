// What is computed from the voxels of a mask: joining slices, what changed, where most of it lies.

const MAX_UNDO = 30_000_000; // voxels that are kept to be put back, 5 bytes each

/**
 * @typedef {object} Step what changed, to be put back
 * @property {Uint32Array} indices
 * @property {Uint8Array} values as they were before
 */

/**
 * One array of all slices, one after the other.
 * @param {Uint8Array[]} slices all of one length
 */
export function join(slices) {
  const data = new Uint8Array(slices.length * slices[0].length);
  slices.forEach((slice, index) => data.set(slice, index * slice.length));
  return data;
}

/**
 * The reverse of `join`, into slices that are there.
 * @param {Uint8Array} data
 * @param {Uint8Array[]} slices
 */
export function split(data, slices) {
  slices.forEach((slice, index) => slice.set(data.subarray(index * slice.length, (index + 1) * slice.length)));
}

/**
 * What changed; null = nothing did.
 * @param {Uint8Array} before
 * @param {Uint8Array} now
 * @returns {Step | null}
 */
export function compare(before, now) {
  const changed = [];
  for (let index = 0; index < now.length; index += 1) if (now[index] !== before[index]) changed.push(index);
  if (!changed.length) return null;
  return { indices: Uint32Array.from(changed), values: Uint8Array.from(changed, (index) => before[index]) };
}

/**
 * @param {Uint8Array} data is changed
 * @param {Step} step
 */
export function putBack(data, { indices, values }) {
  indices.forEach((index, position) => {
    data[index] = values[position];
  });
}

/**
 * Drop the oldest steps until the rest fits; the newest stays, however large it is.
 * @param {Step[]} steps are changed
 * @param {number} [limit] voxels of all together
 */
export function forgetOldest(steps, limit = MAX_UNDO) {
  const count = () => steps.reduce((sum, { indices }) => sum + indices.length, 0);
  while (steps.length > 1 && count() > limit) steps.shift();
}

/**
 * Index of the column, the row and the slice that hold most of what is drawn; null = nothing is.
 * @param {Uint8Array[]} slices
 * @param {number[]} sizes columns, rows, slices
 */
export function findFullest(slices, sizes) {
  const counts = sizes.map((size) => new Uint32Array(size));
  slices.forEach((slice, z) =>
    slice.forEach((value, index) => {
      if (!value) return;
      counts[0][index % sizes[0]] += 1;
      counts[1][Math.floor(index / sizes[0])] += 1;
      counts[2][z] += 1;
    }),
  );
  const fullest = counts.map((along) => along.indexOf(along.reduce((a, b) => Math.max(a, b), 0)));
  return counts[2][fullest[2]] ? fullest : null;
}

/**
 * The first value that no label has; undefined = there is none.
 * @param {Uint8Array} data
 * @param {number[]} values
 */
export function findStranger(data, values) {
  const known = new Set([0, ...values]);
  return data.find((value) => !known.has(value));
}
