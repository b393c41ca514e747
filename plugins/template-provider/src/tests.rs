//! Templates as their authors write them, and what is said of each mistake.

use crate::fault::{self, told};
use crate::place::At;
use crate::template::{Class, Source, Template};

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

/// What is said where `from` is replaced in the whole template.
fn said(from: &str, to: &str) -> String {
    assert!(LINEAR.contains(from), "the template has no {from}");
    let text = LINEAR.replacen(from, to, 1);
    told(&text, &[fault::read(&text).unwrap_err()])
}

#[test]
fn what_is_no_template_is_told_with_its_place_and_a_suggestion() {
    let cases = [
        ("[validate]\n", "[validat]\n", "column 2: unknown field `validat`; did you mean `validate`?"),
        ("every =", "evry =", "column 1: unknown field `evry`; did you mean `every`?"),
        ("optional = true", "optional = 1", "column 12: invalid type: integer `1`, expected a boolean"),
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
