// Masks as NRRD: what is written is read back, and what is not understood is refused.

import assert from "node:assert/strict";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";

import { readNrrd, writeNrrd } from "../../../apps/iopfl/web/static/ohif/nrrd.js";

const GRID = {
  sizes: [4, 3, 2],
  axes: [
    [0.8, 0, 0],
    [0, 0.7, -0.1],
    [0, 0.2, 2.5],
  ],
  origin: [-10.5, 20.25, 1e-7],
};
const VOXELS = Uint8Array.from({ length: 24 }, (_, index) => index % 5);

/** A file of a header's lines and voxels. */
const file = (lines, voxels = VOXELS, newline = "\n") =>
  new Uint8Array([...new TextEncoder().encode(`${lines.join(newline)}${newline}${newline}`), ...voxels]).buffer;

const header = (changes = {}) => {
  const fields = {
    type: "uint8",
    dimension: "3",
    space: "left-posterior-superior",
    sizes: "4 3 2",
    "space directions": "(0.8,0,0) (0,0.7,-0.1) (0,0.2,2.5)",
    encoding: "raw",
    "space origin": "(-10.5,20.25,1e-7)",
    ...changes,
  };
  const lines = Object.entries(fields).filter(([, value]) => value !== null);
  return ["NRRD0004", "# a comment: of no meaning", ...lines.map(([name, value]) => `${name}: ${value}`)];
};

test("what is written is read back, to the last digit", async () => {
  const written = new Uint8Array(await (await writeNrrd(GRID, VOXELS)).arrayBuffer());
  const end = Buffer.from(written).indexOf("\n\n");
  const lines = new TextDecoder().decode(written.subarray(0, end)).split("\n");
  assert.ok(lines.includes("encoding: gzip"));
  const plain = lines.map((line) => line.replace("encoding: gzip", "encoding: raw"));
  const mask = readNrrd(file(plain, gunzipSync(written.subarray(end + 2))));
  assert.deepEqual(mask, { ...GRID, data: VOXELS });
});

test("lines may end as Windows has them, and in a newline among the voxels nothing ends", () => {
  const voxels = VOXELS.map(() => 10);
  assert.deepEqual(readNrrd(file(header(), voxels, "\r\n")), { ...GRID, data: voxels });
  assert.deepEqual(readNrrd(file(header(), voxels)), { ...GRID, data: voxels });
});

test("a file in RAS is turned to LPS", () => {
  const { axes, origin } = readNrrd(file(header({ space: "RAS" })));
  assert.deepEqual(origin, [10.5, -20.25, 1e-7]);
  assert.deepEqual(axes[1], [-0, -0.7, -0.1]);
});

test("the picture of a single slice has no place", () => {
  const lines = header({ space: null, "space dimension": "2", sizes: "6 4", "space directions": "(1,0) (0,1)" });
  assert.deepEqual(readNrrd(file(lines)), { sizes: [6, 4, 1], axes: null, origin: null, data: VOXELS });
});

for (const [what, changes, voxels] of [
  ["compressed", { encoding: "gzip" }],
  ["of other numbers", { type: "int16" }],
  ["without a place", { space: null }],
  ["without directions", { "space directions": null }],
  ["without an origin", { "space origin": null }],
  ["with a fourth axis", { sizes: "4 3 2 1" }],
  ["cut off", {}, VOXELS.subarray(1)],
  ["too long", {}, [...VOXELS, 0]],
]) {
  test(`a mask that is ${what} is refused`, () => {
    assert.throws(() => readNrrd(file(header(changes), voxels)), { message: /in a form that is not known here/ });
  });
}

test("what is no NRRD at all is refused", () => {
  assert.throws(() => readNrrd(new ArrayBuffer(0)), { message: /not known here/ });
  assert.throws(() => readNrrd(new TextEncoder().encode("<html></html>").buffer), { message: /not known here/ });
});
