// Lines in the host's log, attributed to the plugin. Secrets are redacted there.

import { emit } from './host.js';

/** @param {string} message */
export const debug = (message) => emit('debug', message);

/** @param {string} message */
export const info = (message) => emit('info', message);

/** @param {string} message */
export const warn = (message) => emit('warn', message);

/** @param {string} message */
export const error = (message) => emit('error', message);
