// One request, built so that the short way is the safe way: no redirects unless asked, secrets by
// reference, encodings chosen by the place a value goes to.

import * as encode from './encode.js';
import { send } from './host.js';
import { Response } from './response.js';
import { Template, form, jsonObject, text, toTemplate } from './template.js';
import { Stop } from './verdict.js';

/** @typedef {import('./template.js').Piece} Piece */
/** @typedef {Record<string, Piece> | Iterable<[string, Piece]>} Fields */

/** Where an answer holds a new value; made by {@link json} and {@link header}. */
class Source {
  /** @param {{ tag: 'json-pointer' | 'header', val: string }} from */
  constructor(from) {
    this.from = from;
    /** @type {object | undefined} */
    this.seconds = undefined;
  }

  /**
   * Where the same answer says how many seconds the value lives.
   *
   * @param {Source} seconds
   */
  expiresIn(seconds) {
    this.seconds = seconds.from;
    return this;
  }
}

/**
 * A place in a JSON answer, by RFC 6901: `json('/access_token')`.
 *
 * @param {string} pointer
 */
export const json = (pointer) => new Source({ tag: 'json-pointer', val: pointer });

/**
 * The value of a response header.
 *
 * @param {string} name
 */
export const header = (name) => new Source({ tag: 'header', val: name });

/** Made by `cx.get`, `cx.post` and `cx.request`. Does nothing until it is sent. */
export class Request {
  #method;
  /** @type {Template | SendError} The reason why there is none surfaces when the request is sent. */
  #url;
  /** @type {[string, Template][]} */
  #headers = [];
  /** @type {Template | undefined} */
  #body;
  #cookies = false;
  /** @type {object[]} */
  #capture = [];
  #redirects = 0;
  /** @type {number | undefined} */
  #timeout;
  #now;

  /**
   * @param {string} method
   * @param {string | SendError} url
   * @param {number} now
   */
  constructor(method, url, now) {
    this.#method = method;
    this.#url = url instanceof SendError ? url : toTemplate(url);
    this.#now = now;
  }

  /** Attach the credential's cookies, by the rules browsers follow. */
  cookies() {
    this.#cookies = true;
    return this;
  }

  /**
   * @param {string} name
   * @param {Piece} value
   */
  header(name, value) {
    this.#headers.push([name, toTemplate(value)]);
    return this;
  }

  /**
   * Adds `name=value` to the query, percent-encoded.
   *
   * @param {string} name
   * @param {Piece} value
   */
  query(name, value) {
    if (this.#url instanceof SendError) return this;
    const separator = this.#url.hasText('?') ? '&' : '?';
    return this.#further(`${separator}${encode.percent(name)}=`, value);
  }

  /**
   * Adds `/value` to the path, percent-encoded.
   *
   * @param {Piece} value
   */
  segment(value) {
    return this.#further('/', value);
  }

  /**
   * A form body with its content type.
   *
   * @param {Fields} fields
   */
  form(fields) {
    return this.header('content-type', 'application/x-www-form-urlencoded').body(form(fields));
  }

  /**
   * A JSON body with its content type: an object of strings.
   *
   * @param {Fields} fields
   */
  json(fields) {
    return this.header('content-type', 'application/json').body(jsonObject(fields));
  }

  /** @param {Piece} body */
  body(body) {
    this.#body = toTemplate(body);
    return this;
  }

  /**
   * Keep what a 2xx answer has at `source` as the new value of `key`. The plugin sees that it
   * changed, never what it is. A mapped cookie needs no rule.
   *
   * @param {string} key
   * @param {Source} source
   */
  capture(key, source) {
    this.#capture.push({ key, from: source.from, expiresIn: source.seconds });
    return this;
  }

  /**
   * Follow up to `hops` redirects, at most 5. Without it a redirect is the answer.
   *
   * @param {number} hops
   */
  redirects(hops) {
    this.#redirects = hops;
    return this;
  }

  /**
   * For the whole exchange, in seconds; the host has a cap of its own.
   *
   * @param {number} seconds
   */
  timeout(seconds) {
    this.#timeout = seconds;
    return this;
  }

  /**
   * Sends, and stops the attempt as `unknown` where nothing can be learnt: no connection, a
   * time-out, a rate limit, a server error, a challenge page. What comes back is an answer worth
   * judging.
   *
   * @returns {Response}
   */
  send() {
    const response = this.sendAny();
    if (response.saysNothing) throw response.unexpected();
    return response;
  }

  /**
   * Sends, and gives back every answer as it is. For services whose 429 or 5xx say something.
   *
   * @returns {Response}
   * @throws {SendError} Where there is no answer; uncaught it stops as `send` would.
   */
  sendAny() {
    if (this.#url instanceof SendError) throw this.#url;
    const request = {
      method: this.#method,
      url: this.#url.parts,
      headers: this.#headers.map(([name, value]) => [name, value.parts]),
      body: this.#body?.parts,
      cookies: this.#cookies,
      capture: this.#capture,
      redirects: this.#redirects,
      timeout: this.#timeout,
      extras: [],
    };
    let response;
    try {
      response = send(request);
    } catch (refusal) {
      // What has no payload is no answer of the host: a fault of the program.
      if (refusal === null || typeof refusal !== 'object' || !('payload' in refusal)) throw refusal;
      throw SendError.of(/** @type {{ tag: string, val?: string | bigint }} */ (refusal.payload));
    }
    return new Response(this.#method, response, this.#now);
  }

  /**
   * @param {string} plain
   * @param {Piece} value
   */
  #further(plain, value) {
    if (this.#url instanceof Template) this.#url = text`${this.#url}${plain}${toTemplate(value).within('percent')}`;
    return this;
  }
}

/** @type {Record<string, (what: unknown) => string>} */
const NO_ANSWER = {
  malformed: (what) => `the request could not be built: ${what}`,
  denied: (what) => `the request is not allowed: ${what}`,
  dns: (what) => `no address was found: ${what}`,
  connect: (what) => `no connection: ${what}`,
  tls: (what) => `no secure connection: ${what}`,
  timeout: () => 'no answer in time',
  'too-large': (what) => `the answer is longer than ${what} bytes`,
  protocol: (what) => `the answer is not HTTP: ${what}`,
  budget: (what) => `the attempt used up its budget: ${what}`,
  other: (what) => `${what}`,
};

/**
 * Why there is no answer. A stop: what the plugin did wrong is a failure, what the network did
 * says nothing of the credential.
 */
export class SendError extends Stop {
  /**
   * @param {string} tag
   * @param {string | bigint} [what]
   */
  constructor(tag, what) {
    const say = NO_ANSWER[tag] ?? (() => `${tag}: ${what}`);
    super(['malformed', 'denied', 'budget'].includes(tag) ? 'failed' : 'unknown', say(what));
    this.name = 'SendError';
    this.tag = tag;
  }

  /** @param {{ tag: string, val?: string | bigint }} error */
  static of(error) {
    return new SendError(error.tag, error.val);
  }
}
