//! The store on PostgreSQL when connections to it are lost: at every statement of a credential's
//! life, before the server did it and after; again and again; on the way of a commit; and when the
//! server loses its memory or its place to a standby while a commit's answer is awaited. Commands
//! go through the library as a host's do, and what came of them is read past it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keywheel::config::store::StoreConfig;
use keywheel::credential::Millis;
use keywheel::db::queries::ReportFilter;
use keywheel::db::writer::{Claim, ClaimDue, Finish, Gate, GenerationChange, MonitorUpdate, NewCredential};
use keywheel::db::{Action, HomeLock, Reader, SealedKey, Store, WriteError, Writer, WriterThread};
use keywheel::provider::CommitClass;
use keywheel::report::{Report, Status, iso8601};

use crate::harness::{SOON, wait_until};
use crate::postgres_proxy::{Cut, PostgresProxy, Which};
use crate::postgres_server::Postgres;

const T0: Millis = 1_700_000_000_000;
const LEASE: Millis = 60_000;
const DATABASE: &str = "store";

/// A host's way to the store. Each has connections of its own, which have asked nothing yet.
struct Host {
    writer: Writer,
    thread: WriterThread,
    store: Store,
    proxy: Arc<PostgresProxy>,
    /// Callers whose commands said that the store is away, and who asked again.
    repeated: u32,
    /// The statements that were struck for them.
    struck: Vec<String>,
}

impl Host {
    /// `name` makes its address another than the others'.
    fn behind(proxy: &Arc<PostgresProxy>, name: &str, folder: &Path) -> Self {
        let store = Store::Server(StoreConfig {
            url: format!("{}?application_name={name}", proxy.url(DATABASE)),
            password_file: None,
            ca_file: None,
            tls: None,
        });
        let lock = HomeLock::acquire(&folder.join(name)).expect("nobody has it");
        let (writer, thread) = Writer::start(&store, lock).expect("it starts");
        Self { writer, thread, store, proxy: Arc::clone(proxy), repeated: 0, struck: Vec::new() }
    }

    /// Says how often a caller was told that the store is away, and what was struck.
    fn end(mut self) -> (u32, Vec<String>) {
        drop(self.writer);
        self.thread.join();
        self.struck.extend(self.proxy.disarm());
        (self.repeated, self.struck)
    }

    /// Somebody was told that the store is away: now it comes back.
    fn repeat(&mut self) {
        self.repeated += 1;
        self.struck.extend(self.proxy.disarm());
    }

    /// As callers do: what the store couldn't be told is told it again.
    async fn insist<T>(
        &mut self,
        what: &str,
        mut ask: impl AsyncFnMut(&Writer) -> Result<T, WriteError>,
    ) -> T {
        for _ in 0..50 {
            match ask(&self.writer).await {
                Ok(done) => return done,
                Err(WriteError::Unavailable { .. }) => self.repeat(),
                Err(error) => panic!("{what}: {error}"),
            }
        }
        panic!("{what}: the store is away for good")
    }

    async fn add(&mut self, id: &str) {
        let before = self.repeated;
        for _ in 0..50 {
            match self.writer.add_credential(credential(id)).await {
                Ok(()) => return,
                Err(WriteError::Unavailable { .. }) => self.repeat(),
                // It was added by a command that said the store is away.
                Err(WriteError::Duplicate { .. }) if self.repeated > before => return,
                Err(error) => panic!("{id} can't be added: {error}"),
            }
        }
        panic!("{id} can't be added: the store is away for good")
    }

    fn due(id: &str, now: Millis) -> ClaimDue {
        ClaimDue {
            owner: String::from("host-a"),
            now,
            lease_until: now + LEASE,
            // Its service has no other.
            quotas: vec![(id.to_owned(), 5)],
            at_most: 10,
            allowed: BTreeMap::new(),
            gate: Gate::default(),
        }
    }

    /// The one attempt of the one credential that is due.
    async fn claim(&mut self, id: &str) -> Claim {
        let before = self.repeated;
        let found = self.insist("claim", async |writer| writer.claim_due(Self::due(id, T0)).await).await;
        match found.claims.into_iter().next() {
            Some(claim) => claim,
            None if self.repeated > before => self.resume(id).await,
            None => panic!("nothing was claimed, and nobody said that the store is away"),
        }
    }

    /// An attempt that was opened by a command that said the store is away: its lease runs out, and
    /// its owner takes it up.
    async fn resume(&mut self, id: &str) -> Claim {
        for leases in 2..50 {
            let later = T0 + leases * LEASE;
            let found =
                self.insist("claim", async |writer| writer.claim_due(Self::due(id, later)).await).await;
            assert!(found.claims.is_empty(), "nothing else is due: {found:?}");
            let overdue = found.overdue;
            let resumed = self
                .insist("resume", async |writer| {
                    writer.resume(overdue.clone(), "host-a", later + LEASE / 2).await
                })
                .await;
            if let Some(claim) = resumed.into_iter().next() {
                return claim;
            }
        }
        panic!("the attempt of {id} can't be taken up")
    }

    /// An attempt that rotates, and one that looks.
    async fn live(&mut self, id: &str) {
        self.add(id).await;
        let claim = self.claim(id).await;
        assert_eq!((claim.attempt_number, claim.next_generation), (1, 2));
        let token = claim.token.clone();
        self.insist("intent", async |writer| {
            writer.journal_rotation(&token, "refresh", CommitClass::BurnOnIssue, 1).await
        })
        .await;
        for issued in ["issued-1", "issued-2"] {
            self.insist("receipt", async |writer| {
                writer.store_pending(&token, 2, vec![key("session", issued)]).await
            })
            .await;
        }
        let renewed = self
            .insist("renewal", async |writer| writer.renew(vec![token.clone()], T0 + 60 * LEASE).await)
            .await;
        assert_eq!(renewed.held, [token]);
        let end = end_of(&claim, GenerationChange::Promote(2));
        let report = self.insist("end", async |writer| writer.finish(end.clone()).await).await;
        let again = self.insist("second delivery", async |writer| writer.finish(end.clone()).await).await;
        assert_eq!(report, again, "a second delivery answers as the first");
        let reports = self.read(|reader| reader.reports(&of_one(id)).ok());
        assert_eq!(reports.len(), 1, "{reports:?}");

        let look = self.look(id).await;
        assert_eq!(look.attempt_number, 2);
        let current = look.current.as_ref().expect("a generation in force");
        assert_eq!((current.generation, &current.keys[..]), (2, &[key("session", "issued-2")][..]));
        let end = end_of(&look, GenerationChange::None);
        self.insist("end", async |writer| writer.finish(end.clone()).await).await;
        let reports = self.read(|reader| reader.reports(&of_one(id)).ok());
        assert_eq!(reports.len(), 2, "{reports:?}");
    }

    async fn look(&mut self, id: &str) -> Claim {
        let before = self.repeated;
        for _ in 0..50 {
            let asked = self.writer.claim_one(id, Action::Validate, "host-a", T0 + 9, T0 + LEASE, true).await;
            match asked {
                Ok(claim) => return claim,
                Err(WriteError::Unavailable { .. }) => self.repeat(),
                Err(WriteError::Busy { attempt: 2, .. }) if self.repeated > before => {
                    return self.resume(id).await;
                }
                Err(error) => panic!("a look at {id}: {error}"),
            }
        }
        panic!("{id} can't be looked at: the store is away for good")
    }

    /// Reads until the store answers.
    fn read<T>(&mut self, ask: impl Fn(&Reader) -> Option<T>) -> T {
        let store = self.store.clone();
        let ask = || Reader::open(&store).ok().and_then(|reader| ask(&reader));
        ask().unwrap_or_else(|| {
            self.struck.extend(self.proxy.disarm());
            // The connection that was cut may be told apart only by asking over it.
            (1..50).find_map(|_| ask()).expect("the store can be read")
        })
    }
}

fn of_one(id: &str) -> ReportFilter {
    ReportFilter { credential_id: Some(id.to_owned()), ..ReportFilter::default() }
}

fn key(name: &str, sealed: &str) -> SealedKey {
    SealedKey {
        name: name.to_owned(),
        sealed: sealed.as_bytes().to_vec(),
        fingerprint: String::from("00112233aabbccdd"),
        expires: Some(T0 + 1_000),
        cookie: None,
    }
}

/// Each has a service of its own.
fn credential(id: &str) -> NewCredential {
    NewCredential {
        credential_id: id.to_owned(),
        profile_id: None,
        service: id.to_owned(),
        plugin_digest: None,
        settings: Vec::new(),
        private_hosts: Vec::new(),
        method: None,
        validate_interval: Some(90),
        max_age: None,
        idle_limit: None,
        quiet: Vec::new(),
        identity: None,
        keys: vec![key("session", "imported")],
        expires: None,
        first_due: T0,
        first_action: Action::Rotate,
    }
}

fn end_of(claim: &Claim, generations: GenerationChange) -> Finish {
    Finish {
        token: claim.token.clone(),
        report: Arc::new(Report {
            cookie_id: claim.token.credential_id.clone(),
            profile_id: None,
            service: claim.service.clone(),
            validate_url: String::from("https://shop.example/me"),
            cookie_keys: BTreeMap::new(),
            status: Status::Success,
            message: None,
            started_at: iso8601(claim.started_at),
            finished_at: iso8601(claim.started_at + 20),
            attempt_number: claim.attempt_number,
            meta: serde_json::Map::new(),
        }),
        verdict: String::from("valid"),
        monitor: MonitorUpdate {
            consecutive_failures: 0,
            expires_at: None,
            next_due_at: Some(T0 + 1_000 * LEASE),
            next_action: Action::Validate,
            asked_until: None,
            next_reason: String::from("cadence"),
        },
        generations,
        expiry_updates: Vec::new(),
        identity: None,
        in_doubt: None,
    }
}

/// All that the database holds of a credential, but for its number, its fence and its moments.
fn traces(server: &Postgres, id: &str) -> String {
    server.sql(
        DATABASE,
        &format!(
            "SELECT 'credential', attempt_number, current_generation, pending_generation, last_generation
         FROM credentials WHERE credential_id = '{id}';
         SELECT 'generation', g.generation, g.state, g.attempt_number, k.key, encode(k.sealed, 'escape')
         FROM credentials c JOIN generations g ON g.credential = c.id
         LEFT JOIN generation_keys k ON k.credential = g.credential AND k.generation = g.generation
         WHERE c.credential_id = '{id}' ORDER BY 2, 5;
         SELECT 'journal', j.attempt_number, j.phase
         FROM credentials c JOIN journal j ON j.credential = c.id WHERE c.credential_id = '{id}';
         SELECT 'monitor', m.last_status, m.next_due_at, m.next_action, m.next_reason, r.attempt_number
         FROM cookie_rotation_monitor m LEFT JOIN cookie_rotation_reports r ON r.id = m.last_report_id
         WHERE m.cookie_id = '{id}';
         SELECT 'report', attempt_number, status
         FROM cookie_rotation_reports WHERE cookie_id = '{id}' ORDER BY id"
        ),
    )
}

struct Stage {
    server: Postgres,
    proxy: Arc<PostgresProxy>,
    folder: tempfile::TempDir,
}

impl Stage {
    fn set(settings: &[&str]) -> Self {
        let server = Postgres::start_with(settings);
        server.with_database(DATABASE);
        let proxy = Arc::new(PostgresProxy::before(&server.socket()));
        Self { server, proxy, folder: tempfile::tempdir().expect("a folder") }
    }

    fn host(&self, name: &str) -> Host {
        Host::behind(&self.proxy, name, self.folder.path())
    }
}

fn wait<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(what)
}

/// A credential's life on a host of its own: what it left, how often a caller was told that the
/// store is away, and what was struck.
fn life(
    server: &Postgres,
    proxy: &Arc<PostgresProxy>,
    folder: &Path,
    id: &str,
    strike: Option<(Which, Cut)>,
) -> (String, u32, Vec<String>) {
    let mut host = Host::behind(proxy, id, folder);
    if let Some((which, cut)) = strike {
        proxy.arm(which, cut);
    }
    wait(host.live(id));
    let (repeated, struck) = host.end();
    proxy.cut_all();
    (traces(server, id), repeated, struck)
}

/// Lives that go on at once, each behind a proxy of its own.
const LANES: usize = 8;

/// Strikes at each statement in turn until a life ended before its turn came. `told` says how often
/// a caller may be told that the store is away.
fn is_outlived_wherever_it_strikes(which: fn(u64) -> Which, cut: Cut, told: u32) {
    let stage = Stage::set(&[]);
    let (server, folder) = (&stage.server, stage.folder.path());
    let (expected, ..) = life(server, &stage.proxy, folder, "undisturbed", None);
    assert!(expected.contains("generation|2|current|1|session|issued-2"), "{expected}");
    assert!(expected.contains("report|1|success\nreport|2|success"), "{expected}");
    assert!(!expected.contains("journal"), "{expected}");
    let expected = &expected;
    let lane = |first: usize| {
        let proxy = Arc::new(PostgresProxy::before(&server.socket()));
        for number in (first as u64..).step_by(LANES) {
            let id = format!("strike-{number}");
            let (left, repeated, struck) = life(server, &proxy, folder, &id, Some((which(number), cut)));
            let at = format!("{:?} {cut:?}: {struck:?}", which(number));
            assert_eq!(left, *expected, "{at}");
            assert!(repeated <= told, "{repeated} were told that the store is away: {at}");
            if struck.is_empty() {
                assert!(number > 60, "a life has more statements than {number}");
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for first in 1..=LANES {
            scope.spawn(move || lane(first));
        }
    });
}

#[test]
fn a_connection_cut_before_any_statement_of_a_life_costs_nothing_and_nobody_hears_of_it() {
    is_outlived_wherever_it_strikes(Which::Statement, Cut::Before, 0);
}

#[test]
fn a_connection_cut_before_any_answer_of_a_life_costs_nothing_and_nobody_hears_of_it() {
    is_outlived_wherever_it_strikes(Which::Statement, Cut::Unanswered, 0);
}

/// The callers are told, ask again, and nothing is done twice for that.
#[test]
fn a_store_that_is_away_from_any_statement_on_until_a_command_gives_up_loses_and_doubles_nothing() {
    is_outlived_wherever_it_strikes(Which::From, Cut::Before, 1);
}

#[test]
fn a_store_that_is_away_from_any_answer_on_until_a_command_gives_up_loses_and_doubles_nothing() {
    is_outlived_wherever_it_strikes(Which::From, Cut::Unanswered, 1);
}

#[test]
fn a_slow_way_to_the_store_costs_time_alone() {
    let stage = Stage::set(&[]);
    let (server, folder) = (&stage.server, stage.folder.path());
    let (expected, ..) = life(server, &stage.proxy, folder, "quick", None);
    stage.proxy.delay(Duration::from_millis(2));
    let (left, repeated, _) = life(server, &stage.proxy, folder, "slow", None);
    assert_eq!((left, repeated), (expected, 0));
}

/// Cuts a host's first start, on an empty database, at each statement in turn.
fn is_begun_by_the_next_start(cut: Cut) {
    let server = Postgres::shared();
    let folder = tempfile::tempdir().expect("a folder");
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    let lane = |first: usize| {
        let proxy = Arc::new(PostgresProxy::before(&server.socket()));
        for number in (first as u64..).step_by(LANES) {
            let database = format!("first_start_{}_{number}", format!("{cut:?}").to_lowercase());
            server.with_database(&database);
            let store = Store::Server(StoreConfig {
                url: proxy.url(&database),
                password_file: None,
                ca_file: None,
                tls: None,
            });
            let start = || {
                // A program that another lane starts has it for a moment, until it is that program.
                let lock = wait_until(SOON, "the lock is free", || {
                    HomeLock::acquire(&folder.path().join(&database)).ok()
                });
                Writer::start(&store, lock).map(|(writer, thread)| {
                    drop(writer);
                    thread.join();
                })
            };
            proxy.arm(Which::Statement(number), cut);
            let begun = start();
            let struck = proxy.disarm();
            start().unwrap_or_else(|error| panic!("{cut:?} at statement {number}, {struck:?}: {error}"));
            let found = server.sql(&database, tables).parse::<u32>().expect("a number");
            proxy.cut_all();
            if struck.is_empty() {
                begun.expect("nothing was cut");
                assert!(number > 20, "a first start has more statements than {number}");
                return found;
            }
        }
        unreachable!("a start has an end")
    };
    let found: Vec<u32> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (1..=LANES).map(|first| scope.spawn(move || lane(first))).collect();
        lanes.into_iter().map(|lane| lane.join().expect("a lane ends well")).collect()
    });
    assert!(found.iter().all(|tables| *tables == found[0] && *tables > 20), "{found:?}");
}

#[test]
fn a_first_start_that_is_cut_anywhere_is_finished_by_the_next() {
    is_begun_by_the_next_start(Cut::Before);
    is_begun_by_the_next_start(Cut::Unanswered);
}

#[test]
fn a_commit_that_never_arrives_is_given_up_by_the_server_and_made_again_by_the_host() {
    let stage = Stage::set(&[]);
    let mut host = stage.host("held");
    stage.proxy.arm(Which::Commit(1), Cut::Held);
    // The connection stays open, and nothing comes of what was sent over it.
    wait(host.add("held"));
    assert_eq!(stage.proxy.disarm(), ["COMMIT"]);
    assert_eq!(
        stage.server.sql(DATABASE, "SELECT count(*) FROM credentials WHERE credential_id = 'held'"),
        "1"
    );
    // It arrives at last, where nobody waits for it any more.
    stage.proxy.heal();
    wait(host.claim("held"));
    host.end();
}

#[test]
fn a_store_that_is_cut_off_and_comes_back_has_lost_and_doubled_nothing() {
    let stage = Stage::set(&[]);
    let mut host = stage.host("island");
    wait(host.add("island"));
    stage.proxy.partition();
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| wait(host.writer.claim_due(Host::due("island", T0))));
        let late = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'keywheel'";
        // The server ends what is idle in a transaction; whatever is left of it waits for nothing.
        assert_ne!(stage.server.sql(DATABASE, late), "0");
        asked.join().expect("it ends")
    });
    assert!(matches!(answer, Err(WriteError::Unavailable { .. })), "{answer:?}");
    stage.proxy.heal();
    wait(host.claim("island"));
    let attempts = "SELECT attempt_number FROM credentials WHERE credential_id = 'island'";
    assert_eq!(stage.server.sql(DATABASE, attempts), "1");
    host.end();
}

/// Takes numbers for transactions until one is past `number`, each in a transaction that is
/// committed: so whoever had that number before isn't who has it now.
fn pass_out_numbers_up_to(server: &Postgres, number: u64) {
    wait_until(SOON, "the server has given that number out anew", || {
        let given: u64 = server.sql(DATABASE, "SELECT pg_current_xact_id()").parse().expect("a number");
        (given >= number).then_some(())
    });
    assert_eq!(server.sql(DATABASE, &format!("SELECT pg_xact_status('{number}')")), "committed");
}

/// A commit is on its way; the server loses its memory, and with it all that it had not written
/// down of the transaction, its number too, which another transaction has then.
#[test]
fn a_commit_that_a_crash_forgot_is_not_taken_for_another_of_the_same_number() {
    // Nothing else writes the log down meanwhile.
    let stage = Stage::set(&["wal_writer_delay=10s", "bgwriter_delay=10s", "autovacuum=off"]);
    let mut host = stage.host("forgotten");
    wait(host.add("forgotten"));
    stage.proxy.arm(Which::Commit(1), Cut::Held);
    let claim = std::thread::scope(|scope| {
        let asked = scope.spawn(|| wait(host.claim("forgotten")));
        stage.proxy.wait_until_struck(1);
        let number =
            stage.server.sql(DATABASE, "SELECT min(backend_xid::text::bigint) FROM pg_stat_activity");
        let number: u64 = number.parse().expect("a transaction is open");
        // Nobody comes to the server again before the number is another's.
        stage.proxy.partition();
        stage.server.crash();
        wait_until(SOON, "the server is open again", || stage.server.try_sql(DATABASE, "SELECT 1"));
        pass_out_numbers_up_to(&stage.server, number);
        stage.proxy.disarm();
        stage.proxy.heal();
        asked.join().expect("a claim")
    });
    assert_eq!(claim.attempt_number, 1);
    let open = "SELECT j.attempt_number FROM journal j JOIN credentials c ON c.id = j.credential
                WHERE c.credential_id = 'forgotten'";
    assert_eq!(stage.server.sql(DATABASE, open), "1", "what was said to be done is done");
    host.end();
}

/// As above, with a standby that the transaction never reached.
#[test]
fn a_commit_that_a_standby_never_had_is_not_taken_for_another_of_the_same_number() {
    let stage = Stage::set(&[]);
    let standby = stage.server.standby(false);
    let mut host = stage.host("left-behind");
    wait(host.add("left-behind"));
    let caught_up = "SELECT count(*) FROM credentials WHERE credential_id = 'left-behind'";
    wait_until(SOON, "the standby has the credential", || {
        (standby.sql(DATABASE, caught_up) == "1").then_some(())
    });
    standby.set("primary_conninfo", "");
    let streams = "SELECT count(*) FROM pg_stat_wal_receiver";
    wait_until(SOON, "the standby is alone", || (standby.sql(DATABASE, streams) == "0").then_some(()));
    stage.proxy.arm(Which::Commit(1), Cut::Held);
    let (server, proxy) = (&stage.server, &stage.proxy);
    let claim = std::thread::scope(|scope| {
        let asked = scope.spawn(|| wait(host.claim("left-behind")));
        proxy.wait_until_struck(1);
        let number = server.sql(DATABASE, "SELECT min(backend_xid::text::bigint) FROM pg_stat_activity");
        let number: u64 = number.parse().expect("a transaction is open");
        proxy.partition();
        server.stop();
        standby.promote();
        pass_out_numbers_up_to(&standby, number);
        proxy.lead_to(&standby.socket());
        proxy.disarm();
        proxy.heal();
        asked.join().expect("a claim")
    });
    assert_eq!(claim.attempt_number, 1);
    let open = "SELECT j.attempt_number FROM journal j JOIN credentials c ON c.id = j.credential
                WHERE c.credential_id = 'left-behind'";
    assert_eq!(standby.sql(DATABASE, open), "1", "what was said to be done is done");
    host.end();
}
