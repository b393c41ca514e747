//! `status`: what runs and what is healthy, at a glance.

use comfy_table::Cell;
use serde::Serialize;

use super::Failure;
use super::connection::daemon_answers;
use super::output::{Output, coloured, relative};
use crate::config::Home;
use crate::control::{self, HttpStatus, Operation, Outcome};
use crate::credential::now;
use crate::db::queries::{Counts, DueCount, ExternalWorkerRow, Reader};
use crate::registry::{PluginState, PluginStatus};
use crate::supervisor::WorkerStatus;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    home: String,
    daemon: bool,
    counts: Counts,
    due: Vec<DueCount>,
    in_flight: usize,
    /// Service, and what holds it up.
    held: Vec<(String, String)>,
    /// How far the services' clocks are ahead of this host's, where it matters.
    clock_behind_seconds: Option<i64>,
    workers: Vec<WorkerStatus>,
    plugins: Vec<PluginStatus>,
    external_workers: Vec<ExternalWorkerRow>,
    http: Option<HttpStatus>,
}

pub async fn run(home: &Home, output: Output) -> Result<(), Failure> {
    home.require()?;
    let reader = Reader::open(&home.database())?;
    let mut status = Status {
        home: home.root().display().to_string(),
        daemon: false,
        counts: reader.counts()?,
        due: reader.due(now())?,
        in_flight: 0,
        held: Vec::new(),
        clock_behind_seconds: None,
        workers: Vec::new(),
        plugins: Vec::new(),
        external_workers: reader.external_workers(now())?,
        http: None,
    };
    if daemon_answers(home).await? {
        let answer = control::ask(&home.socket(), &Operation::Status)
            .await
            .map_err(Failure::io("the daemon can't be asked"))?;
        if let Some(Ok(Outcome::Status { workers, plugins, in_flight, held, clock_behind, http })) = answer {
            (status.held, status.clock_behind_seconds) = (held, clock_behind.map(|millis| millis / 1_000));
            (status.daemon, status.workers, status.plugins, status.in_flight, status.http) =
                (true, workers, plugins, in_flight, http);
        }
    }
    if output.json {
        output.json_line(&status, true);
        return Ok(());
    }
    let by_status: Vec<_> =
        status.counts.by_status.iter().map(|(name, count)| format!("{count} {name}")).collect();
    output.say(&format!(
        "{}  {}\n{} credentials ({}), {} reports\n",
        status.home,
        if status.daemon { "daemon running" } else { "no daemon running; start it with `keywheel serve`" },
        status.counts.credentials,
        if by_status.is_empty() { "none yet".to_owned() } else { by_status.join(", ") },
        status.counts.reports,
    ));
    if let Some(seconds) = status.clock_behind_seconds {
        let (off, way) = (seconds.unsigned_abs(), if seconds < 0 { "ahead" } else { "behind" });
        output.say(&format!(
            "this host's clock is {off} s {way}, by what the services say; hint: let it be set by NTP"
        ));
    }
    for (service, why) in &status.held {
        output.say(&format!("`{service}` is held up: {why}"));
    }
    let troubled: Vec<_> =
        status.plugins.iter().filter(|plugin| plugin.state != PluginState::Active).collect();
    for plugin in troubled {
        output.say(&format!("{}: {}", plugin.file, plugin.reason.as_deref().unwrap_or("not active")));
    }
    if status.daemon {
        output.table(
            &status.workers,
            &["service", "worker", "state", "pid", "in flight", "starts", "crashes"],
            |worker| {
                vec![
                    Cell::new(&worker.service),
                    Cell::new(worker.worker_id.as_deref().unwrap_or("–")),
                    coloured(&worker.state),
                    Cell::new(worker.pid.map_or("–".into(), |pid| pid.to_string())),
                    Cell::new(worker.in_flight),
                    Cell::new(worker.starts),
                    Cell::new(worker.crashes),
                ]
            },
            "no plugin is active; hint: put a .wasm or .toml file into the plugins folder",
        );
    }
    if !status.external_workers.is_empty() {
        output.say("");
        output.table(
            &status.external_workers,
            &["service", "external worker", "state", "last heard of", "expected every", "pid", "token"],
            |worker| {
                vec![
                    Cell::new(&worker.service),
                    Cell::new(&worker.worker_id),
                    coloured(worker.presence.as_str()),
                    Cell::new(relative(Some(worker.last_seen_at))),
                    Cell::new(format!("{} s", worker.interval_seconds)),
                    Cell::new(worker.pid),
                    Cell::new(&worker.token_name),
                ]
            },
            "",
        );
    }
    Ok(())
}
