// Requests to the label server, and why one was refused.

/** The server, or the way to it, said no; the message is for people. */
export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const OPENINGS = {
  401: 'Please sign in again',
  403: 'This account may not do that',
  413: 'That is too large',
  429: 'Not now',
  503: 'The server is busy',
};

/** What a status and a body (text of FastAPI's JSON) mean. */
export function explain(status, body) {
  if (!status) return new Refused('The label server does not answer. Is it running, and is this computer connected to it?');
  if (status === 401) window.dispatchEvent(new Event('iopfl-signed-out'));
  let detail = '';
  try {
    const values = JSON.parse(body);
    detail = typeof values.detail === 'string' ? values.detail : (values.msg ?? '');
  } catch {
    // not JSON: a proxy on the way answered
  }
  return new Refused(`${OPENINGS[status] ?? 'The server could not do that'}: ${detail || `status ${status}, no reason given`}`, status);
}

export async function request(method, path, { query = {}, body } = {}) {
  const parameters = new URLSearchParams(query).toString();
  let response;
  try {
    response = await fetch(parameters ? `${path}?${parameters}` : path, { method, body });
  } catch {
    throw explain(0);
  }
  if (!response.ok) throw explain(response.status, await response.text());
  return response;
}

export const getJson = async (path, query) => (await request('GET', path, { query })).json();
