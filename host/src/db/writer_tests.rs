//! The writer on real files: claims, fences, generations, and what failures leave behind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;

use tempfile::TempDir;

use super::super::external::{Announcement, ExternalReport, NewWorkerToken};
use super::super::queries::{Counts, ReportFilter};
use super::super::scratch::Scratch;
use super::super::{Actor, Reader, sync_probe};
use super::*;
use crate::credential::{CookieAttributes, Secret};
use crate::limits;
use crate::provider::{KeySpec, Location};
use crate::report::Status;
use crate::vault::{Place, Vault};

const T0: Millis = 1_700_000_000_000;
const LEASE: Millis = 60_000;
/// Real pauses make tests slow and prove nothing more.
const NO_PAUSE: Duration = Duration::from_millis(1);

struct Home {
    writer: Writer,
    thread: WriterThread,
    scratch: Scratch,
}

impl Home {
    fn new() -> Self {
        Self::with(Scratch::new())
    }

    fn with(scratch: Scratch) -> Self {
        if scratch.store().file().is_some() {
            return Self::on_file(scratch, None);
        }
        let (writer, thread) = scratch.writer();
        Self { writer, thread, scratch }
    }

    /// For what is about files.
    fn on_file(scratch: Scratch, vfs: Option<&str>) -> Self {
        let path = scratch.file();
        let lock = HomeLock::acquire(&scratch.folder().join("lock")).unwrap();
        let db = open_for_writing(&path, vfs).unwrap();
        let (writer, thread) = Writer::start_with(db, &path, lock, NO_PAUSE).unwrap();
        Self { writer, thread, scratch }
    }

    fn reader(&self) -> Reader {
        self.scratch.reader()
    }

    /// What a restart of the host is to the database.
    fn restart(self) -> Self {
        Self::with(self.close())
    }

    fn close(self) -> Scratch {
        drop(self.writer);
        self.thread.join();
        self.scratch
    }

    async fn add(&self, id: &str, service: &str) {
        self.writer.add_credential(credential(id, service)).await.unwrap();
    }

    async fn claim(&self, id: &str, action: Action) -> Claim {
        self.writer.claim_one(id, action, "host-a", T0, T0 + LEASE, true).await.unwrap()
    }

    async fn rows(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        self.writer.run(move |db| Ok(db.query_row(&sql, [], |row| row.get(0))?)).await.unwrap()
    }

    /// Sends commands while the thread is held, so that they share a batch.
    async fn together<T>(&self, commands: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let held = self.writer.run(move |_| {
            let _released = gate.recv();
            Ok(())
        });
        let sent = async {
            let answers = futures_util::future::join_all(commands);
            let mut answers = std::pin::pin!(answers);
            // Once round sends what the channel takes without waiting; only then is it let go.
            let once = std::future::poll_fn(|context| std::task::Poll::Ready(answers.as_mut().poll(context)));
            assert!(once.await.is_pending(), "nothing is answered while the thread is held");
            drop(release);
            answers.await
        };
        let (held, answers) = futures_util::future::join(held, sent).await;
        held.unwrap();
        answers
    }

    async fn execute(&self, sql: &'static str) {
        self.writer.run(move |db| Ok(db.execute_batch(sql)?)).await.unwrap();
    }
}

fn key(name: &str, sealed: &[u8]) -> SealedKey {
    SealedKey {
        name: name.to_owned(),
        sealed: sealed.to_vec(),
        fingerprint: String::from("00112233aabbccdd"),
        expires: Some(T0 + 1_000),
        cookie: None,
    }
}

fn credential(id: &str, service: &str) -> NewCredential {
    NewCredential {
        plugin_digest: None,
        credential_id: id.to_owned(),
        profile_id: Some(String::from("profile")),
        service: service.to_owned(),
        settings: vec![(String::from("base_url"), String::from("https://shop.example"))],
        private_hosts: vec![String::from("shop.internal")],
        method: None,
        validate_interval: Some(90),
        max_age: None,
        idle_limit: None,
        quiet: Vec::new(),
        identity: None,
        keys: vec![
            SealedKey {
                cookie: Some(CookieAttributes {
                    name: String::from("sid"),
                    domain: String::from("shop.example"),
                    path: String::from("/"),
                    host_only: true,
                    secure: true,
                    http_only: true,
                    same_site: Some(String::from("Lax")),
                }),
                ..key("session", b"sealed-1")
            },
            key("token", b"sealed-2"),
        ],
        expires: Some(T0 + 5_000),
        first_due: T0,
        first_action: Action::Validate,
    }
}

fn end_of(claim: &Claim) -> Finish {
    Finish {
        token: claim.token.clone(),
        report: Arc::new(Report {
            cookie_id: claim.token.credential_id.clone(),
            profile_id: claim.profile_id.clone(),
            service: claim.service.clone(),
            validate_url: String::from("https://shop.example/me"),
            cookie_keys: BTreeMap::from([(String::from("session"), String::from("00112233aabbccdd"))]),
            status: Status::Success,
            message: Some(String::from("alive")),
            started_at: iso8601(claim.started_at),
            finished_at: iso8601(claim.started_at + 20),
            attempt_number: claim.attempt_number,
            meta: serde_json::Map::from_iter([(String::from("verdict"), "valid".into())]),
        }),
        verdict: String::from("valid"),
        monitor: MonitorUpdate {
            consecutive_failures: 0,
            expires_at: Some(T0 + 9_000),
            next_due_at: Some(T0 + 90_000),
            next_action: Action::Validate,
            asked_until: None,
            next_reason: String::from("cadence"),
        },
        generations: GenerationChange::None,
        expiry_updates: Vec::new(),
        identity: None,
        in_doubt: None,
    }
}

fn due(now: Millis, quotas: &[(&str, u32)]) -> ClaimDue {
    ClaimDue {
        owner: String::from("host-a"),
        now,
        lease_until: now + LEASE,
        quotas: quotas.iter().map(|(service, quota)| ((*service).to_owned(), *quota)).collect(),
        at_most: u32::MAX,
        allowed: std::collections::BTreeMap::new(),
        gate: Gate::default(),
    }
}

#[tokio::test]
async fn a_claim_carries_all_an_attempt_starts_from() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    let claims = home.writer.claim_due(due(T0, &[("shop", 5), ("other", 5)])).await.unwrap();
    assert_eq!(claims.next_due, Some(T0 + LEASE));
    let [claim] = claims.claims.as_slice() else { panic!("{claims:?}") };
    let expected = credential("shop-1", "shop");
    assert_eq!(claim.settings_json, serde_json::to_string(&expected.settings).unwrap());
    assert_eq!(claim.private_hosts_json, serde_json::to_string(&expected.private_hosts).unwrap());
    assert_eq!(claim.validate_interval_override, Some(90));
    assert_eq!(claim.expires_at, expected.expires);
    assert_eq!((claim.attempt_number, claim.started_at), (1, T0));
    assert_eq!((claim.action, claim.next_generation), (Action::Validate, 2));
    let current = claim.current.as_ref().unwrap();
    assert_eq!((current.generation, &current.keys), (1, &expected.keys));
    assert_eq!(claim.pending, None);
    assert_eq!(claim.interrupted, None);
}

#[tokio::test]
async fn no_credential_is_claimed_twice_however_many_ask() {
    let home = Home::new();
    for number in 0..60 {
        home.add(&format!("shop-{number}"), "shop").await;
    }
    let askers: Vec<_> = (0..20)
        .map(|_| {
            let writer = home.writer.clone();
            tokio::spawn(async move { writer.claim_due(due(T0, &[("shop", 7)])).await.unwrap() })
        })
        .collect();
    let mut claimed = Vec::new();
    for asker in askers {
        claimed.extend(asker.await.unwrap().claims.into_iter().map(|claim| claim.token));
    }
    let distinct: HashSet<_> = claimed.iter().map(|token| &token.credential_id).collect();
    assert_eq!((claimed.len(), distinct.len()), (60, 60));

    let error = home.writer.claim_one("shop-3", Action::Rotate, "cli", T0, T0 + LEASE, true).await;
    assert!(matches!(error, Err(WriteError::Busy { attempt: 1, .. })), "{error:?}");
    let error = home.writer.claim_one("nobody", Action::Rotate, "cli", T0, T0 + LEASE, true).await;
    assert!(matches!(error, Err(WriteError::NotFound { .. })), "{error:?}");
}

#[tokio::test]
async fn quotas_take_the_earliest_due_of_each_service_and_the_rest_says_when() {
    let home = Home::new();
    for (id, service, first_due) in
        [("a", "shop", T0 + 30), ("b", "shop", T0 + 10), ("c", "shop", T0 + 20), ("d", "bank", T0)]
    {
        let new = NewCredential { first_due, ..credential(id, service) };
        home.writer.add_credential(new).await.unwrap();
    }
    let first = home.writer.claim_due(due(T0 + 25, &[("shop", 1)])).await.unwrap();
    let ids: Vec<_> = first.claims.iter().map(|claim| &claim.token.credential_id).collect();
    assert_eq!(ids, ["b"]);
    assert_eq!(first.next_due, Some(T0 + 20), "c was due and the quota was used up");
    let second = home.writer.claim_due(due(T0 + 25, &[("shop", 9)])).await.unwrap();
    assert_eq!(second.claims.len(), 1);
    assert_eq!(second.next_due, Some(T0 + 30));
    let counts = home.reader().due(T0 + 25).unwrap();
    assert_eq!(counts.iter().map(|row| row.due).collect::<Vec<_>>(), [1, 0]);
}

#[tokio::test]
async fn claims_stop_at_what_is_free_over_all_services_and_the_first_named_is_first() {
    let home = Home::new();
    for number in 0..5 {
        home.add(&format!("shop-{number}"), "shop").await;
        home.add(&format!("bank-{number}"), "bank").await;
    }
    let claim = ClaimDue { at_most: 6, ..due(T0, &[("shop", 5), ("bank", 5)]) };
    let claims = home.writer.claim_due(claim).await.unwrap();
    let of = |service: &str| claims.claims.iter().filter(|claim| claim.service == service).count();
    assert_eq!((of("shop"), of("bank")), (5, 1));
    assert_eq!(claims.next_due, Some(T0), "the rest of the bank is due still");
}

#[tokio::test]
async fn an_attempt_ends_in_one_report_and_a_second_delivery_answers_as_the_first() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    let claim = home.claim("shop-1", Action::Validate).await;
    let first = home.writer.finish(end_of(&claim)).await.unwrap();

    let mut again = end_of(&claim);
    Arc::make_mut(&mut again.report).status = Status::Failed;
    again.monitor.consecutive_failures = 9;
    assert_eq!(home.writer.finish(again).await.unwrap(), first);

    let reader = home.reader();
    let reports = reader.reports(&ReportFilter::default()).unwrap();
    let [row] = reports.as_slice() else { panic!("{reports:?}") };
    assert_eq!((row.id, &row.report), (first, &*end_of(&claim).report));
    assert_eq!(reader.report(first).unwrap().as_ref(), Some(row));
    let stored = reader.credential("shop-1").unwrap().unwrap();
    assert_eq!(stored.monitor.last_status, Some(Status::Success));
    assert_eq!(stored.monitor.last_success_at, Some(T0 + 20));
    assert_eq!(stored.monitor.consecutive_failures, 0);
    assert_eq!(stored.monitor.next_due_at, Some(T0 + 90_000));
    assert_eq!(stored.monitor.last_report_id, Some(first));
    assert_eq!(stored.open_attempt, None);
}

async fn token(home: &Home, id: &str, service: &str) {
    let token = NewWorkerToken {
        token_id: id.into(),
        name: String::from("a worker"),
        service: service.into(),
        tag: [7; 32],
        expires_at: None,
    };
    home.writer.create_worker_token(token).await.unwrap();
}

fn external(token: &str, report: Report) -> ExternalReport {
    ExternalReport { token_id: token.into(), report, worker_id: None }
}

#[tokio::test]
async fn an_external_report_in_an_attempts_place_keeps_it_from_nothing_and_both_stay() {
    let home = Home::new();
    home.add("ann", "shop").await;
    token(&home, "t1", "shop").await;
    let claim = home.claim("ann", Action::Validate).await;
    let end = end_of(&claim);
    // By accident, or by somebody who knows when the next attempt begins: three places in a row.
    let mut forged = Report::clone(&end.report);
    let mut ids = HashSet::new();
    for moved in 0..3 {
        forged.started_at = iso8601(T0 + moved);
        let accepted = home.writer.accept_report(external("t1", forged.clone())).await.unwrap();
        assert!(!accepted.duplicate);
        ids.insert(accepted.id);
    }
    let own = home.writer.finish(end.clone()).await.unwrap();
    assert!(ids.insert(own));
    assert_eq!(home.rows("journal").await, 0);
    assert_eq!(home.rows("cookie_rotation_reports").await, 4);
    // Each is answered as it was at first.
    assert_eq!(home.writer.finish(end).await.unwrap(), own);
    for moved in 0..3 {
        forged.started_at = iso8601(T0 + moved);
        let again = home.writer.accept_report(external("t1", forged.clone())).await.unwrap();
        assert!(again.duplicate && again.id != own && ids.contains(&again.id));
    }
    assert_eq!(home.rows("cookie_rotation_reports").await, 4);
}

#[tokio::test]
async fn an_external_report_moves_a_credential_forward_only_and_late_failures_count_for_nothing() {
    let home = Home::new();
    token(&home, "t1", "shop").await;
    home.add("other", "shop").await;
    let template = end_of(&home.claim("other", Action::Validate).await).report;
    let send = async |attempt: u32, finished: Millis, status: Status| {
        let report = Report {
            cookie_id: String::from("ann"),
            attempt_number: attempt,
            started_at: iso8601(finished - 1),
            finished_at: iso8601(finished),
            status,
            ..Report::clone(&template)
        };
        home.writer.accept_report(external("t1", report)).await.unwrap();
        let monitor = home.reader().credential("ann").unwrap().unwrap().monitor;
        assert_eq!(monitor.next_due_at, None);
        (
            monitor.last_status.unwrap(),
            monitor.consecutive_failures,
            monitor.last_attempt_at,
            monitor.last_success_at,
        )
    };
    use Status::{Failed, Success, Unreachable};
    assert_eq!(send(1, T0 + 10, Failed).await, (Failed, 1, Some(T0 + 10), None));
    assert_eq!(send(2, T0 + 20, Unreachable).await, (Unreachable, 2, Some(T0 + 20), None));
    assert_eq!(send(3, T0 + 15, Failed).await, (Unreachable, 2, Some(T0 + 20), None));
    // An older success is news of when it last worked, and of nothing else.
    assert_eq!(send(4, T0 + 5, Success).await, (Unreachable, 2, Some(T0 + 20), Some(T0 + 5)));
    assert_eq!(send(5, T0 + 30, Success).await, (Success, 0, Some(T0 + 30), Some(T0 + 30)));
    assert_eq!(send(6, T0 + 29, Failed).await, (Success, 0, Some(T0 + 30), Some(T0 + 30)));
    // A worker's clock that runs ahead hides nothing that comes after.
    let (_, _, last, _) = send(7, now() + 200_000, Failed).await;
    assert!(last.is_some_and(|last| last <= now()));
    assert!(!home.reader().has_credentials("ghost").unwrap());
    assert_eq!(home.reader().due(now()).unwrap().iter().map(|due| due.credentials).sum::<u64>(), 1);
}

#[tokio::test]
async fn what_one_token_may_bring_is_bounded_and_a_revoked_one_brings_nothing() {
    let home = Home::new();
    token(&home, "t1", "shop").await;
    token(&home, "t2", "shop").await;
    home.add("other", "shop").await;
    let template = end_of(&home.claim("other", Action::Validate).await).report;
    let report = |id: String| Report { cookie_id: id, ..Report::clone(&template) };
    let most = limits::EXTERNAL_CREDENTIALS_PER_TOKEN;
    home.writer
        .run(move |db| {
            db.execute(
                "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                 INSERT INTO credentials (credential_id, service, settings_json, private_hosts_json,
                     last_generation, rotated_at, created_at, external, external_token)
                 SELECT 'c' || i, 'shop', '[]', '[]', 0, 0, 0, 1, 't1' FROM n",
                [most - 1],
            )?;
            Ok(())
        })
        .await
        .unwrap();
    home.writer.accept_report(external("t1", report("last".into()))).await.unwrap();
    let refused = home.writer.accept_report(external("t1", report("more".into()))).await.unwrap_err();
    assert!(matches!(refused, WriteError::TooMany { what: "credentials", .. }), "{refused}");
    // What it brought before it may go on with, and another token has a count of its own.
    let again = Report { attempt_number: 9, ..report("last".into()) };
    home.writer.accept_report(external("t1", again)).await.unwrap();
    home.writer.accept_report(external("t2", report("more".into()))).await.unwrap();

    let announce = async |id: u32, interval_seconds| {
        let worker_id = format!("w{id}");
        let new = Announcement {
            token_id: "t1".into(),
            service: "shop".into(),
            worker_id,
            pid: 1,
            version: None,
            interval_seconds,
        };
        home.writer.announce_worker(new).await
    };
    for id in 0..limits::EXTERNAL_WORKERS_PER_TOKEN {
        assert!(announce(id, 3_600).await.unwrap());
    }
    let refused = announce(9_999, 3_600).await.unwrap_err();
    assert!(matches!(refused, WriteError::TooMany { what: "workers", .. }), "{refused}");
    assert!(!announce(7, 3_600).await.unwrap(), "one that is known is welcome");
    // One that fell silent makes room.
    home.execute("UPDATE external_workers SET last_seen_at = 1 WHERE worker_id = 'w3'").await;
    assert!(announce(9_999, 3_600).await.unwrap());
    let known = home.reader().external_workers(now()).unwrap();
    assert_eq!(known.len(), limits::EXTERNAL_WORKERS_PER_TOKEN as usize);
    assert!(known.iter().all(|worker| worker.worker_id != "w3"));

    home.writer.revoke_worker_token("t1").await.unwrap();
    home.writer.revoke_worker_token("t1").await.unwrap();
    assert!(matches!(announce(7, 3_600).await, Err(WriteError::NotFound { .. })));
    let late = Report { attempt_number: 10, ..report("last".into()) };
    let refused = home.writer.accept_report(external("t1", late)).await;
    assert!(matches!(refused, Err(WriteError::NotFound { .. })));
    assert_eq!(home.reader().external_workers(now()).unwrap(), []);
    assert_eq!(home.reader().audit(Some("shop"), 10).unwrap().len(), 3, "two made, one revoked once");
}

#[tokio::test]
async fn a_second_delivery_of_a_report_that_was_pruned_is_refused_as_late_and_changes_nothing() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    let old = home.claim("shop-1", Action::Validate).await;
    let first = home.writer.finish(end_of(&old)).await.unwrap();
    let newer = home.claim("shop-1", Action::Validate).await;
    let last = home.writer.finish(end_of(&newer)).await.unwrap();
    assert_eq!(home.writer.delete_reports(vec![first, last]).await.unwrap(), 1);

    let again = home.writer.finish(end_of(&old)).await;
    assert!(matches!(again, Err(WriteError::Fenced { .. })), "{again:?}");
    assert_eq!(home.writer.finish(end_of(&newer)).await.unwrap(), last);
    assert_eq!(home.rows("cookie_rotation_reports").await, 1);
}

#[tokio::test]
async fn a_rotation_by_hand_waits_for_a_pause_and_for_the_service_unless_it_is_forced() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    let claim = home.claim("shop-1", Action::Validate).await;
    let monitor = MonitorUpdate { asked_until: Some(T0 + 500), ..end_of(&claim).monitor };
    home.writer.finish(Finish { monitor, ..end_of(&claim) }).await.unwrap();
    let rotate = |at, forced| home.writer.claim_one("shop-1", Action::Rotate, "cli", at, T0 + LEASE, forced);
    let rests = |error| matches!(error, Err(WriteError::Resting { rest: Rest::Asked { until }, .. }) if until == T0 + 500);
    assert!(rests(rotate(T0 + 499, false).await));
    assert_eq!(home.rows("journal").await, 0, "nothing was begun");
    let forced = rotate(T0 + 499, true).await.unwrap();
    assert!(forced.forced);
    home.writer.finish(end_of(&forced)).await.unwrap();
    let free = rotate(T0 + 499, false).await.unwrap();
    assert!(!free.forced, "the newest end asked for nothing");
    home.writer.finish(end_of(&free)).await.unwrap();
    home.writer.set_paused("shop-1", true, T0).await.unwrap();
    let paused = rotate(T0 + 600, false).await;
    assert!(matches!(paused, Err(WriteError::Resting { rest: Rest::Paused, .. })), "{paused:?}");
    // Looking harms nothing, so it doesn't wait.
    home.writer.claim_one("shop-1", Action::Validate, "cli", T0, T0 + LEASE, false).await.unwrap();
}

#[tokio::test]
async fn a_late_writer_is_fenced_out_of_everything() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    let late = home.claim("shop-1", Action::Rotate).await;
    let taken = home.writer.reclaim_interrupted("host-b", T0 + 2 * LEASE).await.unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].attempt_number, late.attempt_number);
    assert_eq!(taken[0].started_at, late.started_at);

    let writer = &home.writer;
    let class = CommitClass::Sliding;
    let fenced = [
        writer.journal_rotation(&late.token, "refresh", class, 1).await.err(),
        writer.store_pending(&late.token, 2, vec![key("session", b"late")]).await.err(),
        writer.finish(end_of(&late)).await.err(),
    ];
    for error in fenced {
        assert!(matches!(error, Some(WriteError::Fenced { .. })), "{error:?}");
    }
    let both = vec![late.token.clone(), taken[0].token.clone()];
    let renewed = writer.renew(both, T0 + 3 * LEASE).await.unwrap();
    assert_eq!(renewed.lost, std::slice::from_ref(&late.token));
    assert_eq!(renewed.held, std::slice::from_ref(&taken[0].token));
    assert_eq!(home.rows("cookie_rotation_reports").await, 0);
    assert_eq!(home.rows("generations").await, 1);

    writer.finish(end_of(&taken[0])).await.unwrap();
    assert_eq!(home.rows("cookie_rotation_reports").await, 1);
    // Nothing is open any more, and still it isn't the late one's to go on with.
    let renewed = writer.renew(vec![late.token.clone()], T0 + 4 * LEASE).await.unwrap();
    assert_eq!(renewed.held, []);
}

#[tokio::test]
async fn a_lease_that_runs_out_hands_the_attempt_on_and_a_renewed_one_does_not() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    let claim = home.claim("shop-1", Action::Validate).await;
    let renewed = home.writer.renew(vec![claim.token.clone()], T0 + 2 * LEASE).await.unwrap();
    assert_eq!((renewed.held, renewed.lost), (vec![claim.token.clone()], vec![]));
    let by_another = |now| ClaimDue { owner: String::from("host-b"), ..due(now, &[("shop", 5)]) };
    let early = home.writer.claim_due(by_another(T0 + LEASE)).await.unwrap();
    assert!(early.claims.is_empty());
    let later = home.writer.claim_due(by_another(T0 + 2 * LEASE)).await.unwrap();
    assert_eq!(later.claims.len(), 1);
    assert_eq!(later.claims[0].attempt_number, 1);
    assert_eq!(later.claims[0].interrupted.as_ref().unwrap().phase, Phase::Claimed);
    assert!(later.claims[0].token.fence > claim.token.fence);
}

#[tokio::test]
async fn who_asks_never_takes_its_own_attempt_over_unless_it_says_so() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    let claim = home.claim("shop-1", Action::Rotate).await;
    let (late, quotas) = (T0 + 60 * LEASE, [("shop", 5)]);
    let claims = home.writer.claim_due(due(late, &quotas)).await.unwrap();
    assert!(claims.claims.is_empty());
    assert_eq!(claims.overdue, vec![claim.token.clone()]);
    // Still the owner's.
    assert_eq!(home.writer.renew(claims.overdue, late + LEASE).await.unwrap().lost, []);
    assert!(home.writer.claim_due(due(late, &quotas)).await.unwrap().overdue.is_empty());
    let resumed = home.writer.resume(vec![claim.token.clone()], "host-a", late + LEASE).await.unwrap();
    assert_eq!((resumed.len(), resumed[0].attempt_number), (1, 1));
    assert!(resumed[0].interrupted.is_some());
    // A second time finds it gone to the newer fence.
    assert!(home.writer.resume(vec![claim.token], "host-a", late + LEASE).await.unwrap().is_empty());
}

#[tokio::test]
async fn after_a_clock_was_ahead_what_it_made_due_comes_nearer_and_nothing_else() {
    const HOUR: Millis = 3_600_000;
    let home = Home::on_file(Scratch::on_file(), None);
    for id in ["before", "after", "dead", "open"] {
        home.add(id, "shop").await;
    }
    // Ended by the right clock, and by one that is an hour ahead.
    let end = |claim: &Claim, finished: Millis, verdict: &str| {
        let mut end = end_of(claim);
        Arc::make_mut(&mut end.report).finished_at = iso8601(finished);
        end.verdict = verdict.to_owned();
        end.monitor.next_due_at = Some(finished + 90_000);
        end
    };
    let mut claims = HashMap::new();
    for id in ["before", "after", "dead", "open"] {
        claims.insert(id, home.claim(id, Action::Validate).await);
    }
    home.writer.finish(end(&claims["before"], T0, "valid")).await.unwrap();
    home.writer.finish(end(&claims["after"], T0 + HOUR, "valid")).await.unwrap();
    home.writer.finish(end(&claims["dead"], T0 + HOUR, "invalid")).await.unwrap();
    home.writer.renew(vec![claims["open"].token.clone()], T0 + HOUR + LEASE).await.unwrap();
    // Another's leases are its own to judge.
    assert_eq!(home.writer.set_back("host-b", T0 + 1_000, Some(HOUR)).await.unwrap(), 2);

    let next_due = |now| home.writer.claim_due(ClaimDue { at_most: 0, ..due(now, &[("shop", 5)]) });
    assert_eq!(next_due(T0).await.unwrap().next_due, Some(T0 + 1_000));
    let now_due = home.writer.claim_due(due(T0 + 1_000, &[("shop", 5)])).await.unwrap();
    assert_eq!(
        now_due.claims.iter().map(|claim| claim.token.credential_id.as_str()).collect::<Vec<_>>(),
        ["dead"]
    );
    let soon_due = home.writer.claim_due(due(T0 + 90_000, &[("shop", 5)])).await.unwrap();
    let mut soon: Vec<_> = soon_due.claims.iter().map(|claim| claim.token.credential_id.as_str()).collect();
    soon.sort_unstable();
    assert_eq!(soon, ["after", "before"]);
    assert_eq!(soon_due.overdue, vec![now_due.claims[0].token.clone()]);

    home.writer.set_back("host-a", T0 + 90_000, Some(HOUR)).await.unwrap();
    let overdue = home.writer.claim_due(due(T0 + 90_000 + LEASE, &[("shop", 5)])).await.unwrap().overdue;
    assert!(overdue.contains(&claims["open"].token), "{overdue:?}");
}

#[tokio::test]
async fn by_how_much_the_clock_was_ahead_need_not_be_known() {
    let home = Home::on_file(Scratch::on_file(), None);
    home.add("shop-1", "shop").await;
    let claim = home.claim("shop-1", Action::Validate).await;
    let mut end = end_of(&claim);
    Arc::make_mut(&mut end.report).finished_at = iso8601(T0 + 3_600_000);
    end.monitor.next_due_at = Some(T0 + 3_600_000 + 90_000);
    home.writer.finish(end).await.unwrap();
    assert_eq!(home.writer.set_back("host-a", T0, None).await.unwrap(), 1);
    let claims = home.writer.claim_due(due(T0, &[("shop", 5)])).await.unwrap();
    assert_eq!(claims.next_due, Some(T0 + 90_000));
}

#[tokio::test]
async fn after_a_restart_the_journal_says_how_far_each_attempt_came() {
    let home = Home::new();
    for id in ["claimed", "rotating", "captured", "ended"] {
        home.add(id, "shop").await;
    }
    home.claim("claimed", Action::Validate).await;
    let class = CommitClass::BurnOnIssue;
    for id in ["rotating", "captured"] {
        let claim = home.claim(id, Action::Rotate).await;
        home.writer.journal_rotation(&claim.token, "refresh", class, 1).await.unwrap();
        if id == "captured" {
            home.writer.store_pending(&claim.token, 2, vec![key("token", b"new")]).await.unwrap();
        }
    }
    let ended = home.claim("ended", Action::Validate).await;
    home.writer.finish(end_of(&ended)).await.unwrap();

    let home = home.restart();
    let claims = home.writer.reclaim_interrupted("host-b", T0 + LEASE).await.unwrap();
    let found: BTreeMap<_, _> =
        claims.iter().map(|claim| (claim.token.credential_id.as_str(), claim)).collect();
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), ["captured", "claimed", "rotating"]);

    let interrupted = |id: &str| found[id].interrupted.clone().unwrap();
    assert_eq!(interrupted("claimed").phase, Phase::Claimed);
    assert_eq!(interrupted("claimed").commit_class, None);
    assert_eq!(interrupted("rotating").phase, Phase::Rotating);
    assert_eq!(interrupted("rotating").commit_class, Some(class));
    assert_eq!(interrupted("rotating").method.as_deref(), Some("refresh"));
    assert_eq!(interrupted("rotating").from_generation, Some(1));
    assert_eq!(interrupted("captured").phase, Phase::Captured);
    assert_eq!(found["captured"].pending.as_ref().unwrap().keys, [key("token", b"new")]);
    assert_eq!(found["captured"].next_generation, 3);

    for claim in claims {
        home.writer.finish(end_of(&claim)).await.unwrap();
    }
    assert_eq!(home.rows("cookie_rotation_reports").await, 4);
    assert_eq!(home.rows("journal").await, 0);
}

#[tokio::test]
async fn a_later_capture_replaces_the_whole_pending_jar_and_another_generation_is_refused() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    let claim = home.claim("shop-1", Action::Rotate).await;
    let store = |generation, keys| home.writer.store_pending(&claim.token, generation, keys);
    store(2, vec![key("session", b"first"), key("gone", b"x")]).await.unwrap();
    let whole = vec![key("session", b"second"), key("token", b"t")];
    store(2, whole.clone()).await.unwrap();
    store(2, whole.clone()).await.unwrap();
    let error = store(7, whole.clone()).await;
    assert!(matches!(error, Err(WriteError::Stale { expected: 3, .. })), "{error:?}");

    let claims = home.writer.reclaim_interrupted("host-a", T0 + LEASE).await.unwrap();
    let pending = claims[0].pending.as_ref().unwrap();
    assert_eq!((pending.generation, &pending.keys), (2, &whole));
    let current = claims[0].current.as_ref().unwrap();
    assert_eq!(current.keys, credential("shop-1", "shop").keys, "current is untouched");
}

#[tokio::test]
async fn a_promotion_moves_each_generation_one_on_and_keeps_three() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    for generation in 2..=7 {
        let claim = home.claim("shop-1", Action::Rotate).await;
        assert_eq!(claim.next_generation, generation);
        let new = vec![key("session", format!("sealed {generation}").as_bytes())];
        home.writer.store_pending(&claim.token, generation, new).await.unwrap();
        let end = Finish {
            generations: GenerationChange::Promote(generation),
            expiry_updates: vec![(String::from("session"), Some(T0 + u64::from(generation)))],
            identity: Some(format!("account-{generation}")),
            ..end_of(&claim)
        };
        home.writer.finish(end).await.unwrap();
    }
    let reader = home.reader();
    let generations = reader.generations("shop-1").unwrap();
    let states: Vec<_> = generations.iter().map(|row| (row.generation, row.state.as_str())).collect();
    assert_eq!(states, [(7, "current"), (6, "previous"), (5, "previous"), (4, "previous")]);
    assert!(generations.iter().all(|row| row.keys.len() == 1));
    assert_eq!(home.rows("generation_keys").await, 4);

    let row = reader.credential("shop-1").unwrap().unwrap();
    assert_eq!((row.current_generation, row.pending_generation), (Some(7), None));
    assert_eq!(row.identity.as_deref(), Some("account-2"), "the first one seen is pinned");
    assert_eq!(row.rotated_at, generations[0].created_at);
    let sealed = reader.sealed_generation("shop-1").unwrap().unwrap();
    assert_eq!(sealed.keys[0].sealed, b"sealed 7");
    assert_eq!(sealed.keys[0].expires, Some(T0 + 7));
}

#[tokio::test]
async fn a_dropped_generation_loses_its_keys_and_a_kept_one_steps_back_before_a_newer() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    let attempt = |change: GenerationChange, capture: Option<u32>| {
        let home = &home;
        async move {
            let claim = home.claim("shop-1", Action::Rotate).await;
            if let Some(generation) = capture {
                let keys = vec![key("session", b"captured")];
                home.writer.store_pending(&claim.token, generation, keys).await.unwrap();
            }
            home.writer.finish(Finish { generations: change, ..end_of(&claim) }).await.unwrap();
        }
    };
    attempt(GenerationChange::Drop(2), Some(2)).await;
    attempt(GenerationChange::Keep, Some(3)).await;
    attempt(GenerationChange::Keep, None).await;
    attempt(GenerationChange::Promote(4), Some(4)).await;
    let generations = home.reader().generations("shop-1").unwrap();
    let seen: Vec<_> =
        generations.iter().map(|row| (row.generation, row.state.as_str(), row.keys.len())).collect();
    assert_eq!(seen, [(4, "current", 1), (3, "previous", 1), (2, "dropped", 0), (1, "previous", 2)]);
}

#[tokio::test]
async fn a_promotion_of_what_is_not_pending_changes_nothing() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    let claim = home.claim("shop-1", Action::Rotate).await;
    for change in [GenerationChange::Promote(2), GenerationChange::Drop(1), GenerationChange::Keep] {
        let error = home.writer.finish(Finish { generations: change, ..end_of(&claim) }).await;
        assert!(matches!(error, Err(WriteError::Invalid(_))), "{error:?}");
    }
    let mut of_another = end_of(&claim);
    Arc::make_mut(&mut of_another.report).attempt_number = 8;
    assert!(matches!(home.writer.finish(of_another).await, Err(WriteError::Invalid(_))));
    assert_eq!(home.rows("cookie_rotation_reports").await, 0);
    assert_eq!(home.rows("journal").await, 1, "the attempt is still open");
    home.writer.finish(end_of(&claim)).await.unwrap();
}

#[tokio::test]
async fn an_end_that_fails_at_its_last_write_leaves_nothing_half_done() {
    let home = Home::on_file(Scratch::on_file(), None);
    home.add("shop-1", "shop").await;
    let claim = home.claim("shop-1", Action::Rotate).await;
    home.writer.store_pending(&claim.token, 2, vec![key("session", b"new")]).await.unwrap();
    let end = || Finish { generations: GenerationChange::Promote(2), ..end_of(&claim) };

    home.execute(
        "CREATE TEMP TRIGGER broken BEFORE UPDATE ON cookie_rotation_monitor
         BEGIN SELECT RAISE(ABORT, 'injected'); END",
    )
    .await;
    let error = home.writer.finish(end()).await;
    assert!(matches!(error, Err(WriteError::Sql(_))), "{error:?}");
    let row = home.reader().credential("shop-1").unwrap().unwrap();
    assert_eq!((row.current_generation, row.pending_generation), (Some(1), Some(2)));
    assert_eq!(row.open_attempt.unwrap().phase, Phase::Captured);
    assert_eq!(home.rows("cookie_rotation_reports").await, 0);

    home.execute("DROP TRIGGER broken").await;
    home.writer.finish(end()).await.unwrap();
    let row = home.reader().credential("shop-1").unwrap().unwrap();
    assert_eq!((row.current_generation, row.pending_generation), (Some(2), None));
}

#[tokio::test]
async fn a_failing_command_does_not_touch_its_neighbours_in_the_batch() {
    let home = Home::new();
    let add = |number| home.writer.add_credential(credential(&format!("c{}", number / 2), "shop"));
    let answers = home.together((0..40).map(add)).await;
    let refused = answers.iter().filter(|answer| matches!(answer, Err(WriteError::Duplicate { .. }))).count();
    assert_eq!((answers.iter().filter(|answer| answer.is_ok()).count(), refused), (20, 20));
    assert_eq!(home.rows("credentials").await, 20);
    assert_eq!(home.rows("generation_keys").await, 40);
}

#[tokio::test]
async fn pausing_stops_due_times_and_an_open_attempt_ends_without_a_next_one() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    let quotas = [("shop", 5)];
    home.writer.set_paused("shop-1", true, T0).await.unwrap();
    let claims = home.writer.claim_due(due(T0 + 1, &quotas)).await.unwrap();
    assert!(claims.claims.is_empty());
    assert_eq!(claims.next_due, None);

    home.writer.set_paused("shop-1", false, T0 + 5).await.unwrap();
    let claims = home.writer.claim_due(due(T0 + 5, &quotas)).await.unwrap();
    home.writer.set_paused("shop-1", true, T0).await.unwrap();
    home.writer.finish(end_of(&claims.claims[0])).await.unwrap();
    let row = home.reader().credential("shop-1").unwrap().unwrap();
    assert_eq!((row.paused, row.monitor.next_due_at), (true, None));

    home.writer.make_due("shop-1", Action::Rotate, T0 + 9).await.unwrap();
    let claims = home.writer.claim_due(due(T0 + 9, &quotas)).await.unwrap();
    assert_eq!(claims.claims[0].action, Action::Rotate);
    let error = home.writer.make_due("shop-1", Action::Rotate, T0 + 9).await;
    assert!(matches!(error, Err(WriteError::Busy { attempt: 2, .. })), "{error:?}");
}

#[tokio::test]
async fn an_import_replaces_the_current_generation_and_an_open_attempt_forbids_it() {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    let import = |generation| NewGeneration {
        credential_id: String::from("shop-1"),
        generation,
        keys: vec![key("session", b"imported")],
        expires: None,
        due: T0 + 50,
        action: Action::Validate,
        unpin_identity: true,
        restored_from: None,
        note: None,
    };
    let claim = home.claim("shop-1", Action::Rotate).await;
    let busy = home.writer.replace_generation(import(2)).await;
    assert!(matches!(busy, Err(WriteError::Busy { .. })), "{busy:?}");
    let busy = home.writer.remove_credential("shop-1").await;
    assert!(matches!(busy, Err(WriteError::Busy { .. })), "{busy:?}");
    home.writer.store_pending(&claim.token, 2, vec![key("session", b"unjudged")]).await.unwrap();
    let end = Finish {
        generations: GenerationChange::Keep,
        identity: Some(String::from("account")),
        ..end_of(&claim)
    };
    home.writer.finish(end).await.unwrap();

    let stale = home.writer.replace_generation(import(2)).await;
    assert!(matches!(stale, Err(WriteError::Stale { expected: 3, .. })), "{stale:?}");
    home.writer.replace_generation(import(3)).await.unwrap();
    let reader = home.reader();
    let row = reader.credential("shop-1").unwrap().unwrap();
    assert_eq!((row.current_generation, row.pending_generation), (Some(3), None));
    assert_eq!((row.identity, row.monitor.next_due_at), (None, Some(T0 + 50)));
    let states: Vec<_> = reader.generations("shop-1").unwrap().into_iter().map(|row| row.state).collect();
    assert_eq!(states, ["current", "previous", "previous"], "the unjudged one stays restorable");

    home.writer.remove_credential("shop-1").await.unwrap();
    assert_eq!(home.rows("generation_keys").await, 0);
    assert_eq!(home.rows("cookie_rotation_monitor").await, 0);
    assert_eq!(home.rows("cookie_rotation_reports").await, 1, "reports outlive their credential");
}

fn manifest(title: &str) -> Manifest {
    Manifest {
        service: String::from("shop"),
        title: title.to_owned(),
        version: String::from("1.2.3"),
        validate_url: String::from("{base_url}/me"),
        keys: vec![KeySpec {
            name: String::from("token"),
            location: Location::Token,
            required: true,
            reveal: false,
            help: String::new(),
        }],
        origins: vec![String::from("{base_url.origin}")],
        settings: Vec::new(),
        methods: Vec::new(),
        validate_interval: 300,
        max_age: Some(86_400),
        extras: Vec::new(),
    }
}

#[tokio::test]
async fn a_provider_row_stands_as_put_and_keeps_the_operators_cadence() {
    let home = Home::new();
    home.writer.put_provider(update("Shop"), None).await.unwrap();
    home.writer.set_provider_cadence("shop", Some(30)).await.unwrap();
    let waiting = PendingProvider {
        plugin_digest: String::from("d2"),
        manifest: manifest("Shop 2"),
        signer: Some(signer()),
        bytes: None,
    };
    home.writer.set_provider_pending("shop", None, Some(waiting), None).await.unwrap();
    let row = home.reader().provider("shop").unwrap().unwrap();
    assert_eq!(row.manifest, manifest("Shop"));
    assert_eq!(row.key_mapping, manifest("Shop").keys);
    assert_eq!((row.validate_interval_seconds, row.max_age_seconds), (300, Some(86_400)));
    let pending = row.pending.unwrap();
    assert_eq!((pending.manifest.title.as_str(), pending.signer), ("Shop 2", Some(signer())));

    let signed = ProviderUpdate { signer: Some(signer()), file: Some("s.wasm".into()), ..update("Shop 2") };
    home.writer.put_provider(signed, None).await.unwrap();
    let row = home.reader().providers().unwrap().remove(0);
    assert_eq!((row.title.as_str(), row.pending), ("Shop 2", None));
    assert_eq!((row.signer, row.file.as_deref()), (Some(signer()), Some("s.wasm")));
    assert_eq!(row.operator_validate_interval_seconds, Some(30));
    home.writer.remove_provider("shop").await.unwrap();
    let gone = home.writer.set_provider_pending("shop", None, None, None).await;
    assert!(matches!(gone, Err(WriteError::NotFound { .. })), "{gone:?}");
}

fn update(title: &str) -> ProviderUpdate {
    ProviderUpdate {
        manifest: manifest(title),
        plugin_digest: String::from("d1"),
        permissions_json: String::from("{}"),
        state: String::from("active"),
        signer: None,
        file: None,
        only_without_credentials: false,
        bytes: None,
        seen: None,
    }
}

fn signer() -> Signer {
    Signer {
        key_id: String::from("00000000000000A1"),
        public_key: String::from("a key"),
        name: Some(String::from("ann")),
        comment: None,
    }
}

fn said(action: &'static str, file: Option<&str>, why: &str) -> AuditEntry {
    AuditEntry {
        actor: Actor::Host,
        action,
        service: Some(String::from("shop")),
        file: file.map(str::to_owned),
        digest: None,
        signer: None,
        detail: serde_json::json!({ "reason": why }),
    }
}

fn actions(home: &Home) -> Vec<String> {
    let mut rows = home.reader().audit(None, 100).unwrap();
    rows.reverse();
    rows.into_iter().map(|row| row.action).collect()
}

#[tokio::test]
async fn a_decision_is_written_down_with_what_it_decides_or_not_at_all() {
    let home = Home::new();
    let note = || Some(said("first-seen", None, ""));
    home.writer.put_provider(update("Shop"), note()).await.unwrap();
    assert_eq!(actions(&home), ["first-seen"]);
    home.add("a", "shop").await;
    assert_eq!(actions(&home), ["first-seen", "pinned"]);
    // The second pins nothing more.
    home.add("b", "shop").await;
    let compared_with_nothing = ProviderUpdate { only_without_credentials: true, ..update("Shop 2") };
    let late = home.writer.put_provider(compared_with_nothing, note()).await;
    assert!(matches!(late, Err(WriteError::Pinned { .. })), "{late:?}");
    assert_eq!(home.reader().provider("shop").unwrap().unwrap().title, "Shop");
    let nobody = home.writer.set_provider_state("bank", None, "removed", said("removed", None, "")).await;
    assert!(matches!(nobody, Err(WriteError::NotFound { .. })), "{nobody:?}");
    assert_eq!(actions(&home), ["first-seen", "pinned"]);
}

#[tokio::test]
async fn a_credential_for_a_plugin_that_was_replaced_meanwhile_is_refused() {
    let home = Home::new();
    home.writer.put_provider(update("Shop"), None).await.unwrap();
    let of = |digest: &str| NewCredential { plugin_digest: Some(digest.into()), ..credential("a", "shop") };
    let late = home.writer.add_credential(of("d0")).await;
    assert!(matches!(late, Err(WriteError::Replaced { .. })), "{late:?}");
    assert_eq!(actions(&home), [""; 0]);
    home.writer.add_credential(of("d1")).await.unwrap();
    assert_eq!(actions(&home), ["pinned"]);
}

/// A version of `shop`, decided on a row that was read.
fn version(digest: &str, seen: u32) -> ProviderUpdate {
    let (bytes, seen) = (Some(digest.as_bytes().into()), Some(seen));
    ProviderUpdate { plugin_digest: digest.into(), bytes, seen, ..update(digest) }
}

fn waiting(digest: &str) -> PendingProvider {
    let bytes = Some(digest.as_bytes().into());
    PendingProvider { plugin_digest: digest.into(), manifest: manifest(digest), signer: None, bytes }
}

#[tokio::test]
async fn what_was_decided_on_an_older_row_of_a_provider_is_refused() {
    let home = Home::new();
    let revision = || home.reader().provider("shop").unwrap().unwrap().revision;
    home.writer.put_provider(version("d1", 0), None).await.unwrap();
    let seen = revision();
    home.writer.set_provider_pending("shop", Some(seen), Some(waiting("d2")), None).await.unwrap();
    assert!(revision() > seen);
    let note = || said("removed", None, "");
    let late = [
        home.writer.put_provider(version("d3", 0), None).await,
        home.writer.put_provider(version("d3", seen), Some(note())).await,
        home.writer.set_provider_pending("shop", Some(seen), None, Some(note())).await,
        home.writer.set_provider_state("shop", Some(seen), "removed", note()).await,
    ];
    for refused in late {
        assert!(matches!(refused, Err(WriteError::Changed { .. })), "{refused:?}");
    }
    let row = home.reader().provider("shop").unwrap().unwrap();
    assert_eq!((row.plugin_digest.as_str(), row.state.as_str()), ("d1", "active"));
    assert_eq!(row.pending.map(|pending| pending.plugin_digest).as_deref(), Some("d2"));
    assert_eq!(actions(&home), [""; 0]);
    home.writer.put_provider(version("d3", revision()), None).await.unwrap();
    // What the operator chose about it is no decision about the plugin.
    let seen = revision();
    home.writer.set_provider_paused("shop", true).await.unwrap();
    home.writer.set_provider_state("shop", Some(seen), "removed", note()).await.unwrap();
}

#[tokio::test]
async fn of_versions_that_come_at_once_one_stands_and_the_others_are_refused() {
    let home = Home::new();
    for round in 0..10 {
        let seen = home.reader().provider("shop").unwrap().map_or(0, |row| row.revision);
        let digests: Vec<String> = (0..8).map(|number| format!("d-{round}-{number}")).collect();
        let puts = digests.iter().map(|digest| home.writer.put_provider(version(digest, seen), None));
        let stand: Vec<_> = futures_util::future::join_all(puts).await.into_iter().zip(&digests).collect();
        let stand: Vec<_> = stand.iter().filter(|(put, _)| put.is_ok()).map(|(_, digest)| *digest).collect();
        let row = home.reader().provider("shop").unwrap().unwrap();
        assert_eq!(stand, [&row.plugin_digest]);
        assert_eq!(home.reader().kept_plugins().unwrap(), [row.plugin_digest]);
    }
}

#[tokio::test]
async fn the_first_credential_pins_what_was_shown_or_another_version_stands_never_both() {
    let home = Home::new();
    for round in 0..10 {
        let seen = home.reader().provider("shop").unwrap().map_or(0, |row| row.revision);
        home.writer.put_provider(version("d1", seen), None).await.unwrap();
        let wider = ProviderUpdate { only_without_credentials: true, ..version("d2", seen + 1) };
        let first = NewCredential { plugin_digest: Some("d1".into()), ..credential("a", "shop") };
        let (put, added) =
            tokio::join!(home.writer.put_provider(wider, None), home.writer.add_credential(first));
        match (&put, &added) {
            (Ok(()), Err(WriteError::Replaced { .. })) => {}
            (Err(WriteError::Pinned { .. }), Ok(())) => home.writer.remove_credential("a").await.unwrap(),
            neither => panic!("round {round}: {neither:?}"),
        }
    }
}

#[tokio::test]
async fn the_store_has_exactly_the_plugins_that_a_provider_names() {
    let home = Home::new();
    let kept = || {
        let mut kept = home.reader().kept_plugins().unwrap();
        kept.sort();
        kept
    };
    let writer = &home.writer;
    writer.put_provider(version("d1", 0), None).await.unwrap();
    writer.set_provider_pending("shop", Some(1), Some(waiting("d2")), None).await.unwrap();
    assert_eq!(kept(), ["d1", "d2"]);
    assert_eq!(home.reader().plugin_bytes("d2").unwrap().as_deref(), Some(&b"d2"[..]));
    writer.set_provider_pending("shop", Some(2), Some(waiting("d3")), None).await.unwrap();
    assert_eq!(kept(), ["d1", "d3"]);
    // Approved by who has no file of it.
    writer.put_provider(ProviderUpdate { bytes: None, ..version("d3", 3) }, None).await.unwrap();
    assert_eq!(kept(), ["d3"]);
    // One that can return is named.
    writer.set_provider_state("shop", Some(4), "removed", said("removed", None, "")).await.unwrap();
    assert_eq!(kept(), ["d3"]);
    writer.keep_plugin("shop", "d9", b"d9"[..].into()).await.unwrap();
    writer.keep_plugin("bank", "d3", b"d3"[..].into()).await.unwrap();
    assert_eq!(kept(), ["d3"], "what nobody names isn't kept");
    let huge = vec![0; usize::try_from(crate::limits::PLUGIN_BYTES).unwrap() + 1];
    let refused = writer.put_provider(ProviderUpdate { bytes: Some(huge.into()), ..version("d4", 5) }, None);
    assert!(matches!(refused.await, Err(WriteError::Invalid(_))));
    writer.remove_provider("shop").await.unwrap();
    assert_eq!(kept(), [""; 0]);
}

#[tokio::test]
async fn a_named_plugin_that_the_store_lacks_is_put_there_by_who_has_it() {
    let home = Home::new();
    home.writer.put_provider(ProviderUpdate { bytes: None, ..version("d1", 0) }, None).await.unwrap();
    assert_eq!(home.reader().plugin_bytes("d1").unwrap(), None);
    home.writer.keep_plugin("shop", "d1", b"d1"[..].into()).await.unwrap();
    assert_eq!(home.reader().plugin_bytes("d1").unwrap().as_deref(), Some(&b"d1"[..]));
    assert_eq!(home.reader().provider("shop").unwrap().unwrap().revision, 1, "nothing was decided");
}

#[tokio::test]
async fn what_repeats_the_newest_word_about_a_file_is_not_written_again() {
    let home = Home::new();
    let note = async |entries: &[AuditEntry]| home.writer.note(entries.to_vec()).await.unwrap();
    let (broken, worse) =
        (said("refused", Some("a.wasm"), "cut short"), said("refused", Some("a.wasm"), "x"));
    note(&[broken.clone(), said("refused", Some("b.wasm"), "cut short")]).await;
    note(&[broken.clone(), broken.clone()]).await;
    assert_eq!(actions(&home).len(), 2);
    note(&[worse.clone(), broken.clone(), worse]).await;
    assert_eq!(actions(&home).len(), 5, "another reason is another decision");
    // What has no file is never a repetition.
    note(&[said("unparked", None, ""), said("unparked", None, "")]).await;
    assert_eq!(actions(&home).len(), 7);
    assert_eq!(home.reader().audit(Some("shop"), 2).unwrap().len(), 2);
    assert_eq!(home.reader().audit(Some("bank"), 2).unwrap(), []);
}

#[tokio::test]
async fn a_second_key_under_a_trusted_id_is_refused() {
    let home = Home::new();
    let key = |public: &str, name: &str| TrustedKey {
        key_id: String::from("00000000000000A1"),
        public_key: public.to_owned(),
        name: Some(name.to_owned()),
        added_at: 0,
    };
    let trusted = || said("trusted", None, "");
    let first = home.writer.trust_key(key("one", "ann"), trusted()).await.unwrap();
    assert!(first.added_at > 0);
    assert_eq!(home.writer.trust_key(key("one", "ann"), trusted()).await.unwrap(), first);
    let other = home.writer.trust_key(key("two", "ann"), trusted()).await;
    assert!(matches!(&other, Err(WriteError::Invalid(why)) if why.contains("another key")), "{other:?}");
    let renamed = home.writer.trust_key(key("one", "ann of shop"), trusted()).await.unwrap();
    assert_eq!(renamed, TrustedKey { name: Some("ann of shop".into()), ..first });
    assert_eq!(home.reader().trusted_keys().unwrap(), [renamed]);
    home.writer.distrust_key("00000000000000A1").await.unwrap();
    let again = home.writer.distrust_key("00000000000000A1").await;
    assert!(matches!(again, Err(WriteError::NotFound { .. })), "{again:?}");
    assert_eq!(actions(&home), ["trusted", "trusted", "distrusted"]);
}

#[tokio::test]
async fn reports_are_found_by_credential_service_status_time_and_place() {
    let home = Home::new();
    for (id, service) in [("a", "shop"), ("b", "bank")] {
        home.add(id, service).await;
        for number in 0..3 {
            let claim = home.claim(id, Action::Validate).await;
            let mut end = end_of(&claim);
            if number == 2 {
                Arc::make_mut(&mut end.report).status = Status::Unreachable;
            }
            home.writer.finish(end).await.unwrap();
        }
    }
    let reader = home.reader();
    let ids = |filter: ReportFilter| -> Vec<i64> {
        reader.reports(&filter).unwrap().into_iter().map(|row| row.id).collect()
    };
    let any = ReportFilter::default;
    assert_eq!(ids(any()), [6, 5, 4, 3, 2, 1]);
    assert_eq!(ids(ReportFilter { limit: 2, ..any() }), [6, 5]);
    assert_eq!(ids(ReportFilter { credential_id: Some("a".into()), ..any() }), [3, 2, 1]);
    assert_eq!(ids(ReportFilter { service: Some("bank".into()), ..any() }), [6, 5, 4]);
    assert_eq!(ids(ReportFilter { status: Some(Status::Unreachable), ..any() }), [6, 3]);
    assert_eq!(ids(ReportFilter { after_id: Some(4), ..any() }), [5, 6]);
    assert_eq!(ids(ReportFilter { since: Some(T0), ..any() }).len(), 6);
    assert_eq!(ids(ReportFilter { since: Some(now() + 3_600_000), ..any() }).len(), 0);
    assert_eq!(reader.last_report_id().unwrap(), 6);
    let expected = Counts {
        external: 0,
        credentials: 2,
        paused: 0,
        open_attempts: 0,
        by_status: BTreeMap::from([(String::from("unreachable"), 2)]),
        providers: 0,
        reports: 6,
    };
    assert_eq!(reader.counts().unwrap(), expected);
    assert_eq!(reader.glance(T0, T0).unwrap().counts, expected);
    let shown = serde_json::to_value(&reader.reports(&any()).unwrap()[0]).unwrap();
    assert_eq!(shown["cookieId"], "b");
    assert_eq!(shown["attemptNumber"], 3);
}

#[tokio::test]
async fn a_reader_works_beside_a_writer_after_it_and_after_its_death() {
    let home = Home::on_file(Scratch::on_file(), None);
    let beside = home.reader();
    home.add("shop-1", "shop").await;
    assert_eq!(beside.credentials(None).unwrap().len(), 1);

    // A killed writer leaves the file and its log as they are at that instant.
    let dead = TempDir::new().unwrap();
    for name in ["keywheel.db", "keywheel.db-wal"] {
        fs::copy(home.scratch.folder().join(name), dead.path().join(name)).unwrap();
    }
    let after_death = Reader::open(dead.path().join("keywheel.db")).unwrap();
    assert_eq!(after_death.credentials(Some("shop")).unwrap().len(), 1);

    drop(beside);
    let scratch = home.close();
    assert!(!scratch.folder().join("keywheel.db-wal").exists(), "closing folds the log in");
    let after = scratch.reader();
    assert_eq!(after.credentials(Some("bank")).unwrap().len(), 0);
    assert_eq!(after.credentials(Some("shop")).unwrap().len(), 1);
}

#[tokio::test]
async fn the_lock_is_held_until_the_file_is_closed() {
    let home = Home::new();
    let lock = home.scratch.folder().join("lock");
    let handle = home.writer.clone();
    assert!(matches!(HomeLock::acquire(&lock), Err(DbError::Locked { .. })));
    drop(handle);
    let scratch = home.close();
    HomeLock::acquire(&scratch.folder().join("lock")).unwrap();
}

#[tokio::test]
async fn an_acknowledgement_means_fsync_and_a_failed_fsync_acknowledges_nothing() {
    sync_probe::register();
    let home = Home::on_file(Scratch::on_file(), Some(sync_probe::NAME));

    let before = sync_probe::syncs();
    for number in 0..25 {
        home.add(&format!("alone-{number}"), "shop").await;
        assert!(sync_probe::syncs() > before + number, "commit {number} was synced");
    }

    let before = sync_probe::syncs();
    let add = |number| home.writer.add_credential(credential(&format!("together-{number}"), "shop"));
    let answers = home.together((0..200).map(add)).await;
    assert!(answers.iter().all(Result::is_ok));
    let shared = sync_probe::syncs() - before;
    assert!((1..20).contains(&shared), "200 commands shared {shared} fsyncs");

    // A short trouble is survived: the batch is tried again.
    sync_probe::fail_next(TRIES - 1);
    home.add("retried", "shop").await;

    // A lasting one is said, nothing is kept of the command, and afterwards all is well.
    sync_probe::fail_next(TRIES);
    let error = home.writer.add_credential(credential("refused", "shop")).await;
    assert!(matches!(error, Err(WriteError::Unavailable { tries: TRIES, .. })), "{error:?}");
    assert_eq!(home.rows("credentials").await, 226);
    home.add("refused", "shop").await;
    let scratch = home.close();
    let reader = scratch.reader();
    assert_eq!(reader.credentials(None).unwrap().len(), 227);
}

#[tokio::test]
async fn a_full_disk_stops_writes_not_reads_and_nothing_acknowledged_is_lost() {
    let home = Home::on_file(Scratch::on_file(), None);
    // As full as it is now; `max_page_count` never goes below the file's size.
    home.execute("PRAGMA max_page_count = 1").await;
    let mut kept = Vec::new();
    let refused = loop {
        let id = format!("shop-{}", kept.len());
        match home.writer.add_credential(credential(&id, "shop")).await {
            Ok(()) => kept.push(id),
            Err(error) => break error,
        }
        assert!(kept.len() < 1_000, "the disk never filled");
    };
    assert!(matches!(refused, WriteError::Unavailable { .. }), "{refused:?}");
    assert!(refused.to_string().contains("hint: "), "{refused}");
    let stored = || -> HashSet<String> {
        let rows = home.reader().credentials(None).unwrap();
        rows.into_iter().map(|row| row.credential_id).collect()
    };
    assert_eq!(stored(), kept.iter().cloned().collect());

    home.execute("PRAGMA max_page_count = 1000000").await;
    home.add("after", "shop").await;
    kept.push(String::from("after"));
    assert_eq!(stored(), kept.into_iter().collect());
}

#[tokio::test]
async fn another_process_that_holds_the_write_lock_is_reported_and_outlasted() {
    let home = Home::on_file(Scratch::on_file(), None);
    let other = open_for_writing(&home.scratch.folder().join("keywheel.db"), None).unwrap();
    home.execute("PRAGMA busy_timeout = 0").await;
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = home.writer.add_credential(credential("shop-1", "shop")).await;
    assert!(matches!(error, Err(WriteError::Unavailable { .. })), "{error:?}");
    other.execute_batch("COMMIT").unwrap();
    home.add("shop-1", "shop").await;
}

#[tokio::test]
async fn no_secret_is_in_any_file_of_the_home() {
    let home = Home::on_file(Scratch::on_file(), None);
    let vault = Vault::from_bytes(&[7; 32]).unwrap();
    let marker = home.writer.remember("vault_check", vault.marker().unwrap()).await.unwrap();
    let needle = b"plain-value-that-must-not-be-on-disk";
    let secret = Secret::new(*needle);
    let sealed = |generation| {
        let place = Place { credential: "shop-1", generation, key: "session" };
        SealedKey {
            fingerprint: vault.fingerprint(&secret),
            ..key("session", &vault.seal(place, &secret).unwrap())
        }
    };
    let new = NewCredential { keys: vec![sealed(1)], ..credential("shop-1", "shop") };
    home.writer.add_credential(new).await.unwrap();
    let claim = home.claim("shop-1", Action::Rotate).await;
    home.writer.store_pending(&claim.token, 2, vec![sealed(2)]).await.unwrap();
    let end = Finish { generations: GenerationChange::Promote(2), ..end_of(&claim) };
    home.writer.finish(end).await.unwrap();

    let search = |folder: &std::path::Path| {
        let mut files = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(needle.len()).any(|window| window == needle));
            files += 1;
        }
        files
    };
    assert!(search(home.scratch.folder()) >= 4, "database, log, index and lock were searched");

    // The first marker stands, and tells a wrong master key before anything is opened.
    let other = Vault::from_bytes(&[8; 32]).unwrap();
    let stands = home.writer.remember("vault_check", other.marker().unwrap()).await.unwrap();
    assert_eq!(stands, marker);
    assert_eq!(home.reader().installation("vault_check").unwrap(), Some(marker));
    assert!(other.check_marker(&stands).is_err());
    let stored = home.reader().sealed_generation("shop-1").unwrap().unwrap();
    let place = Place { credential: "shop-1", generation: 2, key: "session" };
    assert_eq!(vault.open_sealed(place, &stored.keys[0].sealed).unwrap(), secret);
    assert!(other.open_sealed(place, &stored.keys[0].sealed).is_err());
    search(home.close().folder());
}

async fn due_of(home: &Home, id: &str) -> (Option<Millis>, Option<String>) {
    let row = home.reader().credential(id).unwrap().unwrap();
    (row.monitor.next_due_at, row.monitor.next_reason)
}

#[tokio::test]
async fn what_the_gate_sends_away_comes_back_later_and_leaves_its_place_to_others() {
    let home = Home::new();
    for id in ["a1", "a2", "a3", "b1", "b2"] {
        home.add(id, "shop").await;
    }
    let gate = Gate::new(|due| match due.credential_id.starts_with('a') {
        true => Passage::Wait { until: T0 + 5_000, why: String::from("not yet") },
        false => Passage::Go(Action::Rotate),
    });
    let claims = home.writer.claim_due(ClaimDue { gate, ..due(T0, &[("shop", 2)]) }).await.unwrap();
    let ids: Vec<_> = claims.claims.iter().map(|claim| claim.token.credential_id.as_str()).collect();
    assert_eq!(ids, ["b1", "b2"]);
    assert!(claims.claims.iter().all(|claim| claim.action == Action::Rotate), "for what the gate said");
    assert_eq!(claims.next_due, Some(T0 + 5_000));
    for id in ["a1", "a2", "a3"] {
        assert_eq!(due_of(&home, id).await, (Some(T0 + 5_000), Some(String::from("not yet"))));
    }
    let later = home.writer.claim_due(due(T0 + 5_000, &[("shop", 9)])).await.unwrap();
    assert_eq!(later.claims.len(), 3, "nobody is lost");
}

#[tokio::test]
async fn a_gate_that_sends_everybody_back_to_now_still_ends() {
    let home = Home::new();
    home.add("a", "shop").await;
    let gate = Gate::new(|_| Passage::Wait { until: 0, why: String::new() });
    let claims = home.writer.claim_due(ClaimDue { gate, ..due(T0, &[("shop", 2)]) }).await.unwrap();
    assert_eq!((claims.claims.len(), claims.next_due), (0, Some(T0 + 1)));
}

#[tokio::test]
async fn only_what_nobody_claimed_is_overdue_and_put_off() {
    let home = Home::new();
    home.add("idle", "shop").await;
    home.add("busy", "shop").await;
    home.add("paused", "shop").await;
    home.add("elsewhere", "bank").await;
    home.writer.set_paused("paused", true, T0).await.unwrap();
    let busy =
        home.writer.claim_one("busy", Action::Validate, "host-a", T0, T0 + LEASE, false).await.unwrap();
    let overdue = home.writer.overdue("shop", T0 + 2 * LEASE).await.unwrap();
    assert_eq!(overdue.len(), 1, "{overdue:?}");
    let rows = vec![(overdue[0].credential_row, T0 + 7), (busy.token.credential_row, T0 + 7)];
    home.writer.put_off(rows, "in turn").await.unwrap();
    assert_eq!(due_of(&home, "idle").await, (Some(T0 + 7), Some(String::from("in turn"))));
    assert_eq!(due_of(&home, "busy").await.0, Some(T0 + LEASE));
    assert_eq!(due_of(&home, "paused").await, (None, Some(String::from("paused"))));
}

#[tokio::test]
async fn a_changed_schedule_is_kept_and_looked_at_once() {
    let home = Home::new();
    home.add("a", "shop").await;
    let change = ScheduleChange {
        validate_interval: Some(None),
        idle_limit: Some(Some(1_200)),
        quiet: Some(vec![String::from("22:00-06:00 UTC")]),
        ..ScheduleChange::default()
    };
    home.writer.set_schedule("a", change).await.unwrap();
    let claim = home.writer.claim_one("a", Action::Validate, "host-a", T0, T0 + LEASE, false).await.unwrap();
    assert_eq!((claim.validate_interval_override, claim.idle_limit_override), (None, Some(1_200)));
    assert_eq!(claim.quiet, ["22:00-06:00 UTC"]);
    home.writer.finish(end_of(&claim)).await.unwrap();
    assert_eq!(due_of(&home, "a").await, (Some(T0 + 90_000), Some(String::from("cadence"))));
    let none = ScheduleChange { quiet: Some(Vec::new()), ..ScheduleChange::default() };
    home.writer.set_schedule("a", none).await.unwrap();
    let row = home.reader().credential("a").unwrap().unwrap();
    assert_eq!((row.quiet, row.idle_limit_seconds), (Vec::new(), Some(1_200)));
    assert!(matches!(
        home.writer.set_schedule("nobody", ScheduleChange::default()).await,
        Err(WriteError::NotFound { .. })
    ));
}

#[path = "late_tests.rs"]
mod late;
