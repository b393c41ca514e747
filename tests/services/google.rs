//! A Google session's cookies, as public projects found them; Google documents none of it. Pure
//! rules, and the two addresses that matter here. It is what the provider is measured by, and
//! knows nothing of it.
//!
//! - <https://github.com/HanaokaYuzu/Gemini-API/blob/master/src/gemini_webapi/utils/rotate_1psidts.py>:
//!   the request byte for byte; a fresh `__Secure-1PSIDTS` in `Set-Cookie`; 401 for a dead session,
//!   429 for whoever asks again within a minute.
//! - <https://github.com/teng-lin/notebooklm-py/blob/main/docs/auth-cookie-lifecycle.md>: the hint
//!   `identity.hfcr` of 600 s in the body behind a guard line, the third-party twins, the SIDCC
//!   family that every answer sets, a former value that works on for a while and then no more,
//!   and a sign-out that ends all of it.
//! - <https://chromium.googlesource.com/chromium/src/+/main/chrome/browser/signin/bound_session_credentials/>:
//!   401 with `Sec-Session-Google-Challenge` where the session is bound to a device.
//! - The page: `WIZ_global_data` with `SNlM0e` and the account's number in `S06Grb`; a stranger's
//!   has no token and an empty number.

use bytes::Bytes;
use http::header::{self, AsHeaderName};
use http::{Request, Response};

use crate::harness::random_secret;

/// How long a former value works on.
pub const SUPERSEDED: u64 = 1_800;
const FLOOR: u64 = 60;

#[derive(Debug)]
pub struct Google {
    pub account: String,
    pub psid: String,
    /// Every value of the fresh half, the newest last, with the moment it was superseded.
    halves: Vec<(String, Option<u64>)>,
    last_rotation: Option<u64>,
    pub signed_out: bool,
    /// Bound to the device it was made on.
    pub bound: bool,
    /// Sees no reason to rotate.
    pub content: bool,
    pub rotations: u32,
}

impl Google {
    /// Somebody signs in with a browser.
    pub fn sign_in(account: &str) -> Self {
        Self {
            account: account.into(),
            psid: random_secret(),
            halves: vec![(random_secret(), None)],
            last_rotation: None,
            signed_out: false,
            bound: false,
            content: false,
            rotations: 0,
        }
    }

    /// The newest value of the fresh half.
    pub fn psidts(&self) -> &str {
        &self.halves.last().expect("one from the start").0
    }

    /// What it does with a request, at a time in seconds.
    pub fn answer(&mut self, request: &Request<Bytes>, now: u64) -> Response<Bytes> {
        match (request.method().as_str(), request.uri().host(), request.uri().path()) {
            ("POST", Some("accounts.google.com"), "/RotateCookies") => self.rotate(request, now),
            ("GET", Some("gemini.google.com"), "/app") => self.page(request, now),
            _ => Response::builder().status(404).body(Bytes::new()).expect("an answer"),
        }
    }

    fn knows(&self, request: &Request<Bytes>, now: u64) -> bool {
        let cookies = text_of(request, header::COOKIE);
        let cookie = |name: &str| {
            cookies
                .split("; ")
                .find_map(|cookie| cookie.split_once('=').filter(|(known, _)| *known == name))
                .map(|(_, value)| value)
        };
        let half =
            cookie("__Secure-1PSIDTS").and_then(|value| self.halves.iter().find(|(known, _)| known == value));
        !self.signed_out
            && cookie("__Secure-1PSID") == Some(&self.psid)
            && half.is_some_and(|(_, superseded)| superseded.is_none_or(|at| now < at + SUPERSEDED))
    }

    fn rotate(&mut self, request: &Request<Bytes>, now: u64) -> Response<Bytes> {
        let as_browsers = request.body() == r#"[000,"-0000000000000000000"]"#.as_bytes()
            && text_of(request, header::CONTENT_TYPE) == "application/json"
            && text_of(request, header::ORIGIN) == "https://accounts.google.com";
        let answer = |status| Response::builder().status(status);
        if !as_browsers {
            return answer(400).body(Bytes::new()).expect("an answer");
        }
        if !self.knows(request, now) {
            return answer(401).body(Bytes::new()).expect("an answer");
        }
        if self.bound {
            let challenge = "session_id=made-up; challenge=made-up";
            return answer(401)
                .header("sec-session-google-challenge", challenge)
                .body(Bytes::new())
                .expect("an answer");
        }
        if self.last_rotation.is_some_and(|last| now < last + FLOOR) {
            return answer(429).body(Bytes::new()).expect("an answer");
        }
        let mut answer = answer(200).header(header::CONTENT_TYPE, "application/json; charset=utf-8");
        let mut set = |name: &str, value: &str| {
            let cookie =
                format!("{name}={value}; Domain=.google.com; Path=/; Secure; HttpOnly; Max-Age=31536000");
            answer
                .headers_mut()
                .expect("headers")
                .append(header::SET_COOKIE, cookie.parse().expect("a header"));
        };
        set("__Secure-1PSIDCC", &random_secret());
        if !self.content {
            self.last_rotation = Some(now);
            self.rotations += 1;
            self.halves.last_mut().expect("one from the start").1 = Some(now);
            self.halves.push((random_secret(), None));
            set("__Secure-1PSIDTS", self.psidts());
            set("__Secure-3PSIDTS", &random_secret());
        }
        answer.body(Bytes::from_static(b")]}'\n\n[[\"identity.hfcr\",600],[\"di\",65]]")).expect("an answer")
    }

    fn page(&self, request: &Request<Bytes>, now: u64) -> Response<Bytes> {
        let fields = match self.knows(request, now) {
            true => format!(r#""S06Grb":"{}","SNlM0e":"{}:1""#, self.account, random_secret()),
            false => String::from(r#""S06Grb":"""#),
        };
        let page = format!(
            "<!doctype html><html><head><script>window.WIZ_global_data = {{\"FdrFJe\":\"1\",{fields}}};</script></head>\
             <body>Gemini</body></html>\n"
        );
        let answer = Response::builder().header(header::CONTENT_TYPE, "text/html; charset=utf-8");
        answer.body(page.into()).expect("an answer")
    }
}

fn text_of(request: &Request<Bytes>, name: impl AsHeaderName) -> &str {
    request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
