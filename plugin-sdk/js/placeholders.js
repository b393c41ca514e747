// Fills `{setting}`, `{setting.host}` and `{setting.origin}` into text. Pure; the same rules as
// the host's for a manifest.

/**
 * Fills `pattern` from `lookup`. Where a value ends in `/` and what follows begins with one, a
 * single `/` is written: `{base_url}/api` is right with and without a slash at the end.
 *
 * @param {string} pattern
 * @param {(name: string) => string | undefined} lookup
 * @returns {string}
 * @throws {Error} Where a placeholder can't be filled.
 */
export function fill(pattern, lookup) {
  let out = '';
  let rest = pattern;
  let afterValue = false;
  /** @param {string} piece */
  const push = (piece) => {
    out += afterValue && out.endsWith('/') && piece.startsWith('/') ? piece.slice(1) : piece;
  };
  for (;;) {
    const open = rest.indexOf('{');
    if (open < 0) break;
    const before = rest.slice(0, open);
    push(before);
    afterValue &&= before === '';
    const close = rest.indexOf('}', open);
    if (close < 0) throw new Error(`\`${pattern}\` has a \`{\` without its \`}\``);
    push(value(pattern, rest.slice(open + 1, close), lookup));
    afterValue = true;
    rest = rest.slice(close + 1);
  }
  push(rest);
  return out;
}

/**
 * @param {string} pattern
 * @param {string} placeholder
 * @param {(name: string) => string | undefined} lookup
 */
function value(pattern, placeholder, lookup) {
  const dot = placeholder.indexOf('.');
  const name = dot < 0 ? placeholder : placeholder.slice(0, dot);
  const view = dot < 0 ? '' : placeholder.slice(dot + 1);
  const found = lookup(name);
  if (found === undefined) {
    throw new Error(`\`${pattern}\` asks for \`${name}\`, which is no setting of this provider`);
  }
  if (view === '') return found;
  if (view !== 'host' && view !== 'origin') {
    throw new Error(`\`${pattern}\` asks for \`.${view}\`; a url setting has \`.host\` and \`.origin\``);
  }
  const seen = view === 'host' ? host(found) : origin(found);
  if (seen === undefined) throw new Error(`setting \`${name}\` is \`${found}\`, which is no http or https URL`);
  return seen;
}

/**
 * `scheme` and `host[:port]` of an absolute http or https URL.
 *
 * @param {string} url
 */
function split(url) {
  const found = /^(https?):\/\/([^/?#@]+)(?:[/?#]|$)/i.exec(url);
  return found ? { scheme: found[1], authority: found[2] } : undefined;
}

/** @param {string} url */
function host(url) {
  const parts = split(url);
  if (!parts) return undefined;
  const colon = parts.authority.lastIndexOf(':');
  // The last colon of `[::1]` is inside the brackets.
  const port = colon >= 0 && !parts.authority.slice(colon).endsWith(']');
  return port ? parts.authority.slice(0, colon) : parts.authority;
}

/**
 * `scheme://host[:port]` in lower case, without the port its scheme has anyway.
 *
 * @param {string} url
 * @returns {string | undefined}
 */
export function origin(url) {
  const parts = split(url);
  if (!parts) return undefined;
  const scheme = parts.scheme.toLowerCase();
  const authority = parts.authority.toLowerCase();
  const usualPort = scheme === 'https' ? ':443' : ':80';
  return `${scheme}://${authority.endsWith(usualPort) ? authority.slice(0, -usualPort.length) : authority}`;
}
