// What the fixtures can't say. They are run by `keywheel plugin test`, in the real sandbox.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Case, answer, get } from '../keywheel/testing.js';
import provider from '../provider.js';

const account = () => new Case(provider).setting('base_url', 'https://cloud.example/nextcloud/').setting('user', 'ann').key('app_password');

test('a server in a folder is asked there', () => {
  const me = get('https://cloud.example/nextcloud/ocs/v2.php/cloud/user?format=json').header(
    'authorization',
    'Basic {ann:{app_password}|base64}',
  );
  const run = account().expect(me, answer(200).json({ ocs: { meta: { statuscode: 200 }, data: { id: 'ann' } } })).validate();
  assert.equal(run.verdict, 'valid');
  assert.equal(run.said.val.identity, 'ann');
});
