"""What somebody writes who keeps sessions alive without Keywheel: asyncio, aiohttp and SQLite.

Checks one account's session after the other, 64 at a time, and writes a row for each. Rows go to
SQLite from one task, as many a commit as came while the last one was written. Ends after
`--seconds` and prints how many rows are durable, and in what time, as one line of JSON.
"""

import argparse
import asyncio
import itertools
import json
import sqlite3
import time

import aiohttp

AT_ONCE = 64


def open_database(path):
    # The writing thread is another one each time, never two at once.
    database = sqlite3.connect(path, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    # The default, said: a result that was written stays written.
    database.execute("PRAGMA synchronous = FULL")
    database.execute(
        "CREATE TABLE IF NOT EXISTS results (id INTEGER PRIMARY KEY, account TEXT NOT NULL,"
        " status TEXT NOT NULL, message TEXT, started_at REAL NOT NULL, finished_at REAL NOT NULL)"
    )
    database.commit()
    return database


async def check(client, url, account):
    """One account: alive, dead, or not to be told."""
    started_at = time.time()
    status, message = "failed", None
    try:
        cookie = {"Cookie": f"session=a-session-of-{account}-0123456789abcdef"}
        async with client.get(url, headers=cookie, allow_redirects=False) as answer:
            if answer.status == 200:
                status, message = "success", (await answer.json())["user"]
            elif answer.status == 401:
                status, message = "validation_failed", "/check answers 401"
            else:
                status, message = "unreachable", f"/check answers {answer.status}"
    except (aiohttp.ClientError, asyncio.TimeoutError, KeyError, ValueError) as error:
        status, message = "unreachable", str(error)
    return account, status, message, started_at, time.time()


async def work(client, url, accounts, results, until):
    for account in accounts:
        if time.monotonic() >= until:
            return
        await results.put(await check(client, url, account))


def write(database, rows):
    with database:
        database.executemany(
            "INSERT INTO results (account, status, message, started_at, finished_at) VALUES (?, ?, ?, ?, ?)", rows
        )


async def keep_books(database, results):
    written = failed = 0
    while True:
        rows = [await results.get()]
        while not results.empty():
            rows.append(results.get_nowait())
        over = rows[-1] is None
        if over:
            rows.pop()
        await asyncio.to_thread(write, database, rows)
        written += len(rows)
        failed += sum(status != "success" for _, status, *_ in rows)
        if over:
            return written, failed


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--service", required=True, help="address of the service, http://HOST:PORT")
    parser.add_argument("--db", required=True)
    parser.add_argument("--accounts", type=int, default=60_000)
    parser.add_argument("--seconds", type=float, default=4)
    options = parser.parse_args()

    database = open_database(options.db)
    # Whoever falls behind in writing stops asking.
    results = asyncio.Queue(maxsize=1024)
    books = asyncio.create_task(keep_books(database, results))
    accounts = itertools.cycle(f"c{n}" for n in range(options.accounts))
    # The cookies are the accounts' own; a jar would mix them.
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=AT_ONCE),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=30),
    ) as client:
        started = time.monotonic()
        url = f"{options.service}/check"
        until = started + options.seconds
        await asyncio.gather(*(work(client, url, accounts, results, until) for _ in range(AT_ONCE)))
    await results.put(None)
    written, failed = await books
    took = time.monotonic() - started
    database.close()
    print(json.dumps({"written": written, "failed": failed, "seconds": took}))


asyncio.run(main())
