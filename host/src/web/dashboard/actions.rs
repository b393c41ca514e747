//! What can be done from a page. Each is asked twice: the confirmation says what it will do and
//! what it risks, by the commit class of the very credential, and only its form does it. What is
//! done is written down first, with the session that did it, then carried out as the command line
//! would; what can't be written down isn't done.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde_json::json;

use super::super::Shared;
use super::look::{Page, Place, credential_href, facts, href};
use super::session::{Moment, Said, Signed, Tone};
use super::signin::entry;
use super::{Asked, NoPage, Posted, Shown};
use crate::control::{Operation, Outcome, Refusal};
use crate::db::Action;
use crate::db::queries::{CredentialRow, ProviderRow};
use crate::limits;
use crate::provider::CommitClass;
use crate::registry::Wish;
use crate::registry::manifest;
use crate::report::Status;
use crate::rotation::plan::{Preview, if_answer_lost, meaning, risk_of_restoring};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Validate,
    Rotate,
    RotateNow,
    Pause,
    Resume,
    RollBack,
    PauseService,
    ResumeService,
    Approve,
    Unpark,
    Snooze,
    Unsnooze,
}

/// What an action is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Credential,
    Service,
    Alert,
}

impl About {
    /// As a form and an address name it.
    const fn field(self) -> &'static str {
        match self {
            Self::Credential => "id",
            Self::Service => "service",
            Self::Alert => "subject",
        }
    }
}

/// For how long the dashboard snoozes; the command line does it for any time.
const SNOOZE_SECONDS: u32 = 24 * 60 * 60;

impl Act {
    const ALL: [(Self, &str); 12] = [
        (Self::Validate, "validate"),
        (Self::Rotate, "rotate"),
        (Self::RotateNow, "rotate-now"),
        (Self::Pause, "pause"),
        (Self::Resume, "resume"),
        (Self::RollBack, "roll-back"),
        (Self::PauseService, "pause-service"),
        (Self::ResumeService, "resume-service"),
        (Self::Approve, "approve"),
        (Self::Unpark, "unpark"),
        (Self::Snooze, "snooze"),
        (Self::Unsnooze, "unsnooze"),
    ];

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(act, _)| *act)
    }

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(act, _)| *act == self).map_or("", |(_, word)| word)
    }

    const fn about(self) -> About {
        match self {
            Self::Validate | Self::Rotate | Self::RotateNow | Self::Pause | Self::Resume | Self::RollBack => {
                About::Credential
            }
            Self::PauseService | Self::ResumeService | Self::Approve | Self::Unpark => About::Service,
            Self::Snooze | Self::Unsnooze => About::Alert,
        }
    }

    /// What the button says that does it.
    const fn verb(self) -> &'static str {
        match self {
            Self::Validate => "Check now",
            Self::Rotate => "Rotate",
            Self::RotateNow => "Rotate in any case",
            Self::Pause | Self::PauseService => "Pause",
            Self::Resume | Self::ResumeService => "Resume",
            Self::RollBack => "Roll back",
            Self::Approve => "Grant this",
            Self::Unpark => "Let it run again",
            Self::Snooze => "Snooze for a day",
            Self::Unsnooze => "Hear of it again",
        }
    }

    /// What can end a secret wears another colour.
    const fn is_risky(self) -> bool {
        matches!(self, Self::Rotate | Self::RotateNow | Self::RollBack)
    }
}

/// What an action is about, as a form and an address carry it.
struct Target {
    act: Act,
    /// A credential's id, a service, or the subject of an alert.
    name: String,
    generation: Option<u32>,
    digest: String,
    signer: Option<String>,
}

impl Target {
    fn of<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, NoPage> {
        let text = |name: &str| get(name).unwrap_or_default().to_owned();
        let act = Act::parse(&text("do")).ok_or_else(|| NoPage::not_found("There is no such action."))?;
        let generation = text("generation").parse().ok();
        if act == Act::RollBack && generation.is_none() {
            return Err(NoPage::not_found("Rolling back needs the number of a generation."));
        }
        Ok(Self {
            act,
            name: text(act.about().field()),
            generation,
            digest: text("digest"),
            signer: Some(text("signer")).filter(|signer| !signer.is_empty()),
        })
    }

    /// The page to come back to, with a number for what is said there.
    fn back(&self, said: Option<u32>) -> String {
        let said = said.map(|number| number.to_string());
        let mut parameters = Vec::new();
        if self.act.about() == About::Credential {
            parameters.push(("id", self.name.as_str()));
        }
        parameters.extend(said.as_deref().map(|number| ("said", number)));
        let path = match self.act.about() {
            About::Credential => "/dashboard/credential",
            About::Service => "/dashboard/plugins",
            About::Alert => "/dashboard/alerts",
        };
        href(path, &parameters)
    }

    fn operation(&self) -> Operation {
        let (credential_id, service) = (self.name.clone(), self.name.clone());
        let run = |action, now| Operation::CredentialRun { credential_id: self.name.clone(), action, now };
        match self.act {
            Act::Validate => run(Action::Validate, false),
            Act::Rotate => run(Action::Rotate, false),
            Act::RotateNow => run(Action::Rotate, true),
            Act::Pause => Operation::CredentialPause { credential_id, paused: true },
            Act::Resume => Operation::CredentialPause { credential_id, paused: false },
            Act::RollBack => {
                Operation::CredentialRollback { credential_id, generation: self.generation.unwrap_or(0) }
            }
            Act::PauseService => Operation::PluginPause { service, paused: true },
            Act::ResumeService => Operation::PluginPause { service, paused: false },
            Act::Approve => {
                Operation::PluginApprove { service, digest: self.digest.clone(), signer: self.signer.clone() }
            }
            Act::Unpark => Operation::PluginUnpark { service },
            Act::Snooze => Operation::AlertSnooze { subject: self.name.clone(), seconds: SNOOZE_SECONDS },
            Act::Unsnooze => Operation::AlertUnsnooze { subject: self.name.clone() },
        }
    }
}

/// What is known for the confirmation.
#[derive(Default)]
struct Known {
    row: Option<CredentialRow>,
    class: Option<CommitClass>,
    plan: Option<Result<Preview, String>>,
    wish: Option<Wish>,
}

pub async fn confirm(
    State(shared): State<Arc<Shared>>,
    Extension(signed): Extension<Signed>,
    Query(asked): Asked,
) -> Shown {
    let target = Target::of(|name| asked.get(name).map(String::as_str))?;
    let known = find_out(&shared, &target).await?;
    let title = title(&target);
    let body = html! {
        nav.crumbs aria-label="Breadcrumb" {
            @match target.act.about() {
                About::Credential => {
                    a href="/dashboard" { "Overview" } " / "
                    a href=(credential_href(&target.name)) { bdi { (target.name) } }
                },
                About::Service => { a href="/dashboard/plugins" { "Plugins" } " / " (target.name) },
                About::Alert => { a href="/dashboard/alerts" { "Alerts" } " / " bdi { (target.name) } },
            }
        }
        div.confirm {
            h1 { (title) }
            (explained(&target, &known))
            form method="post" action="/dashboard/do" {
                input type="hidden" name="csrf" value=(signed.csrf);
                input type="hidden" name="do" value=(target.act.word());
                input type="hidden" name=(target.act.about().field()) value=(target.name);
                @if let Some(generation) = target.generation { input type="hidden" name="generation" value=(generation); }
                @if let Some(wish) = &known.wish {
                    // What is granted is what was shown: the daemon compares.
                    input type="hidden" name="digest" value=(wish.to.digest);
                    @if let Some(key) = wish.to.public_key() { input type="hidden" name="signer" value=(key); }
                }
                div.actions {
                    button type="submit" class=(if target.act.is_risky() { "risky" } else { "primary" }) { (target.act.verb()) }
                    a.button href=(target.back(None)) { "Cancel" }
                }
            }
        }
    };
    Ok(Page { signed: &signed, title: &title, place: Place::Elsewhere, said: None, body }.send())
}

fn title(target: &Target) -> String {
    let name = &target.name;
    match target.act {
        Act::Validate => format!("Check {name} now?"),
        Act::Rotate => format!("Rotate {name}?"),
        Act::RotateNow => format!("Rotate {name} in any case?"),
        Act::Pause => format!("Pause {name}?"),
        Act::Resume => format!("Resume {name}?"),
        Act::RollBack => format!("Roll {name} back to generation {}?", target.generation.unwrap_or(0)),
        Act::PauseService => format!("Pause the service {name}?"),
        Act::ResumeService => format!("Resume the service {name}?"),
        Act::Approve => format!("Approve the new version of {name}?"),
        Act::Unpark => format!("Let the worker of {name} run again?"),
        Act::Snooze => format!("Snooze {name}?"),
        Act::Unsnooze => format!("Hear of {name} again?"),
    }
}

async fn find_out(shared: &Shared, target: &Target) -> Result<Known, NoPage> {
    let name = target.name.clone();
    if target.act.about() == About::Alert {
        return Ok(Known::default());
    }
    if target.act.about() == About::Service {
        let wish = match target.act {
            Act::Approve => match (shared.command)(Operation::PluginWish { service: name }).await {
                Ok(Outcome::Wish(wish)) if wish.needs_approval => Some(*wish),
                Ok(_) => {
                    return Err(NoPage::not_found(
                        "It has everything it asks for: there is nothing to approve.",
                    ));
                }
                Err(refusal) => return Err(refused(&refusal)),
            },
            _ => match shared.pages.read(move |reader| reader.provider(&name)).await? {
                Some(_) => None,
                None => return Err(NoPage::not_found(format!("No plugin ever served {:?}.", target.name))),
            },
        };
        return Ok(Known { wish, ..Known::default() });
    }
    let found = shared
        .pages
        .read(move |reader| {
            let Some(row) = reader.credential(&name)? else { return Ok(None) };
            let provider = reader.provider(&row.service)?;
            Ok(Some((row, provider)))
        })
        .await?;
    let Some((row, provider)) = found else {
        return Err(NoPage::not_found(format!("There is no credential {:?}.", target.name)));
    };
    let class = class_of(&row, provider.as_ref());
    let plan = match target.act {
        Act::Rotate | Act::RotateNow => {
            let planned = (shared.command)(Operation::CredentialPlan { credential_id: target.name.clone() });
            Some(match tokio::time::timeout(limits::DASHBOARD_PATIENCE, planned).await {
                Ok(Ok(Outcome::Planned(plan))) => Ok(*plan),
                Ok(Err(refusal)) => Err(refusal.message),
                Ok(Ok(_)) | Err(_) => Err(String::from("the plugin took too long to say what it would send")),
            })
        }
        _ => None,
    };
    Ok(Known { row: Some(row), class, plan, wish: None })
}

/// The class of the method that rotates it. None: nothing does, or its settings don't fit.
fn class_of(row: &CredentialRow, provider: Option<&ProviderRow>) -> Option<CommitClass> {
    let settings: Vec<_> = row.settings.clone().into_iter().collect();
    let resolved = manifest::resolve(&provider?.manifest, &settings, &row.private_hosts).ok()?;
    let mut methods = resolved.methods.into_iter();
    let method = match &row.method {
        Some(name) => methods.find(|method| method.name == *name),
        None => methods.next(),
    };
    method.map(|method| method.commit_class)
}

fn refused(refusal: &Refusal) -> NoPage {
    NoPage::not_found(sentence(&refusal.message))
}

/// What it does and what it risks.
fn explained(target: &Target, known: &Known) -> Markup {
    let paused = known.row.as_ref().is_some_and(|row| row.paused || row.service_paused);
    match target.act {
        Act::Validate => html! {
            p { "Asks the service once, with the secret in force, whether it lives." }
            (risk("low", html! { "A check changes no secret." @if paused { " It is paused; a check by hand is made all the same." } }))
        },
        Act::Rotate | Act::RotateNow => html! {
            p {
                "Asks the service for a fresh secret, stores it before anything else happens, tests it, and puts it in force once the service calls it valid. "
                @if target.act == Act::RotateNow { "This is done also in a pause, in quiet time, while the service asked to be left alone, and where the secret may have been spent already." }
                @else { "It is refused while there is a reason to wait." }
            }
            (risk_of_rotating(known.class, target.act == Act::RotateNow))
            (planned(known))
        },
        Act::Pause => html! {
            p { "Nothing is done by itself any more: no check, no rotation. An attempt that is under way ends." }
            (risk("some", html! { "A secret that ends meanwhile is not renewed. The pause outlasts restarts, until you resume it." }))
        },
        Act::Resume => html! {
            p { "Its schedule goes on; what fell due meanwhile is done at once." }
            (risk("low", html! { "Nothing more than what it would have done without the pause." }))
        },
        Act::RollBack => html! {
            p { "The keys of generation " (target.generation.unwrap_or(0)) " are put in force again, as a new generation, and validated at once. Nothing is rotated before that says so." }
            (risk(if known.class == Some(CommitClass::BurnOnIssue) { "high" } else { "some" }, html! {
                @if let Some(class) = known.class { "Its commit class is " strong { (class) } ": " }
                (risk_of_restoring(known.class)) "."
            }))
        },
        Act::PauseService => html! {
            p { "Nothing of this service is done by itself any more, for any of its credentials." }
            (risk("some", html! { "Secrets that end meanwhile are not renewed. The pause outlasts restarts, until you resume it." }))
        },
        Act::ResumeService => html! {
            p { "Its credentials go on; what fell due meanwhile is started one after another, the urgent first." }
            (risk("low", html! { "Nothing more than what would have been done without the pause." }))
        },
        Act::Approve => html! { @if let Some(wish) = &known.wish { (wished(wish)) } },
        Act::Unpark => html! {
            p { "The worker kept dying and was parked. It may run again; if it dies again it is parked again." }
            (risk("low", html! { "Attempts may fail once more. What a service issues is stored before its worker hears of it." }))
        },
        Act::Snooze => html! {
            p { "Nobody is told of it for a day; that it is well again is told all the same. The command line snoozes for any time." }
            (risk("some", html! { "If it gets worse meanwhile, only these pages say so." }))
        },
        Act::Unsnooze => html! {
            p { "Whoever is told of alerts hears of it again from now on." }
            (risk("low", html! { "A message, if it is still in trouble." }))
        },
    }
}

fn risk(class: &str, text: Markup) -> Markup {
    html! { div class={ "risk " (class) } { strong { "Risk: " } (text) } }
}

/// What rotating costs where the answer is lost, in plain words for each class. Pure.
fn risk_of_rotating(class: Option<CommitClass>, insists: bool) -> Markup {
    let Some(class) = class else {
        return risk("low", html! { "Its provider has no way to rotate, so it will only be checked." });
    };
    let level = match class {
        CommitClass::BurnOnIssue => "high",
        CommitClass::Grace => "some",
        CommitClass::Sliding | CommitClass::Additive | CommitClass::CommitOnUse => "low",
    };
    risk(
        level,
        html! {
            "its commit class is " strong { (class) } ": " (meaning(class)) ". "
            "A lost answer costs " (if_answer_lost(class)) "."
            @if insists && class == CommitClass::BurnOnIssue {
                " Where the secret was spent already, a service that sees it again may revoke every token that came after it."
            }
        },
    )
}

fn planned(known: &Known) -> Markup {
    html! {
        @match &known.plan {
            None => {},
            Some(Err(why)) => p.under { "What it would send can\u{2019}t be shown: " bdi { (why) } "." },
            Some(Ok(plan)) => {
                @if let Some(why) = &plan.rests { p.rests { strong { "There is a reason to wait: " } bdi { (why) } "." } }
                @if let Some(pending) = plan.pending_generation {
                    p { "Generation " (pending) " still waits for its verdict: the attempt asks for that first, and rotates nothing." }
                }
                @if let Some(instead) = &plan.instead { p { "The plugin would send nothing: " bdi { (instead) } } }
                details {
                    summary { "What it would send" }
                    @if let Some(request) = &plan.request {
                        pre tabindex="0" aria-label="The first request, with names in the place of secrets" {
                            code {
                                (request.method) " " (request.url) "\n"
                                @for (name, value) in &request.headers { (name) ": " (value) "\n" }
                                @if let Some(body) = &request.body { "\n" (body) }
                            }
                        }
                        @if let Some(why) = &request.refused { p { "Its permissions refuse it: " bdi { (why) } } }
                    }
                    (facts(&[
                        ("Method", html! { (plan.method.as_deref().unwrap_or("none")) }),
                        ("In force now", html! { @match plan.from_generation { Some(generation) => { "generation " (generation) }, None => "nothing" } }),
                        ("Stored as", html! { "generation " (plan.next_generation) }),
                        ("Gone for good then", html! {
                            @if plan.dropped.is_empty() { "nothing" }
                            @else { "generation " (plan.dropped.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")) }
                        }),
                    ]))
                }
            },
        }
    }
}

fn wished(wish: &Wish) -> Markup {
    html! {
        p {
            bdi { (wish.to.title) } ": version " bdi { (wish.from.version) }
            @if wish.from.digest != wish.to.digest { " → " bdi { (wish.to.version) } }
            ". The accepted one works on until you decide."
        }
        h2 { "What changes" }
        @if wish.lines.is_empty() { p { "Nothing but the file itself." } }
        ul.difference {
            @for line in &wish.lines {
                @let class = if line.starts_with("newly") || line.starts_with("another signer") { "wider" } else { "" };
                li class=(class) { bdi { (line) } }
            }
        }
        (risk("some", html! { "the new version may do what is listed, with the secrets of every credential of this service. Grant it only if you know why it asks." }))
        (facts(&[
            ("Signed", html! { (wish.to.signer()) }),
            ("Digest", html! { code.wrap { (wish.to.digest) } }),
            ("Before", html! { code.wrap { (wish.from.digest) } }),
        ]))
    }
}

pub async fn carry_out(
    State(shared): State<Arc<Shared>>,
    Extension(signed): Extension<Signed>,
    form: Posted,
) -> Result<Response, NoPage> {
    let target = Target::of(|name| form.0.get(name).map(String::as_str))?;
    let id = signed.id;
    let Ok(task) = Arc::clone(&shared.pages.tasks).try_acquire_owned() else {
        let said =
            Said { tone: Tone::Bad, text: String::from("Too much is under way. Try again in a moment.") };
        return Ok(Redirect::to(&target.back(Some(shared.pages.sessions.say(&id, said, Moment::now()))))
            .into_response());
    };
    if let Err(error) = write_down(&shared, &target, &id).await {
        let text = sentence(&format!("it could not be written down, so nothing was done: {error}"));
        let number = shared.pages.sessions.say(&id, Said { tone: Tone::Bad, text }, Moment::now());
        return Ok(Redirect::to(&target.back(Some(number))).into_response());
    }
    tracing::info!(session = id, action = target.act.word(), about = target.name, "done from the dashboard");
    let waits = Said {
        tone: Tone::UnderWay,
        text: String::from("It takes a moment; what comes of it is shown here."),
    };
    let number = shared.pages.sessions.say(&id, waits, Moment::now());
    let back = target.back(Some(number));
    // On its own, for it goes on when the browser leaves.
    let done = tokio::spawn(async move {
        let outcome = (shared.command)(target.operation()).await;
        shared.pages.sessions.say_again(&id, number, told(&target, outcome), Moment::now());
        drop(task);
    });
    let _ = tokio::time::timeout(limits::DASHBOARD_PATIENCE, done).await;
    Ok(Redirect::to(&back).into_response())
}

async fn write_down(shared: &Shared, target: &Target, session: &str) -> Result<(), Unwritten> {
    let mut detail = json!({ "session": session, "did": target.act.word() });
    let service = match target.act.about() {
        About::Service => Some(target.name.clone()),
        About::Alert => {
            detail["subject"] = target.name.clone().into();
            None
        }
        About::Credential => {
            let name = target.name.clone();
            let row = shared
                .pages
                .read(move |reader| reader.credential(&name))
                .await
                .map_err(|page| Unwritten(page.text))?;
            detail["credential"] = target.name.clone().into();
            if let Some(generation) = target.generation {
                detail["generation"] = generation.into();
            }
            row.map(|row| row.service)
        }
    };
    shared
        .writer
        .note(vec![entry("dashboard-did", service, detail)])
        .await
        .map_err(|error| Unwritten(error.to_string()))
}

/// Why something could not be written down.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unwritten(String);

/// What came of it, in a sentence.
fn told(target: &Target, outcome: Result<Outcome, Refusal>) -> Said {
    let name = &target.name;
    let good = |text: String| Said { tone: Tone::Good, text };
    match outcome {
        Err(refusal) => Said { tone: Tone::Bad, text: sentence(&refusal.message) },
        Ok(Outcome::Report(report)) => {
            let verdict =
                report.meta.get("verdict").and_then(|verdict| verdict.as_str()).unwrap_or("unknown");
            let generation = report.meta.get("generation").and_then(|number| number.as_u64());
            let message = report.message.as_deref().unwrap_or("no reason was given");
            match (report.status, generation) {
                (Status::Success, Some(generation)) => {
                    good(format!("{name} was rotated: generation {generation} is in force."))
                }
                (Status::Success, None) => good(format!("{name} is alive.")),
                _ => Said { tone: Tone::Bad, text: sentence(&format!("{name}: {verdict}, {message}")) },
            }
        }
        Ok(Outcome::Restored(generation)) => good(format!(
            "{name} was rolled back; generation {generation} is in force and is validated next."
        )),
        Ok(Outcome::Wish(_)) => good(format!("The new version of {name} was granted what it asked for.")),
        Ok(Outcome::Snoozed { subject, until: Some(_) }) => good(format!("{subject} is snoozed for a day.")),
        Ok(Outcome::Snoozed { subject, until: None }) => good(format!("{subject} is heard of again.")),
        Ok(Outcome::Unparked(true)) => good(format!("The worker of {name} may run again.")),
        Ok(Outcome::Unparked(false)) => good(format!("The worker of {name} wasn\u{2019}t parked.")),
        Ok(_) => match target.act {
            Act::Pause => good(format!("{name} is paused.")),
            Act::Resume => good(format!("{name} goes on.")),
            Act::PauseService => good(format!("The service {name} is paused.")),
            Act::ResumeService => good(format!("The service {name} goes on.")),
            _ => good(String::from("Done.")),
        },
    }
}

/// Errors are written in lower case and without a full stop; a page has sentences.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    let stop = if text.ends_with(['.', '!', '?', '…']) { "" } else { "." };
    format!("{first}{}{stop}", letters.as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn target(of: &[(&str, &str)]) -> Result<Target, NoPage> {
        let of: HashMap<_, _> = of.iter().copied().collect();
        Target::of(|name| of.get(name).copied())
    }

    #[test]
    fn every_action_has_a_word_of_its_own_and_an_operation() {
        for (act, word) in Act::ALL {
            let target = target(&[
                ("do", word),
                ("id", "ann"),
                ("service", "forge"),
                ("subject", "host:disk"),
                ("generation", "2"),
            ]);
            let target = target.ok().unwrap();
            assert_eq!((target.act, target.act.word()), (act, word));
            let json = serde_json::to_string(&target.operation()).unwrap();
            let about = match act.about() {
                About::Credential => "ann",
                About::Service => "forge",
                About::Alert => "host:disk",
            };
            assert!(json.contains(&format!("\"{about}\"")) && target.name == about, "{json}");
            assert!(title(&target).contains(about) && title(&target).ends_with('?'));
        }
        assert!(target(&[("do", "remove"), ("id", "ann")]).is_err());
        assert!(target(&[("do", "roll-back"), ("id", "ann")]).is_err());
        let now = target(&[("do", "rotate-now"), ("id", "ann")]).ok().unwrap().operation();
        assert!(matches!(now, Operation::CredentialRun { action: Action::Rotate, now: true, .. }));
    }

    #[test]
    fn each_commit_class_says_what_a_lost_answer_costs() {
        for class in CommitClass::ALL {
            let text = risk_of_rotating(Some(class), true).into_string();
            let burns = class == CommitClass::BurnOnIssue;
            assert_eq!(text.contains("a person must sign in again"), burns, "{text}");
            assert_eq!(text.contains("risk high"), burns, "{text}");
            assert!(text.contains(class.as_str()), "{text}");
        }
        assert!(risk_of_rotating(None, false).into_string().contains("no way to rotate"));
    }

    #[test]
    fn what_is_refused_is_told_in_a_sentence() {
        assert_eq!(sentence("`ann` is busy; hint: try again"), "`ann` is busy; hint: try again.");
        assert_eq!(sentence("no credential"), "No credential.");
        assert_eq!(sentence("Done."), "Done.");
    }
}
