//! A loopback server on which services of every commit class run, and the ledger of what each
//! account was issued and spent, for the tests to ask afterwards. The rules are `accounts`;
//! here is only HTTP, in the shape of the services they were taken from. It answers after an
//! effect, never before, and an effect stays whether or not its answer is heard.

mod accounts;
pub mod atlassian;
pub mod cloudflare;
pub mod fake;
pub mod github;
pub mod github_app;
pub mod gitlab;
pub mod google;
pub mod slack;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

pub use accounts::{Account, Class, Terms};
use accounts::{Refused, Token};

use crate::harness::random_secret;

/// All services of one test.
#[derive(Clone)]
pub struct Services {
    url: String,
    ledger: Arc<Mutex<Ledger>>,
}

struct Ledger {
    terms: Terms,
    accounts: HashMap<String, Account>,
    /// Which account a value was issued to.
    owners: HashMap<String, String>,
    /// Made when the next rotation is asked for.
    alarm: Option<PathBuf>,
    /// The longest that an answer takes after its effect.
    slowest: Duration,
    requests: u64,
}

/// Where an account stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub rotations: u32,
    pub double_spends: u32,
    pub revocations: u32,
    /// Tokens that live.
    pub living: usize,
    /// What was issued last came back: whoever showed it had kept it.
    pub newest_was_used: bool,
    /// What was issued last, by the names that a credential has for it.
    pub last_issued: HashMap<String, String>,
}

impl Services {
    pub fn start(terms: Terms) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, terms)
    }

    /// As `start`, at another address of this machine.
    pub fn start_at(at: Ipv4Addr, terms: Terms) -> Self {
        let ledger = Ledger {
            terms,
            accounts: HashMap::new(),
            owners: HashMap::new(),
            alarm: None,
            slowest: Duration::ZERO,
            requests: 0,
        };
        let ledger = Arc::new(Mutex::new(ledger));
        let (told, address) = mpsc::channel();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&ledger));
        // Ends with the test process.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let listener = tokio::net::TcpListener::bind((at, 0)).await.expect("a free port");
                told.send(listener.local_addr().expect("an address")).expect("the test waits");
                axum::serve(listener, router).await.expect("the services serve");
            });
        });
        let address = address.recv().expect("the services start");
        Self { url: format!("http://{address}"), ledger }
    }

    /// Answers take a random time up to this, after their effect.
    pub fn answer_within(&self, slowest: Duration) {
        self.ledger().slowest = slowest;
    }

    pub fn url(&self, class: Class) -> String {
        format!("{}/{}", self.url, class.name())
    }

    /// Opens an account and signs in.
    pub fn open(&self, name: &str, class: Class) -> HashMap<String, String> {
        let mut ledger = self.ledger();
        let account = Account::new(class, ledger.terms);
        assert!(ledger.accounts.insert(name.to_owned(), account).is_none(), "`{name}` has an account");
        drop(ledger);
        self.sign_in(name)
    }

    /// As `open`, with a session that keeps its value.
    pub fn open_keeping(&self, name: &str) -> HashMap<String, String> {
        let keys = self.open(name, Class::Sliding);
        self.ledger().accounts.get_mut(name).expect("just opened").keeps_its_value = true;
        keys
    }

    /// The secrets of a new sign-in, by the names that a credential has for them.
    pub fn sign_in(&self, name: &str) -> HashMap<String, String> {
        let ledger = &mut *self.ledger();
        let account = ledger.accounts.get_mut(name).expect("the account is open");
        let values = account.sign_in(&mut random_secret, Instant::now());
        ledger.owners.extend(values.iter().map(|value| (value.clone(), name.to_owned())));
        by_key(account.class, values.iter().map(String::as_str))
    }

    pub fn standing(&self, name: &str) -> Standing {
        let ledger = self.ledger();
        let account = &ledger.accounts[name];
        Standing {
            rotations: account.rotations,
            double_spends: account.double_spends,
            revocations: account.revocations,
            living: account.living(Instant::now()).count(),
            newest_was_used: account.newest_was_used(),
            last_issued: by_key(account.class, account.last_issued()),
        }
    }

    /// Whether every one of these values would be accepted for what it is for.
    pub fn accepts<'a>(&self, name: &str, values: impl IntoIterator<Item = &'a String>) -> bool {
        let ledger = self.ledger();
        values.into_iter().all(|value| ledger.accounts[name].accepts(value, Instant::now()))
    }

    /// Makes a file when the next rotation is asked for, before it is answered.
    pub fn alarm(&self, file: PathBuf) {
        self.ledger().alarm = Some(file);
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names the values of one issue as the plugins' key mappings do.
fn by_key<'a>(class: Class, values: impl IntoIterator<Item = &'a str>) -> HashMap<String, String> {
    let names: &[&str] = match class {
        Class::BurnPair => &["access_token", "refresh_token"],
        Class::Sliding => &["session"],
        _ => &["token"],
    };
    names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), value.to_owned())).collect()
}

async fn answer(
    State(ledger): State<Arc<Mutex<Ledger>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (response, wait) = {
        let ledger = &mut *lock(&ledger);
        ledger.requests += 1;
        // Evenly spread; nothing here needs more than that.
        let spread = ledger.requests.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let wait = ledger.slowest.mul_f64(spread as f64 / f64::from(1 << 24));
        (ledger.react(&method, uri.path(), &headers, &body), wait)
    };
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
    response
}

fn refused(status: StatusCode, why: &str) -> Response {
    (status, axum::Json(json!({ "error": why }))).into_response()
}

fn issued(account: &Account, name: &str, fresh: &[Token], terms: Terms) -> Response {
    match account.class {
        // RFC 6749 section 5.1.
        Class::BurnPair => axum::Json(json!({
            "token_type": "Bearer",
            "access_token": fresh[0].value,
            "expires_in": terms.access.as_secs(),
            "refresh_token": fresh[1].value,
        }))
        .into_response(),
        Class::Sliding => {
            let max_age = terms.idle.as_secs();
            let cookie = format!("session={}; Path=/; Max-Age={max_age}; HttpOnly", fresh[0].value);
            ([(header::SET_COOKIE, cookie)], axum::Json(json!({ "sub": name }))).into_response()
        }
        _ => (StatusCode::CREATED, axum::Json(json!({ "id": fresh[0].id, "token": fresh[0].value })))
            .into_response(),
    }
}

impl Ledger {
    fn react(&mut self, method: &Method, path: &str, headers: &HeaderMap, body: &[u8]) -> Response {
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let class = parts.next().and_then(|name| Class::ALL.into_iter().find(|class| class.name() == name));
        let action = parts.next().unwrap_or_default();
        let Some(class) = class else { return refused(StatusCode::NOT_FOUND, "no such service") };
        let rotates = matches!(action, "rotate" | "token");
        if rotates && let Some(alarm) = self.alarm.take() {
            std::fs::write(alarm, "").expect("the alarm can be made");
        }
        let secret = secret_of(class, action, headers, body);
        let owner = self.owners.get(&secret).cloned();
        let account = owner.as_ref().and_then(|name| self.accounts.get_mut(name));
        let dead = if action == "token" {
            // RFC 6749 section 5.2.
            || refused(StatusCode::BAD_REQUEST, "invalid_grant")
        } else {
            || refused(StatusCode::UNAUTHORIZED, "unauthorized")
        };
        let (Some(name), Some(account)) = (owner, account.filter(|account| account.class == class)) else {
            return dead();
        };
        let now = Instant::now();
        if rotates {
            let note = serde_json::from_slice::<Value>(body).unwrap_or_default();
            let note = note["note"].as_str().unwrap_or_default();
            return match account.rotate(&secret, note, &mut random_secret, now) {
                Ok(fresh) => {
                    self.owners.extend(fresh.iter().map(|token| (token.value.clone(), name.clone())));
                    issued(account, &name, &fresh, self.terms)
                }
                Err(Refused::Full) => refused(StatusCode::CONFLICT, "too many tokens; delete some"),
                Err(Refused::Dead | Refused::Reused) => dead(),
            };
        }
        let Ok(id) = account.check(&secret, now) else { return dead() };
        match (method.as_str(), action.strip_prefix("tokens"), action) {
            ("GET", _, "check") => axum::Json(json!({ "sub": name })).into_response(),
            ("GET", Some("/self"), _) => axum::Json(json!({ "id": id })).into_response(),
            ("GET", Some(""), _) => {
                let list: Vec<_> =
                    account.living(now).map(|token| json!({ "id": token.id, "note": token.note })).collect();
                axum::Json(Value::from(list)).into_response()
            }
            ("DELETE", Some(which), _) => {
                let which = which.trim_start_matches('/').parse().ok();
                match which.is_some_and(|id| account.delete(id)) {
                    true => StatusCode::NO_CONTENT.into_response(),
                    false => refused(StatusCode::NOT_FOUND, "no such token"),
                }
            }
            _ => refused(StatusCode::NOT_FOUND, "no such page"),
        }
    }
}

/// The secret that a request shows: a refresh token in its form, a session cookie, or a bearer
/// token.
fn secret_of(class: Class, action: &str, headers: &HeaderMap, body: &[u8]) -> String {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match class {
        Class::BurnPair if action == "token" => url::form_urlencoded::parse(body)
            .find(|(name, _)| name == "refresh_token")
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default(),
        Class::Sliding => header(header::COOKIE)
            .split("; ")
            .find_map(|cookie| cookie.strip_prefix("session="))
            .unwrap_or_default()
            .to_owned(),
        _ => header(header::AUTHORIZATION).strip_prefix("Bearer ").unwrap_or_default().to_owned(),
    }
}
