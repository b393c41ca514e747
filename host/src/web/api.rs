//! The API of programs that use the secrets: how a credential stands, and its secret in the form
//! that was asked for. Only what is in force leaves, only to a token that reaches it, and only
//! after that is written down; what is refused is written down as well. It changes no credential.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::time::{Instant, MissedTickBehavior};

use super::Shared;
use super::answer::{FIXED, Refused, answer};
use super::gate::{Turned, peer_text};
use super::server::Peer;
use crate::credential::{Jar, Secret, is_id, now};
use crate::db::api_tokens::{ApiRefusal, ApiTokenRow, RefusalReason, SecretRead};
use crate::db::queries::CredentialRow;
use crate::db::writer::WriteError;
use crate::formats::export::{self, ExportError, Form};
use crate::limits;
use crate::sealing::open_jar;
use crate::token::{Reach, Scope};

/// How often refusals are written down that came too often for a row each.
const COUNTED: Duration = Duration::from_secs(5);

const GENERATION: HeaderName = HeaderName::from_static("keywheel-generation");

type Named = Result<Path<String>, axum::extract::rejection::PathRejection>;

pub fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v1/credentials", get(list))
        .route("/v1/credentials/{id}", get(state))
        .route("/v1/credentials/{id}/secret", get(secret))
}

async fn list(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let listed = async {
        let bearer = admit(&shared, &peer, &headers, Scope::State).await?;
        let page = Page::read(query.as_deref())?;
        let (reach, read) = (bearer.reach.clone(), page.clone());
        let found =
            shared.gate.read(move |reader| reader.credentials_within(&reach, read.after, read.limit)).await?;
        used(&shared, &bearer).await;
        Ok::<_, Refused>(found)
    };
    match listed.await {
        Ok((rows, next)) => {
            let rows: Vec<Value> = rows.iter().map(state_of).collect();
            answer(StatusCode::OK, json!({ "credentials": rows, "next": next }))
        }
        Err(refused) => shared.refuse(refused),
    }
}

async fn state(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    id: Named,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let found = async {
        let bearer = admit(&shared, &peer, &headers, Scope::State).await?;
        let row = reached(&shared, &peer, &bearer, &named(id)).await?;
        parameters(query.as_deref(), &[])?;
        used(&shared, &bearer).await;
        Ok::<_, Refused>(row)
    };
    match found.await {
        Ok(row) => answer(StatusCode::OK, state_of(&row)),
        Err(refused) => shared.refuse(refused),
    }
}

async fn secret(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    id: Named,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let read = async {
        let bearer = admit(&shared, &peer, &headers, Scope::Read).await?;
        let id = named(id);
        let mut row = reached(&shared, &peer, &bearer, &id).await?;
        let wanted = Wanted::read(query.as_deref())?;
        if let Some(after) = wanted.after {
            if row.current_generation == Some(after) && wanted.wait > Duration::ZERO {
                wait_for_another(&shared, &peer, &id, after, wanted.wait).await?;
                row = reached(&shared, &peer, &bearer, &id).await?;
            }
            if row.current_generation == Some(after) {
                used(&shared, &bearer).await;
                return Ok(Read::NothingNew { generation: after, etag: None });
            }
        }
        hand_out(&shared, &peer, bearer, row, wanted, &headers).await
    };
    match read.await {
        Ok(read) => read.into_response(),
        Err(refused) => shared.refuse(refused),
    }
}

/// Opens, writes down, and only then hands out.
async fn hand_out(
    shared: &Arc<Shared>,
    peer: &Peer,
    bearer: ApiTokenRow,
    row: CredentialRow,
    wanted: Wanted,
    headers: &HeaderMap,
) -> Result<Read, Refused> {
    let id = row.credential_id.clone();
    let sealed = shared.gate.read(move |reader| reader.sealed_generation(&id)).await?;
    let Some(sealed) = sealed else { return Err(without_secret(&row)) };
    let jar = open_jar(&shared.vault, &row.credential_id, &sealed).map_err(|error| {
        tracing::error!(credential = row.credential_id, %error, "a secret can't be opened");
        let message = "the secret can't be opened; the log says why";
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    })?;
    let generation = sealed.generation;
    let text = in_form(&jar, &wanted)?;
    // Its expiry or its form for a URL may change where the generation doesn't.
    let etag = format!("\"{generation}.{}\"", shared.vault.fingerprint(&text));
    if is_known(headers, &etag) {
        used(shared, &bearer).await;
        return Ok(Read::NothingNew { generation, etag: Some(etag) });
    }
    let read = SecretRead {
        token_id: bearer.token_id.clone(),
        peer: peer_text(peer.address.ip()),
        credential_id: row.credential_id,
        generation,
        form: name_of(wanted.form),
    };
    match shared.writer.note_secret_read(read).await {
        Ok(()) => Ok(Read::Secret { generation, etag, form: wanted.form, text }),
        // Revoked or over since it was looked at.
        Err(WriteError::NotFound { .. }) => {
            let refused = Refused::unauthenticated_api("the token was revoked or expired just now");
            note(shared, peer, RefusalReason::RevokedToken, &bearer, None).await;
            Err(refused)
        }
        Err(error) => {
            tracing::warn!(%error, "a secret was not handed out, for that could not be written down");
            let message = "that a secret is read can't be written down now, so it is not handed out; hint: use the one you have, and ask again later";
            Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message).again_after(5))
        }
    }
}

/// What came of asking for a secret.
enum Read {
    Secret {
        generation: u32,
        etag: String,
        form: Form,
        text: Secret,
    },
    /// What the client has is what there is.
    NothingNew {
        generation: u32,
        etag: Option<String>,
    },
}

/// Wiped when the last byte is sent.
struct Wiped(Secret);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        self.0.expose()
    }
}

impl IntoResponse for Read {
    fn into_response(self) -> Response {
        let (mut response, generation, etag) = match self {
            Self::Secret { generation, etag, form, text } => {
                let kind = HeaderValue::from_static(content_type(form));
                let body = Body::from(Bytes::from_owner(Wiped(text)));
                let mut response = (StatusCode::OK, FIXED, body).into_response();
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                (response, generation, Some(etag))
            }
            Self::NothingNew { generation, etag } => {
                ((StatusCode::NOT_MODIFIED, FIXED).into_response(), generation, etag)
            }
        };
        let headers = response.headers_mut();
        headers.insert(GENERATION, HeaderValue::from(generation));
        if let Some(etag) = etag.and_then(|etag| HeaderValue::from_str(&etag).ok()) {
            headers.insert(header::ETAG, etag);
        }
        response
    }
}

/// Lets a token in that may do this with something. What it reaches is looked at by `reached`.
pub async fn admit(
    shared: &Shared,
    peer: &Peer,
    headers: &HeaderMap,
    scope: Scope,
) -> Result<ApiTokenRow, Refused> {
    let bearer = match shared.gate.api(headers, peer.address.ip()).await {
        Ok(bearer) => bearer,
        Err(Turned { refused, note }) => {
            write_down(shared, note.into_iter().map(|note| *note).collect()).await;
            return Err(refused);
        }
    };
    if !bearer.scopes.iter().any(|has| has.covers(scope)) {
        note(shared, peer, RefusalReason::Scope, &bearer, None).await;
        return Err(Refused::forbidden());
    }
    Ok(bearer)
}

/// The credential, if the token reaches it. Where it doesn't, nobody learns whether there is one.
pub async fn reached(
    shared: &Shared,
    peer: &Peer,
    bearer: &ApiTokenRow,
    credential_id: &str,
) -> Result<CredentialRow, Refused> {
    let id = credential_id.to_owned();
    let row = match is_id(credential_id) {
        true => shared.gate.read(move |reader| reader.credential(&id)).await?,
        false => None,
    };
    let is_named =
        matches!(&bearer.reach, Reach::Credentials(ids) if ids.iter().any(|id| id == credential_id));
    match row {
        Some(row) if bearer.reach.includes(&row.credential_id, &row.service, row.profile_id.as_deref()) => {
            Ok(row)
        }
        None if is_named => {
            let message = format!("there is no credential `{credential_id}` any more, or not yet");
            Err(Refused::new(StatusCode::NOT_FOUND, "no-such-credential", message))
        }
        _ => {
            let tried = is_id(credential_id).then(|| credential_id.to_owned());
            note(shared, peer, RefusalReason::ForeignCredential, bearer, tried).await;
            Err(Refused::forbidden())
        }
    }
}

/// A use that hands out no secret; that it can't be written down holds nobody up.
pub async fn used(shared: &Shared, bearer: &ApiTokenRow) {
    if let Err(error) = shared.writer.use_api_token(bearer).await {
        tracing::debug!(%error, "a token's use could not be written down");
    }
}

async fn note(
    shared: &Shared,
    peer: &Peer,
    reason: RefusalReason,
    bearer: &ApiTokenRow,
    credential_id: Option<String>,
) {
    let (token_id, peer) = (Some(bearer.token_id.clone()), peer_text(peer.address.ip()));
    write_down(shared, vec![ApiRefusal { reason, token_id, peer, credential_id, times: 1 }]).await;
}

/// Before the answer. Where that can't be, it is refused all the same, and the log has it.
async fn write_down(shared: &Shared, refusals: Vec<ApiRefusal>) {
    if refusals.is_empty() {
        return;
    }
    if let Err(error) = shared.writer.note_api_refusals(refusals.clone()).await {
        tracing::warn!(%error, ?refusals, "refusals of the API could not be written down");
    }
}

/// Writes down, until the daemon stops, what was refused too often for a row each.
pub async fn keep_history(shared: &Shared) {
    let mut stop = shared.stop.clone();
    let mut ticks = tokio::time::interval(COUNTED);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let stopped = tokio::select! {
            _ = ticks.tick() => false,
            // An error means the sender is gone, which ends the daemon just as well.
            _ = stop.wait_for(|stop| *stop) => true,
        };
        write_down(shared, shared.gate.passed_over()).await;
        if stopped {
            return;
        }
    }
}

/// Waits until another generation is current, the time is over or the daemon stops.
async fn wait_for_another(
    shared: &Shared,
    peer: &Peer,
    credential_id: &str,
    after: u32,
    wait: Duration,
) -> Result<(), Refused> {
    let Ok(_place) = shared.port.waiting.try_acquire() else {
        let message = format!("{} clients wait already, which is as many as may", limits::API_WAITING);
        return Err(Refused::new(StatusCode::TOO_MANY_REQUESTS, "too-many-waiting", message).again_after(5));
    };
    let until = Instant::now() + wait;
    peer.patience(until + limits::HTTP_REQUEST_WALL);
    let (mut progress, mut stop) = (shared.writer.progress(), shared.stop.clone());
    loop {
        progress.borrow_and_update();
        let id = credential_id.to_owned();
        if shared.gate.read(move |reader| reader.current_generation(&id)).await? != Some(after) {
            return Ok(());
        }
        let news = async {
            let news = progress.changed().await;
            tokio::time::sleep(limits::API_LOOK_AGAIN).await;
            news
        };
        tokio::select! {
            news = news => if news.is_err() { return Ok(()) },
            () = tokio::time::sleep_until(until) => return Ok(()),
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}

/// A name that can't be one is foreign to every token.
fn named(id: Named) -> String {
    id.map(|Path(id)| id).unwrap_or_default()
}

fn state_of(row: &CredentialRow) -> Value {
    json!({
        "credentialId": row.credential_id,
        "profileId": row.profile_id,
        "service": row.service,
        "external": row.external,
        "paused": row.paused || row.service_paused,
        "generation": row.current_generation,
        "pendingGeneration": row.pending_generation,
        "rotatedAt": crate::report::iso8601(row.rotated_at),
        "monitor": row.monitor,
    })
}

fn without_secret(row: &CredentialRow) -> Refused {
    let message = match row.external {
        true => "the credential is external: its secrets are with the worker that reports on it",
        false => "the credential has no secret in force",
    };
    Refused::new(StatusCode::CONFLICT, "no-secret", message)
}

fn in_form(jar: &Jar, wanted: &Wanted) -> Result<Secret, Refused> {
    export::to_form(jar, wanted.form, wanted.url.as_deref(), now()).map_err(|error| match error {
        ExportError::NoUrl | ExportError::Url { .. } => bad("url", error),
        _ => Refused::new(StatusCode::CONFLICT, "not-in-this-form", error.to_string()).at("format"),
    })
}

fn bad(field: &str, message: impl ToString) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, "bad-parameter", message.to_string()).at(field)
}

/// Whether the client has it already, by `If-None-Match`.
fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let lines = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|one| {
        let one = one.trim();
        one.strip_prefix("W/").unwrap_or(one) == etag
    })
}

/// What is asked for of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    form: Form,
    url: Option<String>,
    after: Option<u32>,
    wait: Duration,
}

impl Wanted {
    fn read(query: Option<&str>) -> Result<Self, Refused> {
        let mut wanted = Self { form: Form::Json, url: None, after: None, wait: Duration::ZERO };
        for (name, value) in parameters(query, &["format", "url", "after", "wait"])? {
            match name {
                "format" => wanted.form = form_of(&value)?,
                "url" => wanted.url = Some(value),
                "after" => {
                    let number = value.parse().ok();
                    wanted.after =
                        Some(number.ok_or_else(|| bad("after", "allowed is a generation's number"))?);
                }
                _ => wanted.wait = wait_of(&value)?,
            }
        }
        if wanted.wait > Duration::ZERO && wanted.after.is_none() {
            return Err(bad("wait", "it needs `after`: the generation that the client has"));
        }
        Ok(wanted)
    }
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Page {
    after: i64,
    limit: u32,
}

impl Page {
    fn read(query: Option<&str>) -> Result<Self, Refused> {
        let mut page = Self { after: 0, limit: 100 };
        for (name, value) in parameters(query, &["after", "limit"])? {
            if name == "after" {
                page.after = value.parse().map_err(|_| bad("after", "allowed is what `next` was"))?;
            } else {
                let limit = value.parse().ok().filter(|limit| (1..=limits::API_PAGE).contains(limit));
                let allowed = || bad("limit", format!("allowed is 1 to {}", limits::API_PAGE));
                page.limit = limit.ok_or_else(allowed)?;
            }
        }
        Ok(page)
    }
}

/// The parameters of a query, each known and there once. What it refuses it doesn't quote.
fn parameters<'k>(query: Option<&str>, known: &[&'k str]) -> Result<Vec<(&'k str, String)>, Refused> {
    let mut found: Vec<(&str, String)> = Vec::new();
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let Some(name) = known.iter().find(|known| **known == name) else {
            let allowed = if known.is_empty() { String::from("none") } else { known.join(", ") };
            return Err(bad("query", format!("it has a parameter that isn't known; allowed: {allowed}")));
        };
        if found.iter().any(|(earlier, _)| earlier == name) {
            return Err(bad(name, "it stands there twice"));
        }
        found.push((name, value.into_owned()));
    }
    Ok(found)
}

const FORMS: [Form; 6] =
    [Form::Netscape, Form::StorageState, Form::BrowserJson, Form::Header, Form::Env, Form::Json];

const fn name_of(form: Form) -> &'static str {
    match form {
        Form::Netscape => "netscape",
        Form::StorageState => "storage-state",
        Form::BrowserJson => "browser-json",
        Form::Header => "header",
        Form::Env => "env",
        Form::Json => "json",
    }
}

fn form_of(text: &str) -> Result<Form, Refused> {
    FORMS
        .into_iter()
        .find(|form| name_of(*form) == text)
        .ok_or_else(|| bad("format", format!("allowed is one of {}", FORMS.map(name_of).join(", "))))
}

const fn content_type(form: Form) -> &'static str {
    match form {
        Form::StorageState | Form::BrowserJson | Form::Json => "application/json",
        Form::Netscape | Form::Header | Form::Env => "text/plain; charset=utf-8",
    }
}

/// Such as `30s`, `1m` or `30`.
fn wait_of(text: &str) -> Result<Duration, Refused> {
    let (digits, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let seconds = digits.parse::<u32>().ok().and_then(|count| count.checked_mul(unit));
    let wait = seconds.map(|seconds| Duration::from_secs(seconds.into()));
    wait.filter(|wait| *wait <= limits::API_WAIT).ok_or_else(|| {
        bad("wait", format!("allowed is a time up to {} s, such as 30s", limits::API_WAIT.as_secs()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_strictly() {
        let seconds = Duration::from_secs;
        let plain = Wanted { form: Form::Json, url: None, after: None, wait: seconds(0) };
        for (query, expected) in [
            (None, Ok(plain.clone())),
            (Some(""), Ok(plain.clone())),
            (Some("format=netscape"), Ok(Wanted { form: Form::Netscape, ..plain.clone() })),
            (
                Some("format=header&url=https%3A%2F%2Fa.example%2F"),
                Ok(Wanted { form: Form::Header, url: Some("https://a.example/".into()), ..plain.clone() }),
            ),
            (Some("after=3&wait=30s"), Ok(Wanted { after: Some(3), wait: seconds(30), ..plain.clone() })),
            (Some("after=3&wait=1m"), Ok(Wanted { after: Some(3), wait: seconds(60), ..plain.clone() })),
            (Some("after=0&wait=7"), Ok(Wanted { after: Some(0), wait: seconds(7), ..plain.clone() })),
            (Some("after=3"), Ok(Wanted { after: Some(3), ..plain.clone() })),
            (Some("wait=30s"), Err("wait")),
            (Some("after=3&wait=61s"), Err("wait")),
            (Some("after=3&wait=-1s"), Err("wait")),
            (Some("after=3&wait=99999999m"), Err("wait")),
            (Some("after=-1"), Err("after")),
            (Some("after=three"), Err("after")),
            (Some("format=playwright"), Err("format")),
            (Some("format=json&format=env"), Err("format")),
            (Some("token=kwa_x"), Err("query")),
            (Some("Format=json"), Err("query")),
        ] {
            let read = Wanted::read(query);
            let field = read.map_err(|refused| refused.field.expect("a field"));
            assert_eq!(field, expected.map_err(str::to_owned), "{query:?}");
        }
    }

    #[test]
    fn a_page_has_bounds() {
        for (query, expected) in [
            ("", Some((0, 100))),
            ("limit=1000&after=7", Some((7, 1_000))),
            ("limit=0", None),
            ("limit=1001", None),
            ("after=x", None),
            ("service=s", None),
        ] {
            let page = Page::read(Some(query)).ok().map(|page| (page.after, page.limit));
            assert_eq!(page, expected, "{query}");
        }
    }

    #[test]
    fn what_a_client_has_is_known_by_its_tag_alone() {
        for (lines, expected) in [
            (&[][..], false),
            (&["\"3.ab\""], true),
            (&["W/\"3.ab\""], true),
            (&["\"2.ab\", \"3.ab\""], true),
            (&["\"2.ab\"", "\"3.ab\""], true),
            (&["\"3.abc\""], false),
            (&["3.ab"], false),
            // It would say nothing of which one the client has.
            (&["*"], false),
        ] {
            let mut headers = HeaderMap::new();
            for &line in lines {
                headers.append(header::IF_NONE_MATCH, line.parse().unwrap());
            }
            assert_eq!(is_known(&headers, "\"3.ab\""), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_form_has_the_name_that_commands_know_it_by() {
        for form in FORMS {
            assert_eq!(json!(form), json!(name_of(form)));
            assert_eq!(form_of(name_of(form)).ok(), Some(form));
        }
    }
}
