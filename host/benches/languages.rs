//! What the contract costs by language: a provider of each, in a home of its own. Writes into
//! `target/bench/summary.json`.

#![expect(clippy::print_stdout, reason = "a benchmark's result is its output")]

mod stage;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use keywheel::control::{AddCredential, KeyInput, Operation, SecretInput};
use keywheel::credential::Secret;
use keywheel::db::Action;
use stage::{Summary, add, code, median, open, plugin, private_kib, service, target, worker};

/// What each of the languages' providers takes for a living account.
const ANY_ACCOUNT: &str = "{\"user\":\"ann\",\"login\":\"ann\",\"id\":7,\"ocs\":{\"data\":{\"id\":\"ann\"}}}";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut summary = Summary::open();
    runtime.block_on(languages(&mut |name, value| summary.put(name, value)));
}

async fn languages(put: &mut impl FnMut(&str, f64)) {
    let service = service(ANY_ACCOUNT);
    let of_language = |name: &str| target().join(format!("providers/{name}.wasm"));
    let sdk = [
        ("rust", "well-behaved", plugin("well_behaved")),
        ("template", "gitea", target().join("providers/gitea.toml")),
        ("js", "nextcloud", of_language("nextcloud")),
        ("python", "wordpress", of_language("wordpress")),
    ];
    for (language, provider, file) in sdk {
        if !file.exists() {
            println!("{language}: {} is missing; hint: `make langs` builds it", file.display());
            continue;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let host = open(folder.path()).await;
        let mib = |path: &Path| fs::metadata(path).expect("a file").len() as f64 / f64::from(1 << 20);
        let component = match language {
            // A page of text; what runs it is what weighs.
            "template" => of_language("template-provider"),
            _ => file.clone(),
        };
        put(&format!("{language}_component_mib"), mib(&component));
        let started = Instant::now();
        host.carry_out(Operation::PluginInstall { path: file.clone() }).await.expect("installed");
        put(&format!("{language}_install_s"), started.elapsed().as_secs_f64());
        put(&format!("{language}_native_mib"), mib(&code(&host)));

        if language == "rust" {
            add(&host, "one", service).await;
        } else {
            let mut credential = with_password("one", provider, service);
            if language == "template" {
                credential.settings.truncate(1);
                credential.keys[0].name = "token".into();
            }
            host.carry_out(Operation::CredentialAdd(Box::new(credential))).await.expect("a credential");
        }
        host.rotation.run_one("one", Action::Validate).await.expect("a first attempt");
        let mut runs = Vec::new();
        for _ in 0..201 {
            let started = Instant::now();
            host.rotation.run_one("one", Action::Validate).await.expect("an attempt");
            runs.push(started.elapsed().as_secs_f64() * 1e3);
        }
        put(&format!("{language}_validate_ms"), median(runs));
        let pid = worker(&host, provider);
        put(&format!("{language}_private_mib"), private_kib(pid.expect("a worker")) / 1_024.0);
        host.close().await;
    }
}

/// A credential of the providers whose one key is an app password, of somebody at a server.
fn with_password(id: &str, provider: &str, service: SocketAddr) -> AddCredential {
    AddCredential {
        credential_id: id.into(),
        profile_id: None,
        service: provider.into(),
        settings: vec![("base_url".into(), format!("http://{service}")), ("user".into(), "ann".into())],
        private_hosts: Vec::new(),
        method: None,
        validate_interval: Some(3_600),
        max_age: None,
        identity: None,
        idle_limit: None,
        quiet: Vec::new(),
        keys: vec![KeyInput {
            name: "app_password".into(),
            value: SecretInput::new(&Secret::new("an-app-password-0123456789abcdef".to_owned())),
            expires: None,
            cookie: None,
        }],
    }
}
