// What the server says of its tasks and trainings, in the forms in which OHIF's panel reads it.

import assert from "node:assert/strict";
import { test } from "node:test";

import { describeForTabs, describeTasks } from "../../../apps/iopfl/web/static/ohif/tasks.js";
import { withBars } from "../../../apps/iopfl/web/static/ohif/training.js";

const INFO = {
  models: {
    nodule: { type: "segmentation", labels: { rim: 5, core: 2 } },
    listed: { type: "segmentation", labels: ["spleen", "liver"] },
    other: { type: "deepedit", labels: { cyst: 1 } },
  },
};

test("labels keep their values; those of a list are numbered from 1", () => {
  const found = describeForTabs(INFO);
  assert.deepEqual(found.models, ["nodule", "listed"]);
  assert.deepEqual(found.labels, ["core", "liver", "rim", "spleen"]);
  assert.deepEqual(found.modelLabelToIdxMap, { nodule: { rim: 5, core: 2 }, listed: { spleen: 1, liver: 2 } });
  assert.deepEqual(found.modelIdxToLabelMap.nodule, { 2: "core", 5: "rim" });
  assert.deepEqual(found.modelLabelNames.nodule, ["core", "rim"]);
  assert.deepEqual(found.modelLabelIndices.nodule, [2, 5]);
});

test("tasks have their labels in the order of the values, and only those that are served", () => {
  const about = { modality: "MR", evidence: 0.5 };
  const labels = ["rim", "core"].map((name) => ({ name, color: `#${name}` }));
  const tasks = [
    { name: "nodule", labels, ...about },
    { name: "gone", labels, ...about },
  ];
  assert.deepEqual(describeTasks(INFO, { tasks }), [
    {
      name: "nodule",
      ...about,
      labels: [
        { name: "core", color: "#core", value: 2 },
        { name: "rim", color: "#rim", value: 5 },
      ],
    },
  ]);
});

test("a training that runs has no total time, and one that never was has none of it", () => {
  const info = { models: {}, train_stats: { nodule: { total_time: 12, epoch: 3 }, eye: {} } };
  assert.deepEqual(withBars(info, true).train_stats, { nodule: { epoch: 3 }, eye: {} });
  assert.deepEqual(withBars(info, false).train_stats, {
    nodule: { total_time: 12, epoch: 3 },
    eye: { total_time: "0" },
  });
});
