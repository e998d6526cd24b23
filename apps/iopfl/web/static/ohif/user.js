// Who is at work: the account that is signed in, or the name that somebody gave where nobody has to sign in.

import { getJson } from './server.js';
import { state, update } from './state.js';

const NAME_KEY = 'iopfl-annotator';

export const rememberedName = () => localStorage.getItem(NAME_KEY) ?? '';
export const rememberName = (name) => localStorage.setItem(NAME_KEY, name.trim());
export const whoami = () => state.user?.name ?? rememberedName();

export async function findUser() {
  const { authentication, name, roles } = await getJson('/iopfl/me');
  update({ user: authentication === 'off' ? null : { name, roles }, isSignedOut: false });
}

export function signOut() {
  const form = document.createElement('form');
  Object.assign(form, { method: 'post', action: '/iopfl/signout' });
  document.body.append(form);
  form.submit();
}

window.addEventListener('iopfl-signed-out', () => update({ isSignedOut: true }));
// Whoever signed in again in another tab comes back to this one.
window.addEventListener('focus', () => {
  if (state.isSignedOut) findUser().catch(() => {});
});
