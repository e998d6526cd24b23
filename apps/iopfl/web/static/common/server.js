// Requests to the label server, and why one was refused.

/** The server, or the way to it, said no; the message is for people. */
export class Refused extends Error {
  /** @param {string} message */
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** What is told to the window when an answer was refused since nobody is signed in any more. */
export const SIGNED_OUT = "iopfl-signed-out";

/** @type {Record<number, string>} */
const OPENINGS = {
  401: "Please sign in again",
  403: "This account may not do that",
  413: "That is too large",
  429: "Not now",
  503: "The server is busy",
};

/**
 * What a status and a body (text of FastAPI's JSON) mean.
 * @param {number} status 0 = there was no answer
 * @param {string} [body]
 */
export function explain(status, body = "") {
  if (!status) {
    return new Refused("The label server does not answer. Is it still running, and is this computer connected to it?");
  }
  if (status === 401) window.dispatchEvent(new Event(SIGNED_OUT));
  let detail = "";
  try {
    const values = JSON.parse(body);
    detail = typeof values.detail === "string" ? values.detail : (values.msg ?? "");
  } catch {
    // not JSON: a proxy on the way answered
  }
  const opening = OPENINGS[status] ?? "The server could not do that";
  return new Refused(`${opening}: ${detail || `status ${status}, no reason given`}`, status);
}

/**
 * @param {string} method
 * @param {string} path
 * @param {{ query?: Record<string, string | number | boolean>, body?: BodyInit, signal?: AbortSignal }} [options]
 */
export async function request(method, path, { query = {}, body, signal } = {}) {
  const parameters = new URLSearchParams(
    Object.entries(query).map(([name, value]) => [name, String(value)]),
  ).toString();
  let response;
  try {
    response = await fetch(parameters ? `${path}?${parameters}` : path, { method, body, signal });
  } catch {
    throw explain(0);
  }
  if (!response.ok) throw explain(response.status, await response.text());
  return response;
}

/**
 * @param {string} path
 * @param {{ query?: Record<string, string | number | boolean>, signal?: AbortSignal }} [options]
 */
export const getJson = async (path, options) => (await request("GET", path, options)).json();
