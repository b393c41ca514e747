//! What becomes of secrets that were issued and come late, for each state they may find.

use super::*;
use crate::db::late::{Late, Rescued};
use crate::db::queries::CredentialRow;

fn sealed(value: &str) -> Vec<SealedKey> {
    vec![SealedKey { fingerprint: format!("print of {value}"), ..key("session", value.as_bytes()) }]
}

/// Issued to this claim for the generation in force.
fn late(claim: &Claim, value: &str) -> Late {
    Late {
        credential_row: claim.token.credential_row,
        credential_id: claim.token.credential_id.clone(),
        service: claim.service.clone(),
        attempt_number: claim.attempt_number,
        fence: claim.token.fence,
        from_generation: claim.current.as_ref().map(|current| current.generation),
        generation: claim.next_generation,
        amends: None,
        commit_class: Some(CommitClass::BurnOnIssue),
        issued_at: T0 + 7,
        keys: sealed(value),
    }
}

impl Home {
    async fn rotating(&self) -> Claim {
        let claim = self.claim("shop-1", Action::Rotate).await;
        self.writer.journal_rotation(&claim.token, "refresh", CommitClass::BurnOnIssue, 1).await.unwrap();
        claim
    }

    async fn taken_over(&self) -> Claim {
        self.writer.reclaim_interrupted("host-b", T0 + LEASE).await.unwrap().remove(0)
    }

    /// The attempt's end, as who finds the old secret dead and knows of no new one writes it.
    async fn given_up(&self, claim: &Claim) {
        let end = Finish { verdict: "needs-human".into(), in_doubt: Some(true), ..end_of(claim) };
        self.writer.finish(end).await.unwrap();
    }

    fn states(&self) -> Vec<(u32, String, usize)> {
        let rows = self.reader().generations("shop-1").unwrap();
        rows.into_iter().map(|row| (row.generation, row.state, row.keys.len())).collect()
    }

    fn row(&self) -> CredentialRow {
        self.reader().credential("shop-1").unwrap().unwrap()
    }
}

fn states(of: &[(u32, &str)]) -> Vec<(u32, String, usize)> {
    // The first one was imported with two keys.
    of.iter()
        .map(|(generation, state)| (*generation, (*state).to_owned(), if *generation == 1 { 2 } else { 1 }))
        .collect()
}

async fn home() -> Home {
    let home = Home::new();
    home.add("shop-1", "shop").await;
    home
}

#[tokio::test]
async fn a_late_secret_whose_attempt_nobody_took_over_is_found_by_its_recovery() {
    let home = home().await;
    let claim = home.rotating().await;
    for expected in [Rescued::InTime, Rescued::AlreadyThere] {
        assert_eq!(home.writer.rescue(late(&claim, "new")).await.unwrap(), expected);
    }
    let recovered = home.taken_over().await;
    assert_eq!(recovered.interrupted.map(|before| before.phase), Some(Phase::Captured));
    let pending = recovered.pending.unwrap();
    assert_eq!((pending.generation, pending.created_at, pending.keys), (2, T0 + 7, sealed("new")));
}

#[tokio::test]
async fn nothing_is_changed_under_an_attempt_that_another_took_over() {
    let home = home().await;
    let claim = home.rotating().await;
    let other = home.taken_over().await;
    let busy = home.writer.rescue(late(&claim, "new")).await;
    assert!(matches!(busy, Err(WriteError::Busy { attempt: 1, .. })), "{busy:?}");
    assert_eq!(home.states(), states(&[(1, "current")]));
    assert_eq!(actions(&home), Vec::<String>::new());
    home.writer.store_pending(&other.token, 2, sealed("other")).await.unwrap();
    home.given_up(&other).await;
}

#[tokio::test]
async fn a_late_secret_that_nothing_replaced_is_pending_and_tested_next() {
    let home = home().await;
    let claim = home.rotating().await;
    let other = home.taken_over().await;
    home.given_up(&other).await;
    let began = now();
    assert_eq!(home.writer.rescue(late(&claim, "new")).await.unwrap(), Rescued::Pending(2));
    assert_eq!(home.states(), states(&[(2, "pending"), (1, "current")]));
    let row = home.row();
    assert_eq!((row.pending_generation, row.last_generation), (Some(2), 2));
    let due = row.monitor.next_due_at.unwrap();
    assert!((began..=now()).contains(&due), "{due}");
    assert_eq!(row.monitor.next_reason.as_deref(), Some("secrets that came late are tested"));
    assert_eq!(row.monitor.next_action, Action::Validate);
    assert_eq!(actions(&home), ["rescued"]);
    // A second delivery, under whatever number.
    for generation in [2, 3] {
        let again = Late { generation, ..late(&claim, "new") };
        assert_eq!(home.writer.rescue(again).await.unwrap(), Rescued::AlreadyThere);
    }
    // The doubt lasts until the service has been asked.
    let next = home.writer.claim_due(due_now()).await.unwrap().claims.remove(0);
    assert!(next.in_doubt());
    assert_eq!(next.pending.unwrap().keys, sealed("new"));
    assert_eq!(actions(&home), ["rescued"]);
}

fn due_now() -> ClaimDue {
    due(now(), &[("shop", 1)])
}

#[tokio::test]
async fn a_late_secret_waits_for_a_pause_and_for_what_its_service_asked() {
    let home = home().await;
    let claim = home.rotating().await;
    let until = now() + 3_600_000;
    let asked = MonitorUpdate { asked_until: Some(until), ..end_of(&claim).monitor };
    let other = home.taken_over().await;
    home.writer.finish(Finish { monitor: asked, ..end_of(&other) }).await.unwrap();
    assert_eq!(home.writer.rescue(late(&claim, "new")).await.unwrap(), Rescued::Pending(2));
    assert_eq!(home.row().monitor.next_due_at, Some(until));

    home.add("shop-2", "shop").await;
    let claim = home.claim("shop-2", Action::Rotate).await;
    home.writer.set_paused("shop-2", true, T0).await.unwrap();
    home.writer.finish(end_of(&claim)).await.unwrap();
    assert_eq!(home.writer.rescue(late(&claim, "new")).await.unwrap(), Rescued::Pending(2));
    let row = home.reader().credential("shop-2").unwrap().unwrap();
    assert_eq!((row.monitor.next_due_at, row.monitor.next_reason.as_deref()), (None, Some("paused")));
}

#[tokio::test]
async fn a_late_secret_is_sealed_for_the_number_it_gets() {
    let home = home().await;
    let claim = home.rotating().await;
    let other = home.taken_over().await;
    home.writer.store_pending(&other.token, 2, sealed("dropped")).await.unwrap();
    let end = Finish { generations: GenerationChange::Drop(2), ..end_of(&other) };
    home.writer.finish(end).await.unwrap();
    let stale = home.writer.rescue(late(&claim, "new")).await;
    assert!(matches!(stale, Err(WriteError::Stale { found: 2, expected: 3, .. })), "{stale:?}");
    let resealed = Late { generation: 3, ..late(&claim, "new") };
    assert_eq!(home.writer.rescue(resealed).await.unwrap(), Rescued::Pending(3));
    assert_eq!(home.row().pending_generation, Some(3));
}

#[tokio::test]
async fn a_late_secret_that_was_overtaken_is_kept_to_be_restored() {
    for promoted in [true, false] {
        let home = home().await;
        let claim = home.rotating().await;
        let other = home.taken_over().await;
        home.writer.store_pending(&other.token, 2, sealed("other")).await.unwrap();
        let generations = if promoted { GenerationChange::Promote(2) } else { GenerationChange::Keep };
        home.writer.finish(Finish { generations, ..end_of(&other) }).await.unwrap();
        let before = home.row();
        let resealed = Late { generation: 3, ..late(&claim, "new") };
        assert_eq!(home.writer.rescue(resealed.clone()).await.unwrap(), Rescued::Previous(3));
        assert_eq!(home.writer.rescue(resealed).await.unwrap(), Rescued::AlreadyThere);
        let [second, first] = if promoted { ["current", "previous"] } else { ["pending", "current"] };
        assert_eq!(home.states(), states(&[(3, "previous"), (2, second), (1, first)]));
        let row = home.row();
        assert_eq!(row.monitor, before.monitor);
        assert_eq!(row.last_generation, 3);
        assert_eq!(actions(&home), ["rescued"]);
        // The next number is free.
        let next = home.claim("shop-1", Action::Rotate).await;
        home.writer.store_pending(&next.token, 4, sealed("next")).await.unwrap();
    }
}

#[tokio::test]
async fn a_late_secret_of_a_removed_credential_is_noted_once_and_forgotten() {
    let home = home().await;
    let claim = home.claim("shop-1", Action::Rotate).await;
    home.given_up(&claim).await;
    home.writer.remove_credential("shop-1").await.unwrap();
    // Its successor has the same name and is another.
    home.add("shop-1", "shop").await;
    for _ in 0..2 {
        assert_eq!(home.writer.rescue(late(&claim, "new")).await.unwrap(), Rescued::Forgotten);
    }
    assert_eq!(home.states(), states(&[(1, "current")]));
    assert_eq!(actions(&home), ["rescued"]);
}

#[tokio::test]
async fn what_the_same_claim_captured_later_takes_the_place_of_what_it_captured_first() {
    for promoted in [true, false] {
        let home = home().await;
        let claim = home.rotating().await;
        home.writer.store_pending(&claim.token, 2, sealed("first hop")).await.unwrap();
        let other = home.taken_over().await;
        let generations = if promoted { GenerationChange::Promote(2) } else { GenerationChange::Keep };
        home.writer.finish(Finish { generations, ..end_of(&other) }).await.unwrap();
        let second = Late { amends: Some(2), generation: 3, ..late(&claim, "second hop") };
        assert_eq!(home.writer.rescue(second).await.unwrap(), Rescued::Pending(3));
        let [second, first] = if promoted { ["current", "previous"] } else { ["previous", "current"] };
        assert_eq!(home.states(), states(&[(3, "pending"), (2, second), (1, first)]));
    }
}

#[tokio::test]
async fn what_a_claim_has_stored_is_not_replaced_by_what_it_captured_before() {
    let home = home().await;
    let claim = home.rotating().await;
    home.writer.store_pending(&claim.token, 2, sealed("second hop")).await.unwrap();
    assert_eq!(home.writer.rescue(late(&claim, "first hop")).await.unwrap(), Rescued::AlreadyThere);
    let third = Late { amends: Some(2), ..late(&claim, "third hop") };
    assert_eq!(home.writer.rescue(third).await.unwrap(), Rescued::InTime);
    assert_eq!(home.taken_over().await.pending.unwrap().keys, sealed("third hop"));
}

#[tokio::test]
async fn what_came_of_a_pending_secret_takes_its_place() {
    let home = home().await;
    let claim = home.rotating().await;
    home.writer.store_pending(&claim.token, 2, sealed("ran out")).await.unwrap();
    home.writer.finish(Finish { generations: GenerationChange::Keep, ..end_of(&claim) }).await.unwrap();
    let claim = home.claim("shop-1", Action::Rotate).await;
    let other = home.taken_over().await;
    home.writer.finish(Finish { generations: GenerationChange::Keep, ..end_of(&other) }).await.unwrap();
    let renewed = Late { from_generation: Some(2), ..late(&claim, "renewed") };
    assert_eq!(home.writer.rescue(renewed).await.unwrap(), Rescued::Pending(3));
    assert_eq!(home.states(), states(&[(3, "pending"), (2, "previous"), (1, "current")]));
}
