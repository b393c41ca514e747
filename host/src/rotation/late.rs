//! Issued secrets that the store couldn't take at once, on this home's own disk: a file for each
//! claim, sealed as the store would have them, from before anything that may last until they are
//! in the store. Here they are written, and brought in later, by this daemon or the next. No file
//! is deleted before the store has what is in it. Some room is kept for the day on which the disk
//! is full.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::config::write_atomically;
use crate::db::late::{Late, Rescued};
use crate::db::writer::{WriteError, Writer};
use crate::db::{Actor, AuditEntry, SealedGeneration};
use crate::limits::{LATE_BYTES, LATE_FILES};
use crate::sealing::{open_jar, seal_jar};
use crate::vault::Vault;

/// Between two looks at what waits for another's attempt, doubled up to the second: an attempt
/// lasts two minutes at the most, and a look costs a transaction for each file.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Between two looks at a folder in which nothing waits: a disk that hung may have written after
/// nobody waited for it any more.
const IDLE_PAUSE: Duration = Duration::from_secs(60);

/// How often secrets are sealed anew because another generation came between.
const RESEALED: usize = 3;

/// What waits ends so, and what is set aside because it can't be opened so.
const WAITS: &str = "json";
const ASIDE: &str = "unreadable";

/// Files that hold a place on the disk: so many secrets can be written down on one that is full. A
/// full disk is noticed by whatever is in flight, and then nothing new begins.
const ROOMS: usize = 4;

/// A browser session's jar is some ten kilobytes, twice that in hexadecimal.
const ROOM_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub struct LateSecrets {
    folder: Arc<PathBuf>,
    wait: Mutex<Wait>,
}

#[derive(Debug)]
struct Wait {
    /// When the folder is looked through next.
    next: Instant,
    pause: Duration,
}

/// How many files there are, for whoever looks from outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    pub waiting: usize,
    pub aside: usize,
}

/// What cannot be looked at counts for nothing: the daemon says so.
pub fn waiting(folder: &Path) -> Waiting {
    let names = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.file_name()));
    let mut found = Waiting::default();
    for name in names {
        match Path::new(&name).extension().and_then(|extension| extension.to_str()) {
            Some(WAITS) => found.waiting += 1,
            Some(ASIDE) => found.aside += 1,
            _ => {}
        }
    }
    found
}

/// What a file holds.
enum Held {
    Late(Box<Late>),
    Gone,
    /// Whatever the system has against it says nothing of the file, and may pass.
    NotNow(io::Error),
    Unreadable(String),
}

impl LateSecrets {
    /// Whatever an earlier daemon left is looked for first.
    pub fn new(folder: PathBuf) -> Self {
        let wait = Wait { next: Instant::now(), pause: FIRST_PAUSE };
        Self { folder: Arc::new(folder), wait: Mutex::new(wait) }
    }

    fn wait(&self) -> MutexGuard<'_, Wait> {
        self.wait.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes secrets down, durably, in the place of what the same claim wrote before.
    ///
    /// # Errors
    /// The disk's, and where the folder is full.
    pub async fn keep(&self, late: &Late) -> io::Result<()> {
        let bytes = serde_json::to_vec(late)?;
        let (folder, name) = (Arc::clone(&self.folder), late.file_name());
        // A disk that hangs must hold up no other attempt.
        let written = tokio::task::spawn_blocking(move || write(&folder, &name, &bytes));
        written.await.map_err(io::Error::other)??;
        self.look_now();
        Ok(())
    }

    /// What the store has needs to wait no more.
    pub fn forget(&self, late: &Late) {
        // One that can't be deleted now is found to be there already by the next look.
        if let Err(error) = fs::remove_file(self.folder.join(late.file_name())) {
            tracing::warn!(credential = late.credential_id, %error, "a stored secret's file can't be deleted");
        }
    }

    /// The next look is due at once.
    pub fn look_now(&self) {
        *self.wait() = Wait { next: Instant::now(), pause: FIRST_PAUSE };
    }

    /// How long until the next look.
    pub fn due_in(&self) -> Duration {
        self.wait().next.saturating_duration_since(Instant::now())
    }

    /// Brings in what waits. What belongs to an attempt in flight is the attempt's own to store.
    ///
    /// # Errors
    /// Where the store can't be written: then everything waits on.
    pub async fn rescue(
        &self,
        vault: &Vault,
        writer: &Writer,
        in_flight: impl Fn(&str) -> bool,
    ) -> Result<(), WriteError> {
        let (names, mut waiting) = match self.names() {
            Ok(names) => (names, false),
            Err(error) => {
                tracing::error!(folder = %self.folder.display(), %error, "late secrets can't be looked for");
                (Vec::new(), true)
            }
        };
        for name in names {
            let late = match self.read(&name) {
                Held::Late(late) if in_flight(&late.credential_id) => {
                    waiting = true;
                    continue;
                }
                Held::Late(late) => late,
                Held::Gone => continue,
                Held::NotNow(error) => {
                    tracing::error!(file = name, %error, "a late secret can't be read now, it waits");
                    waiting = true;
                    continue;
                }
                Held::Unreadable(why) => {
                    self.set_aside(writer, &name, &why).await?;
                    continue;
                }
            };
            match bring_in(vault, writer, &late).await {
                Ok(rescued) => {
                    tell(&late, rescued);
                    self.forget(&late);
                }
                Err(NotIn::Unopened(why)) => self.set_aside(writer, &name, &why).await?,
                Err(NotIn::Write(error @ (WriteError::Unavailable { .. } | WriteError::Closed))) => {
                    return Err(error);
                }
                Err(NotIn::Write(WriteError::Busy { .. })) => waiting = true,
                Err(NotIn::Write(error)) => {
                    tracing::error!(credential = late.credential_id, file = name, %error, "a late secret can't be stored, it waits");
                    waiting = true;
                }
            }
        }
        let folder = Arc::clone(&self.folder);
        // Nobody waits for it.
        tokio::task::spawn_blocking(move || make_rooms(&folder));
        let mut wait = self.wait();
        *wait = if waiting {
            Wait { next: Instant::now() + wait.pause, pause: (wait.pause * 2).min(LONGEST_PAUSE) }
        } else {
            Wait { next: Instant::now() + IDLE_PAUSE, pause: FIRST_PAUSE }
        };
        Ok(())
    }

    /// In no order that matters: each is of another claim.
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&*self.folder)? {
            // What isn't text is none of ours.
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if Path::new(&name).extension().is_some_and(|extension| extension == WAITS) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn read(&self, name: &str) -> Held {
        let mut bytes = Vec::new();
        let read = fs::File::open(self.folder.join(name))
            .and_then(|file| file.take(LATE_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Held::Gone,
            Err(error) => Held::NotNow(error),
            Ok(_) => match serde_json::from_slice::<Late>(&bytes) {
                Ok(late) if late.file_name() == name => Held::Late(Box::new(late)),
                Ok(late) => Held::Unreadable(format!("it is {} by what it says", late.file_name())),
                Err(error) => Held::Unreadable(error.to_string()),
            },
        }
    }

    /// Told once: under its new name nobody looks at it again.
    async fn set_aside(&self, writer: &Writer, name: &str, why: &str) -> Result<(), WriteError> {
        let entry = AuditEntry {
            actor: Actor::Host,
            action: "set-aside",
            service: None,
            file: Some(name.to_owned()),
            digest: None,
            signer: None,
            detail: json!({ "reason": why }),
        };
        writer.note(vec![entry]).await?;
        let aside = self.folder.join(format!("{name}.{ASIDE}"));
        tracing::error!(
            severity = "critical",
            file = %aside.display(),
            why,
            "a late secret can't be read and was set aside; hint: its service may have issued it as the only live one"
        );
        if let Err(error) = fs::rename(self.folder.join(name), &aside) {
            tracing::error!(file = name, %error, "it can't be renamed");
        }
        Ok(())
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() as u64 > LATE_BYTES {
        return Err(io::Error::other(format!("{} bytes, {LATE_BYTES} are allowed", bytes.len())));
    }
    let files = fs::read_dir(folder)?.count();
    if files >= LATE_FILES {
        return Err(io::Error::other(format!(
            "{} holds {files} files, {LATE_FILES} are allowed; hint: those that end in .{ASIDE} are yours to judge",
            folder.display()
        )));
    }
    match write_atomically(&folder.join(name), bytes) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            write_into_room(folder, name, bytes).map_err(|_| error)
        }
        written => written,
    }
}

fn room(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("room-{number}"))
}

/// As many as there is space for: they are for a disk that will be full, not for one that is.
fn make_rooms(folder: &Path) {
    for number in 0..ROOMS {
        let path = room(folder, number);
        if !path.exists() && write_atomically(&path, &[0; ROOM_BYTES]).is_err() {
            return;
        }
    }
}

/// In the place of what was written before, for which no disk needs space.
fn write_into_room(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    // Whoever renames it first has it.
    let taken = folder.join(format!(".{name}.room"));
    let has_it = (0..ROOMS).any(|number| fs::rename(room(folder, number), &taken).is_ok());
    if !has_it {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).open(&taken)?;
        file.write_all(bytes)?;
        // Blank to its end: what it gave up others would take, and the next secret finds no room.
        file.write_all(&vec![b' '; ROOM_BYTES.saturating_sub(bytes.len())])?;
        file.sync_all()?;
        fs::rename(&taken, folder.join(name))?;
        fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // Best effort: the error that matters is the one returned.
        let _ = fs::remove_file(&taken);
    }
    written
}

/// Why secrets are not in the store.
enum NotIn {
    Unopened(String),
    Write(WriteError),
}

async fn bring_in(vault: &Vault, writer: &Writer, late: &Late) -> Result<Rescued, NotIn> {
    let sealed =
        SealedGeneration { generation: late.generation, created_at: late.issued_at, keys: late.keys.clone() };
    // Opened whatever comes: what can't be is not to be taken for stored.
    let jar =
        open_jar(vault, &late.credential_id, &sealed).map_err(|error| NotIn::Unopened(error.to_string()))?;
    let mut late = late.clone();
    for _ in 0..RESEALED {
        match writer.rescue(late.clone()).await {
            Err(WriteError::Stale { expected, .. }) => {
                late.keys = seal_jar(vault, &late.credential_id, expected, &jar)
                    .map_err(|error| NotIn::Write(WriteError::Invalid(error.to_string())))?;
                late.generation = expected;
            }
            other => return other.map_err(NotIn::Write),
        }
    }
    // They move on faster than they can be sealed: the next look tries again.
    Err(NotIn::Write(WriteError::Busy { credential_id: late.credential_id, attempt: late.attempt_number }))
}

fn tell(late: &Late, rescued: Rescued) {
    let (credential, attempt) = (late.credential_id.as_str(), late.attempt_number);
    match rescued {
        Rescued::AlreadyThere => {}
        Rescued::InTime => {
            tracing::warn!(credential, attempt, "a late secret is stored, its attempt goes on")
        }
        Rescued::Pending(generation) => {
            tracing::warn!(credential, attempt, generation, "a late secret is stored and tested next");
        }
        Rescued::Previous(generation) => {
            tracing::warn!(
                credential,
                attempt,
                generation,
                "a late secret was overtaken and is kept; hint: `keywheel credential rollback` brings it back"
            );
        }
        Rescued::Forgotten => {
            tracing::warn!(credential, attempt, "a late secret's credential was removed meanwhile");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::{Jar, Key, Secret};
    use crate::db::Action;
    use crate::db::scratch::Scratch;
    use crate::db::writer::{Claim, Finish, GenerationChange, MonitorUpdate, NewCredential, WriterThread};
    use crate::report::{Report, Status, iso8601};

    const T0: u64 = 1_700_000_000_000;

    /// A store with one credential, and a folder beside it.
    struct Home {
        scratch: Scratch,
        vault: Vault,
        writer: Writer,
        late: LateSecrets,
        _thread: WriterThread,
    }

    fn jar(value: &str) -> Jar {
        let key = Key {
            name: "session".into(),
            secret: Secret::new(value.to_owned()),
            fingerprint: format!("print of {value}"),
            expires: None,
            cookie: None,
        };
        Jar { keys: vec![key] }
    }

    impl Home {
        async fn new() -> Self {
            let scratch = Scratch::new();
            let (writer, thread) = scratch.writer();
            let vault = Vault::from_bytes(&[7; crate::vault::KEY_BYTES]).unwrap();
            let new = NewCredential {
                credential_id: "ann".into(),
                profile_id: None,
                service: "shop".into(),
                plugin_digest: None,
                settings: vec![],
                private_hosts: vec![],
                method: None,
                validate_interval: None,
                max_age: None,
                idle_limit: None,
                quiet: vec![],
                identity: None,
                keys: seal_jar(&vault, "ann", 1, &jar("old")).unwrap(),
                expires: None,
                first_due: T0,
                first_action: Action::Validate,
            };
            writer.add_credential(new).await.unwrap();
            let folder = scratch.folder().join("late");
            fs::create_dir(&folder).unwrap();
            Self { scratch, vault, writer, late: LateSecrets::new(folder), _thread: thread }
        }

        async fn claim(&self) -> Claim {
            self.writer.claim_one("ann", Action::Rotate, "host-a", T0, T0 + 60_000, true).await.unwrap()
        }

        async fn end(&self, claim: &Claim, generations: GenerationChange) {
            let report = Report {
                cookie_id: "ann".into(),
                profile_id: None,
                service: "shop".into(),
                validate_url: String::new(),
                cookie_keys: [].into(),
                status: Status::Failed,
                message: None,
                started_at: iso8601(claim.started_at),
                finished_at: iso8601(claim.started_at),
                attempt_number: claim.attempt_number,
                meta: serde_json::Map::new(),
            };
            let monitor = MonitorUpdate {
                consecutive_failures: 1,
                expires_at: None,
                next_due_at: None,
                next_action: Action::Validate,
                asked_until: None,
                next_reason: String::new(),
            };
            let end = Finish {
                token: claim.token.clone(),
                report: Arc::new(report),
                verdict: "needs-human".into(),
                monitor,
                generations,
                expiry_updates: vec![],
                identity: None,
                in_doubt: None,
            };
            self.writer.finish(end).await.unwrap();
        }

        fn issued(&self, claim: &Claim) -> Late {
            Late {
                credential_row: claim.token.credential_row,
                credential_id: "ann".into(),
                service: "shop".into(),
                attempt_number: claim.attempt_number,
                fence: claim.token.fence,
                from_generation: Some(1),
                generation: 2,
                amends: None,
                commit_class: None,
                issued_at: T0,
                keys: seal_jar(&self.vault, "ann", 2, &jar("new")).unwrap(),
            }
        }

        async fn look(&self, in_flight: bool) {
            self.late.rescue(&self.vault, &self.writer, |_| in_flight).await.unwrap();
        }

        fn waiting(&self) -> Waiting {
            waiting(&self.scratch.folder().join("late"))
        }
    }

    #[tokio::test]
    async fn late_secrets_are_sealed_anew_for_the_number_they_get() {
        let home = Home::new().await;
        let claim = home.claim().await;
        let other = home.writer.reclaim_interrupted("host-b", T0 + 60_000).await.unwrap().remove(0);
        home.late.keep(&home.issued(&claim)).await.unwrap();
        home.look(false).await;
        assert_eq!(home.waiting(), Waiting { waiting: 1, aside: 0 }, "another's attempt is open");
        assert!(!home.late.due_in().is_zero());
        let keys = seal_jar(&home.vault, "ann", 2, &jar("dropped")).unwrap();
        home.writer.store_pending(&other.token, 2, keys).await.unwrap();
        home.end(&other, GenerationChange::Drop(2)).await;
        home.look(false).await;
        assert_eq!(home.waiting(), Waiting::default());
        let pending = home.claim().await.pending.unwrap();
        assert_eq!(pending.generation, 3);
        let opened = open_jar(&home.vault, "ann", &pending).unwrap();
        assert_eq!(opened.get("session").unwrap().secret.expose(), b"new");
    }

    #[tokio::test]
    async fn what_an_attempt_in_flight_still_stores_is_left_to_it() {
        let home = Home::new().await;
        let claim = home.claim().await;
        home.late.keep(&home.issued(&claim)).await.unwrap();
        assert!(home.late.due_in().is_zero());
        home.look(true).await;
        // Nor is it thrown away where the system can't read it for a while.
        let (folder, elsewhere) =
            (home.scratch.folder().join("late"), home.scratch.folder().join("elsewhere"));
        fs::rename(&folder, &elsewhere).unwrap();
        home.look(false).await;
        assert!(home.late.due_in() < IDLE_PAUSE / 2);
        fs::rename(&elsewhere, &folder).unwrap();
        assert_eq!(home.waiting(), Waiting { waiting: 1, aside: 0 });
        home.look(false).await;
        assert_eq!(home.waiting(), Waiting::default());
        home.end(&claim, GenerationChange::Keep).await;
    }

    #[tokio::test]
    async fn what_can_not_be_opened_is_set_aside_and_told_once() {
        let home = Home::new().await;
        let claim = home.claim().await;
        let whole = home.issued(&claim);
        // Sealed for another number than it says, under another's name, and no text of ours.
        home.late.keep(&Late { generation: 3, ..whole.clone() }).await.unwrap();
        let folder = home.scratch.folder().join("late");
        fs::write(folder.join("1-1-9.json"), serde_json::to_vec(&whole).unwrap()).unwrap();
        fs::write(folder.join("x.json"), "{").unwrap();
        for _ in 0..2 {
            home.look(false).await;
            assert_eq!(home.waiting(), Waiting { waiting: 0, aside: 3 });
        }
        let audit = home.scratch.reader().audit(None, 10).unwrap();
        let told: Vec<_> = audit.iter().map(|row| row.action.as_str()).collect();
        assert_eq!(told, ["set-aside"; 3]);
    }

    #[tokio::test]
    async fn a_full_folder_takes_no_more_and_says_so() {
        let home = Home::new().await;
        let claim = home.claim().await;
        let folder = home.scratch.folder().join("late");
        for number in 0..LATE_FILES {
            fs::write(folder.join(format!("{number}.json.{ASIDE}")), "").unwrap();
        }
        let refused = home.late.keep(&home.issued(&claim)).await.unwrap_err().to_string();
        assert!(refused.contains(&format!("holds {LATE_FILES} files")), "{refused}");
        assert_eq!(home.waiting(), Waiting { waiting: 0, aside: LATE_FILES });
    }
}
