//! Runs a command of the operator's: what a changed secret or an alert sets off. Named in the
//! configuration as a program and its arguments, never as a line for a shell, and never with a
//! secret among them: arguments are public. It gets the daemon's user, a small environment, its
//! input on standard input, and a time to be done in. A leaf.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::limits;

/// Of what a command of the operator's says, so much is kept for the log.
const LONGEST_TALK: u64 = 2_048;

#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("the command is empty; allowed: a program and its arguments")]
    Empty,
    #[error("`{program}` can't be started")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` was not done after {} s and was ended", wall.as_secs())]
    TooLong { program: String, wall: Duration },
    #[error("`{program}` ended with {status}{}", said(talk))]
    Failed { program: String, status: std::process::ExitStatus, talk: String },
}

fn said(talk: &str) -> String {
    if talk.is_empty() { String::new() } else { format!(": {talk}") }
}

/// Runs it to its end. Dropped before, it is ended with all that it started.
///
/// # Errors
/// It can't be started, takes too long, or says that it failed.
pub async fn run(
    command: &[String],
    environment: &[(&str, &str)],
    input: &[u8],
    wall: Duration,
) -> Result<(), HookError> {
    let (program, arguments) = command.split_first().ok_or(HookError::Empty)?;
    #[expect(clippy::disallowed_methods, reason = "the one place that runs what the operator named")]
    let mut starting = Command::new(program);
    starting.args(arguments).env_clear().envs(environment.iter().copied());
    for name in ["HOME", "LANG", "PATH", "TZ", "USER"] {
        if let Some(value) = std::env::var_os(name) {
            starting.env(name, value);
        }
    }
    // A group of its own, so that what it starts can be ended with it.
    starting.process_group(0).kill_on_drop(true);
    starting.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = |source| HookError::Start { program: program.clone(), source };
    let mut child = starting.spawn().map_err(start)?;
    let group = Group(child.id());
    let (mut to, mut from) = (child.stdin.take(), child.stderr.take());
    let ended = tokio::time::timeout(wall, async {
        let give = async {
            if let Some(to) = &mut to {
                // Whoever doesn't read its input is no failure.
                let _ = to.write_all(input).await;
            }
            drop(to.take());
        };
        let listen = async {
            let mut talk = Vec::new();
            if let Some(from) = &mut from {
                let _ = from.take(LONGEST_TALK).read_to_end(&mut talk).await;
                // What comes beyond is read and forgotten, or the command would wait.
                let _ = tokio::io::copy(from, &mut tokio::io::sink()).await;
            }
            talk
        };
        let ((), talk, status) = tokio::join!(give, listen, child.wait());
        (talk, status)
    });
    let Ok((talk, status)) = ended.await else {
        return Err(HookError::TooLong { program: program.clone(), wall });
    };
    let status = status.map_err(start)?;
    std::mem::forget(group);
    if status.success() {
        return Ok(());
    }
    let talk = String::from_utf8_lossy(&talk).trim().to_owned();
    Err(HookError::Failed { program: program.clone(), status, talk })
}

/// The time that a command has where the configuration names none.
pub const WALL: Duration = limits::HOOK_WALL;

/// Ends a whole group of processes when it goes.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(leader) = leader {
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(all: &[&str]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_command_gets_its_input_and_a_small_environment() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let line = format!("cat > {0}; env | cut -d= -f1 | sort >> {0}", out.display());
        run(&words(&["/bin/sh", "-c", &line]), &[("KEYWHEEL_EVENT", "x")], b"given\n", WALL).await.unwrap();
        let text = std::fs::read_to_string(&out).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("given"));
        let names: Vec<_> = lines.collect();
        assert!(names.contains(&"KEYWHEEL_EVENT"), "{names:?}");
        let known = ["HOME", "LANG", "PATH", "TZ", "USER", "KEYWHEEL_EVENT", "PWD", "SHLVL", "_", "OLDPWD"];
        assert!(names.iter().all(|name| known.contains(name)), "{names:?}");
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_in_the_commands_words() {
        let error = run(&words(&["/bin/sh", "-c", "echo no such host >&2; exit 3"]), &[], b"", WALL).await;
        let text = error.unwrap_err().to_string();
        assert!(text.contains("exit status: 3: no such host"), "{text}");
        let error = run(&words(&["/no/such/program"]), &[], b"", WALL).await;
        assert!(matches!(error, Err(HookError::Start { .. })), "{error:?}");
        assert!(matches!(run(&[], &[], b"", WALL).await, Err(HookError::Empty)));
    }

    #[tokio::test]
    async fn a_command_that_takes_too_long_is_ended_with_all_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let line = format!("sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait", pid.display());
        let (command, wall) = (words(&["/bin/sh", "-c", &line]), Duration::from_secs(1));
        let error = run(&command, &[], b"", wall).await;
        assert!(matches!(error, Err(HookError::TooLong { .. })), "{error:?}");
        let pid: i32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(10);
        let is_there = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
        };
        while is_there() {
            assert!(std::time::Instant::now() < end, "the child of the command is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
