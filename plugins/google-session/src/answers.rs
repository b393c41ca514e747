//! What Google's page and its rotation answer show. Pure.

use keywheel_sdk::prelude::*;
use keywheel_sdk::serde_json;

#[derive(Debug, PartialEq, Eq)]
pub enum Page {
    /// With the account's number, where the page names it.
    SignedIn(Option<String>),
    SignedOut,
    /// No page of Google's own, or not all of it.
    Other,
}

/// Google's pages carry `WIZ_global_data`. A signed-in visitor's has the token of its forms
/// (`SNlM0e`) and the account's number (`S06Grb`), a stranger's no token and an empty number.
pub fn read_page(html: &str) -> Page {
    let whole = html.trim_end().ends_with("</html>");
    if !whole || !html.contains("WIZ_global_data") {
        return Page::Other;
    }
    let account = field(html, "\"S06Grb\":\"");
    match (field(html, "\"SNlM0e\":\""), account) {
        (Some(token), account) if !token.is_empty() => {
            let number = account.filter(|number| {
                !number.is_empty() && number.len() <= 32 && number.bytes().all(|byte| byte.is_ascii_digit())
            });
            Page::SignedIn(number.map(String::from))
        }
        (_, Some("")) => Page::SignedOut,
        _ => Page::Other,
    }
}

/// The text between a field's beginning and the next quote.
fn field<'a>(html: &'a str, begins: &str) -> Option<&'a str> {
    let (_, rest) = html.split_once(begins)?;
    rest.split_once('"').map(|(value, _)| value)
}

/// Whether a redirect leads to the sign-in page and nowhere else.
pub fn is_sign_in(status: u16, location: Option<&str>) -> bool {
    let path = location.and_then(|location| location.strip_prefix("https://accounts.google.com/"));
    let signs_in = |path: &str| {
        ["ServiceLogin", "InteractiveLogin", "v3/signin/", "signin/"]
            .iter()
            .any(|known| path.starts_with(known))
    };
    matches!(status, 301 | 302 | 303 | 307) && path.is_some_and(signs_in)
}

/// The answer of RotateCookies: a guard line, then `[["identity.hfcr",600],["di",N]]`. None for
/// anything else; inside, the seconds until the next rotation, where it names them.
pub fn rotation_hint(body: &str) -> Option<Option<u32>> {
    let rest = body.trim_start().strip_prefix(")]}'")?;
    let Ok(Value::Array(pairs)) = serde_json::from_str::<Value>(rest) else { return None };
    let hint = pairs.iter().find(|pair| pair.pointer("/0").and_then(Value::as_str) == Some("identity.hfcr"));
    let seconds = hint.and_then(|pair| pair.pointer("/1")).and_then(Value::as_u64);
    Some(seconds.and_then(|seconds| u32::try_from(seconds).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_page_and_somebody_elses_page_say_nothing() {
        let alive = r#"<html><script>WIZ_global_data={"S06Grb":"1","SNlM0e":"made-up"};</script></html>"#;
        assert_eq!(read_page(alive), Page::SignedIn(Some(String::from("1"))));
        assert_eq!(read_page(alive.trim_end_matches("</html>")), Page::Other);
        assert_eq!(read_page(&alive.replace("WIZ_global_data", "x")), Page::Other);
        let unnamed = alive.replace(r#""S06Grb":"1","#, "");
        assert_eq!(read_page(&unnamed), Page::SignedIn(None));
        let stranger = r#"<html><script>WIZ_global_data={"S06Grb":""};</script></html>"#;
        assert_eq!(read_page(stranger), Page::SignedOut);
        assert_eq!(read_page(&stranger.replace("S06Grb", "other")), Page::Other);
    }

    #[test]
    fn only_the_sign_in_page_is_a_sign_out() {
        assert!(is_sign_in(302, Some("https://accounts.google.com/ServiceLogin?continue=x")));
        assert!(is_sign_in(302, Some("https://accounts.google.com/v3/signin/identifier")));
        for elsewhere in [
            "https://consent.google.com/m?continue=x",
            "https://accounts.google.com/RotateCookiesPage",
            "https://accounts.google.com.example/ServiceLogin",
            "/ServiceLogin",
        ] {
            assert!(!is_sign_in(302, Some(elsewhere)), "{elsewhere}");
        }
        assert!(!is_sign_in(200, Some("https://accounts.google.com/ServiceLogin")));
        assert!(!is_sign_in(302, None));
    }

    #[test]
    fn the_hint_is_read_behind_its_guard_line() {
        assert_eq!(rotation_hint(")]}'\n\n[[\"identity.hfcr\",600],[\"di\",65]]"), Some(Some(600)));
        assert_eq!(rotation_hint(")]}'\n[[\"di\",65]]"), Some(None));
        assert_eq!(rotation_hint(")]}'\n[[\"identity.hfcr\",-1]]"), Some(None));
        for broken in [")]}'\n[[\"identity.hfcr\",60", "[[\"identity.hfcr\",600]]", "<html>", "", ")]}'"] {
            assert_eq!(rotation_hint(broken), None, "{broken:?}");
        }
    }
}
