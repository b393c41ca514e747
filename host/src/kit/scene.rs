//! What one call of the kit meets in the network's place, and what is kept of it: each request
//! as it was made, with references in place of secrets, and its answer as it came. It decides
//! nothing about the plugin.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header;

use super::Heard;
use super::fixture::Request;
use crate::credential::{Jar, Key};
use crate::egress::redact::Redactor;
use crate::egress::{Between, KeyChange, over_network, seen, template};
use crate::protocol::{HttpError, HttpRequest, LogLevel, Used};
use crate::rotation::asking::Onlooker;

/// Answers a request: how it was made, and as it would have left, its secrets filled in.
pub type Answering =
    dyn Fn(&Made, &http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> + Send + Sync;

/// Who answers.
#[derive(Clone)]
pub enum Service {
    Answers(Arc<Answering>),
    /// The real one: for an author who tries a plugin, never for a check.
    Network,
}

impl Service {
    pub fn answers(
        answer: impl Fn(&Made, &http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self::Answers(Arc::new(answer))
    }

    /// A service that always answers.
    pub fn fake(
        answer: impl Fn(&http::Request<Bytes>) -> http::Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        Self::answers(move |_, request| Ok(answer(request)))
    }
}

/// A request as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub request: Request,
    /// Keys whose values it carries.
    pub keys: Vec<String>,
    /// Keys that it captures by rules.
    pub captures: Vec<String>,
    /// Not the plugin's own word, but a redirect that was followed.
    pub redirected: bool,
}

/// A request that came to the service, and its answer as it came, secrets and all.
#[derive(Debug, Clone)]
pub struct Hop {
    pub made: Made,
    pub answer: Result<http::Response<Bytes>, HttpError>,
}

/// A request of the plugin, and all that became of it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub made: Made,
    /// None where it was refused before it left; more than one where redirects were followed.
    pub hops: Vec<Hop>,
    /// None where the call ended before.
    pub heard: Option<Heard>,
}

pub(super) struct Scene {
    service: Service,
    state: Mutex<State>,
}

struct State {
    /// The values that stand behind references, the newest of each.
    keys: Vec<Key>,
    asked: Vec<Asked>,
}

tokio::task_local! {
    /// Which call a request belongs to: one egress serves all that run at once.
    pub(super) static SCENE: Arc<Scene>;
}

impl Scene {
    pub fn new(service: Service, jar: &Jar) -> Self {
        Self { service, state: Mutex::new(State { keys: jar.keys.clone(), asked: Vec::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }

    fn begin(&self, request: &HttpRequest) {
        let mut state = self.state();
        let mut keys: Vec<String> = seen::keys_of(request).into_iter().collect();
        if request.cookies {
            keys.extend(state.keys.iter().filter(|key| key.cookie.is_some()).map(|key| key.name.clone()));
        }
        let made = Made {
            request: Request {
                method: request.method.clone(),
                url: template::masked(&request.url),
                headers: request
                    .headers
                    .iter()
                    .map(|(name, value)| (name.to_ascii_lowercase(), template::masked(value)))
                    .collect(),
                cookies: request.cookies,
                body: request.body.as_ref().map(|body| template::masked(body)),
            },
            keys,
            captures: request.capture.iter().map(|rule| rule.key.clone()).collect(),
            redirected: false,
        };
        state.asked.push(Asked { made, hops: Vec::new(), heard: None });
    }

    /// How the request that is about to be answered was made.
    fn made(&self, real: &http::Request<Bytes>) -> Option<Made> {
        let state = self.state();
        let asked = state.asked.last()?;
        let first = &asked.made;
        if asked.hops.is_empty() {
            return Some(first.clone());
        }
        // A redirect: the service named the place, and may have put a secret into it.
        let mut url = real.uri().to_string();
        for key in &state.keys {
            if let Ok(value) = std::str::from_utf8(key.secret.expose())
                && !value.is_empty()
            {
                url = url.replace(value, &format!("{{{}}}", key.name));
            }
        }
        let redactor = Redactor::new(state.keys.iter().map(|key| key.secret.expose()));
        let goes_on = |(name, _): &&(String, String)| real.headers().contains_key(name.as_str());
        let has_body = !real.body().is_empty();
        Some(Made {
            request: Request {
                method: real.method().to_string(),
                url: redactor.redact_text(&url).into_owned(),
                headers: first.request.headers.iter().filter(goes_on).cloned().collect(),
                cookies: real.headers().contains_key(header::COOKIE),
                body: first.request.body.clone().filter(|_| has_body),
            },
            redirected: true,
            ..first.clone()
        })
    }

    fn keep(&self, made: Made, answer: &Result<http::Response<Bytes>, HttpError>) {
        if let Some(asked) = self.state().asked.last_mut() {
            asked.hops.push(Hop { made, answer: answer.clone() });
        }
    }
}

/// Keeps what a call says besides its answer.
pub(super) struct Watch {
    pub scene: Arc<Scene>,
    pub log: Vec<(LogLevel, String)>,
    pub revealed: Vec<String>,
    pub used: Used,
    /// Every value that the service issued on the way.
    pub issued: Vec<Key>,
}

impl Onlooker for Watch {
    fn asks(&mut self, request: &HttpRequest) {
        self.scene.begin(request);
    }

    fn hears(&mut self, answer: &Heard) {
        if let Some(asked) = self.scene.state().asked.last_mut() {
            asked.heard = Some(answer.clone());
        }
    }

    fn issued(&mut self, changes: &[KeyChange]) {
        for change in changes {
            if let KeyChange::Set(key) | KeyChange::Touched(key) = change {
                let mut state = self.scene.state();
                state.keys.retain(|old| old.name != key.name);
                state.keys.push(key.clone());
                self.issued.push(key.clone());
            }
        }
    }

    fn revealed(&mut self, key: &str) {
        self.revealed.push(key.to_owned());
    }

    fn used(&mut self, used: Used) {
        self.used = used;
    }

    fn says(&mut self, level: LogLevel, line: String) {
        self.log.push((level, line));
    }
}

/// Stands before the network of a kit's host.
pub(super) fn between() -> Arc<Between> {
    Arc::new(|request, client| {
        let scene = SCENE.try_with(Arc::clone);
        Box::pin(async move {
            let Ok(scene) = scene else {
                return Err(HttpError::Other("no call of the kit asks for this".into()));
            };
            let mut real = http::Request::new(Bytes::new());
            *real.method_mut() = request.method().clone();
            *real.uri_mut() =
                request.url().as_str().parse().map_err(|_| HttpError::Other("a URL that is none".into()))?;
            *real.headers_mut() = request.headers().clone();
            let body = request.body().and_then(|body| body.as_bytes());
            *real.body_mut() = Bytes::copy_from_slice(body.unwrap_or_default());
            let made = scene
                .made(&real)
                .ok_or_else(|| HttpError::Other("a request that nobody asked for".into()))?;
            let answer = match &scene.service {
                Service::Answers(answer) => answer(&made, &real),
                Service::Network => over_network(request, client).await,
            };
            scene.keep(made, &answer);
            answer
        })
    })
}
