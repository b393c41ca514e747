//! No secret is anywhere but in the vault, sealed: not in a file of the home, not in what any
//! process printed, not in the address space of a worker. Each search is shown to find.

use std::fs::File;
use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::harness::*;

/// Ways a value may lie about: as it is, in hexadecimal, and inside base64 at any alignment.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let bytes = secret.as_bytes();
    let mut forms =
        vec![bytes.to_vec(), hex::encode(bytes).into_bytes(), hex::encode_upper(bytes).into_bytes()];
    for before in 0..3 {
        let shifted = [&vec![0; before], bytes].concat();
        // Characters that mix in a neighbouring byte are left out at both ends.
        let (first, end) = ((before * 8).div_ceil(6), shifted.len() * 8 / 6);
        for encoded in [STANDARD_NO_PAD.encode(&shifted), URL_SAFE_NO_PAD.encode(&shifted)] {
            forms.push(encoded.as_bytes()[first..end].to_vec());
        }
    }
    forms
}

/// What is looked for.
pub struct Wanted {
    forms: Vec<Vec<u8>>,
}

impl Wanted {
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let forms: Vec<_> = secrets.into_iter().flat_map(forms).collect();
        assert!(forms.iter().all(|form| form.len() >= 16), "too short to be told from chance");
        Self { forms }
    }

    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.forms.iter().any(|form| memchr::memmem::find(bytes, form).is_some())
    }

    #[track_caller]
    pub fn assert_in_no_file(&self, folder: &Path) {
        assert_eq!(self.files(folder), Vec::<PathBuf>::new());
    }

    /// The files below a folder that hold any of it.
    fn files(&self, folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let entry = entry.expect("an entry");
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() {
                found.extend(self.files(&entry.path()));
            } else if kind.is_file() && self.is_in(&std::fs::read(entry.path()).expect("a file")) {
                found.push(entry.path());
            }
        }
        found
    }

    /// The mappings of a process that hold any of it.
    fn mappings(&self, process: &str) -> Vec<String> {
        let maps = File::open(format!("/proc/{process}/maps")).expect("the process's maps");
        let memory = File::open(format!("/proc/{process}/mem")).expect("the process's memory");
        let mut found = Vec::new();
        for line in std::io::BufReader::new(maps).lines() {
            let line = line.expect("a line");
            let (range, rest) = line.split_once(' ').expect("a range");
            // The kernel's own pages can't be read, and hold nothing of the process.
            if !rest.starts_with('r') || rest.contains("[v") {
                continue;
            }
            let (start, end) = range.split_once('-').expect("two ends");
            let at = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
            let mut bytes = vec![0; usize::try_from(at(end) - at(start)).expect("it fits")];
            match memory.read_exact_at(&mut bytes, at(start)) {
                Ok(()) => {}
                // This process goes on while it reads itself, so a mapping may be gone by now.
                Err(_) if process == "self" => continue,
                Err(error) => panic!("{line} of {process} can't be read: {error}"),
            }
            if self.is_in(&bytes) {
                found.push(line);
            }
        }
        found
    }
}

/// A process that stands still while it is looked at, so that no mapping comes or goes.
struct Stopped(rustix::process::Pid);

impl Stopped {
    fn new(process: &str) -> Self {
        let pid = rustix::process::Pid::from_raw(process.parse().expect("a pid")).expect("not zero");
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("it can be stopped");
        wait_until(SOON, "the worker stands still", || {
            let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
            stat.rsplit_once(") ")?.1.starts_with('T').then_some(())
        });
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may be dead, and then there is nothing to go on.
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
}

/// Everything that may hold no secret, in one look. `workers` have no reveal granted.
#[track_caller]
pub fn assert_nowhere(home: &TestHome, wanted: &Wanted, workers: &[&str]) {
    assert_eq!(wanted.files(&home.path()), Vec::<PathBuf>::new());
    assert!(!wanted.is_in(home.printed().as_bytes()), "printed:\n{}", home.printed());
    for service in workers {
        let pid = home.worker_pid(service).to_string();
        if rustix::process::geteuid().is_root() {
            let stopped = Stopped::new(&pid);
            assert_eq!(wanted.mappings(&pid), Vec::<String>::new(), "the memory of `{service}`");
            drop(stopped);
        } else {
            // Not dumpable: what its own user can't read, nobody but root can.
            let refused = File::open(format!("/proc/{pid}/mem")).expect_err("closed to its user");
            assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        }
    }
}

/// The searches find what is there, or finding nothing would mean nothing.
#[track_caller]
pub fn assert_finds(home: &TestHome, id: &str, wanted: &Wanted) {
    let folder = home.outside().join("exported");
    std::fs::create_dir(&folder).expect("a folder");
    let file = folder.join("export.json");
    let arguments = ["credential", "export", id, "--format", "json", "--output"];
    home.run(&[&arguments[..], &[file.to_str().expect("UTF-8")]].concat()).ok();
    assert_eq!(wanted.files(&folder), [file]);
    assert_ne!(wanted.mappings("self"), Vec::<String>::new());
}

#[test]
fn a_session_is_nowhere_but_in_the_vault_after_a_full_round() {
    // The service repeats the cookies in each answer, so redaction is at work as well.
    let (home, service) = (TestHome::new(), Service::start(OldSession::Dies));
    home.drop_plugin(&guest("well_behaved"));
    let daemon = home.serve_with(&["--log", "trace"]);
    home.add_session("ann", "well-behaved", &service, &["--set", "commit_class=burn-on-issue"]);
    home.wait_for_reports("ann", 1);
    home.run(&["credential", "rotate", "ann"]).ok();
    home.run(&["credential", "validate", "ann"]).ok();
    // A command that is refused doesn't repeat what it was given either.
    let stray = random_secret();
    let base_url = format!("base_url={}", service.url);
    let add = ["credential", "add", "bob", "--service", "well-behaved", "--set", &base_url];
    for input in [format!("sesion={stray}"), stray.clone(), format!("{{\"cookies\": [\"{stray}\"]")] {
        let refused = home.run_with_input(&add, &input);
        assert_eq!(refused.code(), 65, "{refused:?}");
    }
    for arguments in [["credential", "list"], ["reports", "list"], ["plugin", "list"]] {
        home.run(&arguments).ok();
    }
    home.run(&["credential", "show", "ann"]).ok();
    // It ends with 1 where a person is needed.
    home.run(&["status"]);
    let issued = service.issued();
    assert_eq!(issued.len(), 2);
    let wanted = Wanted::new(issued.iter().chain([&stray]).map(String::as_str));
    assert_nowhere(&home, &wanted, &["well-behaved"]);
    assert_finds(&home, "ann", &wanted);
    // What a stopped daemon leaves behind, and what one that was killed does.
    assert!(daemon.stop().success());
    assert_nowhere(&home, &wanted, &[]);
    home.serve().kill_9();
    assert_nowhere(&home, &wanted, &[]);
}

#[test]
fn tokens_and_a_client_secret_are_nowhere_but_in_the_vault_after_a_full_round() {
    let (home, site) = (TestHome::new(), Peer::oidc(60));
    home.drop_plugin(&plugin("oauth2-refresh"));
    let _daemon = home.serve_with(&["--log", "trace"]);
    let tokens = http("POST", &site.url("/test/issue?client=peer-client-secret-basic"), &[]).json();
    let client = site.ready["clients"].as_array().expect("an array")[0].clone();
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let (first, secret) = (text(&tokens["refresh_token"]), text(&client["client_secret"]));
    let settings = [
        format!("token_url={}", text(&site.ready["token_url"])),
        format!("validate_url={}", text(&site.ready["userinfo_url"])),
        format!("client_id={}", text(&client["client_id"])),
    ];
    let set: Vec<_> = settings.iter().flat_map(|setting| ["--set", setting.as_str()]).collect();
    home.add("ann", "oauth2-refresh", &format!("refresh_token={first}\nclient_secret={secret}\n"), &set);
    // The schedule makes the first rotation, which brings the access token.
    let reports = home.wait_for_reports("ann", 2);
    assert_eq!(reports[1]["meta"]["rotated"], true, "{}", reports[1]);
    let file = home.outside().join("tokens.json");
    let arguments = ["credential", "export", "ann", "--format", "json", "--output"];
    home.run(&[&arguments[..], &[file.to_str().expect("UTF-8")]].concat()).ok();
    let exported: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).expect("the export")).expect("JSON");
    let secrets = [first, secret, token(&exported, "refresh_token"), token(&exported, "access_token")];
    let wanted = Wanted::new(secrets.iter().map(String::as_str));
    assert_nowhere(&home, &wanted, &["oauth2-refresh"]);
    assert_finds(&home, "ann", &wanted);
}

/// The value of a key in an export.
fn token(exported: &serde_json::Value, name: &str) -> String {
    exported[name]["value"].as_str().unwrap_or_else(|| panic!("no {name} in the export")).to_owned()
}
