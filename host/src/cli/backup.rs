//! `backup` and `restore`: everything of a home but its master key into one sealed file, while the
//! daemon runs, and back into an empty one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::Failure;
use super::output::Output;
use crate::backup::{self, BackupError, Contents, MasterKey};
use crate::config::{ConfigError, Home};
use crate::credential::now;
use crate::keys;
use crate::report::iso8601;
use crate::vault::Vault;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The file to make, or a folder in which it gets its moment as name
    #[arg(required = true)]
    file: Option<PathBuf>,
    /// In a folder: delete the oldest past so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Replace a file that is there
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Open a backup, look at everything in it, and keep nothing
    #[command(
        after_help = "Examples:\n  keywheel backup verify /mnt/backups/keywheel.backup --master-key /root/master.key"
    )]
    Verify {
        file: PathBuf,
        /// The master key it was sealed with, where that isn't this home's
        #[arg(long, value_name = "FILE")]
        master_key: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
pub struct RestoreArguments {
    /// A file that `keywheel backup` made
    file: PathBuf,
    /// The master key it was sealed with; it is copied into the new home
    #[arg(long, value_name = "FILE")]
    master_key: Option<PathBuf>,
    /// The home only moves: no daemon ran on the old one after this backup was made
    #[arg(long)]
    nothing_ran_since: bool,
}

pub fn run(home: Result<Home, ConfigError>, arguments: &Arguments, output: Output) -> Result<(), Failure> {
    match (&arguments.command, &arguments.file) {
        (Some(Command::Verify { file, master_key }), _) => verify(home, file, master_key.as_deref(), output),
        (None, Some(file)) => make(&home?, file, arguments, output),
        // The parser asks for one of the two.
        (None, None) => Err(Failure::Usage("name the file to make".into())),
    }
}

fn make(home: &Home, file: &Path, arguments: &Arguments, output: Output) -> Result<(), Failure> {
    home.require()?;
    let in_folder = file.is_dir();
    if arguments.keep.is_some() && !in_folder {
        return Err(Failure::Usage(format!(
            "--keep is for a folder of backups, and {} is none",
            file.display()
        )));
    }
    let path = if in_folder { file.join(backup::file_name(now())) } else { file.to_owned() };
    if path.exists() && !arguments.replace {
        return Err(Failure::BadInput(format!(
            "{} is there already; hint: --replace replaces it once the new one is whole",
            path.display()
        )));
    }
    let vault = keys::open(home)?.vault;
    let unwritten = || Failure::io(format!("{} can't be written", path.display()));
    // Whole or not at all: a file of that name is always a backup.
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let unfinished = tempfile::Builder::new()
        .prefix(".keywheel-backup-")
        .suffix(".part")
        .tempfile_in(folder)
        .map_err(unwritten())?;
    let bar = progress_bar(output);
    let made = backup::make(home, vault.streams(), BufWriter::new(unfinished.as_file()), &mut |copied| {
        bar.set_length(copied.of);
        bar.set_position(copied.done);
    });
    bar.finish_and_clear();
    let contents = made?;
    unfinished.as_file().sync_all().map_err(unwritten())?;
    let bytes = unfinished.as_file().metadata().map_or(0, |metadata| metadata.len());
    unfinished.persist(&path).map_err(|error| unwritten()(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(unwritten())?;
    let gone = match arguments.keep {
        Some(keep) => remove_past(file, keep)?,
        None => Vec::new(),
    };
    let value = json!({ "file": path, "bytes": bytes, "contents": said(&contents), "removed": gone });
    output.value(&value, || {
        let mut lines = vec![format!("{}: {}", path.display(), words(&contents))];
        lines.extend(gone.iter().map(|name| format!("removed {name}")));
        lines.push(String::from(
            "It opens with this home's master key alone, which is not in it: keep a copy of that elsewhere.",
        ));
        lines.join("\n")
    });
    for digest in &contents.missing_plugins {
        output.say(&format!(
            "warning: no file of the plugin {digest} is in the home, so none is in the backup"
        ));
    }
    Ok(())
}

fn progress_bar(output: Output) -> ProgressBar {
    if output.json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("copying the database {wide_bar} {percent}% {eta}") {
        bar.set_style(style);
    }
    bar
}

fn remove_past(folder: &Path, keep: u32) -> Result<Vec<String>, Failure> {
    let unreadable = || Failure::io(format!("{} can't be read", folder.display()));
    let names: Vec<String> = fs::read_dir(folder)
        .map_err(unreadable())?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let gone = backup::past(&names, keep as usize);
    for name in &gone {
        fs::remove_file(folder.join(name)).map_err(Failure::io(format!("{name} can't be removed")))?;
    }
    Ok(gone.into_iter().cloned().collect())
}

fn said(contents: &Contents) -> serde_json::Value {
    json!({
        "madeAt": iso8601(contents.made_at),
        "keywheel": contents.keywheel,
        "schema": contents.schema,
        "credentials": contents.credentials,
        "reports": contents.reports,
        "missingPlugins": contents.missing_plugins,
    })
}

fn words(contents: &Contents) -> String {
    format!(
        "{} credentials and {} reports as of {}, by keywheel {} with schema {}",
        contents.credentials,
        contents.reports,
        iso8601(contents.made_at),
        contents.keywheel,
        contents.schema
    )
}

fn open(file: &Path) -> Result<BufReader<File>, Failure> {
    let file = OpenOptions::new()
        .read(true)
        // A named pipe in its place would hang the command for ever.
        .custom_flags(libc::O_NONBLOCK)
        .open(file)
        .map_err(Failure::io(format!("{} can't be read", file.display())))?;
    Ok(BufReader::new(file))
}

fn verify(
    home: Result<Home, ConfigError>,
    file: &Path,
    master_key: Option<&Path>,
    output: Output,
) -> Result<(), Failure> {
    let from = open(file)?;
    let vault = match master_key {
        Some(key) => Vault::open(key)?,
        None => keys::open(&home?)?.vault,
    };
    // Beside the backup there was room for it.
    let beside = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let contents = backup::verify(from, &vault, beside)?;
    output.value(&json!({ "file": file, "ok": true, "contents": said(&contents) }), || {
        format!("{} is whole: {}", file.display(), words(&contents))
    });
    Ok(())
}

pub async fn restore(home: &Home, arguments: &RestoreArguments, output: Output) -> Result<(), Failure> {
    let from = open(&arguments.file)?;
    let elsewhere = home.master_key() != home.own_master_key();
    let (vault, key) = match &arguments.master_key {
        Some(file) if elsewhere => {
            return Err(Failure::Usage(format!(
                "--master-key {} and a key elsewhere ({}); allowed: one of the two",
                file.display(),
                home.master_key().display()
            )));
        }
        Some(file) => (Vault::open(file)?, MasterKey::Copied(file.clone())),
        None if elsewhere => (keys::open(home)?.vault, MasterKey::Elsewhere),
        None => {
            return Err(Failure::Usage(
                "a backup opens with the master key that it was sealed with; hint: --master-key FILE".into(),
            ));
        }
    };
    let contents = backup::restore(from, &vault, key, home, arguments.nothing_ran_since).await?;
    output.value(&json!({ "home": home.root(), "contents": said(&contents) }), || {
        let after = match arguments.nothing_ran_since {
            true => "Everything goes on as it was.",
            false => {
                "Each credential is validated first: what was rotated since the backup may be dead, and nothing is rotated before that is known. Tokens that were revoked since are good again: `keywheel worker-token list`."
            }
        };
        format!("Restored {}: {}\n{after}\n\nNext:\n  keywheel serve", home.root().display(), words(&contents))
    });
    Ok(())
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Db(error) => Self::Db(error),
            BackupError::Vault(error) => Self::Vault(error),
            BackupError::Io { what, source } => Self::Io { what, source },
            error => Self::BadInput(super::with_causes(&error)),
        }
    }
}
