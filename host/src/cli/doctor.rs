//! `doctor`: what of the sandbox this machine gives, whether that is what was configured, and,
//! on request, how an escaped guest fares against it. Works without a home and beside a daemon.

use std::path::Path;

use comfy_table::Cell;
use serde::Serialize;

use super::Failure;
use super::output::{Output, coloured};
use crate::config::{Config, Home, Isolation};
use crate::protocol::{Kind, Layer, LayerState};
use crate::supervisor::probe::{self, ATTEMPTS, Bait, Outcome};
use crate::supervisor::worker_process::Spawner;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Let a process inside the sandbox try everything an escaped plugin would
    #[arg(long)]
    self_test: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Findings {
    kernel: String,
    isolation: Isolation,
    layers: Vec<Row>,
    /// What is missing of what the configuration asks for.
    unmet: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<Vec<Tried>>,
    ok: bool,
}

/// A layer, for each kind of process.
#[derive(Serialize)]
struct Row {
    layer: String,
    worker: LayerState,
    compiler: LayerState,
}

/// One attempt of an escaped guest, against the whole sandbox of each kind of process and
/// against a worker's without its filter of system calls.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Tried {
    attempt: &'static str,
    worker: Outcome,
    compiler: Outcome,
    without_filter: Outcome,
}

pub async fn run(home: Option<&Home>, arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let config = match home {
        Some(home) => Config::load(home)?,
        None => Config::default(),
    };
    let spawner = Spawner::start(Path::new("/proc/self/exe"), tokio::runtime::Handle::current())
        .map_err(Failure::io("no process can be started"))?;
    let refused = |error: probe::ProbeError| Failure::Other(super::with_causes(&error));
    let worker = probe::layers(&spawner, Kind::Worker).await.map_err(refused)?;
    let compiler = probe::layers(&spawner, Kind::Compiler).await.map_err(refused)?;
    let require = config.isolation.requires();
    let mut unmet = require.unmet(&worker);
    unmet.extend(require.unmet(&compiler));
    unmet.sort();
    unmet.dedup();
    let attempts = if arguments.self_test { Some(self_test(&spawner).await.map_err(refused)?) } else { None };
    let escaped = attempts.iter().flatten().any(|tried| !held(&tried.worker) || !held(&tried.compiler));
    let findings = Findings {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        isolation: config.isolation,
        layers: side_by_side(worker, compiler),
        ok: unmet.is_empty() && !escaped,
        unmet,
        attempts,
    };
    if output.json {
        output.json_line(&findings, true);
    } else {
        print(&findings, output);
    }
    if findings.ok { Ok(()) } else { Err(Failure::Unhealthy) }
}

fn side_by_side(worker: Vec<Layer>, compiler: Vec<Layer>) -> Vec<Row> {
    let pairs = worker.into_iter().zip(compiler);
    pairs.map(|(one, two)| Row { layer: one.name, worker: one.state, compiler: two.state }).collect()
}

async fn self_test(spawner: &Spawner) -> Result<Vec<Tried>, probe::ProbeError> {
    let bait = Bait::lay()?;
    let mut all = Vec::new();
    for (number, attempt) in ATTEMPTS.iter().enumerate() {
        all.push(Tried {
            attempt: attempt.name,
            worker: probe::attempt(spawner, Kind::Worker, true, number, &bait).await?,
            compiler: probe::attempt(spawner, Kind::Compiler, true, number, &bait).await?,
            without_filter: probe::attempt(spawner, Kind::Worker, false, number, &bait).await?,
        });
    }
    Ok(all)
}

const fn held(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Killed | Outcome::Refused(_))
}

fn print(findings: &Findings, output: Output) {
    let isolation = serde_json::to_value(findings.isolation).unwrap_or_default();
    output.say(&format!(
        "Linux {}, isolation = \"{}\"\n",
        findings.kernel,
        isolation.as_str().unwrap_or_default()
    ));
    output.table(
        &findings.layers,
        &["layer", "worker", "compiler", "why"],
        |row| {
            let why = [&row.worker, &row.compiler].into_iter().find_map(|state| match state {
                LayerState::Unavailable(why) => Some(why.as_str()),
                _ => None,
            });
            vec![
                Cell::new(&row.layer),
                coloured(word(&row.worker)),
                coloured(word(&row.compiler)),
                Cell::new(why.unwrap_or("")),
            ]
        },
        "no layers",
    );
    if let Some(attempts) = &findings.attempts {
        output.line("");
        output.table(
            attempts,
            &["an escaped guest tries to", "worker", "compiler", "worker without seccomp"],
            |tried| {
                let mut cells = vec![Cell::new(tried.attempt)];
                cells.extend([&tried.worker, &tried.compiler, &tried.without_filter].map(in_words));
                cells
            },
            "nothing was tried",
        );
    }
    let mut words = Vec::new();
    if let Some(attempts) = &findings.attempts {
        let held = attempts.iter().filter(|tried| held(&tried.worker) && held(&tried.compiler)).count();
        words.push(format!("{held} of {} attempts to get out were stopped", attempts.len()));
    }
    words.push(if findings.unmet.is_empty() {
        "every layer that the configuration asks for is on".to_owned()
    } else {
        format!(
            "plugins will not run: {}; hint: {}",
            findings.unmet.join("; "),
            "isolation = \"best-effort\" in config.toml runs them with what this kernel has"
        )
    });
    output.say(&format!("\n{}", words.join("\n")));
}

const fn word(state: &LayerState) -> &'static str {
    match state {
        LayerState::On => "on",
        LayerState::Off => "off",
        LayerState::Unavailable(_) => "unavailable",
    }
}

fn in_words(outcome: &Outcome) -> Cell {
    match outcome {
        Outcome::Killed => Cell::new("killed"),
        Outcome::Refused(error) => Cell::new(format!("refused ({error})")),
        Outcome::Succeeded => Cell::new("got through"),
        Outcome::Unclear(what) => Cell::new(format!("unclear: {what}")),
    }
}
