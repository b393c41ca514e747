//! What is wrong with rules: conditions that can never hold, that hold of everything, and rules
//! that other rules leave nothing for.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Check;
use crate::fault::Fault;
use crate::place::{At, Entries, Span};
use crate::predicate::{Claim, is_about_the_service};
use crate::template::{ConditionFields, Refusal, Rule, Scalar, Statuses, Test, TestTable, TextTest};

/// Whether a rule says that something is there besides a status.
pub(super) fn is_positive(rule: &ConditionFields<'_>) -> bool {
    rule.text.is_some()
        || rule.json.iter().any(|(_, test)| test.is_positive())
        || rule.header.iter().any(|(_, test)| test.is_positive())
}

impl<'t> Check<'t> {
    pub(super) fn rule(&mut self, rule: &ConditionFields<'t>, span: &Span, has_body: bool, claim: Claim) {
        self.conditions(rule, span, has_body);
        if let Some(statuses) = rule.status {
            self.statuses(statuses, !rule.json.is_empty() || rule.text.is_some());
        }
        if let Some(not) = rule.not {
            let excepted = not.conditions();
            self.conditions(&excepted, &not.span, has_body);
            if !is_empty(&excepted) && covers(&excepted, rule) {
                self.fault(&not.span, "this can never hold: what `not` rules out is what the rule wants; hint: delete one of the two");
            }
        }
        if claim == Claim::Valid
            && let Some(statuses) =
                rule.status.filter(|statuses| statuses.0.iter().all(|range| *range.end() < 200))
        {
            self.fault(&statuses.span, "no answer with a status below 200 reaches a rule");
        }
    }

    fn conditions(&mut self, rule: &ConditionFields<'t>, span: &Span, has_body: bool) {
        if is_empty(rule) {
            self.fault(span, "no condition, so this holds of every answer; hint: give `status`, `json`, `header` or `text`");
        }
        for (pointer, test) in rule.json.iter() {
            self.pointer(pointer, has_body);
            self.test(test, &pointer.span);
        }
        for (index, (pointer, test)) in rule.json.iter().enumerate() {
            let inside = |other: &str| pointer.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
            let above = rule
                .json
                .iter()
                .enumerate()
                .find(|(at, (other, above))| *at != index && inside(other) && is_no_container(above));
            if let (Some((_, (other, _))), false) = (above, test.is_absent()) {
                self.fault(
                    &pointer.span,
                    format!(
                        "this can never hold: there is nothing in `{}`, which has to be a value or absent",
                        other.value
                    ),
                );
            }
        }
        for (name, test) in rule.header.iter() {
            self.answered_header(name);
            self.test(test, &name.span);
            self.header_test(test);
        }
        if let Some(text) = rule.text {
            self.text(text, has_body);
        }
    }

    fn statuses(&mut self, statuses: &At<Statuses>, wants_body: bool) {
        let is_lone = |status: u16| statuses.0.iter().all(|range| *range == (status..=status));
        if wants_body && (is_lone(204) || is_lone(304)) {
            self.fault(&statuses.span, "an answer with this status has no body, so this can never hold; hint: a `header`, or another status");
        }
        let counts = statuses.0.iter().any(|range| {
            range.start() == range.end() || range.clone().any(|status| !is_about_the_service(status))
        });
        if !counts {
            self.fault(&statuses.span, "these statuses are about the service, not the credential, and count only where a single number names them; hint: name the ones you mean, such as [503]");
        }
    }

    fn test(&mut self, test: &At<Test>, span: &Span) {
        let TestTable { is, one_of, present, contains, starts_with, less, greater, .. } = &test.value.0;
        let mut never =
            |why: String| self.faults.push(Fault::new(&test.span, format!("this can never hold: {why}")));
        if test.value.0 == TestTable::default() {
            self.fault(span, "this tests nothing; hint: write the value, or { present = true }");
            return;
        }
        if *present == Some(false)
            && !matches!(
                &test.value.0,
                TestTable {
                    is: None,
                    is_not: None,
                    one_of: None,
                    contains: None,
                    starts_with: None,
                    less: None,
                    greater: None,
                    ..
                }
            )
        {
            return never(
                "what isn't there has no value; hint: delete `present = false`, or the other tests".into(),
            );
        }
        if one_of.as_ref().is_some_and(Vec::is_empty) {
            return never("nothing is in an empty list; hint: name the values, or delete `in`".into());
        }
        if let (Some(less), Some(greater)) = (less, greater)
            && less.0 <= greater.0
        {
            return never(format!("no number is less than {} and greater than {}", less.0, greater.0));
        }
        if (less.is_some() || greater.is_some()) && (contains.is_some() || starts_with.is_some()) {
            return never("a number contains no text".into());
        }
        let values: Vec<&Scalar> = is.iter().chain(one_of.iter().flatten()).collect();
        if !values.is_empty() && !values.iter().any(|value| test.holds(Some(&value.to_value()))) {
            return never(
                "the tests of this value contradict each other; hint: keep the one you mean".into(),
            );
        }
        if contains.as_deref() == Some("") || starts_with.as_deref() == Some("") {
            self.fault(
                &test.span,
                "every text contains an empty one; hint: write what to look for, or { present = true }",
            );
        }
    }

    fn header_test(&mut self, test: &At<Test>) {
        let TestTable { is, is_not, one_of, .. } = &test.value.0;
        let odd = is
            .iter()
            .chain(is_not)
            .chain(one_of.iter().flatten())
            .find(|value| !matches!(value, Scalar::Text(_)));
        if let Some(value) = odd {
            let value = crate::run::plain(value);
            self.fault(
                &test.span,
                format!("a header is a text, so this never is `{value}`; hint: write \"{value}\" in quotes"),
            );
        }
    }

    fn text(&mut self, text: &At<TextTest>, has_body: bool) {
        let TextTest { is, contains, starts_with } = &text.value;
        if text.value == TextTest::default()
            || [is, contains, starts_with]
                .into_iter()
                .any(|one| one.as_deref().is_some_and(|one| one.trim().is_empty()))
        {
            self.fault(
                &text.span,
                "this holds of every body; hint: write what to look for, { contains = \"…\" }",
            );
        }
        if is.as_ref().is_some_and(|is| !text.holds(is)) {
            self.fault(&text.span, "this can never hold: the tests of the body contradict each other");
        }
        if !has_body {
            self.fault(
                &text.span,
                "the answer to a HEAD request has no body, so this can never hold; hint: method = \"GET\"",
            );
        }
    }

    /// The lists of one request, and how they stand to each other.
    pub(super) fn refusals(
        &mut self,
        needs_human: &'t [At<Refusal>],
        invalid: &'t [At<Refusal>],
        good: &'t [At<Rule>],
        has_body: bool,
    ) {
        for rule in needs_human.iter().chain(invalid) {
            self.rule(&rule.conditions(), &rule.span, has_body, Claim::Other);
            self.line(&rule.message, "the message");
            if let Some(detail) = &rule.detail {
                self.source(detail, has_body);
            }
        }
        let of = |rules: &'t [At<Refusal>]| {
            rules.iter().map(|rule| (rule.conditions(), &rule.span)).collect::<Vec<_>>()
        };
        let (needs_human, invalid) = (of(needs_human), of(invalid));
        let good: Vec<_> = good.iter().map(|rule| (rule.conditions(), &rule.span)).collect();
        for list in [&needs_human, &invalid, &good] {
            for (index, (later, span)) in list.iter().enumerate() {
                if let Some((_, earlier)) = list[..index].iter().find(|(earlier, _)| covers(earlier, later)) {
                    self.shadowed(span, earlier, "is asked before and");
                }
            }
        }
        for (later, span) in &invalid {
            if let Some((_, earlier)) = needs_human.iter().find(|(earlier, _)| covers(earlier, later)) {
                self.shadowed(span, earlier, "calls a human and");
            }
        }
        for (bad, span) in needs_human.iter().chain(&invalid) {
            for (fine, other) in &good {
                let (narrow, wide) = match (covers(fine, bad), covers(bad, fine)) {
                    (true, _) => (span, other),
                    (_, true) => (other, span),
                    _ => continue,
                };
                self.contradicted(narrow, wide);
            }
        }
    }

    fn shadowed(&mut self, span: &Span, earlier: &Span, which: &str) {
        self.faults.push(Fault {
            span: span.clone(),
            what: "this rule is never reached".into(),
            other: Some((earlier.clone(), format!("{which} holds of every answer that this one holds of; hint: delete this one, or make the other say less"))),
        });
    }

    fn contradicted(&mut self, narrow: &Span, wide: &Span) {
        self.faults.push(Fault {
            span: narrow.clone(),
            what: "this rule would contradict another whenever it holds, and both would count for nothing"
                .into(),
            other: Some((
                wide.clone(),
                "holds of the same answers; hint: let that one say more, for example under `not`".into(),
            )),
        });
    }
}

fn is_empty(rule: &ConditionFields<'_>) -> bool {
    rule.status.is_none()
        && rule.json.is_empty()
        && rule.header.is_empty()
        && rule.text.is_none()
        && rule.not.is_none()
}

/// Whether what passes the test has no JSON inside.
fn is_no_container(test: &Test) -> bool {
    let TestTable { is, one_of, present, starts_with, less, greater, .. } = &test.0;
    is.is_some()
        || one_of.is_some()
        || *present == Some(false)
        || starts_with.is_some()
        || less.is_some()
        || greater.is_some()
}

/// Whether `wide` surely holds of every answer that `narrow` holds of. False where that isn't plain.
fn covers(wide: &ConditionFields<'_>, narrow: &ConditionFields<'_>) -> bool {
    let statuses = match (wide.status, narrow.status) {
        (None, _) => true,
        (Some(wide), Some(narrow)) => {
            narrow.0.iter().all(|range| range.clone().all(|status| wide.contain(status)))
        }
        (Some(_), None) => false,
    };
    let nots = match (wide.not, narrow.not) {
        (None, _) => true,
        // Ruling out less is holding of more.
        (Some(wide), Some(narrow)) => covers(&narrow.conditions(), &wide.conditions()),
        (Some(_), None) => false,
    };
    let texts = match (wide.text, narrow.text) {
        (None, _) => true,
        (Some(wide), Some(narrow)) => {
            wide.value == narrow.value || narrow.is.as_ref().is_some_and(|is| wide.holds(is))
        }
        (Some(_), None) => false,
    };
    // A page counts only for a rule with these, so one without them covers none that has them.
    let pages =
        wide.text.is_some() == narrow.text.is_some() && wide.header.is_empty() == narrow.header.is_empty();
    statuses
        && nots
        && texts
        && pages
        && tests_cover(wide.json, narrow.json)
        && tests_cover(wide.header, narrow.header)
}

fn tests_cover(wide: &Entries<At<Test>>, narrow: &Entries<At<Test>>) -> bool {
    wide.iter().all(|(place, wide)| narrow.get(place).is_some_and(|narrow| test_covers(wide, narrow)))
}

fn test_covers(wide: &Test, narrow: &Test) -> bool {
    if wide == narrow {
        return true;
    }
    let present = Test(TestTable { present: Some(true), ..TestTable::default() });
    let values: Vec<&Scalar> = narrow.0.is.iter().chain(narrow.0.one_of.iter().flatten()).collect();
    let possible: Vec<_> =
        values.iter().map(|value| value.to_value()).filter(|value| narrow.holds(Some(value))).collect();
    (*wide == present && !narrow.is_absent())
        || (!possible.is_empty() && possible.iter().all(|value| wide.holds(Some(value))))
}
