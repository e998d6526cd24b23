// Masks as NRRD (https://teem.sourceforge.net/nrrd/format.html): uint8, three axes, in DICOM's LPS millimeters.

import { Refused } from "../common/server.js";

const LPS = "left-posterior-superior";
/** @type {Record<string, number[]>} */
const FLIPS = { [LPS]: [1, 1, 1], lps: [1, 1, 1], "right-anterior-superior": [-1, -1, 1], ras: [-1, -1, 1] };
const TYPES = ["uint8", "uchar", "unsigned char", "uint8_t"];
const [LF, CR] = [10, 13];

/** @param {string} text */
const parseVector = (text) => text.replace(/[()]/g, "").split(",").map(Number);

/** @param {Uint8Array} bytes */
function readHeader(bytes) {
  let end = 0;
  /** @param {number} at */
  const isEmptyLine = (at) => bytes[at] === LF || (bytes[at] === CR && bytes[at + 1] === LF);
  while (end < bytes.length && !(bytes[end] === LF && isEmptyLine(end + 1))) end += 1;
  /** @type {Record<string, string>} */
  const fields = {};
  for (const line of new TextDecoder().decode(bytes.subarray(0, end)).split("\n")) {
    const [, name, value] = line.trim().match(/^([^#:]+):=?\s*(.*)$/) ?? [];
    if (name) fields[name.toLowerCase()] = value;
  }
  return { fields, start: end + (bytes[end + 1] === CR ? 3 : 2) };
}

/**
 * Read an uncompressed mask.
 * @param {ArrayBuffer} buffer
 * @returns {import("./grid.js").Mask}
 */
export function readNrrd(buffer) {
  const bytes = new Uint8Array(buffer);
  const { fields, start } = readHeader(bytes);
  const sizes = (fields.sizes ?? "").split(/\s+/).map(Number);
  const isPicture = fields["space dimension"] === "2" && sizes.length === 2;
  const flips = FLIPS[(fields.space ?? "").toLowerCase()];
  const directions = (fields["space directions"] ?? "").match(/\([^)]*\)/g) ?? [];
  const data = bytes.subarray(start);
  const isVolume = flips && sizes.length === 3 && directions.length === 3 && "space origin" in fields;
  const isKnown = TYPES.includes(fields.type) && fields.encoding === "raw" && (isPicture || isVolume);
  if (!isKnown || data.length !== sizes.reduce((a, b) => a * b, 1)) {
    throw new Refused(
      "The server sent a mask in a form that is not known here: is it another version than this page? Reload it.",
    );
  }
  if (isPicture) return { sizes: [...sizes, 1], axes: null, origin: null, data };
  /** @param {number[]} vector */
  const toLps = (vector) => vector.map((value, index) => value * flips[index]);
  return {
    sizes,
    axes: directions.map(parseVector).map(toLps),
    origin: toLps(parseVector(fields["space origin"])),
    data,
  };
}

/**
 * Write a mask, compressed.
 * @param {import("./grid.js").Box} grid
 * @param {Uint8Array<ArrayBuffer>} data
 */
export async function writeNrrd({ sizes, axes, origin }, data) {
  /** @param {number[]} values */
  const vector = (values) => `(${values.join(",")})`;
  const header = [
    "NRRD0004",
    "type: uint8",
    "dimension: 3",
    `space: ${LPS}`,
    `sizes: ${sizes.join(" ")}`,
    `space directions: ${axes.map(vector).join(" ")}`,
    "kinds: domain domain domain",
    "encoding: gzip",
    `space origin: ${vector(origin)}`,
    "",
    "",
  ].join("\n");
  const packed = await new Response(new Blob([data]).stream().pipeThrough(new CompressionStream("gzip"))).arrayBuffer();
  return new Blob([header, packed]);
}
