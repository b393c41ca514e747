//! One host and two on the same PostgreSQL, side by side in one run: attempts a second where the
//! service takes a tenth of a second to answer, so that places in flight are the limit and not the
//! processor. Writes into `target/bench/summary.json`; never asserts a timing. It needs a server:
//! `tests/peers/postgres.sh` runs it with one.

#![expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
#![expect(clippy::disallowed_methods, reason = "psql makes the schema, and all credentials due at once")]

mod stage;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keywheel::control::Operation;
use keywheel::daemon::Host;
use stage::{Summary, add_many, median, open, plugin, service_after};
use tokio::sync::watch;

const ANSWERS_AFTER: Duration = Duration::from_millis(100);
const MEASURE: Duration = Duration::from_secs(8);
/// Before it counts: a host first learns how fast the service is.
const WARM: Duration = Duration::from_secs(4);
/// More than two hosts can do meanwhile.
const CREDENTIALS: usize = 40_000;
const REPEATS: usize = 3;

fn main() {
    let Ok(server) = std::env::var("KEYWHEEL_TEST_POSTGRES") else {
        println!(
            "left out: no KEYWHEEL_TEST_POSTGRES; hint: tests/peers/postgres.sh cargo bench --bench fleet"
        );
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(&server));
}

fn sql(server: &str, text: &str) {
    let done = Command::new("psql").args(["-qX", server, "-c", text]).status().expect("psql starts");
    assert!(done.success(), "{text}");
}

/// A home whose store is there; the second has the first one's key.
async fn host(folder: &Path, url: &str, key_of: Option<&Path>) -> Host {
    fs::create_dir_all(folder).expect("a folder");
    fs::write(folder.join("config.toml"), format!("[store]\nurl = \"{url}\"\n")).expect("a configuration");
    if let Some(other) = key_of {
        fs::copy(other.join("master.key"), folder.join("master.key")).expect("the key");
    }
    open(folder).await
}

async fn run(server: &str) {
    let schema = format!("bench_{}", std::process::id());
    sql(server, &format!("CREATE SCHEMA {schema}"));
    let url = format!("{server}?options=-csearch_path%3D{schema}");
    let service = service_after("{\"user\":\"ann\"}", ANSWERS_AFTER);
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (folder.path().join("one"), folder.path().join("two"));
    let one = host(&first, &url, None).await;
    one.carry_out(Operation::PluginInstall { path: plugin("well_behaved") }).await.expect("installed");
    let two = host(&second, &url, Some(&first)).await;
    for host in [&one, &two] {
        host.supervisor.warm("well-behaved").await.expect("a worker");
    }
    add_many(&one, CREDENTIALS, &["well-behaved".into()], service).await;
    let all_due = || {
        sql(
            server,
            &format!(
                "UPDATE {schema}.cookie_rotation_monitor SET next_due_at = 0; ANALYZE {schema}.cookie_rotation_monitor"
            ),
        );
    };
    let (mut alone, mut both) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        all_due();
        alone.push(per_second(&[&one]).await);
        all_due();
        both.push(per_second(&[&one, &two]).await);
        println!("one host {:.0}/s, two {:.0}/s", alone[alone.len() - 1], both[both.len() - 1]);
    }
    let (alone, both) = (median(alone), median(both));
    let mut summary = Summary::open();
    summary.put("fleet_one_host_per_s", alone);
    summary.put("fleet_two_hosts_per_s", both);
    summary.put("fleet_ratio", both / alone);
    one.close().await;
    two.close().await;
    sql(server, &format!("DROP SCHEMA {schema} CASCADE"));
}

/// Reports that are stored, of these hosts together.
async fn per_second(hosts: &[&Host]) -> f64 {
    let (tell, stop) = watch::channel(false);
    let schedulers: Vec<_> = hosts
        .iter()
        .map(|host| tokio::spawn(Arc::clone(&host.rotation).serve(Vec::new(), stop.clone())))
        .collect();
    let reader = hosts[0].reader().expect("a reader");
    let reports = || reader.counts().expect("counts").reports;
    tokio::time::sleep(WARM).await;
    let (before, started) = (reports(), Instant::now());
    tokio::time::sleep(MEASURE).await;
    let (after, took) = (reports(), started.elapsed());
    tell.send(true).expect("they listen");
    for scheduler in schedulers {
        scheduler.await.expect("it ends");
    }
    (after - before) as f64 / took.as_secs_f64()
}
