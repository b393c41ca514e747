//! What was probably meant, where a name that was typed is none: of credentials, services,
//! plugins, settings. Only suggests; nothing is done to what wasn't named.

use super::Failure;
use crate::config::Home;
use crate::control::{Refusal, RefusalKind};
use crate::credential::LONGEST_ID;
use crate::db::queries::Reader;

/// Names beyond these are not compared: a home of a million would take its time for a typing error.
const COMPARED: u32 = 20_000;

/// `; did you mean …`, or nothing.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    // Swapped letters are the commonest slip, and count once.
    let distance = |name: &str| strsim::damerau_levenshtein(typed, name);
    let found = match typed.len() <= LONGEST_ID {
        true => known
            .into_iter()
            .map(|name| (distance(name), name))
            .filter(|(distance, name)| *distance <= (name.chars().count() / 3).max(1))
            .min(),
        false => None,
    };
    found.map(|(_, name)| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// For a credential's id. What can't be read suggests nothing: the error is another one.
pub fn credential(home: &Home, typed: &str) -> String {
    let names = Reader::open(home.database()).ok().and_then(|reader| reader.ids_like(typed, COMPARED).ok());
    nearest(typed, names.unwrap_or_default().iter().map(String::as_str))
}

/// For a service that is here: one with a provider or with credentials.
pub fn service(home: &Home, typed: &str) -> String {
    let names = Reader::open(home.database()).ok().and_then(|reader| reader.service_names().ok());
    nearest(typed, names.unwrap_or_default().iter().map(String::as_str))
}

/// The same, and nothing where the service is here.
pub fn unless_known(home: &Home, typed: &str) -> String {
    let names = Reader::open(home.database()).ok().and_then(|reader| reader.service_names().ok());
    let names = names.unwrap_or_default();
    if names.iter().any(|name| name == typed) {
        String::new()
    } else {
        nearest(typed, names.iter().map(String::as_str))
    }
}

/// A refusal for want of the service that was named, with the one that was probably meant.
pub fn with_service(home: &Home, typed: &str, failure: Failure) -> Failure {
    with(failure, || service(home, typed))
}

/// The same for want of a credential.
pub fn with_credential(home: &Home, typed: &str, failure: Failure) -> Failure {
    let known = || {
        Reader::open(home.database())
            .is_ok_and(|reader| reader.credential(typed).is_ok_and(|row| row.is_some()))
    };
    // It may be there, and what is missing be its plugin.
    with(failure, || if known() { String::new() } else { credential(home, typed) })
}

fn with(failure: Failure, nearest: impl Fn() -> String) -> Failure {
    let add = |message: String| match message.split_once("; hint: ") {
        Some((what, hint)) => format!("{what}{}; hint: {hint}", nearest()),
        None => format!("{message}{}", nearest()),
    };
    match failure {
        Failure::Refused(Refusal { kind: RefusalKind::NotFound, message }) => {
            Failure::Refused(Refusal::not_found(add(message)))
        }
        Failure::NotFound(message) => Failure::NotFound(add(message)),
        failure => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_probably_meant_is_suggested_and_nothing_far_off() {
        for (typed, known, want) in [
            ("anne", &["ann", "bob"][..], "; did you mean `ann`?"),
            ("nan", &["ann", "bob"], "; did you mean `ann`?"),
            ("gitlub", &["github", "gitlab"], "; did you mean `github`?"),
            ("zebra", &["ann", "bob"], ""),
            ("", &["ann"], ""),
            ("ann", &[], ""),
        ] {
            assert_eq!(nearest(typed, known.iter().copied()), want, "{typed}");
        }
    }
}
