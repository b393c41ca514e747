// What one attempt knows: settings, the state of each key, the time. Never a secret's bytes,
// unless the operator granted them to `reveal`.

import { reveal } from './host.js';
import { fill } from './placeholders.js';
import { Request, SendError } from './request.js';
import { Stop } from './verdict.js';

const UNITS = /** @type {Record<string, number>} */ ({ s: 1, m: 60, h: 3_600, d: 86_400 });
const U32_MAX = 0xffff_ffff;

/** @typedef {{ name: string, present: boolean, fingerprint: string | undefined, expires: number | undefined }} KeyState */

export class Cx {
  #context;
  #describe;

  /**
   * @param {any} context As the contract has it.
   * @param {() => import('./manifest.js').Manifest} describe
   */
  constructor(context, describe) {
    this.#context = context;
    this.#describe = describe;
  }

  /**
   * A GET request; see {@link Cx.request}.
   *
   * @param {string} url
   */
  get(url) {
    return this.request('GET', url);
  }

  /**
   * A POST request; see {@link Cx.request}.
   *
   * @param {string} url
   */
  post(url) {
    return this.request('POST', url);
  }

  /**
   * A request to `url`, in which `{name}`, `{name.host}` and `{name.origin}` stand for settings
   * and `{validate_url}` for the manifest's. A name that is no setting makes `send` fail.
   *
   * @param {string} method
   * @param {string} url
   */
  request(method, url) {
    let filled;
    try {
      filled = this.#filled(url);
    } catch (error) {
      filled = new SendError('malformed', /** @type {Error} */ (error).message);
    }
    return new Request(method, filled, this.now);
  }

  /**
   * `pattern` with its settings filled in.
   *
   * @param {string} pattern
   */
  fill(pattern) {
    try {
      return this.#filled(pattern);
    } catch (error) {
      throw Stop.failed(/** @type {Error} */ (error).message);
    }
  }

  /**
   * The value or default of a setting; empty where it has neither.
   *
   * @param {string} name
   * @returns {string}
   */
  setting(name) {
    return this.#find(name) ?? '';
  }

  /**
   * A setting as a whole number.
   *
   * @param {string} name
   */
  settingNumber(name) {
    const value = this.setting(name);
    if (!/^[+-]?\d+$/.test(value) || !Number.isSafeInteger(Number(value))) {
      throw Stop.failed(`setting \`${name}\` is \`${value}\`, not a whole number`);
    }
    return Number(value);
  }

  /**
   * A setting that is `true` or `false`.
   *
   * @param {string} name
   */
  settingBoolean(name) {
    const value = this.setting(name);
    if (value !== 'true' && value !== 'false') {
      throw Stop.failed(`setting \`${name}\` is \`${value}\`, not true or false`);
    }
    return value === 'true';
  }

  /**
   * A duration setting in seconds: `90`, `90s`, `15m`, `2h`, `1d`.
   *
   * @param {string} name
   */
  settingSeconds(name) {
    const value = this.setting(name);
    const found = /^(\+?\d+)\s*([smhd]?)$/.exec(value.trimStart());
    const seconds = found ? Number(found[1]) * (UNITS[found[2]] ?? 1) : Infinity;
    if (seconds > U32_MAX) {
      throw Stop.failed(
        `setting \`${name}\` is \`${value}\`; a duration is whole seconds or a number with s, m, h or d`,
      );
    }
    return seconds;
  }

  /**
   * What is known of a key without seeing it.
   *
   * @param {string} name
   * @returns {KeyState | undefined}
   */
  key(name) {
    const found = this.#context.keys.find((/** @type {any} */ key) => key.name === name);
    if (found === undefined) return undefined;
    return { ...found, expires: found.expires === undefined ? undefined : Number(found.expires) };
  }

  /**
   * Whether the credential has this key now.
   *
   * @param {string} name
   */
  has(name) {
    return this.key(name)?.present ?? false;
  }

  /**
   * The bytes of a key that the manifest asked to see, if the operator granted it.
   *
   * @param {string} key
   * @returns {Uint8Array}
   */
  reveal(key) {
    try {
      return reveal(key);
    } catch (refusal) {
      if (refusal === null || typeof refusal !== 'object' || !('payload' in refusal)) throw refusal;
      throw Stop.needsHuman(`key \`${key}\` was not revealed: ${refusal.payload}`);
    }
  }

  /** The host's clock when the attempt began, in milliseconds since 1970. */
  get now() {
    return Number(this.#context.now);
  }

  /** Everything the host said, as the contract has it. */
  get context() {
    return this.#context;
  }

  /** @param {string} pattern */
  #filled(pattern) {
    /** @param {string} name */
    const setting = (name) => this.#find(name);
    return fill(pattern, (name) => {
      const found = setting(name);
      if (found !== undefined || name !== 'validate_url') return found;
      try {
        return fill(this.#describe().contract.validateUrl, setting);
      } catch {
        return undefined;
      }
    });
  }

  /** @param {string} name */
  #find(name) {
    return this.#context.settings.find((/** @type {string[]} */ [known]) => known === name)?.[1];
  }
}
