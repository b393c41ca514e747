// Keeps API tokens of My service alive, wherever it is hosted.

import { CommitClass, Key, Manifest, Method, Outcome, Setting, Verdict, bearer, json } from '../keywheel/index.js';

/** @type {import('../keywheel/index.js').Provider} */
export default {
  describe: () =>
    new Manifest('my-service', 'My service', '0.1.0')
      .source('https://my-service.example/docs/api')
      .setting(Setting.url('base_url').required().help('As in https://my-service.example'))
      .origin('{base_url.origin}')
      .validateUrl('{base_url}/api/me')
      .key(Key.token('token').help('An API token, from the page Settings, Tokens'))
      .method(new Method('renew', CommitClass.BurnOnIssue).help('Swap it for a fresh one'))
      .classSource('renew', 'https://my-service.example/docs/api#renew'),

  validate(cx) {
    const answer = cx.get('{validate_url}').header('authorization', bearer('token')).send();
    switch (answer.status) {
      case 200:
        return Verdict.valid({ identity: answer.pick('/login') });
      case 401:
        return Verdict.invalid('/api/me answers 401: no such token, or no longer');
      default:
        throw answer.unexpected();
    }
  },

  rotate(cx, _method) {
    const answer = cx
      .post('{base_url}/api/token/renew')
      .header('authorization', bearer('token'))
      .capture('token', json('/token').expiresIn(json('/expires_in')))
      .send();
    if (answer.status === 200 && answer.changed('token')) return Outcome.rotated();
    if (answer.status === 401) return Outcome.invalid("the service doesn't renew this token: make a new one");
    throw answer.unexpected();
  },
};
