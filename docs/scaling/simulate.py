#!/usr/bin/env python3
"""What it takes for more credentials than one PostgreSQL server carries: the tables of
docs/scaling.md. Its inputs are what `measure.sh` found, and what is assumed says so. It has no
chance in it beyond a seeded generator, and needs Python alone; tests/scaling.rs compares the page
with what it prints."""

import heapq
import math
import random
from collections import deque

# Measured at a million credentials (docs/scaling.md, "What was measured").
SERVER_MS_VALIDATE = 0.97  # processor time of the server for an attempt, claimed alone
SERVER_MS_ROTATE = 1.71
SYNC_MS = 0.8  # one sync of the log
RECORD_BYTES = 2_500  # of the log for an attempt, without whole pages
PAGE_IMAGE_BYTES = 7_700
CREDENTIAL_BYTES = 956  # rows and indexes, one generation
GENERATION_BYTES = 516
REPORT_BYTES = 669
# Rows on a page that an attempt writes anywhere in the table: each is copied into the log whole
# when it is written for the first time after a checkpoint.
ROWS_A_PAGE = {
    "credentials": 41,
    "monitor": 58,
    "monitor, by name": 201,
    "reports, unique": 67,
    "reports, by credential": 136,
}
# docs/performance.md: processor time of a host, its worker and the service's share at full load.
HOST_MS = 0.114

# Statements, and so round trips: host/src/db/commands.rs. Shared is what a claim from one service
# asks beside its credentials.
CLAIM_SHARED, CLAIM_EACH, END = 6, 4, 7
CLAIM_BATCH = 64
WRITERS = 8
CONNECTIONS = 24

# Assumed.
CHECKPOINT_S = 1_800
SERVER_CORES = 32
SERVER_BUSY = 0.6
LOG_MB_PER_S = 200  # what a log, its archive and its standby keep up with
HOST_CORES = 8

PER_STATEMENT_MS = SERVER_MS_VALIDATE / (CLAIM_SHARED + CLAIM_EACH + END)
ATTEMPT_MS = PER_STATEMENT_MS * (CLAIM_SHARED / CLAIM_BATCH + CLAIM_EACH + END)


def table(title, head, rows):
    print(f"\n{title}\n")
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def number(value):
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def images(credentials, attempts_per_s, checkpoint_s=CHECKPOINT_S):
    """Whole pages in the log for each attempt: the first touch of each page after a checkpoint."""
    total = 0.0
    for rows in ROWS_A_PAGE.values():
        touches = attempts_per_s * checkpoint_s / (credentials / rows)
        total += (1 - math.exp(-touches)) / touches
    return total


def log_bytes(credentials, attempts_per_s):
    return RECORD_BYTES + images(credentials, attempts_per_s) * PAGE_IMAGE_BYTES


def sizes():
    rows = []
    a_hosts_rate, _, _ = fleet(1, 0.2, SERVER_CORES)
    for credentials in (1e6, 1e7, 1e8):
        for name, interval in (("a day", 86_400), ("an hour", 3_600), ("10 min", 600)):
            rate = credentials / interval
            cores = rate * ATTEMPT_MS / 1000
            log = rate * log_bytes(credentials, rate) / 1e6
            primaries = max(cores / (SERVER_CORES * SERVER_BUSY), log / LOG_MB_PER_S)
            hosts = max(rate * HOST_MS / 1000 / (HOST_CORES * SERVER_BUSY), rate / a_hosts_rate)
            rows.append(
                [
                    f"{credentials:,.0f}",
                    name,
                    number(rate),
                    number(cores),
                    number(log),
                    number(rate * 86_400 * REPORT_BYTES / 1e9),
                    str(math.ceil(primaries)),
                    str(math.ceil(hosts)),
                ]
            )
    table(
        "Each credential looked at once in the interval, one server or several:",
        ["credentials", "interval", "attempts/s", "server cores", "log MB/s", "reports GB/day", "primaries", "hosts, 0.2 ms away"],
        rows,
    )


def storage():
    rows = []
    for credentials in (1e6, 1e7, 1e8):
        kept = credentials * CREDENTIAL_BYTES / 1e9
        rotated = credentials * (CREDENTIAL_BYTES + 3 * GENERATION_BYTES) / 1e9
        by_count = [credentials * count * REPORT_BYTES / 1e9 for count in (1, 10, 100)]
        rows.append([f"{credentials:,.0f}", *(number(size) for size in (kept, rotated, *by_count))])
    table(
        "GB on the disk, before bloat:",
        ["credentials", "imported", "with three previous generations", "+ 1 report each", "+ 10", "+ 100"],
        rows,
    )


def checkpoints():
    credentials = 1e8
    rows = []
    for minutes in (5, 30, 120):
        cells = [f"{minutes} min"]
        for interval in (86_400, 3_600, 600):
            rate = credentials / interval
            whole = images(credentials, rate, minutes * 60)
            cells.append(f"{whole:.2f} pages, {number(rate * (RECORD_BYTES + whole * PAGE_IMAGE_BYTES) / 1e6)} MB/s")
        rows.append(cells)
    table(
        "10⁸ credentials: whole pages for each attempt, and the log, by the time between checkpoints:",
        ["between checkpoints", "a look a day", "an hour", "10 min"],
        rows,
    )


def fleet(hosts, round_trip_ms, cores, claim_each=CLAIM_EACH, in_flight=448, service_ms=100.0, seconds=2.0):
    """Hosts that always have something due: attempts a second, the server's load, and how long the
    slowest hundredth of attempts' ends took. A host has one claim under way at a time; its ends
    share its writers. Round trips are waited for one after the other, and the server's part is one
    turn of a core. Commits share the next sync of the log."""
    chance = random.Random(8)
    events, order = [], 0

    def at(time, what, *more):
        nonlocal order
        order += 1
        heapq.heappush(events, (time, order, what, more))

    free_cores = [0.0] * cores
    busy = sync_ends = 0.0
    free = [in_flight] * hosts
    writers = [WRITERS] * hosts
    waiting = [deque() for _ in range(hosts)]
    claiming = [False] * hosts
    ends, finished, busy_before = [], 0, None
    warm, until = 1000.0, 1000.0 + seconds * 1000

    def begin(host, now, statements, claimed, asked):
        writers[host] -= 1
        at(now + statements * round_trip_ms, "work", host, statements, claimed, asked)

    def ask(host, now, statements, claimed):
        if writers[host]:
            begin(host, now, statements, claimed, now)
        else:
            waiting[host].append((statements, claimed, now))

    def claim(host, now):
        count = min(free[host], CLAIM_BATCH)
        if count and not claiming[host]:
            claiming[host] = True
            free[host] -= count
            ask(host, now, CLAIM_SHARED + claim_each * count, count)

    for host in range(hosts):
        at(chance.uniform(0, service_ms), "claim", host)
    while events:
        now, _, what, more = heapq.heappop(events)
        if now > until:
            break
        if busy_before is None and now >= warm:
            busy_before = busy
        host = more[0]
        if what == "claim":
            claim(host, now)
        elif what == "answered":
            ask(host, now, END, 0)
        elif what == "work":
            cost = more[1] * PER_STATEMENT_MS
            ready = max(now, heapq.heappop(free_cores)) + cost
            heapq.heappush(free_cores, ready)
            busy += cost
            at(ready, "commit", *more)
        elif what == "commit":
            if now > sync_ends - SYNC_MS:  # the next sync hasn't begun yet, or none is under way
                sync_ends = max(now, sync_ends) + SYNC_MS
            at(sync_ends, "done", *more)
        else:
            _, _, claimed, asked = more
            writers[host] += 1
            if waiting[host]:
                begin(host, now, *waiting[host].popleft())
            if claimed:
                claiming[host] = False
                for _ in range(claimed):
                    at(now + chance.expovariate(1 / service_ms), "answered", host)
            else:
                free[host] += 1
                if now >= warm:
                    finished += 1
                    ends.append(now - asked)
            claim(host, now)
    load = (busy - (busy_before or 0)) / (seconds * 1000 * cores)
    ends.sort()
    return finished / seconds, load, ends[int(len(ends) * 0.99)]


def fleets():
    rows = []
    for cores in (2, 8, 32):
        for hosts in (1, 2, 4, 8, 16):
            cells = [str(cores), str(hosts), str(hosts * CONNECTIONS)]
            for round_trip, each in ((0.2, CLAIM_EACH), (1.0, CLAIM_EACH), (1.0, 0)):
                rate, load, slow = fleet(hosts, round_trip, cores, each)
                cells.append(f"{number(rate)}/s, {min(load, 1) * 100:.0f} %, {number(slow)} ms")
            rows.append(cells)
    table(
        "Always something due, services that take 100 ms; attempts a second, the server's load, the slowest hundredth of ends:",
        ["server cores", "hosts", "connections", "0.2 ms to the server", "1 ms", "1 ms, a claim of many in as few statements as one"],
        rows,
    )


def fitting():
    """The whole pages that the model says for the runs that were measured."""
    rows = []
    for name, credentials, attempts, measured in (
        ("1 client, a million", 1e6, 3_360, 4.11),
        ("8 clients, a million", 1e6, 25_280, 1.86),
        ("24 clients, 200,000", 2e5, 21_440, 0.50),
    ):
        rows.append([name, f"{measured:.2f}", f"{images(credentials, attempts / 20, 20):.2f}"])
    table("Whole pages for each attempt, measured in 20 s after a checkpoint and by the model:", ["run", "measured", "model"], rows)


if __name__ == "__main__":
    fitting()
    sizes()
    storage()
    checkpoints()
    fleets()
