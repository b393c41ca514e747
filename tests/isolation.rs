//! A worker's process holds nothing worth taking. What plugins try inside of it is in `hostile`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::harness::*;

/// In the order in which a process goes through them.
const LAYERS: [&str; 8] = [
    "descriptors",
    "environment",
    "namespaces",
    "no_new_privs",
    "rlimits",
    "not dumpable",
    "landlock",
    "seccomp",
];

/// As the filters of container runtimes answer.
fn without_namespaces() -> Kernel {
    Kernel::whole().without(libc::SYS_clone, libc::CLONE_NEWUSER as u64, libc::EPERM)
}

fn without_landlock() -> Kernel {
    Kernel::whole().without(libc::SYS_landlock_create_ruleset, 0, libc::ENOSYS)
}

fn configure(home: &TestHome, isolation: &str) {
    let text = format!("isolation = \"{isolation}\"\n");
    std::fs::write(home.path().join("config.toml"), text).expect("a configuration");
}

#[test]
fn an_escaped_guest_is_stopped_at_everything_it_tries() {
    let home = TestHome::without_init();
    let findings = home.json(&["doctor", "--self-test"]);
    assert_eq!(
        (&findings["ok"], &findings["unmet"]),
        (&true.into(), &Value::Array(Vec::new())),
        "{findings}"
    );
    let attempts = findings["attempts"].as_array().expect("an array");
    assert!(attempts.len() >= 60, "only {} attempts", attempts.len());
    for tried in attempts {
        // By the filter, which nothing it forbids gets past: the other layers never see it.
        assert_eq!((&tried["worker"], &tried["compiler"]), (&"killed".into(), &"killed".into()), "{tried}");
    }
    // What keeps files, processes and networks safe holds without the filter as well.
    let alone = |tried: &Value| tried["withoutFilter"]["refused"].is_string();
    let names = attempts.iter().filter(|tried| alone(tried)).map(|tried| &tried["attempt"]);
    let names: BTreeSet<_> = names.filter_map(Value::as_str).collect();
    for must in [
        "open a file for reading",
        "make a file",
        "list a folder",
        "make a folder",
        "rename a folder",
        "delete a folder",
        "write to its own memory by /proc",
        "look into the host by /proc",
        "read the host's memory",
        "write to the host's memory",
        "trace the host",
        "signal the host",
        "signal everybody",
        "hold the host by a descriptor",
        "change the host's limits",
        "raise its own limits",
        "run a program",
        "run a program by execveat",
        "run a program from memory",
        "connect by TCP",
        "send by UDP",
        "listen on TCP",
        "connect to an abstract socket",
        "open a raw socket",
        "configure the network",
        "mount",
        "become another user",
    ] {
        assert!(names.contains(must), "without the filter: {must}; refused: {names:?}");
    }
}

#[test]
fn an_attempt_that_nothing_stops_is_told() {
    // Landlock and the namespaces gone, and the filter off: what is left is this machine.
    let home = TestHome::new();
    configure(&home, "best-effort");
    let kernel = Kernel::whole()
        .without(libc::SYS_clone, libc::CLONE_NEWUSER as u64, libc::EPERM)
        .without(libc::SYS_landlock_create_ruleset, 0, libc::ENOSYS)
        .without(libc::SYS_seccomp, 0, libc::EPERM);
    let output = home.run_on(&kernel, &["doctor", "--self-test", "--json"]);
    assert_eq!(output.code(), 1, "{output:?}");
    let findings = output.json();
    let attempts = findings["attempts"].as_array().expect("an array");
    let of = |name: &str| {
        attempts
            .iter()
            .find(|tried| tried["attempt"] == name)
            .map(|tried| tried["worker"].clone())
            .expect(name)
    };
    for name in [
        "open a file for reading",
        "make a folder",
        "signal the host",
        "connect by TCP",
        "send by UDP",
        "fork",
    ] {
        assert_eq!(of(name), "succeeded", "{findings}");
    }
}

#[test]
fn a_layer_that_the_configuration_asks_for_and_the_kernel_lacks_stops_plugins_and_nothing_else() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    home.add_session("ann", "well-behaved", &service, &[]);
    let table: [(&str, Kernel, Option<&str>); 5] = [
        ("strict", without_namespaces(), None),
        ("paranoid", without_namespaces(), Some("namespaces: the kernel refuses them: ")),
        ("strict", without_landlock(), Some("landlock: this kernel has no Landlock")),
        ("paranoid", without_landlock(), Some("landlock: this kernel has no Landlock")),
        ("best-effort", without_landlock(), None),
    ];
    for (isolation, kernel, missing) in table {
        configure(&home, isolation);
        let doctor = home.run_on(&kernel, &["doctor", "--json"]);
        assert_eq!(doctor.code(), i32::from(missing.is_some()), "{isolation}: {doctor:?}");
        let rows = doctor.json()["layers"].as_array().expect("an array").clone();
        assert_eq!(rows.iter().map(|row| &row["layer"]).collect::<Vec<_>>(), LAYERS);
        let lacking: Vec<_> = rows.iter().filter(|row| row["worker"]["Unavailable"].is_string()).collect();
        assert_eq!(lacking.len(), 1, "{rows:?}");
        let run = home.run_on(&kernel, &["credential", "validate", "ann", "--json"]);
        match missing {
            None => assert_eq!((run.code(), &run.json()["status"]), (0, &"success".into()), "{run:?}"),
            Some(missing) => {
                assert_ne!(run.code(), 0, "{isolation}: {run:?}");
                assert!(doctor.stdout.contains(missing), "{isolation}: {doctor:?}");
                let list = home.run_on(&kernel, &["plugin", "list", "--json"]).ok();
                assert!(list.stdout.contains(missing) && list.stdout.contains("keywheel doctor"), "{list:?}");
            }
        }
    }
    // Nobody called the credential dead meanwhile, and with a whole kernel it goes on.
    configure(&home, "paranoid");
    assert_eq!(home.json(&["credential", "validate", "ann"])["status"], "success");
    assert!(home.reports("ann").iter().all(|report| report["status"] != "validation_failed"));
}

#[test]
fn paranoid_gives_each_attempt_a_process_that_ends_with_it() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Dies));
    configure(&home, "paranoid");
    home.drop_plugin(&guest("well_behaved"));
    home.drop_plugin(&guest("traps_in_validate"));
    let daemon = home.serve();
    home.add_session("ann", "well-behaved", &service, &["--set", "commit_class=burn-on-issue"]);
    home.add_session("bob", "traps-in-validate", &service, &[]);
    home.wait_for_reports("ann", 1);
    for _ in 0..3 {
        assert_eq!(home.json(&["credential", "validate", "ann"])["status"], "success");
        assert_eq!(home.json(&["credential", "rotate", "ann"])["status"], "success");
    }
    let reports = home.reports("ann");
    let workers: BTreeSet<_> =
        reports.iter().filter_map(|report| report["meta"]["worker"].as_str()).collect();
    assert_eq!(workers.len(), reports.len(), "an attempt shared a process: {reports:?}");
    assert_eq!(home.wait_for_reports("bob", 1)[0]["status"], "failed");
    // It would be tried again beside what follows.
    home.json(&["credential", "pause", "bob"]);
    wait_until(SOON, "every process ended with its attempt", || daemon.children().is_empty().then_some(()));
    let status = home.worker("well-behaved").expect("a service");
    assert_eq!((&status["crashes"], &status["pid"]), (&0.into(), &Value::Null), "{status}");

    // One that is killed in mid-attempt fails that attempt alone.
    service.hold("/check");
    let waiting = std::thread::scope(|scope| {
        let running = scope.spawn(|| home.run(&["credential", "validate", "ann", "--json"]));
        service.wait_held("/check");
        let [victim] = daemon.children()[..] else { panic!("{:?}", daemon.children()) };
        kill_9(victim);
        service.release("/check");
        running.join().expect("a thread")
    });
    assert_eq!(waiting.json()["status"], "unreachable", "{waiting:?}");
    assert_eq!(home.json(&["credential", "validate", "ann"])["status"], "success");
    assert_eq!(home.worker("well-behaved").expect("a service")["crashes"], 1);
}

#[test]
fn a_plugin_that_went_over_a_limit_gets_the_time_that_nobody_else_wants() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    home.drop_plugin(&guest("loops_forever"));
    let _daemon = home.serve();
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    home.add_session("bob", "loops-forever", &service, &[]);
    let report = home.wait_for_reports("bob", 1).remove(0);
    assert!(report["message"].as_str().is_some_and(|message| message.contains("over a limit")), "{report}");
    let policy = |service: &str| {
        let pid = i32::try_from(home.worker_pid(service)).expect("a pid");
        // SAFETY: takes a number and answers one.
        unsafe { libc::sched_getscheduler(pid) }
    };
    assert_eq!((policy("loops-forever"), policy("well-behaved")), (libc::SCHED_IDLE, libc::SCHED_OTHER));
}

#[test]
fn a_worker_runs_behind_every_layer_with_nothing_but_its_socket() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    let served = home.serve();
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    let worker = home.worker("well-behaved").expect("a worker");
    let layers = worker["layers"].as_array().expect("an array");
    let names: Vec<_> = layers.iter().filter_map(|layer| layer["name"].as_str()).collect();
    assert_eq!(names, LAYERS);
    for layer in layers {
        assert_eq!(layer["state"], "On", "{layer}");
    }
    let pid = home.worker_pid("well-behaved");
    let proc = std::path::PathBuf::from(format!("/proc/{pid}"));
    let daemon = std::path::PathBuf::from(format!("/proc/{}", served.pid()));
    let status = std::fs::read_to_string(proc.join("status")).expect("the worker's status");
    let fields: BTreeMap<_, _> = status.lines().filter_map(|line| line.split_once(":\t")).collect();
    assert_eq!((fields["Seccomp"], fields["NoNewPrivs"]), ("2", "1"));
    // Every thread, not only the first.
    for thread in std::fs::read_dir(proc.join("task")).expect("the worker's threads") {
        let status =
            std::fs::read_to_string(thread.expect("a thread").path().join("status")).expect("its status");
        assert!(status.contains("\nSeccomp:\t2\n") && status.contains("\nNoNewPrivs:\t1\n"), "{status}");
    }
    if !rustix::process::geteuid().is_root() {
        // Not dumpable: even its own user is refused.
        let refused = std::fs::read_dir(proc.join("fd")).expect_err("a worker is closed to its user");
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        return;
    }
    for namespace in ["user", "net", "pid", "ipc"] {
        let of = |process: &std::path::Path| {
            std::fs::read_link(process.join("ns").join(namespace)).expect("root may read it")
        };
        assert_ne!(of(&proc), of(&daemon), "{namespace}");
    }
    // The first of its own process namespace, and without a single capability over its own.
    assert_eq!(fields["NSpid"].split_whitespace().last(), Some("1"));
    assert_eq!((fields["CapEff"], fields["CapPrm"]), ("0000000000000000", "0000000000000000"));
    assert_eq!(std::fs::read(proc.join("environ")).expect("root may read it"), b"");
    let (mut sockets, mut files) = (BTreeSet::new(), Vec::new());
    for entry in std::fs::read_dir(proc.join("fd")).expect("root may read it") {
        let entry = entry.expect("an entry");
        let name = std::fs::read_link(entry.path()).expect("a link").display().to_string();
        match name.as_str() {
            "/dev/null" | "anon_inode:[eventpoll]" | "anon_inode:[eventfd]" => {}
            // By which the pool finds the pages a call touched: its own, and nobody else's.
            own if own == format!("/proc/{pid}/pagemap") => {}
            socket if socket.starts_with("socket:") => drop(sockets.insert(name)),
            _ => files.push((name, entry.file_name().display().to_string())),
        }
    }
    // Its own, and both ends of the pair by which its event loop wakes itself.
    assert_eq!(sockets.len(), 3, "{sockets:?}");
    // wasmtime keeps the native code it mapped open. It is the worker's own, and read-only.
    let [(code, number)] = &files[..] else { panic!("open files: {files:?}") };
    let digest = worker["digest"].as_str().expect("a digest");
    assert!(code.starts_with(&format!("{}/cache/{digest}", home.path().display())), "{code}");
    let info = std::fs::read_to_string(proc.join("fdinfo").join(number)).expect("root may read it");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t")).expect("the open flags");
    let access = u32::from_str_radix(flags.trim(), 8).expect("octal") & 3;
    assert_eq!(access, 0, "the native code is open for writing: {info}");
}
