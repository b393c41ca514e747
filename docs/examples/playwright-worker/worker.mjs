// Signs in at a site with a real browser, hands the session over to Keywheel, and reports.
//
// For sites whose sign-in no plugin can do: forms behind scripts, second steps. One run is one
// attempt; a timer starts it. What it needs comes from the environment (see
// docs/external-workers.md). It keeps no secret: the session is on disk only while
// `keywheel credential import` reads it, in a file of its user alone.

import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { chromium } from "playwright-core";

function setting(name, fallback) {
  const value = process.env[name] ?? fallback;
  if (value === undefined) throw new Error(`${name} is not set`);
  return value;
}

const keywheel = setting("KEYWHEEL_URL", "http://127.0.0.1:7878");
const token = setting("KEYWHEEL_TOKEN");
const service = setting("KEYWHEEL_SERVICE");
const cookieId = setting("KEYWHEEL_CREDENTIAL");
const program = setting("KEYWHEEL_PROGRAM", "keywheel");
const loginUrl = setting("SITE_LOGIN_URL");
const checkUrl = setting("SITE_CHECK_URL");
const user = setting("SITE_USER");
const password = setting("SITE_PASSWORD");
const browserPath = setting("CHROMIUM", "/usr/bin/chromium");
const numberFile = setting("ATTEMPT_FILE", "attempt-number");
const workerId = setting("WORKER_ID", `${hostname()}-${service}`);

/** The site can't be reached: that says nothing of the account. */
class Unreachable extends Error {}
/** The site took neither user and password, nor the session it gave. */
class SignedOut extends Error {}

/**
 * Sends until Keywheel has an answer. The body stays the same, and with it cookieId,
 * attemptNumber and startedAt: however often it arrives, it is kept once.
 */
async function send(path, message) {
  const body = JSON.stringify(message);
  for (let tries = 1; ; tries += 1) {
    let answer, said;
    try {
      answer = await fetch(keywheel + path, {
        method: "POST",
        headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
        body,
        signal: AbortSignal.timeout(15_000),
      });
      said = await answer.json();
    } catch (error) {
      said = { error: { message: String(error.cause?.message ?? error.message) } };
    }
    if (answer?.ok) return said;
    const later = !answer || answer.status === 429 || answer.status >= 500;
    if (!later || tries === 8) {
      throw new Error(`${path}: ${said.error?.field ?? ""} ${said.error?.message ?? answer?.status}`);
    }
    const seconds = Number(answer?.headers.get("retry-after")) || 2 ** (tries - 1);
    await new Promise((resolve) => setTimeout(resolve, seconds * 1_000));
  }
}

async function visit(page, url) {
  try {
    return await page.goto(url, { timeout: 30_000 });
  } catch (error) {
    throw new Unreachable(error.message.split("\n")[0]);
  }
}

/** Signs in and returns the state of the browser, in which the session is. */
async function signIn() {
  const browser = await chromium.launch({
    executablePath: browserPath,
    // Chromium's own sandbox doesn't start as root, as in many containers.
    chromiumSandbox: process.getuid?.() !== 0,
  });
  try {
    const context = await browser.newContext();
    const page = await context.newPage();
    await visit(page, loginUrl);
    await page.fill("input[name=username]", user);
    await page.fill("input[name=password]", password);
    await Promise.all([
      page.waitForResponse((response) => response.request().isNavigationRequest()),
      page.press("input[name=password]", "Enter"),
    ]);
    await page.waitForLoadState("networkidle");
    // The site's own word: a page that a visitor who is signed out doesn't get.
    const answer = await visit(page, checkUrl);
    const httpStatus = answer.status();
    if (httpStatus >= 500 || httpStatus === 429) throw new Unreachable(`HTTP ${httpStatus}`);
    if (httpStatus !== 200 || page.url() !== checkUrl) throw new SignedOut("not signed in");
    return { state: await context.storageState(), httpStatus };
  } finally {
    await browser.close();
  }
}

async function handOver(state) {
  // A folder that only its owner may enter.
  const folder = await mkdtemp(join(tmpdir(), "keywheel-worker-"));
  try {
    const file = join(folder, "state.json");
    await writeFile(file, JSON.stringify(state), { mode: 0o600, flag: "wx" });
    await promisify(execFile)(program, ["credential", "import", cookieId, file]);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function nextNumber() {
  const last = Number(await readFile(numberFile, "utf8").catch(() => "0"));
  await writeFile(numberFile, String(last + 1));
  return last + 1;
}

await send("/v1/worker-announce", { pid: process.pid, workerId, service, intervalSeconds: 6 * 3_600 });

const report = {
  cookieId,
  profileId: null,
  service,
  validateUrl: checkUrl,
  cookieKeys: {},
  status: "success",
  message: null,
  startedAt: new Date().toISOString(),
  finishedAt: null,
  attemptNumber: await nextNumber(),
  meta: { workerId },
};
try {
  const { state, httpStatus } = await signIn();
  report.meta.httpStatus = httpStatus;
  // Keywheel keeps their fingerprints, so that a later report shows whether they changed.
  report.cookieKeys = Object.fromEntries(state.cookies.map((cookie) => [cookie.name, cookie.value]));
  await handOver(state);
} catch (error) {
  if (error instanceof Unreachable) report.status = "unreachable";
  else if (error instanceof SignedOut) report.status = "validation_failed";
  else report.status = "failed";
  // The further lines of a browser's error repeat what was typed, the password too.
  report.message = String(error.message).split("\n")[0].replaceAll(password, "[password]").slice(0, 1_000);
}
report.finishedAt = new Date().toISOString();
const { id, duplicate } = await send("/v1/worker-reports", report);
console.log(`${cookieId}: ${report.status}, report ${id}${duplicate ? " (was there already)" : ""}`);
if (report.status !== "success") {
  console.error(report.message);
  process.exitCode = 1;
}
