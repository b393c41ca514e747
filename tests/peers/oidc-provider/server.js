// A real OpenID provider with refresh-token rotation and reuse detection on.
//
// Owns: the server side of the `oauth2-refresh` tests. Tokens, rotation, reuse
// detection and client authentication are oidc-provider's own; this file only
// switches them on, issues first tokens without a browser, and counts events.
//
// Must never: listen anywhere but on 127.0.0.1, outlive the process that
// started it, or write anything but the ready line to stdout. Every secret is
// drawn at start and lives in memory alone.

import { generateKeyPairSync, randomBytes, randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { isatty } from 'node:tty';
import { parseArgs } from 'node:util';

// The provider writes its notices with console.info; stdout is for the ready line.
console.info = console.error;
console.log = console.error;

const { Provider } = await import('oidc-provider');

function wholeNumber(name, text, least, most) {
  const number = Number(text);
  if (!Number.isInteger(number) || number < least || number > most) {
    console.error(`--${name} ${text}: allowed is a whole number from ${least} to ${most}`);
    process.exit(2);
  }
  return number;
}

function readOptions() {
  const options = {
    port: { type: 'string', default: process.env.OIDC_PEER_PORT ?? '0' },
    'access-ttl': { type: 'string', default: process.env.OIDC_PEER_ACCESS_TTL ?? '5' },
    'refresh-ttl': { type: 'string', default: process.env.OIDC_PEER_REFRESH_TTL ?? '3600' },
  };
  let values;
  try {
    ({ values } = parseArgs({ options }));
  } catch (error) {
    console.error(`${error.message}; hint: the options are --${Object.keys(options).join(', --')}`);
    process.exit(2);
  }
  const day = 86_400;
  return {
    port: wholeNumber('port', values.port, 0, 65_535),
    accessTtl: wholeNumber('access-ttl', values['access-ttl'], 1, day),
    refreshTtl: wholeNumber('refresh-ttl', values['refresh-ttl'], 1, day),
  };
}

const SCOPE = 'openid offline_access profile';

function newClient(method) {
  return {
    client_id: `peer-${method.replaceAll('_', '-')}`,
    client_secret: randomBytes(32).toString('hex'),
    token_endpoint_auth_method: method,
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    redirect_uris: ['https://client.invalid/callback'],
    scope: SCOPE,
    id_token_signed_response_alg: 'ES256',
  };
}

function newProvider(issuer, clients, { accessTtl, refreshTtl }) {
  // An elliptic key is made in a millisecond; an RSA key would delay the start.
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const grantTtl = 86_400; // longer than any test, so that only reuse ends a grant
  return new Provider(issuer, {
    clients,
    jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'ES256' }] },
    cookies: { keys: [randomBytes(32).toString('hex')] },
    rotateRefreshToken: true,
    // The default lets every token live 15 seconds past its expiry.
    clockTolerance: 0,
    ttl: { AccessToken: accessTtl, IdToken: accessTtl, RefreshToken: refreshTtl, Grant: grantTtl },
    claims: { openid: ['sub'], profile: ['name'] },
    findAccount: (_ctx, sub) => ({ accountId: sub, claims: () => ({ sub, name: sub }) }),
    features: {
      devInteractions: { enabled: false },
      introspection: { enabled: true },
      revocation: { enabled: true },
      userinfo: { enabled: true },
    },
  });
}

// What the provider itself said happened; nothing here is inferred from requests.
function countEvents(provider) {
  const counts = {
    grants_issued: 0,
    refresh_exchanges: 0,
    refresh_errors: 0,
    reuse_detected: 0,
    grants_revoked: 0,
    refresh_tokens_saved: 0,
    refresh_tokens_consumed: 0,
    refresh_tokens_destroyed: 0,
    access_tokens_issued: 0,
    userinfo_refused: 0,
    server_errors: 0,
    // Why refreshes were refused: the provider's own reason, which it never
    // tells the client ("refresh token already used", "refresh token not found").
    error_reasons: {},
  };
  const isRefresh = (ctx) => ctx.oidc?.params?.grant_type === 'refresh_token';

  provider.on('grant.saved', () => { counts.grants_issued += 1; });
  provider.on('grant.success', (ctx) => { if (isRefresh(ctx)) counts.refresh_exchanges += 1; });
  provider.on('grant.error', (ctx, error) => {
    if (!isRefresh(ctx)) return;
    const reason = error.error_detail ?? error.error_description ?? error.message;
    counts.refresh_errors += 1;
    counts.error_reasons[reason] = (counts.error_reasons[reason] ?? 0) + 1;
    if (reason === 'refresh token already used') counts.reuse_detected += 1;
  });
  provider.on('grant.revoked', () => { counts.grants_revoked += 1; });
  provider.on('refresh_token.saved', () => { counts.refresh_tokens_saved += 1; });
  provider.on('refresh_token.consumed', () => { counts.refresh_tokens_consumed += 1; });
  provider.on('refresh_token.destroyed', () => { counts.refresh_tokens_destroyed += 1; });
  provider.on('access_token.saved', () => { counts.access_tokens_issued += 1; });
  provider.on('access_token.issued', () => { counts.access_tokens_issued += 1; });
  provider.on('userinfo.error', () => { counts.userinfo_refused += 1; });
  provider.on('server_error', (_ctx, error) => {
    counts.server_errors += 1;
    console.error(error);
  });
  return counts;
}

// The same models, in the same order, as the provider's authorization-code
// exchange: what a browser log-in with consent would have left behind.
async function issueFirstTokens(provider, clientId, accountId) {
  const client = await provider.Client.find(clientId);
  if (!client) return undefined;

  const grant = new provider.Grant({ accountId, clientId });
  grant.addOIDCScope(SCOPE);
  const grantId = await grant.save();

  const shared = { accountId, client, grantId, gty: 'authorization_code', scope: SCOPE };
  const accessToken = new provider.AccessToken(shared);
  const refreshToken = new provider.RefreshToken({
    ...shared,
    authTime: Math.floor(Date.now() / 1000),
    rotations: 0,
  });
  return {
    account: accountId,
    client_id: clientId,
    grant_id: grantId,
    access_token: await accessToken.save(),
    refresh_token: await refreshToken.save(),
    token_type: 'Bearer',
    expires_in: accessToken.expiration,
    scope: SCOPE,
  };
}

function answer(response, status, body) {
  response.writeHead(status, { 'content-type': 'application/json', 'cache-control': 'no-store' });
  response.end(JSON.stringify(body));
}

function testRoutes(provider, counts, clients) {
  return async function route(request, response) {
    const url = new URL(request.url, 'http://peer.invalid');
    if (url.pathname === '/test/events') {
      answer(response, 200, counts);
      return;
    }
    if (url.pathname !== '/test/issue' || request.method !== 'POST') {
      answer(response, 404, { error: 'known are GET /test/events and POST /test/issue' });
      return;
    }
    const clientId = url.searchParams.get('client') ?? clients[0].client_id;
    const account = url.searchParams.get('account') ?? `account-${randomUUID()}`;
    const tokens = await issueFirstTokens(provider, clientId, account);
    if (tokens) {
      answer(response, 200, tokens);
    } else {
      const known = clients.map((client) => client.client_id).join(', ');
      answer(response, 400, { error: `client ${clientId} is unknown; known are ${known}` });
    }
  };
}

// A killed test run closes stdin, and must leave nothing behind. A person at a
// terminal has Ctrl-C, and a background job must not read the terminal.
function endWithParent() {
  const end = () => process.exit(0);
  process.on('SIGTERM', end);
  process.on('SIGINT', end);
  if (!isatty(0)) {
    process.stdin.on('end', end).on('error', end).resume();
  }
}

const options = readOptions();
const clients = ['client_secret_basic', 'client_secret_post'].map(newClient);
const server = createServer();

// The issuer names the port, so the port comes first and the provider second;
// nobody knows the address before the ready line.
server.on('error', (error) => {
  console.error(`cannot listen on 127.0.0.1:${options.port}: ${error.message}`);
  process.exit(1);
});
server.listen(options.port, '127.0.0.1', () => {
  const url = `http://127.0.0.1:${server.address().port}`;
  const provider = newProvider(url, clients, options);
  const counts = countEvents(provider);
  const route = testRoutes(provider, counts, clients);
  const serve = provider.callback();

  server.on('request', (request, response) => {
    if (!request.url.startsWith('/test/')) {
      serve(request, response);
      return;
    }
    route(request, response).catch((error) => {
      console.error(error);
      answer(response, 500, { error: error.message });
    });
  });

  const ready = {
    ready: true,
    url,
    pid: process.pid,
    token_url: `${url}/token`,
    userinfo_url: `${url}/me`,
    introspection_url: `${url}/token/introspection`,
    revocation_url: `${url}/token/revocation`,
    access_ttl: options.accessTtl,
    refresh_ttl: options.refreshTtl,
    scope: SCOPE,
    clients: clients.map(({ client_id, client_secret, token_endpoint_auth_method }) => (
      { client_id, client_secret, token_endpoint_auth_method }
    )),
  };
  process.stdout.write(`${JSON.stringify(ready)}\n`);
  endWithParent();
});
