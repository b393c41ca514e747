//! What the benches stand on: a loopback service, a home with its host, credentials, and the
//! summary that they all write into.

#![allow(dead_code, reason = "each bench uses a part of it")]
#![expect(clippy::print_stdout, reason = "a benchmark's result is its output")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use keywheel::config::{Config, Home, write_atomically};
use keywheel::control::{AddCredential, KeyInput, Operation, SecretInput};
use keywheel::credential::{CookieAttributes, Secret};
use keywheel::daemon::{Host, HostOptions};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn target() -> PathBuf {
    // target/release/deps/pipeline-…
    let exe = std::env::current_exe().expect("an executable");
    exe.ancestors().nth(3).expect("a target folder").to_owned()
}

pub fn plugin(name: &str) -> PathBuf {
    let path = target().join(format!("wasm32-wasip2/plugin/examples/{name}.wasm"));
    assert!(path.exists(), "{} is missing; hint: `make bench` builds it", path.display());
    path
}

/// How many secrets the loopback services have issued.
pub static ISSUED: AtomicU64 = AtomicU64::new(0);

/// A loopback service on a thread of its own: whatever is asked, one small answer. With a POST
/// comes a session that nobody had before.
pub fn service(body: &'static str) -> SocketAddr {
    service_after(body, Duration::ZERO)
}

/// The same, which answers after so long, as one far away does.
pub fn service_after(body: &'static str, after: Duration) -> SocketAddr {
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n");
    let answer: Arc<str> = format!("{head}\r\n{body}").into();
    let issue = move || {
        let number = ISSUED.fetch_add(1, Ordering::Relaxed);
        format!(
            "{head}set-cookie: session=issued-{number:016x}-0123456789abcdef; Path=/; HttpOnly\r\n\r\n{body}"
        )
    };
    let issue = Arc::new(issue);
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            tell.send(listener.local_addr().expect("an address")).expect("somebody listens");
            while let Ok((mut client, _)) = listener.accept().await {
                let (answer, issue) = (Arc::clone(&answer), Arc::clone(&issue));
                tokio::spawn(async move {
                    let _ = client.set_nodelay(true);
                    let mut buffer = vec![0; 8 << 10];
                    let mut filled = 0;
                    loop {
                        match client.read(&mut buffer[filled..]).await {
                            Ok(0) | Err(_) => return,
                            Ok(read) => filled += read,
                        }
                        // Requests here have no body, so the blank line is their end.
                        if buffer[..filled].ends_with(b"\r\n\r\n") {
                            if !after.is_zero() {
                                tokio::time::sleep(after).await;
                            }
                            let sent = if buffer.starts_with(b"POST ") {
                                client.write_all(issue().as_bytes()).await
                            } else {
                                client.write_all(answer.as_bytes()).await
                            };
                            if sent.is_err() {
                                return;
                            }
                            filled = 0;
                        }
                    }
                });
            }
        });
    });
    told.recv().expect("the service starts")
}

pub async fn open(folder: &Path) -> Host {
    open_with(folder, Config::default()).await
}

pub async fn open_with(folder: &Path, config: Config) -> Host {
    let home = Home::locate(Some(folder.to_owned())).expect("a home");
    home.make_folders().expect("folders");
    if !home.exists() {
        let lock = keywheel::db::HomeLock::acquire(&home.lock()).expect("the lock");
        let (writer, thread) = keywheel::db::Writer::start(home.database(), lock).expect("a database");
        drop(writer);
        thread.join();
        keywheel::vault::Vault::create(&home.master_key()).expect("a key");
    }
    let options =
        HostOptions { executable: PathBuf::from(env!("CARGO_BIN_EXE_keywheel")), ..HostOptions::default() };
    Host::open(home, config, options).await.expect("a host")
}

pub async fn add(host: &Host, id: &str, service: SocketAddr) {
    add_to(host, id, "well-behaved", service).await;
}

pub async fn add_to(host: &Host, id: &str, plugin: &str, service: SocketAddr) {
    let cookie = CookieAttributes {
        name: "session".into(),
        domain: service.ip().to_string(),
        path: "/".into(),
        host_only: true,
        secure: false,
        http_only: true,
        same_site: None,
    };
    let add = AddCredential {
        credential_id: id.into(),
        profile_id: None,
        service: plugin.into(),
        settings: vec![("base_url".into(), format!("http://{service}"))],
        private_hosts: Vec::new(),
        method: None,
        // Once each: what is due again while it is measured would be a tenth of the load.
        validate_interval: Some(3_600),
        max_age: None,
        identity: None,
        idle_limit: None,
        quiet: Vec::new(),
        keys: vec![KeyInput {
            name: "session".into(),
            value: SecretInput::new(&Secret::new(format!("a-session-of-{id}-0123456789abcdef"))),
            expires: None,
            cookie: Some(cookie),
        }],
    };
    host.carry_out(Operation::CredentialAdd(Box::new(add))).await.expect("a credential");
}

/// Many of them, `c0` and so on, taking turns among the services.
pub async fn add_many(host: &Host, count: usize, plugins: &[String], service: SocketAddr) {
    let adding = (0..count).map(|n| async move {
        add_to(host, &format!("c{n}"), &plugins[n % plugins.len()], service).await;
    });
    // Together, so that many share a commit.
    futures_util::stream::iter(adding).buffer_unordered(256).collect::<()>().await;
}

/// The native code of the only plugin that was compiled.
pub fn code(host: &Host) -> PathBuf {
    fs::read_dir(host.home.cache())
        .expect("a cache")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "cwasm"))
        .expect("native code")
}

/// The process that serves a service.
pub fn worker(host: &Host, service: &str) -> Option<u32> {
    host.supervisor.status().into_iter().find(|worker| worker.service == service)?.pid
}

/// What one worker has for itself alone, as the kernel counts it.
pub fn private_kib(pid: u32) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    let rollup = rollup.expect("a process's memory can be read; hint: workers show theirs to root alone");
    rollup
        .lines()
        .filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
        .sum()
}

/// `target/bench/summary.json`: numbers by name. Each bench adds its own to what is there, and
/// replaces what an earlier run said of the same.
pub struct Summary {
    path: PathBuf,
    numbers: serde_json::Map<String, serde_json::Value>,
}

impl Summary {
    pub fn open() -> Self {
        let folder = target().join("bench");
        fs::create_dir_all(&folder).expect("target/bench");
        let path = folder.join("summary.json");
        let numbers =
            fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { path, numbers }
    }

    /// Prints a number and keeps it at once: who ends a run early has what it measured.
    pub fn put(&mut self, name: &str, value: f64) {
        println!("{name:>34} {value:>12.3}");
        self.numbers.insert(name.to_owned(), json!((value * 1_000.0).round() / 1_000.0));
        let text = serde_json::to_string_pretty(&self.numbers).expect("numbers are JSON");
        write_atomically(&self.path, text.as_bytes()).expect("summary.json");
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.numbers.get(name)?.as_f64()
    }
}

/// So many services: the well-behaved plugin under other names of the same length, each a file of
/// its own in the folder with native code and a worker of its own. Returns the services' names.
pub fn many_plugins(folder: &Path, count: usize) -> Vec<String> {
    const NAME: &[u8] = b"well-behaved";
    let original = fs::read(plugin("well_behaved")).expect("a plugin");
    let place = original.windows(NAME.len()).position(|bytes| bytes == NAME).expect("its name");
    (0..count)
        .map(|n| {
            let service = format!("service-{n:04}");
            let mut named = original.clone();
            named[place..place + NAME.len()].copy_from_slice(service.as_bytes());
            fs::write(folder.join(format!("{service}.wasm")), named).expect("a plugin of its own");
            service
        })
        .collect()
}
