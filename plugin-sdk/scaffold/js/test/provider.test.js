import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Case, answer, get } from '../keywheel/testing.js';
import provider from '../src/provider.js';

const account = () => new Case(provider).setting('base_url', 'https://my-service.example').key('token');
const me = () => get('https://my-service.example/api/me').header('authorization', 'Bearer {token}');

test('a living token is valid and names its account', () => {
  const run = account().expect(me(), answer(200).json({ login: 'ann' })).validate();
  assert.equal(run.verdict, 'valid');
  assert.equal(run.said.val.identity, 'ann');
});

test('a firewall page says nothing of the token', () => {
  const run = account().expect(me(), answer(403).html('<h1>Blocked</h1>')).validate();
  assert.equal(run.verdict, 'unknown');
});
