//! From a site and its secrets to a credential that is kept alive: the provider is found and
//! installed, the credential added, asked about at once, and only kept if it can be told alive
//! from dead. What was done is printed as commands, and what will happen next in words.

pub mod guess;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Failure;
use super::browser::{self, Browser};
use super::connection::{Connection, daemon_answers};
use super::credential::{self, Add, chosen, manifest_of, read_secrets, verdict_of};
use super::output::{Output, relative};
use super::plugin::{no_catalogue, unexpected};
use crate::catalogue;
use crate::config::{Config, Home};
use crate::control::{KeyInput, Operation, Outcome, RefusalKind};
use crate::credential::{CookieAttributes, is_subdomain};
use crate::db::Action;
use crate::db::queries::{CredentialRow, ProviderRow, Reader};
use crate::formats::{self, Imported};
use crate::provider::{Manifest, SettingKind};
use crate::registry::PluginState;
use crate::registry::manifest;
use crate::report::Report;
use crate::rotation::schedule::span;
use guess::{ANY_SESSION, Crumb, Given, Site};

/// How long the credential may be busy with the daemon's own first look.
const IN_THE_MIDDLE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Secrets of a site, and where they were.
struct Found {
    imported: Imported,
    /// The words that name the same again.
    again: Vec<String>,
    plain_http: bool,
}

/// What `credential add --domain` does.
///
/// # Errors
/// Nothing that fits, or nothing that lives: then nothing was added.
pub async fn keep(home: &Home, mut new: Add, output: Output) -> Result<(), Failure> {
    let Some(domain) = new.domain.take() else {
        return Err(Failure::Usage("no site was named; hint: --domain shop.example".into()));
    };
    let site = Site::parse(&domain).map_err(|why| Failure::BadInput(format!("--domain {why}")))?;
    let found = find(&new, &site)?;
    let service = service_for(home, &new, &site, &found, output)?;
    let mut settings = credential::settings(&new.settings)?;

    let connection = Connection::open(home).await?;
    let kept = async {
        let mut commands = Vec::new();
        let manifest = installed(home, &connection, &service, &mut commands).await?;
        fill_in(&mut settings, &manifest, &site, &found, output)?;
        let resolved = manifest::resolve(&manifest, &settings, &new.private_hosts)
            .map_err(|error| Failure::BadInput(error.to_string()))?;
        if !new.exact && new.from_browser.is_none() {
            formats::check_pasted(&found.imported, &resolved)
                .map_err(|error| Failure::BadInput(error.to_string()))?;
        }
        let keys = chosen(found.imported, &resolved, output)?;
        let report = added(&connection, &new, &service, &mut settings, keys, output).await?;
        commands.push(add_line(&new, &service, &settings, &found.again));
        commands.push(format!("keywheel credential validate {}", new.id));
        Ok::<_, Failure>((commands, report))
    }
    .await;
    connection.close().await;
    let (commands, report) = kept?;
    tell(home, &new.id, &report, &commands, output).await?;
    verdict_of(&report)
}

fn find(new: &Add, site: &Site) -> Result<Found, Failure> {
    if let Some(browser) = &new.from_browser {
        return from_browser(browser, new.container.as_deref(), site);
    }
    let text = read_secrets(new.from.as_deref())?;
    let imported = formats::parse(&text, new.format).map_err(|error| Failure::BadInput(error.to_string()))?;
    let again = match &new.from {
        Some(path) => vec!["--from".into(), path.display().to_string()],
        None => Vec::new(),
    };
    let plain_http = !imported.cookies.is_empty() && site.scheme == Some("http");
    Ok(Found { imported, again, plain_http })
}

fn from_browser(browser: &Browser, container: Option<&str>, site: &Site) -> Result<Found, Failure> {
    let taken = browser::take(browser, container, site.host.trim_matches(['[', ']']))?;
    let mut again = vec!["--from-browser".into(), taken.browser];
    if let Some(container) = taken.container {
        again.extend(["--container".into(), container]);
    }
    let imported = Imported { cookies: taken.cookies, pairs: Vec::new() };
    Ok(Found { imported, again, plain_http: taken.plain_http })
}

/// The provider that was named, or the one that is made for the site, or the one for any session.
fn service_for(
    home: &Home,
    new: &Add,
    site: &Site,
    found: &Found,
    output: Output,
) -> Result<String, Failure> {
    if let Some(service) = &new.service {
        return Ok(service.clone());
    }
    let entries = catalogue::entries().map_err(no_catalogue)?;
    let cookies: Vec<&str> =
        found.imported.cookies.iter().map(|cookie| cookie.attributes.name.as_str()).collect();
    let keys: Vec<&str> = found.imported.pairs.iter().map(|(name, _)| name.as_str()).collect();
    let given = if cookies.is_empty() { Given::Keys(&keys) } else { Given::Cookies(&cookies) };
    let Some(choice) = guess::provider(&entries, site, given) else {
        let others: Vec<_> = guess::made_for(&entries, site);
        let hint = match others.as_slice() {
            [] => "hint: --service names its provider; `keywheel plugin list --available` shows those that come along".to_owned(),
            others => format!(
                "hint: `keywheel plugin check` says which keys {} takes; --service names the one that is meant",
                others.join(" or ")
            ),
        };
        return Err(Failure::NotFound(format!(
            "no provider that comes with Keywheel is for {} with the keys {}; {hint}",
            site.host,
            keys.join(", ")
        )));
    };
    if !choice.others.is_empty() && manifest_of(home, &choice.service).is_err() {
        output.say(&format!(
            "note: {} for {} would take other secrets than these: `keywheel plugin install {}` describes it",
            choice.others.join(", "),
            site.host,
            choice.others[0]
        ));
    }
    Ok(choice.service)
}

/// Its manifest, with the plugin that comes along put in where none serves it yet.
async fn installed(
    home: &Home,
    connection: &Connection,
    service: &str,
    commands: &mut Vec<String>,
) -> Result<Manifest, Failure> {
    // So that a plugin dropped a moment ago is known.
    connection.ask(Operation::PluginList).await?;
    if let Ok(manifest) = manifest_of(home, service) {
        return Ok(manifest);
    }
    let path = catalogue::file(service).map_err(no_catalogue)?;
    let Outcome::Plugins(files) = connection.ask(Operation::PluginInstall { path }).await? else {
        return Err(unexpected());
    };
    if let Some(file) = files.iter().find(|file| file.state != PluginState::Active) {
        return Err(Failure::BadInput(format!(
            "the plugin `{service}` does not run: {}; hint: `keywheel plugin list`",
            file.reason.as_deref().unwrap_or("it waits for an approval")
        )));
    }
    commands.push(format!("keywheel plugin install {service}"));
    manifest_of(home, service)
}

/// Settings that follow from the site and its cookies, where they weren't given.
fn fill_in(
    settings: &mut Vec<(String, String)>,
    manifest: &Manifest,
    site: &Site,
    found: &Found,
    output: Output,
) -> Result<(), Failure> {
    let urls: Vec<_> = manifest.settings.iter().filter(|spec| spec.kind == SettingKind::Url).collect();
    for spec in &urls {
        let elsewhere = urls.len() == 1
            && spec.default.as_ref().is_some_and(|default| !default.contains(site.host.as_str()));
        if (spec.required || elsewhere) && !has(settings, &spec.name) {
            settings.push((spec.name.clone(), site.url(found.plain_http)));
        }
    }
    if manifest.service != ANY_SESSION {
        return Ok(());
    }
    if !has(settings, "cookie_name") && !found.imported.cookies.is_empty() {
        // A cookie of a host below the site never gets to the site itself.
        let gets_there = |cookie: &&CookieAttributes| {
            cookie.domain == site.host || (!cookie.host_only && is_subdomain(&site.host, &cookie.domain))
        };
        let all = found.imported.cookies.iter().map(|cookie| &cookie.attributes);
        let crumbs: Vec<_> = all
            .filter(gets_there)
            .map(|cookie| Crumb { name: &cookie.name, http_only: cookie.http_only })
            .collect();
        let names = crumbs.iter().map(|crumb| crumb.name).collect::<Vec<_>>().join(", ");
        let Some(place) = guess::session_cookie(&crumbs) else {
            return Err(Failure::BadInput(format!(
                "none of the cookies of {} looks like a session's: {names}; hint: sign in first, or --set cookie_name=NAME says which it is",
                site.host
            )));
        };
        let name = crumbs[place].name.to_owned();
        output.say(&format!(
            "the session's cookie is taken to be `{name}`, of {names}; --set cookie_name=… says another"
        ));
        settings.push(("cookie_name".into(), name));
    }
    if !has(settings, "validate_path") {
        let Some(page) = &site.page else {
            return Err(Failure::BadInput(format!(
                "which page of {0} does only a signed-in visitor see? hint: --domain {0}/account, or --set validate_path=/account",
                site.host
            )));
        };
        settings.push(("validate_path".into(), page.clone()));
    }
    Ok(())
}

fn has(settings: &[(String, String)], wanted: &str) -> bool {
    settings.iter().any(|(name, _)| name == wanted)
}

/// Adds the credential and asks about it. What is dead, or can't be told from the dead, is taken
/// back.
async fn added(
    connection: &Connection,
    new: &Add,
    service: &str,
    settings: &mut Vec<(String, String)>,
    keys: Vec<KeyInput>,
    output: Output,
) -> Result<Report, Failure> {
    let mut report = tried(connection, new, service, settings, keys.clone()).await?;
    if service == ANY_SESSION && matches!(verdict(&report), "valid" | "unknown") {
        let asked = Operation::CredentialSelfTest { credential_id: new.id.clone() };
        let Outcome::SelfTested(test) = connection.ask(asked).await? else { return Err(unexpected()) };
        // A page that anybody sees tells nothing, and whoever guessed the settings must find out.
        if test.verdict == "valid" {
            take_back(connection, &new.id).await?;
            return Err(Failure::BadInput(
                "it is not kept: the page looks the same with a made-up session, so it can't show whether yours lives; \
                 hint: --set validate_path=/account names one that only a signed-in visitor sees, \
                 --set alive_text=… a text that only they see"
                    .into(),
            ));
        }
        // Where a stranger is sent to is how a dead session shows.
        if let Some(login) =
            test.redirect.filter(|_| test.verdict == "unknown" && !has(settings, "login_path"))
        {
            take_back(connection, &new.id).await?;
            let site = settings.iter().find(|(name, _)| name == "base_url").map(|(_, url)| url.clone());
            let path = site.and_then(|site| login.strip_prefix(&site).map(str::to_owned)).unwrap_or(login);
            output.say(&format!(
                "a visitor without a session is sent to {path}: so a dead one will show (login_path)"
            ));
            settings.push(("login_path".into(), path));
            report = tried(connection, new, service, settings, keys).await?;
        }
    }
    if matches!(verdict(&report), "invalid" | "needs-human") {
        take_back(connection, &new.id).await?;
        return Err(Failure::Dead(format!(
            "it is not kept, for it is dead already: {}; hint: sign in again, and give the fresh secrets",
            report.message.as_deref().unwrap_or("the service doesn't know it")
        )));
    }
    Ok(report)
}

async fn tried(
    connection: &Connection,
    new: &Add,
    service: &str,
    settings: &[(String, String)],
    keys: Vec<KeyInput>,
) -> Result<Report, Failure> {
    let add = new.operation(service, settings.to_vec(), keys)?;
    connection.ask(Operation::CredentialAdd(Box::new(add))).await?;
    let run =
        || Operation::CredentialRun { credential_id: new.id.clone(), action: Action::Validate, now: true };
    match patiently(connection, run).await {
        Ok(Outcome::Report(report)) => Ok(*report),
        Ok(_) => Err(unexpected()),
        Err(failure) => {
            // Nothing half-done; if that fails as well, the first failure is the one to tell.
            let _ = take_back(connection, &new.id).await;
            Err(failure)
        }
    }
}

async fn take_back(connection: &Connection, id: &str) -> Result<(), Failure> {
    let remove = || Operation::CredentialRemove { credential_id: id.to_owned() };
    patiently(connection, remove).await.map(|_| ())
}

/// The daemon looks at what was added by itself, and whoever asks meanwhile waits for it.
async fn patiently(connection: &Connection, operation: impl Fn() -> Operation) -> Result<Outcome, Failure> {
    let until = Instant::now() + IN_THE_MIDDLE;
    loop {
        match connection.ask(operation()).await {
            Err(Failure::Refused(refusal)) if refusal.kind == RefusalKind::Busy && Instant::now() < until => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            ended => return ended,
        }
    }
}

fn verdict(report: &Report) -> &str {
    report.meta.get("verdict").and_then(Value::as_str).unwrap_or("?")
}

async fn tell(
    home: &Home,
    id: &str,
    report: &Report,
    commands: &[String],
    output: Output,
) -> Result<(), Failure> {
    let row = credential::find(home, id)?;
    let follows = what_follows(home, &row, daemon_answers(home).await?, false)?;
    let (verdict, account) = (verdict(report), row.identity.clone());
    let monitor = json!(row.monitor);
    let told = json!({
        "added": id, "service": row.service, "settings": row.settings, "verdict": verdict,
        "message": report.message, "account": account, "nextDueAt": monitor["nextDueAt"],
        "nextAction": monitor["nextAction"], "nextReason": monitor["nextReason"], "commands": commands,
    });
    output.value(&told, || {
        let of = account.as_ref().map(|account| format!(", of account {account}")).unwrap_or_default();
        let why = report.message.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        format!(
            "added `{id}` to `{}`: {verdict}{of}{why}\n{}\n\nThe same by hand:\n  {}",
            row.service,
            follows.join("\n"),
            commands.join("\n  ")
        )
    });
    Ok(())
}

/// What will happen to a credential, and what can be done with it, a line each. `fresh`: it was just
/// added, and a daemon that looked meanwhile changes nothing of what is said.
///
/// # Errors
/// A configuration that can't be read.
pub fn what_follows(
    home: &Home,
    row: &CredentialRow,
    daemon: bool,
    fresh: bool,
) -> Result<Vec<String>, Failure> {
    let provider = Reader::open(home.database())?.provider(&row.service)?;
    let id = &row.credential_id;
    let mut lines = Vec::new();
    let mut line = |name: &str, text: String| lines.push(format!("  {name:<11} {text}"));
    let monitor = &row.monitor;
    let every = every(row, provider.as_ref());
    let waits = monitor.next_due_at.filter(|_| !fresh && row.attempt_number > 0);
    line(
        "next look",
        match (waits, &monitor.next_reason) {
            _ if !daemon => "once a daemon runs: `keywheel serve`".into(),
            (Some(at), Some(why)) => {
                format!("{}, to {}: {why}", relative(Some(at)), monitor.next_action.as_str())
            }
            (Some(at), None) => format!("{}, to {}", relative(Some(at)), monitor.next_action.as_str()),
            (None, _) => format!("at once, and then every {every}"),
        },
    );
    line("rotation", rotation(row, provider.as_ref()));
    let cookie = provider.as_ref().is_some_and(|provider| {
        provider.key_mapping.iter().any(|key| matches!(key.location, crate::provider::Location::Cookie(_)))
    });
    let url = row.settings.iter().find(|(name, _)| name.ends_with("url")).map(|(_, url)| url.as_str());
    line(
        "use it",
        match (cookie, url) {
            (true, Some(url)) => format!("keywheel credential export {id} --format header --url {url}/"),
            (true, None) => format!("keywheel credential export {id} --output cookies.txt"),
            (false, _) => format!("keywheel credential export {id} --format env"),
        },
    );
    line("", format!("keywheel run --credential {id} -- COMMAND"));
    line("watch it", "keywheel status; keywheel reports tail".into());
    if Config::load(home)?.http.listen.is_some() {
        line("", "keywheel dashboard".into());
    }
    Ok(lines)
}

fn every(row: &CredentialRow, provider: Option<&ProviderRow>) -> String {
    let seconds = row
        .validate_interval_seconds
        .or_else(|| provider.and_then(|provider| provider.operator_validate_interval_seconds))
        .or_else(|| provider.map(|provider| provider.validate_interval_seconds));
    span(u64::from(seconds.unwrap_or(0)) * 1_000)
}

fn rotation(row: &CredentialRow, provider: Option<&ProviderRow>) -> String {
    let Some(provider) = provider else { return "–".into() };
    let methods = &provider.manifest.methods;
    let method = match &row.method {
        Some(name) => methods.iter().find(|method| method.name == *name),
        None => methods.first(),
    };
    let Some(method) = method else {
        return format!(
            "never: `{}` only looks whether it lives, and you are told when it doesn't",
            row.service
        );
    };
    let mut when = vec!["before it expires".to_owned()];
    if let Some(seconds) = row.max_age_seconds.or(provider.max_age_seconds) {
        when.push(format!("at an age of {}", span(u64::from(seconds) * 1_000)));
    }
    format!("{}, by `{}`", when.join(" and "), method.name)
}

/// The command that adds the same again.
fn add_line(new: &Add, service: &str, settings: &[(String, String)], again: &[String]) -> String {
    let mut words: Vec<String> =
        ["keywheel", "credential", "add"].map(str::to_owned).into_iter().chain([new.id.clone()]).collect();
    words.extend(["--service".into(), service.to_owned()]);
    words.extend(again.iter().cloned());
    if new.from_browser.is_some() {
        // Which cookies are looked for.
        let site = settings.iter().find(|(name, _)| name.ends_with("url")).map(|(_, url)| url.clone());
        words.extend(site.into_iter().flat_map(|site| ["--domain".into(), site]));
    }
    for (name, value) in settings {
        words.extend(["--set".into(), format!("{name}={value}")]);
    }
    words.extend(new.private_hosts.iter().flat_map(|host| ["--allow-private".into(), host.clone()]));
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// As a shell takes it for one word.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_where_a_shell_would_take_it_apart() {
        for (word, want) in [
            ("shop.example", "shop.example"),
            ("cookie_name=sid", "cookie_name=sid"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), want);
        }
    }
}
