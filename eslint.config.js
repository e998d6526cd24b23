// Rules for the pages' JavaScript; what is not declared is found by `tsc`, how it looks is Prettier's.

import js from "@eslint/js";
import globals from "globals";

export default [
  { ignores: [".venv/", "demo/", "results/"] },
  js.configs.recommended,
  {
    languageOptions: { globals: globals.browser },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      curly: ["error", "multi-line"],
      eqeqeq: ["error", "always", { null: "ignore" }],
      "no-constructor-return": "error",
      "no-else-return": "error",
      "no-implicit-coercion": "error",
      "no-shadow": "error",
      "no-unmodified-loop-condition": "error",
      "no-use-before-define": ["error", { functions: false, variables: false }],
      "no-useless-assignment": "error",
      "object-shorthand": "error",
      "prefer-const": "error",
      "prefer-template": "error",
      "require-await": "error",
    },
  },
  // OHIF loads its settings as a script.
  { files: ["**/app-config.js"], languageOptions: { sourceType: "script" } },
  { files: ["tests/**", "*.config.js"], languageOptions: { globals: globals.node } },
];
