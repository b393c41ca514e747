//! `reports prune`: deletes old reports by hand, a moment at a time, so that it can be watched
//! and ended at any point.

use std::io::IsTerminal;
use std::path::PathBuf;

use serde_json::json;

use super::Failure;
use super::connection::Connection;
use super::credential::seconds;
use super::output::Output;
use super::plugin::unexpected;
use super::progress::Progress;
use crate::config::{Config, Home};
use crate::control::{Operation, Outcome};
use crate::credential::now;
use crate::db::queries::Reader;
use crate::retention::{Position, Rules, Survey, survey};

#[derive(Debug, clap::Args)]
pub struct Prune {
    /// Say what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// Delete what was stored longer ago, such as 30d; 0: no such limit [default: config.toml's]
    #[arg(long, value_name = "TIME")]
    older_than: Option<String>,
    /// Delete all but so many newest of each credential; 0: no such limit [default: config.toml's]
    #[arg(long, value_name = "COUNT")]
    keep: Option<u32>,
    /// Of one credential
    #[arg(long, value_name = "ID")]
    credential: Option<String>,
    /// Write them here first, as compressed JSON Lines [default: config.toml's]
    #[arg(long, value_name = "FOLDER")]
    archive: Option<PathBuf>,
}

pub async fn run(home: &Home, order: Prune, output: Output) -> Result<(), Failure> {
    let config = Config::load(home)?.reports;
    let age = match order.older_than.as_deref() {
        Some("0") => None,
        Some(text) => Some(u64::from(seconds(text)?)),
        None => (config.keep_days > 0).then_some(u64::from(config.keep_days) * 86_400),
    };
    let keep = Some(order.keep.unwrap_or(config.keep_per_credential)).filter(|&keep| keep > 0);
    let stored_before = age.map(|seconds| now().saturating_sub(seconds * 1_000));
    let rules = Rules { stored_before, keep, credential: order.credential };
    if rules.stored_before.is_none() && rules.keep.is_none() {
        return Err(Failure::Usage(
            "there is no limit, so nothing ends; hint: --older-than 30d or --keep 1000, or set one in config.toml".into(),
        ));
    }
    let archive = match order.archive {
        Some(folder) => Some(std::path::absolute(&folder).map_err(Failure::io("--archive is no folder"))?),
        None => home.archive(&config),
    };
    if order.dry_run {
        let found = survey(&Reader::open(home.database())?, &rules)?;
        output.value(&json!({ "dryRun": true, "would": found }), || {
            format!(
                "{}{}",
                words("would delete", &found),
                if found.reports > 0 { "; nothing was" } else { "" }
            )
        });
        return Ok(());
    }
    // Counting them takes as long as a step of it, so only for somebody who looks.
    let total = match std::io::stderr().is_terminal() && !output.json {
        true => survey(&Reader::open(home.database())?, &rules)?.reports,
        false => 0,
    };
    let bar = Progress::counted(total, "reports");
    let connection = Connection::open(home).await?;
    let deleted = async {
        let (mut position, mut deleted) = (Position::START, 0);
        while position != Position::End {
            let operation =
                Operation::ReportsPrune { rules: rules.clone(), archive: archive.clone(), from: position };
            let Outcome::Pruned(pruned) = connection.ask(operation).await? else { return Err(unexpected()) };
            deleted += pruned.reports;
            bar.reached(deleted);
            position = pruned.next;
        }
        Ok(deleted)
    }
    .await;
    drop(bar);
    connection.close().await;
    let deleted = deleted?;
    let folder = archive.map(|folder| folder.display().to_string());
    output.value(&json!({ "deleted": deleted, "archive": folder }), || {
        let archived = folder.as_ref().map(|folder| format!(", archived in {folder}"));
        format!("deleted {deleted} reports{}", archived.filter(|_| deleted > 0).unwrap_or_default())
    });
    Ok(())
}

fn words(verb: &str, found: &Survey) -> String {
    match (&found.oldest, &found.newest) {
        (Some(oldest), Some(newest)) => format!(
            "{verb} {} reports of {} credentials, stored from {oldest} to {newest}",
            found.reports, found.credentials
        ),
        _ => format!("{verb} nothing"),
    }
}
