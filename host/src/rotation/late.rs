//! Issued secrets that the store couldn't take at once, on this home's own disk: a file for each
//! claim, sealed as the store would have them, from before anything that may last until they are
//! in the store. Here they are written, and brought in later, by this daemon or the next. No file
//! is deleted before the store has what is in it.

use std::fs;
use std::io::{self, Read};
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
        let mut waiting = false;
        for name in self.names() {
            let late = match self.read(&name) {
                Held::Late(late) if in_flight(&late.credential_id) => {
                    waiting = true;
                    continue;
                }
                Held::Late(late) => late,
                Held::Gone => continue,
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
        let mut wait = self.wait();
        *wait = if waiting {
            Wait { next: Instant::now() + wait.pause, pause: (wait.pause * 2).min(LONGEST_PAUSE) }
        } else {
            Wait { next: Instant::now() + IDLE_PAUSE, pause: FIRST_PAUSE }
        };
        Ok(())
    }

    /// In no order that matters: each is of another claim.
    fn names(&self) -> Vec<String> {
        let entries = match fs::read_dir(&*self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                tracing::error!(folder = %self.folder.display(), %error, "late secrets can't be looked for");
                return Vec::new();
            }
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| Path::new(name).extension().is_some_and(|extension| extension == WAITS)).collect();
        names.sort();
        names
    }

    fn read(&self, name: &str) -> Held {
        let mut bytes = Vec::new();
        let read = fs::File::open(self.folder.join(name))
            .and_then(|file| file.take(LATE_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Held::Gone,
            Err(error) => Held::Unreadable(error.to_string()),
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
    write_atomically(&folder.join(name), bytes)
}

/// Why secrets are not in the store.
enum NotIn {
    Unopened(String),
    Write(WriteError),
}

async fn bring_in(vault: &Vault, writer: &Writer, late: &Late) -> Result<Rescued, NotIn> {
    let unopened = |error: crate::vault::VaultError| NotIn::Unopened(error.to_string());
    let sealed = SealedGeneration {
        generation: late.generation,
        created_at: late.issued_at,
        keys: late.keys.clone(),
    };
    // Opened whatever comes: what can't be is not to be taken for stored.
    let jar = open_jar(vault, &late.credential_id, &sealed).map_err(unopened)?;
    let mut late = late.clone();
    for _ in 0..RESEALED {
        match writer.rescue(late.clone()).await {
            Err(WriteError::Stale { expected, .. }) => {
                late.keys = seal_jar(vault, &late.credential_id, expected, &jar).map_err(unopened)?;
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
        Rescued::InTime => tracing::warn!(credential, attempt, "a late secret is stored, its attempt goes on"),
        Rescued::Pending(generation) => {
            tracing::warn!(credential, attempt, generation, "a late secret is stored and tested next");
        }
        Rescued::Previous(generation) => {
            tracing::warn!(credential, attempt, generation, "a late secret was overtaken and is kept; hint: `keywheel credential rollback` brings it back");
        }
        Rescued::Forgotten => {
            tracing::warn!(credential, attempt, "a late secret's credential was removed meanwhile");
        }
    }
}
