//! What a call did, in lines for its author: each request with references in place of secrets,
//! its answer by status and size, what was captured, the log, the verdict.
//!
//! **Invariant:** no line shows a secret of the call: requests have references, and everything
//! else that a plugin or a service wrote goes through redaction.

use crate::kit::fixture::Request;
use crate::kit::{Asked, Hop, Run, Said};
use crate::protocol::LogLevel;
use crate::report::iso8601;

/// A body is shown up to here.
const BODY: usize = 400;

/// The lines of one call.
pub fn lines(run: &Run) -> Vec<String> {
    let mut lines = Vec::new();
    for asked in &run.asked {
        of_request(run, asked, &mut lines);
    }
    for fresh in &run.captured {
        let expires = fresh.expires.map_or_else(String::new, |at| format!(", expires {}", iso8601(at)));
        lines.push(format!("captured {}{expires}", fresh.key));
    }
    for key in &run.revealed {
        lines.push(format!("revealed {key}"));
    }
    for (level, line) in &run.log {
        let level = match level {
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warn => "warn",
            LogLevel::Error => "error",
        };
        lines.push(format!("log {level}: {}", run.redactor.redact_text(line)));
    }
    lines.push(verdict(run));
    lines
}

fn of_request(run: &Run, asked: &Asked, lines: &mut Vec<String>) {
    if asked.hops.is_empty() {
        request(run, &asked.made.request, false, lines);
        if let Some(Err(error)) = &asked.heard {
            lines.push(format!("← it doesn't leave: {}", run.redactor.redact_text(&error.to_string())));
        }
    }
    for hop in &asked.hops {
        request(run, &hop.made.request, hop.made.redirected, lines);
        lines.push(answer(run, hop));
    }
    // What is wrong with an answer that came, such as one that breaks off.
    if let (Some(Err(error)), Some(Ok(_))) = (&asked.heard, asked.hops.last().map(|hop| &hop.answer)) {
        lines.push(format!("  which is no answer: {}", run.redactor.redact_text(&error.to_string())));
    }
}

fn request(run: &Run, request: &Request, redirected: bool, lines: &mut Vec<String>) {
    let shown = |text: &str| run.redactor.redact_text(text).into_owned();
    let with = if request.cookies { ", with the credential's cookies" } else { "" };
    let how = if redirected { " (redirected)" } else { "" };
    lines.push(format!("→ {} {}{with}{how}", request.method, shown(&request.url)));
    for (name, value) in &request.headers {
        lines.push(format!("    {name}: {}", shown(value)));
    }
    if let Some(body) = &request.body {
        let body = shown(body);
        let short: String = body.chars().take(BODY).collect();
        let more = if short.len() < body.len() { "…" } else { "" };
        lines.push(format!("    {short}{more}"));
    }
}

fn answer(run: &Run, hop: &Hop) -> String {
    match &hop.answer {
        Err(error) => format!("← no answer: {}", run.redactor.redact_text(&error.to_string())),
        Ok(answer) => {
            let kind = answer.headers().get("content-type").and_then(|value| value.to_str().ok());
            let kind =
                kind.map_or_else(String::new, |kind| format!(" of {}", run.redactor.redact_text(kind)));
            format!("← {}, {} bytes{kind}", answer.status().as_u16(), answer.body().len())
        }
    }
}

fn verdict(run: &Run) -> String {
    let said = match &run.said {
        Ok(said) => said,
        Err(error) => return format!("= no verdict: {}", run.redactor.redact_text(&error.to_string())),
    };
    let mut line = format!("= {}", said.word());
    let evidence = said.evidence();
    let identity = evidence.and_then(|evidence| evidence.identity.as_deref());
    let expires = evidence.and_then(|evidence| evidence.expires).map(iso8601);
    let of = [identity.map(|who| format!("identity {who}")), expires.map(|at| format!("expires {at}"))];
    let message = said.message().map(str::to_owned);
    let said_more: Vec<String> = of.into_iter().chain([message]).flatten().collect();
    if !said_more.is_empty() {
        line.push_str(&format!(" ({})", run.redactor.redact_text(&said_more.join(", "))));
    }
    if let Some(judged) = run.judged.as_ref().filter(|judged| judged.word() != said.word()) {
        line.push_str(&format!("; the host would make `{}` of it{}", judged.word(), because(judged)));
    }
    line
}

fn because(judged: &Said) -> String {
    judged.message().map_or_else(String::new, |message| format!(": {message}"))
}
