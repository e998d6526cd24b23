// Who is at work: the account that is signed in, or the name that somebody gave where nobody has to sign in.

import { getJson, SIGNED_OUT } from "../common/server.js";
import { state, update } from "./state.js";

const NAME_KEY = "iopfl-annotator";

export const rememberedName = () => localStorage.getItem(NAME_KEY) ?? "";
/** @param {string} name */
export const rememberName = (name) => localStorage.setItem(NAME_KEY, name.trim());
export const whoami = () => state.user?.name ?? rememberedName();

export async function findUser() {
  /** @type {API.User} */
  const { authentication, name, roles } = await getJson("/iopfl/me");
  update({ user: authentication === "off" ? null : { name, roles }, isSignedOut: false });
}

export function signOut() {
  const form = document.createElement("form");
  Object.assign(form, { method: "post", action: "/iopfl/signout" });
  document.body.append(form);
  form.submit();
}

/** Notice when the session ends. Whoever signed in again in another tab comes back to this one. */
export function watchSession() {
  window.addEventListener(SIGNED_OUT, () => update({ isSignedOut: true }));
  window.addEventListener("focus", () => {
    if (state.isSignedOut) findUser().catch(() => {});
  });
}
