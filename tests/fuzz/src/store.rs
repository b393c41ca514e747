//! Text on its way through SQL: whatever ids, names, settings and messages hold, what went in
//! through the writer comes out of the queries, and nothing else changes.

use std::cell::RefCell;
use std::collections::BTreeMap;

use keywheel::db::queries::ReportFilter;
use keywheel::db::writer::{Finish, GenerationChange, MonitorUpdate, NewCredential, WriterThread};
use keywheel::db::{Action, HomeLock, Reader, SealedKey, Writer};
use keywheel::provider::CommitClass;
use keywheel::report::{Report, Status, iso8601};

use crate::{read, write};

/// Ids (credential, profile, service), pairs, hosts, method, account, keys, message.
type Input = (
    (String, Option<String>, String),
    Vec<(String, String)>,
    Vec<String>,
    Option<String>,
    Option<String>,
    Vec<(String, Vec<u8>, String)>,
    Option<String>,
);

const NOW: u64 = 1_700_000_000_000;
/// A credential that stands beside every other and must not change.
const WITNESS: &str = "witness";
/// Reports stay when their credential goes; past this many a new file is faster.
const USES: u32 = 4_096;

struct Database {
    writer: Writer,
    reader: Reader,
    _thread: WriterThread,
    _folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    uses: u32,
}

thread_local! {
    static DATABASE: RefCell<Option<Database>> = const { RefCell::new(None) };
}

fn open() -> Database {
    let folder = tempfile::tempdir().expect("a folder");
    let lock = HomeLock::acquire(&folder.path().join("lock")).expect("a lock");
    let path = folder.path().join("keywheel.db");
    let (writer, thread) = Writer::start(&path, lock).expect("a writer");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let witness =
        credential(((WITNESS.into(), None, "forge".into()), vec![], vec![], None, None, vec![], None));
    runtime.block_on(writer.add_credential(witness)).expect("the witness");
    let reader = Reader::open(&path).expect("a reader");
    Database { writer, reader, _thread: thread, _folder: folder, runtime, uses: 0 }
}

fn credential(input: Input) -> NewCredential {
    let ((credential_id, profile_id, service), settings, private_hosts, method, identity, keys, _) = input;
    NewCredential {
        credential_id,
        profile_id,
        service,
        plugin_digest: None,
        settings,
        private_hosts,
        method,
        validate_interval: None,
        max_age: None,
        idle_limit: None,
        quiet: Vec::new(),
        identity,
        keys: keys
            .into_iter()
            .map(|(name, sealed, fingerprint)| SealedKey {
                name,
                sealed,
                fingerprint,
                expires: Some(NOW),
                cookie: None,
            })
            .collect(),
        expires: None,
        first_due: NOW,
        first_action: Action::Validate,
    }
}

pub fn run(input: &[u8]) {
    let Some(input) = read::<Input>(input) else { return };
    DATABASE.with_borrow_mut(|kept| {
        if kept.as_ref().is_none_or(|database| database.uses >= USES) {
            *kept = Some(open());
        }
        let database = kept.as_mut().expect("it was just opened");
        database.uses += 1;
        database.runtime.block_on(goes_in_and_comes_out(database, input));
    });
}

async fn goes_in_and_comes_out(database: &Database, input: Input) {
    let Database { writer, reader, uses, .. } = database;
    let new = credential(input.clone());
    let id = new.credential_id.as_str();
    let before = reader.credential(WITNESS).expect("readable").expect("the witness");
    if let Err(error) = writer.add_credential(new.clone()).await {
        // The witness again, or one key twice: refused whole.
        assert!(!error.to_string().is_empty());
        assert!(id == WITNESS || reader.credential(id).expect("readable").is_none(), "{id:?} is half there");
        return;
    }
    let row = reader.credential(id).expect("readable").expect("what was added");
    assert_eq!((row.credential_id.as_str(), &row.profile_id), (id, &new.profile_id));
    assert_eq!((&row.service, &row.method, &row.identity), (&new.service, &new.method, &new.identity));
    assert_eq!(row.private_hosts, new.private_hosts);
    assert_eq!(row.settings, new.settings.iter().cloned().collect::<BTreeMap<_, _>>());
    let mut keys = new.keys.clone();
    keys.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    let stored = reader.sealed_generation(id).expect("readable").expect("generation 1");
    assert_eq!(stored.keys, keys);

    let claim =
        writer.claim_one(id, Action::Rotate, id, NOW, NOW + 1, true).await.expect("nobody else has it");
    let settings: Vec<(String, String)> =
        serde_json::from_str(&claim.settings_json).expect("as it was written");
    assert_eq!(settings, new.settings);
    let method = new.method.as_deref().unwrap_or(id);
    writer.journal_rotation(&claim.token, method, CommitClass::Grace, 1).await.expect("the claim holds");
    writer.store_pending(&claim.token, 2, keys.clone()).await.expect("the claim holds");
    let message = input.6;
    let report = Report {
        cookie_id: id.to_owned(),
        profile_id: new.profile_id.clone(),
        service: new.service.clone(),
        validate_url: new.service.clone(),
        cookie_keys: keys.iter().map(|key| (key.name.clone(), key.fingerprint.clone())).collect(),
        status: Status::Success,
        message: message.clone(),
        // Each use of one file is another attempt, or the report would be a second delivery.
        started_at: iso8601(NOW + u64::from(*uses)),
        finished_at: iso8601(NOW),
        attempt_number: claim.attempt_number,
        meta: new.settings.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect(),
    };
    let end = Finish {
        token: claim.token,
        report: std::sync::Arc::new(report.clone()),
        verdict: method.to_owned(),
        monitor: MonitorUpdate {
            consecutive_failures: 0,
            expires_at: None,
            next_due_at: Some(NOW),
            next_action: Action::Validate,
            next_reason: String::new(),
            asked_until: None,
        },
        generations: GenerationChange::Promote(2),
        expiry_updates: vec![],
        identity: message.clone(),
        in_doubt: None,
    };
    let number = writer.finish(end).await.expect("the claim holds");
    let filter = ReportFilter {
        credential_id: Some(id.to_owned()),
        service: Some(new.service.clone()),
        ..ReportFilter::default()
    };
    let found = reader.reports(&filter).expect("readable");
    let found = found.iter().find(|row| row.id == number).expect("the report");
    assert_eq!(found.report, report);
    let listed = reader.credentials(Some(&new.service)).expect("readable");
    assert!(listed.iter().all(|row| row.service == new.service));
    assert!(listed.iter().any(|row| row.credential_id == id));

    writer.remove_credential(id).await.expect("it is idle");
    assert_eq!(reader.credential(id).expect("readable"), None);
    let after = reader.credential(WITNESS).expect("readable");
    assert_eq!(after.as_ref(), Some(&before), "the witness changed");
    assert_eq!(reader.credentials(None).expect("readable").len(), 1, "something is left");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| text.to_owned();
    let inputs: Vec<Input> = vec![
        (
            (text("account-1"), Some(text("profile")), text("forge")),
            vec![(text("base_url"), text("https://a.example"))],
            vec![text("h")],
            Some(text("refresh")),
            Some(text("me")),
            vec![(text("session"), vec![1, 2], text("0011")), (text("a'b"), vec![], text(""))],
            Some(text("fine")),
        ),
        (
            (text("'; DROP TABLE credentials; --"), None, text("%_\\\" OR 1=1")),
            vec![(text("\0"), text("a\0b"))],
            vec![],
            None,
            None,
            vec![(text("?1"), vec![0], text("$x :y @z"))],
            Some(text("\u{1b}[2J\u{202e}")),
        ),
        ((text(WITNESS), None, text("forge")), vec![], vec![], None, None, vec![], None),
        ((text(""), None, text("")), vec![], vec![], None, None, vec![], None),
    ];
    inputs.iter().map(write).collect()
}
