//! The store on PostgreSQL when connections to it are lost: at every statement of a credential's
//! life, before the server did it and after; again and again; on the way of a commit; and when the
//! server loses its memory or its place to a standby while a commit's answer is awaited. Commands
//! go through the library as a host's do, and what came of them is read past it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use keywheel::config::store::StoreConfig;
use keywheel::credential::Millis;
use keywheel::db::queries::ReportFilter;
use keywheel::db::writer::{
    Claim, ClaimDue, Finish, Gate, GenerationChange, MonitorUpdate, NewCredential,
};
use keywheel::db::{
    Action, HomeLock, Reader, SealedKey, Store, WriteError, Writer, WriterThread,
};
use keywheel::provider::CommitClass;
use keywheel::report::{Report, Status, iso8601};

use crate::postgres_proxy::{Cut, PostgresProxy, Which};
use crate::postgres_server::Postgres;

const T0: Millis = 1_700_000_000_000;
const LEASE: Millis = 60_000;

/// A host's way to the store. Each has connections of its own, which have asked nothing yet.
struct Host {
    writer: Writer,
    thread: WriterThread,
    store: Store,
    /// Callers whose commands said that the store is away, and tried again.
    repeated: u32,
}

impl Host {
    /// `name` makes its address another than the others'.
    fn at(url: &str, name: &str, folder: &Path) -> Self {
        let store = Store::Server(StoreConfig {
            url: format!("{url}?application_name={name}"),
            password_file: None,
            ca_file: None,
            tls: None,
        });
        let lock = HomeLock::acquire(&folder.join(name)).expect("nobody has it");
        let (writer, thread) = Writer::start(&store, lock).expect("it starts");
        Self { writer, thread, store, repeated: 0 }
    }

    fn end(self) -> u32 {
        drop(self.writer);
        self.thread.join();
        self.repeated
    }

    /// As callers do: what the store couldn't be told is told it again.
    async fn insist<T>(&mut self, what: &str, mut ask: impl AsyncFnMut(&Writer) -> Result<T, WriteError>) -> T {
        for _ in 0..50 {
            match ask(&self.writer).await {
                Ok(done) => return done,
                Err(WriteError::Unavailable { .. }) => self.repeated += 1,
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
                Err(WriteError::Unavailable { .. }) => self.repeated += 1,
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
                Err(WriteError::Unavailable { .. }) => self.repeated += 1,
                Err(WriteError::Busy { attempt: 2, .. }) if self.repeated > before => {
                    return self.resume(id).await;
                }
                Err(error) => panic!("a look at {id}: {error}"),
            }
        }
        panic!("{id} can't be looked at: the store is away for good")
    }

    /// Reads until the store answers.
    fn read<T>(&self, ask: impl Fn(&Reader) -> Option<T>) -> T {
        (0..50)
            .find_map(|_| Reader::open(&self.store).ok().and_then(|reader| ask(&reader)))
            .expect("the store can be read")
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
    server.sql(&format!(
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
    ))
}

struct Stage {
    server: Postgres,
    proxy: PostgresProxy,
    folder: tempfile::TempDir,
    /// What an undisturbed life leaves.
    expected: String,
}

impl Stage {
    fn set(settings: &[&str]) -> Self {
        let server = Postgres::start_with(settings);
        let proxy = PostgresProxy::before(&server.socket());
        let folder = tempfile::tempdir().expect("a folder");
        let mut stage = Self { server, proxy, folder, expected: String::new() };
        stage.expected = stage.life("undisturbed").0;
        assert!(stage.expected.contains("generation|2|current|1|session|issued-2"), "{}", stage.expected);
        assert!(stage.expected.contains("report|1|success\nreport|2|success"), "{}", stage.expected);
        assert!(!stage.expected.contains("journal"), "{}", stage.expected);
        stage
    }

    fn host(&self, name: &str) -> Host {
        Host::at(&self.proxy.url(), name, self.folder.path())
    }

    /// A credential's life on a host of its own: what it left, and how often a command had to be
    /// repeated for it.
    fn life(&self, id: &str) -> (String, u32) {
        let mut host = self.host(id);
        wait(host.live(id));
        let repeated = host.end();
        self.proxy.disarm();
        self.proxy.cut_all();
        (traces(&self.server, id), repeated)
    }
}

fn wait<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(what)
}

/// Cuts at each statement in turn until a life has ended without one.
fn is_outlived_wherever_it_strikes(cut: Cut) {
    let stage = Stage::set(&[]);
    for number in 1.. {
        let id = format!("cut-{number}");
        let mut host = stage.host(&id);
        stage.proxy.arm(Which::Statement(number), cut);
        wait(host.live(&id));
        let repeated = host.end();
        let struck = stage.proxy.disarm();
        stage.proxy.cut_all();
        let at = format!("cut at statement {number}, {struck:?}");
        assert_eq!(traces(&stage.server, &id), stage.expected, "{at}");
        assert_eq!(repeated, 0, "one lost connection is made good before anybody is told: {at}");
        if struck.is_empty() {
            assert!(number > 60, "a life has more statements than {number}");
            return;
        }
    }
}

#[test]
fn a_connection_cut_before_any_statement_of_a_life_costs_nothing_and_does_nothing_twice() {
    is_outlived_wherever_it_strikes(Cut::Before);
}

#[test]
fn a_connection_cut_before_any_answer_of_a_life_costs_nothing_and_does_nothing_twice() {
    is_outlived_wherever_it_strikes(Cut::Unanswered);
}
