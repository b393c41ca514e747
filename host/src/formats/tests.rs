//! What comes in and goes out, and what is refused: a value stands in no error.

use super::export::*;
use super::*;
use crate::credential::{Jar, Key};
use crate::provider::AllowedOrigin;

/// Stands for every value that no error may hold.
const VALUE: &str = "v4lue-n0t-to-print";
const NOW: Millis = 1_700_000_000_000;

fn netscape(domain: &str, expires: &str, name: &str) -> String {
    let tail = if domain.starts_with('.') { "TRUE" } else { "FALSE" };
    format!("{domain}\t{tail}\t/\tTRUE\t{expires}\t{name}\t{VALUE}\n")
}

fn origin(scheme: &str, host: &str) -> AllowedOrigin {
    AllowedOrigin {
        scheme: scheme.to_owned(),
        host: host.to_owned(),
        port: if scheme == "https" { 443 } else { 80 },
        operator_named: scheme == "http",
    }
}

fn spec(name: &str, required: bool, cookie: Option<(&str, &str)>) -> KeySpec {
    let location = match cookie {
        None => Location::Token,
        Some((name, domain)) => Location::Cookie(CookieLocation {
            name: name.to_owned(),
            domain: domain.to_owned(),
            path: String::from("/"),
        }),
    };
    KeySpec { name: name.to_owned(), location, required, reveal: false, help: String::new() }
}

/// A required cookie, an optional cookie, an optional token; one origin.
fn resolved() -> Resolved {
    Resolved {
        validate_url: String::from("https://app.example.com/me"),
        keys: vec![
            spec("session", true, Some(("sessionid", "app.example.com"))),
            spec("remember", false, Some(("remember_me", "app.example.com"))),
            spec("csrf_token", false, None),
        ],
        origins: vec![origin("https", "app.example.com")],
        private_hosts: Vec::new(),
        settings: Vec::new(),
        methods: Vec::new(),
    }
}

fn import(text: &str) -> Imported {
    parse(text, None).expect("this text is readable")
}

fn names(selection: &Selection) -> Vec<&str> {
    selection.keys.iter().map(|key| key.name.as_str()).collect()
}

#[test]
fn formats_are_told_apart_by_their_text() {
    let table = [
        ("# Netscape HTTP Cookie File\n", Ok(Format::Netscape)),
        ("\u{feff}# HTTP Cookie File\r\n\r\n", Ok(Format::Netscape)),
        ("a.example\tFALSE\t/\tTRUE\t0\tn\tv=w", Ok(Format::Netscape)),
        ("#HttpOnly_a.example\tFALSE\t/\tTRUE\t0\tn\tv", Ok(Format::Netscape)),
        (" {\"cookies\": [], \"origins\": []}", Ok(Format::StorageState)),
        ("[]", Ok(Format::BrowserJson)),
        ("session=abc", Ok(Format::KeyValue)),
        ("# mine\n\nsession=a\tb\tc\td\te", Ok(Format::KeyValue)),
        ("", Err(FormatError::Empty)),
        (" \r\n\t", Err(FormatError::Empty)),
        ("# only a comment", Err(FormatError::Empty)),
        ("\n\nhello", Err(FormatError::Unrecognised { line: 3, hint: "" })),
        ("<html a=b>", Err(FormatError::Unrecognised { line: 1, hint: "; hint: this looks like HTML" })),
        ("a.example TRUE / FALSE 0 n v=w", Err(FormatError::Unrecognised { line: 1, hint: LOST_TABS })),
        ("{\"a\": 1}", Err(FormatError::Shape)),
        ("[1]", Err(FormatError::Shape)),
        ("{\"cookies\": {}}", Err(FormatError::Shape)),
    ];
    for (text, wanted) in table {
        assert_eq!(detect(text), wanted, "{text:?}");
    }
}

#[test]
fn another_format_than_the_one_asked_for_is_named() {
    let file = netscape("a.example", "0", "n");
    let state = "{\"cookies\": []}";
    for (text, asked, found) in [
        (state, Format::Netscape, Format::StorageState),
        ("[]", Format::Netscape, Format::BrowserJson),
        ("[]", Format::StorageState, Format::BrowserJson),
        (state, Format::KeyValue, Format::StorageState),
        (file.as_str(), Format::KeyValue, Format::Netscape),
        (file.as_str(), Format::StorageState, Format::Netscape),
        ("a=b", Format::Netscape, Format::KeyValue),
    ] {
        assert_eq!(parse(text, Some(asked)), Err(FormatError::WrongFormat { asked, found }));
    }
    assert_eq!(
        FormatError::WrongFormat { asked: Format::Netscape, found: Format::StorageState }.to_string(),
        "found a Playwright storageState where a Netscape cookies.txt was asked for; hint: name the format that it is, or none"
    );
}

#[test]
fn a_netscape_file_is_read_with_its_prefixes_line_ends_and_odd_expiries() {
    let text = "# Netscape HTTP Cookie File\r\n# made by hand\r\n\r\n\
        #HttpOnly_.Example.COM\tTRUE\t/app\tTRUE\t1800000000\tsid\t a=b; \r\n\
        www.example.com\tfalse\t/\tFALSE\t0\tplain\t\r\n\
        a.example\tFALSE\t/\tFALSE\t\tempty\tv\r\n\
        b.example\tFALSE\t/\tFALSE\t-1\tminus\tv\r\n\
        c.example\tFALSE\t/\tFALSE\t1800000000.25\tfloat\tv\r\n\
        d.example\tFALSE\t/\tFALSE\t99999999999999\tforever\tv";
    let imported = import(text);
    assert_eq!(
        imported.cookies[0],
        ImportedCookie {
            attributes: CookieAttributes {
                name: "sid".into(),
                domain: "example.com".into(),
                path: "/app".into(),
                host_only: false,
                secure: true,
                http_only: true,
                same_site: None,
            },
            value: Secret::new(" a=b; "),
            expires: Some(1_800_000_000_000),
        }
    );
    assert!(imported.cookies[1].attributes.host_only);
    let expiries: Vec<_> = imported.cookies.iter().skip(1).map(|c| c.expires).collect();
    let last = Some(253_402_300_799_000);
    assert_eq!(expiries, [None, None, None, Some(1_800_000_000_250), last]);
}

#[test]
fn a_storage_state_is_read() {
    let text = r#"{"cookies": [
        {"name":"a","value":"1","domain":".example.com","path":"/x","expires":1800000000.5,
         "httpOnly":true,"secure":true,"sameSite":"Strict"},
        {"name":"b","value":"","domain":"example.com","path":"/","expires":-1,
         "httpOnly":false,"secure":false,"sameSite":"None"}], "origins": [{"origin": "x"}]}"#;
    let cookies = import(text).cookies;
    assert_eq!(cookies[0].expires, Some(1_800_000_000_500));
    assert_eq!(cookies[0].attributes.same_site.as_deref(), Some("Strict"));
    assert!(!cookies[0].attributes.host_only && cookies[0].attributes.http_only);
    assert_eq!(cookies[1].expires, None);
    assert!(cookies[1].attributes.host_only && !cookies[1].attributes.secure);
}

#[test]
fn a_browser_extensions_list_is_read() {
    let text = r#"[
        {"name":"a","value":"1","domain":".example.com","hostOnly":false,"path":"/",
         "expirationDate":1800000000.123,"session":false,"sameSite":"no_restriction",
         "secure":true,"httpOnly":true,"storeId":"0","id":1},
        {"name":"b","value":"2","domain":"example.com","hostOnly":true,"session":true,
         "expirationDate":1800000000,"sameSite":"unspecified"},
        {"name":"c","value":"3","domain":"example.com","hostOnly":false,"sameSite":null,"path":null}]"#;
    let cookies = import(text).cookies;
    assert_eq!(cookies[0].expires, Some(1_800_000_000_123));
    assert_eq!(cookies[0].attributes.same_site.as_deref(), Some("None"));
    assert_eq!((cookies[1].expires, &cookies[1].attributes.same_site), (None, &None));
    assert!(cookies[1].attributes.host_only && !cookies[2].attributes.host_only);
    assert_eq!(cookies[2].attributes.path, "/");
}

#[test]
fn pairs_keep_their_values_as_they_are() {
    let text = "# comment\r\n\r\n a = x=y \r\nb=\nc= # not a comment\n";
    let pairs: Vec<_> = import(text).pairs;
    let wanted = [("a", " x=y "), ("b", ""), ("c", " # not a comment")]
        .map(|(name, value)| (name.to_owned(), Secret::new(value)));
    assert_eq!(pairs, wanted);
}

#[test]
fn a_text_that_is_wrong_says_where_and_never_what_the_value_was() {
    let good = netscape("a.example", "0", "n");
    let row = |fields: [&str; 7]| good.clone() + &fields.join("\t");
    let cookie = |fields: &str| format!(r#"[{{"name":"n","value":"v","domain":"a.example"}}, {{{fields}}}]"#);
    let table = [
        (
            row(["a.example", "YES", "/", "TRUE", "0", "n", VALUE]),
            "line 2: `include subdomains` is neither; allowed: TRUE or FALSE",
        ),
        (row(["a.example", "TRUE", "/", VALUE, "0", "n", "v"]), "line 2: `secure` is neither"),
        (
            row(["a.example", "TRUE", "/", "TRUE", VALUE, "n", "v"]),
            "line 2: `expiry` is not a number; allowed: seconds since 1970, or 0",
        ),
        (row(["a.example", "TRUE", "/", "TRUE", "nan", "n", VALUE]), "line 2: `expiry` is not a number"),
        (row(["a.example", "TRUE", VALUE, "TRUE", "0", "n", "v"]), "line 2: `path` is not a path"),
        (row(["", "TRUE", "/", "TRUE", "0", "n", VALUE]), "line 2: `domain` is not a host"),
        (row(["..a.example", "TRUE", "/", "TRUE", "0", "n", VALUE]), "line 2: `domain` is not a host"),
        (
            good.clone() + "a.example\tTRUE\t/\tTRUE\t0\t" + VALUE,
            "line 2 has 6 fields; allowed: 7 between tabs",
        ),
        (good.clone() + &good.trim_end().replace(VALUE, "a\tb"), "line 2 has 8 fields"),
        (
            good.clone() + &good.replace('\t', " "),
            "line 2 has 1 fields; allowed: 7 between tabs; hint: this looks like a cookies.txt whose tabs became spaces",
        ),
        (good.clone() + VALUE, "line 2 has 1 fields"),
        (format!("a=b\n{VALUE}"), "line 2 has no `=`"),
        (format!("a=b\n={VALUE}"), "line 2 has no key name before its `=`"),
        (format!("Cookie: a={VALUE}; b={VALUE}"), "line 1 has no key name before its `=`"),
        (format!("[{{\"value\": \"{VALUE}\""), "not valid JSON: EOF while parsing an object at line 1"),
        (format!("[\"{VALUE}\"]"), "JSON, but not of cookies"),
        (
            cookie(&format!(r#""name":"n","value":["{VALUE}"],"domain":"a.example""#)),
            "cookie 2 of the list: `value` is a list; allowed: a string",
        ),
        (
            cookie(&format!(r#""value":"{VALUE}","domain":"a.example""#)),
            "cookie 2 of the list: `name` is missing",
        ),
        (cookie(&format!(r#""name":"n","value":"{VALUE}""#)), "cookie 2 of the list: `domain` is missing"),
        (
            cookie(&format!(r#""name":"n","value":"v","domain":"{VALUE} x""#)),
            "cookie 2 of the list: `domain` is not a host",
        ),
        (
            cookie(&format!(r#""name":"n","value":"v","domain":"a.example","path":"{VALUE}""#)),
            "cookie 2 of the list: `path` is not a path",
        ),
        (
            cookie(&format!(r#""name":"n","value":"v","domain":"a.example","expires":"{VALUE}""#)),
            "cookie 2 of the list: `expires` is a string; allowed: seconds since 1970",
        ),
        (
            cookie(&format!(r#""name":"n","value":"v","domain":"a.example","secure":"{VALUE}""#)),
            "cookie 2 of the list: `secure` is a string; allowed: true or false",
        ),
        (String::from("[]"), "a browser extension's cookie list (JSON) without any cookie in it"),
        (String::from("# Netscape HTTP Cookie File\n"), "a Netscape cookies.txt without any cookie in it"),
    ];
    for (text, wanted) in table {
        let error = parse(&text, None).expect_err(wanted);
        let said = error.to_string();
        assert!(said.contains(wanted), "{said}\n  lacks {wanted}");
        assert!(!format!("{said} {error:?}").contains(VALUE), "{said}");
    }
}

#[test]
fn a_line_that_fits_nothing_is_judged_by_the_format_asked_for() {
    let text = format!("{VALUE}\n");
    for (asked, wanted) in [
        (Some(Format::Netscape), "line 1 has 1 fields"),
        (Some(Format::KeyValue), "line 1 has no `=`"),
        (None, "line 1 fits no known format"),
    ] {
        let said = parse(&text, asked).expect_err(wanted).to_string();
        assert!(said.starts_with(wanted) && !said.contains(VALUE), "{said}");
    }
}

#[test]
fn mapped_cookies_become_keys_others_of_the_service_come_along_and_foreign_ones_stay_out() {
    let text = netscape("app.example.com", "1800000000", "sessionid")
        + &netscape(".example.com", "0", "theme")
        + &netscape("app.example.com", "1600000000", "old")
        + &netscape("example.com", "0", "parent")
        + &netscape(".bank.example", "0", "sessionid")
        + &netscape("notexample.com", "0", "x")
        + &netscape(".bank.example", "0", "y");
    let selection = select(import(&text), &resolved(), NOW).expect("selects");
    assert_eq!(names(&selection), ["session", "cookie:theme@example.com/"]);
    assert_eq!(selection.keys[0].expires, Some(1_800_000_000_000));
    assert_eq!(selection.skipped_foreign, ["bank.example", "example.com", "notexample.com"]);
    assert_eq!(selection.skipped_expired, ["old@app.example.com"]);
}

#[test]
fn the_cookie_nearest_to_its_place_in_the_mapping_is_the_key() {
    let own = netscape("app.example.com", "0", "sessionid");
    let parent = netscape(".example.com", "0", "sessionid");
    let dead = netscape("app.example.com", "1600000000", "sessionid");
    for (text, domain, count) in [
        (own.clone(), "app.example.com", 1),
        (parent.clone(), "example.com", 1),
        (parent.clone() + &own, "app.example.com", 2),
        (own.clone() + &parent, "app.example.com", 2),
        // A live cookie beats a dead one in a better place, and a dead twin.
        (dead.clone() + &parent, "example.com", 1),
        (own.clone() + &dead, "app.example.com", 1),
        (dead + &own, "app.example.com", 1),
    ] {
        let selection = select(import(&text), &resolved(), NOW).expect("selects");
        assert_eq!(selection.keys.len(), count, "{text}");
        assert_eq!(selection.keys[0].name, "session");
        let cookie = selection.keys[0].cookie.as_ref().expect("a cookie");
        assert_eq!(cookie.domain, domain, "{text}");
    }
}

#[test]
fn a_cookie_below_the_mapped_domain_counts_where_its_host_is_allowed() {
    let mut resolved = resolved();
    resolved.keys[0] = spec("session", true, Some(("sessionid", "example.com")));
    let text = netscape("app.example.com", "0", "sessionid");
    let selection = select(import(&text), &resolved, NOW).expect("selects");
    assert_eq!(names(&selection), ["session"]);
    let text = netscape("other.example.com", "0", "sessionid");
    assert!(matches!(select(import(&text), &resolved, NOW), Err(SelectError::Foreign { .. })));
}

#[test]
fn addresses_have_no_subdomains() {
    assert!(is_subdomain("a.example.com", "example.com"));
    assert!(!is_subdomain("aexample.com", "example.com"));
    assert!(!is_subdomain("example.com", "example.com"));
    assert!(!is_subdomain("10.0.0.1", "0.0.1"));
    assert!(!is_subdomain("[::1]", ":1]"));
}

#[test]
fn what_can_not_be_selected_says_what_was_wanted_and_no_value() {
    let table = [
        (
            netscape(".a.example", "0", "x") + &netscape("b.example", "0", "y"),
            r#"no cookie is for this service: they are for "a.example", "b.example"; allowed: "app.example.com"; hint:"#,
        ),
        (
            netscape("app.example.com", "1600000000", "sessionid"),
            r#"cookie "sessionid" of key "session" expired at 2020-09-13T12:26:40.000Z; hint: log in again"#,
        ),
        (
            netscape("app.example.com", "0", "sessionid")
                + &netscape("app.example.com", "1700000000", "remember_me"),
            r#"cookie "remember_me" of key "remember" expired at 2023-11-14T22:13:20.000Z"#,
        ),
        (
            netscape("app.example.com", "0", "theme"),
            r#"required key "session" is missing; it is cookie "sessionid" of "app.example.com"; found: "theme""#,
        ),
        (format!("csrf_token={VALUE}"), r#"required key "session" is missing"#),
        (format!("session={VALUE}\nsession={VALUE}"), r#"key "session" is given twice"#),
        (
            format!("session={VALUE}\ncsrf-token={VALUE}"),
            r#"pair 2 names no key of the mapping; allowed: "session", "remember", "csrf_token"; hint: did you mean "csrf_token"?"#,
        ),
        (format!("sessionid={VALUE}"), r#"hint: did you mean "session"?"#),
        (format!("{VALUE}=="), r#"pair 1 names no key of the mapping"#),
        (String::from("session="), r#"key "session" has an empty value"#),
        (format!("session={VALUE}\ncsrf_token="), r#"key "csrf_token" has an empty value"#),
        (format!("session={VALUE}; admin=1"), r#"key "session" can't be a cookie: its value holds"#),
        (format!("session={VALUE}\x07"), r#"key "session" can't be a cookie: its value holds"#),
        (
            format!("session={}", VALUE.repeat(5_000)),
            r#"key "session" has 90000 bytes; allowed: at most 65536"#,
        ),
        (
            (0..181).map(|n| netscape("app.example.com", "0", &format!("c{n}"))).collect::<String>()
                + &netscape("app.example.com", "0", "sessionid"),
            r#"182 cookies are for this service; allowed: at most 180"#,
        ),
    ];
    for (text, wanted) in table {
        let error = select(import(&text), &resolved(), NOW).expect_err(wanted);
        let said = error.to_string();
        assert!(said.contains(wanted), "{said}\n  lacks {wanted}");
        assert!(!format!("{said} {error:?}").contains(VALUE), "{said}");
    }
    let mut optional = resolved();
    optional.keys[0].required = false;
    let text = netscape("app.example.com", "1600000000", "old");
    let error = select(import(&text), &optional, NOW).expect_err("expired");
    assert_eq!(error, SelectError::AllExpired { expired: vec!["old@app.example.com".into()] });
}

#[test]
fn a_missing_token_says_how_to_give_it() {
    let mut resolved = resolved();
    resolved.keys[2].required = true;
    resolved.keys[2].help = String::from("Settings, then Tokens");
    let text = netscape("app.example.com", "0", "sessionid");
    let said = select(import(&text), &resolved, NOW).expect_err("missing").to_string();
    assert_eq!(
        said,
        "required key \"csrf_token\" is missing; it is a token; hint: give `csrf_token=…` on standard input (Settings, then Tokens); found: \"sessionid\""
    );
}

#[test]
fn a_pair_for_a_cookie_gets_the_narrowest_attributes_that_reach_the_service() {
    type Origins = &'static [(&'static str, &'static str)];
    let table: [(&str, Origins, bool, bool); 4] = [
        ("app.example.com", &[("https", "app.example.com")], true, true),
        ("app.example.com", &[("http", "app.example.com")], true, false),
        ("example.com", &[("https", "example.com"), ("https", "app.example.com")], true, true),
        ("example.com", &[("https", "app.example.com")], false, true),
    ];
    for (domain, origins, host_only, secure) in table {
        let mut resolved = resolved();
        resolved.keys = vec![spec("session", true, Some(("sid", domain)))];
        resolved.origins = origins.iter().map(|(s, h)| origin(s, h)).collect();
        let selection = select(import("session=x"), &resolved, NOW).expect("selects");
        let cookie = selection.keys[0].cookie.as_ref().expect("a cookie");
        assert_eq!((cookie.host_only, cookie.secure), (host_only, secure), "{domain}");
        assert_eq!((cookie.name.as_str(), cookie.path.as_str()), ("sid", "/"));
        assert!(resolved.origins.iter().any(|origin| is_sent_to(cookie, &origin.host)));
    }
    let selection = select(import("session=x\ncsrf_token=a=b;c"), &resolved(), NOW);
    let selection = selection.expect("selects");
    assert_eq!(selection.keys[1].cookie, None);
    assert_eq!(selection.keys[1].secret, Secret::new("a=b;c"));
}

#[test]
fn a_token_that_was_pasted_with_something_around_it_is_refused_by_its_place() {
    let said = |pairs: &str| {
        check_pasted(&import(pairs), &resolved()).err().map(|error| error.to_string()).unwrap_or_default()
    };
    for (value, found) in [
        (" made-up", "white space"),
        ("made-up ", "white space"),
        ("made-up\t", "white space"),
        ("\"made-up\"", "is in quotes"),
        ("'made-up'", "is in quotes"),
        ("Bearer made-up", "the word of a header"),
        ("bearer made-up", "the word of a header"),
    ] {
        let said = said(&format!("session=x\ncsrf_token={value}"));
        assert!(said.contains("key \"csrf_token\" (pair 2)") && said.contains(found), "{value:?}: {said}");
        assert!(!said.contains("made-up"), "{said}");
    }
    for value in ["made-up", "made up", "\"", "made\"up", "Bearer", "bearers"] {
        assert_eq!(said(&format!("csrf_token={value}")), "", "{value:?}");
    }
    // A cookie's value may well be in quotes.
    assert_eq!(said("session=\"x\""), "");
}

fn key(name: &str, value: &str, expires: Option<Millis>, cookie: Option<CookieAttributes>) -> Key {
    Key { name: name.to_owned(), secret: Secret::new(value), fingerprint: String::from("f"), expires, cookie }
}

fn cookie(name: &str, domain: &str, path: &str) -> CookieAttributes {
    CookieAttributes {
        name: name.to_owned(),
        domain: domain.to_owned(),
        path: path.to_owned(),
        host_only: true,
        secure: true,
        http_only: false,
        same_site: None,
    }
}

/// Every combination of attributes with every kind of value.
fn jar(values: &[&str]) -> Jar {
    let mut jar = Jar::default();
    for (v, value) in values.iter().enumerate() {
        for bits in 0..16_u8 {
            let name = format!("c{v}-{bits}");
            let attributes = CookieAttributes {
                host_only: bits & 1 == 0,
                secure: bits & 2 == 0,
                http_only: bits & 4 == 0,
                same_site: Some(String::from("Strict")),
                ..cookie(&name, "app.example.com", "/a b")
            };
            let expires = (bits & 8 == 0).then_some(1_800_000_000_000 + u64::from(bits) * 1_000);
            jar.put(key(&name, value, expires, Some(attributes)));
        }
    }
    jar
}

const VALUES: &[&str] =
    &["plain", "", "a=b==", " space ", "\"quoted\"", "it's", "ünï→🔑", "#HttpOnly_", "\\n$HOME`x`", "a,b|c"];

fn text(secret: &Secret) -> String {
    String::from_utf8(secret.expose().to_vec()).expect("text")
}

#[test]
fn what_is_exported_as_cookies_is_imported_again_the_same() {
    type Export = fn(&Jar) -> Result<Secret, ExportError>;
    let jar = jar(VALUES);
    let forms: [(Export, Format, bool); 3] = [
        (to_netscape, Format::Netscape, false),
        (to_storage_state, Format::StorageState, true),
        (to_browser_json, Format::BrowserJson, true),
    ];
    for (export, format, keeps_same_site) in forms {
        let out = text(&export(&jar).expect("exports"));
        assert_eq!(detect(&out), Ok(format));
        let imported = parse(&out, Some(format)).expect("imports").cookies;
        assert_eq!(imported.len(), jar.keys.len());
        for (key, cookie) in jar.keys.iter().zip(imported) {
            let mut attributes = key.cookie.clone().expect("a cookie");
            if !keeps_same_site {
                attributes.same_site = None;
            }
            assert_eq!(cookie.attributes, attributes, "{format}");
            assert_eq!(cookie.value, key.secret, "{format}");
            assert_eq!(cookie.expires, key.expires, "{format}");
        }
    }
}

#[test]
fn the_json_forms_keep_milliseconds_and_line_breaks() {
    let mut jar = Jar::default();
    jar.put(key("a", "x\ty\nz", Some(1_800_000_000_123), Some(cookie("a", "a.example", "/"))));
    for export in [to_storage_state, to_browser_json] {
        let imported = import(&text(&export(&jar).expect("exports")));
        assert_eq!(imported.cookies[0].expires, Some(1_800_000_000_123));
        assert_eq!(imported.cookies[0].value, jar.keys[0].secret);
    }
}

#[test]
fn json_has_every_key_by_name() {
    let mut jar = Jar::default();
    jar.put(key("token", "x\"y", Some(1_000), None));
    jar.put(key("session", "s", None, Some(cookie("sid", "a.example", "/"))));
    let out = to_json(&jar).expect("exports");
    let value: Value = serde_json::from_slice(out.expose()).expect("parses");
    assert_eq!(value["token"]["value"], "x\"y");
    assert_eq!(value["token"]["expires"], "1970-01-01T00:00:01.000Z");
    assert_eq!(value["token"]["cookie"], Value::Null);
    assert_eq!(value["session"]["cookie"]["name"], "sid");
}

/// Reads what POSIX says of quotes: between single quotes everything means itself, and a
/// backslash outside of them quotes what follows.
fn shell_reads(text: &str) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    let mut letters = text.chars();
    loop {
        let name: String = letters.by_ref().take_while(|c| *c != '=').collect();
        if name.is_empty() {
            return variables;
        }
        let (mut value, mut quoted) = (String::new(), false);
        loop {
            match letters.next() {
                Some('\'') => quoted = !quoted,
                Some('\\') if !quoted => value.extend(letters.next()),
                Some('\n') | None if !quoted => break,
                Some(c) => {
                    let plain = c.is_ascii_alphanumeric() || "-_./:=+,@%".contains(c);
                    assert!(quoted || plain, "{c:?} stands outside of quotes");
                    value.push(c);
                }
                None => panic!("a quote is never closed"),
            }
        }
        variables.push((name, value));
    }
}

#[test]
fn a_shell_reads_back_what_env_wrote() {
    let mut values = VALUES.to_vec();
    values.extend(["a\nb", "'", "''", "'; id; '", "\\'", "a\tb\r"]);
    let mut jar = Jar::default();
    for (index, value) in values.iter().enumerate() {
        jar.put(key(&format!("key-{index}"), value, None, None));
    }
    let read = shell_reads(&text(&to_env(&jar).expect("exports")));
    let wanted: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(index, value)| (format!("KEY_{index}"), (*value).to_owned()))
        .collect();
    assert_eq!(read, wanted);
}

#[test]
fn a_plain_value_stands_bare_for_readers_that_know_no_quotes() {
    for (value, line) in [
        ("eyJhbGciOi.J9_x-y/z+w==", "A-B=eyJhbGciOi.J9_x-y/z+w=="),
        ("", "A-B=''"),
        ("a b", "A-B='a b'"),
        ("~", "A-B='~'"),
        ("a#b", "A-B='a#b'"),
        ("$HOME", "A-B='$HOME'"),
    ] {
        let mut jar = Jar::default();
        jar.put(key("a-b", value, None, None));
        assert_eq!(text(&to_env(&jar).expect("exports")), format!("{}\n", line.replace("A-B", "A_B")));
    }
}

#[test]
fn variables_are_names_a_shell_accepts() {
    for (name, wanted) in [
        ("refresh_token", "REFRESH_TOKEN"),
        ("api-key", "API_KEY"),
        ("2fa", "_2FA"),
        ("cookie:a@b.example/", "COOKIE_A_B_EXAMPLE_"),
    ] {
        assert_eq!(variable(name), wanted);
    }
}

#[test]
fn a_header_holds_what_a_browser_would_send() {
    let domain = |mut c: CookieAttributes| {
        c.host_only = false;
        c
    };
    let open = |mut c: CookieAttributes| {
        c.secure = false;
        c
    };
    let mut jar = Jar::default();
    jar.put(key("a", "1", None, Some(open(cookie("a", "app.example.com", "/")))));
    jar.put(key("b", "2", None, Some(cookie("b", "app.example.com", "/"))));
    jar.put(key("c", "3", None, Some(open(cookie("c", "app.example.com", "/api")))));
    jar.put(key("d", "4", None, Some(open(domain(cookie("d", "example.com", "/"))))));
    jar.put(key("e", "5", None, Some(open(cookie("e", "example.com", "/")))));
    jar.put(key("f", "6", Some(NOW), Some(open(cookie("f", "app.example.com", "/")))));
    jar.put(key("t", "7", None, None));
    for (url, wanted) in [
        ("https://app.example.com/", Some("Cookie: a=1; b=2; d=4")),
        ("http://app.example.com:8080/x", Some("Cookie: a=1; d=4")),
        ("https://APP.example.com/api/me", Some("Cookie: c=3; a=1; b=2; d=4")),
        ("https://app.example.com/apiary", Some("Cookie: a=1; b=2; d=4")),
        ("https://example.com/", Some("Cookie: d=4; e=5")),
        ("https://notexample.com/", None),
    ] {
        let header = to_cookie_header(&jar, url, NOW);
        assert_eq!(header.as_ref().ok().map(text).as_deref(), wanted, "{url}");
    }
    let said = to_cookie_header(&jar, "https://x.example/", NOW).expect_err("none").to_string();
    assert_eq!(
        said,
        "no cookie of the credential is sent to \"x.example\"; it has cookies for \"app.example.com\", \"example.com\""
    );
    assert!(matches!(to_cookie_header(&jar, "x.example", NOW), Err(ExportError::Url { .. })));
}

#[test]
fn what_a_form_can_not_express_is_refused_without_the_value() {
    type Export = fn(&Jar) -> Result<Secret, ExportError>;
    let header: Export = |jar| to_cookie_header(jar, "https://a.example/", NOW);
    let tab = format!("{VALUE}\t");
    let line = format!("{VALUE}\n");
    let semicolon = format!("{VALUE}; x=y");
    let zero = format!("{VALUE}\0");
    let one = |value: &[u8]| Jar {
        keys: vec![Key {
            secret: Secret::new(value),
            ..key("session", "", None, Some(cookie("sid", "a.example", "/")))
        }],
    };
    let tokens = Jar { keys: vec![key("token", VALUE, None, None)] };
    let same = Jar { keys: vec![key("a-b", VALUE, None, None), key("a_b", VALUE, None, None)] };
    let binary = [VALUE.as_bytes(), &[0xff]].concat();
    let table: [(Export, Jar, &str); 12] = [
        (
            to_netscape,
            one(tab.as_bytes()),
            "key \"session\" holds a tab or line break, which cookies.txt can't express; hint: export as JSON",
        ),
        (to_netscape, one(line.as_bytes()), "cookies.txt can't express"),
        (header, one(line.as_bytes()), "a header can't express"),
        (header, one(semicolon.as_bytes()), "a header can't express"),
        (to_env, one(zero.as_bytes()), "a shell variable can't express"),
        (to_env, same, "keys \"a-b\" and \"a_b\" would both be the variable A_B"),
        (
            to_netscape,
            tokens.clone(),
            "the credential has no cookies; hint: export its tokens as env or JSON",
        ),
        (to_storage_state, tokens.clone(), "has no cookies"),
        (header, tokens, "has no cookies"),
        (to_json, one(&binary), "key \"session\" is not UTF-8 text"),
        (to_env, one(&binary), "is not UTF-8 text"),
        (to_netscape, one(&binary), "is not UTF-8 text"),
    ];
    for (export, jar, wanted) in table {
        let error = export(&jar).expect_err(wanted);
        let said = error.to_string();
        assert!(said.contains(wanted), "{said}\n  lacks {wanted}");
        assert!(!format!("{said} {error:?}").contains(VALUE), "{said}");
    }
}

#[test]
fn an_export_takes_the_room_it_needs_at_once() {
    let mut jar = jar(VALUES);
    jar.put(key("hard", &"\u{1}\"'".repeat(2_000), None, Some(cookie("h", "a.example", "/"))));
    for export in [to_netscape, to_storage_state, to_browser_json, to_json, to_env] {
        assert!(export(&jar).expect("exports").expose().len() <= room(&jar));
    }
}
