// Builds a provider into a component. Usage:
//   node keywheel/build.mjs src/provider.js build/example.wasm [--toolchain FOLDER]
// FOLDER has the node_modules with @bytecodealliance/componentize-js; it is the project's own
// unless named. Owns the folder `<output>.stage`, and writes nothing else. Must never let anything
// of WASI into the component: a provider has no time, no chance and no console.

import { existsSync } from 'node:fs';
import { copyFile, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join, relative, resolve, sep } from 'node:path';
import { pathToFileURL } from 'node:url';

import { faults, manifestOf } from './testing.js';

// Without them the engine imports nothing but the contract.
const WITHOUT = /** @type {const} */ (['stdio', 'random', 'clocks', 'http', 'fetch-event']);

const ENTRY = `
import { send } from 'keywheel:provider/http@0.1.0';
import { emit } from 'keywheel:provider/log@0.1.0';
import { reveal } from 'keywheel:provider/secrets@0.1.0';
import { exported } from './keywheel/guest.js';
import { connect } from './keywheel/host.js';
import provider from './PROVIDER';

connect({ send, emit, reveal });
export const guest = exported(provider);
`;

/** @param {string} message */
function fail(message) {
  console.error(`build.mjs: ${message}`);
  process.exit(1);
}

const given = process.argv.slice(2);
const named = given.indexOf('--toolchain');
const toolchain = resolve(named < 0 ? '.' : (given.splice(named, 2)[1] ?? '.'));
const [source, output] = given;
if (!source || !output || given.length > 2) {
  fail('usage: node keywheel/build.mjs src/provider.js build/example.wasm [--toolchain FOLDER]');
}

// The project is where the layer is: the provider's folder or the one above.
const beside = dirname(resolve(source));
const root = existsSync(join(beside, 'keywheel')) ? beside : dirname(beside);
if (!existsSync(join(root, 'keywheel'))) fail(`there is no keywheel folder beside or above ${source}`);
const out = resolve(output);
const stage = `${out}.stage`;
const modules = join(toolchain, 'node_modules');

/** @param {string} path Inside node_modules. */
async function tool(path) {
  if (!existsSync(join(modules, path))) {
    fail(`the toolchain is not in ${modules}; hint: npm ci --ignore-scripts, in ${toolchain}`);
  }
  return import(pathToFileURL(join(modules, path)).href);
}

const { componentize } = await tool('@bytecodealliance/componentize-js/src/componentize.js');
const lexer = await tool('es-module-lexer/dist/lexer.js');
await lexer.init;

const provider = (await import(pathToFileURL(resolve(source)).href)).default;
if (typeof provider?.describe !== 'function' || typeof provider?.validate !== 'function') {
  fail(`${source} has no provider; hint: export default { describe() {…}, validate(cx) {…} }`);
}
const found = faults(manifestOf(provider));
if (found.length > 0) fail(`the host would refuse this manifest:\n  ${found.join('\n  ')}`);

await rm(stage, { recursive: true, force: true });
await mkdir(stage, { recursive: true });
/** @type {Set<string>} */
const staged = new Set();

/**
 * Copies a module and what it imports, so that the engine sees one folder without links.
 *
 * @param {string} path
 */
async function take(path) {
  const place = relative(root, path);
  if (staged.has(place)) return;
  staged.add(place);
  if (place.startsWith(`..${sep}`)) fail(`${path} is outside of ${root}, and a provider is one folder`);
  const code = await readFile(path, 'utf8');
  for (const { n: wanted } of lexer.parse(code, path)[0]) {
    if (wanted === undefined) continue;
    if (!wanted.startsWith('.')) {
      fail(`${place} imports \`${wanted}\`; the engine knows no packages. hint: bundle it first, or do without`);
    }
    await take(resolve(dirname(path), wanted));
  }
  await mkdir(dirname(join(stage, place)), { recursive: true });
  await copyFile(path, join(stage, place));
}

await take(resolve(source));
for (const module of ['guest.js', 'host.js']) await take(join(root, 'keywheel', module));
if (staged.has(join('keywheel', 'testing.js'))) fail('a provider imports keywheel/testing.js, which is for its tests');
const entry = join(stage, 'entry.js');
await writeFile(entry, ENTRY.replace('PROVIDER', relative(root, resolve(source)).split(sep).join('/')));

const { component } = await componentize({
  sourcePath: entry,
  witPath: join(root, 'keywheel', 'wit'),
  worldName: 'provider',
  disableFeatures: [...WITHOUT],
});
await writeFile(`${out}.tmp`, component);
// Whole or not at all: a daemon may be looking.
await rename(`${out}.tmp`, out);
await rm(stage, { recursive: true, force: true });
console.log(`${output}: ${manifestOf(provider).service}, ${(component.length / 1e6).toFixed(1)} MB`);
