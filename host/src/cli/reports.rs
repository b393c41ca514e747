//! `reports`: what every attempt came to. Reads the database; works with and without a daemon.

use std::time::Duration;

use clap::Subcommand;
use comfy_table::Cell;

use super::Failure;
use super::layout::Column;
use super::output::{Output, coloured};
use crate::config::Home;
use crate::db::queries::{Reader, ReportFilter, ReportRow};
use crate::report::{Status, parse_iso8601};

/// How often `tail` looks for new reports.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The newest reports
    #[command(
        after_help = "Examples:\n  keywheel reports list --credential ann --limit 10\n  keywheel reports list --status failed --since 2026-01-31T12:00:00Z"
    )]
    List {
        #[command(flatten)]
        filter: Filter,
        /// The next page: only reports before this id
        #[arg(long, value_name = "ID")]
        before: Option<i64>,
    },
    /// One report, whole
    #[command(after_help = "Examples:\n  keywheel reports show 42")]
    Show { id: i64 },
    /// New reports as they come
    #[command(
        after_help = "Examples:\n  keywheel reports tail\n  keywheel reports tail --service gitlab --json"
    )]
    Tail(Filter),
    /// Delete old reports now, to the archive first if there is one
    #[command(
        after_help = "Examples:\n  keywheel reports prune --dry-run\n  keywheel reports prune --older-than 30d --keep 1000 --archive /mnt/reports"
    )]
    Prune(super::prune::Prune),
}

#[derive(Debug, clap::Args)]
pub struct Filter {
    /// Of one credential
    #[arg(long, value_name = "ID")]
    credential: Option<String>,
    /// Of one service
    #[arg(long)]
    service: Option<String>,
    /// success, failed, validation_failed or unreachable
    #[arg(long)]
    status: Option<String>,
    /// Stored at or after this moment (ISO 8601)
    #[arg(long)]
    since: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

impl Filter {
    fn resolve(self) -> Result<ReportFilter, Failure> {
        let status = self
            .status
            .map(|text| {
                Status::parse(&text).ok_or_else(|| {
                    let known: Vec<_> = Status::ALL.iter().map(|status| status.as_str()).collect();
                    Failure::BadInput(format!("status `{text}` is unknown; known: {}", known.join(", ")))
                })
            })
            .transpose()?;
        let since = self
            .since
            .map(|text| {
                parse_iso8601(&text).ok_or_else(|| {
                    Failure::BadInput(format!(
                        "`{text}` is no moment; allowed: ISO 8601, such as 2026-01-31T12:00:00Z"
                    ))
                })
            })
            .transpose()?;
        Ok(ReportFilter {
            credential_id: self.credential,
            service: self.service,
            status,
            since,
            limit: self.limit,
            ..ReportFilter::default()
        })
    }
}

pub async fn run(home: &Home, command: Command, output: Output) -> Result<(), Failure> {
    home.require()?;
    if let Command::Prune(order) = command {
        return super::prune::run(home, order, output).await;
    }
    let reader = Reader::open(home.database())?;
    match command {
        Command::Prune(_) => Ok(()),
        Command::List { filter, before } => {
            let limit = filter.limit;
            let reports = reader.reports(&ReportFilter { before_id: before, ..filter.resolve()? })?;
            output.table(
                &reports,
                &[
                    Column::word("id"),
                    Column::ranked("finished", 3),
                    Column::ranked("service", 4),
                    Column::kept("credential"),
                    Column::ranked("attempt", 5),
                    Column::word("status"),
                    Column::ranked("message", 1),
                ],
                |row| {
                    vec![
                        Cell::new(row.id),
                        Cell::new(&row.report.finished_at),
                        Cell::new(&row.report.service),
                        Cell::new(&row.report.cookie_id),
                        Cell::new(row.report.attempt_number),
                        coloured(row.report.status.as_str()),
                        Cell::new(summary(row)),
                    ]
                },
                "no reports yet",
            );
            super::operator::older(&reports, limit, output);
            Ok(())
        }
        Command::Show { id } => {
            let row = reader
                .report(id)?
                .ok_or_else(|| Failure::NotFound(format!("no report {id}; hint: `keywheel reports list`")))?;
            // A report has no better form for a person than its own fields.
            output.json_line(&row, true);
            Ok(())
        }
        Command::Tail(filter) => {
            let mut filter = filter.resolve()?;
            let newest = reader.reports(&ReportFilter { limit: 1, ..ReportFilter::default() })?;
            filter.after_id = Some(newest.first().map_or(0, |row| row.id));
            loop {
                for row in reader.reports(&filter)? {
                    filter.after_id = Some(row.id);
                    if output.json {
                        output.json_line(&row, false);
                    } else {
                        output.line(&line(&row));
                    }
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

fn line(row: &ReportRow) -> String {
    let report = &row.report;
    format!(
        "{} {} {}/{} #{} {}",
        report.finished_at,
        report.status.as_str(),
        report.service,
        report.cookie_id,
        report.attempt_number,
        summary(row)
    )
}

fn summary(row: &ReportRow) -> String {
    let rotated = row.report.meta.get("rotated").and_then(serde_json::Value::as_bool).unwrap_or(false);
    let message = row.report.message.as_deref().unwrap_or("");
    match (rotated, message) {
        (true, "") => "rotated".into(),
        (true, message) => format!("rotated; {message}"),
        (false, message) => message.to_owned(),
    }
}
