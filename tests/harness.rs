//! What the end-to-end tests stand on: a home of one's own, the daemon in it, a small service
//! with real sessions, and the peers. It drives the built binary from outside, as a person
//! would, and reaches into nothing of the host. Every wait here has a condition and a deadline.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// For what takes milliseconds on an idle machine: long enough for one that builds as well, and
/// only ever waited for by a test that fails.
pub const SOON: Duration = Duration::from_secs(60);

/// Looks until there is something, and fails with what was waited for.
pub fn wait_until<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {deadline:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A test that failed elsewhere says nothing about what it held.
fn hold<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A secret that no other test run has seen.
pub fn random_secret() -> String {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).expect("the system has random bytes");
    hex::encode(bytes)
}

#[expect(clippy::disallowed_methods, reason = "the tests start the programs they test, and the peers")]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

/// Gives a command the compilers of whoever runs the tests, and nothing else of theirs.
pub fn with_tools(command: &mut Command) -> &mut Command {
    for name in ["PATH", "HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "CARGO_HOME"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Ends a process at once, as the kernel's memory killer would.
pub fn kill_9(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("the process is there");
}

/// Whether a process is there, and more than a name that waits for its parent.
pub fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name is in brackets and may hold anything; the state comes after it.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// How a command ended and what it printed.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "{}\nstdout: {}\nstderr: {}", self.status, self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}\nstdout: {}\nstderr: {}", self.stdout, self.stderr))
    }
}

/// An initialised home in a folder of its own, gone with the value.
pub struct TestHome {
    folder: tempfile::TempDir,
    /// Everything any command in this home printed.
    printed: Mutex<String>,
    daemons: AtomicU32,
    /// Where the store is, if not in the home: tests run on a server so.
    store: Option<String>,
    /// The network namespace that its commands and daemons live in.
    network: Option<String>,
}

/// A schema of its own at the server that `KEYWHEEL_TEST_POSTGRES` names, as the address of a store.
pub fn schema_on_server() -> Option<String> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let server = std::env::var("KEYWHEEL_TEST_POSTGRES").ok()?;
    let name = format!("home_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let made = command("psql")
        .args(["-qX", &server, "-c", &format!("CREATE SCHEMA {name}")])
        .output()
        .expect("psql is there");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(format!("{server}?options=-csearch_path%3D{name}"))
}

impl TestHome {
    pub fn new() -> Self {
        let home = Self::without_init();
        home.run(&["init"]).ok();
        home
    }

    /// With its store in the home, whatever server there is.
    pub fn on_file() -> Self {
        let home = Self { store: None, ..Self::without_init() };
        home.run(&["init"]).ok();
        home
    }

    /// A folder in which nothing was made yet.
    pub fn without_init() -> Self {
        let folder = tempfile::Builder::new().prefix("keywheel-test-").tempdir().expect("a temporary folder");
        Self {
            folder,
            printed: Mutex::default(),
            daemons: AtomicU32::new(0),
            store: schema_on_server(),
            network: None,
        }
    }

    /// The same with its store there.
    pub fn with_store(self, url: &str) -> Self {
        Self { store: Some(url.to_owned()), ..self }
    }

    /// The same in a network namespace.
    pub fn in_network(self, space: &str) -> Self {
        Self { network: Some(space.to_owned()), ..self }
    }

    /// KEYWHEEL_HOME.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// A folder beside the home, for files that must not lie in it.
    pub fn outside(&self) -> &Path {
        self.folder.path()
    }

    /// The binary as a person runs it here, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(env!("CARGO_BIN_EXE_keywheel"));
        if let Some(space) = &self.network {
            let space = File::open(format!("/run/netns/{space}")).expect("the namespace");
            // SAFETY: one system call that allocates nothing runs between fork and exec.
            unsafe {
                command.pre_exec(move || {
                    let network = Some(rustix::thread::LinkNameSpaceType::Network);
                    Ok(rustix::thread::move_into_link_name_space(space.as_fd(), network)?)
                });
            }
        }
        // Nothing of the developer's own environment may decide a test.
        command.env_clear().env("HOME", self.folder.path()).env("KEYWHEEL_HOME", self.path());
        if let Some(store) = &self.store {
            command.env("KEYWHEEL_STORE_URL", store);
        }
        command.args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.run_with_input(arguments, "")
    }

    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        // A command that refuses its arguments never reads its input.
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        let output = child.wait_with_output().expect("the command ends");
        let text = |bytes| String::from_utf8(bytes).expect("commands print UTF-8");
        let output =
            Output { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) };
        hold(&self.printed).extend([output.stdout.as_str(), output.stderr.as_str()]);
        output
    }

    /// Runs a command that must succeed, with `--json`.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        // Where a person is needed `status` says so by its code as well, and answers all the same.
        let answered = arguments == ["status"] && output.code() == 1 && !output.stdout.is_empty();
        if answered { output.json() } else { output.ok().json() }
    }

    /// Everything any command or daemon of this home printed.
    pub fn printed(&self) -> String {
        let mut all = hold(&self.printed).clone();
        for number in 0..self.daemons.load(Ordering::Relaxed) {
            all.push_str(&std::fs::read_to_string(self.log_of(number)).expect("the daemon's log"));
        }
        all
    }

    fn log_of(&self, daemon: u32) -> PathBuf {
        self.folder.path().join(format!("serve-{daemon}.log"))
    }

    /// Copies a plugin into the folder as `cp` does, under its own name.
    pub fn drop_plugin(&self, plugin: &Path) {
        self.drop_plugin_as(plugin, plugin.file_name().and_then(|name| name.to_str()).expect("a file name"));
    }

    pub fn drop_plugin_as(&self, plugin: &Path, name: &str) {
        std::fs::copy(plugin, self.path().join("plugins").join(name)).expect("the plugin can be copied");
    }

    /// Starts the daemon and waits until it answers.
    pub fn serve(&self) -> Daemon {
        self.serve_with(&[])
    }

    /// As `serve`, with more arguments.
    pub fn serve_with(&self, more: &[&str]) -> Daemon {
        self.answering(self.start_daemon(more))
    }

    /// As `serve`, with these variables in the daemon's environment.
    pub fn serve_in(&self, environment: &[(&str, &str)]) -> Daemon {
        self.answering(self.start_daemon_in(&[], environment))
    }

    fn answering(&self, daemon: Daemon) -> Daemon {
        // Before that it compiles what is in the folder, which a busy machine takes its time for.
        wait_until(3 * SOON, "the daemon answers", || {
            let status = self.run(&["status", "--json"]);
            (status.code() <= 1 && status.json()["daemon"] == true).then_some(())
        });
        daemon
    }

    /// Starts the daemon and doesn't wait.
    pub fn start_daemon(&self, more: &[&str]) -> Daemon {
        self.start_daemon_in(more, &[])
    }

    /// As `run`, on a kernel that lacks something.
    pub fn run_on(&self, kernel: &Kernel, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        kernel.hold_for(&mut command);
        let output = command.stdin(Stdio::null()).output().expect("the command ends");
        let text = |bytes| String::from_utf8(bytes).expect("commands print UTF-8");
        Output { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// As `start_daemon`, with these variables in the daemon's environment.
    pub fn start_daemon_with(&self, environment: &[(&str, &str)]) -> Daemon {
        self.start_daemon_in(&[], environment)
    }

    /// As `serve`, after a change to how the daemon is started.
    pub fn serve_changed(&self, change: impl FnOnce(&mut Command)) -> Daemon {
        self.answering(self.start_command(&["serve"], change))
    }

    fn start_daemon_in(&self, more: &[&str], environment: &[(&str, &str)]) -> Daemon {
        self.start_command(&[&["serve"], more].concat(), |command| {
            command.envs(environment.iter().copied());
        })
    }

    fn start_command(&self, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Daemon {
        let log = self.log_of(self.daemons.fetch_add(1, Ordering::Relaxed));
        let file = File::create(&log).expect("a log file");
        let mut command = self.command(arguments);
        change(&mut command);
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a second descriptor")).stderr(file);
        // SAFETY: one system call that allocates nothing runs between fork and exec.
        unsafe {
            // The test that owns the daemon runs on the thread that starts it, so a test run
            // that is killed leaves no daemon behind.
            command.pre_exec(|| {
                Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
            });
        }
        Daemon { child: command.spawn().expect("the daemon starts"), log }
    }

    /// Adds a credential with one key, given on standard input.
    #[track_caller]
    pub fn add(&self, id: &str, service: &str, keys: &str, more: &[&str]) {
        let arguments = [&["credential", "add", id, "--service", service], more].concat();
        self.run_with_input(&arguments, keys).ok();
    }

    /// Adds a credential of one of the guests: a session of `service`.
    #[track_caller]
    pub fn add_session(&self, id: &str, guest: &str, service: &Service, more: &[&str]) -> String {
        let session = service.issue();
        let base_url = format!("base_url={}", service.url);
        self.add(id, guest, &format!("session={session}"), &[&["--set", &base_url], more].concat());
        session
    }

    /// The reports of a credential, oldest first.
    #[track_caller]
    pub fn reports(&self, credential: &str) -> Vec<Value> {
        let list = self.json(&["reports", "list", "--credential", credential, "--limit", "1000"]);
        let mut reports = list.as_array().expect("an array").clone();
        reports.reverse();
        reports
    }

    /// Waits for as many reports of a credential, and returns all there are.
    #[track_caller]
    pub fn wait_for_reports(&self, credential: &str, count: usize) -> Vec<Value> {
        wait_until(SOON, &format!("`{credential}` has {count} reports"), || {
            let reports = self.reports(credential);
            (reports.len() >= count).then_some(reports)
        })
    }

    /// The worker of a service as `status` shows it.
    pub fn worker(&self, service: &str) -> Option<Value> {
        let status = self.json(&["status"]);
        let workers = status["workers"].as_array().expect("an array");
        workers.iter().find(|worker| worker["service"] == service).cloned()
    }

    /// The pid of a service's worker, started if need be by what the test did before.
    pub fn worker_pid(&self, service: &str) -> u32 {
        wait_until(SOON, &format!("`{service}` has a worker"), || {
            let pid = self.worker(service)?["pid"].as_u64()?;
            u32::try_from(pid).ok()
        })
    }

    /// A plugin file as `status` shows it.
    pub fn plugin(&self, file: &str) -> Option<Value> {
        let status = self.json(&["status"]);
        let plugins = status["plugins"].as_array().expect("an array");
        plugins.iter().find(|plugin| plugin["file"] == file).cloned()
    }

    pub fn wait_for_plugin(&self, file: &str, state: &str) -> Value {
        wait_until(SOON, &format!("{file} is {state}"), || {
            self.plugin(file).filter(|plugin| plugin["state"] == state)
        })
    }
}

/// A kernel as a process sees it: this one, with some system calls answered by an error as if
/// they weren't there or weren't allowed.
#[derive(Default)]
pub struct Kernel {
    filters: Vec<seccompiler::BpfProgram>,
}

impl Kernel {
    pub fn whole() -> Self {
        Self::default()
    }

    /// Answers a system call with an error number; with `flags`, only where its first argument
    /// has all of these bits.
    pub fn without(mut self, call: i64, flags: u64, error: i32) -> Self {
        use seccompiler::{
            SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        };
        let with_flags = || {
            let op = SeccompCmpOp::MaskedEq(flags);
            SeccompCondition::new(0, SeccompCmpArgLen::Qword, op, flags)
                .and_then(|condition| SeccompRule::new(vec![condition]))
                .expect("a condition")
        };
        let rules = if flags == 0 { Vec::new() } else { vec![with_flags()] };
        let arch = std::env::consts::ARCH.try_into().expect("a known machine");
        let action = SeccompAction::Errno(error.unsigned_abs());
        let filter = SeccompFilter::new([(call, rules)].into(), SeccompAction::Allow, action, arch);
        self.filters.push(filter.and_then(TryInto::try_into).expect("a filter"));
        self
    }

    /// Answers every system call but these by an error.
    pub fn only(mut self, calls: &[i64], error: i32) -> Self {
        use seccompiler::{SeccompAction, SeccompFilter};
        let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
        let arch = std::env::consts::ARCH.try_into().expect("a known machine");
        let otherwise = SeccompAction::Errno(error.unsigned_abs());
        let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch);
        self.filters.push(filter.and_then(TryInto::try_into).expect("a filter"));
        self
    }

    /// Makes no sockets but of these families.
    pub fn only_sockets(mut self, families: &[i32]) -> Self {
        use seccompiler::{
            SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        };
        let other = families.iter().map(|family| {
            let family = u64::from(family.unsigned_abs());
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family).expect("a condition")
        });
        let rule = SeccompRule::new(other.collect()).expect("a rule");
        let arch = std::env::consts::ARCH.try_into().expect("a known machine");
        let refused = SeccompAction::Errno(libc::EAFNOSUPPORT.unsigned_abs());
        let rules = [(libc::SYS_socket, vec![rule])].into();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch);
        self.filters.push(filter.and_then(TryInto::try_into).expect("a filter"));
        self
    }

    pub fn hold_for(&self, command: &mut Command) {
        for filter in self.filters.clone() {
            // SAFETY: two system calls that allocate nothing run between fork and exec.
            unsafe {
                command.pre_exec(move || {
                    seccompiler::apply_filter(&filter).map_err(|_| std::io::ErrorKind::Other.into())
                });
            }
        }
    }
}

/// A running daemon. Dropping it ends it, by force if it won't.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its living child processes, whichever of its threads started them.
    pub fn children(&self) -> Vec<u32> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the daemon's threads");
        let of = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children"));
        // A thread may end while it is asked.
        let lists = threads.flatten().filter_map(|thread| of(thread).ok());
        let all: Vec<u32> = lists
            .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
            .collect();
        all.into_iter().filter(|&pid| is_running(pid)).collect()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the daemon's log")
    }

    /// Ends it as `systemctl stop` does, and says how it went.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        wait_until(SOON, "the daemon ends", || self.child.try_wait().expect("a child can be waited for"))
    }

    /// Ends it as a power cut does.
    pub fn kill_9(mut self) {
        self.signal(rustix::process::Signal::KILL);
        let status = self.child.wait().expect("a child can be waited for");
        assert_eq!(status.signal(), Some(9));
    }

    /// Waits for an end nobody asked for.
    pub fn ended(&mut self) -> ExitStatus {
        wait_until(SOON, "the daemon ends", || self.child.try_wait().expect("a child can be waited for"))
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the daemon is there");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.signal(rustix::process::Signal::TERM);
            reap(&mut self.child);
        }
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

/// Waits for a child that was told to end, and ends it by force if it won't.
fn reap(child: &mut Child) {
    let end = Instant::now() + Duration::from_secs(5);
    while !matches!(child.try_wait(), Ok(Some(_))) {
        if Instant::now() > end {
            // Best effort: the test has its verdict already.
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a rotation does to the session it was asked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldSession {
    Stays,
    Dies,
}

#[derive(Default)]
struct ServiceState {
    requests: BTreeMap<String, u32>,
    alive: Vec<String>,
    issued: Vec<String>,
    held: Vec<String>,
    waiting: BTreeMap<String, u32>,
}

/// A small HTTP service with real sessions. `GET /check` and `/slow` answer 200 to a living
/// session and 401 to any other; `POST /rotate` issues a new one. Each answer repeats the
/// cookies it was asked with: the careless echo that redaction is for. Any answer can be held
/// back after the request had its effect.
#[derive(Clone)]
pub struct Service {
    pub url: String,
    old: OldSession,
    state: Arc<(Mutex<ServiceState>, Condvar)>,
}

impl Service {
    pub fn start(old: OldSession) -> Self {
        Self::start_at("127.0.0.1", old)
    }

    pub fn start_at(address: &str, old: OldSession) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let service = Self { url, old, state: Arc::default() };
        let of_thread = service.clone();
        // Ends with the test process, like the listener.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let service = of_thread.clone();
                // A client that was killed is no error of the service.
                std::thread::spawn(move || drop(service.answer(stream)));
            }
        });
        service
    }

    /// A new living session.
    pub fn issue(&self) -> String {
        let session = random_secret();
        let mut state = self.state();
        state.alive.push(session.clone());
        state.issued.push(session.clone());
        session
    }

    /// Ends a session, as a sign-out elsewhere does.
    pub fn forget(&self, session: &str) {
        self.state().alive.retain(|alive| alive != session);
    }

    pub fn is_alive(&self, session: &str) -> bool {
        self.state().alive.iter().any(|alive| alive == session)
    }

    /// Every session ever issued.
    pub fn issued(&self) -> Vec<String> {
        self.state().issued.clone()
    }

    /// Requests for a path until now.
    pub fn count(&self, path: &str) -> u32 {
        self.state().requests.get(path).copied().unwrap_or(0)
    }

    /// Holds back the answers of a path until it is released.
    pub fn hold(&self, path: &str) {
        self.state().held.push(path.to_owned());
    }

    pub fn release(&self, path: &str) {
        self.state().held.retain(|held| held != path);
        self.state.1.notify_all();
    }

    /// Waits until an answer of the path is held back.
    #[track_caller]
    pub fn wait_held(&self, path: &str) {
        wait_until(SOON, &format!("a request for {path} arrives"), || {
            self.state().waiting.get(path).is_some_and(|&waiting| waiting > 0).then_some(())
        });
    }

    /// Whether no request for a path waits for its answer.
    pub fn is_idle(&self, path: &str) -> bool {
        self.state().waiting.get(path).is_none_or(|&waiting| waiting == 0)
    }

    fn state(&self) -> MutexGuard<'_, ServiceState> {
        hold(&self.state.0)
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(SOON))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
        let (mut cookies, mut length) = (String::new(), 0);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "cookie" => cookies = value.to_owned(),
                "content-length" => length = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        reader.take(length).read_to_end(&mut Vec::new())?;
        let session = cookies
            .split("; ")
            .find_map(|cookie| cookie.strip_prefix("session="))
            .unwrap_or_default()
            .to_owned();
        let (status, fresh) = self.react(&path, &session);
        let set_cookie =
            fresh.map(|fresh| format!("Set-Cookie: session={fresh}; Path=/\r\n")).unwrap_or_default();
        let body = serde_json::json!({ "asked_with": cookies }).to_string();
        write!(
            stream,
            "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close\r\n{set_cookie}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn react(&self, path: &str, session: &str) -> (u16, Option<String>) {
        let mut state = self.state();
        *state.requests.entry(path.to_owned()).or_default() += 1;
        let alive = state.alive.iter().any(|alive| alive == session);
        let mut fresh = None;
        if alive && path == "/rotate" {
            let new = random_secret();
            if self.old == OldSession::Dies {
                state.alive.retain(|alive| alive != session);
            }
            state.alive.push(new.clone());
            state.issued.push(new.clone());
            fresh = Some(new);
        }
        *state.waiting.entry(path.to_owned()).or_default() += 1;
        while state.held.iter().any(|held| held == path) {
            state = self.state.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting.entry(path.to_owned()).and_modify(|waiting| *waiting -= 1);
        (if alive { 200 } else { 401 }, fresh)
    }
}

/// What a service answers to the test itself, past Keywheel.
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }
}

/// One HTTP/1.0 exchange; `headers` are whole lines such as `Cookie: a=b`.
#[track_caller]
pub fn http(method: &str, url: &str, headers: &[&str]) -> Answer {
    http_with(method, url, headers, "")
}

/// The same with a body.
#[track_caller]
pub fn http_with(method: &str, url: &str, headers: &[&str], body: &str) -> Answer {
    let rest = url.strip_prefix("http://").expect("peers speak plain HTTP");
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host).expect("the peer listens");
    stream.set_read_timeout(Some(SOON)).expect("a timeout can be set");
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    // Version 1.0, for then no answer is chunked.
    let length = body.len();
    write!(
        stream,
        "{method} /{path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {length}\r\n{lines}\r\n{body}"
    )
    .expect("the peer reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the peer answers");
    let (head, body) = text.split_once("\r\n\r\n").expect("an HTTP answer");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, body: body.to_owned() }
}

/// A peer of tests/peers. It ends when its standard input closes, which also happens where the
/// test run is killed.
pub struct Peer {
    pub ready: Value,
    child: Child,
    stdin: Option<ChildStdin>,
    folder: tempfile::TempDir,
}

impl Peer {
    /// The Django site, its sessions living this many seconds.
    pub fn django(session_age: u32) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database = folder.path().join("site.sqlite3");
        let mut command = command(installed_peers().join("django-venv/bin/python"));
        command.arg(source("tests/peers/django-site/site.py")).arg("--db").arg(database);
        Self::start(command.args(["--port", "0", "--session-age", &session_age.to_string()]), folder)
    }

    /// The OpenID provider, its access tokens living this many seconds.
    pub fn oidc(access_ttl: u32) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = command("node");
        command.arg(installed_peers().join("oidc-provider/server.js"));
        Self::start(command.args(["--port", "0", "--access-ttl", &access_ttl.to_string()]), folder)
    }

    /// The Matrix homeserver, its access tokens living this many seconds.
    pub fn synapse(access_ttl: u32) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = command(installed_peers().join("synapse-venv/bin/python"));
        command.arg(source("tests/peers/matrix-synapse/homeserver.py"));
        command.arg("--folder").arg(folder.path().join("files"));
        Self::start(command.args(["--port", "0", "--access-ttl", &access_ttl.to_string()]), folder)
    }

    /// The JupyterHub, below a prefix.
    pub fn hub() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = command(installed_peers().join("jupyterhub-venv/bin/python"));
        command.arg(source("tests/peers/jupyterhub/hub.py"));
        command.arg("--folder").arg(folder.path().join("files"));
        Self::start(command.args(["--port", "0"]), folder)
    }

    /// The mail server, with these arguments besides where it keeps its letters, which is also
    /// where `letters` finds them. A user's password is given as the first line of its input.
    pub fn smtp(arguments: &[&str], password: Option<&str>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = command(installed_peers().join("smtp-venv/bin/python"));
        command.arg(source("tests/peers/smtp-server/mail.py"));
        command.arg("--folder").arg(folder.path().join("letters")).args(arguments);
        Self::start_saying(&mut command, folder, password.map(|password| format!("{password}\n")))
    }

    /// What the mail server took, oldest first.
    pub fn letters(&self) -> Vec<Value> {
        let Ok(entries) = std::fs::read_dir(self.folder.path().join("letters")) else { return Vec::new() };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
        files.sort();
        let read = |file: &PathBuf| std::fs::read_to_string(file).expect("a letter");
        files.iter().map(|file| serde_json::from_str(&read(file)).expect("JSON")).collect()
    }

    fn start(command: &mut Command, folder: tempfile::TempDir) -> Self {
        Self::start_saying(command, folder, None)
    }

    fn start_saying(command: &mut Command, folder: tempfile::TempDir, words: Option<String>) -> Self {
        let log = folder.path().join("stderr.log");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log file"))
            .spawn()
            .expect("the peer starts");
        let mut stdin = child.stdin.take();
        if let (Some(stdin), Some(words)) = (&mut stdin, words) {
            stdin.write_all(words.as_bytes()).expect("the peer reads");
        }
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("the peer speaks UTF-8");
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!("{error} in {line:?}; its log:\n{}", std::fs::read_to_string(&log).unwrap_or_default())
        });
        Self { ready, child, stdin, folder }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.ready["url"].as_str().expect("the peer says its URL"))
    }
}

/// Stands between Keywheel and a peer, and passes everything on, one exchange for each connection.
/// While it cuts, the answers to the requests it was told of reach the peer's effect and never
/// Keywheel: what a network does that fails at the wrong moment.
pub struct Cut {
    pub url: String,
    state: Arc<CutState>,
}

struct CutState {
    peer: String,
    /// The beginning of the request lines whose answers are kept back; none: nothing is.
    request: Mutex<Option<String>>,
    /// Answers that the peer gave and that were kept back.
    kept: AtomicU32,
    /// Whether a connection whose answer was kept back stays open, as where the network hangs.
    hangs: AtomicBool,
}

impl Cut {
    /// Before a peer, whose URL may have a path.
    pub fn before(peer: &str) -> Self {
        let rest = peer.strip_prefix("http://").expect("peers speak plain HTTP");
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}{path}", listener.local_addr().expect("an address"));
        let state = Arc::new(CutState {
            peer: host.to_owned(),
            request: Mutex::default(),
            kept: AtomicU32::new(0),
            hangs: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&state);
        // Ends with the test process, like the listener.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&of_thread);
                // A client that was killed is no error of what stands between.
                std::thread::spawn(move || drop(state.pass_on(stream)));
            }
        });
        Self { url, state }
    }

    /// Loses the answers to requests that begin so, such as `POST /token`, by closing the
    /// connection.
    pub fn lose(&self, request: &str) {
        self.state.hangs.store(false, Ordering::Relaxed);
        *hold(&self.state.request) = Some(request.to_owned());
    }

    /// The same, and the connection stays open without an answer.
    pub fn hang(&self, request: &str) {
        self.state.hangs.store(true, Ordering::Relaxed);
        *hold(&self.state.request) = Some(request.to_owned());
    }

    /// Passes everything on again.
    pub fn heal(&self) {
        *hold(&self.state.request) = None;
    }

    /// Answers kept back until now.
    pub fn kept(&self) -> u32 {
        self.state.kept.load(Ordering::Relaxed)
    }
}

impl CutState {
    fn pass_on(&self, mut client: TcpStream) -> std::io::Result<()> {
        client.set_read_timeout(Some(SOON))?;
        let mut reader = BufReader::new(client.try_clone()?);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let (mut head, mut length) = (first.clone(), 0);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "connection" => continue,
                "content-length" => length = value.trim().parse().unwrap_or(0),
                _ => {}
            }
            head.push_str(&header);
        }
        let mut body = Vec::new();
        reader.take(length).read_to_end(&mut body)?;
        let mut peer = TcpStream::connect(&self.peer)?;
        peer.set_read_timeout(Some(SOON))?;
        write!(peer, "{head}Connection: close\r\n\r\n")?;
        peer.write_all(&body)?;
        let mut answer = Vec::new();
        peer.read_to_end(&mut answer)?;
        let cut = hold(&self.request).as_ref().is_some_and(|request| first.starts_with(request.as_str()));
        if !cut {
            return client.write_all(&answer);
        }
        self.kept.fetch_add(1, Ordering::Relaxed);
        if self.hangs.load(Ordering::Relaxed) {
            // Until the client gives up or is gone.
            let _ = client.read(&mut [0]);
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.stdin.take());
        reap(&mut self.child);
    }
}

/// A file of the repository.
pub fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("host lies in the repository").join(path)
}

fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("tmp lies in the target folder")
}

fn installed_peers() -> PathBuf {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| set_up("peers"));
    target().join("peers")
}

pub fn set_up(what: &str) {
    let mut setup = command("bash");
    setup.arg(source("tests/peers/setup.sh")).arg(what).env("TARGET_DIR", target().join("peers"));
    assert!(setup.status().expect("bash starts").success(), "tests/peers/setup.sh {what} failed");
}

/// Where Playwright is installed, beside the documented browser worker; Chromium is there then, too.
pub fn playwright() -> PathBuf {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| set_up("browser"));
    target().join("peers/playwright-worker")
}

/// Runs the documented browser worker with these variables, in a folder of its own.
pub fn run_browser_worker(folder: &Path, environment: &[(&str, &str)]) -> Output {
    let mut worker = command("node");
    worker.arg(playwright().join("worker.mjs")).current_dir(folder);
    // Chromium writes its cache below the home, and the session must be in no file left behind.
    worker.env("HOME", folder).env("TMPDIR", folder).envs(environment.iter().copied());
    let output = worker.stdin(Stdio::null()).output().expect("the worker ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Output { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Who uses the dashboard, not yet started.
pub fn dashboard_browser() -> Command {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| set_up("dashboard"));
    let mut browser = command("node");
    browser.arg(target().join("peers/browser/dashboard.mjs"));
    browser
}

/// A folder that stays when a test has ended.
pub fn artefacts(name: &str) -> PathBuf {
    target().join(name)
}

/// The checker of Prometheus, not yet started.
pub fn promtool() -> Command {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| set_up("promtool"));
    command(target().join("peers/promtool/usr/bin/promtool"))
}

/// A provider that comes with Keywheel, by its service.
pub fn plugin(service: &str) -> PathBuf {
    providers().join(format!("{service}.wasm"))
}

/// A built guest of tests/guests, by its name.
pub fn guest(name: &str) -> PathBuf {
    providers();
    target().join("wasm32-wasip2/plugin/examples").join(format!("{name}.wasm"))
}

/// The folder of the providers that come with Keywheel. `make plugins` builds them beforehand and
/// keeps them fresh; this is for a plain `cargo test` in a new clone.
pub fn providers() -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    let folder = target().join("providers");
    BUILT.get_or_init(|| {
        let guests = target().join("wasm32-wasip2/plugin/examples");
        if folder.join("template-provider.wasm").exists() && guests.join("uses_std.wasm").exists() {
            return;
        }
        let mut build = command(source("plugins/build.sh"));
        build.env("CARGO_TARGET_DIR", target());
        let mut guests = command(env!("CARGO"));
        guests.current_dir(source("")).env("CARGO_TARGET_DIR", target());
        guests.args(["build", "--quiet", "--locked", "--target", "wasm32-wasip2", "--profile", "plugin"]);
        guests.args(["-p", "keywheel-guests", "--examples"]);
        for mut step in [build, guests] {
            assert!(
                step.status().expect("it starts").success(),
                "the plugins can't be built; hint: rustup target add wasm32-wasip2"
            );
        }
    });
    folder
}
