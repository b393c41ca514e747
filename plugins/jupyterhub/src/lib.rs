//! A provider for JupyterHub API tokens. A rotation makes a new token beside the old one, so it
//! also has to clean up: what earlier rotations left is found by its note and deleted first. It
//! never deletes the token in use, nor one that it didn't make for this very credential.
#![cfg_attr(target_family = "wasm", no_std)]

mod tokens;

use keywheel_sdk::prelude::*;
use keywheel_sdk::{date, encode};
use tokens::Tag;

struct JupyterHub;

keywheel_sdk::export!(JupyterHub);

const API: &str = "https://jupyterhub.readthedocs.io/en/stable/reference/rest-api.html";

impl Provider for JupyterHub {
    fn describe() -> Manifest {
        Manifest::new("jupyterhub", "JupyterHub API token", env!("CARGO_PKG_VERSION"))
            .source(API)
            .setting(Setting::url("base_url").required().help(
                "The hub without /hub, with its prefix if it has one, such as https://science.example/jupyter",
            ))
            .setting(
                Setting::duration("expires_in")
                    .default("30d")
                    .help("How long a new token lives; 0 leaves it to the hub, whose default is for ever"),
            )
            .setting(
                Setting::text("scopes").help("A new token's scopes, separated by spaces; empty: those of the old one"),
            )
            .origin("{base_url.origin}")
            .validate_url("{base_url}/hub/api/user")
            .key(Key::token("token").help("An API token with the scope tokens, such as tokens!user"))
            .method(
                Method::new("replace", CommitClass::Additive)
                    .help("Makes a new token; the next rotation deletes the one before"),
            )
            .class_source("replace", API)
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let me = match whoami(cx)? {
            Ok(me) => me,
            Err(dead) => return Ok(Verdict::Invalid(dead)),
        };
        let found = Evidence::new().identity(me.account());
        let Some(id) = me.token_id.as_deref().filter(|_| !me.service) else {
            return Ok(Verdict::Valid(found.note("this hub doesn't say when the token expires")));
        };
        let answer = tokens_of(cx, "GET", &me).segment(text(id)).send()?;
        match (answer.status(), refusal(&answer)) {
            (200, _) => match answer.pick("/id")? {
                Some(same) if same == id => {
                    let expires = answer.pick("/expires_at")?.and_then(|at| date::parse(&at));
                    Ok(Verdict::Valid(found.expires(expires)))
                }
                _ => Err(answer.unexpected()),
            },
            // The hub knew the token a moment ago, and the scope to read its own end is rare to lack.
            (403, Some(_)) => Ok(Verdict::Valid(found.note("the token may not read when it expires"))),
            _ => Err(answer.unexpected()),
        }
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        let me = match whoami(cx)? {
            Ok(me) => me,
            Err(dead) => return Ok(Outcome::Invalid(dead)),
        };
        if me.service {
            return Ok(Outcome::needs_human(format!(
                "{} is a service: its token stands in the hub's configuration, and only there it can be changed",
                me.account()
            )));
        }
        let Some(in_use) = me.token_id.as_deref() else {
            return Ok(Outcome::needs_human(
                "this hub doesn't say which token is in use (JupyterHub before 5.0), so old ones couldn't be deleted \
                 safely: update the hub, or replace the token by hand and import it",
            ));
        };
        clean_up(cx, &me, in_use)?;
        let answer = tokens_of(cx, "POST", &me)
            .header("content-type", "application/json")
            .body(text(wanted(cx, &me, in_use)?))
            .capture("token", json("/token"))
            .send()?;
        if answer.changed("token") {
            let expires = answer.pick("/expires_at").ok().flatten().and_then(|at| date::parse(&at));
            return Ok(Outcome::Rotated(Evidence::new().expires(expires)));
        }
        match (answer.status(), refusal(&answer)) {
            (400, Some(said)) => Ok(Outcome::needs_human(format!(
                "the hub makes no such token: check the settings expires_in and scopes ({said})"
            ))),
            (403, Some(said)) => Ok(not_allowed(&said)),
            _ => Err(answer.unexpected()),
        }
    }
}

/// Whom the hub takes the token's bearer for.
struct Me {
    name: String,
    service: bool,
    /// Since JupyterHub 5.0.
    token_id: Option<String>,
    scopes: Vec<String>,
}

impl Me {
    fn account(&self) -> String {
        if self.service { format!("service {}", self.name) } else { self.name.clone() }
    }
}

/// Err: the hub doesn't know the token.
fn whoami(cx: &Cx) -> Result<Result<Me, Reason>> {
    let answer = asked(cx, "GET", "{validate_url}").send()?;
    match (answer.status(), refusal(&answer)) {
        (200, _) => {
            let body = answer.json()?;
            let field = |name| body.get(name).and_then(Value::as_str).map(String::from);
            let (Some(name), Some(kind)) = (field("name"), field("kind")) else {
                return Err(answer.unexpected());
            };
            let scopes = body.get("scopes").and_then(Value::as_array).into_iter().flatten();
            let scopes = scopes.filter_map(Value::as_str).map(String::from).collect();
            Ok(Ok(Me { name, service: kind == "service", token_id: field("token_id"), scopes }))
        }
        // Any token that the hub knows may ask who it is, so this is about the token itself.
        (403, Some(said)) => Ok(Err(Reason::new(format!(
            "the hub doesn't know the token: it expired, was deleted, or its user was; make a new one on the hub's \
             page Token and import it ({said})"
        )))),
        _ => Err(answer.unexpected()),
    }
}

/// Deletes what earlier rotations of this credential left. Where that fails nothing new is made:
/// repeated tries must not leave a heap.
fn clean_up(cx: &Cx, me: &Me, in_use: &str) -> Result<()> {
    let answer = tokens_of(cx, "GET", me).send()?;
    match (answer.status(), refusal(&answer)) {
        (200, _) => {}
        (403, Some(said)) => return Err(Stop::needs_human(not_allowed_words(&said))),
        _ => return Err(answer.unexpected()),
    }
    let body = answer.json()?;
    let Some(all) = body.get("api_tokens").and_then(Value::as_array) else {
        return Err(answer.unexpected());
    };
    for id in tokens::left_behind(all, &cx.context().credential_id, in_use) {
        let answer = tokens_of(cx, "DELETE", me).segment(text(id)).send()?;
        match (answer.status(), refusal(&answer)) {
            // Somebody else was faster.
            (204, _) | (404, Some(_)) => {}
            (403, Some(said)) => return Err(Stop::needs_human(not_allowed_words(&said))),
            _ => return Err(answer.unexpected()),
        }
    }
    Ok(())
}

/// The body that asks for a new token. Without scopes a hub would give all of its user's, also to
/// a token that had few.
fn wanted(cx: &Cx, me: &Me, in_use: &str) -> Result<String> {
    let tag = Tag { credential: &cx.context().credential_id, attempt: cx.context().attempt, from: in_use };
    let mut scopes: Vec<&str> = cx.setting("scopes").split_whitespace().collect();
    if scopes.is_empty() {
        scopes = me.scopes.iter().map(String::as_str).collect();
    }
    let scopes: Vec<String> = scopes.iter().map(|scope| format!("\"{}\"", encode::json(scope))).collect();
    let end = match cx.setting_seconds("expires_in")? {
        0 => String::new(),
        seconds => format!("\"expires_in\":{seconds},"),
    };
    let (note, scopes) = (encode::json(&tag.note()), scopes.join(","));
    Ok(format!("{{{end}\"note\":\"{note}\",\"scopes\":[{scopes}]}}"))
}

/// What the hub itself says where it refuses: `{"status": 403, "message": …}`, with the status of
/// the answer. A firewall's page or a proxy's JSON is none.
fn refusal(answer: &Response) -> Option<String> {
    const CHARS: usize = 160;
    let body = answer.json().ok()?;
    let status = body.get("status")?.as_u64()?;
    let message = body.get("message")?.as_str().unwrap_or("no reason given");
    (status == u64::from(answer.status())).then(|| message.chars().take(CHARS).collect())
}

fn not_allowed(said: &str) -> Outcome {
    Outcome::needs_human(not_allowed_words(said))
}

fn not_allowed_words(said: &str) -> String {
    format!(
        "the token lives, but may not make and delete tokens: import one with the scope tokens!user, or only \
         validate this one ({said})"
    )
}

/// Below `/users/{name}/tokens`.
fn tokens_of(cx: &Cx, method: &str, me: &Me) -> Request {
    asked(cx, method, "{base_url}/hub/api/users").segment(text(&me.name)).segment(text("tokens"))
}

fn asked(cx: &Cx, method: &str, url: &str) -> Request {
    cx.request(method, url).header("authorization", bearer("token"))
}
