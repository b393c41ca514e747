//! Every number that bounds what a plugin, a service or a queue may use, with its reason. A leaf.

use std::time::Duration;

use crate::protocol::CallLimits;

/// A plugin file. The Python toolchain makes 18 MB components, JavaScript 12 MB; 64 MiB is
/// room for both and refuses the file that was dropped by mistake.
pub const PLUGIN_BYTES: u64 = 64 << 20;

/// One call in a worker.
pub const CALL: CallLimits = CallLimits {
    // A JavaScript engine starts at about 10 MiB; providers in Rust use less than 2.
    memory_bytes: 64 << 20,
    // A provider parses one answer; a Python one was seen at 20 ms.
    cpu_ms: 2_000,
    // Requests, reveals and log lines together. Discovery, refresh and a check are under ten.
    host_calls: 256,
    // Enough for a trace of every request, too little to fill a disk.
    log_bytes: 64 << 10,
    // Calls at once on one worker: bounds its pool, and with it its address space.
    in_flight: 64,
};

/// An attempt from its claim to its report, all calls and requests included.
pub const ATTEMPT_WALL: Duration = Duration::from_secs(120);

/// A call in a worker, its requests included. Two of them fit an attempt.
pub const CALL_WALL: Duration = Duration::from_secs(55);

/// Requests of one call.
pub const REQUESTS_PER_CALL: u32 = 20;

/// One request with its redirects. Slow services answer within 20 s; past 30 nobody waits.
pub const REQUEST_WALL: Duration = Duration::from_secs(30);

/// A response body after decompression.
pub const RESPONSE_BYTES: usize = 2 << 20;

/// All response headers of one answer.
pub const RESPONSE_HEADERS: usize = 128;

/// A request body after templates are filled in.
pub const REQUEST_BYTES: usize = 1 << 20;

/// One secret. Browsers cap a cookie at 4 KiB; tokens with claims reach 16.
pub const SECRET_BYTES: usize = 64 << 10;

/// Cookies of one credential; RFC 6265 asks for at least 50 per domain.
pub const COOKIES: usize = 180;

/// Requests to one host at once, over all credentials.
pub const PER_HOST_CONCURRENCY: usize = 64;

/// Pieces of one question or answer of a worker: list entries of any kind. The largest honest
/// ones, a manifest of 64 settings with 64 choices each or a form of some hundred parts, are
/// far below; and an entry of two bytes on the wire is a hundred in memory.
pub const PIECES: usize = 8_192;

/// One question or answer of a worker: a request body and its headers, with room to spare. The
/// host holds one of each for every call that runs.
pub const MESSAGE_BYTES: usize = 2 << 20;

/// What one call may make a worker say in log lines before that is a flood. Several times what
/// an honest worker lets through on each of its three ways, each line counted as one byte more.
pub const CALL_LOG_FLOOD: usize = 8 * CALL.log_bytes as usize;

/// Answers that wait for a worker that doesn't read them: one of full size for every call.
pub const UNREAD_BYTES: usize = CALL.in_flight as usize * (RESPONSE_BYTES + (1 << 19));

/// How long a worker may take nothing of what waits for it. Its event loop reads between two
/// slices of a plugin's work, each of milliseconds.
pub const UNREAD_WALL: Duration = Duration::from_secs(30);

/// Compiling one plugin, in processor time. A Rust plugin takes 50 ms; JavaScript's and Python's
/// whole engines 6 to 10 s, and twice that on a slow or crowded one.
pub const COMPILE_CPU: Duration = Duration::from_secs(60);

/// Compiling one plugin, by the clock: a machine with ten things to do at once is no reason to
/// refuse a plugin, and what waits for more than its turn is stuck.
pub const COMPILE_WALL: Duration = Duration::from_secs(600);
pub const COMPILE_ADDRESS_SPACE: u64 = 2 << 30;

/// From spawn to announce; measured 3 ms, and a loaded machine is no reason to give up.
pub const WORKER_READY: Duration = Duration::from_secs(10);

/// Files in `late/`, those set aside included. While the store is away nothing new begins, so
/// there is at most one for each attempt in flight then; twice that outlasts a second outage whose
/// first one's secrets wait for others' attempts.
pub const LATE_FILES: usize = 2 * IN_FLIGHT;

/// One of them: all cookies that a credential may have, each as long as a secret may be, in
/// hexadecimal, with room for names.
pub const LATE_BYTES: u64 = (2 * COOKIES * SECRET_BYTES) as u64 + (1 << 20);

/// What a draining worker may still finish.
pub const DRAIN: Duration = Duration::from_secs(60);

/// A claim; renewed at a third of it while its attempt is in flight.
pub const LEASE: Duration = Duration::from_secs(60);

/// `LEASE`. A development build can be told a shorter one in `KEYWHEEL_LEASE_MS`, so that a test
/// needn't stop it for a minute.
pub fn lease() -> Duration {
    #[cfg(debug_assertions)]
    if let Some(ms) = std::env::var("KEYWHEEL_LEASE_MS").ok().and_then(|ms| ms.parse().ok()) {
        return Duration::from_millis(ms);
    }
    LEASE
}

/// How long a worker runs only when nobody else wants to, after its plugin went over a limit: as
/// long as crashes are counted. An answer that was too large once is forgiven.
pub const IN_DISGRACE: Duration = Duration::from_secs(600);

/// Processes of one service at once where each call has its own: at 3 ms a start and a tenth of
/// a second a call more than a spawner can start, and a service that hangs keeps no more.
pub const PROCESSES_PER_SERVICE: usize = 16;

/// Writer commands waiting. A full queue slows attempts down instead of growing.
pub const WRITER_QUEUE: usize = 4_096;

/// Writer commands in one transaction: past this the commit's cost no longer shows.
pub const WRITER_BATCH: usize = 256;

/// A report of an external worker. The largest honest ones, all cookies of an account, are half
/// of that.
pub const EXTERNAL_REPORT_BYTES: usize = 64 << 10;

/// What a refused request may still send before its connection is cut: so much is read and thrown
/// away, or the client would see a broken connection in place of the reason.
pub const EXTERNAL_REFUSED_BYTES: usize = 1 << 20;

/// `meta` of an external report as JSON, and how deep it may go: kept for ever with each report.
pub const EXTERNAL_META_BYTES: usize = 8 << 10;
pub const EXTERNAL_META_DEPTH: usize = 16;

/// A message of an external report: a stack trace fits.
pub const EXTERNAL_MESSAGE_BYTES: usize = 4 << 10;

/// How far in the future an external report may end: clocks of two machines differ.
pub const EXTERNAL_CLOCK_SKEW: Duration = Duration::from_secs(300);

/// External workers of one token. A fleet has a hundred; more are ids made up at each start.
pub const EXTERNAL_WORKERS_PER_TOKEN: u32 = 256;

/// Credentials that the reports of one token may bring: a token that leaks must not fill the disk.
pub const EXTERNAL_CREDENTIALS_PER_TOKEN: u32 = 10_000;

/// HTTP connections at once, a few hundred kilobytes each at the worst.
pub const HTTP_CONNECTIONS: usize = 128;

/// From a connection's beginning, or from the last answer on it, to the end of a whole request;
/// and how long an answer may wait for its reader. Honest requests take milliseconds.
pub const HTTP_REQUEST_WALL: Duration = Duration::from_secs(10);

/// What HTTP clients may still finish when the daemon stops.
pub const HTTP_DRAIN: Duration = Duration::from_secs(2);

/// Failed sign-ins of one peer address: so many at once, then one a second.
pub const HTTP_FAILED_SIGN_INS: u32 = 20;

/// Peer addresses whose failed sign-ins are counted apart; all others share one count.
pub const HTTP_PEERS: usize = 4_096;

/// Credentials that one token of the API may name; more of them share a service or a profile.
pub const API_CREDENTIALS_PER_TOKEN: usize = 100;

/// Rows of each of the API's two histories, a hundred bytes and their indexes each: 20 MB at most.
pub const API_HISTORY_ROWS: i64 = 100_000;

/// How many of a token's or a peer's newest rows are looked at for one that says the same. A
/// reader has a handful of credentials; who tries more names fills rows, up to the bound above.
pub const API_HISTORY_LOOKED_BACK: u32 = 64;

/// The longest wait for a newer generation: what proxies let a silent answer take.
pub const API_WAIT: Duration = Duration::from_secs(60);

/// Such waits at once, of the port's connections: a quarter, so that there are always others.
pub const API_WAITING: usize = HTTP_CONNECTIONS / 4;

/// Between two looks of those who wait, at the most so often: a busy writer commits a thousand
/// times a second.
pub const API_LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Credentials on one page of a list.
pub const API_PAGE: u32 = 1_000;

/// Credentials that get series of their own where the operator wants that: four each, which is as
/// much as a Prometheus likes to have from one target.
pub const METRICS_CREDENTIALS: u32 = 10_000;
/// A link into the dashboard: long enough to change from the terminal to a browser.
pub const DASHBOARD_LINK: Duration = Duration::from_secs(300);

/// Links that wait for their use; the oldest goes for a newer one.
pub const DASHBOARD_LINKS: usize = 16;

/// A session of the dashboard that nobody uses, and one however much it is used: a working day.
pub const DASHBOARD_IDLE: Duration = Duration::from_secs(30 * 60);
pub const DASHBOARD_SESSION: Duration = Duration::from_secs(12 * 60 * 60);

/// Sessions at once; the one that was used longest ago goes for a newer one.
pub const DASHBOARD_SESSIONS: usize = 64;

/// What a session keeps of the results of what was asked.
pub const DASHBOARD_MESSAGES: usize = 16;

/// Live pages at once, of all sessions: a quarter of the connections.
pub const DASHBOARD_STREAMS: usize = 32;

/// Between two words on a live page: a fast daemon commits a thousand times a second, and nobody
/// reads faster than this.
pub const DASHBOARD_DEBOUNCE: Duration = Duration::from_millis(500);

/// How often a live page hears something at least. Less than half of `HTTP_REQUEST_WALL`, which
/// each word puts off.
pub const DASHBOARD_HEARTBEAT: Duration = Duration::from_secs(4);

/// How long a page waits for what it asked for; an attempt may take longer, and is told later.
pub const DASHBOARD_PATIENCE: Duration = Duration::from_secs(4);

/// Things asked for from pages and not done yet.
pub const DASHBOARD_TASKS: usize = 16;

/// A form: an id, a digest, two tokens.
pub const DASHBOARD_FORM: usize = 8 << 10;

/// How long one message to the collector of traces may take, and the last one at the end.
pub const TRACES_SENT: Duration = Duration::from_secs(5);

/// Attempts in flight over all services: a few hundred kilobytes of memory, and at a tenth of a
/// second an attempt more than ten thousand a second.
pub const IN_FLIGHT: usize = 1_024;

/// Less on the home's disk is told: a write-ahead log of its usual size and a day's reports.
pub const LITTLE_SPACE: u64 = 100 << 20;

/// What the operator's own receivers of webhooks and alerts have to answer in.
pub const DELIVERY_WALL: Duration = Duration::from_secs(15);

/// What a command of the operator's has to end in: restarting a service takes seconds.
pub const HOOK_WALL: Duration = Duration::from_secs(30);

/// Messages of alerts that wait for one channel. Notices come minutes apart, so that is days of a
/// receiver's absence; what is older is given up first.
pub const ALERTS_WAITING: u32 = 1_000;

/// How long a message of an alert is tried. After a day a person has heard otherwise, or won't.
pub const ALERT_GIVE_UP: Duration = Duration::from_secs(24 * 3_600);

/// Credentials that one look at what fails takes in: past so many nobody reads a list.
pub const ALERT_FACTS: u32 = 10_000;

/// Items that a notice lists; the rest is a number. A chat cuts longer messages anyway.
pub const ALERTS_LISTED: usize = 20;
/// Copies of the database from before its schema was changed: the way back from the last upgrades,
/// each as large as the database was.
pub const SCHEMA_COPIES: usize = 2;

/// One file of a backup besides the database: the largest plugin, and room to spare.
pub const BACKUP_FILE_BYTES: u64 = 2 * PLUGIN_BYTES;
/// How long a due rotation waits for a consumer that names no time of its own: restarting what
/// uses the secret takes minutes.
pub const ACKNOWLEDGE_WAIT: u32 = 600;

/// And at the most. Past a week nobody waits, somebody forgot.
pub const LONGEST_ACKNOWLEDGE_WAIT: u32 = 7 * 86_400;

/// Consumers of one credential: a claim looks at each.
pub const CONSUMERS: u32 = 64;

/// Commits that come within this are answered by one look at the sinks: what a rotation writes
/// comes in several, and nobody sees the difference.
pub const SINK_DEBOUNCE: Duration = Duration::from_millis(100);

/// Between two looks at the files themselves: whether they are still there, and still the same.
pub const SINK_CHECK: Duration = Duration::from_secs(5);

/// Deliveries at once, so that a hundred sinks don't start a hundred commands.
pub const SINK_DELIVERIES: usize = 8;

/// Tries of a delivery: the first pause, doubling, and the longest. A receiver that is back, or a
/// disk that has space again, is found within a minute.
pub const SINK_FIRST_PAUSE: Duration = Duration::from_secs(1);
pub const SINK_LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a receiver may ask for with `Retry-After`, and the pause where it says that it won't take
/// this whatever comes.
pub const SINK_REFUSED_PAUSE: Duration = Duration::from_secs(600);

/// Writing one small file. A file system that doesn't answer by then is gone, and holds up nothing
/// but its own sinks.
pub const SINK_FILE_WALL: Duration = Duration::from_secs(30);

/// What was issued while the daemon was being stopped may still be delivered.
pub const SINK_DRAIN: Duration = Duration::from_secs(10);
