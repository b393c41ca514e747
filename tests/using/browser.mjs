// A consumer as people write them: visits a site with a real browser, and asks an API, again and
// again, with nothing but the storageState and the JSON file that sinks keep fresh, until a file
// named STOP is there. Prints a line for each request as curl.sh does, and for its reason asks
// again only where the file is another by now.

import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { setTimeout as pause } from "node:timers/promises";

const [state, tokens, accountUrl, apiUrl, stop] = process.argv.slice(2);
const { chromium } = createRequire(`${process.env.PLAYWRIGHT}/x.js`)("playwright-core");

const read = (file) => {
  const text = readFileSync(file, "utf8");
  return { text, sum: createHash("sha256").update(text).digest("hex").slice(0, 16) };
};

async function ask(what, file, request) {
  for (let tries = 1; ; tries += 1) {
    const { text, sum } = read(file);
    const status = await request(JSON.parse(text));
    let waited = 0;
    while (status !== 200 && tries < 5 && read(file).sum === sum && waited < 200) {
      waited += 1;
      await pause(50);
    }
    if (status === 200 || tries === 5 || read(file).sum === sum) {
      console.log(what, sum, status, tries);
      return;
    }
  }
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  // Chromium's own sandbox doesn't start as root, as in many containers.
  chromiumSandbox: process.getuid?.() !== 0,
});
try {
  while (!existsSync(stop)) {
    await ask("browser", state, async (storageState) => {
      const context = await browser.newContext({ storageState });
      try {
        const page = await context.newPage();
        const answer = await page.goto(accountUrl, { timeout: 30_000 });
        // Signed out, the site redirects to its form, whose own status is 200.
        return page.url() === accountUrl ? answer.status() : 302;
      } finally {
        await context.close();
      }
    });
    await ask("fetch", tokens, async (keys) => {
      const headers = { authorization: `Bearer ${keys.access_token.value}` };
      const answer = await fetch(apiUrl, { headers, signal: AbortSignal.timeout(20_000) });
      return answer.status;
    });
    await pause(100);
  }
} finally {
  await browser.close();
}
