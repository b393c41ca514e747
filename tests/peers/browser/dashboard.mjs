// Uses the dashboard as a person does: with keys, with a mouse, without a script, in the light and
// in the dark, on a large and on a small screen. Started by tests/dashboard.rs, which makes the
// home that it looks at and checks afterwards what became of it. Says in JSON what it saw, and
// fails with what it expected.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";
import { promisify } from "node:util";
import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const shots = process.env.SHOTS;
const base = process.env.BASE;
const run = promisify(execFile);
const keywheel = async (...words) => (await run(process.env.KEYWHEEL, words)).stdout.trim();
const SIZES = { wide: { width: 1280, height: 900 }, narrow: { width: 380, height: 800 } };

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  // Chromium's own sandbox doesn't start as root, as in many containers.
  chromiumSandbox: process.getuid() !== 0,
  args: ["--disable-dev-shm-usage", "--disable-gpu"],
});

const began = Date.now();
const timing = {};
const step = async (name, work) => {
  const from = Date.now();
  try {
    return await work();
  } catch (error) {
    error.message = `${name}: ${error.message}`;
    throw error;
  } finally {
    timing[name] = Date.now() - from;
  }
};

/** What a page must never do: break its own policy, fail in a script, ask for what isn't there. */
const wrongs = [];
const watch = async (context) => {
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => console.error(`csp: ${event.violatedDirective} ${event.blockedURI}`));
  });
  context.on("page", (page) => {
    page.on("console", (message) => message.type() === "error" && wrongs.push(`${page.url()}: ${message.text()}`));
    page.on("pageerror", (error) => wrongs.push(`${page.url()}: ${error.message}`));
    page.on("requestfailed", (request) => {
      const aborted = request.failure()?.errorText === "net::ERR_ABORTED";
      if (!aborted) wrongs.push(`${page.url()}: ${request.url()} ${request.failure()?.errorText}`);
    });
    page.on("request", (request) => {
      if (!request.url().startsWith(base)) wrongs.push(`${page.url()}: asked elsewhere: ${request.url()}`);
    });
  });
};

const context = async (options = {}) => {
  const made = await browser.newContext({ viewport: SIZES.wide, reducedMotion: "reduce", ...options });
  made.setDefaultTimeout(20_000);
  await watch(made);
  return made;
};

/** Presses Tab until the thing of that name has the focus, as who has no mouse does. */
const tabTo = async (page, name) => {
  for (let presses = 0; presses < 80; presses += 1) {
    await page.keyboard.press("Tab");
    const found = await page.evaluate(() => {
      const on = document.activeElement;
      const ring = getComputedStyle(on);
      return { text: (on.innerText ?? on.value ?? "").trim().split("\n")[0], seen: ring.outlineStyle !== "none" || on.matches(".skip") };
    });
    if (found.text.startsWith(name)) {
      assert.ok(found.seen, `the focus on ${name} can be seen`);
      return;
    }
  }
  assert.fail(`no way to ${name} by keyboard on ${page.url()}`);
};

const signIn = async (page) => {
  const { url } = JSON.parse(await keywheel("dashboard", "--json"));
  await page.goto(url);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.waitForURL(`${base}/dashboard`);
  return url;
};

const findings = [];
const lookOver = async (page, name) => {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  for (const { id, impact, nodes } of violations) {
    if (impact === "serious" || impact === "critical") {
      const shown = nodes.slice(0, 3).map((node) => `${node.target} ${node.failureSummary}`);
      findings.push(`${name}: ${impact} ${id}: ${shown.join(" | ")}`);
    }
  }
};

/** One page in one scheme, in both sizes. */
const visit = async (page, scheme, name, address) => {
  await page.setViewportSize(SIZES.wide);
  await page.goto(base + address);
  await page.evaluate(() => document.querySelectorAll("details").forEach((part) => (part.open = true)));
  for (const [size, viewport] of Object.entries(SIZES)) {
    await page.setViewportSize(viewport);
    const [has, fits] = await page.evaluate(() => {
      const { scrollWidth, clientWidth } = document.scrollingElement;
      return [scrollWidth, clientWidth];
    });
    assert.ok(has <= fits, `${name} at ${viewport.width} is ${has} wide and has ${fits}`);
    // The same things stand in both sizes: each is looked over in one scheme, and so in both.
    if ((size === "wide") === (scheme === "light")) await lookOver(page, `${name}-${size}-${scheme}`);
    await page.screenshot({ path: join(shots, `${name}-${viewport.width}-${scheme}.png`), fullPage: true, animations: "disabled" });
  }
};

const text = (page, what = "main") => page.locator(what).innerText();

try {
  const first = await context();
  const page = await first.newPage();

  await step("strangers see how to sign in, and nothing else", async () => {
    const answer = await page.goto(`${base}/dashboard`);
    assert.equal(answer.status(), 401);
    assert.match(await text(page), /keywheel dashboard/);
    assert.doesNotMatch(await page.content(), /ann|forge/);
    // The browser itself says that of a 401.
    wrongs.length = 0;
  });

  const used = await step("a link signs one browser in, by keyboard, however often it is looked at", async () => {
    const { url, seconds } = JSON.parse(await keywheel("dashboard", "--json"));
    assert.equal(seconds, 300);
    for (let looks = 0; looks < 3; looks += 1) assert.equal((await page.goto(url)).status(), 200);
    await page.screenshot({ path: join(shots, "sign-in-1280-light.png") });
    await lookOver(page, "sign-in");
    await tabTo(page, "Sign in");
    await page.keyboard.press("Enter");
    await page.waitForURL(`${base}/dashboard`);
    const [cookie] = await first.cookies();
    assert.deepEqual([cookie.name, cookie.httpOnly, cookie.sameSite, cookie.path], ["keywheel", true, "Strict", "/dashboard"]);
    assert.equal(await page.evaluate(() => document.cookie), "");
    return url;
  });

  await step("a link that was used signs nobody in", async () => {
    const second = await context();
    const other = await second.newPage();
    assert.equal((await other.goto(used)).status(), 403);
    assert.match(await text(other), /used already/);
    assert.equal((await second.cookies()).length, 0);
    await second.close();
    wrongs.length = 0;
  });

  const reports = JSON.parse(await keywheel("reports", "list", "--credential", "bob", "--json"));
  const [report] = reports;
  const cookies = await first.cookies();
  const pages = [
    ["overview", "/dashboard"],
    ["list-failing", "/dashboard?show=failing"],
    ["search", "/dashboard?q=an"],
    ["credential", "/dashboard/credential?id=fay"],
    ["credential-person", "/dashboard/credential?id=bob"],
    ["credential-external", "/dashboard/credential?id=hal"],
    ["report", `/dashboard/report?id=${report.id}`],
    ["plugins", "/dashboard/plugins"],
    ["workers", "/dashboard/workers"],
    ["alerts", "/dashboard/alerts"],
    ["audit", "/dashboard/audit"],
    ["confirm-burn", "/dashboard/confirm?do=rotate-now&id=eve"],
    ["confirm-approve", "/dashboard/confirm?do=approve&service=well-behaved"],
    ["confirm-roll-back", "/dashboard/confirm?do=roll-back&id=fay&generation=1"],
  ];
  await step("every page, large and small, light and dark", async () => {
    await Promise.all(
      ["light", "dark"].map(async (colorScheme) => {
        const tour = await context({ colorScheme });
        await tour.addCookies(cookies);
        const on = await tour.newPage();
        for (const [name, address] of pages) await visit(on, colorScheme, name, address);
        await tour.close();
      }),
    );
    assert.deepEqual(findings, [], "no serious finding of the accessibility checker");
    assert.deepEqual(wrongs, [], "no page did what it must not");
  });

  await step("what needs a person comes first, then what fails, then what ends, then what is well", async () => {
    await page.goto(`${base}/dashboard`);
    assert.match(await text(page, "h1"), /credentials? needs? a person\./);
    const titles = await page.locator("#lists h2").allInnerTexts();
    assert.deepEqual(titles, ["Needs a person", "Failing", "Expiring soon", "Healthy or paused"]);
    const ids = (part) => page.locator(`#${part} tbody th a`).allInnerTexts();
    assert.ok((await ids("person")).includes("bob") && (await ids("person")).includes("hal"));
    assert.deepEqual(await ids("failing"), ["cy"]);
    assert.deepEqual(await ids("expiring"), ["gus"]);
    const healthy = await ids("healthy");
    assert.ok(healthy.includes("ann") && healthy.includes("dee"), healthy.join());
    assert.match(await text(page, ".notices"), /A new version of well-behaved waits for you/);
    await page.getByLabel("Search").fill("FA");
    await page.keyboard.press("Enter");
    await page.waitForURL(/q=FA/);
    assert.deepEqual(await page.locator("#lists tbody th a").allInnerTexts(), ["fay"]);
    await page.goto(`${base}/dashboard`);
    await page.getByLabel("Show").selectOption("paused");
    await page.getByRole("button", { name: "Filter" }).click();
    await page.waitForURL(/show=paused/);
    assert.deepEqual(await page.locator("#lists tbody th a").allInnerTexts(), ["dee", "gus"]);
  });

  await step("a report is one click from its credential, and says what happened", async () => {
    await page.goto(`${base}/dashboard/credential?id=bob`);
    assert.match(await text(page), /The service says that this secret is dead/);
    await page.locator("#attempts .timeline a").first().click();
    await page.waitForURL(/report\?id=/);
    const shown = await text(page);
    assert.match(shown, /it asked again/);
    assert.match(shown, /\/check answers 401/);
    assert.match(shown, /The last request ended so: .*401/);
    await page.getByText("JSON").click();
    assert.match(await text(page, "pre"), /"validation_failed"/);
  });

  await step("the skip link leads to the content", async () => {
    await page.goto(`${base}/dashboard`);
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.innerText), "Skip to the content");
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  });

  await step("text that strangers wrote is text", async () => {
    const addresses = ["/dashboard", "/dashboard/plugins", "/dashboard/credential?id=hal", "/dashboard/audit", `/dashboard/report?id=${process.env.HOSTILE_REPORT}`, "/dashboard/credential?id=%3Cscript%3Ehostile()%3C/script%3E%E2%80%AE", "/dashboard?q=%22%3E%3Cimg%20src=x%20onerror=hostile()%3E"];
    for (const address of addresses) {
      await page.goto(base + address);
      const seen = await page.evaluate(() => ({
        scripts: [...document.scripts].map((script) => new URL(script.src).pathname).filter((path) => !path.startsWith("/dashboard/assets/")),
        images: document.querySelectorAll("main img").length,
        ran: "ran" in window,
        turned: /[\u202a-\u202e\u2066-\u2069\u200b-\u200f\ufeff]/.test(document.documentElement.innerHTML),
      }));
      assert.deepEqual(seen, { scripts: [], images: 0, ran: false, turned: false }, address);
    }
    await page.goto(`${base}/dashboard/plugins`);
    assert.match(await text(page), /<script>x\(\)<\/script>/);
    await page.goto(`${base}/dashboard/credential?id=hal`);
    assert.match(await text(page), /<img src=x onerror=ran=1>.*\\u\{202e\}/);
    assert.equal((await page.goto(`${base}/dashboard/nothing`)).status(), 404);
    assert.ok(wrongs.every((wrong) => /status of 404/.test(wrong)), wrongs.join("\n"));
    wrongs.length = 0;
  });

  await step("a page without its script does everything but follow", async () => {
    const plain = await context({ javaScriptEnabled: false });
    await plain.addCookies(cookies);
    const on = await plain.newPage();
    await on.goto(`${base}/dashboard`);
    await on.getByRole("link", { name: "ann", exact: true }).click();
    await on.getByRole("link", { name: "Check now" }).click();
    await on.getByRole("button", { name: "Check now" }).click();
    await on.waitForURL(/said=/);
    assert.match(await text(on, "#said"), /Done: ann is alive\./);
    await plain.close();
  });

  const act = async (address, link, button, expected, keyboard = false) => {
    await page.goto(base + address);
    const press = async (role, name) => {
      if (keyboard) {
        await tabTo(page, name);
        await page.keyboard.press("Enter");
      } else {
        await page.getByRole(role, { name }).first().click();
      }
    };
    await press("link", link);
    await page.waitForURL(/confirm/);
    assert.match(await text(page, ".confirm"), /Risk: |asks for|What changes/);
    const confirmed = await text(page, ".confirm");
    await press("button", button);
    await page.waitForURL(/said=/);
    await page.locator("#said", { hasText: expected }).waitFor();
    return confirmed;
  };

  await step("every action does what it says, by keyboard and by mouse", async () => {
    const of = (id) => `/dashboard/credential?id=${id}`;
    await act(of("ann"), "Check now", "Check now", "ann is alive", true);
    const burns = await act(of("eve"), "Rotate", "Rotate", "generation 2 is in force", true);
    assert.match(burns, /burn-on-issue: the old secret dies when the new one is issued/);
    assert.match(burns, /a person must sign in again/);
    const kept = await act(of("fay"), "Rotate in any case", "Rotate in any case", "is in force");
    assert.doesNotMatch(kept, /a person must sign in again/);
    await act(of("fay"), "Roll back to 1", "Roll back", "fay was rolled back");
    await act(of("ann"), "Pause", "Pause", "ann is paused", true);
    await page.goto(base + of("ann"));
    assert.match(await text(page, "#head"), /It is paused/);
    await act(of("ann"), "Resume", "Resume", "ann goes on");
    await act(of("dee"), "Rotate", "Rotate", "paused");
    assert.match(await text(page, "#said"), /^Not done/);
    await act("/dashboard/plugins", "Pause the service second-guest", "Pause", "service second-guest is paused");
    await act("/dashboard/plugins", "Resume the service second-guest", "Resume", "service second-guest goes on");
    const wider = await act("/dashboard/plugins", "Review and approve", "Grant this", "was granted what it asked for");
    assert.match(wider, /newly may reach https:\/\/collector\.example/);
    await act("/dashboard/alerts", "Snooze credential:bob", "Snooze for a day", "credential:bob is snoozed");
    await act("/dashboard/alerts", "Hear of it again credential:bob", "Hear of it again", "credential:bob is heard of again");
    await page.goto(`${base}/dashboard/confirm?do=unpark&service=well-behaved`);
    await page.getByRole("button", { name: "Let it run again" }).click();
    await page.locator("#said", { hasText: "wasn’t parked" }).waitFor();
    // Coming back out of a confirmation changes nothing.
    await page.goto(`${base}/dashboard/confirm?do=pause&id=eve`);
    await page.getByRole("link", { name: "Cancel" }).click();
    await page.waitForURL(/credential\?id=eve$/);
  });

  await step("a page follows what happens elsewhere, without being loaded again", async () => {
    await page.goto(`${base}/dashboard/credential?id=ann`);
    await page.locator("#live.on").waitFor();
    const loaded = await page.evaluate(() => performance.timeOrigin);
    const newest = () => page.locator("#attempts .timeline li").first().getAttribute("id");
    const before = await newest();
    // What has the focus keeps it.
    await page.getByRole("link", { name: "Pause", exact: true }).focus();
    await keywheel("credential", "validate", "ann");
    await page.locator(`#attempts .timeline li:first-child:not(#${before})`).waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.innerText), "Pause");
    await keywheel("credential", "pause", "ann");
    await page.locator("#head .badge", { hasText: "Paused" }).waitFor();
    assert.equal(await page.locator("#heard").innerText(), "It is paused: nothing is done by itself.");
    await keywheel("credential", "resume", "ann");
    await page.locator("#head .badge", { hasText: "Healthy" }).waitFor();
    assert.equal(await page.evaluate(() => performance.timeOrigin), loaded);
  });

  await step("a form without its token, or of another origin, does nothing", async () => {
    await page.goto(`${base}/dashboard/credential?id=ann`);
    const csrf = await page.locator("input[name=csrf]").first().inputValue();
    const post = (body) =>
      page.evaluate(async (body) => {
        const headers = { "content-type": "application/x-www-form-urlencoded" };
        return (await fetch("/dashboard/do", { method: "POST", headers, body })).status;
      }, body);
    assert.equal(await post("do=pause&id=ann"), 403);
    assert.equal(await post(`do=pause&id=ann&csrf=${"0".repeat(64)}`), 403);
    // Another port of this host is the same site to a browser, so the cookie goes along.
    const form = `<form method="post" action="${base}/dashboard/do"><input name="do" value="pause"><input name="id" value="ann"><input name="csrf" value="${csrf}"><button>Go</button></form>`;
    const foreign = createServer((_, answer) => answer.writeHead(200, { "content-type": "text/html" }).end(form)).listen(0, "127.0.0.1");
    await new Promise((listening) => foreign.once("listening", listening));
    await page.goto(`http://127.0.0.1:${foreign.address().port}/`);
    const [answer] = await Promise.all([page.waitForResponse(/dashboard\/do/), page.getByRole("button").click()]);
    assert.equal(answer.status(), 403);
    assert.match((await answer.request().allHeaders()).cookie ?? "", /keywheel=/, "the cookie went along");
    assert.match(await text(page), /not sent by a page of this dashboard/);
    foreign.close();
    const [ann] = JSON.parse(await keywheel("credential", "list", "--json")).filter((row) => row.credentialId === "ann");
    assert.equal(ann.paused, false);
  });

  await step("the policy stops what a page doesn't have", async () => {
    await page.goto(`${base}/dashboard`);
    const stopped = await page.evaluate(
      () =>
        new Promise((resolve) => {
          addEventListener("securitypolicyviolation", (event) => resolve(event.violatedDirective));
          const script = document.createElement("script");
          script.textContent = "ran = 1";
          document.body.append(script);
        }),
    );
    assert.match(stopped, /script-src/);
    assert.equal(await page.evaluate(() => "ran" in window), false);
  });

  await step("signing everybody out ends an open page by itself", async () => {
    await page.goto(`${base}/dashboard`);
    await page.locator("#live.on").waitFor();
    assert.match(await keywheel("dashboard", "--sign-out-all", "--json"), /"signedOut": 1/);
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
  });

  await step("who signs out is out, and the cookie is worth nothing", async () => {
    await signIn(page);
    const [kept] = await first.cookies();
    await tabTo(page, "Sign out");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
    assert.equal((await first.cookies()).length, 0);
    await first.addCookies([kept]);
    assert.equal((await page.goto(`${base}/dashboard/workers`)).status(), 401);
  });

  console.log(JSON.stringify({ pages: pages.map(([name]) => name), milliseconds: Date.now() - began, timing }));
} finally {
  await browser.close();
}
