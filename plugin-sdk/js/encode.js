// Encodings of text the plugin knows, the same as the host applies to secrets. Pure; it never
// sees a secret, those are encoded by the host.

const BASE64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
const BASE64_URL = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';

/** @param {string} text */
const bytes = (text) => new TextEncoder().encode(text);

/** @param {number} byte */
const twoDigits = (byte) => byte.toString(16).padStart(2, '0');

/**
 * @param {string} text
 * @param {RegExp} plain Characters that stay.
 */
function escaped(text, plain) {
  let out = '';
  for (const byte of bytes(text)) {
    const character = String.fromCharCode(byte);
    out += plain.test(character) ? character : `%${twoDigits(byte).toUpperCase()}`;
  }
  return out;
}

/**
 * RFC 3986 percent-encoding of everything but unreserved characters.
 *
 * @param {string} text
 */
export const percent = (text) => escaped(text, /[A-Za-z0-9._~-]/);

/**
 * `application/x-www-form-urlencoded`, as the URL standard writes it.
 *
 * @param {string} text
 */
export const form = (text) => escaped(text, /[A-Za-z0-9*._ -]/).replaceAll(' ', '+');

/**
 * The inside of a JSON string, without the quotes.
 *
 * @param {string} text
 */
export function json(text) {
  let out = '';
  for (const character of text) {
    const code = character.codePointAt(0) ?? 0;
    if (character === '"' || character === '\\') out += `\\${character}`;
    else if (character === '\n') out += '\\n';
    else if (character === '\r') out += '\\r';
    else if (character === '\t') out += '\\t';
    else if (code < 0x20) out += `\\u00${twoDigits(code)}`;
    else out += character;
  }
  return out;
}

/**
 * @param {Uint8Array} from
 * @param {string} alphabet
 */
function sixBits(from, alphabet) {
  let out = '';
  for (let start = 0; start < from.length; start += 3) {
    const group = from.subarray(start, start + 3);
    const bits = (group[0] << 16) | ((group[1] ?? 0) << 8) | (group[2] ?? 0);
    // One byte needs two characters, two need three.
    for (let place = 0; place <= group.length; place += 1) {
      out += alphabet[(bits >> (18 - 6 * place)) & 63];
    }
  }
  return out;
}

/**
 * RFC 4648 section 4, with padding.
 *
 * @param {string} text
 */
export function base64(text) {
  const out = sixBits(bytes(text), BASE64);
  return out.padEnd(Math.ceil(out.length / 4) * 4, '=');
}

/**
 * RFC 4648 section 5, without padding.
 *
 * @param {string} text
 */
export const base64Url = (text) => sixBits(bytes(text), BASE64_URL);

/**
 * Lower-case hexadecimal.
 *
 * @param {string} text
 */
export const hex = (text) => Array.from(bytes(text), twoDigits).join('');
