//! The direction of the host's modules, checked in its sources: who may import whom, and which
//! crates and powers belong to one module alone. It reads text and knows Rust's grammar only
//! as far as the formatter leaves it; whoever adds an edge writes it down here, with a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::source;

/// The edges there may be. Leaves come last, and import leaves at most.
const EDGES: &[(&str, &[&str])] = &[
    // `main` enters children before anything else exists, so it knows the worker.
    ("main", &["cli", "worker"]),
    // Commands read the database and the vault themselves: reading works without a daemon.
    (
        "cli",
        &[
            "backup",
            "catalogue",
            "config",
            "control",
            "credential",
            "daemon",
            "db",
            // When an external worker counts as silent.
            "external",
            "fleet",
            "formats",
            // How hosts are let in, and opening what they may.
            "keys",
            "kit",
            "limits",
            // Where everything is kept.
            "moving",
            // That it is ready is said where the log says it.
            "notify_systemd",
            // `doctor` shows the layers of the sandbox as the processes tell them.
            "protocol",
            "provider",
            // What a person types is judged before it is sent.
            "quiet",
            "registry",
            "report",
            // Which keys wait for a restart.
            "reload",
            // What a clean-up would delete is only read.
            "retention",
            "rotation",
            // Where a sink stands.
            "sinks",
            "supervisor",
            // Which tokens are over, and what they may do.
            "token",
            "vault",
        ],
    ),
    // Copies of a home's database, sealed; the way back begins with the writer of the new home.
    ("backup", &["config", "credential", "db", "limits", "report", "vault"]),
    // A home goes over to another store; its sinks are called otherwise there.
    ("moving", &["config", "crash", "credential", "db", "fleet"]),
    // Runs a plugin as a daemon would, in a home that is gone afterwards.
    (
        "kit",
        &[
            "config",
            "credential",
            "daemon",
            "egress",
            "limits",
            "protocol",
            "provider",
            "registry",
            "report",
            "rotation",
            "supervisor",
        ],
    ),
    // `control` carries operations to the host; `daemon` runs its server.
    // It names how far a clean-up came, for the next question about it.
    (
        "control",
        &[
            // How channels took the message of a test.
            "alerts",
            "credential",
            "daemon",
            "db",
            "limits",
            "registry",
            // What a reload came to.
            "reload",
            "report",
            "retention",
            "rotation",
            // Why a delivery failed.
            "sinks",
            "supervisor",
            // What a token is to do and to reach.
            "token",
        ],
    ),
    (
        "daemon",
        &[
            "alerts",
            "catalogue",
            "config",
            "control",
            "credential",
            "db",
            "egress",
            "fleet",
            "keys",
            "limits",
            // A move that died is brought to its end first.
            "moving",
            // How it is, for systemd.
            "notify_systemd",
            "protocol",
            "provider",
            "quiet",
            "registry",
            "reload",
            "report",
            "retention",
            "rotation",
            "sinks",
            "supervisor",
            "telemetry",
            "token",
            "vault",
            "web",
        ],
    ),
    // Asks everything that can be in trouble, and tells by whatever the operator named.
    (
        "alerts",
        &[
            "config",
            "crash",
            "credential",
            "db",
            "egress",
            // Which workers are silent.
            "external",
            "fleet",
            "hook",
            "limits",
            "registry",
            "report",
            "rotation",
            "supervisor",
            "webhook_signature",
        ],
    ),
    // The port takes secrets in, so it has the redaction of `egress` and the fingerprints of the
    // vault; it writes by commands alone. The API opens what is in force and puts it into a form.
    // Its pages show what plugins and workers are, in the registry's words and by the supervisor's
    // status, and what a commit class risks, as `rotation::plan` says it.
    (
        "web",
        &[
            "config",
            "control",
            "credential",
            "db",
            "egress",
            "external",
            "formats",
            "limits",
            "meter",
            "provider",
            "registry",
            "report",
            "rotation",
            "sealing",
            "supervisor",
            "token",
            "vault",
        ],
    ),
    (
        "rotation",
        &[
            // The operator's rules for a service.
            "clock",
            "config",
            "crash",
            "credential",
            "db",
            "egress",
            "limits",
            // Attempts are counted where they end.
            "meter",
            "protocol",
            "provider",
            "quiet",
            "rate",
            "registry",
            "report",
            "sealing",
            "supervisor",
            // Each attempt is a trace.
            "telemetry",
            "vault",
        ],
    ),
    // Of `egress` only the operator's messages.
    (
        "sinks",
        &[
            "config",
            "crash",
            "credential",
            "db",
            "egress",
            "formats",
            "hook",
            "limits",
            "report",
            "sealing",
            "vault",
            "webhook_signature",
        ],
    ),
    // `worker::engine` names the engine that native code is for.
    (
        "registry",
        &["catalogue", "config", "db", "limits", "protocol", "provider", "supervisor", "vault", "worker"],
    ),
    // `worker` only for the numbers of a child's descriptors, and the list of a probe's attempts.
    ("supervisor", &["credential", "limits", "protocol", "provider", "worker"]),
    ("worker", &["limits", "protocol", "provider"]),
    ("egress", &["credential", "limits", "meter", "protocol", "provider"]),
    // Where everything is kept, and what a host says of itself, in the words of the configuration; and
    // the operator's rate of a service, which holds over all hosts.
    (
        "db",
        &[
            "clock",
            "config",
            "crash",
            "credential",
            "external",
            "limits",
            "provider",
            "rate",
            "report",
            "token",
        ],
    ),
    // What one host is among those that share its store.
    ("fleet", &["clock", "config", "credential", "db", "limits", "registry", "rotation"]),
    ("clock", &[]),
    ("rate", &["credential"]),
    ("sealing", &["credential", "db", "vault"]),
    // From a home to its master key, by way of the store where hosts share one.
    ("keys", &["config", "crash", "credential", "db", "report", "vault"]),
    // The words in which the registry shows what an operator typed.
    ("formats", &["credential", "limits", "provider", "registry", "report"]),
    ("hook", &["limits"]),
    ("webhook_signature", &["credential"]),
    ("retention", &["crash", "credential", "db", "report"]),
    ("vault", &["credential"]),
    // A choice of the operator's, in the words that children are told it in.
    ("config", &["credential", "limits", "protocol", "quiet"]),
    ("limits", &["protocol"]),
    ("protocol", &["provider"]),
    ("notify_systemd", &[]),
    ("reload", &["config"]),
    ("provider", &[]),
    ("quiet", &["credential"]),
    ("report", &["credential"]),
    ("external", &["credential"]),
    ("token", &["credential"]),
    // Where a cookie goes follows from what a provider says of it.
    ("credential", &["clock", "provider"]),
    ("catalogue", &["provider"]),
    // The operator's collector.
    ("telemetry", &["config", "credential", "limits"]),
    ("meter", &[]),
    ("crash", &[]),
    ("lib", &[]),
];

/// What one module alone may use, by a text that its code can't avoid.
const OWNED: &[(&str, &[&str])] = &[
    ("reqwest", &["egress"]),
    ("axum", &["web"]),
    ("lettre", &["egress/mail/smtp.rs"]),
    ("TcpStream::connect", &["egress"]),
    // The probe's bait: bound on loopback, and never sent from.
    ("UdpSocket", &["egress", "supervisor/probe.rs"]),
    // The one exception to "only `egress` opens outward sockets": the exporter sends traces to the
    // operator's collector by a client of its own. Nothing of a provider goes there.
    ("opentelemetry", &["telemetry.rs"]),
    ("rusqlite", &["db"]),
    // The other exception to that: the store, where it is a server. Nothing of a provider goes there.
    ("tokio_postgres", &["db"]),
    // The demo's daemon is a process of its own, as it is for everybody.
    // An author's compilers run as the author, an operator's commands as the daemon.
    // What a person runs with secrets runs as that person.
    ("process::Command", &["cli/demo/daemon.rs", "cli/author/tools.rs", "cli/run.rs", "hook.rs"]),
    ("Command::new(", &["cli/demo/daemon.rs", "cli/author/tools.rs", "cli/run.rs", "hook.rs"]),
    ("execve", &["supervisor/worker_process.rs", "worker/probe.rs"]),
    ("SYS_clone", &["supervisor/worker_process.rs", "worker/probe.rs"]),
    ("wasmtime", &["worker"]),
    ("chacha20poly1305", &["vault"]),
    ("hpke", &["vault"]),
    (".master_key()", &["config", "daemon.rs", "keys.rs", "cli/backup.rs", "cli/init.rs"]),
    (".host_key()", &["config", "keys.rs"]),
    // `write_atomically` and the listings of folders are all that a file is touched with
    // elsewhere; the key's own name stands where the home is laid out.
    ("\"master.key\"", &["config"]),
    ("println!", &["cli/output.rs"]),
    ("seccompiler", &["worker/sandbox.rs"]),
];

struct SourceFile {
    /// Below host/src.
    path: String,
    module: String,
    text: String,
    /// Without comments and unit tests.
    code: String,
}

fn sources() -> Vec<SourceFile> {
    let root = source("host/src");
    let mut files = Vec::new();
    collect(&root, &root, &mut files);
    assert!(files.len() > 30, "only {} files in {}", files.len(), root.display());
    files
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<SourceFile>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).expect("the sources").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(root, &path, files);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("UTF-8");
        let path = path.strip_prefix(root).expect("below the root").to_str().expect("UTF-8").to_owned();
        let module = path.split('/').next().unwrap_or(&path).trim_end_matches(".rs").to_owned();
        let code = if is_for_tests(&path) { String::new() } else { without_comments_and_tests(&text) };
        files.push(SourceFile { path, module, text, code });
    }
}

/// Files that only `#[cfg(test)]` compiles.
fn is_for_tests(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name == "tests.rs" || name.ends_with("_tests.rs") || name == "sync_probe.rs"
}

/// Comments are whole lines here, and unit tests stand last in their file.
fn without_comments_and_tests(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The top-level modules that follow each `crate::` (and, at the crate's own root, `super::`).
fn imported<'a>(code: &'a str, root: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(root) {
        // `keywheel_crate::` and `super::super::` are other paths.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + root.len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(heads(list)),
            None => found.extend(ident(rest)),
        }
    }
    found
}

fn ident(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| &text[..end])
}

/// The first identifiers of a braced list's items.
fn heads(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0_u32, 0, Vec::new());
    for (at, letter) in list.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                found.extend(ident(list[start..at].trim_start()));
                start = at + 1;
                if letter == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn the_reader_of_imports_sees_lists_nested_lists_and_bare_paths() {
    let code = "use crate::{db::{self, writer}, limits};\nuse crate::vault::Vault;\nfn f() { crate::egress::go(); othercrate::x(); }";
    let found: Vec<_> = imported(code, "crate::").into_iter().collect();
    assert_eq!(found, ["db", "egress", "limits", "vault"]);
}

#[test]
fn modules_import_only_what_lies_below_them() {
    let edges: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let files = sources();
    let modules: BTreeSet<&str> = files.iter().map(|file| file.module.as_str()).collect();
    let mut wrong = Vec::new();
    for file in &files {
        let Some(allowed) = edges.get(file.module.as_str()) else {
            wrong.push(format!("{}: the module `{}` has no line in EDGES", file.path, file.module));
            continue;
        };
        let mut found = imported(&file.code, "crate::");
        if file.module == "main" {
            found = imported(&file.code, "keywheel::");
        }
        let is_root_of_module = !file.path.contains('/') || file.path.ends_with("/mod.rs");
        if is_root_of_module && file.path.matches('/').count() <= 1 {
            // Seen from there `super` is the crate; names of its own submodules aren't modules.
            found.extend(imported(&file.code, "super::").into_iter().filter(|name| modules.contains(name)));
        }
        for name in found {
            if name != file.module && modules.contains(name) && !allowed.contains(&name) {
                wrong.push(format!("{} imports {name}; allowed: {}", file.path, allowed.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_allowed_edges_have_no_cycle_but_the_one_of_the_control_socket() {
    let mut edges: BTreeMap<&str, BTreeSet<&str>> =
        EDGES.iter().map(|(from, to)| (*from, to.iter().copied().collect())).collect();
    // The server of the socket asks the host it belongs to.
    edges.get_mut("control").expect("a line").remove("daemon");
    let mut settled: BTreeSet<&str> = BTreeSet::new();
    while settled.len() < edges.len() {
        let next: Vec<&str> = edges
            .iter()
            .filter(|(from, to)| !settled.contains(*from) && to.is_subset(&settled))
            .map(|(from, _)| *from)
            .collect();
        assert!(
            !next.is_empty(),
            "a cycle among {:?}",
            edges.keys().filter(|from| !settled.contains(*from)).collect::<Vec<_>>()
        );
        settled.extend(next);
    }
}

#[test]
fn powers_stay_with_the_one_module_that_owns_them() {
    let mut wrong = Vec::new();
    for file in sources() {
        for (word, owners) in OWNED {
            let is_owner = owners.iter().any(|owner| file.path == *owner || file.module == *owner);
            if file.code.contains(word) && !is_owner {
                wrong.push(format!("{} has `{word}`, which belongs to {}", file.path, owners.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_registry_and_the_supervisor_use_no_more_of_the_worker_than_its_constants() {
    for file in sources() {
        let allowed: &[&str] = match file.module.as_str() {
            "registry" => &["engine::compiling"],
            "supervisor" => &["{CODE_FD, OUTPUT_FD, SOCKET_FD}", "probe::ATTEMPTS"],
            _ => continue,
        };
        for (at, path) in file.code.match_indices("crate::worker::") {
            let rest = &file.code[at + path.len()..];
            assert!(
                allowed.iter().any(|name| rest.starts_with(name)),
                "{} uses {} of the worker",
                file.path,
                rest.lines().next().unwrap_or_default()
            );
        }
    }
}

#[test]
fn every_file_says_first_what_it_owns() {
    let silent: Vec<String> =
        sources().into_iter().filter(|file| !file.text.starts_with("//! ")).map(|file| file.path).collect();
    assert!(silent.is_empty(), "no `//!` head in {}", silent.join(", "));
}

/// A page without its section of that name, which says what there isn't.
pub fn without_what_is_not_built(page: &str) -> String {
    let (before, after) = page.split_once("\n## Not built yet\n").unwrap_or((page, ""));
    let rest = after.find("\n## ").map_or("", |at| &after[at..]);
    format!("{before}{rest}")
}

#[test]
fn every_path_that_the_architecture_page_names_exists() {
    let page = fs::read_to_string(source("docs/architecture.md")).expect("docs/architecture.md");
    let page = without_what_is_not_built(&page);
    let tops = ["host/", "plugin-sdk/", "plugins/", "migrations/", "tests/", "docs/", ".ci/"];
    let mut named = 0;
    // A path stands between backticks; `plugins/<service>/` and `NNNN_name.sql` are patterns.
    for path in page.split('`').skip(1).step_by(2) {
        let is_path = tops.iter().any(|top| path.starts_with(top)) && !path.contains([' ', '<', '*']);
        if !is_path || path.contains("NNNN") {
            continue;
        }
        named += 1;
        // A path may end in a name within the file: `host/src/limits.rs:CALL`.
        let file = path.split(':').next().unwrap_or(path);
        assert!(source(file).exists(), "docs/architecture.md names `{path}`, which doesn't exist");
    }
    assert!(named > 0, "docs/architecture.md names no path in backticks");
}
