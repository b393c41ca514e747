// Write a Keywheel provider in JavaScript: what a provider needs, in one import. The same words
// and the same safety as the SDK for Rust. Nothing here reads a clock, a file or the network, and
// nothing ever holds a secret: requests refer to keys by name, and the host puts the bytes in.

export { Cx } from './cx.js';
export * as date from './date.js';
export * as encode from './encode.js';
export * as log from './log.js';
export { CommitClass, Key, Manifest, Method, Setting } from './manifest.js';
export { Request, SendError, header, json } from './request.js';
export { Response } from './response.js';
export { Template, basic, bearer, form, jsonObject, secret, text } from './template.js';
export { Outcome, Stop, Verdict } from './verdict.js';

/**
 * One service's knowledge: the default export of a provider's module. Every call runs in a fresh
 * instance, so nothing may be kept between calls; and none may be async, for requests aren't.
 *
 * @typedef {object} Provider
 * @property {() => import('./manifest.js').Manifest} describe Says what the plugin is. Runs
 *   without the host API, without time and chance, and always answers the same.
 * @property {(cx: import('./cx.js').Cx) => import('./verdict.js').Verdict} validate Finds out
 *   whether the credential lives.
 * @property {(cx: import('./cx.js').Cx, method: string) => import('./verdict.js').Outcome} [rotate]
 *   Gets a fresh secret by one of the manifest's methods. A provider without methods has none.
 */
