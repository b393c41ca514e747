//! `credential` commands of the operator's own hand: what happened, what would happen, and the
//! way back. Nothing here is done without its risk being said first.

use std::fmt::Write as _;
use std::io::IsTerminal;

use comfy_table::Cell;
use serde_json::{Value, json};

use super::Failure;
use super::connection::Connection;
use super::credential::{find, manifest_of, refuse_external};
use super::layout::Column;
use super::output::{Output, coloured, relative};
use super::plugin::unexpected;
use super::suggest;
use crate::config::Home;
use crate::control::{Operation, Outcome};
use crate::daemon::restorable;
use crate::db::queries::{CredentialRow, GenerationRow, Reader, ReportFilter, ReportRow};
use crate::provider::CommitClass;
use crate::registry::manifest;
use crate::report::Status;
use crate::rotation::plan::{Preview, risk_of_restoring};

pub fn show(home: &Home, id: &str, output: Output) -> Result<(), Failure> {
    let row = find(home, id)?;
    let generations = Reader::open(home.database())?.generations(id)?;
    if output.json {
        output.json_line(&json!({ "credential": row, "generations": generations }), true);
        return Ok(());
    }
    output.line(&in_words(&row));
    output.table(
        &generations,
        &[
            Column::kept("generation"),
            Column::word("state"),
            Column::ranked("age", 1),
            Column::ranked("origin", 2),
            Column::ranked("keys", 3),
        ],
        |row| {
            let keys = row.keys.iter().map(|key| format!("{} {}", key.name, key.fingerprint));
            vec![
                Cell::new(row.generation),
                Cell::new(&row.state),
                Cell::new(relative(Some(row.created_at))),
                Cell::new(origin(row)),
                Cell::new(keys.collect::<Vec<_>>().join(", ")),
            ]
        },
        "no generations",
    );
    Ok(())
}

fn in_words(row: &CredentialRow) -> String {
    let monitor = &row.monitor;
    let mut text = format!("{}, a credential of {}\n", row.credential_id, row.service);
    let mut line = |name: &str, value: Option<String>| {
        // Writing into a string can't fail.
        let _ = writeln!(text, "  {name:<16}{}", value.unwrap_or_else(|| "–".into()));
    };
    line("account", row.identity.clone().or_else(|| Some("not pinned yet".into())));
    line("profile", row.profile_id.clone());
    if row.external {
        line("secrets", Some("elsewhere: external workers report on it".into()));
    }
    line(
        "status",
        Some(format!(
            "{}{}",
            if row.paused { "paused, " } else { "" },
            monitor.last_status.map_or("pending", Status::as_str)
        )),
    );
    line("message", monitor.last_message.clone());
    line("last attempt", monitor.last_attempt_at.map(|at| relative(Some(at))));
    line("last success", monitor.last_success_at.map(|at| relative(Some(at))));
    line("expires", monitor.expires_at.map(|at| relative(Some(at))));
    line(
        "next",
        monitor.next_due_at.map(|at| format!("{} {}", monitor.next_action.as_str(), relative(Some(at)))),
    );
    line("asked for rest", monitor.asked_until.map(|at| relative(Some(at))));
    line("method", row.method.clone());
    let settings = row.settings.iter().map(|(name, value)| format!("{name}={value}"));
    line("settings", Some(settings.collect::<Vec<_>>().join(" ")));
    text
}

fn origin(row: &GenerationRow) -> String {
    match (row.restored_from, row.attempt_number) {
        (Some(earlier), _) => format!("brought back from {earlier}"),
        (None, Some(attempt)) => format!("issued in attempt {attempt}"),
        (None, None) => "imported".into(),
    }
}

pub fn history(
    home: &Home,
    id: &str,
    limit: u32,
    before: Option<i64>,
    output: Output,
) -> Result<(), Failure> {
    home.require()?;
    let reader = Reader::open(home.database())?;
    let filter = ReportFilter {
        credential_id: Some(id.to_owned()),
        before_id: before,
        limit,
        ..ReportFilter::default()
    };
    let reports = reader.reports(&filter)?;
    // Reports outlive their credential, so its name alone doesn't have to be known.
    if reports.is_empty() && before.is_none() {
        find(home, id)?;
    }
    output.table(
        &reports,
        &[
            Column::word("id"),
            Column::ranked("finished", 3),
            Column::ranked("action", 4),
            Column::word("verdict"),
            Column::ranked("path", 5),
            Column::ranked("generation", 2),
            Column::ranked("message", 1),
        ],
        |row| {
            let meta = |name: &str| row.report.meta.get(name);
            let word = |name: &str| meta(name).and_then(Value::as_str).unwrap_or("–").to_owned();
            let path = meta("path")
                .and_then(Value::as_array)
                .map(|path| path.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" › "));
            vec![
                Cell::new(row.id),
                Cell::new(&row.report.finished_at),
                Cell::new(word("action")),
                coloured(&word("verdict")),
                Cell::new(path.unwrap_or_default()),
                Cell::new(generation_change(row)),
                Cell::new(row.report.message.as_deref().unwrap_or("")),
            ]
        },
        "no attempts yet",
    );
    older(&reports, limit, output);
    Ok(())
}

/// Says how the next page is asked for, where this one is full.
pub fn older(reports: &[ReportRow], limit: u32, output: Output) {
    if let Some(last) = reports.last().filter(|_| reports.len() as u64 >= u64::from(limit)) {
        output.say(&format!("older ones: --before {}", last.id));
    }
}

/// What an attempt did to the generations, from its report.
fn generation_change(row: &ReportRow) -> String {
    let meta = &row.report.meta;
    let passed = |step: &str| {
        meta.get("path").and_then(Value::as_array).is_some_and(|path| path.iter().any(|part| part == step))
    };
    match meta.get("generation").and_then(Value::as_u64) {
        Some(generation) => format!("{generation} in force"),
        None if passed("dropped") => "new one dropped".into(),
        None if passed("kept-pending") => "new one waits".into(),
        None => String::new(),
    }
}

pub async fn roll_back(
    home: &Home,
    id: &str,
    to: Option<u32>,
    yes: bool,
    output: Output,
) -> Result<(), Failure> {
    let row = find(home, id)?;
    refuse_external(&row)?;
    let generations = Reader::open(home.database())?.generations(id)?;
    let chosen = restorable(id, &generations, to)?;
    let class = class_of(home, &row);
    let origin = generations.iter().find(|row| row.generation == chosen).map(origin).unwrap_or_default();
    let risk = format!(
        "generation {chosen} of `{id}` ({origin}) becomes the one in force again, as generation {}.\n\
         Its class is {}: {}.\n\
         It is validated at once; nothing is rotated before that says so.",
        row.last_generation + 1,
        class.map_or("not known", CommitClass::as_str),
        risk_of_restoring(class),
    );
    output.say(&risk);
    if !yes {
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            return Err(Failure::Usage(format!(
                "nobody is here to ask, so nothing was changed; hint: `keywheel credential rollback {id} --to {chosen} --yes` does it"
            )));
        }
        if !output.ask("bring it back?").map_err(Failure::io("standard input can't be read"))? {
            return Err(Failure::Other("nothing was changed".into()));
        }
    }
    let operation = Operation::CredentialRollback { credential_id: id.to_owned(), generation: chosen };
    let Outcome::Restored(generation) = Connection::once(home, operation).await? else {
        return Err(unexpected());
    };
    let value = json!({
        "credential": id, "restored": chosen, "generation": generation, "next": "validate",
        "commitClass": class, "risk": risk_of_restoring(class),
    });
    output.value(&value, || {
        format!(
            "generation {chosen} of `{id}` is in force again, as generation {generation}; it is validated next"
        )
    });
    Ok(())
}

/// The class of the method that rotates it. None: no plugin of the service was ever accepted,
/// or the settings fit it no longer.
fn class_of(home: &Home, row: &CredentialRow) -> Option<CommitClass> {
    let settings: Vec<_> = row.settings.clone().into_iter().collect();
    let resolved =
        manifest::resolve(&manifest_of(home, &row.service).ok()?, &settings, &row.private_hosts).ok()?;
    let method = match &row.method {
        Some(name) => resolved.methods.into_iter().find(|method| method.name == *name),
        None => resolved.methods.into_iter().next(),
    };
    method.map(|method| method.commit_class)
}

pub async fn plan(home: &Home, id: String, output: Output) -> Result<(), Failure> {
    let asked = Connection::once(home, Operation::CredentialPlan { credential_id: id.clone() }).await;
    let asked = asked.map_err(|failure| suggest::with_credential(home, &id, failure))?;
    let Outcome::Planned(preview) = asked else {
        return Err(unexpected());
    };
    output.value(&preview, || plan_words(&preview));
    Ok(())
}

/// Fails where a made-up secret passes for valid, and where nothing could be learnt.
pub async fn self_test(home: &Home, id: String, output: Output) -> Result<(), Failure> {
    let asked = Connection::once(home, Operation::CredentialSelfTest { credential_id: id.clone() }).await;
    let asked = asked.map_err(|failure| suggest::with_credential(home, &id, failure))?;
    let Outcome::SelfTested(test) = asked else {
        return Err(unexpected());
    };
    let answered =
        format!("{} of {} requests; the last answer: {}", test.service, test.requests, test.answer);
    let why = test.message.clone().unwrap_or_default();
    output.value(&test, || match test.verdict.as_str() {
        "invalid" => format!("passed: a made-up secret is called invalid ({why})"),
        _ => String::new(),
    });
    match test.verdict.as_str() {
        "invalid" => Ok(()),
        "valid" => Err(Failure::BadInput(format!(
            "failed: a made-up secret is called valid ({answered}); hint: this plugin's `validate` would call a dead session valid too; look at its settings, or use another plugin"
        ))),
        verdict => Err(Failure::CouldNotTell(format!(
            "inconclusive: a made-up secret is called {verdict} ({answered}): {why}; hint: try again when the service answers"
        ))),
    }
}

fn plan_words(plan: &Preview) -> String {
    let mut text = format!("Nothing is sent. Rotating `{}` ({}) now", plan.credential_id, plan.service);
    let mut line = |line: String| {
        text.push('\n');
        text.push_str(&line);
    };
    if let (Some(method), Some(class)) = (&plan.method, plan.commit_class) {
        line(format!("  by              {method}, {class}: {}", plan.meaning));
        line(format!("  a lost answer   costs {}", plan.if_answer_lost));
    }
    if let Some(pending) = plan.pending_generation {
        line(format!(
            "  first           generation {pending} waits for its verdict: the next attempt asks for that, and rotates nothing"
        ));
    }
    match (&plan.request, &plan.instead) {
        (Some(request), _) => {
            line(format!("  would send      {} {}", request.method, request.url));
            for (name, value) in &request.headers {
                line(format!("                  {name}: {value}"));
            }
            if let Some(body) = &request.body {
                line(format!("  with body       {body}"));
            }
            line(match &request.refused {
                None => String::from("  permissions     allow it; what follows depends on the answer"),
                Some(why) => format!("  permissions     refuse it: {why}"),
            });
            line(format!(
                "  would capture   {}",
                if request.captures.is_empty() { "nothing".into() } else { request.captures.join(", ") }
            ));
        }
        (None, Some(instead)) => line(format!("  would send      nothing: {instead}")),
        (None, None) => {}
    }
    line(format!(
        "  generations     {} in force; what is issued is stored as {} and put in force once the service calls it valid{}",
        plan.from_generation.map_or("none".into(), |generation| generation.to_string()),
        plan.next_generation,
        if plan.dropped.is_empty() {
            String::new()
        } else {
            let dropped: Vec<_> = plan.dropped.iter().map(u32::to_string).collect();
            format!("; {} would go for good", dropped.join(", "))
        }
    ));
    line(match &plan.next_due_at {
        Some(at) => format!("  by itself       {} at {at}", plan.next_action),
        None => String::from("  by itself       never"),
    });
    if let Some(why) = &plan.rests {
        line(format!("  but             {why}: `rotate` needs --now"));
    }
    text
}
