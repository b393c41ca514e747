//! `describe` tells one lie of many: the test writes the number of the lie over the zeros below,
//! in the built file, so that each is a plugin of its own.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

static LIE: [u8; 8] = *b"LIE-0000";

fn number() -> u32 {
    // Read as the file has it, not as the compiler knows it.
    let digits = core::hint::black_box(&LIE)[4..].iter();
    // SAFETY: a reference is valid to read; volatile, so that it is not computed beforehand.
    digits.fold(0, |sum, digit| sum * 10 + u32::from(unsafe { core::ptr::read_volatile(digit) } - b'0'))
}

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        let honest = tempted("lies-in-its-manifest");
        let many = |count: usize| (0..count).map(|number| Key::token(&format!("key-{number}")).optional());
        match number() {
            1 => Manifest { service: String::new(), ..honest },
            2 => Manifest { service: "s".repeat(65), ..honest },
            3 => Manifest { service: "../well-behaved".into(), ..honest },
            4 => Manifest { title: "harmless\u{202e}lufmrah".into(), ..honest },
            5 => Manifest { title: "one\ntwo".into(), ..honest },
            6 => Manifest { title: "\u{1b}[2Jcleared".into(), ..honest },
            7 => Manifest { title: "t".repeat(1 << 20), ..honest },
            8 => Manifest { version: "newest".into(), ..honest },
            9 => Manifest { keys: Vec::new(), ..honest },
            10 => Manifest { keys: many(5_000).collect(), ..honest },
            11 => honest.key(Key::token("token").optional()),
            12 => honest.key(Key::token("Token!").optional()),
            13 => honest.key(Key::cookie("again", "session", "{base_url.host}").optional()),
            14 => honest.key(Key::cookie("odd", "a=b; c", "site.example").optional()),
            15 => honest.key(Key::cookie("odd", "a", "site.example/path").optional()),
            16 => honest.key(Key::cookie("odd", "a", "site.example").path("no-slash; Domain=x").optional()),
            17 => honest.origin("https://*.example"),
            18 => honest.origin("http://plain.example"),
            19 => honest.origin("https://127.0.0.1:8443"),
            20 => honest.origin("https://[::ffff:169.254.169.254]"),
            21 => honest.origin("https://user:password@site.example"),
            22 => honest.origin("https://site.example/path"),
            23 => honest.origin("https://site.example?query"),
            24 => honest.origin("https://site.example."),
            25 => honest.origin("https://2130706433"),
            26 => honest.origin("file:///etc"),
            27 => honest.origin("{no_such_setting}"),
            28 => honest.setting(Setting::url("other").default("http://10.0.0.1")).origin("{other.origin}"),
            29 => honest.validate_url("https://elsewhere.example/check"),
            30 => honest.validate_url("not a url"),
            31 => honest.setting(Setting::text("elsewhere")),
            32 => honest.setting(Setting::choice("empty", [])),
            33 => honest.setting(Setting::integer("wrong").default("many")),
            34 => honest.method(Method::new("refresh", CommitClass::Sliding)),
            35 => honest.method(Method::new("other", CommitClass::Sliding).commit_class_from("elsewhere")),
            36 => honest.validate_every(0),
            37 => (0..40).fold(honest, |all, number| all.origin(&format!("https://h{number}.example"))),
            38 => Manifest { extras: vec![("x".into(), "y".repeat(1 << 20))], ..honest },
            39 => Manifest { title: raw::not_utf8(), ..honest },
            40 => Manifest { title: "t".repeat(20 << 20), ..honest },
            41 => honest.max_age(0),
            _ => honest,
        }
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        check(cx)
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        refresh(cx)
    }
}

keywheel_sdk::export!(Guest);
