// What stands between the contract's exports and a provider. The bindings of the toolchain want
// an error as a thrown object with a `payload`; what a provider throws in any other way is its own
// fault, and is said as such: an exception that got out would end the instance without a word.

import { Cx } from './cx.js';
import { emit } from './host.js';
import { Manifest } from './manifest.js';
import { Outcome, Stop, Verdict } from './verdict.js';

/** @param {string} message */
const failure = (message) => ({ payload: { message, extras: [] } });

/**
 * @param {string} name Of the call.
 * @param {typeof Verdict | typeof Outcome} due
 * @param {() => unknown} run
 */
function call(name, due, run) {
  let said;
  try {
    said = run();
  } catch (error) {
    if (error instanceof Stop) {
      if (error.kind === 'failed') throw failure(error.message);
      return { tag: error.kind, val: error.reason };
    }
    emit('error', trace(name, error));
    throw failure(`${name} threw ${error}`);
  }
  if (!(said instanceof due)) {
    const what = said instanceof Promise ? 'a promise, and it must not be async' : `${said}`;
    throw failure(`${name} returned ${what}; ${due === Verdict ? 'a Verdict' : 'an Outcome'} is due`);
  }
  return { tag: said.tag, val: said.val };
}

/**
 * @param {string} name
 * @param {unknown} error
 */
function trace(name, error) {
  const where = error instanceof Error && error.stack ? `\n${error.stack}` : '';
  return `${name} threw ${error}${where}`;
}

/**
 * A provider as the contract's exports.
 *
 * @param {import('./index.js').Provider} provider
 */
export function exported(provider) {
  return {
    describe() {
      const manifest = provider.describe();
      if (!(manifest instanceof Manifest)) throw new TypeError('describe gave no Manifest');
      return manifest.contract;
    },
    /** @param {object} context */
    validate(context) {
      return call('validate', Verdict, () => provider.validate(new Cx(context, provider.describe)));
    },
    /**
     * @param {object} context
     * @param {string} method
     */
    rotate(context, method) {
      return call('rotate', Outcome, () => {
        if (!provider.rotate) {
          throw Stop.failed(`this provider has no method \`${method}\`: it only validates`);
        }
        return provider.rotate(new Cx(context, provider.describe), method);
      });
    },
  };
}
