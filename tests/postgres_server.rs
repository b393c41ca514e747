//! PostgreSQL servers for the end-to-end tests: Debian's, each in a folder of its own, found by its
//! socket, and gone with the value, however the tests end. They sync, as every store must, and a
//! standby can stream from one. A store's databases belong to a user who may do nothing else.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::harness::*;

/// Ends the server and takes its files away when nobody holds the other end of its input any more:
/// also where the tests were killed.
const JANITOR: &str = r#"cat >/dev/null; cd /; "$@" -m immediate stop >/dev/null 2>&1; rm -rf "$0""#;

pub struct Postgres {
    folder: PathBuf,
    bin: PathBuf,
    settings: Vec<String>,
    janitor: Child,
}

impl Postgres {
    /// One for all tests of the binary; each makes a database of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// An empty one that runs.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As `start`, with settings such as `wal_writer_delay=10s`.
    pub fn start_with(settings: &[&str]) -> Self {
        let server = Self::of(settings.iter().map(|setting| (*setting).to_owned()).collect(), |bin, data| {
            done(
                as_server(&bin.join("initdb"))
                    .args(["-U", "postgres", "--auth=trust", "--no-instructions", "-D"])
                    .arg(data),
            );
            // Where a setting lets it listen, the network is a test's own.
            let rules = data.join("pg_hba.conf");
            let open = std::fs::OpenOptions::new().append(true).open(rules);
            open.and_then(|mut rules| rules.write_all(b"host all all all trust\n")).expect("the rules");
        });
        server.sql("postgres", "CREATE ROLE keywheel LOGIN");
        server
    }

    /// One that runs, with the files that `make` makes.
    fn of(settings: Vec<String>, make: impl FnOnce(&Path, &Path)) -> Self {
        let setup = command(source("tests/peers/setup.sh")).arg("postgres").output().expect("it starts");
        assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
        let versions = std::fs::read_dir("/usr/lib/postgresql").expect("the package's folder").flatten();
        let newest = versions.max_by_key(|entry| {
            entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()).unwrap_or(0)
        });
        let bin = newest.expect("a version").path().join("bin");
        let memory = Path::new("/dev/shm");
        let beside = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new()
            .prefix("keywheel-postgres.")
            .tempdir_in(beside)
            .expect("a folder")
            .keep();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
        if rustix::process::getuid().is_root() {
            done(command("chown").arg("postgres:").arg(&folder));
        }
        let data = folder.join("data");
        make(&bin, &data);
        let mut janitor = command("sh");
        janitor.arg("-c").arg(JANITOR).arg(&folder);
        let ctl = as_server(&bin.join("pg_ctl"));
        janitor.arg(ctl.get_program()).args(ctl.get_args()).arg("-D").arg(&data);
        let janitor = janitor
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let server = Self { folder, bin, settings, janitor };
        server.restart();
        server
    }

    /// The address of a database there.
    pub fn url(&self, database: &str) -> String {
        url_of(&self.folder, database)
    }

    /// The same for a new and empty one.
    pub fn with_database(&self, database: &str) -> String {
        self.sql("postgres", &format!("CREATE DATABASE {database} OWNER keywheel"));
        self.url(database)
    }

    /// Where clients find it.
    pub fn socket(&self) -> PathBuf {
        self.folder.join(".s.PGSQL.5432")
    }

    /// Runs SQL past Keywheel, as the server's own user, and returns the rows as text.
    #[track_caller]
    pub fn sql(&self, database: &str, text: &str) -> String {
        done(&mut self.psql(database, text))
    }

    /// As `sql`, where the server may be away.
    pub fn try_sql(&self, database: &str, text: &str) -> Option<String> {
        let output = self.psql(database, text).stdin(Stdio::null()).output().expect("psql starts");
        let rows = String::from_utf8(output.stdout).expect("UTF-8");
        output.status.success().then(|| rows.trim_end().to_owned())
    }

    fn psql(&self, database: &str, text: &str) -> Command {
        let mut psql = command(self.bin.join("psql"));
        psql.arg("-h").arg(&self.folder).args(["-U", "postgres", "-d", database, "-XqAtc", text]);
        psql.args(["-v", "ON_ERROR_STOP=1"]);
        psql
    }

    /// From now on whoever asks for this database must know the password.
    pub fn ask_for_password(&self, database: &str, password: &str) {
        let rules = format!(
            "local {database} keywheel scram-sha-256\nlocal all all trust\nlocal replication all trust\n"
        );
        std::fs::write(self.folder.join("data/pg_hba.conf"), rules).expect("the rules");
        self.sql("postgres", &format!("ALTER ROLE keywheel PASSWORD '{password}'"));
        self.sql("postgres", "SELECT pg_reload_conf()");
    }

    /// As a power cut does it.
    pub fn stop(&self) {
        done(self.ctl().args(["-m", "immediate", "-w", "stop"]));
    }

    /// In good order: what is under way is taken back first.
    pub fn stop_fast(&self) {
        done(self.ctl().args(["-m", "fast", "-w", "stop"]));
    }

    /// Starts it where it was stopped, and waits until it answers.
    pub fn restart(&self) {
        let mut options = format!(
            "-c listen_addresses='' -c unix_socket_directories='{}' -c max_connections=300 -c shared_buffers=64MB",
            self.folder.display()
        );
        // What comes later stands.
        for setting in &self.settings {
            options.push_str(&format!(" -c '{setting}'"));
        }
        let log = self.folder.join("log");
        done(self.ctl().arg("-l").arg(log).args(["-w", "-t", "60", "-o", &options, "start"]));
    }

    /// Loses its memory, as when the kernel's memory killer takes one of its processes: all
    /// sessions end, and what was committed is read back from the log. It may not be open again yet.
    pub fn crash(&self) {
        let victim = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'";
        kill_9(self.sql("postgres", victim).parse().expect("a pid"));
    }

    /// Another server that streams from this one. Where it is synchronous, no commit is answered
    /// before its disk has it too.
    pub fn standby(&self, synchronous: bool) -> Self {
        let standby = Self::of(self.settings.clone(), |bin, data| {
            done(
                as_server(&bin.join("pg_basebackup"))
                    .args(["-U", "postgres", "-R", "-X", "stream", "-c", "fast", "-h"])
                    .arg(&self.folder)
                    .arg("-D")
                    .arg(data),
            );
        });
        let comes_to = |what: &str, count: &str| {
            wait_until(SOON, what, || (self.sql("postgres", count) != "0").then_some(()));
        };
        comes_to("the standby streams", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'");
        if synchronous {
            self.set("synchronous_standby_names", "*");
            comes_to(
                "commits wait for the standby",
                "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'",
            );
        }
        standby
    }

    /// Makes a standby the server that can be written.
    pub fn promote(&self) {
        assert_eq!(self.sql("postgres", "SELECT pg_promote()"), "t");
        // It took that over from the old one, and has no standby itself.
        self.set("synchronous_standby_names", "");
    }

    /// Changes a setting while it runs.
    pub fn set(&self, setting: &str, value: &str) {
        self.sql("postgres", &format!("ALTER SYSTEM SET {setting} = '{value}'"));
        self.sql("postgres", "SELECT pg_reload_conf()");
    }

    fn ctl(&self) -> Command {
        let mut ctl = as_server(&self.bin.join("pg_ctl"));
        ctl.arg("-D").arg(self.folder.join("data"));
        ctl
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// The address of a database, by the folder of a server's socket or of a proxy's.
pub fn url_of(folder: &Path, database: &str) -> String {
    let folder = folder.to_str().expect("UTF-8").replace('/', "%2F");
    format!("postgres://keywheel@{folder}/{database}")
}

/// It refuses to run as root; root's tests run it as the user that the package made.
fn as_server(program: &Path) -> Command {
    let mut server = if rustix::process::getuid().is_root() {
        let mut server = command("setpriv");
        server
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--inh-caps=-all"])
            .arg(program);
        server
    } else {
        command(program)
    };
    server.current_dir("/");
    server
}

#[track_caller]
fn done(command: &mut Command) -> String {
    // What it starts may hold its output open for ever, so that goes into files.
    let (mut out, mut err) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
    let status = command
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a second descriptor"))
        .stderr(err.try_clone().expect("a second descriptor"))
        .status()
        .expect("it starts");
    assert!(status.success(), "{command:?}: {status}\n{}", read(&mut err));
    read(&mut out)
}

fn read(file: &mut std::fs::File) -> String {
    use std::io::{Read, Seek};
    file.flush().and_then(|()| file.rewind()).expect("a file");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("UTF-8");
    text.trim_end().to_owned()
}

#[test]
fn a_server_stops_starts_again_loses_its_memory_and_hands_over_to_its_standby() {
    let server = Postgres::start();
    server.with_database("store");
    server.sql("store", "CREATE TABLE t (n bigint)");
    server.stop_fast();
    assert_eq!(server.try_sql("store", "SELECT 1"), None);
    server.restart();
    server.crash();
    wait_until(SOON, "it is open again", || server.try_sql("store", "INSERT INTO t VALUES (6)"));
    let standby = server.standby(true);
    server.sql("store", "INSERT INTO t VALUES (7)");
    server.stop();
    standby.promote();
    assert_eq!(standby.sql("store", "INSERT INTO t VALUES (8); SELECT sum(n) FROM t"), "21");
}

#[test]
fn a_database_asks_for_a_password_once_it_is_told_to() {
    let server = Postgres::start();
    let url = server.with_database("guarded");
    let ask = |password: &str| {
        let mut psql = server.psql("guarded", "SELECT 1");
        psql.env_clear().env("PATH", "/usr/bin:/bin").env("PGPASSWORD", password).args(["-d", &url]);
        psql.stdin(Stdio::null()).output().expect("psql starts").status.success()
    };
    assert!(ask(""));
    server.ask_for_password("guarded", "swordfish");
    assert!(ask("swordfish") && !ask("another"));
}
