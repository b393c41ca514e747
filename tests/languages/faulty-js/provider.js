// A provider in JavaScript that goes wrong as its setting says, for the tests of tests/languages.rs.

import { Key, Manifest, Setting, Verdict } from './keywheel/index.js';

const WAYS = {
  throws: (cx) => cx.nothing.here,
  recurses: () => WAYS.recurses() + 1,
  loops: () => {
    for (;;);
  },
  hoards: () => {
    const hoard = [];
    for (;;) hoard.push(new Uint8Array(1 << 20).fill(1));
  },
  async: async () => Verdict.valid(),
};

export default {
  describe: () =>
    new Manifest('faulty-js', 'Goes wrong', '0.1.0')
      .setting(Setting.choice('way', Object.keys(WAYS)).required())
      .origin('https://shop.example')
      .validateUrl('https://shop.example/me')
      .key(Key.token('token')),

  validate: (cx) => WAYS[cx.setting('way')](cx),
};
