// Reads the dates that services write. Pure: the host's `now` is the only clock there is.

const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];
const HTTP = /^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (\d\d) ([A-Z][a-z][a-z]) (\d{4}) (\d\d):(\d\d):(\d\d) GMT$/;
const RFC_3339 =
  /^(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(\.\d+)?(?:[Zz]|([+-])(\d\d):(\d\d))$/;
const SPACED = /^(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d) UTC$/;
const DAY = /^(\d{4})-(\d\d)-(\d\d)$/;

/**
 * Milliseconds since 1970, or undefined where the calendar or the clock has no such moment.
 *
 * @param {number[]} parts Year, month from 1, day, hour, minute, second.
 * @returns {number | undefined}
 */
function moment([year, month, day, hour = 0, minute = 0, second = 0]) {
  const at = Date.UTC(year, month - 1, day, hour, minute, second);
  const back = new Date(at);
  const same =
    back.getUTCFullYear() === year &&
    back.getUTCMonth() === month - 1 &&
    back.getUTCDate() === day &&
    hour < 24 &&
    minute < 60 &&
    second < 60;
  return same ? at : undefined;
}

/**
 * Milliseconds since 1970 of a date as RFC 3339 has it (`2026-01-01T00:00:00Z`), as HTTP has it
 * (`Thu, 01 Jan 2026 00:00:00 GMT`), as `2026-01-01 00:00:00 UTC`, or of a day's beginning in UTC
 * (`2026-01-01`). Undefined for anything else, and for dates before 1970.
 *
 * @param {string} text
 * @returns {number | undefined}
 */
export function parse(text) {
  let found = RFC_3339.exec(text);
  let at;
  if (found) {
    const [, , , , , , , fraction, sign, hours, minutes] = found;
    at = moment(found.slice(1, 7).map(Number));
    if (sign !== undefined && (Number(hours) > 23 || Number(minutes) > 59)) return undefined;
    const offset = sign === undefined ? 0 : (Number(hours) * 60 + Number(minutes)) * 60_000;
    if (at !== undefined) at += Math.floor(Number(`0${fraction ?? ''}`) * 1_000) - (sign === '-' ? -offset : offset);
  } else {
    found = SPACED.exec(text) ?? DAY.exec(text);
    at = found ? moment(found.slice(1).map(Number)) : ofHttp(text);
  }
  return at !== undefined && at >= 0 ? at : undefined;
}

/**
 * Seconds since 1970 of a date in an HTTP header.
 *
 * @param {string} text
 * @returns {number | undefined}
 */
export function parseHttp(text) {
  const at = ofHttp(text);
  return at !== undefined && at >= 0 ? at / 1_000 : undefined;
}

/** @param {string} text */
function ofHttp(text) {
  const found = HTTP.exec(text);
  if (!found) return undefined;
  const [, day, month, year, hour, minute, second] = found;
  return moment([Number(year), MONTHS.indexOf(month) + 1, ...[day, hour, minute, second].map(Number)]);
}
