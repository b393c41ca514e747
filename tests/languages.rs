//! Providers in JavaScript and Python: the same contract, sandbox and reports as any other. The
//! kit has them among all providers that come along (`tests/conformance.rs`); here they keep
//! credentials of services alive that are played by their documentation, guests go wrong as such
//! programs do, and the layers' own tests run. `make langs` builds what is needed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use axum::Json;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::harness::*;
use crate::services::fake::{Asked, Fake, Loss, Rules};

/// Compiling an engine takes ten seconds of processor time, and other tests run beside.
const PATIENCE: Duration = Duration::from_secs(300);

fn needed(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing; hint: `make langs` builds it", path.display());
    path
}

fn faulty(name: &str) -> PathBuf {
    let langs = providers().parent().expect("a target folder").join("langs");
    needed(langs.join(format!("guests/{name}.wasm")))
}

fn wait_active(home: &TestHome, file: &str) {
    wait_until(PATIENCE, &format!("{file} is active"), || {
        let plugin = home.plugin(file)?;
        assert_ne!(plugin["state"], "refused", "{plugin}");
        (plugin["state"] == "active").then_some(())
    });
}

/// The user and password of `Authorization: Basic`.
fn login(asked: &Asked) -> Option<(String, String)> {
    let encoded = asked.header(header::AUTHORIZATION).strip_prefix("Basic ")?;
    let plain = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = plain.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// The value of the one key as a person exports it.
fn exported(home: &TestHome, credential: &str) -> String {
    let exported = home.run(&["credential", "export", credential, "--format", "env"]).ok().stdout;
    let line = exported.lines().find(|line| line.contains("APP_PASSWORD=")).expect("the key");
    line.split_once('=').expect("NAME=VALUE").1.trim_matches(['\'', '"']).to_owned()
}

/// A Nextcloud account with one app password. A rotation replaces it in place
/// (<https://github.com/nextcloud/server/blob/master/core/Controller/AppPasswordController.php>);
/// OCS says 997 with 401 to whoever it doesn't know (`ocs/v1.php` there), and wants its header.
struct Nextcloud {
    password: String,
}

impl Nextcloud {
    fn ocs(status: StatusCode, code: u16, data: &Value) -> Response {
        let word = if status.is_success() { "ok" } else { "failure" };
        let meta = json!({ "status": word, "statuscode": code, "message": "" });
        (status, Json(json!({ "ocs": { "meta": meta, "data": data } }))).into_response()
    }
}

impl Rules for Nextcloud {
    fn answer(&mut self, asked: &Asked, _now: u64) -> Response {
        if asked.header("ocs-apirequest") != "true" || asked.parameter("format") != "json" {
            return StatusCode::PRECONDITION_FAILED.into_response();
        }
        if login(asked) != Some(("ann".to_owned(), self.password.clone())) {
            return Self::ocs(StatusCode::UNAUTHORIZED, 997, &json!([]));
        }
        match (asked.method.as_str(), asked.path.as_str()) {
            ("GET", "/ocs/v2.php/cloud/user") => Self::ocs(StatusCode::OK, 200, &json!({ "id": "ann" })),
            ("POST", "/ocs/v2.php/core/apppassword/rotate") => {
                self.password = random_secret();
                Self::ocs(StatusCode::OK, 200, &json!({ "apppassword": self.password }))
            }
            _ => Self::ocs(StatusCode::NOT_FOUND, 998, &json!([])),
        }
    }
}

/// A WordPress account's application passwords, by uuid: name and value, which is told once
/// (<https://developer.wordpress.org/rest-api/reference/application-passwords/>). Spaces in a
/// password are for people.
struct WordPress {
    passwords: BTreeMap<String, (String, String)>,
    issued: usize,
}

impl WordPress {
    fn refused(status: StatusCode, code: &str) -> Response {
        (status, Json(json!({ "code": code, "message": "", "data": { "status": status.as_u16() } })))
            .into_response()
    }
}

impl Rules for WordPress {
    fn answer(&mut self, asked: &Asked, _now: u64) -> Response {
        let Some((user, password)) = login(asked) else {
            return Self::refused(StatusCode::UNAUTHORIZED, "rest_not_logged_in");
        };
        if user != "ann" {
            return Self::refused(StatusCode::UNAUTHORIZED, "invalid_username");
        }
        let plain = password.replace(' ', "");
        let Some(own) = self.passwords.iter().find(|(_, (_, value))| value.replace(' ', "") == plain) else {
            return Self::refused(StatusCode::UNAUTHORIZED, "incorrect_password");
        };
        let item = |uuid: &str, name: &str| json!({ "uuid": uuid, "app_id": "", "name": name });
        let me = "/wp-json/wp/v2/users/me";
        let Some(path) = asked.path.strip_prefix(me) else {
            return Self::refused(StatusCode::NOT_FOUND, "rest_no_route");
        };
        match (asked.method.as_str(), path) {
            ("GET", "") => Json(json!({ "id": 7, "slug": "ann" })).into_response(),
            ("GET", "/application-passwords/introspect") => Json(item(own.0, &own.1.0)).into_response(),
            ("GET", "/application-passwords") => {
                let all: Vec<_> = self.passwords.iter().map(|(uuid, (name, _))| item(uuid, name)).collect();
                Json(all).into_response()
            }
            ("POST", "/application-passwords") => {
                self.issued += 1;
                let (uuid, name) = (format!("uuid-{}", self.issued), asked.parameter("name"));
                let value = format!("{} {}", random_secret(), random_secret());
                self.passwords.insert(uuid.clone(), (name.clone(), value.clone()));
                let made = json!({ "uuid": uuid, "name": name, "password": value });
                (StatusCode::CREATED, Json(made)).into_response()
            }
            ("DELETE", path) => {
                match self.passwords.remove(path.trim_start_matches("/application-passwords/")) {
                    Some(_) => Json(json!({ "deleted": true })).into_response(),
                    None => Self::refused(StatusCode::NOT_FOUND, "rest_application_password_not_found"),
                }
            }
            _ => Self::refused(StatusCode::NOT_FOUND, "rest_no_route"),
        }
    }
}

#[test]
fn a_javascript_provider_keeps_an_app_password_alive_and_tells_its_death() {
    let home = TestHome::new();
    let daemon = home.serve();
    home.drop_plugin(&needed(plugin("nextcloud")));
    // A compiler is bounded by what it computes, not by what else the machine has to do.
    let bounded = wait_until(PATIENCE, "a compiler runs", || {
        let limits = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/limits")).ok();
        let bounded = |limits: String| {
            limits.lines().any(|line| line.starts_with("Max cpu time  ") && line.contains(" 60 "))
        };
        daemon.children().iter().filter_map(limits).any(bounded).then_some(true)
    });
    assert!(bounded);
    wait_active(&home, "nextcloud.wasm");

    let first = random_secret();
    let server = Fake::start(Nextcloud { password: first.clone() });
    let base_url = format!("base_url={}", server.url);
    home.add(
        "ann",
        "nextcloud",
        &format!("app_password={first}\n"),
        &["--set", &base_url, "--set", "user=ann"],
    );
    let report = &home.wait_for_reports("ann", 1)[0];
    assert_eq!(
        (&report["status"], &report["meta"]["verdict"]),
        (&json!("success"), &json!("valid")),
        "{report}"
    );
    for _ in 0..2 {
        let before = exported(&home, "ann");
        let report = home.json(&["credential", "rotate", "ann"]);
        assert_eq!(report["status"], "success", "{report}");
        let now = exported(&home, "ann");
        assert_ne!(now, before);
        assert_eq!(server.with(|server| server.password.clone()), now);
    }
    // The owner deletes it in the settings.
    server.with(|server| server.password = random_secret());
    let report = home.run(&["credential", "validate", "ann", "--json"]).json();
    assert_eq!(report["status"], "validation_failed", "{report}");
    let message = report["message"].as_str().expect("words");
    assert!(message.contains("knows no such app password"), "{message}");
}

#[test]
fn a_python_provider_replaces_a_password_and_sweeps_what_it_left_and_nothing_else() {
    let home = TestHome::new();
    let _daemon = home.serve();
    home.drop_plugin(&needed(plugin("wordpress")));
    wait_active(&home, "wordpress.wasm");
    let first = "made up by hand".to_owned();
    let by_hand = BTreeMap::from([("by-hand".to_owned(), ("Phone".to_owned(), first.clone()))]);
    let site = Fake::start(WordPress { passwords: by_hand, issued: 0 });
    let names =
        || site.with(|site| site.passwords.values().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    let base_url = format!("base_url={}", site.url);
    home.add(
        "ann",
        "wordpress",
        &format!("app_password={first}\n"),
        &["--set", &base_url, "--set", "user=ann"],
    );
    let report = &home.wait_for_reports("ann", 1)[0];
    assert_eq!(report["status"], "success", "{report}");

    home.json(&["credential", "rotate", "ann"]);
    assert_eq!(names(), ["Phone", "Keywheel ann"]);
    // What is made now nobody hears of; the class is additive, so the attempt may repeat.
    site.lose_next(Loss::OnTheWayBack, Method::POST, "/application-passwords");
    home.run(&["credential", "rotate", "ann", "--json"]);
    assert!(names().len() > 2, "{:?}", names());
    home.json(&["credential", "rotate", "ann", "--now"]);
    home.json(&["credential", "rotate", "ann", "--now"]);
    // The one in use, and the one before, which stays until the next rotation.
    assert_eq!(names(), ["Phone", "Keywheel ann", "Keywheel ann"]);
    let in_force = exported(&home, "ann");
    assert!(site.with(|site| site.passwords.values().any(|(_, value)| *value == in_force)));
    site.with(|site| site.passwords.clear());
    let report = home.run(&["credential", "validate", "ann", "--json"]).json();
    let message = report["message"].as_str().expect("words");
    assert!(message.contains("refuses the application password: incorrect_password"), "{message}");
}

#[test]
fn what_goes_wrong_in_another_language_is_the_plugins_fault_and_told_in_its_words() {
    let home = TestHome::new();
    let _daemon = home.serve();
    for name in ["faulty-js", "faulty-python"] {
        home.drop_plugin(&faulty(name));
    }
    for (name, ways) in [
        (
            "faulty-js",
            vec![
                ("throws", "the provider failed: validate threw TypeError: "),
                ("recurses", "the provider failed: validate threw InternalError: too much recursion"),
                ("async", "the provider failed: validate returned a promise, and it must not be async"),
                ("loops", "the plugin went over a limit: "),
                ("hoards", "the plugin "),
            ],
        ),
        (
            "faulty-python",
            vec![
                ("throws", "the provider failed: validate raised KeyError: 'nothing'"),
                ("recurses", "the provider failed: validate raised RecursionError: "),
                ("exits", "the provider failed: validate raised SystemExit: 0"),
                ("loops", "the plugin went over a limit: "),
                ("hoards", "the plugin "),
                ("asks-the-clock", "the plugin trapped: "),
            ],
        ),
    ] {
        wait_active(&home, &format!("{name}.wasm"));
        for (way, words) in ways {
            let id = format!("{name}-{way}");
            home.add(&id, name, "token=made-up-token\n", &["--set", &format!("way={way}")]);
            let report =
                wait_until(PATIENCE, &format!("{id} has a report"), || home.reports(&id).into_iter().next());
            let message = report["message"].as_str().expect("words");
            assert!(message.contains(words), "{id}: {message}");
            assert_eq!(
                (&report["status"], &report["meta"]["verdict"]),
                (&json!("failed"), &json!("unknown")),
                "{report}"
            );
        }
    }
}

#[test]
fn components_of_every_language_import_the_contract_alone() {
    let files = [plugin("nextcloud"), plugin("wordpress"), faulty("faulty-js"), faulty("faulty-python")];
    for file in files {
        let bytes = std::fs::read(needed(file.clone())).expect("the plugin");
        let imports = keywheel::worker::compile::inspect(&bytes).expect("a plugin");
        assert!(imports.len() >= 3, "{}: {imports:?}", file.display());
        for import in imports {
            assert!(import.starts_with("keywheel:provider/"), "{} imports {import}", file.display());
        }
    }
}

/// The layers against the cases of `tests/languages/sdk.json`, which the SDK for Rust has in
/// `plugin-sdk/tests/languages.rs`; the providers' own tests; those of a new project.
#[test]
fn the_layers_the_providers_and_a_new_project_pass_their_own_tests() {
    let python = ["-B", "-m", "unittest", "discover", "-s"];
    for (program, arguments, folder) in [
        ("node", vec!["--test"], "tests/languages/js"),
        ("node", vec!["--test"], "plugins/nextcloud/test"),
        ("node", vec!["--test"], "plugin-sdk/scaffold/js/test"),
        ("python3", python.to_vec(), "tests/languages/python"),
        ("python3", python.to_vec(), "plugins/wordpress/test"),
        ("python3", python.to_vec(), "plugin-sdk/scaffold/python/test"),
    ] {
        let folder = source(folder);
        let output = command(program).args(arguments).arg(&folder).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", folder.display());
        // A folder without tests passes as well.
        let ran = said.lines().any(|line| {
            line.starts_with("# pass ") && !line.ends_with(" 0")
                || line.starts_with("Ran ") && !line.starts_with("Ran 0")
        });
        assert!(ran, "{}: {said}", folder.display());
    }
}
