// An answer as the plugin may see it: captured and known secrets are gone from it.

import { parseHttp } from './date.js';
import { Outcome, Stop } from './verdict.js';

// Enough to recognise an error by, short enough for a table.
const EXCERPT_CHARS = 120;
const U32_MAX = 0xffff_ffff;
// 408 and 425 ask to repeat the request.
const SAYS_NOTHING = [408, 425, 429];

/** @typedef {{ key: string, fingerprint: string | undefined, changed: boolean, expires: number | undefined }} Captured */

export class Response {
  #method;
  #response;
  #now;

  /**
   * @param {string} method
   * @param {any} response As the contract has it.
   * @param {number} now
   */
  constructor(method, response, now) {
    this.#method = method;
    this.#response = response;
    this.#now = now;
  }

  /** @returns {number} */
  get status() {
    return this.#response.status;
  }

  get isSuccess() {
    return this.status >= 200 && this.status < 300;
  }

  /**
   * Where the answer came from, after redirects.
   *
   * @returns {string}
   */
  get url() {
    return this.#response.url;
  }

  /**
   * The first header of that name, in any case.
   *
   * @param {string} name
   * @returns {string | undefined}
   */
  header(name) {
    const wanted = name.toLowerCase();
    return this.#response.headers.find((/** @type {string[]} */ [known]) => known.toLowerCase() === wanted)?.[1];
  }

  /** @returns {Uint8Array} */
  get bytes() {
    return this.#response.body;
  }

  /** The body; what isn't UTF-8 becomes U+FFFD. */
  get text() {
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(this.bytes);
  }

  /**
   * The body as JSON. A page or garbage in its place stops the attempt as `unknown`: it says
   * nothing of the credential. JavaScript rounds whole numbers of more than 15 digits; `pick`
   * doesn't.
   *
   * @returns {any}
   */
  json() {
    return this.#parsed((plain) => plain);
  }

  /**
   * The text, number or boolean at a JSON pointer (RFC 6901), as text; handy for an identity. A
   * number is given as the service wrote it.
   *
   * @param {string} pointer
   * @returns {string | undefined}
   */
  pick(pointer) {
    const found = at(this.#parsed(numbersAsText), pointer);
    return typeof found === 'string' || typeof found === 'boolean' ? String(found) : undefined;
  }

  /** Whether the answer is a page: a firewall, a login form, an error for people. */
  get isHtml() {
    const kind = this.header('content-type');
    if (kind !== undefined) return kind.toLowerCase().includes('html');
    return /^[\t\n\f\r ]*</.test(this.text);
  }

  /**
   * Seconds to wait, from `Retry-After` as a number or a date.
   *
   * @returns {number | undefined}
   */
  get retryAfter() {
    const value = this.header('retry-after')?.trim();
    if (value === undefined) return undefined;
    if (/^\+?\d+$/.test(value)) return Number(value) <= U32_MAX ? Number(value) : undefined;
    const at = parseHttp(value);
    return at === undefined ? undefined : Math.min(Math.max(at - Math.floor(this.#now / 1_000), 0), U32_MAX);
  }

  /**
   * What the host kept of this answer for `key`.
   *
   * @param {string} key
   * @returns {Captured | undefined}
   */
  captured(key) {
    const found = this.#response.captured.find((/** @type {any} */ captured) => captured.key === key);
    if (found === undefined) return undefined;
    return { ...found, expires: found.expires === undefined ? undefined : Number(found.expires) };
  }

  /**
   * Whether this answer gave `key` a new value.
   *
   * @param {string} key
   */
  changed(key) {
    return isNew(this.captured(key));
  }

  /** Whether this answer gave any key a new value. */
  get changedAny() {
    return this.#response.captured.some(isNew);
  }

  /**
   * `rotated` where a key got a new value, else `unchanged`. Ask only of an answer that shows the
   * credential to be alive.
   */
  outcome() {
    return this.changedAny ? Outcome.rotated() : Outcome.unchanged();
  }

  /**
   * The stop for an answer that fits no case you know: `unknown`, with what was answered and when
   * to come back. Throw it.
   */
  unexpected() {
    const location = this.header('location');
    if (location !== undefined) {
      return this.#nothingLearnt(`with a redirect to ${[...location].slice(0, EXCERPT_CHARS).join('')}`);
    }
    return this.#nothingLearnt(this.isHtml ? 'with a page' : '');
  }

  /** Rate limits, server errors and challenges are about the service, not the credential. */
  get saysNothing() {
    // Cloudflare marks its challenges.
    return SAYS_NOTHING.includes(this.status) || this.status >= 500 || this.header('cf-mitigated') !== undefined;
  }

  /**
   * @param {(plain: string) => string} rewrite
   * @returns {any}
   */
  #parsed(rewrite) {
    if (this.isHtml) throw this.#nothingLearnt('with HTML where JSON was due');
    try {
      const plain = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(this.bytes);
      const value = JSON.parse(plain);
      // Half of a character pair is no text, and could not be said again.
      if (/\\u[dD][89a-fA-F]/.test(plain) && /\\ud[89a-f]/.test(JSON.stringify(value))) {
        throw new SyntaxError('half of a surrogate pair');
      }
      const other = rewrite(plain);
      return other === plain ? value : JSON.parse(other);
    } catch (error) {
      throw this.#nothingLearnt(`with a body that is not JSON (${/** @type {Error} */ (error).message})`);
    }
  }

  /** @param {string} what */
  #nothingLearnt(what) {
    const line = `${this.#method} ${this.url} answered ${this.status} ${what}`;
    return Stop.unknown(line.trimEnd(), { retryAfter: this.retryAfter });
  }
}

/**
 * A value that differs from the one before; a deletion is not one.
 *
 * @param {Captured | undefined} captured
 */
const isNew = (captured) => captured !== undefined && captured.changed && captured.fingerprint !== undefined;

/**
 * JSON with its numbers as strings, as they were written. Of valid JSON only.
 *
 * @param {string} plain
 */
const numbersAsText = (plain) =>
  plain.replace(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g, (token) => (token.startsWith('"') ? token : `"${token}"`));

/**
 * @param {any} value
 * @param {string} pointer
 */
export function at(value, pointer) {
  if (pointer === '') return value;
  if (!pointer.startsWith('/')) return undefined;
  for (const step of pointer.slice(1).split('/')) {
    const name = step.replaceAll('~1', '/').replaceAll('~0', '~');
    if (value === null || typeof value !== 'object') return undefined;
    if (Array.isArray(value) && !/^(?:0|[1-9]\d*)$/.test(name)) return undefined;
    value = Object.hasOwn(value, name) ? value[name] : undefined;
  }
  return value;
}
