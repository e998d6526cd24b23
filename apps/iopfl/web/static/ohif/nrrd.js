// Masks as NRRD (https://teem.sourceforge.net/nrrd/format.html): uint8, three axes, in DICOM's LPS millimeters.

import { Refused } from './server.js';

const LPS = 'left-posterior-superior';
const FLIPS = { [LPS]: [1, 1, 1], lps: [1, 1, 1], 'right-anterior-superior': [-1, -1, 1], ras: [-1, -1, 1] };
const TYPES = ['uint8', 'uchar', 'unsigned char', 'uint8_t'];

const parseVector = (text) => text.replace(/[()]/g, '').split(',').map(Number);

function readHeader(bytes) {
  let end = 0;
  while (end < bytes.length && !(bytes[end] === 10 && (bytes[end + 1] === 10 || (bytes[end + 1] === 13 && bytes[end + 2] === 10)))) end += 1;
  const fields = {};
  for (const line of new TextDecoder().decode(bytes.subarray(0, end)).split(/\r?\n/)) {
    const [, name, value] = line.match(/^([^#:]+):=?\s*(.*)$/) ?? [];
    if (name) fields[name.toLowerCase()] = value.trim();
  }
  return { fields, start: end + (bytes[end + 1] === 13 ? 3 : 2) };
}

/**
 * Read an uncompressed mask.
 * @returns {{sizes: number[], axes: ?number[][], origin: ?number[], data: Uint8Array}} axes: the step of each index, LPS
 *   mm; null in the mask of a single slice, which the server writes as a picture.
 */
export function readNrrd(buffer) {
  const bytes = new Uint8Array(buffer);
  const { fields, start } = readHeader(bytes);
  const sizes = (fields.sizes ?? '').split(/\s+/).map(Number);
  const isPicture = fields['space dimension'] === '2' && sizes.length === 2;
  const flips = FLIPS[(fields.space ?? '').toLowerCase()];
  const data = bytes.subarray(start);
  const isKnown = TYPES.includes(fields.type) && fields.encoding === 'raw' && (isPicture || (flips && sizes.length === 3));
  if (!isKnown || data.length !== sizes.reduce((a, b) => a * b, 1)) {
    throw new Refused('The server sent a mask in a form that is not known here: is it another version than this page? Reload it.');
  }
  if (isPicture) return { sizes: [...sizes, 1], axes: null, origin: null, data };
  const toLps = (vector) => vector.map((value, index) => value * flips[index]);
  const axes = fields['space directions'].match(/\([^)]*\)/g).map(parseVector).map(toLps);
  return { sizes, axes, origin: toLps(parseVector(fields['space origin'])), data };
}

/** Write a mask, compressed. */
export async function writeNrrd({ sizes, axes, origin }, data) {
  const vector = (values) => `(${values.join(',')})`;
  const header = [
    'NRRD0004', 'type: uint8', 'dimension: 3', `space: ${LPS}`, `sizes: ${sizes.join(' ')}`,
    `space directions: ${axes.map(vector).join(' ')}`, 'kinds: domain domain domain', 'encoding: gzip',
    `space origin: ${vector(origin)}`, '', '',
  ].join('\n');
  const packed = await new Response(new Blob([data]).stream().pipeThrough(new CompressionStream('gzip'))).arrayBuffer();
  return new Blob([header, packed]);
}
