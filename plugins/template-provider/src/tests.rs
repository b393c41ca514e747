//! Templates as their authors write them, and what is said of each mistake.

use keywheel_sdk::prelude::*;
use keywheel_sdk::testing::{Case, NOW, Request, Run, answer, fails, get, post};

use crate::check::check;
use crate::fault::{self, told};
use crate::place::At;
use crate::template::{Class, Source, Template};
use crate::{TemplateProvider, slot};

/// A whole template, with most of what there is.
pub const LINEAR: &str = r#"
service = "linear"
title = "Linear API key"
version = "1.0.0"
source = "https://linear.app/developers/graphql"
max_age = "30d"

[settings.base_url]
kind = "url"
default = "https://api.linear.app"
help = "Where the API is"

[settings.client_id]
required = true

[keys.api_key]
help = "Settings, Security & access, Personal API keys"

[keys.refresh_token]
optional = true

[validate]
every = "1h"
method = "POST"
url = "{base_url}/graphql"
headers = { authorization = "{api_key}" }
json = { query = "{{ viewer {{ id }} }}" }
identity = "/data/viewer/id"
expires = { json = "/data/viewer/ends" }

[[validate.valid]]
status = 200
json = { "/data/viewer/id" = { present = true } }

[[validate.invalid]]
status = [401, "402-403"]
json = { "/errors/0/extensions/code" = "AUTHENTICATION_ERROR" }
message = "Linear no longer knows this key: make a new one"

[rotate.refresh]
class = "burn-on-issue"
class_source = "https://linear.app/developers/oauth"
method = "POST"
url = "{base_url}/oauth/token"
headers = { authorization = "Basic {{client_id}:{refresh_token}|base64}" }
form = { grant_type = "refresh_token", refresh_token = "{refresh_token}" }

[rotate.refresh.capture]
api_key = { json = "/access_token", expires_in = "/expires_in" }
refresh_token = { json = "/refresh_token" }

[[rotate.refresh.invalid]]
status = 400
json = { "/error" = "invalid_grant" }
message = "the refresh token is dead: sign in again"

[rotate.another]
class = "grace"
class_source = "https://linear.app/developers/oauth"
method = "POST"
url = "{base_url}/oauth/again"
form = { refresh_token = "{refresh_token}" }
capture = { api_key = { header = "x-token" } }
"#;

fn read(text: &str) -> Template {
    fault::read(text).unwrap_or_else(|fault| panic!("{}", told(text, &[fault])))
}

#[test]
fn a_template_is_read_whole_and_in_the_order_of_the_file() {
    let template = read(LINEAR);
    assert_eq!(template.service.value, "linear");
    assert_eq!(template.max_age.unwrap().0, 30 * 86_400);
    assert_eq!(template.keys.names().collect::<Vec<_>>(), ["api_key", "refresh_token"]);
    // The first is the preferred one, whatever its name.
    assert_eq!(template.rotate.names().collect::<Vec<_>>(), ["refresh", "another"]);
    assert_eq!(template.rotate[0].1.class.value, Class::BurnOnIssue);
    let Some(Source::Json(At { value, span })) = template.validate.identity else { panic!("a pointer") };
    assert_eq!((value.as_str(), &LINEAR[span]), ("/data/viewer/id", "\"/data/viewer/id\""));
    assert_eq!(template.validate.invalid[0].status.as_ref().unwrap().0, [401..=401, 402..=403]);
}

/// Everything that is wrong with a template.
fn faults(text: &str) -> String {
    match fault::read(text) {
        Ok(template) => told(text, &check(&template)),
        Err(fault) => told(text, &[fault]),
    }
}

/// What is said where `from` is replaced in the whole template.
fn said(from: &str, to: &str) -> String {
    assert!(LINEAR.contains(from), "the template has no {from}");
    faults(&LINEAR.replacen(from, to, 1))
}

#[test]
fn what_is_no_template_is_told_with_its_place_and_a_suggestion() {
    let cases = [
        ("[validate]\n", "[validat]\n", "column 2: unknown field `validat`; did you mean `validate`?"),
        ("every =", "evry =", "column 1: unknown field `evry`; did you mean `every`?"),
        ("optional = true", "optional = 1", "column 12: integer `1` where a boolean is due"),
        ("required = true", "required = true\nsecert = 1", "column 1: unknown field `secert`; allowed:"),
        ("optional = true", "value = \"x\"", "column 1: unknown field `value`: a template holds no secrets"),
        ("every = \"1h\"", "every = \"1 hour\"", "column 9: `1 hour` is no duration; hint:"),
        ("every = \"1h\"", "every = \"0s\"", "`0s` is no duration"),
        ("status = 200", "status = 2000", "column 10: no answer has the status 2000"),
        (
            "\"402-403\"",
            "\"403-402\"",
            "the range `403-402` is empty; hint: write the lower status first, \"402-403\"",
        ),
        ("status = 200", "status = []", "no status is in an empty list"),
        ("status = 200", "status = \"ok\"", "`ok` is no status; hint:"),
        (
            "{ present = true }",
            "{ presnt = true }",
            "column 32: unknown field `presnt`; did you mean `present`?",
        ),
        ("json = \"/data/viewer/ends\"", "jsn = \"/x\"", "unknown field `jsn`; did you mean `json`?"),
        (
            "class = \"burn-on-issue\"",
            "class = \"burn_on_issue\"",
            "`burn_on_issue` is not allowed here; did you mean `burn-on-issue`?",
        ),
        (
            "class = \"burn-on-issue\"",
            "max_age = \"1d\"",
            "unknown field `max_age`: it is said once for the provider; hint: move it to the top",
        ),
        ("class = \"burn-on-issue\"", "", "`class` is missing; hint: say what a rotation does"),
        ("title =", "titel =", "line 3, column 1: unknown field `titel`; did you mean `title`?"),
        ("kind = \"url\"", "kind = \"uri\"", "`uri` is not allowed here; did you mean `url`?"),
        (
            "status = 200",
            "status = 200\nmessage = \"x\"",
            "unknown field `message`: only `invalid` and `needs_human` have one",
        ),
        (
            "message = \"Linear no longer knows this key: make a new one\"",
            "",
            "`message` is missing; hint: say in words",
        ),
        ("title = \"Linear API key\"", "title = \"Linear", "line 3, column 16: this is not TOML: "),
        ("version = \"1.0.0\"", "version = \"1.0.0\"\nversion = \"2\"", "this is not TOML: duplicate key"),
        (
            "query = \"{{ viewer {{ id }} }}\"",
            "when = 2026-01-01",
            "a date is no value here; hint: write it in quotes",
        ),
    ];
    for (from, to, expected) in cases {
        let said = said(from, to);
        assert!(said.contains(expected), "{to}: {said}");
    }
}

#[test]
fn a_long_name_may_be_a_pasted_secret_and_is_not_shown() {
    let pasted = "made-up-token".repeat(9);
    let said = said("optional = true", &format!("{pasted} = true"));
    assert!(said.contains("unknown field `(117 characters)`") && !said.contains("made-up-token"), "{said}");
}

#[test]
fn the_whole_template_has_no_fault() {
    assert_eq!(faults(LINEAR), "");
}

#[test]
fn what_makes_no_sense_is_told_with_its_place_and_the_fix() {
    let rule = "json = { \"/data/viewer/id\" = { present = true } }";
    let dead = "json = { \"/errors/0/extensions/code\" = \"AUTHENTICATION_ERROR\" }";
    let cases = [
        (
            "service = \"linear\"",
            "service = \"Linear App\"",
            "line 2, column 11: `Linear App` is no name of a service; allowed:",
        ),
        ("version = \"1.0.0\"", "version = \"1.0\"", "`1.0` is no version; hint:"),
        ("source = \"https://linear.app/developers/graphql\"", "source = \"the docs\"", "this is no link"),
        ("title = \"Linear API key\"", "title = \" \"", "the title is empty"),
        // Settings.
        (
            "default = \"https://api.linear.app\"",
            "default = 5",
            "the default `5` of `base_url` is of the wrong type; hint: write a URL",
        ),
        (
            "default = \"https://api.linear.app\"",
            "default = \"http://a.example\"",
            "hint: write an https URL, for only the operator",
        ),
        (
            "default = \"https://api.linear.app\"",
            "default = \"https://me:pw@a.example\"",
            "is of the wrong type",
        ),
        ("kind = \"url\"", "kind = \"integer\"", "hint: write a whole number, without quotes"),
        ("kind = \"url\"", "kind = \"choice\"", "`base_url` is a choice without choices"),
        (
            "kind = \"url\"",
            "kind = \"choice\"\nchoices = [\"https://api.linear.ap\"]",
            "is no choice; did you mean `https://api.linear.ap`?",
        ),
        ("kind = \"url\"", "kind = \"url\"\nchoices = [\"a\"]", "`base_url` has choices and isn't one"),
        (
            "kind = \"url\"",
            "kind = \"url\"\nrequired = true",
            "`base_url` is required, so its default is never used",
        ),
        (
            "[settings.client_id]",
            "[settings.api_key]",
            "`api_key` is a key too, and `{api_key}` would mean both",
        ),
        ("[settings.client_id]", "[settings.Client]", "`Client` is no name of a setting"),
        // Names.
        ("{api_key}", "{apikey}", "column 29: `{apikey}` is no setting and no key; did you mean `api_key`?"),
        (
            "headers = { authorization = \"{api_key}\" }",
            "cookies = true",
            "`cookies = true` in validate, and no key is a cookie",
        ),
        ("headers = { authorization = \"{api_key}\" }", "", "the request of validate carries no key"),
        ("[keys.refresh_token]", "[keys.spare]\n[keys.refresh_token]", "the key `spare` is never used"),
        (
            "[settings.client_id]",
            "[settings.spare]\n[settings.client_id]",
            "the setting `spare` is never used",
        ),
        // URLs.
        ("{base_url}/graphql", "{base_url}graphql", "could become another host; hint: begin it with `/`"),
        ("{base_url}/graphql", "{base_url}{client_id}", "could become another host"),
        ("{base_url}/graphql", "http://a.example/", "plain http"),
        ("{base_url}/graphql", "a.example/", "no `https://` at its beginning"),
        ("{base_url}/graphql", "https://{api_key}.example/", "the key `api_key` would be part of the host"),
        ("{base_url}/graphql", "https://me@a.example/", "a user name before the host"),
        ("{base_url}/graphql", "https://*.a.example/", "a wildcard in the host"),
        ("{base_url}/graphql", "https:///x", "no host after"),
        ("{base_url}/graphql", "{base_url}/x#y", "a fragment"),
        ("{base_url}/graphql", "{base_url}/a b", "a space in the URL"),
        ("{base_url}/graphql", "https://{base_url}/", "write `{base_url.host}` inside a host"),
        ("[settings.client_id]\nrequired = true", "[settings.client_id]", ""),
        // Requests.
        (
            "method = \"POST\"\nurl = \"{base_url}/graphql\"",
            "url = \"{base_url}/graphql\"",
            "a GET request has no body",
        ),
        ("identity =", "form = { a = \"b\" }\nidentity =", "a second body; hint: keep one"),
        ("identity =", "redirects = 6\nidentity =", "6 redirects; at most 5"),
        (
            "authorization = \"{api_key}\"",
            "cookie = \"{api_key}\"",
            "the header `cookie` is Keywheel's to set; hint: cookies = true",
        ),
        ("authorization = \"{api_key}\"", "\"a b\" = \"{api_key}\"", "this is no name of a header"),
        ("authorization = \"{api_key}\"", "a = \"{api_key}\", A = \"x\"", "the header `A` is given twice"),
        ("authorization = \"{api_key}\"", "a = \"{api_key}\\n\"", "a header is one line of visible ASCII"),
        (
            "refresh_token = \"{refresh_token}\" }\n\n",
            "refresh_token = \"{refresh_token|form}\" }\n\n",
            "a form field is encoded anyway; hint: write `{refresh_token}`",
        ),
        (
            "refresh_token = \"{refresh_token}\" }\n\n",
            "refresh_token = \"{a:{refresh_token}|base64}\" }\n\n",
            "what is encoded as `base64` can't stand in a form field",
        ),
        // Where an answer holds something.
        (
            "identity = \"/data/viewer/id\"",
            "identity = \"data.viewer.id\"",
            "a JSON pointer begins with `/`; hint: write \"/data/viewer/id\"",
        ),
        ("identity = \"/data/viewer/id\"", "identity = \"/a~b\"", "a `~` in a JSON pointer"),
        (
            "identity = \"/data/viewer/id\"",
            "identity = { header = \"set-cookie\" }",
            "Keywheel takes `Set-Cookie` out",
        ),
        ("identity = \"/data/viewer/id\"", "identity = {}", "neither `json` nor `header` says where to look"),
        ("json = \"/data/viewer/ends\"", "json = \"/x\", unit = \"s\"", "since when?"),
        (
            "json = \"/data/viewer/ends\"",
            "json = \"/x\", from = \"now\"",
            "only a number counts from somewhere",
        ),
        (
            "method = \"POST\"\nurl = \"{base_url}/graphql\"",
            "method = \"HEAD\"\nurl = \"{base_url}/graphql\"",
            "the answer to a HEAD request has no body",
        ),
        // Rules.
        (rule, "", "this would need"),
        (
            rule,
            "json = { \"/a\" = { present = false, is = 1 } }",
            "this can never hold: what isn't there has no value",
        ),
        (rule, "json = { \"/a\" = { in = [] } }", "this can never hold: nothing is in an empty list"),
        (
            rule,
            "json = { \"/a\" = { is = 1, is_not = 1 } }",
            "this can never hold: the tests of this value contradict",
        ),
        (
            rule,
            "json = { \"/a\" = { less = 1, greater = 2 } }",
            "this can never hold: no number is less than 1 and greater than 2",
        ),
        (rule, "json = { \"/a\" = {} }", "this tests nothing"),
        (rule, "json = { \"/a\" = { contains = \"\" } }", "every text contains an empty one"),
        (rule, "json = { \"/a\" = true, \"/a/b\" = 1 }", "there is nothing in `/a`"),
        (rule, "header = { x-n = 5 }", "a header is a text, so this never is `5`; hint: write \"5\""),
        (rule, "text = {}", "this holds of every body"),
        (rule, "text = { is = \"a\", contains = \"b\" }", "the tests of the body contradict"),
        (rule, "not = { status = 200 }", "this can never hold: what `not` rules out"),
        ("status = 200", "status = \"500-599\"", "count only where a single number names them"),
        ("status = 200", "status = 204", "has no body, so this can never hold"),
        (dead, rule, ""),
        (
            "status = [401, \"402-403\"]\njson = { \"/errors/0/extensions/code\" = \"AUTHENTICATION_ERROR\" }",
            "status = \"200-299\"",
            "would contradict another whenever it holds",
        ),
        (
            "[[validate.invalid]]",
            "[[validate.needs_human]]\nstatus = \"400-499\"\nmessage = \"x\"\n[[validate.invalid]]",
            "this rule is never reached: the rule in line 35 calls a human",
        ),
        (
            "[[validate.invalid]]",
            "[[validate.invalid]]\nstatus = \"400-499\"\nmessage = \"x\"\n[[validate.invalid]]",
            "this rule is never reached: the rule in line 35 is asked before",
        ),
        // Rotation.
        ("capture = { api_key = { header = \"x-token\" } }", "", "[rotate.another] brings nothing"),
        ("api_key = { header", "apikey = { header", "`apikey` is no key; did you mean `api_key`?"),
        ("api_key = { header = \"x-token\" }", "api_key = {}", "neither `json` nor `header`"),
        (
            "class = \"grace\"",
            "class = \"grace\"\nclass_setting = \"client_id\"",
            "`client_id` is no choice; hint:",
        ),
        (
            "class_source = \"https://linear.app/developers/oauth\"",
            "class_source = \"see above\"",
            "this is no link",
        ),
        (
            "[rotate.another]",
            "[retry]\nunit = \"s\"\n[rotate.another]",
            "[retry] counts nothing without `header`",
        ),
    ];
    for (from, to, expected) in cases {
        let said = said(from, to);
        match expected {
            "" => assert_eq!(said, "", "{to}"),
            "this would need" => assert_eq!(said, "", "the identity is positive enough"),
            expected => assert!(said.contains(expected), "{to}: {said}"),
        }
    }
}

#[test]
fn a_rule_that_an_empty_answer_fulfils_is_no_evidence_of_life() {
    let without_identity = LINEAR.replace("identity = \"/data/viewer/id\"\n", "");
    assert_eq!(faults(&without_identity), "");
    for bare in ["", "json = { \"/error\" = { present = false } }", "not = { json = { \"/a\" = 1 } }"] {
        let text = without_identity.replace("json = { \"/data/viewer/id\" = { present = true } }", bare);
        let said = faults(&text);
        assert!(said.contains("this would call an empty answer valid"), "{bare}: {said}");
    }
}

#[test]
fn several_faults_are_told_in_the_order_of_the_file() {
    let text = LINEAR
        .replace("\"1.0.0\"", "\"1\"")
        .replace("\"/data/viewer/id\"\n", "\"id\"\n")
        .replace("{api_key}", "{key}");
    let said = faults(&text.replace("\"/refresh_token\"", "\"refresh_token\""));
    let places: Vec<_> = said.split("line ").skip(1).filter_map(|part| part.split(',').next()).collect();
    assert_eq!(places, ["4", "26", "28"], "{said}");
    assert!(said.ends_with("; and 1 more"), "{said}");
}

/// Runs `act` with the whole template in the room.
fn with<T>(act: impl FnOnce() -> T) -> T {
    slot::with(LINEAR, act)
}

fn account() -> Case<TemplateProvider> {
    Case::new().setting("client_id", "desk").key("api_key").key("refresh_token")
}

fn ask() -> Request {
    post("https://api.linear.app/graphql")
        .header("authorization", "{api_key}")
        .header("content-type", "application/json")
        .body(r#"{"query":"{ viewer { id } }"}"#)
}

fn refresh() -> Request {
    post("https://api.linear.app/oauth/token")
        .header("authorization", "Basic {desk:{refresh_token}|base64}")
        .header("content-type", "application/x-www-form-urlencoded")
        .body("grant_type=refresh_token&refresh_token={refresh_token|form}")
}

const ALIVE: &str = r#"{"data":{"viewer":{"id":"u-1","ends":"2026-02-01T00:00:00Z"}}}"#;
const DEAD: &str = r#"{"errors":[{"extensions":{"code":"AUTHENTICATION_ERROR"}}]}"#;

#[test]
fn the_manifest_says_what_the_template_says() {
    let manifest = with(TemplateProvider::describe);
    assert_eq!(manifest.service, "linear");
    assert_eq!(manifest.validate_url, "{base_url}/graphql");
    assert_eq!(manifest.origins, ["{base_url.origin}"]);
    assert_eq!((manifest.validate_interval, manifest.max_age), (3_600, Some(2_592_000)));
    let methods: Vec<_> =
        manifest.methods.iter().map(|method| (method.name.as_str(), method.commit_class)).collect();
    assert_eq!(methods, [("refresh", CommitClass::BurnOnIssue), ("another", CommitClass::Grace)]);
    assert!(
        manifest
            .extras
            .contains(&("class-source:refresh".into(), "https://linear.app/developers/oauth".into()))
    );
}

#[test]
fn a_wrong_template_describes_itself_as_refused() {
    let refusal = |text: &str| {
        let manifest = slot::with(text, TemplateProvider::describe);
        manifest.extras.into_iter().find(|(name, _)| name == "refused").map(|(_, why)| why)
    };
    assert_eq!(refusal(LINEAR), None);
    let why = refusal(&LINEAR.replace("[validate]", "[validat]")).unwrap();
    assert!(why.contains("line 22, column 2: unknown field `validat`; did you mean `validate`?"), "{why}");
    let none = TemplateProvider::describe().extras;
    assert!(none[0].1.contains("runs template providers and is none itself"), "{none:?}");
}

fn verdict(of: keywheel_sdk::testing::Answer) -> Verdict {
    with(|| account().expect(ask(), of).validate().verdict())
}

#[test]
fn a_live_account_is_valid_until_the_service_says_and_names_itself() {
    let Verdict::Valid(evidence) = verdict(answer(200).json(ALIVE)) else { panic!("valid") };
    assert_eq!(evidence.identity.as_deref(), Some("u-1"));
    assert_eq!(evidence.expires, keywheel_sdk::date::parse("2026-02-01T00:00:00Z"));
}

#[test]
fn a_dead_account_is_invalid_in_the_templates_words() {
    let Verdict::Invalid(reason) = verdict(answer(401).json(DEAD)) else { panic!("invalid") };
    assert_eq!(reason.message, "Linear no longer knows this key: make a new one");
}

#[test]
fn what_no_rule_speaks_of_teaches_nothing() {
    let answers = [
        answer(200),
        answer(200).json("{}"),
        answer(200).json(&ALIVE[..ALIVE.len() / 2]),
        answer(200).json(r#"{"data":{"viewer":{"id":null}}}"#),
        answer(200).json(r#"{"data":{"viewer":{"id":""}}}"#),
        answer(200).html(ALIVE),
        answer(200).html("<h1>Back soon</h1>"),
        answer(401).html("<h1>Proxy</h1>"),
        answer(401).json("{}"),
        answer(401).json(&DEAD[..DEAD.len() / 2]),
        answer(429).json(ALIVE),
        answer(503).json(DEAD),
        answer(200).json(ALIVE).header("cf-mitigated", "challenge"),
        answer(302).header("location", "/login"),
        fails(SendError::Timeout),
        fails(SendError::Connect("refused".into())),
    ];
    for answer in answers {
        let verdict = verdict(answer.clone());
        assert!(matches!(verdict, Verdict::Unknown(_)), "{answer:?} made {verdict:?}");
    }
}

#[test]
fn a_dead_token_that_had_expired_says_nothing_of_what_refreshes_it() {
    let case =
        || Case::<TemplateProvider>::new().setting("client_id", "desk").key("refresh_token").key("api_key");
    let verdict = with(|| case().expires(NOW - 1).expect(ask(), answer(401).json(DEAD)).validate().verdict());
    assert!(
        matches!(&verdict, Verdict::Unknown(why) if why.message.contains("api_key has expired")),
        "{verdict:?}"
    );
    let verdict = with(|| {
        Case::<TemplateProvider>::new().setting("client_id", "desk").key("refresh_token").validate().verdict()
    });
    assert!(
        matches!(&verdict, Verdict::Unknown(why) if why.message.contains("no api_key yet") && why.extras.contains(&("next".into(), "rotate".into()))),
        "{verdict:?}"
    );
}

fn rotated(of: keywheel_sdk::testing::Answer) -> Run<Outcome> {
    with(|| account().expect(refresh(), of).rotate("refresh"))
}

#[test]
fn a_rotation_counts_where_a_new_secret_came() {
    let issued = r#"{"access_token":"fresh","expires_in":3600,"refresh_token":"next"}"#;
    let run = rotated(answer(200).json(issued));
    assert_eq!((run.captured("api_key"), run.captured("refresh_token")), (Some("fresh"), Some("next")));
    assert_eq!(run.outcome(), Outcome::Rotated(Evidence::new().expires(NOW + 3_600_000)));

    let same = rotated(answer(200).json(r#"{"access_token":"old-api_key"}"#)).outcome();
    assert!(matches!(same, Outcome::Unchanged(_)), "{same:?}");
    let dead = rotated(answer(400).json(r#"{"error":"invalid_grant"}"#)).outcome();
    assert!(matches!(dead, Outcome::Invalid(_)), "{dead:?}");
    for silent in [
        answer(200),
        answer(200).json("{}"),
        answer(200).html(issued),
        answer(200).json(&issued[..issued.len() / 2]),
        answer(400).json("{}"),
        answer(403).html("<h1>Blocked</h1>"),
        answer(500),
        fails(SendError::Timeout),
    ] {
        let outcome = rotated(silent.clone()).outcome();
        assert!(matches!(outcome, Outcome::Unknown(_)), "{silent:?} made {outcome:?}");
    }
}

#[test]
fn a_rotation_without_its_secret_needs_a_human_and_asks_nobody() {
    let run = with(|| {
        Case::<TemplateProvider>::new().setting("client_id", "desk").key("api_key").rotate("refresh")
    });
    assert!(matches!(run.outcome(), Outcome::NeedsHuman(why) if why.message.contains("refresh_token")));
}

pub const SESSION: &str = r#"
service = "forum"
title = "A forum"
version = "1.0.0"
source = "https://forum.example/docs"
idle_limit = "14d"

[settings.base_url]
kind = "url"
required = true
[settings.path]
default = "/me"
[settings.tag]

[keys.session]
cookie = { name = "sid", domain = "{base_url.host}" }
[keys.csrf]
optional = true

[validate]
url = "{base_url}{path|raw}/{tag}"
cookies = true
headers = { x-csrf = "{csrf}", x-tag = "{tag}" }
query = { v = "a b", tag = "{tag}" }

[[validate.valid]]
status = "200-299"
text = { contains = "Sign out" }
not = { text = { contains = "Sign in" } }

[[validate.invalid]]
status = 302
header = { location = { contains = "/login" } }
message = "the forum sends to the login page"

[[validate.invalid]]
status = 503
json = { "/code" = 7 }
message = "closed"
detail = "/why"

[retry]
header = "x-reset"
from = "epoch"
status = [403, 429]
at_least = "1m"
"#;

#[test]
fn a_session_is_judged_by_text_redirect_and_status_and_what_is_lacking_is_left_out() {
    let text = SESSION.replace("{base_url}{path|raw}/{tag}", "{base_url}/u/{path}");
    assert_eq!(faults(&text), "");
    let run = |of| {
        slot::with(&text, || {
            Case::<TemplateProvider>::new()
                .setting("base_url", "https://forum.example/sub/")
                .setting("path", "a/../b")
                .key("session")
                .expect(get("https://forum.example/sub/u/a%2F..%2Fb?v=a%20b").cookies(), of)
                .validate()
                .verdict()
        })
    };
    let valid = run(answer(200).html("<p>Hello, ann. Sign out</p>"));
    assert!(matches!(valid, Verdict::Valid(_)), "{valid:?}");
    let dead = run(answer(302).header("location", "/login?next=/me").html(""));
    assert!(matches!(dead, Verdict::Invalid(_)), "{dead:?}");
    let named = run(answer(503).json(r#"{"code":7,"why":"moved away"}"#));
    assert!(matches!(&named, Verdict::Invalid(why) if why.message == "closed (moved away)"), "{named:?}");
    for silent in [
        answer(200).html("<p>Sign in. Sign out</p>"),
        answer(200).html("<p>Welcome</p>"),
        answer(302).header("location", "/home"),
        answer(503).json("{}"),
        answer(503).html("/code 7"),
        answer(503).json(r#"{"code":7}"#).header("cf-mitigated", "challenge"),
    ] {
        let verdict = run(silent.clone());
        assert!(matches!(verdict, Verdict::Unknown(_)), "{silent:?} made {verdict:?}");
    }
    let wait = |of| match run(of) {
        Verdict::Unknown(reason) => reason.retry_after,
        other => panic!("{other:?}"),
    };
    let reset = (NOW / 1_000 + 90).to_string();
    assert_eq!(wait(answer(403).header("x-reset", &reset)), Some(90));
    assert_eq!(wait(answer(429).header("retry-after", "300").header("x-reset", &reset)), Some(300));
    assert_eq!(wait(answer(403)), Some(60));
    assert_eq!(wait(answer(404).header("x-reset", &reset)), None);
}

#[test]
fn a_setting_that_may_be_empty_cant_be_part_of_a_url() {
    let said = faults(SESSION);
    assert!(said.contains("could become another host"), "{said}");
    assert!(said.contains("the URL needs `tag`, which may be empty"), "{said}");
}

#[test]
fn a_key_in_a_url_is_encoded_and_the_manifest_stops_before_it() {
    let text = r#"
service = "bots"
title = "Bots"
version = "1.0.0"
source = "https://bots.example/docs"
[keys.token]
[validate]
url = "https://api.bots.example/bot{token}/me"
[[validate.valid]]
json = { "/ok" = true, "/result/is_bot" = true }
[[validate.invalid]]
status = 401
message = "no such bot"
"#;
    assert_eq!(faults(text), "");
    slot::with(text, || {
        assert_eq!(TemplateProvider::describe().validate_url, "https://api.bots.example/");
        let run = Case::<TemplateProvider>::new()
            .key("token")
            .expect(
                get("https://api.bots.example/bot{token|percent}/me"),
                answer(200).json(r#"{"ok":true,"result":{"is_bot":true}}"#),
            )
            .validate();
        assert!(matches!(run.verdict(), Verdict::Valid(_)));
    });
}

/// The whole template of the page for authors.
pub fn example() -> String {
    let page = include_str!("../../../docs/writing-a-template.md");
    page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block of TOML").into()
}

#[test]
fn the_example_of_the_page_for_authors_validates_and_rotates() {
    let text = example();
    assert_eq!(faults(&text), "");
    let case = || Case::<TemplateProvider>::new().setting("client_id", "desk").key("refresh_token");
    let me = || get("https://forum.example/api/me").header("authorization", "Bearer {access_token}");
    let verdict = |of| slot::with(&text, || case().key("access_token").expect(me(), of).validate().verdict());
    let alive = verdict(answer(200).json(r#"{"user":{"id":7,"active":true}}"#));
    assert_eq!(alive, Verdict::Valid(Evidence::new().identity(String::from("7"))));
    let dead = verdict(answer(401).json(r#"{"error":"invalid_token"}"#));
    assert!(matches!(dead, Verdict::Invalid(_)), "{dead:?}");
    let waits = verdict(answer(403).json(r#"{"error":"mfa_required"}"#));
    assert!(matches!(waits, Verdict::NeedsHuman(_)), "{waits:?}");
    let wall = verdict(answer(403).html("<h1>Blocked</h1>"));
    assert!(matches!(wall, Verdict::Unknown(_)), "{wall:?}");

    let token = post("https://forum.example/oauth/token")
        .body("grant_type=refresh_token&client_id=desk&refresh_token={refresh_token|form}");
    let issued = answer(200).json(r#"{"access_token":"a","expires_in":60,"refresh_token":"b"}"#);
    let run = slot::with(&text, || case().expect(token, issued).rotate("refresh"));
    assert_eq!(run.outcome(), Outcome::Rotated(Evidence::new().expires(NOW + 60_000)));
}
