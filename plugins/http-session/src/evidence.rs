//! What an answer proves about a session. Pure: settings and a page in, a proof out. Everything
//! that isn't said plainly proves nothing.

use alloc::borrow::Cow;
use keywheel_sdk::prelude::*;

/// What the operator says live and dead sessions look like; empty text means unset.
#[derive(Debug)]
pub struct Signs<'a> {
    pub alive_status: u16,
    pub alive_json_pointer: &'a str,
    pub alive_text: &'a str,
    pub dead_text: &'a str,
    pub login_path: &'a str,
}

#[derive(Debug)]
pub struct Page<'a> {
    pub url: &'a str,
    pub status: u16,
    pub location: Option<&'a str>,
    pub is_html: bool,
    pub body: Cow<'a, str>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Proof {
    Alive,
    /// The site's own word, in a sentence.
    Dead(String),
    /// Why the answer proves nothing.
    Nothing(String),
}

impl Signs<'_> {
    pub fn read(&self, page: &Page<'_>) -> Proof {
        match self.of_death(page) {
            Proof::Nothing(_) if page.status == self.alive_status => self.of_life(page),
            proof => proof,
        }
    }

    /// Dead, or nothing.
    pub fn of_death(&self, page: &Page<'_>) -> Proof {
        if let Some(location) = page.location
            && !self.login_path.is_empty()
            && leads_to(page.url, location, self.login_path)
        {
            return Proof::Dead(format!("the site redirects to the login page {}", self.login_path));
        }
        if !self.dead_text.is_empty() && page.body.contains(self.dead_text) {
            return Proof::Dead(format!("the page says `{}`", self.dead_text));
        }
        // A page with 401 may be a proxy's in front of the site; an API's 401 is the site's.
        if page.status == 401 && self.alive_status != 401 {
            return match page.is_html {
                false => Proof::Dead("the site answers 401".into()),
                true => Proof::Nothing("a page with 401 may be a proxy's; dead_text can tell".into()),
            };
        }
        Proof::Nothing(format!("a live session answers {}", self.alive_status))
    }

    fn of_life(&self, page: &Page<'_>) -> Proof {
        if !self.alive_json_pointer.is_empty() {
            let json = match page.is_html {
                true => None,
                false => keywheel_sdk::serde_json::from_str::<Value>(&page.body).ok(),
            };
            let Some(json) = json else {
                return Proof::Nothing("JSON was due".into());
            };
            if let None | Some(Value::Null | Value::Bool(false)) = json.pointer(self.alive_json_pointer) {
                return Proof::Dead(format!("the answer has nothing at {}", self.alive_json_pointer));
            }
        }
        if !self.alive_text.is_empty() && !page.body.contains(self.alive_text) {
            // A maintenance page lacks the text too.
            return Proof::Nothing(format!("the page lacks `{}`; dead_text can tell more", self.alive_text));
        }
        Proof::Alive
    }
}

/// Whether a redirect from `url` to `location` ends at `login`, query and last slash aside.
fn leads_to(url: &str, location: &str, login: &str) -> bool {
    // A login path without its slash means the same from every page.
    let rooted = match is_absolute(login) || login.starts_with('/') {
        true => String::from(login),
        false => format!("/{login}"),
    };
    resolve(url, location) == resolve(url, &rooted)
}

/// Where a link on `page` leads, without query, fragment and last slash.
fn resolve(page: &str, link: &str) -> String {
    let (page, link) = (without_query(page), without_query(link));
    let authority = page.find("://").map_or(0, |colon| colon + 3);
    let site_end = page[authority..].find('/').map_or(page.len(), |slash| authority + slash);
    let (scheme, site) = (&page[..authority.saturating_sub(2)], &page[..site_end]);
    let target = if is_absolute(link) {
        String::from(link)
    } else if link.starts_with("//") {
        [scheme, link].concat()
    } else if link.starts_with('/') {
        [site, link].concat()
    } else {
        let folder = page[site_end..].rfind('/').map_or(page, |slash| &page[..site_end + slash]);
        [folder, "/", link].concat()
    };
    target.strip_suffix('/').unwrap_or(&target).into()
}

fn is_absolute(link: &str) -> bool {
    link.starts_with("https://") || link.starts_with("http://")
}

fn without_query(link: &str) -> &str {
    link.split(['?', '#']).next().unwrap_or(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_SIGNS: Signs<'static> =
        Signs { alive_status: 200, alive_json_pointer: "", alive_text: "", dead_text: "", login_path: "" };

    fn page(status: u16, is_html: bool, body: &'static str) -> Page<'static> {
        Page { url: "https://shop.example/me", status, location: None, is_html, body: body.into() }
    }

    #[test]
    fn only_plain_words_prove_life_or_death() {
        let json = Signs { alive_json_pointer: "/user", ..NO_SIGNS };
        let texts = Signs { alive_text: "Sign out", dead_text: "Sign in", ..NO_SIGNS };
        let odd = Signs { alive_status: 401, ..NO_SIGNS };
        let cases: [(&Signs<'_>, Page<'_>, &str); 18] = [
            (&NO_SIGNS, page(200, true, "<p>hi"), "alive"),
            (&NO_SIGNS, page(204, false, ""), "none"),
            (&NO_SIGNS, page(401, false, "{}"), "dead"),
            (&NO_SIGNS, page(401, true, "<p>proxy"), "none"),
            (&NO_SIGNS, page(403, false, "{}"), "none"),
            (&NO_SIGNS, page(403, true, "<p>blocked"), "none"),
            (&NO_SIGNS, page(404, false, ""), "none"),
            (&NO_SIGNS, page(302, false, ""), "none"),
            (&odd, page(401, false, "{}"), "alive"),
            (&json, page(200, false, r#"{"user":{"id":1}}"#), "alive"),
            (&json, page(200, false, r#"{"user":0}"#), "alive"),
            (&json, page(200, false, r#"{"user":null}"#), "dead"),
            (&json, page(200, false, "{}"), "dead"),
            (&json, page(200, true, "<p>maintenance"), "none"),
            (&json, page(200, false, "{\"user\":"), "none"),
            (&texts, page(200, true, "<a>Sign out"), "alive"),
            (&texts, page(200, true, "<a>Back soon"), "none"),
            (&texts, page(403, true, "<a>Sign in"), "dead"),
        ];
        for (signs, page, expected) in cases {
            let proof = match signs.read(&page) {
                Proof::Alive => "alive",
                Proof::Dead(_) => "dead",
                Proof::Nothing(_) => "none",
            };
            assert_eq!(proof, expected, "{signs:?} of {page:?}");
        }
    }

    #[test]
    fn a_redirect_proves_death_only_where_it_leads_to_the_login_page() {
        let cases = [
            ("/login", "/login", true),
            ("/login", "/login/", true),
            ("/login/", "/login?next=/me", true),
            ("login", "/login", true),
            ("/login", "https://shop.example/login#x", true),
            ("/app/login", "login", true),
            ("/login", "https://other.example/login", false),
            ("/login", "//shop.example/login", true),
            ("/login", "/login-help", false),
            ("/login", "/", false),
            ("/login", "/next?u=/login", false),
            ("/login", "/next?u=https://shop.example/login", false),
            ("/app/login", "login?next=https://shop.example/", true),
            ("https://sso.example/in", "https://sso.example/in?client=1", true),
            ("https://sso.example/in", "/in", false),
        ];
        for (login, location, expected) in cases {
            assert_eq!(
                leads_to("https://shop.example/app/me?x=/y", location, login),
                expected,
                "{location} to {login}"
            );
        }
    }
}
