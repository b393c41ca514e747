//! What a rotation's facts lead to: commit classes, promotion and recovery. Pure and small, so
//! that every rule can be read in one place and tested as a table. It never does I/O.

use crate::credential::Jar;
use crate::db::{Action, Phase};
use crate::protocol::Verdict;
use crate::provider::{CommitClass, KeySpec};

/// How an attempt begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    Validate,
    Rotate,
    /// A pending generation waits for its verdict, from this attempt or an earlier one.
    TestPending,
    /// A rotation may have reached the service and left nothing: learn whether the old secret
    /// still lives before anything is repeated.
    ProbeCurrent,
    /// A rotation may have reached the service, and repeating it harms nothing.
    Repeat,
}

/// What is known when a credential is claimed.
#[derive(Debug, Clone, Copy)]
pub struct Claimed {
    pub action: Action,
    pub has_pending: bool,
    /// The attempt began before a crash, and came this far.
    pub interrupted: Option<(Phase, CommitClass)>,
    /// An earlier attempt's rotation, of this class, may have spent the current secret.
    pub in_doubt: Option<CommitClass>,
    /// The secret comes from a backup: whoever ran since may have replaced it and used the new one.
    pub restored: bool,
}

pub fn plan(claimed: Claimed) -> Plan {
    if claimed.has_pending {
        return Plan::TestPending;
    }
    let after = if claimed.restored { after_restore } else { after_lost_answer };
    match claimed.interrupted {
        // The intent is written before the request, so without it none has left.
        Some((Phase::Claimed, _)) | None => match (claimed.action, claimed.in_doubt) {
            (Action::Validate, _) => Plan::Validate,
            (Action::Rotate, Some(class)) if after(class) == Plan::ProbeCurrent => Plan::ProbeCurrent,
            (Action::Rotate, _) => Plan::Rotate,
        },
        Some((Phase::Rotating | Phase::Captured, class)) => after(class),
    }
}

/// A rotation request left and no answer is known.
pub const fn after_lost_answer(class: CommitClass) -> Plan {
    match class {
        CommitClass::Sliding | CommitClass::Additive | CommitClass::CommitOnUse => Plan::Repeat,
        CommitClass::Grace | CommitClass::BurnOnIssue => Plan::ProbeCurrent,
    }
}

/// The secret is as old as a backup, and what was rotated since is not known: more than one lost
/// answer, for the successors were put to use. Only where an old secret stays good, or a rotation
/// with it harms nothing, need nobody look first.
pub const fn after_restore(class: CommitClass) -> Plan {
    match class {
        CommitClass::Sliding | CommitClass::Additive => Plan::Repeat,
        CommitClass::CommitOnUse | CommitClass::Grace | CommitClass::BurnOnIssue => Plan::ProbeCurrent,
    }
}

/// What becomes of a pending generation that the service calls invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// The old secret is the better one.
    Drop,
    /// The old one died when this was issued: keep both, and call a human.
    KeepForHuman,
}

pub const fn rejected_pending(class: CommitClass) -> Rejected {
    match class {
        CommitClass::BurnOnIssue => Rejected::KeepForHuman,
        CommitClass::Sliding | CommitClass::Additive | CommitClass::CommitOnUse | CommitClass::Grace => {
            Rejected::Drop
        }
    }
}

/// Whether a rotation waits for consumers to take the present secret. Of these classes the present
/// one goes on for a while and the one before ends, and who still uses that would be left with
/// nothing. Of the others nobody can use an earlier one by now, or it never ends.
pub const fn waits_for_consumers(class: CommitClass) -> bool {
    match class {
        CommitClass::Additive | CommitClass::Grace => true,
        CommitClass::Sliding | CommitClass::CommitOnUse | CommitClass::BurnOnIssue => false,
    }
}

/// What becomes of a secret that the service issued while the present one was only asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Issued {
    /// The present one lives, and the new one is asked about next.
    Test,
    /// A logged-out answer hands out fresh anonymous sessions, which must never replace one that
    /// may still live.
    Drop,
    /// Nothing was learnt, and the new one may be the only one that lives.
    Keep,
}

pub const fn issued_while_validating(verdict: &Verdict) -> Issued {
    match verdict {
        Verdict::Valid(_) => Issued::Test,
        Verdict::Invalid(_) => Issued::Drop,
        Verdict::Unknown(_) | Verdict::NeedsHuman(_) => Issued::Keep,
    }
}

/// The required keys a jar lacks; with any, it is never promoted.
pub fn lost_keys<'a>(jar: &Jar, keys: &'a [KeySpec]) -> Vec<&'a str> {
    keys.iter()
        .filter(|key| key.required && jar.get(&key.name).is_none())
        .map(|key| key.name.as_str())
        .collect()
}

/// Whether the account a service names is another than the pinned one.
pub fn other_account(pinned: Option<&str>, seen: Option<&str>) -> bool {
    matches!((pinned, seen), (Some(pinned), Some(seen)) if pinned != seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Evidence, Reason};

    fn claimed(action: Action, has_pending: bool, interrupted: Option<(Phase, CommitClass)>) -> Plan {
        plan(Claimed { action, has_pending, interrupted, in_doubt: None, restored: false })
    }

    #[test]
    fn a_pending_generation_is_tested_before_anything_else() {
        for action in [Action::Validate, Action::Rotate] {
            for class in CommitClass::ALL {
                for phase in [Phase::Claimed, Phase::Rotating, Phase::Captured] {
                    assert_eq!(claimed(action, true, Some((phase, class))), Plan::TestPending);
                }
            }
            assert_eq!(claimed(action, true, None), Plan::TestPending);
        }
    }

    #[test]
    fn an_attempt_that_never_asked_the_service_just_starts_over() {
        for class in CommitClass::ALL {
            assert_eq!(claimed(Action::Rotate, false, Some((Phase::Claimed, class))), Plan::Rotate);
            assert_eq!(claimed(Action::Validate, false, Some((Phase::Claimed, class))), Plan::Validate);
        }
    }

    #[test]
    fn only_classes_whose_old_secret_survives_are_repeated_after_a_lost_answer() {
        let table = [
            (CommitClass::Sliding, Plan::Repeat),
            (CommitClass::Additive, Plan::Repeat),
            (CommitClass::CommitOnUse, Plan::Repeat),
            (CommitClass::Grace, Plan::ProbeCurrent),
            (CommitClass::BurnOnIssue, Plan::ProbeCurrent),
        ];
        for (class, expected) in table {
            assert_eq!(claimed(Action::Rotate, false, Some((Phase::Rotating, class))), expected, "{class}");
        }
    }

    #[test]
    fn a_rotation_in_doubt_is_never_repeated_blindly_by_a_later_attempt() {
        for class in CommitClass::ALL {
            let doubtful = |action| {
                let in_doubt = Some(class);
                plan(Claimed { action, has_pending: false, interrupted: None, in_doubt, restored: false })
            };
            let probes = matches!(class, CommitClass::Grace | CommitClass::BurnOnIssue);
            let expected = if probes { Plan::ProbeCurrent } else { Plan::Rotate };
            assert_eq!(doubtful(Action::Rotate), expected, "{class}");
            assert_eq!(doubtful(Action::Validate), Plan::Validate, "{class}");
        }
    }

    #[test]
    fn a_secret_from_a_backup_is_looked_at_first_wherever_its_successor_may_be_in_use() {
        for class in CommitClass::ALL {
            let looks = !matches!(class, CommitClass::Sliding | CommitClass::Additive);
            let of = |interrupted, in_doubt| {
                plan(Claimed {
                    action: Action::Rotate,
                    has_pending: false,
                    interrupted,
                    in_doubt,
                    restored: true,
                })
            };
            let expected = |otherwise| if looks { Plan::ProbeCurrent } else { otherwise };
            assert_eq!(of(None, Some(class)), expected(Plan::Rotate), "{class}");
            assert_eq!(of(Some((Phase::Rotating, class)), Some(class)), expected(Plan::Repeat), "{class}");
        }
    }

    #[test]
    fn a_rejected_secret_is_kept_only_where_the_old_one_is_dead() {
        for class in CommitClass::ALL {
            let keep = class == CommitClass::BurnOnIssue;
            assert_eq!(rejected_pending(class) == Rejected::KeepForHuman, keep, "{class}");
        }
    }

    #[test]
    fn only_where_a_rotation_ends_the_secret_before_the_present_one_are_consumers_waited_for() {
        for class in CommitClass::ALL {
            let waits = matches!(class, CommitClass::Additive | CommitClass::Grace);
            assert_eq!(waits_for_consumers(class), waits, "{class}");
        }
    }

    #[test]
    fn what_is_issued_while_validating_is_dropped_only_by_a_plain_no() {
        let reason = Reason::default;
        let table = [
            (Verdict::Valid(Evidence::default()), Issued::Test),
            (Verdict::Invalid(reason()), Issued::Drop),
            (Verdict::Unknown(reason()), Issued::Keep),
            (Verdict::NeedsHuman(reason()), Issued::Keep),
        ];
        for (verdict, expected) in table {
            assert_eq!(issued_while_validating(&verdict), expected, "{}", verdict.as_str());
        }
    }

    #[test]
    fn an_account_is_another_only_when_both_are_known_and_differ() {
        assert!(other_account(Some("ann"), Some("bob")));
        for (pinned, seen) in [(None, None), (None, Some("a")), (Some("a"), None), (Some("a"), Some("a"))] {
            assert!(!other_account(pinned, seen));
        }
    }
}
