//! A worker's process holds nothing worth taking. What plugins try inside of it is in `hostile`.

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::*;

#[test]
fn a_worker_runs_behind_every_layer_with_nothing_but_its_socket() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    let _daemon = home.serve();
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    let worker = home.worker("well-behaved").expect("a worker");
    let layers = worker["layers"].as_array().expect("an array");
    let names: Vec<_> = layers.iter().filter_map(|layer| layer["name"].as_str()).collect();
    assert_eq!(names, ["no_new_privs", "rlimits", "not dumpable", "landlock", "seccomp"]);
    for layer in layers {
        assert_eq!(layer["state"], "On", "{layer}");
    }
    let pid = home.worker_pid("well-behaved");
    let proc = std::path::PathBuf::from(format!("/proc/{pid}"));
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
