//! Owns the text forms in which a credential's keys go out. Pure. What it returns holds values in
//! clear, and is a `Secret` for that; no error holds one.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use thiserror::Error;
use url::Url;

use super::{HTTP_ONLY, is_past, is_sent_to, unfit_for_header};
pub use crate::credential::Form;
use crate::credential::{CookieAttributes, Jar, Key, Millis, Secret};
use crate::registry::manifest::{listed, shown};
use crate::report::iso8601;

/// The keys in a form. `url` is what a cookie header is for; other forms don't look at it.
///
/// # Errors
/// What the form can't express, or a header without its URL.
pub fn to_form(jar: &Jar, form: Form, url: Option<&str>, now: Millis) -> Result<Secret, ExportError> {
    match form {
        Form::Netscape => to_netscape(jar),
        Form::StorageState => to_storage_state(jar),
        Form::BrowserJson => to_browser_json(jar),
        Form::Env => to_env(jar),
        Form::Json => to_json(jar),
        Form::Header => to_cookie_header(jar, url.ok_or(ExportError::NoUrl)?, now),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExportError {
    #[error("the credential has no cookies; hint: export its tokens as env or JSON")]
    NoCookies,
    #[error("a cookie header needs a url: which cookies are sent depends on it")]
    NoUrl,
    #[error("no cookie of the credential is sent to {}; it has cookies for {}", shown(.host), listed(.domains))]
    NoneFor { host: String, domains: Vec<String> },
    #[error("{} is not a url with a host; allowed: `https://host/path`", shown(.found))]
    Url { found: String },
    #[error("key {} holds {what}, which {format} can't express; hint: export as JSON", shown(.key))]
    Inexpressible { key: String, what: &'static str, format: &'static str },
    #[error("key {} is not UTF-8 text, and no text form can express it", shown(.key))]
    NotText { key: String },
    #[error("keys {} and {} would both be the variable {variable}; hint: export as JSON", shown(.first), shown(.second))]
    SameVariable { first: String, second: String, variable: String },
}

fn text_of(key: &Key) -> Result<&str, ExportError> {
    std::str::from_utf8(key.secret.expose()).map_err(|_| ExportError::NotText { key: key.name.clone() })
}

fn cookies_of(jar: &Jar) -> Result<Vec<(&Key, &CookieAttributes)>, ExportError> {
    let cookies: Vec<_> = jar.keys.iter().filter_map(|key| Some((key, key.cookie.as_ref()?))).collect();
    if cookies.is_empty() { Err(ExportError::NoCookies) } else { Ok(cookies) }
}

fn dotted(cookie: &CookieAttributes) -> String {
    let dot = if cookie.host_only { "" } else { "." };
    format!("{dot}{}", cookie.domain)
}

/// The cookies as `cookies.txt`; tokens have no place in one. Expiries lose their milliseconds.
pub fn to_netscape(jar: &Jar) -> Result<Secret, ExportError> {
    let mut out = Text::new(jar);
    out.push("# Netscape HTTP Cookie File\n");
    for (key, cookie) in cookies_of(jar)? {
        let value = text_of(key)?;
        for text in [&cookie.name, &cookie.path, &cookie.domain, value] {
            if text.contains(['\t', '\n', '\r', '\0']) {
                let (what, format) = ("a tab or line break", "cookies.txt");
                return Err(ExportError::Inexpressible { key: key.name.clone(), what, format });
            }
        }
        let flag = |on: bool| if on { "TRUE" } else { "FALSE" };
        // 0 would say that it never expires.
        let expires = key.expires.map_or(0, |at| (at / 1_000).max(1));
        out.push(if cookie.http_only { HTTP_ONLY } else { "" });
        let expires = expires.to_string();
        let fields = [
            &dotted(cookie),
            flag(!cookie.host_only),
            &cookie.path,
            flag(cookie.secure),
            &expires,
            &cookie.name,
            value,
        ];
        for (index, field) in fields.iter().enumerate() {
            out.push(if index > 0 { "\t" } else { "" });
            out.push(field);
        }
        out.push("\n");
    }
    Ok(out.finish())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StateCookie<'a> {
    name: &'a str,
    value: &'a str,
    domain: String,
    path: &'a str,
    expires: f64,
    http_only: bool,
    secure: bool,
    same_site: &'a str,
}

#[derive(Serialize)]
struct State<'a> {
    cookies: Vec<StateCookie<'a>>,
    origins: [(); 0],
}

/// The cookies as Playwright's `storageState`. It knows no unset `sameSite`; `Lax` is what
/// browsers take that for.
pub fn to_storage_state(jar: &Jar) -> Result<Secret, ExportError> {
    let mut cookies = Vec::new();
    for (key, cookie) in cookies_of(jar)? {
        cookies.push(StateCookie {
            name: &cookie.name,
            value: text_of(key)?,
            domain: dotted(cookie),
            path: &cookie.path,
            expires: key.expires.map_or(-1.0, |at| at as f64 / 1_000.0),
            http_only: cookie.http_only,
            secure: cookie.secure,
            same_site: cookie.same_site.as_deref().unwrap_or("Lax"),
        });
    }
    Ok(json(jar, &State { cookies, origins: [] }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BrowserCookie<'a> {
    name: &'a str,
    value: &'a str,
    domain: String,
    path: &'a str,
    host_only: bool,
    session: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration_date: Option<f64>,
    http_only: bool,
    secure: bool,
    same_site: &'a str,
}

/// The cookies as the list that browser extensions import.
pub fn to_browser_json(jar: &Jar) -> Result<Secret, ExportError> {
    let mut cookies = Vec::new();
    for (key, cookie) in cookies_of(jar)? {
        cookies.push(BrowserCookie {
            name: &cookie.name,
            value: text_of(key)?,
            domain: dotted(cookie),
            path: &cookie.path,
            host_only: cookie.host_only,
            session: key.expires.is_none(),
            expiration_date: key.expires.map(|at| at as f64 / 1_000.0),
            http_only: cookie.http_only,
            secure: cookie.secure,
            same_site: match cookie.same_site.as_deref() {
                Some("Strict") => "strict",
                Some("Lax") => "lax",
                Some("None") => "no_restriction",
                _ => "unspecified",
            },
        });
    }
    Ok(json(jar, &cookies))
}

#[derive(Serialize)]
struct JsonKey<'a> {
    value: &'a str,
    expires: Option<String>,
    cookie: Option<&'a CookieAttributes>,
}

/// Every key by its name: `{"session": {"value": …, "expires": …, "cookie": …}}`.
pub fn to_json(jar: &Jar) -> Result<Secret, ExportError> {
    let mut keys = BTreeMap::new();
    for key in &jar.keys {
        let (value, expires) = (text_of(key)?, key.expires.map(iso8601));
        keys.insert(&key.name, JsonKey { value, expires, cookie: key.cookie.as_ref() });
    }
    Ok(json(jar, &keys))
}

/// The line `Cookie: a=1; b=2` that a browser would send to `url` at `now`, RFC 6265
/// section 5.4: longer paths first, no secure cookie over plain http, none that expired.
pub fn to_cookie_header(jar: &Jar, url: &str, now: Millis) -> Result<Secret, ExportError> {
    let parsed = Url::parse(url).ok().filter(Url::has_host);
    let Some(url) = parsed else {
        // A URL may hold a secret in its query.
        let found = url.split(['?', '#']).next().unwrap_or_default();
        let found = if found.contains('@') { "…@…" } else { found };
        return Err(ExportError::Url { found: found.to_owned() });
    };
    let host = url.host_str().unwrap_or_default();
    let cookies = cookies_of(jar)?;
    let mut sent: Vec<_> = cookies
        .iter()
        .filter(|(key, cookie)| {
            is_sent_to(cookie, host)
                && is_path_within(url.path(), &cookie.path)
                && (!cookie.secure || url.scheme() == "https")
                && !is_past(key.expires, now)
        })
        .collect();
    if sent.is_empty() {
        let domains: BTreeSet<String> = cookies.iter().map(|(_, c)| c.domain.clone()).collect();
        let domains = domains.into_iter().collect();
        return Err(ExportError::NoneFor { host: host.to_owned(), domains });
    }
    // A stable sort, so cookies of one path keep the jar's order.
    sent.sort_by_key(|(_, cookie)| std::cmp::Reverse(cookie.path.len()));
    let mut out = Text::new(jar);
    for (index, (key, cookie)) in sent.into_iter().enumerate() {
        let value = text_of(key)?;
        if unfit_for_header(cookie, value.as_bytes()).is_some() {
            let (what, format) = ("a control character or a separator", "a header");
            return Err(ExportError::Inexpressible { key: key.name.clone(), what, format });
        }
        out.push(if index == 0 { "Cookie: " } else { "; " });
        out.push(&cookie.name);
        out.push("=");
        out.push(value);
    }
    Ok(out.finish())
}

/// RFC 6265 section 5.1.4.
fn is_path_within(path: &str, cookie: &str) -> bool {
    path.strip_prefix(cookie)
        .is_some_and(|rest| rest.is_empty() || cookie.ends_with('/') || rest.starts_with('/'))
}

/// Lines `NAME=value`. A value of plain characters stands bare, for not every reader of `.env`
/// files knows quotes; any other stands between single quotes, where for a POSIX shell everything
/// but a single quote means itself, line breaks included.
pub fn to_env(jar: &Jar) -> Result<Secret, ExportError> {
    let mut out = Text::new(jar);
    for (variable, value) in variables(jar)? {
        out.push(&variable);
        out.push("=");
        if is_plain(value) {
            out.push(value);
        } else {
            out.push("'");
            for (index, part) in value.split('\'').enumerate() {
                out.push(if index > 0 { r"'\''" } else { "" });
                out.push(part);
            }
            out.push("'");
        }
        out.push("\n");
    }
    Ok(out.finish())
}

/// Every key as an environment variable, in the jar's order.
///
/// # Errors
/// What no variable can hold, and two keys that would be the same one.
pub fn variables(jar: &Jar) -> Result<Vec<(String, &str)>, ExportError> {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    let mut all = Vec::new();
    for key in &jar.keys {
        let variable = variable(&key.name);
        if let Some(first) = seen.insert(variable.clone(), &key.name) {
            let (first, second) = (first.to_owned(), key.name.clone());
            return Err(ExportError::SameVariable { first, second, variable });
        }
        all.push((variable, variable_value(key)?));
    }
    Ok(all)
}

/// A key's value, where an environment variable can hold it.
///
/// # Errors
/// It isn't text, or has a zero byte.
pub fn variable_value(key: &Key) -> Result<&str, ExportError> {
    let value = text_of(key)?;
    if value.contains('\0') {
        let (what, format) = ("a zero byte", "a shell variable");
        return Err(ExportError::Inexpressible { key: key.name.clone(), what, format });
    }
    Ok(value)
}

/// What means itself to shells, systemd, docker and the readers of `.env` files alike.
fn is_plain(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=+,@%".contains(c);
    !value.is_empty() && value.chars().all(plain)
}

/// `refresh-token` is `REFRESH_TOKEN`.
pub fn variable(name: &str) -> String {
    let mut variable = String::new();
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        variable.push('_');
    }
    variable.extend(name.chars().map(
        |c| {
            if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }
        },
    ));
    variable
}

/// A text that becomes a `Secret`. Room for all of it is taken first, because a buffer that
/// grows leaves what it held behind unwiped.
struct Text(zeroize::Zeroizing<String>);

impl Text {
    fn new(jar: &Jar) -> Self {
        Self(zeroize::Zeroizing::new(String::with_capacity(room(jar))))
    }

    fn push(&mut self, text: &str) {
        self.0.push_str(text);
    }

    fn finish(mut self) -> Secret {
        Secret::new(std::mem::take(&mut *self.0).into_bytes())
    }
}

/// A bound on any of the forms: an escape makes at most six bytes of one, and what stands around
/// a value is field names and attributes.
pub(super) fn room(jar: &Jar) -> usize {
    let key = |key: &Key| {
        let cookie = key.cookie.as_ref();
        let attributes = cookie.map_or(0, |c| c.name.len() + c.domain.len() + c.path.len());
        512 + 6 * (key.secret.expose().len() + key.name.len() + attributes)
    };
    256 + jar.keys.iter().map(key).sum::<usize>()
}

fn json(jar: &Jar, value: &impl Serialize) -> Secret {
    let mut out = zeroize::Zeroizing::new(Vec::with_capacity(room(jar)));
    serde_json::to_writer_pretty(&mut *out, value)
        .expect("texts, numbers and flags always serialise, and a vector takes every write");
    out.push(b'\n');
    Secret::new(std::mem::take(&mut *out))
}
