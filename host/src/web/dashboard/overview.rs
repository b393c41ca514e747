//! The first page: what needs a person, in a sentence; then what fails, what ends soon, and what
//! is well. It shows so many of each and says how to see the rest, for there may be a million.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use maud::{Markup, html};

use super::super::Shared;
use super::look::{self, BEATS, Item, Page, Place, href};
use super::session::Signed;
use super::words::{SOON, Standing, count, ends_unless_somebody_acts};
use super::{Asked, Shown, said};
use crate::control::{Operation, Outcome};
use crate::credential::{Millis, now};
use crate::db::queries::{CredentialRow, ReadError, Reader};
use crate::db::views::{COUNTED_AT_MOST, ListFilter, Only, SKIPPED_AT_MOST, Tally, Trouble};
use crate::registry::{PluginState, PluginStatus};
use crate::supervisor::WorkerStatus;

/// Rows of a part of the overview, and of a list of one kind.
const SHORT: u32 = 8;
const LONG: u32 = 25;

/// What is in trouble is searched among so many.
const SEARCHED: u32 = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Show {
    /// All kinds, a few of each.
    Overview,
    Person,
    Failing,
    Ending,
    Sound,
    Paused,
    All,
}

impl Show {
    const LISTS: [(Self, &str, &str); 6] = [
        (Self::All, "all", "All"),
        (Self::Person, "person", "Needs a person"),
        (Self::Failing, "failing", "Failing"),
        (Self::Ending, "expiring", "Expiring soon"),
        (Self::Sound, "healthy", "Not failing"),
        (Self::Paused, "paused", "Paused"),
    ];

    fn parse(word: Option<&str>) -> Option<Self> {
        Self::LISTS.iter().find(|(_, known, _)| Some(*known) == word).map(|(show, ..)| *show)
    }
}

struct Wanted {
    show: Show,
    service: Option<String>,
    text: Option<String>,
    /// Where the page begins: an id, or how many are skipped.
    from: String,
}

impl Wanted {
    fn of(asked: &HashMap<String, String>) -> Self {
        let given =
            |name: &str| asked.get(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let (service, text) = (given("service"), given("q"));
        let any = if service.is_some() || text.is_some() { Show::All } else { Show::Overview };
        Self {
            show: Show::parse(asked.get("show").map(String::as_str)).unwrap_or(any),
            service,
            text,
            from: asked.get("from").cloned().unwrap_or_default(),
        }
    }

    fn page(&self, from: &str) -> String {
        let word =
            Show::LISTS.iter().find(|(show, ..)| *show == self.show).map_or("all", |(_, word, _)| word);
        let mut parameters = vec![("show", word)];
        parameters.extend(self.service.as_deref().map(|service| ("service", service)));
        parameters.extend(self.text.as_deref().map(|text| ("q", text)));
        parameters.push(("from", from));
        href("/dashboard", &parameters)
    }
}

/// What the database says.
struct Seen {
    parts: Vec<Part>,
    person: u32,
    failing: u32,
    ending: usize,
    services: Vec<String>,
    now: Millis,
}

struct Part {
    show: Show,
    items: Vec<Item>,
    /// Where the next page of it begins.
    next: Option<String>,
}

pub async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(signed): Extension<Signed>,
    Query(asked): Asked,
) -> Shown {
    let wanted = Arc::new(Wanted::of(&asked));
    let of_reader = Arc::clone(&wanted);
    let at = now();
    let seen = shared.pages.read(move |reader| look(reader, &of_reader, at)).await?;
    let tallies = shared.pages.counting.tallies().await;
    let (workers, plugins, held, behind) = match (shared.command)(Operation::Status).await {
        Ok(Outcome::Status { workers, plugins, held, clock_behind, .. }) => {
            (workers, plugins, held, clock_behind)
        }
        _ => Default::default(),
    };
    let mut services = seen.services.clone();
    // Those of external workers have no provider.
    services.extend(tallies.iter().flat_map(|tallies| tallies.iter().map(|tally| tally.service.clone())));
    services.sort();
    services.dedup();
    let failing_writes = shared.writer.progress().borrow().failing.clone();
    let notices = Notices { workers: &workers, plugins: &plugins, held: &held, behind, failing_writes };
    let total: Option<u64> =
        tallies.as_ref().map(|tallies| tallies.iter().map(|tally| tally.credentials).sum());
    let headline = headline(seen.person, seen.failing, seen.ending, total, notices.pressing());
    let body = html! {
        div #overview data-live {
            h1 data-headline { (headline) }
            (notices.show())
            (tiles(&seen, total))
        }
        (filters(&wanted, &services))
        div #lists data-live {
            @if seen.parts.iter().all(|part| part.items.is_empty()) { (nothing(&wanted, total)) }
            @for part in &seen.parts {
                @if !part.items.is_empty() || part.next.is_some() { (part.show(&wanted, seen.now)) }
            }
        }
        div #services data-live {
            @if wanted.show == Show::Overview {
                @if let Some(tallies) = tallies.as_ref().filter(|tallies| !tallies.is_empty()) { (by_service(tallies)) }
            }
        }
    };
    Ok(Page {
        signed: &signed,
        title: "Overview",
        place: Place::Overview,
        said: said(&shared, &signed, &asked),
        body,
    }
    .send())
}

fn look(reader: &Reader, wanted: &Wanted, now: Millis) -> Result<Seen, ReadError> {
    let providers = reader.providers()?;
    let rotates = |row: &CredentialRow| {
        providers
            .iter()
            .any(|provider| provider.service == row.service && !provider.manifest.methods.is_empty())
    };
    let items = |rows: Vec<CredentialRow>| -> Result<Vec<Item>, ReadError> {
        rows.into_iter()
            .map(|row| {
                let beats = reader.beats(&row.credential_id, BEATS as u32)?;
                Ok(Item { standing: Standing::of(&row, rotates(&row), now), row, beats })
            })
            .collect()
    };
    let rotating: Vec<String> = providers
        .iter()
        .filter(|provider| !provider.manifest.methods.is_empty())
        .map(|provider| provider.service.clone())
        .collect();
    let ending: Vec<CredentialRow> = reader
        .ending(now + SOON, &rotating)?
        .into_iter()
        .filter(|row| ends_unless_somebody_acts(row, rotates(row), now))
        .collect();
    let (ends, (person, failing)) = (ending.len(), reader.count_troubled()?);
    let has = |row: &CredentialRow| {
        let text = wanted.text.as_deref().map(str::to_ascii_lowercase);
        let of_service = wanted.service.as_ref().is_none_or(|service| *service == row.service);
        let fields = [Some(&row.credential_id), row.identity.as_ref(), row.profile_id.as_ref()];
        of_service
            && text.is_none_or(|text| {
                fields.into_iter().flatten().any(|field| field.to_ascii_lowercase().contains(&text))
            })
    };
    let troubled = |trouble: Trouble, limit: u32| -> Result<Part, ReadError> {
        let skip = wanted.from.parse::<u32>().unwrap_or(0).min(SKIPPED_AT_MOST);
        let service = wanted.service.as_deref();
        let show = if trouble == Trouble::Person { Show::Person } else { Show::Failing };
        if wanted.text.is_some() {
            let mut rows = reader.troubled(trouble, service, 0, SEARCHED)?;
            rows.retain(&has);
            rows.truncate(LONG as usize);
            return Ok(Part { show, items: items(rows)?, next: None });
        }
        let mut rows = reader.troubled(trouble, service, skip, limit + 1)?;
        let more = rows.len() > limit as usize && skip < SKIPPED_AT_MOST;
        rows.truncate(limit as usize);
        Ok(Part { show, items: items(rows)?, next: more.then(|| (skip + limit).to_string()) })
    };
    let ending_soon = |rows: Vec<CredentialRow>, limit: u32| -> Result<Part, ReadError> {
        let skip = wanted.from.parse::<usize>().unwrap_or(0);
        let mut rows: Vec<_> = rows.into_iter().filter(&has).skip(skip).collect();
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        Ok(Part {
            show: Show::Ending,
            items: items(rows)?,
            next: more.then(|| (skip + limit as usize).to_string()),
        })
    };
    let listed = |show: Show, limit: u32| -> Result<Part, ReadError> {
        let only = match show {
            Show::Paused => Only::Paused,
            Show::Sound => Only::Sound,
            _ => Only::All,
        };
        let filter = ListFilter {
            after: wanted.from.clone(),
            service: wanted.service.clone(),
            text: wanted.text.clone(),
            only,
            limit: limit as usize,
        };
        let listed = reader.listed(&filter)?;
        Ok(Part { show, items: items(listed.rows)?, next: listed.next })
    };
    let parts = match wanted.show {
        Show::Overview => {
            let person = troubled(Trouble::Person, SHORT)?;
            let failing = troubled(Trouble::Failing, SHORT)?;
            let ending = ending_soon(ending, SHORT)?;
            let mut sound = listed(Show::Sound, LONG)?;
            // Each stands in the first part that it belongs to, and in no other.
            sound.items.retain(|item| item.standing > Standing::Ending);
            vec![person, failing, ending, sound]
        }
        Show::Person => vec![troubled(Trouble::Person, LONG)?],
        Show::Failing => vec![troubled(Trouble::Failing, LONG)?],
        Show::Ending => vec![ending_soon(ending, LONG)?],
        show => vec![listed(show, LONG)?],
    };
    Ok(Seen {
        parts,
        person,
        failing,
        ending: ends,
        services: providers.into_iter().map(|provider| provider.service).collect(),
        now,
    })
}

/// A number that was counted up to a bound.
fn up_to(number: u32) -> String {
    if number >= COUNTED_AT_MOST { format!("{COUNTED_AT_MOST} or more") } else { number.to_string() }
}

/// How things stand, and what a person has to do about it.
fn headline(person: u32, failing: u32, ending: usize, total: Option<u64>, pressing: usize) -> String {
    let are = |number: u64| if number == 1 { "is" } else { "are" };
    let need = |number: u64| if number == 1 { "needs" } else { "need" };
    if person > 0 {
        let what = if person == 1 { "credential" } else { "credentials" };
        return format!("{} {what} {} a person.", up_to(person), need(person.into()));
    }
    if pressing > 0 {
        let things = count(pressing as u64, "thing", "things");
        return format!("{things} below {} a person.", need(pressing as u64));
    }
    if ending > 0 {
        let what = count(ending as u64, "credential", "credentials");
        return format!("{what} will end soon unless somebody signs in anew.");
    }
    if failing > 0 {
        let what = if failing == 1 { "credential" } else { "credentials" };
        return format!(
            "Nothing needs you. {} {what} {} failing and tried again.",
            up_to(failing),
            are(failing.into())
        );
    }
    match total {
        Some(0) => String::from("No credentials yet."),
        Some(1) => String::from("The one credential is fine."),
        Some(total) => format!("All {total} credentials are fine."),
        None => String::from("Nothing needs you."),
    }
}

/// What is up beside the credentials themselves.
struct Notices<'a> {
    workers: &'a [WorkerStatus],
    plugins: &'a [PluginStatus],
    held: &'a [(String, String)],
    behind: Option<i64>,
    failing_writes: Option<String>,
}

impl Notices<'_> {
    fn waiting(&self) -> impl Iterator<Item = &PluginStatus> {
        self.plugins.iter().filter(|plugin| plugin.state == PluginState::PendingApproval)
    }

    fn parked(&self) -> impl Iterator<Item = &WorkerStatus> {
        self.workers.iter().filter(|worker| worker.state == "parked")
    }

    fn refused(&self) -> impl Iterator<Item = &PluginStatus> {
        self.plugins
            .iter()
            .filter(|plugin| matches!(plugin.state, PluginState::Refused | PluginState::Conflict))
    }

    /// How many of them a person has to do something about.
    fn pressing(&self) -> usize {
        self.waiting().count() + self.parked().count() + usize::from(self.failing_writes.is_some())
    }

    fn show(&self) -> Markup {
        html! {
            ul.notices {
                @if let Some(why) = &self.failing_writes {
                    li.bad { strong { "The database can\u{2019}t be written." } " No rotation starts until it can. " bdi { (why) } }
                }
                @for worker in self.parked() {
                    li.bad {
                        strong { "The worker of " (worker.service) " is parked." }
                        " It kept dying, so nothing of this service is done. "
                        a href=(href("/dashboard/confirm", &[("do", "unpark"), ("service", &worker.service)])) { "Let it run again" }
                    }
                }
                @for plugin in self.waiting() {
                    @let service = plugin.service.as_deref().unwrap_or("?");
                    li.warn {
                        strong { "A new version of " (service) " waits for you." }
                        " It asks for more than was granted; the accepted one goes on. "
                        a href=(href("/dashboard/confirm", &[("do", "approve"), ("service", service)])) { "Review " (service) }
                    }
                }
                @for plugin in self.refused() {
                    li {
                        strong { "A plugin file doesn\u{2019}t run: " bdi { (plugin.file) } ":" } " "
                        (look::ticked(plugin.reason.as_deref().unwrap_or("it is not active")))
                    }
                }
                @for (service, why) in self.held {
                    li { strong { (service) " is held up." } " " (look::ticked(why)) }
                }
                @if let Some(millis) = self.behind {
                    li.warn {
                        strong { "This machine\u{2019}s clock is " (look::seconds((millis.unsigned_abs() / 1_000) as u32)) @if millis < 0 { " ahead" } @else { " behind" } "." }
                        " That is what the services say; let it be set by NTP."
                    }
                }
            }
        }
    }
}

fn tiles(seen: &Seen, total: Option<u64>) -> Markup {
    let tile = |show: &str, class: &str, number: String, name: &str| {
        html! {
            li { a class={ "tile " (class) } href=(href("/dashboard", &[("show", show)])) {
                span.figure { (number) } " " span { (name) }
            } }
        }
    };
    let zero = |number: u32, class: &'static str| if number == 0 { "none" } else { class };
    html! {
        ul.tiles {
            (tile("person", zero(seen.person, "person"), up_to(seen.person), "need a person"))
            (tile("failing", zero(seen.failing, "failing"), up_to(seen.failing), "failing"))
            (tile("expiring", zero(seen.ending as u32, "ending"), seen.ending.to_string(), "expiring soon"))
            (tile("all", "all", total.map_or("…".into(), |total| total.to_string()), "credentials"))
        }
    }
}

fn filters(wanted: &Wanted, services: &[String]) -> Markup {
    html! {
        form.filters role="search" method="get" action="/dashboard" {
            div {
                label for="q" { "Search" }
                input #q type="search" name="q" value=[wanted.text.as_deref()] placeholder="id, account or profile" autocomplete="off" spellcheck="false";
            }
            div {
                label for="service" { "Service" }
                select #service name="service" {
                    option value="" { "every service" }
                    @for service in services {
                        option value=(service) selected[wanted.service.as_ref() == Some(service)] { (service) }
                    }
                }
            }
            div {
                label for="show" { "Show" }
                select #show name="show" {
                    option value="" selected[wanted.show == Show::Overview] { "what matters first" }
                    @for (show, word, name) in Show::LISTS {
                        option value=(word) selected[wanted.show == show] { (name) }
                    }
                }
            }
            button type="submit" { "Filter" }
            @if wanted.show != Show::Overview { a.button href="/dashboard" { "Clear" } }
        }
    }
}

impl Part {
    fn show(&self, wanted: &Wanted, now: Millis) -> Markup {
        let (id, title) = match self.show {
            Show::Person => ("person", "Needs a person"),
            Show::Failing => ("failing", "Failing"),
            Show::Ending => ("expiring", "Expiring soon"),
            Show::Sound if wanted.show == Show::Overview => {
                let paused = self.items.iter().any(|item| item.standing == Standing::Paused);
                ("healthy", if paused { "Healthy or paused" } else { "Healthy" })
            }
            Show::Sound => ("healthy", "Not failing"),
            Show::Paused => ("paused", "Paused"),
            Show::All | Show::Overview => ("all", "Credentials"),
        };
        let whole = wanted.show != Show::Overview;
        // The rest of a short list is a list of its own.
        let next = self.next.as_ref().map(|from| match (whole, self.show) {
            (false, Show::Sound) | (true, _) => {
                let of = Wanted {
                    show: self.show,
                    service: wanted.service.clone(),
                    text: wanted.text.clone(),
                    from: String::new(),
                };
                of.page(from)
            }
            (false, _) => href("/dashboard", &[("show", id)]),
        });
        html! {
            section aria-labelledby={ (id) "-title" } {
                h2 #{ (id) "-title" } { (title) }
                @if self.items.is_empty() {
                    p.faint { "None among those that were looked at." }
                } @else {
                    (look::list(id, title, &self.items, now))
                }
                @if let Some(next) = next {
                    p.more { a href=(next) { @if whole || self.show == Show::Sound { "Next page" } @else { "All of them" } span.unseen { " of " (title) } } }
                }
            }
        }
    }
}

fn nothing(wanted: &Wanted, total: Option<u64>) -> Markup {
    html! {
        div.empty {
            @if wanted.show == Show::Overview && total == Some(0) {
                p { "Put a plugin into the plugins folder, then add the first credential:" }
                pre { code { "keywheel plugin install http-session\nkeywheel credential add --help" } }
            } @else {
                p { "No credential fits." }
            }
        }
    }
}

fn by_service(tallies: &[Tally]) -> Markup {
    html! {
        section aria-labelledby="services-title" {
            h2 #services-title { "By service" }
            table.plain.stacked.tally {
                caption.unseen { "Credentials by service" }
                thead { tr {
                    th scope="col" { "Service" }
                    th.number scope="col" { "Credentials" }
                    th.number scope="col" { "Need a person" }
                    th.number scope="col" { "Failing" }
                } }
                tbody {
                    @for tally in tallies {
                        tr id={ "service-" (tally.service) } {
                            th scope="row" { a href=(href("/dashboard", &[("service", &tally.service)])) { (tally.service) } }
                            td.number data-name="Credentials" { (tally.credentials) }
                            td.number data-name="Need a person" {
                                @if tally.person > 0 { (tally.person) } @else { span.faint { "0" } } }
                            @let failing = tally.failing.saturating_sub(tally.person);
                            td.number data-name="Failing" {
                                @if failing > 0 { (failing) } @else { span.faint { "0" } } }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headline_says_first_what_needs_a_person() {
        for ((person, failing, ending, total, pressing), expected) in [
            ((0, 0, 0, Some(0), 0), "No credentials yet."),
            ((0, 0, 0, Some(1), 0), "The one credential is fine."),
            ((0, 0, 0, Some(214), 0), "All 214 credentials are fine."),
            ((0, 0, 0, None, 0), "Nothing needs you."),
            ((0, 1, 0, Some(9), 0), "Nothing needs you. 1 credential is failing and tried again."),
            ((0, 3, 0, Some(9), 0), "Nothing needs you. 3 credentials are failing and tried again."),
            ((0, 3, 2, Some(9), 0), "2 credentials will end soon unless somebody signs in anew."),
            ((0, 3, 2, Some(9), 1), "1 thing below needs a person."),
            ((1, 3, 2, Some(9), 1), "1 credential needs a person."),
            ((COUNTED_AT_MOST, 0, 0, None, 0), "1000 or more credentials need a person."),
        ] {
            assert_eq!(headline(person, failing, ending, total, pressing), expected);
        }
    }

    #[test]
    fn a_page_is_asked_for_by_what_it_shows() {
        let asked = |of: &[(&str, &str)]| {
            Wanted::of(&of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
        };
        assert_eq!(asked(&[]).show, Show::Overview);
        assert_eq!(asked(&[("q", " "), ("service", "")]).show, Show::Overview);
        assert_eq!(asked(&[("show", "nonsense")]).show, Show::Overview);
        assert_eq!(asked(&[("q", "ann")]).show, Show::All);
        let failing = asked(&[("show", "failing"), ("service", "forge"), ("q", "a&b")]);
        assert_eq!(failing.show, Show::Failing);
        assert_eq!(failing.page("25"), "/dashboard?show=failing&service=forge&q=a%26b&from=25");
    }
}
