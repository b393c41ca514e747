// Templates: what a request says, with secrets by reference. Nothing here ever holds a secret;
// the host puts the bytes in. One level of computing over secrets is all the contract has, so
// encoding a computed part again is an error here, as it is a compile error in Rust.

import * as encode from './encode.js';

/** @typedef {'raw' | 'form' | 'percent' | 'json' | 'base64' | 'base64-url' | 'hex' | 'sha1-hex' | 'sha256-hex'} Encoding */
/** @typedef {{ tag: 'text', val: string } | { tag: 'secret', val: { key: string, encoding: Encoding } }} Leaf */
/** @typedef {Leaf | { tag: 'encoded', val: { leaves: Leaf[], encoding: Encoding } }} Part */
/** @typedef {string | Template} Piece */

/** @type {Record<string, (text: string) => string>} */
const BY_HAND = {
  form: encode.form,
  percent: encode.percent,
  json: encode.json,
  base64: encode.base64,
  'base64-url': encode.base64Url,
  hex: encode.hex,
};

/** What goes into a URL, a header or a body. Made by {@link text} and {@link secret}. */
export class Template {
  /** @type {Part[]} */
  #parts;
  /** One piece, as `text` and `secret` give it: encoded by itself, which needs no computed part. */
  #isLeaf;

  /**
   * @param {Part[]} parts
   * @param {boolean} [isLeaf]
   */
  constructor(parts, isLeaf = false) {
    this.#parts = parts;
    this.#isLeaf = isLeaf;
  }

  /** As the contract has it. */
  get parts() {
    return this.#parts;
  }

  form() {
    return this.#encoded('form');
  }

  percent() {
    return this.#encoded('percent');
  }

  /** The inside of a JSON string, without the quotes. */
  json() {
    return this.#encoded('json');
  }

  base64() {
    return this.#encoded('base64');
  }

  base64Url() {
    return this.#encoded('base64-url');
  }

  hex() {
    return this.#encoded('hex');
  }

  sha1Hex() {
    return this.#encoded('sha1-hex');
  }

  sha256Hex() {
    return this.#encoded('sha256-hex');
  }

  /**
   * Encoded as one value of a body or query; a lone piece needs no second level.
   *
   * @param {Encoding} encoding
   */
  within(encoding) {
    if (this.#parts.length === 0) return this;
    const [first] = this.#parts;
    const lone =
      this.#parts.length === 1 && (first.tag === 'text' || (first.tag === 'secret' && first.val.encoding === 'raw'));
    return lone ? new Template(this.#parts, true).#encoded(encoding) : this.#encoded(encoding);
  }

  /**
   * Whether the plain text in it has `character`.
   *
   * @param {string} character
   */
  hasText(character) {
    return this.#parts.some((part) => part.tag === 'text' && part.val.includes(character));
  }

  /** Secrets as `{key}`, encodings as `{key|form}`, computed parts as `{user:{key}|base64}`. */
  toString() {
    return this.#parts.map(shown).join('');
  }

  /** @param {Encoding} encoding */
  #encoded(encoding) {
    const [first] = this.#parts;
    const byHand = BY_HAND[encoding];
    if (this.#isLeaf && byHand) {
      if (first.tag === 'text') return new Template([{ tag: 'text', val: byHand(first.val) }]);
      if (first.tag === 'secret') return new Template([{ tag: 'secret', val: { key: first.val.key, encoding } }]);
    }
    /** @type {Leaf[]} */
    const leaves = [];
    for (const part of this.#parts) {
      if (part.tag === 'encoded') {
        throw new TypeError(`\`${this}\` is computed already, and the contract has one level of that: no ${encoding} over it`);
      }
      leaves.push(part);
    }
    return new Template([{ tag: 'encoded', val: { leaves, encoding } }]);
  }
}

/**
 * Plain text, known to the plugin. As a tag it joins pieces: text`Bearer ${secret('token')}`.
 *
 * @param {string | TemplateStringsArray} plain
 * @param {...Piece} pieces
 * @returns {Template}
 */
export function text(plain, ...pieces) {
  if (typeof plain === 'string') return new Template([{ tag: 'text', val: plain }], true);
  if (!Array.isArray(plain)) throw new TypeError(`text is a ${typeof plain}; a string is due`);
  /** @type {Part[]} */
  const parts = [];
  plain.forEach((between, place) => {
    if (between !== '') parts.push({ tag: 'text', val: between });
    if (place < pieces.length) parts.push(...toTemplate(pieces[place]).parts);
  });
  return new Template(parts);
}

/**
 * The value of a key of this credential, put in by the host.
 *
 * @param {string} key
 */
export const secret = (key) => new Template([{ tag: 'secret', val: { key, encoding: 'raw' } }], true);

/**
 * A string is text; a number is text as well.
 *
 * @param {Piece | number} piece
 * @returns {Template}
 */
export function toTemplate(piece) {
  if (piece instanceof Template) return piece;
  if (typeof piece === 'string' || typeof piece === 'number') return text(String(piece));
  throw new TypeError(`a piece of a template is ${piece === null ? 'null' : `a ${typeof piece}`}; text or a template is due`);
}

/**
 * `Bearer <key>`, for the `Authorization` header (RFC 6750).
 *
 * @param {string} key
 */
export const bearer = (key) => text`Bearer ${secret(key)}`;

/**
 * `Basic <base64 of user:password>`, for the `Authorization` header (RFC 7617). OAuth 2.0 wants
 * both form-encoded first: `basic(text(id).form(), secret('key').form())`.
 *
 * @param {Piece} user
 * @param {Piece} password
 */
export const basic = (user, password) => text`Basic ${text`${user}:${password}`.base64()}`;

/** @param {Record<string, Piece> | Iterable<[string, Piece]>} fields */
function entries(fields) {
  return Symbol.iterator in fields ? [...fields] : Object.entries(fields);
}

/**
 * A form body; names and values are form-encoded, secrets by the host.
 *
 * @param {Record<string, Piece> | Iterable<[string, Piece]>} fields
 */
export function form(fields) {
  const parts = entries(fields).map(([name, value], index) => {
    const start = text(`${index === 0 ? '' : '&'}${encode.form(name)}=`);
    return [...start.parts, ...toTemplate(value).within('form').parts];
  });
  return new Template(parts.flat());
}

/**
 * A JSON object of strings; secrets are escaped by the host. For anything deeper, write the JSON
 * as text around `secret('key').json()`.
 *
 * @param {Record<string, Piece> | Iterable<[string, Piece]>} fields
 */
export function jsonObject(fields) {
  const parts = entries(fields).map(([name, value], index) => {
    const start = text(`${index === 0 ? '{' : ','}"${encode.json(name)}":"`);
    return [...start.parts, ...toTemplate(value).within('json').parts, ...text('"').parts];
  });
  return new Template([...(parts.length === 0 ? text('{').parts : parts.flat()), ...text('}').parts]);
}

/** @param {Part} part */
function shown(part) {
  if (part.tag === 'text') return part.val;
  if (part.tag === 'encoded') return `{${part.val.leaves.map(shown).join('')}|${part.val.encoding}}`;
  return part.val.encoding === 'raw' ? `{${part.val.key}}` : `{${part.val.key}|${part.val.encoding}}`;
}
