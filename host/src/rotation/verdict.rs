//! What a plugin's verdict is worth: held against what the host itself saw of the service. The
//! plugin knows what an answer means; whether there was an answer, and of whom, the host knows
//! better. All rules stand here, as one table. Pure.

use crate::credential::{Jar, Millis};
use crate::egress::Seen;
use crate::egress::seen::{Answered, Last};
use crate::protocol::{Outcome, Reason, Verdict};
use crate::provider::KeySpec;
use crate::report::Status;

/// What a call showed that a verdict can rest on.
#[derive(Debug, Clone, Copy)]
pub struct Grounds<'a> {
    pub seen: &'a Seen,
    /// Required keys that the answers deleted, and gave no new value.
    pub deleted: &'a [String],
    pub keys: &'a [KeySpec],
    /// What was asked about.
    pub jar: &'a Jar,
    pub now: Millis,
}

/// The verdict that the evidence bears. Never more certain than the plugin's own.
pub fn judge(claimed: Verdict, grounds: Grounds<'_>) -> Verdict {
    let claim = claimed.as_str();
    match claimed {
        Verdict::Valid(evidence) => {
            if !grounds.deleted.is_empty() {
                // An answer that takes the session away outweighs what its text says.
                return Verdict::Invalid(Reason {
                    message: format!(
                        "the service's answer deleted the required key `{}`",
                        grounds.deleted.join("`, `")
                    ),
                    ..Reason::default()
                });
            }
            match unsound(grounds.seen) {
                Some(Doubt::NotAsked) if grounds.lives_by_record() => Verdict::Valid(evidence),
                Some(doubt) => doubt.about(claim, grounds.seen),
                None if grounds.seen.used.is_empty() => Verdict::Unknown(Reason {
                    message: String::from(
                        "the plugin says valid, but none of its requests carried a secret of the credential",
                    ),
                    ..Reason::default()
                }),
                None => Verdict::Valid(evidence),
            }
        }
        Verdict::Invalid(reason) => match unsound(grounds.seen) {
            Some(Doubt::NotAsked) if grounds.ended_by_record() => Verdict::Invalid(reason),
            Some(doubt) => doubt.about(claim, grounds.seen),
            None => Verdict::Invalid(reason),
        },
        Verdict::Unknown(reason) => Verdict::Unknown(with_wait(reason, grounds.seen)),
        human @ Verdict::NeedsHuman(_) => human,
    }
}

/// The same for a rotation that was refused: only the service's own word counts as a refusal.
pub fn judge_refusal(outcome: Outcome, seen: &Seen) -> Outcome {
    match outcome {
        Outcome::Invalid(reason) => match unsound(seen) {
            Some(doubt) => match doubt.about("invalid", seen) {
                Verdict::Unknown(doubtful) => Outcome::Unknown(doubtful),
                _ => Outcome::Invalid(reason),
            },
            None => Outcome::Invalid(reason),
        },
        Outcome::Unknown(reason) => Outcome::Unknown(with_wait(reason, seen)),
        other => other,
    }
}

/// The contract's status of a verdict (DESIGN §6).
pub const fn status(verdict: &Verdict) -> Status {
    match verdict {
        Verdict::Valid(_) => Status::Success,
        Verdict::Invalid(_) => Status::ValidationFailed,
        Verdict::Unknown(_) => Status::Unreachable,
        Verdict::NeedsHuman(_) => Status::Failed,
    }
}

/// Whether a verdict speaks for every secret that a rotation can spend: an access token that
/// still works says nothing of the refresh token.
pub fn proves(seen: &Seen, keys: &[KeySpec]) -> bool {
    keys.iter().filter(|key| key.required).all(|key| seen.used.contains(&key.name))
}

impl Grounds<'_> {
    /// The end that the service itself gave a token when it issued it lies ahead.
    fn lives_by_record(&self) -> bool {
        self.mapped_ends().any(|end| end > self.now)
    }

    /// A key's known end has passed.
    fn ended_by_record(&self) -> bool {
        self.mapped_ends().any(|end| end <= self.now)
    }

    fn mapped_ends(&self) -> impl Iterator<Item = Millis> {
        self.keys.iter().filter_map(|spec| self.jar.get(&spec.name)?.expires)
    }
}

/// Why the last answer of a call is no evidence, for or against.
enum Doubt {
    NotAsked,
    NoAnswer,
    Page(&'static str),
}

impl Doubt {
    fn about(self, claim: &str, seen: &Seen) -> Verdict {
        let message = match self {
            Self::NotAsked => format!("the plugin says {claim} without having asked the service"),
            Self::NoAnswer => format!("the plugin says {claim}, but its last request got no answer"),
            Self::Page(what) => {
                format!("the plugin says {claim}, but the answer was {} ({what})", seen.words())
            }
        };
        Verdict::Unknown(with_wait(Reason { message, ..Reason::default() }, seen))
    }
}

fn unsound(seen: &Seen) -> Option<Doubt> {
    match &seen.last {
        Last::NotAsked => Some(Doubt::NotAsked),
        Last::NoAnswer => Some(Doubt::NoAnswer),
        Last::Answered(answered) => unsound_answer(answered).map(Doubt::Page),
    }
}

fn unsound_answer(answered: &Answered) -> Option<&'static str> {
    match answered {
        Answered { challenge: true, .. } => Some("a firewall spoke, not the service"),
        Answered { status: 429, .. } => Some("too many requests"),
        Answered { status: 500..=599, .. } => Some("the service is in trouble"),
        Answered { status: 408, .. } => Some("the service waited in vain"),
        // 401 is HTTP's own word on credentials, whatever page comes with it.
        Answered { status: 401, .. } => None,
        Answered { html: true, json_due: true, .. } => Some("something else answered in its place"),
        _ => None,
    }
}

/// What the service asked for counts where the plugin forgot it.
fn with_wait(mut reason: Reason, seen: &Seen) -> Reason {
    if let Last::Answered(Answered { retry_after, .. }) = seen.last {
        reason.retry_after = reason.retry_after.or(retry_after);
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::{Key, Secret};
    use crate::protocol::Evidence;
    use crate::provider::Location;

    fn spec(name: &str, required: bool) -> KeySpec {
        KeySpec { name: name.into(), location: Location::Token, required, reveal: false, help: String::new() }
    }

    fn jar(expires: Option<Millis>) -> Jar {
        let key = Key {
            name: "token".into(),
            secret: Secret::new("made-up"),
            fingerprint: String::new(),
            expires,
            cookie: None,
        };
        Jar { keys: vec![key] }
    }

    fn answered(answered: Answered) -> Seen {
        Seen {
            requests: 1,
            used: ["token".to_owned()].into(),
            last: Last::Answered(answered),
            ..Seen::default()
        }
    }

    fn status_only(status: u16) -> Seen {
        answered(Answered { status, ..Answered::default() })
    }

    fn with(seen: &Seen, claimed: Verdict, expires: Option<Millis>, deleted: &[String]) -> &'static str {
        let (keys, jar) = ([spec("token", true)], jar(expires));
        judge(claimed, Grounds { seen, deleted, keys: &keys, jar: &jar, now: 1_000 }).as_str()
    }

    fn valid() -> Verdict {
        Verdict::Valid(Evidence::default())
    }

    fn invalid() -> Verdict {
        Verdict::Invalid(Reason::default())
    }

    #[test]
    fn a_verdict_stands_only_on_an_answer_of_the_service() {
        let html =
            |json_due, status| answered(Answered { status, html: true, json_due, ..Answered::default() });
        let challenge = |status| answered(Answered { status, challenge: true, ..Answered::default() });
        let no_answer = Seen { last: Last::NoAnswer, ..status_only(0) };
        for (seen, of_valid, of_invalid) in [
            (status_only(200), "valid", "invalid"),
            (status_only(204), "valid", "invalid"),
            (status_only(302), "valid", "invalid"),
            (status_only(400), "valid", "invalid"),
            (status_only(401), "valid", "invalid"),
            (status_only(403), "valid", "invalid"),
            (status_only(404), "valid", "invalid"),
            (status_only(408), "unknown", "unknown"),
            (status_only(429), "unknown", "unknown"),
            (status_only(500), "unknown", "unknown"),
            (status_only(502), "unknown", "unknown"),
            (status_only(503), "unknown", "unknown"),
            (status_only(599), "unknown", "unknown"),
            (html(false, 200), "valid", "invalid"),
            (html(true, 200), "unknown", "unknown"),
            (html(true, 403), "unknown", "unknown"),
            (html(true, 401), "valid", "invalid"),
            (challenge(200), "unknown", "unknown"),
            (challenge(403), "unknown", "unknown"),
            (challenge(401), "unknown", "unknown"),
            (no_answer, "unknown", "unknown"),
            (Seen::default(), "unknown", "unknown"),
        ] {
            assert_eq!(with(&seen, valid(), None, &[]), of_valid, "{seen:?}");
            assert_eq!(with(&seen, invalid(), None, &[]), of_invalid, "{seen:?}");
            let unknown = Verdict::Unknown(Reason::default());
            assert_eq!(with(&seen, unknown, None, &[]), "unknown");
            let human = Verdict::NeedsHuman(Reason::default());
            assert_eq!(with(&seen, human, None, &[]), "needs-human");
        }
    }

    #[test]
    fn without_a_question_only_the_end_that_was_issued_is_evidence() {
        let nothing = Seen::default();
        assert_eq!(with(&nothing, valid(), Some(1_001), &[]), "valid");
        assert_eq!(with(&nothing, valid(), Some(1_000), &[]), "unknown");
        assert_eq!(with(&nothing, invalid(), Some(1_000), &[]), "invalid");
        assert_eq!(with(&nothing, invalid(), Some(1_001), &[]), "unknown");
        // A question without an answer is no better for it.
        let no_answer = Seen { requests: 1, last: Last::NoAnswer, ..Seen::default() };
        assert_eq!(with(&no_answer, valid(), Some(1_001), &[]), "unknown");
    }

    #[test]
    fn a_question_without_the_secret_proves_no_life() {
        let anonymous = Seen { used: [].into(), ..status_only(200) };
        assert_eq!(with(&anonymous, valid(), None, &[]), "unknown");
        assert_eq!(with(&anonymous, invalid(), None, &[]), "invalid");
    }

    #[test]
    fn an_answer_that_deletes_a_required_key_is_evidence_against_it() {
        let deleted = ["token".to_owned()];
        assert_eq!(with(&status_only(200), valid(), None, &deleted), "invalid");
        assert_eq!(with(&status_only(503), Verdict::Unknown(Reason::default()), None, &deleted), "unknown");
    }

    #[test]
    fn what_the_service_asked_for_is_heard_even_if_the_plugin_forgot_it() {
        let seen = answered(Answered { status: 429, retry_after: Some(90), ..Answered::default() });
        let (keys, jar) = ([spec("token", true)], jar(None));
        for claimed in [valid(), invalid(), Verdict::Unknown(Reason::default())] {
            let grounds = Grounds { seen: &seen, deleted: &[], keys: &keys, jar: &jar, now: 0 };
            let Verdict::Unknown(reason) = judge(claimed, grounds) else { panic!("not unknown") };
            assert_eq!(reason.retry_after, Some(90));
        }
    }

    #[test]
    fn a_refused_rotation_needs_the_services_own_word_too() {
        let refused = || Outcome::Invalid(Reason::default());
        assert!(matches!(judge_refusal(refused(), &status_only(400)), Outcome::Invalid(_)));
        for seen in [status_only(429), status_only(500), Seen::default()] {
            assert!(matches!(judge_refusal(refused(), &seen), Outcome::Unknown(_)), "{seen:?}");
        }
    }

    #[test]
    fn a_living_access_token_proves_nothing_of_a_refresh_token() {
        let seen = Seen { used: ["access".to_owned()].into(), ..status_only(200) };
        assert!(proves(&seen, &[spec("access", true), spec("extra", false)]));
        assert!(!proves(&seen, &[spec("access", false), spec("refresh", true)]));
    }

    #[test]
    fn each_verdict_has_the_contracts_status() {
        let status = |verdict| status(&verdict).as_str();
        assert_eq!(status(valid()), "success");
        assert_eq!(status(invalid()), "validation_failed");
        assert_eq!(status(Verdict::Unknown(Reason::default())), "unreachable");
        assert_eq!(status(Verdict::NeedsHuman(Reason::default())), "failed");
    }
}
