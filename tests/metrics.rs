//! What who watches the daemon sees: metrics that Prometheus takes, whose numbers are true and
//! whose names the dashboard and the rules use; and whether the host is alive and ready.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::faults::Foreign;
use crate::harness::*;
use crate::secrets::Wanted;

fn configure(home: &TestHome, more: &str) {
    let config = format!("[http]\nlisten = \"127.0.0.1:0\"\n{more}");
    std::fs::write(home.path().join("config.toml"), config).expect("the configuration");
}

fn url(home: &TestHome) -> String {
    format!("http://{}", home.json(&["status"])["http"]["listening"].as_str().expect("the port is open"))
}

/// The samples of a page: name with labels, and value.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').expect("a sample");
        (name.to_owned(), value.parse().unwrap_or_else(|error| panic!("{error} in {line:?}")))
    };
    lines.map(sample).collect()
}

fn scrape(url: &str) -> BTreeMap<String, f64> {
    let answer = http("GET", &format!("{url}/metrics"), &[]);
    assert_eq!(answer.status, 200, "{}", answer.body);
    samples(&answer.body)
}

/// Runs to its end with this input; its output and errors together.
fn check(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

/// Every name of a metric in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let is_ours = |word: &&str| word.starts_with("keywheel_") || word.starts_with("process_");
    words.filter(is_ours).map(str::to_owned).collect()
}

#[test]
fn a_scrape_is_true_and_prometheus_takes_it_with_the_dashboard_and_the_rules() {
    let home = TestHome::new();
    configure(&home, "");
    home.drop_plugin(&guest("well_behaved"));
    let daemon = home.serve();
    let service = Service::start(OldSession::Stays);
    let ann = home.add_session("ann-of-the-test", "well-behaved", &service, &["--every", "1h"]);
    home.add_session("bob-of-the-test", "well-behaved", &service, &["--every", "1h"]);
    home.run(&["credential", "pause", "bob-of-the-test"]).ok();
    home.wait_for_reports("ann-of-the-test", 1);
    home.run(&["credential", "rotate", "ann-of-the-test"]).ok();
    // One that dies: asked twice, then dead.
    let dead = home.add_session("dead-of-the-test", "well-behaved", &service, &["--every", "1h"]);
    home.wait_for_reports("dead-of-the-test", 1);
    service.forget(&dead);
    assert_eq!(home.run(&["credential", "validate", "dead-of-the-test"]).code(), 1);
    let url = url(&home);
    let token = home.run(&["worker-token", "create", "intranet", "--name", "w"]).ok().stdout;
    let lines = [format!("Authorization: Bearer {}", token.trim()), "Content-Type: application/json".into()];
    let lines = lines.each_ref().map(String::as_str);
    let hello = json!({ "pid": 1, "workerId": "w", "service": "intranet" }).to_string();
    assert_eq!(http_with("POST", &format!("{url}/v1/worker-announce"), &lines, &hello).status, 201);
    assert_eq!(http("GET", &format!("{url}/v1/credentials"), &[]).status, 401);

    let page = wait_until(SOON, "the count is a new one", || {
        let page = scrape(&url);
        (page.get("keywheel_credentials{service=\"well-behaved\",state=\"invalid\"}") == Some(&1.0))
            .then_some(page)
    });
    let of = |name: &str| *page.get(name).unwrap_or_else(|| panic!("no {name} in {page:#?}"));
    for (name, expected) in [
        ("keywheel_attempts_total{service=\"well-behaved\",action=\"rotate\",verdict=\"valid\"}", 1.0),
        (
            "keywheel_attempts_total{service=\"well-behaved\",action=\"validate\",verdict=\"needs-human\"}",
            0.0,
        ),
        ("keywheel_attempt_duration_seconds_count{service=\"well-behaved\",action=\"rotate\"}", 1.0),
        ("keywheel_rotations_total{service=\"well-behaved\"}", 1.0),
        ("keywheel_credentials{service=\"well-behaved\",state=\"needs-human\"}", 0.0),
        ("keywheel_credentials_failing{service=\"well-behaved\"}", 1.0),
        ("keywheel_consecutive_failures_max{service=\"well-behaved\"}", 1.0),
        ("keywheel_credentials_scheduled{service=\"well-behaved\"}", 2.0),
        ("keywheel_schedule_lag_seconds{service=\"well-behaved\"}", 0.0),
        ("keywheel_service_paused{service=\"well-behaved\"}", 0.0),
        ("keywheel_service_served{service=\"well-behaved\"}", 1.0),
        ("keywheel_worker_up{service=\"well-behaved\"}", 1.0),
        ("keywheel_worker_crashes_total{service=\"well-behaved\"}", 0.0),
        ("keywheel_plugins{state=\"active\"}", 1.0),
        ("keywheel_plugins{state=\"refused\"}", 0.0),
        ("keywheel_external_workers{service=\"intranet\",presence=\"heard\"}", 1.0),
        ("keywheel_db_write_failing", 0.0),
        ("keywheel_http_answers_total{route=\"/v1/credentials\",method=\"GET\",status=\"401\"}", 1.0),
        ("keywheel_http_refusals_total{code=\"unauthenticated\"}", 1.0),
        ("keywheel_build_info{version=\"0.1.0\"}", 1.0),
    ] {
        assert_eq!(of(name), expected, "{name}");
    }
    let requests = |outcome| {
        of(&format!("keywheel_egress_requests_total{{service=\"well-behaved\",outcome=\"{outcome}\"}}"))
    };
    assert_eq!(
        requests("2xx") + requests("4xx"),
        f64::from(service.count("/check") + service.count("/rotate"))
    );
    assert!(requests("4xx") >= 2.0, "a dead session is asked about twice");
    for (name, at_least) in [
        ("keywheel_worker_resident_memory_bytes{service=\"well-behaved\"}", 1e6),
        ("process_resident_memory_bytes", 1e6),
        ("process_open_fds", 5.0),
        ("keywheel_db_commits_total", 5.0),
        ("keywheel_db_size_bytes{part=\"main\"}", 4096.0),
    ] {
        assert!(of(name) >= at_least, "{name} is {}", of(name));
    }
    let started = of("process_start_time_seconds");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    assert!((now.as_secs_f64() - 600.0..=now.as_secs_f64() + 1.0).contains(&started), "{started}");

    // Prometheus' own checker reads it, and the names that are used are there.
    let body = http("GET", &format!("{url}/metrics"), &[]).body;
    assert_eq!(check(promtool().args(["check", "metrics"]), &body), "", "nothing to say of it");
    let folder = source("docs/metrics");
    let rules = check(promtool().current_dir(&folder).args(["check", "rules", "alerts.yml"]), "");
    assert!(rules.contains("rules found"), "{rules}");
    let tested = check(promtool().current_dir(&folder).args(["test", "rules", "alerts_test.yml"]), "");
    assert!(tested.contains("SUCCESS"), "{tested}");
    let known: BTreeSet<&str> = page.keys().map(|name| name.split('{').next().unwrap_or(name)).collect();
    let mut used = 0;
    for file in ["grafana-dashboard.json", "alerts.yml", "alerts_test.yml"] {
        let text = std::fs::read_to_string(folder.join(file)).expect(file);
        for name in names(&text) {
            used += 1;
            // These are there once a secret has an end, and once something ended badly.
            let is_later = name == "keywheel_earliest_expiry_timestamp_seconds";
            let described = body.contains(&format!("# TYPE {name} "));
            assert!(
                known.contains(name.as_str()) || is_later && described,
                "{file} uses {name}, which there isn't"
            );
        }
    }
    assert!(used > 30, "only {used} names");
    let dashboard = std::fs::read(folder.join("grafana-dashboard.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_slice(&dashboard).expect("JSON");
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 20));

    let open = curl(&url, &["--header", "Accept: application/openmetrics-text;version=1.0.0"]);
    assert!(
        open.1.ends_with("# EOF\n") && open.1.contains("# UNIT keywheel_db_size_bytes bytes\n"),
        "{}",
        open.1
    );
    assert_eq!(samples(&open.1).len(), samples(&body).len(), "the same in both formats");
    // Services have names here, accounts and secrets have none; and no page of a site may look.
    assert!(!body.contains("of-the-test"), "{body}");
    assert!(!Wanted::new([ann.as_str(), &dead]).is_in(body.as_bytes()));
    assert_eq!(curl(&url, &["--header", "Sec-Fetch-Site: cross-site"]).0, 403);
    drop(daemon);

    // A series of each credential is the operator's choice, and then a token is wanted.
    configure(&home, "[metrics]\nper_credential = true\n");
    let _daemon = home.serve();
    let url = self::url(&home);
    assert_eq!(http("GET", &format!("{url}/metrics"), &[]).status, 401);
    let token = |more: &[&str]| {
        let made = home.run(&[&["api-token", "create", "--name", "t"], more].concat()).ok().stdout;
        format!("Authorization: Bearer {}", made.trim())
    };
    let reader = token(&["--credential", "ann-of-the-test"]);
    assert_eq!(http("GET", &format!("{url}/metrics"), &[&reader]).status, 403);
    let scraper = token(&["--scope", "metrics"]);
    let body = http("GET", &format!("{url}/metrics"), &[&scraper]).body;
    let page = samples(&body);
    let valid = |id: &str| {
        page[&format!("keywheel_credential_valid{{service=\"well-behaved\",credential=\"{id}\"}}")]
    };
    assert_eq!((valid("ann-of-the-test"), valid("dead-of-the-test")), (1.0, 0.0));
    assert_eq!(page["keywheel_credentials_left_out"], 0.0);
    assert_eq!(check(promtool().args(["check", "metrics"]), &body), "");
}

/// Status and body.
fn curl(url: &str, more: &[&str]) -> (u16, String) {
    let mut curl = command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "30", "--write-out", "\n%{http_code}"]);
    let output = curl.args(more).arg(format!("{url}/metrics")).output().expect("curl starts");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let (body, code) = text.rsplit_once('\n').expect("a status");
    (code.parse().expect("a status"), body.to_owned())
}

#[test]
fn a_host_says_that_it_lives_and_what_keeps_it_from_its_work() {
    let home = TestHome::new();
    configure(&home, "");
    let daemon = home.serve();
    let url = url(&home);
    let ask = |path: &str| {
        let answer = http("GET", &format!("{url}{path}"), &[]);
        (answer.status, answer.json())
    };
    assert_eq!(ask("/healthz"), (200, json!({ "status": "alive" })));
    wait_until(SOON, "the scheduler looks", || (ask("/readyz").0 == 200).then_some(()));
    assert_eq!(ask("/readyz").1, json!({ "status": "ready", "reasons": [] }));
    // Whoever else has the database locked keeps it from being written.
    let foreign = Foreign::holding(&home, &["BEGIN EXCLUSIVE"]);
    let refused = home.run(&["worker-token", "create", "intranet", "--name", "w"]);
    assert_eq!(refused.code(), 75, "{refused:?}");
    let (status, body) = ask("/readyz");
    assert_eq!((status, &body["status"]), (503, &json!("not-ready")), "{body}");
    let codes: Vec<_> =
        body["reasons"].as_array().expect("reasons").iter().map(|reason| &reason["code"]).collect();
    assert_eq!(codes, ["database"], "{body}");
    assert!(!body.to_string().contains(home.path().to_str().expect("UTF-8")), "a path for strangers: {body}");
    assert_eq!(ask("/healthz").0, 200, "alive all the same");
    assert_eq!(scrape(&url)["keywheel_db_write_failing"], 1.0);
    foreign.let_go();
    wait_until(SOON, "it is ready again", || (ask("/readyz").0 == 200).then_some(()));
    assert_eq!(scrape(&url)["keywheel_db_write_failing"], 0.0);
    assert!(daemon.stop().success());
}
