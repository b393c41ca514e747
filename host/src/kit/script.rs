//! A fixture's answers, given one after another to the requests that it expects, with one of
//! them replaced where a trouble is played. It notes what was asked otherwise, and judges nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::fixture::Exchange;
use super::scene::{Made, Service};
use crate::protocol::HttpError;

type Reply = Result<http::Response<Bytes>, HttpError>;

pub struct Script {
    exchanges: Arc<Vec<Exchange>>,
    /// Which answer is replaced, and by what.
    trouble: Option<(usize, Reply)>,
    state: Mutex<Progress>,
}

/// How far it came.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    next: usize,
    /// Which exchange each request was given, in the order of the requests.
    pub served: Vec<Option<usize>>,
    /// The trouble was met.
    pub troubled: bool,
    /// After it the script gave an answer of its own.
    pub recovered: bool,
    /// Requests that the fixture doesn't have: the exchange's number, and what is otherwise.
    pub strayed: Vec<(usize, String)>,
}

impl Script {
    pub fn new(exchanges: Arc<Vec<Exchange>>) -> Arc<Self> {
        Arc::new(Self { exchanges, trouble: None, state: Mutex::default() })
    }

    pub fn with_trouble(exchanges: Arc<Vec<Exchange>>, at: usize, instead: Reply) -> Arc<Self> {
        Arc::new(Self { exchanges, trouble: Some((at, instead)), state: Mutex::default() })
    }

    pub fn service(self: &Arc<Self>) -> Service {
        let script = Arc::clone(self);
        Service::answers(move |made, _| script.answer(made))
    }

    fn state(&self) -> MutexGuard<'_, Progress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it went, with the requests that were never made.
    pub fn progress(&self) -> Progress {
        let mut progress = self.state().clone();
        if self.trouble.is_none() && progress.strayed.is_empty() {
            for (index, left) in self.exchanges.iter().enumerate().skip(progress.next) {
                let request = &left.request;
                progress.strayed.push((
                    index + 1,
                    format!("the request {} {} is never made", request.method, request.url),
                ));
            }
        }
        progress
    }

    fn answer(&self, made: &Made) -> Reply {
        let mut state = self.state();
        if state.troubled {
            return self.after_trouble(&mut state, made);
        }
        let index = state.next;
        let Some(expected) = self.exchanges.get(index) else {
            let more = format!(
                "a request that the fixture doesn't have: {} {}",
                made.request.method, made.request.url
            );
            return stray(&mut state, index + 1, more);
        };
        let difference = expected.request.difference(&made.request);
        if !difference.is_empty() {
            return stray(&mut state, index + 1, difference.join("; "));
        }
        state.next += 1;
        state.served.push(Some(index));
        match &self.trouble {
            Some((at, instead)) if *at == index => {
                state.troubled = true;
                instead.clone()
            }
            _ => expected.answer.arrive(),
        }
    }

    /// A provider may ask again, or ask something else. The troubled place stays so.
    fn after_trouble(&self, state: &mut Progress, made: &Made) -> Reply {
        let fits = |exchange: &Exchange| exchange.request.difference(&made.request).is_empty();
        let troubled = self.trouble.as_ref().map(|(at, instead)| (*at, instead));
        if let Some((at, instead)) = troubled
            && self.exchanges.get(at).is_some_and(fits)
        {
            state.served.push(Some(at));
            return instead.clone();
        }
        let Some(index) = self.exchanges.iter().position(fits) else {
            state.served.push(None);
            return Err(HttpError::Connect("connection refused".into()));
        };
        state.served.push(Some(index));
        state.recovered = true;
        self.exchanges.get(index).map_or(Err(HttpError::Timeout), |exchange| exchange.answer.arrive())
    }
}

fn stray(state: &mut Progress, number: usize, how: String) -> Reply {
    state.served.push(None);
    state.strayed.push((number, how));
    Err(HttpError::Other("the fixture has another request here".into()))
}
