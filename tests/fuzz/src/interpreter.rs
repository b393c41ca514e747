//! A template, and what a service answers to it. Whatever the text is, the interpreter reads it or
//! says why not, with a place; and whatever the answer is, a web page makes nothing `valid` unless
//! the template asks for a text in it, and what is about the service makes nothing of anything
//! unless the template names that very status.

use template_provider::check::check;
use template_provider::fault::{self, told};
use template_provider::predicate::Seen;
use template_provider::run;
use template_provider::template::{Statuses, Template};

use crate::{read, write};

/// The template; the answer's status, content type and body.
type Input = (String, u16, String, Vec<u8>);

const PAGE: &str = "<!doctype html><h1>Checking your browser</h1>";

pub fn run(input: &[u8]) {
    let Some((text, status, kind, body)) = read::<Input>(input) else { return };
    let template = match fault::read(&text) {
        Ok(template) => template,
        Err(fault) => return readable(&told(&text, &[fault])),
    };
    let faults = check(&template);
    if !faults.is_empty() {
        return readable(&told(&text, &faults));
    }
    let manifest = run::manifest(&template);
    assert_eq!(manifest.keys.len(), template.keys.len());
    assert!(!manifest.origins.is_empty() && manifest.origins.iter().all(|origin| !origin.contains('*')));
    let status = 100 + status % 500;
    judge(&template, status, Some(&kind), &body);
    judge(&template, status, None, &body);
    for status in [200, 401, 403, 503] {
        judge(&template, status, Some("text/html"), PAGE.as_bytes());
        judge(&template, status, Some("application/json"), PAGE.as_bytes());
        judge(&template, status, None, PAGE.as_bytes());
    }
    // A marked challenge is never the service's word.
    let challenge = Box::new(|name: &str| (name == "cf-mitigated").then_some("challenge"));
    assert!(!run::says_something(&template, &Seen::of(status, challenge, &body)));
}

fn judge(template: &Template, status: u16, kind: Option<&str>, body: &[u8]) {
    let header = Box::new(|name: &str| (name == "content-type").then_some(kind).flatten());
    let seen = Seen::of(status, header, body);
    let table = &template.validate;
    let by_identity = table.identity.is_some();
    let (valid, any) = (run::says_valid(template, &seen), run::says_something(template, &seen));
    assert!(any || !valid);
    if seen.is_page() && valid {
        assert!(table.valid.iter().any(|rule| rule.text.is_some()), "a page is valid for {table:?}");
    }
    if matches!(status, 408 | 425 | 429 | 500..) && any {
        let of = |statuses: &Option<template_provider::place::At<Statuses>>| {
            let named = status..=status;
            statuses.as_ref().is_some_and(|statuses| statuses.0.contains(&named))
        };
        let good = table.valid.iter().any(|rule| of(&rule.status));
        let bad = table.needs_human.iter().chain(&table.invalid).any(|rule| of(&rule.status));
        assert!(good || bad, "{status} says something for {table:?}");
    }
    if body.is_empty() {
        let by_header = table.valid.iter().any(|rule| !rule.header.is_empty());
        assert!(!valid || by_header || by_identity, "nothing is valid for {table:?}");
    }
}

fn readable(said: &str) {
    assert!(said.starts_with("line ") && said.contains(", column "), "{said}");
    assert!(said.len() < 16 << 10, "{} bytes", said.len());
}

pub fn seeds() -> Vec<Vec<u8>> {
    let whole = r#"
service = "forum"
title = "The forum"
version = "1.0.0"
source = "https://forum.example/docs"
[settings.base_url]
kind = "url"
default = "https://forum.example"
[keys.token]
[validate]
url = "{base_url}/me/{token}"
headers = { authorization = "Basic {a:{token}|base64}" }
identity = "/id"
expires = { json = "/ends", unit = "s", from = "now" }
[[validate.valid]]
status = "200-299"
json = { "/active" = true, "/n" = { greater = 1, less = 9 } }
not = { text = { contains = "x" } }
[[validate.invalid]]
status = [401, 503]
message = "dead"
detail = "/why"
[rotate.renew]
class = "grace"
class_source = "https://forum.example/docs"
method = "POST"
url = "https://forum.example/renew"
json = { a = ["{token}", 1, 2.5, true, { b = "{{}}" }] }
capture = { token = { json = "/t", expires_in = "/s" } }
[retry]
header = "x-reset"
at_least = "1m"
"#;
    let page = whole
        .replace("identity = \"/id\"", "")
        .replace("not = { text", "text = { contains = \"Sign out\" }\nnot = { text");
    let mut seeds = Vec::new();
    for text in [whole, &page, "service = 'x'", "[validate", "a = 2026-01-01"] {
        for (status, kind, body) in [
            (100, "application/json", r#"{"id":"ann","active":true,"n":3,"ends":60}"#),
            (301, "application/json", r#"{"why":"revoked"}"#),
            (100, "text/html", "<p>Sign out</p>"),
            (403, "text/plain", "{\"id"),
        ] {
            let input: Input = (text.into(), status, kind.into(), body.into());
            seeds.push(write(&input));
        }
    }
    seeds
}
