//! Starts child processes, and nothing else does. A child gets an empty environment, one
//! socket, the files it is meant to have, and dies with the host.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc;

use command_fds::{CommandFdExt, FdMapping};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::worker::{CODE_FD, OUTPUT_FD, SOCKET_FD};

/// Which child, and the files it is given beside its socket.
#[derive(Debug)]
pub enum Task {
    Worker { code: OwnedFd },
    Compiler { plugin: OwnedFd, output: OwnedFd, require_sandbox: bool },
}

/// A child that runs, and the host's end of its socket. Dropping it kills the child.
#[derive(Debug)]
pub struct Spawned {
    pub child: Child,
    pub socket: UnixStream,
}

struct Order {
    task: Task,
    answer: oneshot::Sender<io::Result<Spawned>>,
}

/// The permanent thread that starts every child: the parent-death signal follows the thread
/// that spawned, and a runtime's thread may end long before the process does.
#[derive(Debug, Clone)]
pub struct Spawner {
    orders: mpsc::SyncSender<Order>,
}

impl Spawner {
    /// # Errors
    /// Where the thread can't be started.
    pub fn start(executable: PathBuf, runtime: tokio::runtime::Handle) -> io::Result<Self> {
        // Orders wait for a process start each; a few dozen are a full restart of a big host.
        let (orders, queue) = mpsc::sync_channel::<Order>(64);
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            let _runtime = runtime.enter();
            for order in queue {
                // The one who asked may have given up; then the child dies with its handle.
                let _ = order.answer.send(spawn(&executable, order.task));
            }
        })?;
        Ok(Self { orders })
    }

    /// # Errors
    /// The system's, where the process can't be started.
    pub async fn spawn(&self, task: Task) -> io::Result<Spawned> {
        let (answer, answered) = oneshot::channel();
        let mut order = Order { task, answer };
        loop {
            match self.orders.try_send(order) {
                Ok(()) => break,
                Err(mpsc::TrySendError::Full(back)) => {
                    order = back;
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
                Err(mpsc::TrySendError::Disconnected(_)) => {
                    return Err(io::Error::other("the spawner thread is gone"));
                }
            }
        }
        answered.await.map_err(|_| io::Error::other("the spawner thread is gone"))?
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that starts processes")]
fn spawn(executable: &PathBuf, task: Task) -> io::Result<Spawned> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new(executable);
    let mut fds = vec![FdMapping { parent_fd: theirs.into(), child_fd: SOCKET_FD }];
    let last = match task {
        Task::Worker { code } => {
            command.arg("__worker");
            fds.push(FdMapping { parent_fd: code, child_fd: CODE_FD });
            CODE_FD
        }
        Task::Compiler { plugin, output, require_sandbox } => {
            command.arg("__compile");
            if require_sandbox {
                command.arg("--require-sandbox");
            }
            fds.push(FdMapping { parent_fd: plugin, child_fd: CODE_FD });
            fds.push(FdMapping { parent_fd: output, child_fd: OUTPUT_FD });
            OUTPUT_FD
        }
    };
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .fd_mappings(fds)
        .map_err(io::Error::other)?;
    let parent = std::process::id();
    // SAFETY: between fork and exec only these system calls run; they allocate nothing.
    unsafe {
        command.pre_exec(move || {
            use rustix::process::{Signal, getppid, set_parent_process_death_signal};
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The host may have died before the line above.
            if getppid().is_none_or(|now| now.as_raw_nonzero().get().unsigned_abs() != parent) {
                return Err(io::Error::other("the host is gone"));
            }
            // A huge page for a few kilobytes of heap would triple what a worker has for itself.
            if libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            // Every descriptor above the given ones closes at exec, whoever opened it.
            let first = u32::try_from(last + 1).unwrap_or(u32::MAX);
            if libc::close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    let socket = UnixStream::from_std(ours)?;
    debug_assert!(socket.as_raw_fd() > 2);
    Ok(Spawned { child, socket })
}
