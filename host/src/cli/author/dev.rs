//! `plugin dev`: builds a project whenever its sources change, and shows what a daemon would make
//! of it: what it asks for, and each fixture's call with its requests, answers and verdict. With
//! `--live` the real service is asked as well. Nothing is stored, and a secret of the author's goes
//! nowhere but to that service; only `--install` touches the home, and that by the daemon's own way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::{RecursiveMode, Watcher};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use super::build::{Built, NO_SOURCE, Project};
use super::record::given;
use super::{shown, trace};
use crate::cli::connection::Connection;
use crate::cli::output::Output;
use crate::cli::{Failure, credential, plugin_test};
use crate::config::{ConfigError, Home};
use crate::control::Operation;
use crate::formats;
use crate::kit::fixture::{self, Fixture, FixtureError, Which};
use crate::kit::{Case, Kit, KitError, Options, Service, checks};
use crate::registry::manifest;

/// An editor writes several files in a burst; a look that finds the same twice sees its end.
const STILL: Duration = Duration::from_millis(80);
/// How often sources are looked at where no event came: not every file system tells.
const TICK: Duration = Duration::from_secs(2);
/// A project has tens of sources; a folder with as many is somebody's home.
const SOURCES: usize = 10_000;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The project's folder, or a template's .toml file
    #[arg(default_value = ".", value_name = "DIR")]
    project: PathBuf,
    /// Build and show once, and end with 1 where something doesn't hold
    #[arg(long)]
    once: bool,
    /// Ask the real service too, whether a credential lives; never to rotate
    #[arg(long)]
    live: bool,
    /// The secrets for it [default: key=value lines on standard input]
    #[arg(long, value_name = "FILE", requires = "live")]
    from: Option<PathBuf>,
    #[arg(long, requires = "live")]
    format: Option<formats::Format>,
    /// A setting for it
    #[arg(long = "set", value_name = "NAME=VALUE", requires = "live")]
    settings: Vec<String>,
    /// A host name that may lead to a private address
    #[arg(long = "allow-private", value_name = "HOST", requires = "live")]
    private_hosts: Vec<String>,
    /// Put each good build into the home's plugin folder, where a running daemon takes it over
    #[arg(long)]
    install: bool,
}

/// What the real service is asked with.
struct Live {
    secrets: String,
    format: Option<formats::Format>,
    settings: Vec<(String, String)>,
    private_hosts: Vec<String>,
}

/// One time through: what was built, and how it did.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Round {
    plugin: Option<PathBuf>,
    /// Why there is none, or why it isn't taken.
    refused: Option<String>,
    service: Option<String>,
    version: Option<String>,
    digest: Option<String>,
    permissions: Vec<String>,
    fixtures: Vec<Tried>,
    live: Option<Tried>,
    installed: bool,
}

#[derive(Debug, Serialize)]
struct Tried {
    name: String,
    trace: Vec<String>,
    findings: Vec<String>,
}

impl Round {
    fn is_good(&self) -> bool {
        self.refused.is_none() && self.fixtures.iter().all(|tried| tried.findings.is_empty())
    }
}

pub async fn run(
    home: Result<Home, ConfigError>,
    arguments: Arguments,
    output: Output,
) -> Result<(), Failure> {
    // Only an installation needs one.
    let home = if arguments.install { Some(home?) } else { None };
    if let Some(home) = &home {
        home.require()?;
    }
    let project = Project::at(&arguments.project)?;
    let live = live_of(&arguments)?;
    if arguments.once {
        let round = round(home.as_ref(), &project, live.as_ref(), output).await?;
        return if round.is_good() { Ok(()) } else { Err(Failure::Unhealthy) };
    }
    let kind = |kind| signal(kind).map_err(Failure::io("signals can't be heard"));
    let (mut interrupt, mut terminate) = (kind(SignalKind::interrupt())?, kind(SignalKind::terminate())?);
    let work = async {
        let woken = Arc::new(Notify::new());
        let _watcher = watch(&project.folder, &woken);
        loop {
            // Before the build: what changes meanwhile is another round.
            let sources = sources(&project.folder);
            if let Err(failure) = round(home.as_ref(), &project, live.as_ref(), output).await {
                output.error(&crate::cli::with_causes(&failure));
            }
            output.say("waiting for a change; Ctrl-C ends this");
            changed(&project.folder, &sources, &woken).await;
        }
    };
    tokio::select! {
        () = work => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn live_of(arguments: &Arguments) -> Result<Option<Live>, Failure> {
    if !arguments.live {
        return Ok(None);
    }
    let from = arguments.from.as_deref();
    Ok(Some(Live {
        settings: credential::settings(&arguments.settings)?,
        private_hosts: arguments.private_hosts.clone(),
        secrets: credential::read_secrets(from)?,
        format: arguments.format.or_else(|| from.is_none().then_some(formats::Format::KeyValue)),
    }))
}

/// Builds, looks, tries and shows.
async fn round(
    home: Option<&Home>,
    project: &Project,
    live: Option<&Live>,
    output: Output,
) -> Result<Round, Failure> {
    let mut round = Round::default();
    output.say(&format!("building {}", shown(&project.folder)));
    match project.build().await? {
        Built::Failed(said) => {
            round.refused = Some(said.trim_end().to_owned());
            tell(&round, output);
            return Ok(round);
        }
        Built::Plugin(plugin) => round.plugin = Some(plugin),
    }
    let plugin = round.plugin.clone().unwrap_or_default();
    let kit = match Kit::open(&plugin, Options::default()).await {
        Ok(kit) => kit,
        Err(KitError::Refused(why)) => {
            round.refused = Some(why);
            tell(&round, output);
            return Ok(round);
        }
        Err(error) => return Err(error.into()),
    };
    let tried = try_all(&kit, project, &plugin, live, &mut round, output).await;
    kit.close().await;
    tried?;
    if let Some(home) = home
        && round.is_good()
    {
        Connection::once(home, Operation::PluginInstall { path: plugin }).await?;
        round.installed = true;
    }
    tell(&round, output);
    Ok(round)
}

async fn try_all(
    kit: &Kit,
    project: &Project,
    plugin: &Path,
    live: Option<&Live>,
    round: &mut Round,
    output: Output,
) -> Result<(), Failure> {
    let status = kit.status();
    round.service.clone_from(&status.service);
    round.version.clone_from(&status.version);
    round.digest.clone_from(&status.digest);
    round.permissions.clone_from(&status.permissions);
    match fixtures(project, plugin) {
        Ok(fixtures) => {
            for fixture in &fixtures {
                round.fixtures.push(try_one(kit, fixture).await?);
            }
        }
        Err(findings) => {
            round.fixtures.push(Tried { name: "fixtures".into(), trace: Vec::new(), findings });
        }
    }
    if let Some(live) = live {
        round.live = Some(ask(kit, live, output).await?);
    }
    Ok(())
}

/// The project's fixtures, or what is wrong with them. None is no fault here: it is where one
/// begins.
fn fixtures(project: &Project, plugin: &Path) -> Result<Vec<Fixture>, Vec<String>> {
    let named = project.folder.join(plugin.file_name().unwrap_or_default());
    let Some(folder) = plugin_test::fixtures_of(&named) else { return Ok(Vec::new()) };
    match fixture::read_folder(&folder) {
        Err(errors) if !matches!(errors.as_slice(), [FixtureError::Empty { .. }]) => {
            Err(errors.iter().map(|error| crate::cli::with_causes(error)).collect())
        }
        read => Ok(read.unwrap_or_default()),
    }
}

async fn try_one(kit: &Kit, fixture: &Fixture) -> Result<Tried, Failure> {
    let name = match &fixture.about {
        Some(about) => format!("{}: {about}", fixture.name),
        None => fixture.name.clone(),
    };
    Ok(match checks::once(kit, fixture).await {
        Ok((run, findings)) => {
            let findings = findings.into_iter().map(|finding| match finding.exchange {
                Some(number) => format!("exchange {number}: {}", finding.text),
                None => finding.text,
            });
            Tried { name, trace: trace::lines(&run), findings: findings.collect() }
        }
        Err(KitError::Case(why)) => {
            Tried { name, trace: Vec::new(), findings: vec![format!("doesn't fit the provider: {why}")] }
        }
        Err(error) => return Err(error.into()),
    })
}

/// Asks the real service.
async fn ask(kit: &Kit, live: &Live, output: Output) -> Result<Tried, Failure> {
    let resolved = manifest::resolve(kit.manifest(), &live.settings, &live.private_hosts)
        .map_err(|error| Failure::BadInput(error.to_string()))?;
    let keys = credential::sorted_out(&live.secrets, live.format, false, &resolved, output)?;
    let case = Case {
        call: Which::Validate,
        settings: live.settings.clone(),
        private_hosts: live.private_hosts.clone(),
        keys: given(keys),
        now: None,
    };
    let run = kit.run(&case, Service::Network).await?;
    Ok(Tried { name: "live: the real service".into(), trace: trace::lines(&run), findings: Vec::new() })
}

fn tell(round: &Round, output: Output) {
    if output.json {
        output.json_line(round, false);
        return;
    }
    if let Some(why) = &round.refused {
        output.line(why);
        output.line("✗ there is no plugin to try");
        return;
    }
    let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "?".into());
    output.line(&format!(
        "{}, service `{}` {}",
        round.plugin.as_deref().map(shown).unwrap_or_default(),
        word(&round.service),
        word(&round.version)
    ));
    for line in &round.permissions {
        output.line(&format!("  {line}"));
    }
    for tried in round.fixtures.iter().chain(&round.live) {
        let mark = if tried.findings.is_empty() { "✓" } else { "✗" };
        output.line(&format!("\n{mark} {}", tried.name));
        for line in tried.trace.iter() {
            output.line(&format!("    {line}"));
        }
        for finding in &tried.findings {
            output.line(&format!("  ✗ {finding}"));
        }
    }
    let hold = round.fixtures.iter().filter(|tried| tried.findings.is_empty()).count();
    let installed = if round.installed { "; installed" } else { "" };
    output.line(&match round.fixtures.len() {
        0 => format!("\nno fixtures yet; hint: `keywheel plugin record` writes one{installed}"),
        all => format!("\n{hold} of {all} fixtures hold{installed}"),
    });
}

/// Every source with its time and size.
type Sources = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

fn sources(folder: &Path) -> Sources {
    let mut found = Sources::new();
    collect(folder, &mut found);
    found
}

fn collect(folder: &Path, found: &mut Sources) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if found.len() >= SOURCES {
            return;
        }
        let Ok(kind) = entry.file_type() else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        if kind.is_dir() && is_source_folder(&name) {
            collect(&entry.path(), found);
        } else if kind.is_file()
            && is_source_file(&name)
            && let Ok(metadata) = entry.metadata()
        {
            found.insert(entry.path(), (metadata.modified().ok(), metadata.len()));
        }
    }
}

fn is_source_folder(name: &str) -> bool {
    !name.starts_with('.') && !NO_SOURCE.contains(&name)
}

/// Not what a build writes, nor what editors leave while they save.
fn is_source_file(name: &str) -> bool {
    let written_by_tools = ["Cargo.lock", "package-lock.json", "4913"].contains(&name);
    let ending = |ending: &str| name.ends_with(ending);
    let passing =
        [".swp", ".swx", ".tmp", ".bak", ".wasm", ".part"].iter().any(|it| ending(it)) || ending("~");
    !(written_by_tools || passing || name.starts_with(['.', '#']))
}

/// Wakes when something happens in a folder with sources. Where the system can't tell, the tick
/// alone does.
fn watch(folder: &Path, woken: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let waker = Arc::clone(woken);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is an event too.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            waker.notify_one();
        }
    })
    .ok()?;
    watcher.watch(folder, RecursiveMode::NonRecursive).ok()?;
    let folders = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in folders.filter(|entry| entry.path().is_dir()) {
        if is_source_folder(&entry.file_name().to_string_lossy()) {
            // One that can't be watched is looked at by the tick.
            let _ = watcher.watch(&entry.path(), RecursiveMode::Recursive);
        }
    }
    Some(watcher)
}

/// Waits until the sources are others than these, and still.
async fn changed(folder: &Path, before: &Sources, woken: &Notify) {
    loop {
        let mut now = sources(folder);
        if now != *before {
            loop {
                tokio::time::sleep(STILL).await;
                let again = sources(folder);
                if again == now {
                    return;
                }
                now = again;
            }
        }
        tokio::select! {
            () = woken.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_what_an_author_writes_and_nothing_that_a_build_or_an_editor_leaves() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            "Cargo.toml",
            "src/lib.rs",
            "fixtures/alive.toml",
            "Cargo.lock",
            "target/debug/x",
            "node_modules/a/index.js",
            ".git/HEAD",
            "src/.lib.rs.swp",
            "src/lib.rs~",
            "src/4913",
            "dist/x.wasm",
        ];
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let found = sources(folder.path());
        let found: Vec<_> = found.keys().map(|path| path.strip_prefix(folder.path()).unwrap()).collect();
        assert_eq!(found, ["Cargo.toml", "fixtures/alive.toml", "src/lib.rs"].map(Path::new));
    }
}
