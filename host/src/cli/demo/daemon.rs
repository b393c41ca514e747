//! The demo's child processes: the daemon and the commands an operator would type, all from
//! this very binary. It starts and ends them, and knows nothing of what they do.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::config::Home;

/// A daemon that drains a demo's attempts needs a moment; one that hangs is killed after this.
const STOP: Duration = Duration::from_secs(10);
/// A command asks the daemon once or twice.
const COMMAND: Duration = Duration::from_secs(15);
/// What helps to see why a step broke.
const LOG_LINES: usize = 8;

#[derive(Debug)]
pub struct Daemon {
    child: Child,
    pid: u32,
    log: PathBuf,
}

impl Daemon {
    pub fn start(home: &Home, log: &Path) -> Result<Self, String> {
        let file = std::fs::File::create(log).map_err(|error| format!("the log can't be made: {error}"))?;
        let mut command = this_binary(home);
        command.args(["serve", "--log", "info"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().map_err(|error| format!("the daemon can't be started: {error}"))?;
        let pid = child.id().unwrap_or_default();
        Ok(Self { child, pid, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Asks it to drain and end, as a service manager would.
    pub async fn stop(&mut self) -> Result<(), String> {
        if let Some(ended) = self.ended() {
            return Err(format!("the daemon had ended before ({ended})"));
        }
        signal(self.pid, Signal::TERM)?;
        match tokio::time::timeout(STOP, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(format!("the daemon ended with {status}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => {
                let _ = self.child.kill().await;
                Err(format!("the daemon didn't end within {} s and was killed", STOP.as_secs()))
            }
        }
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> Vec<String> {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].to_vec()
    }
}

/// Runs one command line to its end, with its secrets on standard input.
pub async fn run_command(home: &Home, arguments: &[String], input: &str) -> Result<(), String> {
    let mut command = this_binary(home);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let words = || arguments.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(" ");
    let failed = |error: std::io::Error| format!("`{}` can't be run: {error}", words());
    let mut child = command.spawn().map_err(failed)?;
    let done = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A command that reads nothing has closed its end, which is no failure.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(COMMAND, done)
        .await
        .map_err(|_| format!("`{}` took over {} s", words(), COMMAND.as_secs()))?
        .map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("`{}`: {}", words(), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

pub fn signal(pid: u32, signal: Signal) -> Result<(), String> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("no process to signal")?;
    kill_process(pid, signal).map_err(|error| format!("process {pid:?} can't be signalled: {error}"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the demo stands in for the operator and for the service manager, who start processes too"
)]
fn this_binary(home: &Home) -> Command {
    // The binary that runs, even if its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("--home")
        .arg(home.root())
        // The operator's own KEYWHEEL_ variables are for another home.
        .env_clear()
        .kill_on_drop(true)
        // Ctrl-C on the terminal is for the demo, which ends its children in order.
        .process_group(0);
    let parent = std::process::id();
    // SAFETY: between fork and exec only these system calls run; they allocate nothing.
    unsafe {
        command.pre_exec(move || {
            use rustix::process::{getppid, set_parent_process_death_signal};
            // A demo that is killed leaves no daemon behind. The signal follows the thread that
            // spawned: this is called on the main thread alone, which ends with the process.
            set_parent_process_death_signal(Some(Signal::TERM))?;
            if getppid().is_none_or(|now| now.as_raw_nonzero().get().unsigned_abs() != parent) {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    command
}
