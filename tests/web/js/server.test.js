// What is said of requests: why one was refused, and how far an answer is.

import assert from "node:assert/strict";
import { test } from "node:test";

import { explain, Refused } from "../../../apps/iopfl/web/static/common/server.js";
import { describeWork } from "../../../apps/iopfl/web/static/common/words.js";

for (const [what, status, body, message] of [
  ["a reason of the server", 503, '{"detail": "two wait already"}', "The server is busy: two wait already"],
  ["a reason of MONAI Label", 500, '{"msg": "no model"}', "The server could not do that: no model"],
  ["a list of FastAPI's", 422, '{"detail": [{}]}', "The server could not do that: status 422, no reason given"],
  ["a proxy's page", 413, "<html>", "That is too large: status 413, no reason given"],
]) {
  test(`a refusal with ${what} is told in words`, () => {
    const refusal = explain(status, body);
    assert.ok(refusal instanceof Refused);
    assert.deepEqual([refusal.status, refusal.message], [status, message]);
  });
}

test("a server that does not answer is told apart", () => {
  assert.match(explain(0).message, /does not answer/);
  assert.equal(explain(0).status, 0);
});

test("how far an answer is, in passes and time", () => {
  const work = { passes: 1200, done: 300, percent: 25.9, elapsed: 89.4, expected: 356 };
  assert.equal(describeWork(work), "300 of 1200 passes (25 %), 89 s so far, about 6 min in all");
  assert.equal(describeWork({ ...work, expected: null }), "300 of 1200 passes (25 %), 89 s so far");
  assert.match(describeWork({ ...work, passes: 0 }), /^waiting for its turn/);
});
