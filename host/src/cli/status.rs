//! `status`: is everything fine, and if not, what to do? One screen: a verdict, what needs a
//! person with the command for it, and a line for each service. It reads indexes and never all
//! rows, and waits for nobody for long.

use std::time::Duration;

use comfy_table::Cell;
use serde::Serialize;

use super::Failure;
use super::connection::daemon_answers;
use super::layout::Column;
use super::needs::{self, Daemon, ENDS_SOON, Found, Need, SHOWN, counted};
use super::output::{Output, coloured, relative};
use crate::config::Home;
use crate::control::{self, HttpStatus, Operation, Outcome};
use crate::credential::now;
use crate::db::glance::{Glance, ServiceRow};
use crate::db::queries::{Counts, ExternalWorkerRow, Reader};
use crate::registry::PluginStatus;
use crate::rotation::late;
use crate::supervisor::WorkerStatus;

/// A daemon answers this from memory, in a millisecond.
const ANSWER: Duration = Duration::from_secs(5);

/// Messages of alerts that are looked at: enough to see which channels don't bring them.
const UNDELIVERED: u32 = 100;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    home: String,
    /// Nothing needs a person.
    fine: bool,
    /// The worst first, all of them.
    needs: Vec<Need>,
    /// Credentials that need a person beside those named.
    more_needs: u64,
    daemon: bool,
    counts: Counts,
    due: Vec<ServiceRow>,
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

/// What the daemon says of itself.
#[derive(Default)]
struct Said {
    workers: Vec<WorkerStatus>,
    plugins: Vec<PluginStatus>,
    in_flight: usize,
    http: Option<HttpStatus>,
    held: Vec<(String, String)>,
    clock_behind: Option<i64>,
    not_writable: Option<String>,
}

pub async fn run(home: &Home, output: Output) -> Result<(), Failure> {
    home.require()?;
    let now = now();
    let reader = Reader::open(&home.database())?;
    let glance = reader.glance(now, now + ENDS_SOON)?;
    let (daemon, mut said) = ask(home).await?;
    if daemon == Daemon::None {
        said.not_writable = not_writable(home);
    }
    let providers = if glance.ending.is_empty() { Vec::new() } else { reader.providers()? };
    let external_workers = reader.external_workers(now)?;
    let sinks = reader.sink_states()?;
    let undelivered = reader.undelivered(UNDELIVERED)?;
    let (needs, more_needs) = needs::of(&Found {
        now,
        daemon,
        not_writable: said.not_writable.as_deref(),
        late: late::waiting(&home.late()),
        free: free_bytes(home),
        clock_behind: said.clock_behind,
        glance: &glance,
        providers: &providers,
        plugins: &said.plugins,
        workers: &said.workers,
        held: &said.held,
        external_workers: &external_workers,
        sinks: &sinks,
        undelivered: &undelivered,
    });
    let Glance { counts, services, .. } = glance;
    let status = Status {
        home: home.root().display().to_string(),
        fine: needs.is_empty(),
        needs,
        more_needs,
        daemon: daemon != Daemon::None,
        counts,
        due: services,
        in_flight: said.in_flight,
        held: said.held,
        clock_behind_seconds: said.clock_behind,
        workers: said.workers,
        plugins: said.plugins,
        external_workers,
        http: said.http,
    };
    if output.json {
        output.json_line(&status, true);
    } else {
        show(&status, output);
    }
    if status.fine { Ok(()) } else { Err(Failure::Unhealthy) }
}

async fn ask(home: &Home) -> Result<(Daemon, Said), Failure> {
    if !daemon_answers(home).await? {
        return Ok((Daemon::None, Said::default()));
    }
    let socket = home.socket();
    let asked = control::ask(&socket, &Operation::Status);
    let Ok(answer) = tokio::time::timeout(ANSWER, asked).await else {
        return Ok((Daemon::Hangs, Said::default()));
    };
    let Some(answer) = answer.map_err(Failure::io("the daemon can't be asked"))? else {
        return Ok((Daemon::None, Said::default()));
    };
    let Outcome::Status { workers, plugins, in_flight, http, held, clock_behind, not_writable } = answer?
    else {
        return Err(super::plugin::unexpected());
    };
    let clock_behind = clock_behind.map(|millis| millis / 1_000);
    Ok((Daemon::Runs, Said { workers, plugins, in_flight, http, held, clock_behind, not_writable }))
}

/// Why the home could not be written, where no daemon says it of itself.
fn not_writable(home: &Home) -> Option<String> {
    let database = home.database().file()?.to_owned();
    rustix::fs::access(&database, rustix::fs::Access::WRITE_OK)
        .err()
        .map(|errno| format!("{}: {errno}", database.display()))
}

fn free_bytes(home: &Home) -> Option<u64> {
    let disk = rustix::fs::statvfs(home.root()).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

fn show(status: &Status, output: Output) {
    let all = status.needs.len() as u64 + status.more_needs;
    output.headline(status.fine, &verdict(status, all));
    let (shown, left) = status.needs.split_at(status.needs.len().min(SHOWN));
    for (number, need) in shown.iter().enumerate() {
        // A line of a terminal each; what stands in them is not ours.
        output.short_line(&format!("\n{:>3}. ", number + 1), &need.what);
        output.line(&format!("     {}", need.next));
    }
    let rest = left.len() as u64 + status.more_needs;
    if rest > 0 {
        output.line(&format!(
            "\n     … and {rest} more; `keywheel credential list --failing` and `keywheel status --json` have them"
        ));
    }
    services(status, output);
    external(status, output);
}

fn verdict(status: &Status, needs: u64) -> String {
    if needs > 0 {
        return if needs == 1 { "1 thing needs you".into() } else { format!("{needs} things need you") };
    }
    let kept = status.counts.credentials;
    if kept == 0 {
        return "Everything is fine, and nothing is kept alive yet: `keywheel credential add --help`".into();
    }
    let next = status.due.iter().filter(|service| !service.paused).filter_map(|service| service.next_due_at);
    let next = match next.min() {
        Some(at) if at <= now() => ", looking now".into(),
        Some(at) => format!(", next look {}", relative(Some(at))),
        None => String::new(),
    };
    format!("Everything is fine: {}{next}", counted(kept, "credential"))
}

fn services(status: &Status, output: Output) {
    let mut services: Vec<ServiceRow> = status.due.clone();
    // A plugin that serves and has nothing to do yet is worth its line, too.
    for worker in &status.workers {
        if !services.iter().any(|row| row.service == worker.service) {
            services.push(ServiceRow { service: worker.service.clone(), ..ServiceRow::default() });
        }
    }
    if services.is_empty() {
        output.line("\nNo plugin yet; `keywheel plugin list --available` shows those that come along.");
        return;
    }
    services.sort_by(|left, right| left.service.cmp(&right.service));
    output.line("");
    let header = [
        Column::kept("service"),
        Column::word("credentials"),
        Column::word("failing"),
        Column::ranked("due", 3),
        Column::ranked("next look", 2),
        Column::ranked("worker", 4),
        Column::ranked("pid", 7),
        Column::ranked("in flight", 6),
        Column::ranked("crashes", 5),
        Column::ranked("note", 1),
    ];
    let row = |row: &ServiceRow| {
        let worker = status.workers.iter().find(|worker| worker.service == row.service);
        let held = status.held.iter().find(|(service, _)| *service == row.service);
        let note = match (row.paused, held) {
            (true, _) => "paused".into(),
            (false, Some((_, why))) => format!("held up: {why}"),
            (false, None) => String::new(),
        };
        let of_worker =
            |text: &dyn Fn(&WorkerStatus) -> String| Cell::new(worker.map_or_else(|| "–".into(), text));
        vec![
            Cell::new(&row.service),
            Cell::new(row.credentials),
            match row.failing {
                0 => Cell::new(0),
                some => coloured_count(some),
            },
            Cell::new(row.due),
            Cell::new(relative(row.next_due_at)),
            worker.map_or_else(|| Cell::new("–"), |worker| coloured(&worker.state)),
            of_worker(&|worker| worker.pid.map_or_else(|| "–".into(), |pid| pid.to_string())),
            of_worker(&|worker| worker.in_flight.to_string()),
            of_worker(&|worker| worker.crashes.to_string()),
            Cell::new(note),
        ]
    };
    output.rows(&header, services.iter().map(row).collect());
}

fn coloured_count(count: u64) -> Cell {
    Cell::new(count).fg(comfy_table::Color::Yellow)
}

fn external(status: &Status, output: Output) {
    if status.external_workers.is_empty() {
        return;
    }
    output.line("");
    let header = [
        Column::ranked("service", 2),
        Column::kept("external worker"),
        Column::word("state"),
        Column::ranked("last heard of", 1),
        Column::ranked("expected every", 3),
        Column::ranked("pid", 5),
        Column::ranked("token", 4),
    ];
    let row = |worker: &ExternalWorkerRow| {
        vec![
            Cell::new(&worker.service),
            Cell::new(&worker.worker_id),
            coloured(worker.presence.as_str()),
            Cell::new(relative(Some(worker.last_seen_at))),
            Cell::new(format!("{} s", worker.interval_seconds)),
            Cell::new(worker.pid),
            Cell::new(&worker.token_name),
        ]
    };
    output.rows(&header, status.external_workers.iter().map(row).collect());
}
