//! A home goes over to another store: everything is copied and compared, then the old store is
//! retired, the new one opened, and config.toml names it. Whoever dies on the way leaves exactly
//! one store that can be used, and the next who opens the home does the rest.
//!
//! **Invariant:** never two stores in use. The old one is held from before its first row is read
//! until it is retired, in one transaction, and only then the copy may be opened.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::config::store::{Store, URL_VARIABLE, is_from_environment, renamed};
use crate::config::{Home, write_atomically};
use crate::crash;
use crate::credential::now;
use crate::db::marks::{self, MovedTo};
use crate::db::moving::{self, Content, MoveError, Source, Suffix, Target, compare};
use crate::db::{DbError, HomeLock};
use crate::fleet;

#[derive(Debug, thiserror::Error)]
pub enum MovingError {
    #[error(
        "a daemon (process {pid}) uses this home; hint: stop it first, a store moves while nobody writes it"
    )]
    Running { pid: String },
    #[error(transparent)]
    Move(#[from] MoveError),
    #[error(
        "{} says where everything is, and a move names the new store in config.toml; hint: name the same store in its section [store], unset the variable, then try again",
        URL_VARIABLE
    )]
    Environment,
    #[error(
        "{} names its store in a way that can't be replaced; allowed: a section [store] with one line for each key", path.display()
    )]
    Unwritten { path: PathBuf },
    #[error(
        "{} can't be written; hint: it must be possible to name the new store there, and its folder be writable", path.display()
    )]
    Config {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl From<DbError> for MovingError {
    fn from(error: DbError) -> Self {
        Self::Move(MoveError::Db(error))
    }
}

/// How far a move has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many rows are about to be copied.
    Begun(u64),
    /// So many are.
    Copied(u64),
    /// Both sides are compared next.
    Comparing,
    /// The copy is whole and in its place. The old store is still the one.
    Whole,
    /// From here on the new one is.
    Retired,
    Opened,
    Named,
}

impl Step {
    const fn crash_point(self) -> &'static str {
        match self {
            Self::Begun(_) => "move.begun",
            Self::Copied(_) => "move.copied",
            Self::Comparing => "move.comparing",
            Self::Whole => "move.whole",
            Self::Retired => "move.retired",
            Self::Opened => "move.opened",
            Self::Named => "move.named",
        }
    }
}

/// What a move came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Moved {
    /// Everything was copied; both sides hold this.
    Copied { from: String, to: String, content: Vec<Content>, replaced: u64 },
    /// An earlier one had died, and was brought to its end.
    Finished { from: String, to: String },
    /// The home names that store already.
    Already { to: String },
}

/// Moves everything to another store.
///
/// # Errors
/// Where either store can't be used. The home's store is then the one it was, unless the words say
/// that it is retired: then the next try does the rest.
pub fn migrate(home: &Home, to: &Store, tell: &mut dyn FnMut(Step)) -> Result<Moved, MovingError> {
    if is_from_environment() {
        return Err(MovingError::Environment);
    }
    let mut tell = |step: Step| {
        crash::point(step.crash_point());
        tell(step);
    };
    let _lock = HomeLock::acquire(&home.lock()).map_err(|error| match error {
        DbError::Locked { pid, .. } => MovingError::Running { pid },
        error => error.into(),
    })?;
    let from = home.database();
    let (from_name, to_name) = (marks::name(&from)?, marks::name(to)?);
    if from == *to {
        return Ok(Moved::Already { to: to_name });
    }
    if let Some(moved) = unfinished(home)?
        && moved.to == *to
        && finish(home, &moved, &mut tell)?
    {
        return Ok(Moved::Finished { from: from_name, to: to_name });
    }
    // Looked at before anything is done: the last step must not fail for this.
    let config = configuration(home);
    naming(home, to)?;
    let folder = config.parent().unwrap_or(home.root());
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK)
        .map_err(|errno| MovingError::Config { path: config.clone(), source: errno.into() })?;

    let unmade = |source| MovingError::Config { path: config.clone(), source };
    let by = new_number().map_err(unmade)?;
    let own = fleet::host_id(home.root(), None).map_err(unmade)?;
    let source = Source::hold(&from, &own)?;
    let target = Target::prepare(to, &source, &by)?;
    tell(Step::Begun(source.estimate()));
    let replaced = target.fill(&source, &mut |rows| tell(Step::Copied(rows)))?;
    tell(Step::Comparing);
    let content = source.content()?;
    compare(&content, &target.content()?)?;
    let (before, after) = (fleet::sink_suffix(&from, &own), fleet::sink_suffix(to, &own));
    target.complete(&source, Suffix { from: &before, to: &after })?;
    tell(Step::Whole);
    let moved = MovedTo { to: to.clone(), name: to_name.clone(), by, at: now(), ended: false };
    source.retire(&moved)?;
    tell(Step::Retired);
    if !finish(home, &moved, &mut tell)? {
        return Err(DbError::Missing(to_name).into());
    }
    Ok(Moved::Copied { from: from_name, to: to_name, content, replaced })
}

/// Brings a move to its end that died after the old store was retired. Who opens a home does this
/// first, with its lock. True: the home has another store than before.
///
/// # Errors
/// Where either store can't be used, or config.toml can't be written.
pub fn take_up(home: &Home) -> Result<bool, MovingError> {
    if is_from_environment() {
        return Ok(false);
    }
    match unfinished(home) {
        Ok(Some(moved)) => finish(home, &moved, &mut |_| {}),
        // What is wrong with the store is said by who opens it next.
        Ok(None) | Err(_) => Ok(false),
    }
}

/// The move of this home's store that lacks its last steps.
fn unfinished(home: &Home) -> Result<Option<MovedTo>, MovingError> {
    let moved = moving::marks(&home.database())?.and_then(|marks| marks.moved_to);
    // Of a server that others name as well, one of them moved it into a file of its own.
    let is_ours = |moved: &MovedTo| moved.to.file().is_none_or(|file| file == home.database_file());
    Ok(moved.filter(|moved| !moved.ended && is_ours(moved)))
}

/// False: what the old store names isn't its copy.
fn finish(home: &Home, moved: &MovedTo, tell: &mut dyn FnMut(Step)) -> Result<bool, MovingError> {
    let from = home.database();
    if !moving::open_copy(moved, &marks::name(&from)?)? {
        return Ok(false);
    }
    tell(Step::Opened);
    let text = naming(home, &moved.to)?;
    let path = configuration(home);
    write_atomically(&path, text.as_bytes()).map_err(|source| MovingError::Config { path, source })?;
    tell(Step::Named);
    if let Err(error) = moving::end(&from, moved) {
        // It is retired all the same; the note only keeps it from being taken up again.
        tracing::warn!(%error, "the old store doesn't know that its move has ended");
    }
    Ok(true)
}

/// Where config.toml is written: a link stays one.
fn configuration(home: &Home) -> PathBuf {
    fs::canonicalize(home.config()).unwrap_or_else(|_| home.config())
}

/// The configuration with this store in it.
fn naming(home: &Home, store: &Store) -> Result<String, MovingError> {
    let path = home.config();
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text.map_err(|source| MovingError::Config { path: path.clone(), source })?,
    };
    renamed(&text, store).ok_or(MovingError::Unwritten { path })
}

fn new_number() -> io::Result<String> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(hex::encode(random))
}

#[cfg(test)]
#[path = "moving_tests.rs"]
mod tests;
