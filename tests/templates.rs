//! Template providers, end to end: a TOML file in the plugin folder of the real daemon, against
//! servers that nobody here wrote. What a template may say and what is wrong with one is tested
//! beside the interpreter.

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::time::{Duration, Instant};

use minisign::KeyPair;
use serde_json::Value;

use crate::harness::*;
use crate::plugins::{in_folder, listed_as, patched, text};

/// For the session of the harness's own service.
const SITE: &str = r#"
service = "site"
title = "A site"
version = "1.0.0"
source = "https://site.example/docs"

[settings.base_url]
kind = "url"
required = true

[keys.session]
cookie = { name = "session", domain = "{base_url.host}" }

[validate]
url = "{base_url}/check"
cookies = true
[[validate.valid]]
status = 200
json = { "/asked_with" = { contains = "session=" } }
[[validate.invalid]]
status = 401
message = "signed out: sign in again and import the new session"

[rotate.renew]
class = "grace"
class_source = "https://site.example/docs#renew"
method = "POST"
url = "{base_url}/rotate"
cookies = true
[[rotate.renew.invalid]]
status = 401
message = "signed out"
"#;

/// For what compiles the interpreter, a second of processor time, on a busy machine.
const LONG: Duration = Duration::from_secs(120);

#[track_caller]
fn wait_for(home: &TestHome, file: &str, state: &str) -> Value {
    wait_until(LONG, &format!("{file} is {state}"), || {
        home.plugin(file).filter(|plugin| plugin["state"] == state)
    })
}

/// Writes a template as an editor does: whole, by a rename.
fn put(home: &TestHome, name: &str, text: &str) {
    let next = in_folder(home, ".next");
    fs::write(&next, text).and_then(|()| fs::rename(&next, in_folder(home, name))).expect("a file");
}

fn add(home: &TestHome, service: &Service) -> String {
    let session = service.issue();
    let base_url = format!("base_url={}", service.url);
    home.add("ann", "site", &format!("session={session}"), &["--set", &base_url]);
    session
}

#[test]
fn a_template_dropped_into_the_folder_is_served_and_a_typo_is_told_while_the_old_version_goes_on() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    put(&home, "site.toml", SITE);
    let active = wait_for(&home, "site.toml", "active");
    assert_eq!((&active["service"], &active["version"]), (&"site".into(), &"1.0.0".into()));
    let session = add(&home, &service);
    let reports = home.wait_for_reports("ann", 1);
    assert_eq!(reports[0]["status"], "success", "{reports:?}");
    let report = home.json(&["credential", "rotate", "ann"]);
    assert_eq!(
        (&report["status"], &report["meta"]["rotated"]),
        (&"success".into(), &true.into()),
        "{report}"
    );
    assert_eq!(service.issued().len(), 2);

    put(&home, "site.toml", &SITE.replace("[validate]", "[validat]"));
    let refused = wait_for(&home, "site.toml", "refused");
    let why = text(&refused, "reason");
    assert!(why.contains("line 14, column 2: unknown field `validat`; did you mean `validate`?"), "{why}");
    assert!(why.contains("`site` goes on with its approved version 1.0.0"), "{why}");
    assert!(home.run(&["plugin", "list"]).ok().stdout.contains("did you mean `validate`?"));
    assert_eq!(home.json(&["credential", "validate", "ann"])["status"], "success");

    put(&home, "site.toml", &SITE.replace("1.0.0", "1.1.0"));
    wait_until(LONG, "the mended version serves", || {
        home.plugin("site.toml").filter(|plugin| plugin["state"] == "active" && plugin["version"] == "1.1.0")
    });
    for session in service.issued() {
        service.forget(&session);
    }
    let dead = home.run(&["credential", "validate", "ann", "--json"]);
    let report: Value = serde_json::from_str(&dead.stdout).expect("a report");
    assert_eq!(report["status"], "validation_failed", "{report}");
    assert!(text(&report, "message").contains("signed out: sign in again and import"), "{report}");
    assert!(!home.printed().contains(&session), "the session was shown");
}

#[test]
fn a_template_that_is_none_is_refused_with_what_to_do() {
    let home = TestHome::new();
    let long = format!("{SITE}# {}", "x".repeat(64 << 10));
    let odd = [SITE.as_bytes(), b"# \xff"].concat();
    let long_bytes = format!("a template of {} bytes; at most 65536 are allowed", long.len());
    let cases: [(&str, &[u8], &str); 7] = [
        (
            "forum.toml",
            SITE.as_bytes(),
            "the template is for the service `site` and its file is named \"forum.toml\"; hint: rename it to site.toml",
        ),
        ("site.toml", long.as_bytes(), &long_bytes),
        ("site.toml", &odd, "not UTF-8 in line 33; hint: save the file as UTF-8"),
        ("site.toml", b" \n", "the template is empty"),
        ("site.toml", b"# nothing\n", "line 1, column 1: `service` is missing"),
        ("site.toml", b"service = site", "line 1, column 11: this is not TOML"),
        (
            "site.toml",
            &SITE.replace("required = true", "value = \"made-up-token\"").into_bytes(),
            "unknown field `value`",
        ),
    ];
    for (name, bytes, expected) in cases {
        fs::write(in_folder(&home, name), bytes).expect("a file");
        let checked = home.run(&["plugin", "check", in_folder(&home, name).to_str().expect("UTF-8")]);
        assert_eq!(checked.code(), 65, "{checked:?}");
        assert!(checked.stderr.contains(expected), "{checked:?}");
        assert!(!checked.stderr.contains("made-up-token"), "{checked:?}");
        fs::remove_file(in_folder(&home, name)).expect("a file");
    }
    home.drop_plugin(&plugin("template-provider"));
    let alone = wait_until(LONG, "the interpreter alone is refused", || {
        Some(listed_as(&home, "template-provider.wasm")).filter(|plugin| plugin["state"] == "refused")
    });
    assert!(text(&alone, "reason").contains("runs template providers and is none itself"), "{alone}");

    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    put(&home, "site.toml", SITE);
    let without = |arguments: &[&str]| {
        let mut command = home.command(arguments);
        command.env("KEYWHEEL_PROVIDERS", elsewhere.path());
        String::from_utf8(command.output().expect("the command ends").stderr).expect("UTF-8")
    };
    let said = without(&["plugin", "check", in_folder(&home, "site.toml").to_str().expect("UTF-8")]);
    assert!(
        said.contains("a template, and nothing to run it") && said.contains("KEYWHEEL_PROVIDERS"),
        "{said}"
    );
}

#[test]
fn check_install_and_remove_work_with_a_template_and_a_plugin_of_the_service_conflicts() {
    let home = TestHome::new();
    let file = home.outside().join("site.toml");
    fs::write(&file, SITE).expect("a file");
    let path = file.to_str().expect("UTF-8");
    let checked = home.run(&["plugin", "check", path]).ok().stdout;
    assert!(
        checked.contains("the address in setting \"base_url\"") && checked.contains("renew"),
        "{checked}"
    );
    home.run(&["plugin", "install", path]).ok();
    let installed = listed_as(&home, "site.toml");
    assert_eq!(installed["state"], "active", "{installed}");
    assert_eq!(fs::read(in_folder(&home, "site.toml")).expect("a file"), SITE.as_bytes());

    let code = patched(&guest("well_behaved"), "well-behaved", "w-ll-behaved");
    let template = SITE.replace("\"site\"", "\"w-ll-behaved\"");
    fs::write(in_folder(&home, "w-ll-behaved.wasm"), code).expect("a file");
    put(&home, "w-ll-behaved.toml", &template);
    let states =
        || ["w-ll-behaved.toml", "w-ll-behaved.wasm"].map(|file| listed_as(&home, file)["state"].clone());
    wait_until(LONG, "one of the two serves", || (states() == ["active", "conflict"]).then_some(()));
    let code = in_folder(&home, "w-ll-behaved.wasm");
    let other_kind = home.run(&["plugin", "install", code.to_str().expect("UTF-8")]);
    assert!(
        other_kind.stderr.contains("is served by w-ll-behaved.toml, which is of the other kind"),
        "{other_kind:?}"
    );

    home.run(&["plugin", "remove", "site"]).ok();
    assert!(!in_folder(&home, "site.toml").exists());
}

/// A folder of providers whose interpreter a test may replace, as an upgrade of Keywheel does.
fn put_interpreter(folder: &Path, bytes: &[u8]) {
    let next = folder.join(".next");
    fs::write(&next, bytes)
        .and_then(|()| fs::rename(&next, folder.join("template-provider.wasm")))
        .expect("a file");
}

#[test]
fn an_upgrade_swaps_the_interpreter_in_by_itself_where_a_signature_is_pinned_too() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let ann = KeyPair::generate_unencrypted_keypair().expect("the system has random bytes");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let interpreter = plugin("template-provider");
    put_interpreter(folder.path(), &fs::read(&interpreter).expect("the interpreter"));
    let environment = [("KEYWHEEL_PROVIDERS", folder.path().to_str().expect("UTF-8"))];

    home.json(&["plugin", "trust", &ann.pk.to_base64(), "--name", "ann"]);
    fs::write(home.path().join("config.toml"), "plugin_policy = \"signed-only\"\n").expect("a file");
    let signed = minisign::sign(None, &ann.sk, Cursor::new(SITE.as_bytes()), Some("by a test"), None);
    put(&home, "site.toml.minisig", &signed.expect("it can be signed").into_string());
    put(&home, "site.toml", SITE);

    let daemon = home.serve_in(&environment);
    let first = wait_for(&home, "site.toml", "active");
    add(&home, &service);
    home.wait_for_reports("ann", 1);
    assert!(daemon.stop().success());

    // Keywheel is upgraded while it doesn't run, and the signature stays beside the template.
    put_interpreter(
        folder.path(),
        &patched(&interpreter, "runs template providers", "runs TEMPLATE providers"),
    );
    let daemon = home.serve_in(&environment);
    let second = wait_for(&home, "site.toml", "active");
    assert_ne!(first["digest"], second["digest"]);
    assert_eq!(second["inUse"]["signature"]["keyId"], first["inUse"]["signature"]["keyId"], "{second}");
    assert_eq!(second["inUse"]["pinned"], true, "{second}");
    let report = home.json(&["credential", "validate", "ann"]);
    assert_eq!((&report["status"], &report["meta"]["plugin"]), (&"success".into(), &second["digest"]));

    // And while it runs, where the signature was taken away meanwhile: the text is the same.
    fs::remove_file(in_folder(&home, "site.toml.minisig")).expect("a file");
    put_interpreter(
        folder.path(),
        &patched(&interpreter, "runs template providers", "runs template PROVIDERS"),
    );
    let third = wait_until(LONG, "the newest interpreter serves", || {
        // Looks at the folder, as a timer does as well.
        home.run(&["plugin", "list"]).ok();
        home.plugin("site.toml")
            .filter(|plugin| plugin["state"] == "active" && plugin["digest"] != second["digest"])
    });
    assert_eq!(third["inUse"]["signature"]["keyId"], first["inUse"]["signature"]["keyId"], "{third}");
    let report = home.json(&["credential", "validate", "ann"]);
    assert_eq!((&report["status"], &report["meta"]["plugin"]), (&"success".into(), &third["digest"]));
    assert!(daemon.stop().success());

    // One letter more is another text, which nobody signed.
    put(&home, "site.toml", &format!("{SITE}#"));
    let _daemon = home.serve_in(&environment);
    let refused = wait_for(&home, "site.toml", "refused");
    assert!(
        text(&refused, "reason").contains("unsigned, and `plugin_policy` is \"signed-only\""),
        "{refused}"
    );
}

/// For the OpenID provider of the tests. Where it is is the operator's word.
const OIDC: &str = r#"
service = "openid"
title = "An OpenID provider"
version = "1.0.0"
source = "https://openid.net/specs/openid-connect-core-1_0.html"

[settings.token_url]
kind = "url"
required = true
[settings.userinfo_url]
kind = "url"
required = true
[settings.client_id]
required = true

[keys.refresh_token]
[keys.client_secret]
[keys.access_token]
optional = true

[validate]
url = "{userinfo_url}"
headers = { authorization = "Bearer {access_token}" }
identity = "/sub"
[[validate.valid]]
status = 200
[[validate.invalid]]
status = 401
message = "the access token is dead"

[rotate.refresh]
class = "burn-on-issue"
class_source = "https://www.rfc-editor.org/rfc/rfc6749#section-6"
method = "POST"
url = "{token_url}"
headers = { authorization = "Basic {{client_id|form}:{client_secret|form}|base64}" }
form = { grant_type = "refresh_token", refresh_token = "{refresh_token}" }
[rotate.refresh.capture]
access_token = { json = "/access_token", expires_in = "/expires_in" }
refresh_token = { json = "/refresh_token" }
[[rotate.refresh.invalid]]
status = 400
json = { "/error" = "invalid_grant" }
message = "the refresh token is revoked or already used: sign in again"
detail = "/error_description"
"#;

#[test]
fn a_template_rotates_the_refresh_token_of_a_real_openid_provider_again_and_again_without_reuse() {
    let (home, site) = (TestHome::new(), Peer::oidc(5));
    let client_id = "peer-client-secret-basic";
    let tokens = http("POST", &site.url(&format!("/test/issue?client={client_id}&account=ann")), &[]).json();
    let clients = site.ready["clients"].as_array().expect("an array");
    let client = clients.iter().find(|client| client["client_id"] == client_id).expect("the client");
    let _daemon = home.serve();
    put(&home, "openid.toml", OIDC);
    wait_for(&home, "openid.toml", "active");
    let keys = format!(
        "refresh_token={}\nclient_secret={}\n",
        text(&tokens, "refresh_token"),
        text(client, "client_secret")
    );
    let settings = [
        format!("token_url={}", text(&site.ready, "token_url")),
        format!("userinfo_url={}", text(&site.ready, "userinfo_url")),
        format!("client_id={client_id}"),
    ];
    let mut arguments = vec!["--every", "1s", "--rotate-every", "1s"];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting.as_str()]));
    home.add("ann", "openid", &keys, &arguments);
    let events = || http("GET", &site.url("/test/events"), &[]).json();
    wait_until(SOON, "six rotations are done", || {
        events()["refresh_exchanges"].as_u64().filter(|&exchanges| exchanges >= 6)
    });
    let seen = events();
    for trouble in ["reuse_detected", "grants_revoked", "refresh_errors", "server_errors"] {
        assert_eq!(seen[trouble], 0, "{trouble} in {seen}");
    }
    // The first look finds no access token yet, which is no fault; from then on all is well.
    let reports = home.reports("ann");
    assert_eq!(reports[0]["status"], "unreachable", "{}", reports[0]);
    assert!(reports[1..].iter().all(|report| report["status"] == "success"), "{reports:?}");
    assert!(reports[1..].iter().filter(|report| report["meta"]["rotated"] == true).count() >= 5);
    let shown = home.json(&["credential", "show", "ann"]);
    assert_eq!(shown["credential"]["identity"], "ann", "{shown}");
}

const DJANGO: &str = r#"
service = "django"
title = "A Django site"
version = "1.0.0"
source = "https://docs.djangoproject.com/en/stable/topics/http/sessions/"

[settings.base_url]
kind = "url"
required = true

[keys.session]
cookie = { name = "sessionid", domain = "{base_url.host}" }

[validate]
url = "{base_url}/account/"
cookies = true
identity = "/user"
expires = { json = "/session_expires_in", unit = "s", from = "now" }
[[validate.valid]]
status = 200
[[validate.invalid]]
status = 302
header = { location = { contains = "/login/" } }
message = "the site sends to its login page: sign in and import the session"

[rotate.cycle]
class = "burn-on-issue"
class_source = "https://docs.djangoproject.com/en/stable/topics/http/sessions/#django.contrib.sessions.backends.base.SessionBase.cycle_key"
method = "POST"
url = "{base_url}/refresh/"
cookies = true
[[rotate.cycle.rotated]]
status = 200
json = { "/user" = { present = true } }
[[rotate.cycle.invalid]]
status = 302
header = { location = { contains = "/login/" } }
message = "the site sends to its login page: sign in and import the session"
"#;

#[test]
fn a_template_keeps_a_django_session_past_its_own_end_and_says_when_it_is_signed_out() {
    // Rotated each second, so that a busy machine may be five seconds late.
    const AGE: u32 = 6;
    let (home, site) = (TestHome::new(), Peer::django(AGE));
    let _daemon = home.serve();
    put(&home, "django.toml", DJANGO);
    wait_for(&home, "django.toml", "active");
    let issued = http("POST", &site.url("/test/issue/?user=ann"), &[]).json();
    let started = Instant::now();
    let keys = format!("session={}", text(&issued["cookie"], "value"));
    let base_url = format!("base_url={}", site.url(""));
    home.add("ann", "django", &keys, &["--every", "1s", "--rotate-every", "1s", "--set", &base_url]);
    wait_until(SOON, "the session has lived twice its age", || {
        (started.elapsed() > Duration::from_secs(2 * u64::from(AGE))).then_some(())
    });
    let stats = http("GET", &site.url("/stats/"), &[]).json();
    assert_eq!((&stats["dead_session_requests"], &stats["logins"]), (&0.into(), &0.into()), "{stats}");
    assert!(stats["cycles"].as_u64().is_some_and(|cycles| cycles >= 5), "{stats}");
    let reports = home.reports("ann");
    assert!(reports.iter().all(|report| report["status"] == "success"), "{reports:?}");
    assert_eq!(home.json(&["credential", "show", "ann"])["credential"]["identity"], "ann");

    http("POST", &site.url("/test/end/?user=ann"), &[]);
    let dead = wait_until(SOON, "a report says that the session is dead", || {
        home.reports("ann").into_iter().find(|report| report["status"] == "validation_failed")
    });
    assert!(text(&dead, "message").contains("the site sends to its login page"), "{dead}");
}

/// The first block of a page in this language.
fn block(page: &str, language: &str) -> String {
    let text = fs::read_to_string(source(page)).expect("a page of the docs");
    let start = text.find(&format!("```{language}\n")).expect("a block") + language.len() + 4;
    text[start..].split("```").next().expect("its end").to_owned()
}

#[test]
fn the_example_of_the_docs_is_a_template_that_keywheel_takes() {
    let home = TestHome::new();
    put(&home, "forum.toml", &block("docs/writing-a-template.md", "toml"));
    let active = listed_as(&home, "forum.toml");
    assert_eq!((&active["state"], &active["reason"]), (&"active".into(), &Value::Null), "{active}");
}
