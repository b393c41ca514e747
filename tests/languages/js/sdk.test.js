// The layer for JavaScript says what the SDK for Rust says: the cases of ../sdk.json, which
// plugin-sdk/tests/languages.rs puts to the SDK itself. And what is JavaScript's own.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { Key, Manifest, Method, Outcome, Setting, Stop, Verdict, basic, bearer, date, encode, form, json, jsonObject, log, secret, text } from '../../../plugin-sdk/js/index.js';
import { fill } from '../../../plugin-sdk/js/placeholders.js';
import { Case, answer, fails, faults, get, manifestOf, post } from '../../../plugin-sdk/js/testing.js';

const cases = JSON.parse(readFileSync(new URL('../sdk.json', import.meta.url), 'utf8'));

const manifest = () =>
  new Manifest('shop', 'The shop', '0.1.0')
    .origin('https://shop.example')
    .validateUrl('https://shop.example/me')
    .key(Key.token('token'))
    .method(new Method('renew', 'grace'));

/** A provider with this manifest that does as told. */
const shop = (told, described = manifest) => ({ describe: described, validate: told, rotate: told });
const run = (told, ...script) => script.reduce((one, [request, back]) => one.expect(request, back), new Case(shop(told)).key('token'));
const me = () => get('https://shop.example/me');

test('every encoding writes what its standard says', () => {
  for (const [name, input, expected] of cases.encode) {
    assert.equal(encode[name === 'base64_url' ? 'base64Url' : name](input), expected, `${name} of ${input}`);
  }
});

test('every form of one moment is the same and what is no date is none', () => {
  for (const [input, expected] of cases.date) assert.equal(date.parse(input) ?? null, expected, input);
});

test('settings fill placeholders and slashes never double', () => {
  for (const [pattern, expected] of cases.fill) {
    let said;
    try {
      said = fill(pattern, (name) => cases.settings[name]);
    } catch (error) {
      said = `error: ${error.message}`;
    }
    assert.equal(said, expected);
  }
});

test('durations are seconds or a number with a unit', () => {
  const described = () => manifest().setting(Setting.duration('every'));
  for (const [value, expected] of cases.seconds) {
    const provider = shop((cx) => Verdict.valid({ next: cx.settingSeconds('every') }), described);
    const ran = new Case(provider).setting('every', value).validate();
    if (expected === null) assert.match(ran.failure, /a duration is whole seconds/, value);
    else assert.equal(ran.said.val.next, expected, value);
  }
});

test('what taught nothing is unknown, and a verdict rests on an answer', () => {
  for (const one of cases.answers) {
    const back = one.fails ? fails(one.fails, one.what) : answer(one.status).body(one.body ?? '');
    for (const [name, value] of Object.entries(one.headers ?? {})) back.header(name, value);
    const ran = run((cx) => {
      const found = cx.get('{validate_url}').send();
      if (found.status === 200) return Verdict.valid({ identity: found.pick('/login') });
      if (found.status === 401) return Verdict.invalid('it is dead');
      throw found.unexpected();
    }, [me(), back]).validate();
    const said = ran.failure === undefined ? `${ran.verdict}: ${ran.said.val.message ?? ran.said.val.identity ?? 'nobody'}` : `failed: ${ran.failure}`;
    // Each language has its own words for what is wrong with JSON.
    assert.equal(said.replace(/ \(.*\)$/s, ''), one.says, one.about);
    assert.equal(ran.failure ?? ran.said.val.retryAfter ?? null, ran.failure ?? one.retry_after ?? null, one.about);
  }
});

test('a template shows where each secret goes and how', () => {
  const said = {
    bearer: bearer('access_token'),
    'one secret': secret('a').form(),
    'one text': text('a b').form(),
    computed: text`id:${secret('key').form()}`.base64(),
    'computed secret': text`1 ${secret('sid').sha1Hex()}`,
    'text and secret in a form': form({ both: text`a${secret('b')}` }),
    twice: form({ twice: secret('b').base64() }),
    'an empty object': jsonObject({}),
    'an object': jsonObject([['user', 'a"b'], ['token', secret('token')]]),
    'a form': form({ grant_type: 'a b', refresh_token: secret('refresh_token') }),
    basic: basic('robot', secret('api_key')),
  };
  for (const [name, template] of Object.entries(said)) assert.equal(String(template), cases.templates[name], name);
  run((cx) => {
    cx.get('{validate_url}').query('a', '1').query('b', 'x y').query('c', secret('token')).send();
    cx.get('{validate_url}').segment('a/b').segment(secret('token')).send();
    return Verdict.unknown('');
  }, [get(cases.templates['a query']), answer(200)], [get(cases.templates['a segment']), answer(200)]).validate();
});

test('a computed part is computed once', () => {
  assert.throws(() => basic('a', secret('b')).base64(), /one level of that/);
  assert.throws(() => text`a${undefined}`, /a piece of a template is a undefined/);
});

test('what a provider throws is its own fault, said with its place, and never a verdict', () => {
  const ran = run((cx) => cx.nothing.here).validate();
  assert.match(ran.failure, /^validate threw TypeError: /);
  assert.match(ran.log[0][1], /sdk\.test\.js/);
  for (const thrown of [null, undefined, 'text', new RangeError('deep')]) {
    assert.match(run(() => { throw thrown; }).validate().failure, /^validate threw /);
  }
});

test('what is no verdict is no answer', () => {
  assert.match(run(() => undefined).validate().failure, /returned undefined; a Verdict is due/);
  assert.match(run(async () => Verdict.valid()).validate().failure, /a promise, and it must not be async/);
  assert.match(run(() => Verdict.valid()).rotate('renew').failure, /an Outcome is due/);
  assert.match(new Case({ describe: manifest, validate: () => Verdict.valid() }).rotate('renew').failure, /it only validates/);
});

test('each way to stop is the verdict and the outcome of its name', () => {
  for (const [stop, tag] of [[Stop.unknown('x', { retryAfter: 5 }), 'unknown'], [Stop.invalid('x'), 'invalid'], [Stop.needsHuman('x'), 'needs-human']]) {
    const told = () => { throw stop; };
    for (const ran of [run(told).validate(), run(told).rotate('renew')]) {
      assert.deepEqual([ran.verdict, ran.said.val.message, ran.said.val.retryAfter], [tag, 'x', stop.reason.retryAfter]);
    }
  }
  assert.equal(run(() => { throw Stop.failed('mine'); }).validate().failure, 'mine');
});

test('a rotation captures what the answer has, and the provider sees that it changed alone', () => {
  const renew = () => post('https://shop.example/renew').header('authorization', 'Bearer {token}');
  const told = (cx) => {
    const found = cx.post('https://shop.example/renew').header('authorization', bearer('token'))
      .capture('token', json('/token').expiresIn(json('/lives'))).send();
    log.info(found.text);
    assert.equal(found.captured('token').expires, 1_767_225_660_000);
    return found.outcome();
  };
  const ran = run(told, [renew(), answer(200).json({ token: 'fresh-and-made-up', lives: 60 })]).rotate('renew');
  assert.equal(ran.verdict, 'rotated');
  assert.deepEqual(ran.captured, { token: 'fresh-and-made-up' });
  assert.deepEqual(ran.log, [['info', '{"token":"[redacted]","lives":60}']]);
  const kept = run((cx) => cx.post('https://shop.example/renew').header('authorization', bearer('token')).send().outcome(), [renew(), answer(200).json({})]);
  assert.equal(kept.rotate('renew').verdict, 'unchanged');
});

test('a key is revealed only if the manifest asks and the operator grants', () => {
  const described = () => manifest().key(Key.token('seed').reveal());
  const told = (cx) => Verdict.valid({ note: new TextDecoder().decode(cx.reveal('seed')) });
  assert.equal(new Case(shop(told, described)).key('seed', { granted: true }).validate().said.val.note, 'old-seed');
  assert.equal(new Case(shop(told, described)).key('seed').validate().verdict, 'needs-human');
});

test('the script refuses what the host would, also where the provider looks away', () => {
  const looksAway = (cx) => {
    try {
      cx.get('https://shop.example/other').send();
    } catch {}
    return Verdict.unknown('');
  };
  assert.throws(() => run(looksAway).validate(), /doesn't expect/);
  assert.throws(() => run(looksAway, [me(), answer(200)]).validate(), /but the provider made/);
  assert.throws(() => run(() => Verdict.valid(), [me(), answer(200)]).validate(), /never made these requests/);
  assert.match(run((cx) => cx.get('https://elsewhere.example/').send()).validate().failure, /is at none of https:\/\/shop\.example/);
  assert.match(run((cx) => cx.get('{nope}').send()).validate().failure, /which is no setting of this provider/);
  assert.throws(() => run((cx) => cx.get('{validate_url}').header('x', secret('other')).send()).validate(), /which this credential doesn't have/);
});

test('a manifest that the host would refuse is told with each fault', () => {
  const wrong = new Manifest('Shop!', 'x', '1').origin('http://shop.example').validateUrl('https://other.example/').validateEvery(0)
    .key(Key.token('a')).key(Key.token('a')).method(new Method('renew', 'sometimes').commitClassFrom('nope'));
  assert.equal(faults(manifestOf(shop(() => {}, () => wrong))).length, 7);
  assert.throws(() => new Case(shop(() => {}, () => wrong)), /the host would refuse this manifest/);
  assert.deepEqual(faults(manifestOf(shop(() => {}))), []);
  assert.equal(Outcome.rotated({ expires: 5 }).val.expires, 5n);
});
