// Nextcloud app passwords: seen alive by the account's own data, rotated in place by the server.

import { CommitClass, Key, Manifest, Method, Outcome, Setting, Verdict, basic, json, secret } from './keywheel/index.js';

const OCS = 'https://docs.nextcloud.com/server/latest/developer_manual/client_apis/OCS/ocs-api-overview.html';
const ROTATE = 'https://github.com/nextcloud/server/blob/master/core/Controller/AppPasswordController.php';

// What OCS says in `meta.statuscode` for 401; a proxy's own 401 has no such thing.
const UNAUTHORISED = '997';

/**
 * @param {import('./keywheel/cx.js').Cx} cx
 * @param {import('./keywheel/request.js').Request} request
 */
const asUser = (cx, request) =>
  request
    .header('authorization', basic(cx.setting('user'), secret('app_password')))
    // Without it OCS takes the request for a forged one.
    .header('ocs-apirequest', 'true')
    .header('accept', 'application/json');

/** @param {import('./keywheel/response.js').Response} answer */
const refused = (answer) => answer.status === 401 && answer.pick('/ocs/meta/statuscode') === UNAUTHORISED;

export default {
  describe: () =>
    new Manifest('nextcloud', 'Nextcloud app password', '0.1.0')
      .setting(Setting.url('base_url').required().help('The server, such as https://cloud.example'))
      .setting(Setting.text('user').required().help('The login name that the app password belongs to'))
      .origin('{base_url.origin}')
      .validateUrl('{base_url}/ocs/v2.php/cloud/user?format=json')
      .key(Key.token('app_password').help('From Settings, Security, "Create new app password"'))
      .method(
        new Method('rotate', CommitClass.BurnOnIssue).help('The server replaces the app password; the old one dies'),
      )
      .source(OCS)
      .classSource('rotate', ROTATE),

  validate(cx) {
    const answer = asUser(cx, cx.get('{validate_url}')).send();
    if (refused(answer)) return Verdict.invalid('the server knows no such app password of this account');
    if (answer.status !== 200) throw answer.unexpected();
    const identity = answer.pick('/ocs/data/id');
    if (!identity) throw answer.unexpected();
    return Verdict.valid({ identity });
  },

  rotate(cx) {
    const answer = asUser(cx, cx.post('{base_url}/ocs/v2.php/core/apppassword/rotate').query('format', 'json'))
      .capture('app_password', json('/ocs/data/apppassword'))
      .send();
    if (refused(answer)) return Outcome.invalid('the server knows no such app password of this account');
    if (answer.status === 403 && answer.pick('/ocs/meta/statuscode') === '403') {
      return Outcome.needsHuman(
        "the server rotates app passwords only, and this is the account's own: make one in Settings, Security",
      );
    }
    if (answer.status === 200 && answer.changed('app_password')) return Outcome.rotated();
    throw answer.unexpected();
  },
};
