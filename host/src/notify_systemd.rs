//! Tells systemd how the daemon is: ready, reloading, stopping, and alive as long as its scheduler
//! and its writer truly turn. Without systemd nobody listens, and nothing here does anything. A
//! leaf: what is asked whether it turns is handed in.

use std::future::Future;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;

/// How long the scheduler may take for a round: its longest sleep is 30 s, and a claim that waits
/// for a failing disk gives up within a second. Past this it hangs.
pub const LONGEST_ROUND: Duration = Duration::from_secs(90);

/// How often the status line is written where no watchdog asks for more.
const STATUS_EVERY: Duration = Duration::from_secs(30);

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd can't be told");
    }
}

pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Until `ready` is said again.
pub fn reloading() {
    // systemd wants to know when, or it takes the message for an old one.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: what is in flight may end")]);
}

/// What is known of the daemon at one moment.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// Since the scheduler began its last round; None: it doesn't serve.
    pub scheduler: Option<Duration>,
    /// Whether the writing thread answered; what it answered doesn't matter here.
    pub writer: bool,
    pub in_flight: usize,
    /// Why the database can't be written.
    pub failing: Option<String>,
}

impl Pulse {
    /// Why the watchdog must not be fed.
    pub fn hangs(&self) -> Option<&'static str> {
        match self.scheduler {
            _ if !self.writer => Some("the database writer doesn't answer"),
            None => Some("the scheduler has ended"),
            Some(since) if since > LONGEST_ROUND => Some("the scheduler doesn't turn"),
            Some(_) => None,
        }
    }

    fn words(&self) -> String {
        match (self.hangs(), &self.failing) {
            (Some(why), _) => String::from(why),
            (None, Some(why)) => format!("the database can't be written, rotations wait: {why}"),
            (None, None) => format!("running, {} in flight", self.in_flight),
        }
    }
}

/// Feeds the watchdog for as long as everything turns, until `stop`. A daemon that hangs stops
/// feeding it, and systemd ends and starts it anew: nothing acknowledged is lost by that.
pub async fn keep_alive<F>(mut pulse: impl FnMut() -> F, mut stop: watch::Receiver<bool>)
where
    F: Future<Output = Pulse>,
{
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    // Three chances before its time is over.
    let every = watchdog.map_or(STATUS_EVERY, |wall| (wall / 3).min(STATUS_EVERY));
    while !*stop.borrow() {
        let now = pulse().await;
        let words = now.words();
        match now.hangs() {
            None if watchdog.is_some() => tell(&[NotifyState::Watchdog, NotifyState::Status(&words)]),
            None => tell(&[NotifyState::Status(&words)]),
            Some(why) => {
                tracing::error!(severity = "critical", why, "the watchdog isn't fed");
                tell(&[NotifyState::Status(&words)]);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = stop.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Pulse {
        Pulse { scheduler: Some(Duration::from_secs(30)), writer: true, in_flight: 3, failing: None }
    }

    fn full() -> Option<String> {
        Some(String::from("disk full"))
    }

    #[test]
    fn the_watchdog_is_fed_only_while_scheduler_and_writer_turn() {
        let late = Some(LONGEST_ROUND + Duration::from_millis(1));
        let table = [
            (fine(), None),
            (Pulse { writer: false, ..fine() }, Some("the database writer doesn't answer")),
            (Pulse { scheduler: late, ..fine() }, Some("the scheduler doesn't turn")),
            (Pulse { scheduler: None, ..fine() }, Some("the scheduler has ended")),
            // A full disk is not helped by a restart.
            (Pulse { failing: full(), ..fine() }, None),
        ];
        for (pulse, expected) in table {
            assert_eq!(pulse.hangs(), expected, "{pulse:?}");
        }
    }

    #[test]
    fn the_status_line_says_what_matters_most() {
        assert_eq!(fine().words(), "running, 3 in flight");
        assert!(Pulse { failing: full(), ..fine() }.words().ends_with("rotations wait: disk full"));
        let both = Pulse { failing: full(), writer: false, ..fine() };
        assert_eq!(both.words(), "the database writer doesn't answer");
    }
}
