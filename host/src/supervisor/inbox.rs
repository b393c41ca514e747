//! What one call said and its attempt hasn't heard yet. A channel of tokio's takes room for 32
//! messages when it is made, ten kilobytes for a call that says two things; this takes what is
//! there. It is as long as the sender lets it be: `link` bounds what a call may say.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::link::CallEvent;

#[derive(Debug, Default)]
struct Inbox {
    said: Mutex<Said>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Said {
    events: VecDeque<CallEvent>,
    /// Nothing more will come.
    over: bool,
    /// Nobody will hear it.
    given_up: bool,
}

impl Inbox {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker's side. Dropped: nothing more comes.
#[derive(Debug)]
pub struct Teller(Arc<Inbox>);

/// The attempt's side.
#[derive(Debug)]
pub struct Events(Arc<Inbox>);

pub fn inbox() -> (Teller, Events) {
    let inbox = Arc::<Inbox>::default();
    (Teller(Arc::clone(&inbox)), Events(inbox))
}

impl Teller {
    /// How many events wait.
    pub fn waiting(&self) -> usize {
        self.0.said().events.len()
    }

    /// What nobody will hear is dropped.
    pub fn tell(&self, event: CallEvent) {
        let mut said = self.0.said();
        if !said.given_up {
            said.events.push_back(event);
            drop(said);
            self.0.changed.notify_one();
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.0.said().over = true;
        self.0.changed.notify_one();
    }
}

impl Events {
    /// The next event; None where there is no more.
    pub async fn next(&mut self) -> Option<CallEvent> {
        loop {
            {
                let mut said = self.0.said();
                if let Some(event) = said.events.pop_front() {
                    return Some(event);
                }
                if said.over {
                    return None;
                }
            }
            self.0.changed.notified().await;
        }
    }

    /// Whether an event waits.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.said().events.is_empty()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut said = self.0.said();
        said.given_up = true;
        said.events = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::LogLevel;

    fn line(text: &str) -> CallEvent {
        CallEvent::Log(LogLevel::Info, text.into())
    }

    #[tokio::test]
    async fn what_was_said_before_the_end_is_heard_in_order_and_then_the_end() {
        let (teller, mut events) = inbox();
        let hearing = tokio::spawn(async move {
            let mut heard = Vec::new();
            while let Some(event) = events.next().await {
                heard.push(format!("{event:?}"));
            }
            heard
        });
        for text in ["one", "two", "three"] {
            teller.tell(line(text));
            tokio::task::yield_now().await;
        }
        drop(teller);
        let expected: Vec<_> = ["one", "two", "three"].map(|text| format!("{:?}", line(text))).into();
        assert_eq!(hearing.await.unwrap(), expected);
    }

    #[tokio::test]
    async fn what_nobody_will_hear_is_not_kept() {
        let (teller, events) = inbox();
        teller.tell(line("before"));
        drop(events);
        teller.tell(line("after"));
        assert_eq!(teller.waiting(), 0);
    }
}
