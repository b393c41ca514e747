//! A call outside of any attempt: the plugin's own code runs in its worker and its requests go
//! through the egress, but nothing is written, and whoever asks has to know what to do with what
//! the service issues.

use std::future::ready;

use tokio::time::Instant;

use crate::egress::{Egress, Exchange, KeyChange};
use crate::limits;
use crate::protocol::{Answer, Call, Fault, HttpError, HttpRequest, HttpResponse, LogLevel, Used};
use crate::supervisor::{CallError, CallEvent, RunningCall, Supervisor};

/// How a call ended without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("the plugin can't be asked: {0}")]
    Unasked(String),
    #[error("the plugin was lost: {0}")]
    Lost(String),
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Looks on while a call runs. It sees everything, unredacted but for the values of secrets.
pub trait Onlooker: Send {
    /// The plugin asks for a request, which is not judged yet.
    fn asks(&mut self, _request: &HttpRequest) {}

    /// What the plugin hears of it.
    fn hears(&mut self, _answer: &Result<HttpResponse, HttpError>) {}

    /// The service issued something; `Exchange::jar` has it.
    fn issued(&mut self, _changes: &[KeyChange]) {}

    /// The plugin was shown the value of a key.
    fn revealed(&mut self, _key: &str) {}

    /// What the call used, by its worker's word.
    fn used(&mut self, _used: Used) {}

    fn says(&mut self, _level: LogLevel, _line: String) {}
}

/// Nobody looks.
impl Onlooker for () {}

/// A call with a deadline of its own.
pub struct Asking {
    pub(super) running: RunningCall,
    until: Instant,
}

impl Asking {
    /// # Errors
    /// Where no worker can run it in time.
    pub async fn begin(supervisor: &Supervisor, service: &str, call: Call) -> Result<Self, AskError> {
        let until = Instant::now() + limits::CALL_WALL;
        match tokio::time::timeout_at(until, supervisor.call(service, call)).await {
            Ok(Ok(running)) => Ok(Self { running, until }),
            Ok(Err(error)) => Err(AskError::Unasked(error.to_string())),
            Err(_) => Err(AskError::Unasked("its worker has no room for another call".into())),
        }
    }

    pub(super) async fn next(&mut self) -> Result<CallEvent, AskError> {
        match tokio::time::timeout_at(self.until, self.running.next()).await {
            Ok(Ok(event)) => Ok(event),
            Ok(Err(CallError::Died(why))) => Err(AskError::Lost(format!("its worker died: {why}"))),
            Ok(Err(error)) => Err(AskError::Lost(error.to_string())),
            Err(_) => Err(AskError::Lost(format!("it took over {} s", limits::CALL_WALL.as_secs()))),
        }
    }

    /// Serves what the call asks for until it ends.
    ///
    /// # Errors
    /// How it ended without an answer.
    pub async fn serve(
        mut self,
        egress: &Egress,
        exchange: &mut Exchange,
        reveal: &[String],
        onlooker: &mut impl Onlooker,
    ) -> Result<Answer, AskError> {
        loop {
            match self.next().await? {
                CallEvent::Http(request) => {
                    onlooker.asks(&request);
                    let keep = |changes: Vec<KeyChange>| {
                        onlooker.issued(&changes);
                        ready(Ok(()))
                    };
                    let result = egress.send_keeping(exchange, request, keep).await;
                    let result = result.map(|exchanged| exchanged.response);
                    onlooker.hears(&result);
                    self.running.http_done(result);
                }
                CallEvent::Reveal(key) => {
                    let value = exchange.jar.get(&key).map(|key| key.secret.expose().to_vec());
                    let granted = value.filter(|_| reveal.contains(&key));
                    if granted.is_some() {
                        exchange.seen.used.insert(key.clone());
                        onlooker.revealed(&key);
                    }
                    self.running.reveal_done(granted.ok_or_else(|| not_revealed(&key)));
                }
                CallEvent::Log(level, line) => onlooker.says(level, line),
                CallEvent::Finished(result) => {
                    onlooker.used(self.running.used());
                    return Ok(result?);
                }
            }
        }
    }
}

pub(super) fn not_revealed(key: &str) -> String {
    format!("key `{key}` is not revealed to this plugin")
}
