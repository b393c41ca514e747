// Unit tests for providers, in Node: a script of expected requests and their answers takes the
// host's place. Like the host it refuses an origin the manifest doesn't name, captures by the
// request's rules and by the key mapping, and takes known values out of what the provider sees.
// Throws where a test should fail. Must never be imported by a provider.
//
// A request is written as text, with secrets where they would be put: `{key}` as it is,
// `{key|form}` encoded, `{client:{key}|base64}` computed.

import { exported } from './guest.js';
import { connect } from './host.js';
import { CommitClass } from './manifest.js';
import { fill, origin } from './placeholders.js';
import { at } from './response.js';
import { Template } from './template.js';

/** 2026-01-01T00:00:00Z: a fixed moment, so that tests say the same every day. */
export const NOW = 1_767_225_600_000;

const PROBE = Symbol('what the script took offence at');

/** A request the provider is expected to make: no cookies, no body, and no header with a secret. */
class Expected {
  /**
   * @param {string} method
   * @param {string} url
   */
  constructor(method, url) {
    this.method = method;
    this.url = url;
    /** @type {[string, string][]} */
    this.headers = [];
    /** @type {string | undefined} */
    this.content = undefined;
    this.withCookies = false;
  }

  cookies() {
    this.withCookies = true;
    return this;
  }

  /**
   * @param {string} name
   * @param {string} value
   */
  header(name, value) {
    this.headers.push([name.toLowerCase(), value]);
    return this;
  }

  /** @param {string} body */
  body(body) {
    this.content = body;
    return this;
  }

  toString() {
    const lines = [`  ${this.method} ${this.url}`];
    if (this.withCookies) lines.push("    with the credential's cookies");
    for (const [name, value] of this.headers) lines.push(`    ${name}: ${value}`);
    if (this.content !== undefined) lines.push(`    body: ${this.content}`);
    return lines.join('\n');
  }
}

/**
 * @param {string} method
 * @param {string} url
 */
export const request = (method, url) => new Expected(method, url);

/** @param {string} url */
export const get = (url) => request('GET', url);

/** @param {string} url */
export const post = (url) => request('POST', url);

/** What the service answers; made by {@link answer} and {@link fails}. */
class Answer {
  /**
   * @param {number} status
   * @param {{ tag: string, val?: string | bigint }} [error]
   */
  constructor(status, error) {
    this.status = status;
    this.error = error;
    /** @type {[string, string][]} */
    this.headers = [];
    this.content = '';
  }

  /** @param {string | object} body Text as it is, anything else as JSON. */
  json(body) {
    return this.header('content-type', 'application/json').body(typeof body === 'string' ? body : JSON.stringify(body));
  }

  /** @param {string} body */
  html(body) {
    return this.header('content-type', 'text/html; charset=utf-8').body(body);
  }

  /** @param {string} body */
  body(body) {
    this.content = body;
    return this;
  }

  /**
   * @param {string} name
   * @param {string} value
   */
  header(name, value) {
    this.headers.push([name.toLowerCase(), value]);
    return this;
  }

  /**
   * The service sets a cookie; the key mapping says whose it is. `Max-Age` is understood, and an
   * empty value deletes.
   *
   * @param {string} name
   * @param {string} value
   */
  setCookie(name, value) {
    return this.header('set-cookie', `${name}=${value}`);
  }
}

/** @param {number} status */
export const answer = (status) => new Answer(status);

/**
 * No answer: `fails('timeout')`, or `dns`, `connect`, `tls`, `too-large`, `protocol`, `budget`,
 * `denied`, `other` with what the host says.
 *
 * @param {string} tag
 * @param {string | bigint} [what]
 */
export const fails = (tag, what) => new Answer(0, { tag, val: tag === 'timeout' ? undefined : (what ?? 'as scripted') });

/** What came of a case. */
class Run {
  /**
   * @param {string} call
   * @param {any} result
   * @param {string | undefined} failure
   * @param {Stage} stage
   */
  constructor(call, result, failure, stage) {
    this.#call = call;
    this.#result = result;
    /** Why the call failed, where it did. */
    this.failure = failure;
    /** Every line the provider logged. */
    this.log = stage.log;
    /** The values the host kept, which the provider never saw. */
    this.captured = Object.fromEntries(stage.captured);
  }

  #call;
  #result;

  /** What was said: `{ tag: 'valid', val: { identity: … } }`. Throws where the call failed. */
  get said() {
    if (this.failure !== undefined) throw new Error(`${this.#call} failed: ${this.failure}`);
    return this.#result;
  }

  /** `valid`, `invalid`, `unknown`, `needs-human`; of a rotation also `rotated`, `unchanged`. */
  get verdict() {
    return this.said.tag;
  }
}

/** One attempt to come: settings, keys and the script. */
export class Case {
  #provider;
  #manifest;
  /** @type {[string, string][]} */
  #settings;
  /** @type {{ name: string, value: string, expires: number | undefined, granted: boolean }[]} */
  #keys = [];
  /** @type {[Expected, Answer][]} */
  #script = [];
  #now = NOW;

  /**
   * Throws with every fault of the manifest that would make the host refuse the plugin.
   *
   * @param {import('./index.js').Provider} provider
   */
  constructor(provider) {
    this.#provider = provider;
    this.#manifest = manifestOf(provider);
    const found = faults(this.#manifest);
    if (found.length > 0) throw new Error(`the host would refuse this manifest:\n  ${found.join('\n  ')}`);
    this.#settings = this.#manifest.settings.map((/** @type {any} */ setting) => [setting.name, setting.default ?? '']);
  }

  /**
   * @param {string} name
   * @param {string} value
   */
  setting(name, value) {
    const known = this.#settings.find(([other]) => other === name);
    if (!known) throw new Error(`the manifest has no setting \`${name}\``);
    known[1] = value;
    return this;
  }

  /**
   * The credential has this key, with a made-up value unless one is given.
   *
   * @param {string} name
   * @param {{ value?: string, expires?: number, granted?: boolean }} [more] When it expires, in
   *   milliseconds since 1970; whether the operator lets the plugin see it.
   */
  key(name, { value = `old-${name}`, expires, granted = false } = {}) {
    if (!this.#manifest.keys.some((/** @type {any} */ key) => key.name === name)) {
      throw new Error(`the manifest has no key \`${name}\``);
    }
    this.#keys.push({ name, value, expires, granted });
    return this;
  }

  /** @param {number} now */
  now(now) {
    this.#now = now;
    return this;
  }

  /**
   * The next request, and what comes back.
   *
   * @param {Expected} request
   * @param {Answer} answer
   */
  expect(request, answer) {
    this.#script.push([request, answer]);
    return this;
  }

  validate() {
    return this.#run('validate', (guest, context) => guest.validate(context));
  }

  /** @param {string} method */
  rotate(method) {
    if (!this.#manifest.methods.some((/** @type {any} */ known) => known.name === method)) {
      throw new Error(`the manifest has no method \`${method}\``);
    }
    return this.#run('rotate', (guest, context) => guest.rotate(context, method));
  }

  /**
   * @param {string} name
   * @param {(guest: ReturnType<typeof exported>, context: object) => object} call
   */
  #run(name, call) {
    for (const setting of this.#manifest.settings) {
      if (setting.required && !this.#settings.some(([known, value]) => known === setting.name && value !== '')) {
        throw new Error(`setting \`${setting.name}\` is required: the host would not add this credential`);
      }
    }
    const context = {
      credentialId: 'test',
      profileId: undefined,
      settings: this.#settings,
      keys: this.#manifest.keys.map((/** @type {any} */ spec) => {
        const key = this.#keys.find((known) => known.name === spec.name);
        return {
          name: spec.name,
          present: key !== undefined,
          fingerprint: key && fingerprint(key.value),
          expires: key?.expires === undefined ? undefined : BigInt(key.expires),
        };
      }),
      attempt: 1,
      now: BigInt(this.#now),
      extras: [],
    };
    const stage = new Stage(this.#manifest, this.#settings, this.#keys, [...this.#script], this.#now);
    const before = connect(stage);
    let result;
    let failure;
    try {
      result = call(exported(this.#provider), context);
    } catch (error) {
      if (error === null || typeof error !== 'object' || !('payload' in error)) throw error;
      failure = /** @type {{ message: string }} */ (error.payload).message;
    } finally {
      connect(before);
    }
    if (stage[PROBE] !== undefined) throw new Error(stage[PROBE]);
    if (stage.script.length > 0) {
      const missing = stage.script.map(([expected]) => String(expected)).join('\n');
      throw new Error(`the provider never made these requests:\n${missing}`);
    }
    return new Run(name, result, failure, stage);
  }
}

/** @param {import('./index.js').Provider} provider */
export const manifestOf = (provider) => /** @type {any} */ (exported(provider).describe());

/** The host's part while a case runs. */
class Stage {
  /** @type {string | undefined} The provider may catch what is thrown; the test must not miss it. */
  [PROBE];

  /**
   * @param {any} manifest
   * @param {[string, string][]} settings
   * @param {{ name: string, value: string, granted: boolean }[]} keys
   * @param {[Expected, Answer][]} script
   * @param {number} now
   */
  constructor(manifest, settings, keys, script, now) {
    this.manifest = manifest;
    this.settings = settings;
    this.keys = keys;
    this.script = script;
    this.now = now;
    /** @type {[string, string][]} */
    this.log = [];
    /** @type {Map<string, string>} */
    this.captured = new Map();
  }

  /**
   * @param {string} level
   * @param {string} message
   */
  emit(level, message) {
    this.log.push([level, message]);
  }

  /** @param {string} key */
  reveal(key) {
    const asked = this.manifest.keys.some((/** @type {any} */ spec) => spec.name === key && spec.reveal);
    if (!asked) throw { payload: `the manifest doesn't ask to see \`${key}\`` };
    const known = this.keys.find((other) => other.name === key);
    if (!known?.granted) throw { payload: `the operator didn't grant \`${key}\`` };
    return new TextEncoder().encode(known.value);
  }

  /** @param {any} request */
  send(request) {
    const made = this.#seen(request);
    this.#checkRules(request);
    const allowed = this.manifest.origins.map((/** @type {string} */ one) => this.#fill(one));
    const where = origin(made.url);
    if (where === undefined || !allowed.includes(where)) {
      throw { payload: { tag: 'denied', val: `${made.url} is at none of ${allowed.join(', ')}` } };
    }
    const [expected, answer] = this.script.shift() ?? [];
    if (!expected || !answer) throw this.#offence(`a request the script doesn't expect:\n${made}`);
    this.#compare(expected, made);
    if (answer.error) throw { payload: answer.error };
    const { headers, captured } = this.#capture(request, answer);
    return {
      status: answer.status,
      url: made.url,
      headers: headers.map(([name, value]) => [name, this.#redacted(value)]),
      body: new TextEncoder().encode(this.#redacted(answer.content)),
      captured,
      extras: [],
    };
  }

  /** @param {string} what */
  #offence(what) {
    this[PROBE] ??= what;
    return new Error(what);
  }

  /** The request as a test writes it. @param {any} request */
  #seen(request) {
    /** @param {any} parts */
    const shown = (parts) => new Template(parts).toString();
    const made = new Expected(request.method, shown(request.url));
    for (const [name, value] of request.headers) made.header(name, shown(value));
    if (request.body !== undefined) made.body(shown(request.body));
    made.withCookies = request.cookies;
    return made;
  }

  /** What the host would refuse whatever the script says. @param {any} request */
  #checkRules(request) {
    const templates = [request.url, request.body ?? [], ...request.headers.map((/** @type {any} */ [, value]) => value)];
    const leaves = templates.flat().flatMap((part) => (part.tag === 'encoded' ? part.val.leaves : [part]));
    for (const leaf of leaves.filter((one) => one.tag === 'secret')) {
      if (!this.keys.some((known) => known.name === leaf.val.key) && !this.captured.has(leaf.val.key)) {
        throw this.#offence(`a template uses key \`${leaf.val.key}\`, which this credential doesn't have`);
      }
    }
    for (const rule of request.capture) {
      const spec = this.manifest.keys.find((/** @type {any} */ known) => known.name === rule.key);
      if (spec?.location.tag !== 'token') {
        throw this.#offence(`a capture rule names \`${rule.key}\`, which is no token of the manifest`);
      }
    }
  }

  /**
   * @param {Expected} expected
   * @param {Expected} made
   */
  #compare(expected, made) {
    /**
     * @param {Expected} one
     * @param {string} name
     */
    const shown = (one, name) => one.headers.find(([known]) => known === name)?.[1];
    // Headers the test doesn't name may be anything without a secret in it.
    const same =
      expected.headers.every(([name, value]) => shown(made, name) === value) &&
      made.headers.every(([name, value]) => !value.includes('{') || shown(expected, name) !== undefined) &&
      expected.method === made.method &&
      expected.url === made.url &&
      expected.content === made.content &&
      expected.withCookies === made.withCookies;
    if (!same) throw this.#offence(`expected the request\n${expected}\nbut the provider made\n${made}`);
  }

  /**
   * @param {any} request
   * @param {Answer} answer
   */
  #capture(request, answer) {
    /** @type {[string, string | undefined, number | undefined][]} */
    const found = [];
    for (const [, cookie] of answer.headers.filter(([name]) => name === 'set-cookie')) {
      const [pair, ...attributes] = cookie.split(';').map((piece) => piece.trim());
      const [name, value] = cut(pair);
      const stated = attributes.map(cut).find(([attribute]) => attribute.toLowerCase() === 'max-age')?.[1];
      const maxAge = stated !== undefined && /^-?\d+$/.test(stated) ? Number(stated) : undefined;
      const lives = value !== '' && (maxAge === undefined || maxAge > 0);
      const spec = this.manifest.keys.find(
        (/** @type {any} */ key) => key.location.tag === 'cookie' && this.#fill(key.location.val.name) === name,
      );
      if (!spec) continue;
      const expires = lives && maxAge !== undefined ? this.now + maxAge * 1_000 : undefined;
      found.push([spec.name, lives ? value : undefined, expires]);
    }
    const headers = answer.headers.filter(([name]) => name !== 'set-cookie');
    if (answer.status >= 200 && answer.status < 300) {
      let body;
      try {
        body = JSON.parse(answer.content);
      } catch {
        body = undefined;
      }
      /** @param {any} source */
      const take = (source) => {
        if (source === undefined) return undefined;
        if (source.tag === 'header') return headers.find(([name]) => name === source.val.toLowerCase())?.[1];
        const value = at(body, source.val);
        return typeof value === 'string' || typeof value === 'number' ? String(value) : undefined;
      };
      for (const rule of request.capture) {
        const value = take(rule.from);
        const seconds = take(rule.expiresIn);
        const expires = seconds !== undefined && /^\d+$/.test(seconds) ? this.now + Number(seconds) * 1_000 : undefined;
        if (value !== undefined) found.push([rule.key, value, expires]);
      }
    }
    const captured = found.map(([key, value, expires]) => {
      const old = this.keys.find((known) => known.name === key)?.value;
      if (value === undefined) this.captured.delete(key);
      else this.captured.set(key, value);
      return {
        key,
        fingerprint: value === undefined ? undefined : fingerprint(value),
        changed: old !== value,
        expires: expires === undefined ? undefined : BigInt(expires),
      };
    });
    return { headers, captured };
  }

  /** @param {string} shown */
  #redacted(shown) {
    const secrets = [...this.keys.map((key) => key.value), ...this.captured.values()];
    return secrets.filter((one) => one !== '').reduce((text, one) => text.replaceAll(one, '[redacted]'), shown);
  }

  /** @param {string} pattern */
  #fill(pattern) {
    try {
      return fill(pattern, (name) => this.settings.find(([known]) => known === name)?.[1]);
    } catch {
      return undefined;
    }
  }
}

/**
 * @param {string} pair
 * @returns {[string, string]}
 */
function cut(pair) {
  const equals = pair.indexOf('=');
  return equals < 0 ? [pair, ''] : [pair.slice(0, equals), pair.slice(equals + 1)];
}

/**
 * Stands in for the host's keyed HMAC: equal for equal values, and not the value. FNV-1a, 64 bits.
 *
 * @param {string} value
 */
function fingerprint(value) {
  let hash = 0xcbf29ce484222325n;
  for (const byte of new TextEncoder().encode(value)) {
    hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
  }
  return hash.toString(16).padStart(16, '0');
}

/**
 * What would make the host refuse the manifest, one sentence each.
 *
 * @param {any} manifest As the contract has it.
 * @returns {string[]}
 */
export function faults(manifest) {
  /** @type {string[]} */
  const found = [];
  /**
   * @param {boolean} fine
   * @param {string} fault
   */
  const check = (fine, fault) => {
    if (!fine) found.push(fault);
  };
  /**
   * @param {{ name: string }[]} named
   * @param {string} what
   */
  const once = (named, what) =>
    check(new Set(named.map(({ name }) => name)).size === named.length, `two ${what} have one name`);

  check(/^[a-z0-9-]{1,64}$/.test(manifest.service), `service \`${manifest.service}\` is not [a-z0-9-], 1 to 64 characters`);
  check(manifest.validateInterval >= 1, 'validate-interval is 0; at least 1 second');
  check(manifest.keys.length > 0, 'there are no keys: nothing to keep alive');
  once(manifest.keys, 'keys');
  for (const { name } of manifest.keys) {
    check(/^[a-z0-9_-]{1,64}$/.test(name), `key \`${name}\` is not [a-z0-9_-], 1 to 64 characters`);
  }
  once(manifest.settings, 'settings');
  for (const setting of manifest.settings) {
    const { name, kind, choices } = setting;
    check(/^[a-z0-9_]{1,64}$/.test(name), `setting \`${name}\` is not [a-z0-9_], 1 to 64 characters`);
    const isChoice = kind === 'choice';
    check(isChoice !== (choices.length === 0), `setting \`${name}\`: a choice has choices, nothing else has`);
    if (isChoice && setting.default !== undefined) {
      check(choices.includes(setting.default), `setting \`${name}\`: its default \`${setting.default}\` is no choice`);
    }
  }
  once(manifest.methods, 'methods');
  for (const { name, commitClass, commitClassSetting } of manifest.methods) {
    check(/^[a-z0-9-]{1,64}$/.test(name), `method \`${name}\` is not [a-z0-9-], 1 to 64 characters`);
    check(
      CommitClass.NAMES.includes(commitClass),
      `method \`${name}\`: \`${commitClass}\` is no commit class; they are ${CommitClass.NAMES.join(', ')}`,
    );
    if (commitClassSetting !== undefined) {
      const fits = manifest.settings.some(
        (/** @type {any} */ setting) =>
          setting.name === commitClassSetting &&
          setting.choices.every((/** @type {string} */ choice) => CommitClass.NAMES.includes(choice)),
      );
      check(fits, `method \`${name}\`: \`${commitClassSetting}\` is no choice setting of commit classes`);
    }
  }

  // A setting without a default gets a stand-in, so that every known placeholder resolves.
  /** @param {string} name */
  const known = (name) => {
    const setting = manifest.settings.find((/** @type {any} */ one) => one.name === name);
    return setting && (setting.default ?? (setting.kind === 'url' ? 'https://host.example' : 'x'));
  };
  /**
   * @param {string} pattern
   * @param {string} what
   */
  const filled = (pattern, what) => {
    try {
      return fill(pattern, known);
    } catch (error) {
      check(false, `${what} ${/** @type {Error} */ (error).message}`);
      return undefined;
    }
  };
  /** @type {string[]} */
  const origins = [];
  for (const one of manifest.origins) {
    const url = filled(one, 'origin');
    if (url === undefined) continue;
    const plain = origin(url);
    const fine = plain === url && !url.includes('*') && (one.includes('{') || url.startsWith('https://'));
    check(fine, `origin \`${one}\` is not \`https://host[:port]\` of one host`);
    origins.push(url);
  }
  const validateUrl = filled(manifest.validateUrl, 'validate-url');
  if (validateUrl !== undefined) {
    check(origins.includes(origin(validateUrl) ?? ''), `validate-url \`${manifest.validateUrl}\` is not at one of the origins`);
  }
  for (const { name, location } of manifest.keys) {
    if (location.tag !== 'cookie') continue;
    for (const field of [location.val.name, location.val.domain, location.val.path]) {
      filled(field, `cookie of key \`${name}\`:`);
    }
  }
  return found;
}
