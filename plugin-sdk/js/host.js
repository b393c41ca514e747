// The one door to the host API. In a plugin it opens to the contract's imports, in a test to the
// script of testing.js. Nothing else calls the host.

/**
 * @typedef {object} Host
 * @property {(request: object) => object} send Throws an object whose `payload` is the contract's error.
 * @property {(key: string) => Uint8Array} reveal Throws an object whose `payload` is the refusal.
 * @property {(level: 'debug' | 'info' | 'warn' | 'error', message: string) => void} emit
 */

/** @type {Host | undefined} */
let host;

/**
 * Opens the door, and gives back who was there before.
 *
 * @param {Host | undefined} to
 * @returns {Host | undefined}
 */
export function connect(to) {
  const before = host;
  host = to;
  return before;
}

/** @returns {Host} */
function connected() {
  if (host === undefined) {
    throw new Error("there is no host here: run the provider with keywheel/testing.js's Case");
  }
  return host;
}

/** @param {object} request */
export const send = (request) => connected().send(request);

/** @param {string} key */
export const reveal = (key) => connected().reveal(key);

/**
 * @param {'debug' | 'info' | 'warn' | 'error'} level
 * @param {string} message
 */
export function emit(level, message) {
  // A line nobody can hear is no reason to fail.
  host?.emit(level, message);
}
