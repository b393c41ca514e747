// What validate and rotate may say, and why they may stop early. A verdict is evidence, not a
// guess: everything that taught nothing ends as `unknown`.

/**
 * What supports a good verdict.
 *
 * @typedef {object} Evidence
 * @property {number | bigint} [expires] When the credential as a whole stops working, in
 *   milliseconds since 1970.
 * @property {string} [identity] The account, as the service names it. The host pins the first one it sees.
 * @property {number} [next] When to ask again, in seconds.
 * @property {string} [note]
 */

/**
 * What supports any other verdict.
 *
 * @typedef {object} Why
 * @property {number} [retryAfter] Seconds to wait.
 */

/** @param {Evidence} [evidence] */
function evidence({ expires, identity, next, note } = {}) {
  return {
    expires: expires === undefined || expires === null ? undefined : BigInt(expires),
    identity: identity ?? undefined,
    next: next ?? undefined,
    note: note ?? undefined,
    extras: [],
  };
}

/**
 * @param {string} message
 * @param {Why} [why]
 */
export const reason = (message, { retryAfter } = {}) => ({ message: String(message), retryAfter, extras: [] });

/** What validate says. */
export class Verdict {
  /**
   * @param {'valid' | 'invalid' | 'unknown' | 'needs-human'} tag
   * @param {object} val
   */
  constructor(tag, val) {
    this.tag = tag;
    this.val = val;
  }

  /**
   * The service accepted the credential.
   *
   * @param {Evidence} [rests]
   */
  static valid(rests) {
    return new Verdict('valid', evidence(rests));
  }

  /**
   * The service said plainly that the credential is dead.
   *
   * @param {string} message
   * @param {Why} [why]
   */
  static invalid(message, why) {
    return new Verdict('invalid', reason(message, why));
  }

  /**
   * Nothing was learnt.
   *
   * @param {string} message
   * @param {Why} [why]
   */
  static unknown(message, why) {
    return new Verdict('unknown', reason(message, why));
  }

  /**
   * Only a person can go on.
   *
   * @param {string} message
   * @param {Why} [why]
   */
  static needsHuman(message, why) {
    return new Verdict('needs-human', reason(message, why));
  }
}

/** What rotate says. */
export class Outcome {
  /**
   * @param {'rotated' | 'unchanged' | 'invalid' | 'unknown' | 'needs-human'} tag
   * @param {object} val
   */
  constructor(tag, val) {
    this.tag = tag;
    this.val = val;
  }

  /**
   * The service issued a new secret, which the host has captured.
   *
   * @param {Evidence} [rests]
   */
  static rotated(rests) {
    return new Outcome('rotated', evidence(rests));
  }

  /**
   * The service was asked and kept the secret as it is.
   *
   * @param {Evidence} [rests]
   */
  static unchanged(rests) {
    return new Outcome('unchanged', evidence(rests));
  }

  /**
   * @param {string} message
   * @param {Why} [why]
   */
  static invalid(message, why) {
    return new Outcome('invalid', reason(message, why));
  }

  /**
   * @param {string} message
   * @param {Why} [why]
   */
  static unknown(message, why) {
    return new Outcome('unknown', reason(message, why));
  }

  /**
   * @param {string} message
   * @param {Why} [why]
   */
  static needsHuman(message, why) {
    return new Outcome('needs-human', reason(message, why));
  }
}

/**
 * Why an attempt stops before its end. Thrown out of validate and rotate; the same is then said
 * as a verdict or an outcome. `failed` is the plugin's own fault, or a request it may not make.
 */
export class Stop extends Error {
  /**
   * @param {'unknown' | 'invalid' | 'needs-human' | 'failed'} kind
   * @param {string} message
   * @param {Why} [why]
   */
  constructor(kind, message, why) {
    super(String(message));
    this.name = 'Stop';
    this.kind = kind;
    this.reason = reason(message, why);
  }

  /**
   * @param {string} message
   * @param {Why} [why]
   */
  static unknown(message, why) {
    return new Stop('unknown', message, why);
  }

  /**
   * @param {string} message
   * @param {Why} [why]
   */
  static invalid(message, why) {
    return new Stop('invalid', message, why);
  }

  /**
   * @param {string} message
   * @param {Why} [why]
   */
  static needsHuman(message, why) {
    return new Stop('needs-human', message, why);
  }

  /** @param {string} message */
  static failed(message) {
    return new Stop('failed', message);
  }
}
