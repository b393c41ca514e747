//! What every page is made of: its frame, and the small parts that stand on several. Text of
//! plugins and services passes `send` last, where what could turn the reading direction or hide
//! itself is shown escaped; markup is escaped where it is put in.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use super::session::{Said, Signed, Tone};
use super::words::{Standing, relative, span, status};
use crate::credential::Millis;
use crate::db::Action;
use crate::db::queries::CredentialRow;
use crate::db::views::Beat;
use crate::registry::manifest::is_deceptive;
use crate::report::{Status, iso8601};

/// A file that pages refer to by a name with its hash in it, so that it may be kept for ever.
pub struct Asset {
    pub name: String,
    pub kind: &'static str,
    pub text: &'static str,
}

impl Asset {
    fn new(stem: &str, ending: &str, kind: &'static str, text: &'static str) -> Self {
        let hash = hex::encode(Sha256::digest(text));
        Self { name: format!("{stem}-{}.{ending}", &hash[..16]), kind, text }
    }

    fn href(&self) -> String {
        format!("/dashboard/assets/{}", self.name)
    }
}

pub static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("style", "css", "text/css; charset=utf-8", include_str!("style.css")));
pub static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("live", "js", "text/javascript; charset=utf-8", include_str!("live.js")));
pub static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon", "svg", "image/svg+xml", include_str!("icon.svg")));

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Overview,
    Plugins,
    Workers,
    Alerts,
    Audit,
    /// A page below none of them.
    Elsewhere,
}

/// A page of somebody who is signed in.
pub struct Page<'a> {
    pub signed: &'a Signed,
    pub title: &'a str,
    pub place: Place,
    /// What became of what was asked for on the page before.
    pub said: Option<Said>,
    pub body: Markup,
}

impl Page<'_> {
    pub fn send(self) -> Response {
        let Self { signed, title, place, said, body } = self;
        let link = |to: &str, name: &str, of: Place| {
            html! {
                li { a href=(to) aria-current=[(place == of).then_some("page")] { (name) } }
            }
        };
        let frame = html! {
            header.top {
                a.brand href="/dashboard" { (PreEscaped(include_str!("icon.svg"))) span { "Keywheel" } }
                nav aria-label="Main" {
                    ul {
                        (link("/dashboard", "Overview", Place::Overview))
                        (link("/dashboard/plugins", "Plugins", Place::Plugins))
                        (link("/dashboard/workers", "Workers", Place::Workers))
                        (link("/dashboard/alerts", "Alerts", Place::Alerts))
                        (link("/dashboard/audit", "Audit", Place::Audit))
                    }
                }
                div.session {
                    // Filled by the script: without it a page is as it was when it was loaded.
                    span #live .live hidden {}
                    form method="post" action="/dashboard/sign-out" {
                        input type="hidden" name="csrf" value=(signed.csrf);
                        button.quiet type="submit" { "Sign out" }
                    }
                }
            }
            main #main tabindex="-1" {
                div #said data-live role="status" aria-live="polite" {
                    @if let Some(said) = &said { (message(said)) }
                }
                (body)
            }
            p #heard .unseen role="status" aria-live="polite" {}
        };
        send(StatusCode::OK, document(title, true, &frame))
    }
}

fn message(said: &Said) -> Markup {
    let (class, name) = match said.tone {
        Tone::Good => ("good", "Done"),
        Tone::Bad => ("bad", "Not done"),
        Tone::UnderWay => ("under-way", "Under way"),
    };
    html! { p class={ "said " (class) } { strong { (name) ": " } (ticked(&said.text)) } }
}

/// A page of nobody in particular: signing in, and what went wrong.
pub fn plain(code: StatusCode, title: &str, body: &Markup) -> Response {
    let frame = html! {
        header.top { span.brand { (PreEscaped(include_str!("icon.svg"))) span { "Keywheel" } } }
        main #main .narrow tabindex="-1" { h1 { (title) } (body) }
    };
    send(code, document(title, false, &frame))
}

fn document(title: &str, live: bool, frame: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) " · Keywheel" }
                link rel="icon" type="image/svg+xml" href=(ICON.href());
                link rel="stylesheet" href=(STYLE.href());
                @if live { script defer src=(SCRIPT.href()) {} }
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                (frame)
            }
        }
    }
}

/// Every page goes out here.
fn send(code: StatusCode, page: Markup) -> Response {
    let mut response = Response::new(Body::from(inert(page.into_string())));
    *response.status_mut() = code;
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// What could pass for other text than it is, shown as what it is. Line ends are markup's own.
fn inert(page: String) -> String {
    let acts = |c: char| is_deceptive(c) && !matches!(c, '\n' | '\t');
    if !page.contains(acts) {
        return page;
    }
    page.chars().fold(String::new(), |mut shown, c| {
        if acts(c) {
            shown.extend(c.escape_unicode())
        } else {
            shown.push(c)
        }
        shown
    })
}

/// A moment by its distance, with itself for who wants to know.
pub fn time(at: Millis, now: Millis) -> Markup {
    let iso = iso8601(at);
    html! { time datetime=(iso) title=(utc(&iso)) { (relative(at, now)) } }
}

pub fn time_or(at: Option<Millis>, now: Millis, none: &str) -> Markup {
    html! { @match at { Some(at) => (time(at, now)), None => span.faint { (none) } } }
}

/// ISO 8601 as a person reads it.
pub fn utc(iso: &str) -> String {
    let text = iso.replacen('T', " ", 1);
    let whole = text.split_once('.').map_or(text.as_str(), |(whole, _)| whole);
    format!("{} UTC", whole.trim_end_matches('Z'))
}

pub fn badge(standing: Standing) -> Markup {
    html! { span class={ "badge " (standing.class()) } { (standing.label()) } }
}

pub fn status_badge(of: Status) -> Markup {
    let class = match of {
        Status::Success => "sound",
        Status::Unreachable => "failing",
        Status::Failed | Status::ValidationFailed => "person",
    };
    html! { span class={ "badge " (class) } { (status(of)) } }
}

/// The last attempts as bars, oldest first. What is not a success is told by its shape as well.
pub fn sparkline(beats: &[Beat], most: usize) -> Markup {
    const STEP: usize = 6;
    const HEIGHT: usize = 20;
    let succeeded = beats.iter().filter(|beat| beat.status == Status::Success).count();
    let label = match beats.last() {
        None => String::from("no attempts yet"),
        Some(last) => format!(
            "{succeeded} of the last {} succeeded, the newest: {}",
            super::words::count(beats.len() as u64, "attempt", "attempts"),
            status(last.status)
        ),
    };
    let missing = most.saturating_sub(beats.len());
    html! {
        svg.spark role="img" aria-label=(label) width=(most * STEP) height=(HEIGHT)
            viewBox={ "0 0 " (most * STEP) " " (HEIGHT) } {
            @for place in 0..missing {
                rect.none x=(place * STEP) y="16" width="4" height="4" rx="1" {}
            }
            @for (place, beat) in beats.iter().enumerate() {
                @let x = (missing + place) * STEP;
                @match beat.status {
                    Status::Success => rect.sound x=(x) y="6" width="4" height="14" rx="1" {},
                    Status::Unreachable => rect.failing x=(x) y="12" width="4" height="8" rx="1" {},
                    Status::Failed | Status::ValidationFailed => rect.person x=(x) y="0" width="4" height="20" rx="1" {},
                }
            }
        }
    }
}

pub fn credential_href(id: &str) -> String {
    href("/dashboard/credential", &[("id", id)])
}

pub fn report_href(id: i64) -> String {
    format!("/dashboard/report?id={id}")
}

/// An address with parameters.
pub fn href(path: &str, parameters: &[(&str, &str)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(parameters);
    format!("{path}?{}", query.finish())
}

/// One credential of a list.
pub struct Item {
    pub row: CredentialRow,
    pub standing: Standing,
    pub beats: Vec<Beat>,
}

/// Attempts of a credential that a list shows.
pub const BEATS: usize = 20;

/// A message as a list shows it; the whole of it is on the credential's page.
const SHOWN: usize = 160;

pub fn list(id: &str, caption: &str, items: &[Item], now: Millis) -> Markup {
    html! {
        table #(id) .credentials {
            caption.unseen { (caption) }
            colgroup { col.state; col.name; col.beats; col.success; col.next; }
            thead {
                tr {
                    th scope="col" { "State" }
                    th scope="col" { "Credential" }
                    th scope="col" { "Recent attempts" }
                    th scope="col" { "Last success" }
                    th scope="col" { "Next" }
                }
            }
            tbody {
                @for Item { row, standing, beats } in items {
                    @let monitor = &row.monitor;
                    tr id={ (id) "-" (row.credential_id) } {
                        td.state { (badge(*standing)) }
                        th.name scope="row" {
                            a href=(credential_href(&row.credential_id)) { bdi { (row.credential_id) } }
                            span.under {
                                (row.service)
                                @if let Some(account) = &row.identity { " · " bdi { (account) } }
                                @if row.external { " · external" }
                            }
                            @if let Some(message) = monitor.last_message.as_ref().filter(|_| *standing <= Standing::Failing) {
                                span.message { bdi { (cut(message, SHOWN)) } }
                            }
                        }
                        td.beats { (sparkline(beats, BEATS)) }
                        td.success data-name="Last success" { div { (time_or(monitor.last_success_at, now, "never")) } }
                        td.next data-name="Next" { div { (next(row, now)) } }
                    }
                }
            }
        }
    }
}

/// When it is looked at next, and for what; and when it ends.
fn next(row: &CredentialRow, now: Millis) -> Markup {
    html! {
        (next_action(row, now))
        @if let Some(end) = row.monitor.expires_at {
            span.under { @if end > now { "expires " } @else { "expired " } (time(end, now)) }
        }
    }
}

pub fn next_action(row: &CredentialRow, now: Millis) -> Markup {
    let monitor = &row.monitor;
    let what = match monitor.next_action {
        Action::Validate => "check",
        Action::Rotate => "rotate",
    };
    html! {
        @if row.open_attempt.is_some() {
            span.running { "under way" }
        } @else if row.external {
            span.faint { "when its worker reports" }
        } @else if row.paused || row.service_paused {
            span.faint { "not by itself" }
        } @else {
            @match monitor.next_due_at {
                Some(at) if at <= now => { (what) " now" },
                Some(at) => { (what) " " (time(at, now)) },
                None => span.faint { "not by itself" },
            }
        }
    }
}

/// A text whose commands and names stand between backticks, as the command line writes them.
pub fn ticked(text: &str) -> Markup {
    let paired = text.matches('`').count().is_multiple_of(2);
    html! {
        @if !paired { bdi { (text) } }
        @else {
            bdi {
                @for (number, part) in text.split('`').enumerate() {
                    @if number % 2 == 1 { code { (part) } } @else { (part) }
                }
            }
        }
    }
}

/// The beginning of a text, as so many characters at most.
pub fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Seconds, as they are configured.
pub fn seconds(count: u32) -> String {
    span(Millis::from(count) * 1_000)
}

/// A list of names and values.
pub fn facts(of: &[(&str, Markup)]) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in of {
                div { dt { (name) } dd { (value) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_escaped_and_what_deceives_the_eye_is_shown_as_what_it_is() {
        let hostile = "</p><script>alert(1)</script>\u{202e}\u{200b}\" onload=\u{7f}\u{e0041}&";
        let page = inert(html! { p title=(hostile) { (hostile) } }.into_string());
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "{page}");
        assert!(!page.contains("\" onload") && page.contains(r"\u{202e}\u{200b}"), "{page}");
        assert!(page.contains(r"\u{7f}\u{e0041}&amp;") && !page.contains(is_deceptive), "{page}");
        let plain = "two lines\n– “quotes”, ünïcode, 字".to_owned();
        assert_eq!(inert(plain.clone()), plain);
    }

    #[test]
    fn what_stands_between_backticks_is_code_and_an_odd_one_is_itself() {
        for (text, expected) in [
            ("try `a b` or `<c>`", "<bdi>try <code>a b</code> or <code>&lt;c&gt;</code></bdi>"),
            ("an odd ` one", "<bdi>an odd ` one</bdi>"),
            ("", "<bdi></bdi>"),
        ] {
            assert_eq!(ticked(text).into_string(), expected);
        }
    }

    #[test]
    fn addresses_keep_what_they_carry() {
        assert_eq!(credential_href("a+b@c.d"), "/dashboard/credential?id=a%2Bb%40c.d");
        assert_eq!(credential_href("..\"&id=x"), "/dashboard/credential?id=..%22%26id%3Dx");
        assert_eq!(utc("2026-01-02T03:04:05.678Z"), "2026-01-02 03:04:05 UTC");
    }

    #[test]
    fn a_sparkline_says_in_words_what_it_shows() {
        let beats =
            [Status::Success, Status::Success, Status::Unreachable].map(|status| Beat { id: 1, status });
        let text = sparkline(&beats, 20).into_string();
        assert!(text.contains("2 of the last 3 attempts succeeded, the newest: unreachable"), "{text}");
        assert_eq!(text.matches("<rect").count(), 20);
        assert!(sparkline(&[], 20).into_string().contains("no attempts yet"));
    }

    #[test]
    fn assets_are_named_by_their_content() {
        for (asset, stem) in [(&*STYLE, "style-"), (&*SCRIPT, "live-"), (&*ICON, "icon-")] {
            assert!(asset.name.starts_with(stem) && !asset.text.is_empty());
        }
    }
}
