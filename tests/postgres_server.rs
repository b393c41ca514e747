//! PostgreSQL servers of a test's own: empty ones in folders in memory, found by their sockets, and
//! standbys that stream from them. A server goes with its value. Only processes that were started
//! here are ended, by their ids.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::harness::*;

/// Where the newest server of this machine has its programs.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, programs)| programs.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("a PostgreSQL server; hint: tests/peers/setup.sh postgres says which").1
}

/// A program of the server's. It refuses to run as root; root's tests run it as the user that the
/// package made.
fn server_program(name: &str, folder: &Path) -> Command {
    let program = programs().join(name);
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = command("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--inh-caps=-all"]);
        command.arg(program);
        command
    } else {
        command(program)
    };
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir(folder);
    command.stdin(Stdio::null());
    command
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
}

pub struct Postgres {
    folder: tempfile::TempDir,
    settings: Vec<String>,
    running: Option<Child>,
}

impl Postgres {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As `start`, with settings such as `max_connections=50`.
    pub fn start_with(settings: &[&str]) -> Self {
        let mut server = Self::in_new_folder(settings);
        run(server_program("initdb", server.folder.path()).arg("-D").arg(server.files()).args([
            "-U",
            "keywheel",
            "--auth=trust",
            "--no-instructions",
        ]));
        server.start_again();
        server
    }

    fn in_new_folder(settings: &[&str]) -> Self {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new()
            .prefix("keywheel-postgres-")
            // Whoever runs the tests and the server's own user both look for the socket in it.
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir_in(place)
            .expect("a folder");
        if rustix::process::geteuid().is_root() {
            run(command("chown").arg("postgres:").arg(folder.path()));
        }
        Self {
            folder,
            settings: settings.iter().map(|setting| (*setting).to_owned()).collect(),
            running: None,
        }
    }

    fn files(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder of its socket, by which PostgreSQL's own programs find it.
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(".s.PGSQL.5432")
    }

    pub fn url(&self) -> String {
        url_of(self.folder.path())
    }

    /// Its process, which all its others come from.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("it runs").id()
    }

    /// What it has written down about itself.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Starts it on the files it has, and waits until it lets clients in.
    pub fn start_again(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .expect("a log");
        let mut server = server_program("postgres", self.folder.path());
        server.arg("-D").arg(self.files());
        let folder = format!("unix_socket_directories={}", self.folder.path().display());
        for setting in ["listen_addresses=", &folder, "max_connections=200", "shared_buffers=64MB"] {
            server.args(["-c", setting]);
        }
        // What comes later stands.
        for setting in &self.settings {
            server.args(["-c", setting]);
        }
        server.stdout(Stdio::null()).stderr(log);
        self.running = Some(server.spawn().expect("the server starts"));
        self.wait_until_open();
    }

    fn wait_until_open(&mut self) {
        wait_until(SOON, "the server lets clients in", || {
            let child = self.running.as_mut().expect("it was started");
            if let Some(status) = child.try_wait().expect("a child of ours") {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            self.try_sql("SELECT 1").ok()
        });
    }

    /// Ends its clients' transactions and itself in good order.
    pub fn stop_fast(&mut self) {
        self.end(rustix::process::Signal::INT);
    }

    /// Ends it as a power cut would, but that what it gave to the kernel stays.
    pub fn stop_at_once(&mut self) {
        self.end(rustix::process::Signal::QUIT);
    }

    fn end(&mut self, signal: rustix::process::Signal) {
        let Some(mut child) = self.running.take() else { return };
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
        let _gone = rustix::process::kill_process(pid, signal);
        let _status = child.wait();
    }

    /// Loses its memory, as when the kernel's memory killer takes one of its processes: all
    /// sessions end, and what was committed is read back from the log. Returns before it is open again.
    pub fn crash(&self) {
        let victim = self.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");
        kill_9(victim.parse().expect("a pid"));
    }

    /// What psql answers: a line for each row, columns with `|` in between.
    #[track_caller]
    pub fn sql(&self, statement: &str) -> String {
        self.try_sql(statement).unwrap_or_else(|said| panic!("{statement}: {said}"))
    }

    /// # Errors
    /// What psql says.
    pub fn try_sql(&self, statement: &str) -> Result<String, String> {
        let output = command(programs().join("psql"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-U", "keywheel", "-d", "postgres", "-c", statement])
            .arg("-h")
            .arg(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .expect("psql starts");
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())
        }
    }

    /// A server that streams from this one. Where it is synchronous, no commit is answered before
    /// it has it on its disk.
    pub fn standby(&self, synchronous: bool) -> Self {
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).collect();
        let mut standby = Self::in_new_folder(&settings);
        run(server_program("pg_basebackup", standby.folder.path())
            .args(["-U", "keywheel", "-R", "-X", "stream", "-c", "fast"])
            .arg("-h")
            .arg(self.folder.path())
            .arg("-D")
            .arg(standby.files()));
        standby.start_again();
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        wait_until(SOON, "the standby streams", || (self.sql(streaming) != "0").then_some(()));
        if synchronous {
            self.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
            self.sql("SELECT pg_reload_conf()");
            let waited_for = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
            wait_until(SOON, "commits wait for the standby", || (self.sql(waited_for) != "0").then_some(()));
        }
        standby
    }

    /// Makes a standby the server that can be written.
    pub fn promote(&self) {
        assert_eq!(self.sql("SELECT pg_promote()"), "t", "{}", self.log());
        // What it took over from the old one must not make it wait for a standby it hasn't got.
        self.sql("ALTER SYSTEM SET synchronous_standby_names = ''");
        self.sql("SELECT pg_reload_conf()");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop_at_once();
    }
}

/// The address of a server, or of a proxy, by the folder of its socket.
pub fn url_of(folder: &Path) -> String {
    let folder = folder.to_str().expect("UTF-8").replace('/', "%2F");
    format!("postgres://keywheel@{folder}/postgres")
}

#[test]
fn a_test_has_a_server_that_stops_starts_again_and_hands_over_to_its_standby() {
    let mut server = Postgres::start();
    server.sql("CREATE TABLE t (n bigint)");
    server.stop_fast();
    assert!(server.try_sql("SELECT 1").is_err(), "it has ended");
    server.start_again();
    let standby = server.standby(true);
    server.sql("INSERT INTO t VALUES (7)");
    server.stop_at_once();
    standby.promote();
    assert_eq!(standby.sql("INSERT INTO t VALUES (8); SELECT sum(n) FROM t"), "15");
}
