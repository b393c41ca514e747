//! What can come in place of a service's answer: pages of firewalls, refusals, halves, nothing.
//! Pure. None of it says anything of a credential.

use bytes::Bytes;

use super::fixture::Answer;
use crate::egress::BreaksOff;
use crate::protocol::HttpError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    Page200,
    Page403,
    Page503,
    TooMany,
    Error500,
    Error502,
    Empty,
    Half,
    Timeout,
    BreaksOff,
}

/// Without a word that a real page of a signed-in or signed-out visitor would have.
const PAGE: &str =
    "<!doctype html><html><head><title>Please wait</title></head><body><h1>Please wait</h1></body></html>";

impl Trouble {
    pub const ALL: [Self; 10] = [
        Self::Page200,
        Self::Page403,
        Self::Page503,
        Self::TooMany,
        Self::Error500,
        Self::Error502,
        Self::Empty,
        Self::Half,
        Self::Timeout,
        Self::BreaksOff,
    ];

    pub const fn words(self) -> &'static str {
        match self {
            Self::Page200 => "an HTML page (200)",
            Self::Page403 => "an HTML page (403)",
            Self::Page503 => "an HTML page (503)",
            Self::TooMany => "429",
            Self::Error500 => "500",
            Self::Error502 => "502",
            Self::Empty => "an empty 200",
            Self::Half => "half of its body",
            Self::Timeout => "a time-out",
            Self::BreaksOff => "a connection that breaks in the middle",
        }
    }

    /// Whether the service may have done what it was asked, and only its answer is lost.
    pub const fn loses_the_answer(self) -> bool {
        !matches!(self, Self::TooMany | Self::Page403)
    }

    /// What comes in an answer's place; None where that would be no trouble.
    pub fn instead_of(self, answer: &Answer) -> Option<Result<http::Response<Bytes>, HttpError>> {
        let whole = answer.arrive();
        let page = |status, headers: &[(&str, &str)], body: &str| {
            let mut page = http::Response::builder().status(status);
            for (name, value) in headers {
                page = page.header(*name, *value);
            }
            page.body(Bytes::copy_from_slice(body.as_bytes()))
                .map_err(|error| HttpError::Other(error.to_string()))
        };
        let html = [("content-type", "text/html; charset=utf-8")];
        let json = ("content-type", "application/json");
        Some(match self {
            Self::Page200 => page(200, &html, PAGE),
            Self::Page403 => page(403, &html, PAGE),
            Self::Page503 => page(503, &html, PAGE),
            Self::TooMany => page(429, &[json, ("retry-after", "30")], r#"{"message":"too many requests"}"#),
            Self::Error500 => page(500, &[json], r#"{"message":"internal error"}"#),
            Self::Error502 => page(502, &html, PAGE),
            Self::Empty => match &whole {
                Ok(whole) if whole.status().is_success() && whole.body().is_empty() => return None,
                _ => page(200, &[], ""),
            },
            Self::Half => {
                let whole = whole.ok()?;
                // Half a page may be enough of one; half of JSON is none.
                let begun = halved(whole.body());
                serde_json::from_slice::<serde_json::Value>(whole.body()).ok()?;
                (!begun.is_empty()).then(|| Ok(whole.map(|_| begun)))?
            }
            Self::Timeout => Err(HttpError::Timeout),
            Self::BreaksOff => {
                let mut whole = whole.ok()?;
                whole.extensions_mut().insert(BreaksOff);
                Ok(whole.map(|body| halved(&body)))
            }
        })
    }
}

fn halved(body: &Bytes) -> Bytes {
    body.slice(..body.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::fixture::Failure;

    fn answer(body: &'static str) -> Answer {
        let headers = vec![("set-cookie".to_owned(), "a=1".to_owned())];
        Answer::Comes { status: 200, headers, body: Bytes::from_static(body.as_bytes()) }
    }

    #[test]
    fn only_json_is_halved_and_it_keeps_its_head() {
        let half = Trouble::Half.instead_of(&answer(r#"{"id":42}"#)).unwrap().unwrap();
        assert_eq!((half.status().as_u16(), half.body().as_ref()), (200, br#"{"id"#.as_slice()));
        assert_eq!(half.headers()["set-cookie"], "a=1");
        for whole in ["", "<html>signed in</html>", "7"] {
            assert!(Trouble::Half.instead_of(&answer(whole)).is_none(), "{whole}");
        }
    }

    #[test]
    fn an_empty_answer_in_place_of_an_empty_one_is_no_trouble() {
        assert!(Trouble::Empty.instead_of(&answer("")).is_none());
        assert!(Trouble::Empty.instead_of(&answer("{}")).unwrap().unwrap().body().is_empty());
        assert!(Trouble::Empty.instead_of(&Answer::Fails(Failure::Timeout)).is_some());
    }

    #[test]
    fn no_page_of_trouble_is_the_answer_itself() {
        for trouble in Trouble::ALL {
            let Some(Ok(instead)) = trouble.instead_of(&answer(r#"{"id":42}"#)) else { continue };
            let same = instead.status() == 200 && instead.body().as_ref() == br#"{"id":42}"#;
            assert!(!same, "{trouble:?}");
        }
    }
}
