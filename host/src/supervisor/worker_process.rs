//! Starts child processes, and nothing else does. A child gets an empty environment, namespaces
//! of its own where the kernel gives them, one socket, the files it is meant to have, and dies
//! with the host. Between the fork and the exec only plain system calls run.

use std::ffi::{CString, c_char, c_int, c_long};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::mpsc;

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::protocol::LayerState;
use crate::worker::{CODE_FD, OUTPUT_FD, SOCKET_FD};

/// Which child, and the files it is given beside its socket.
#[derive(Debug)]
pub enum Task {
    Worker {
        code: OwnedFd,
    },
    Compiler {
        plugin: OwnedFd,
        output: OwnedFd,
    },
    /// Finds out what the sandbox is worth on this machine; `target` stands where a worker has
    /// its native code.
    Probe {
        target: OwnedFd,
    },
}

/// A child that runs, and the host's end of its socket. Dropping it kills the child.
#[derive(Debug)]
pub struct Spawned {
    pub child: Child,
    pub socket: UnixStream,
    /// Whether it has user, network, pid and ipc namespaces of its own, all four or none.
    pub namespaces: LayerState,
}

/// A process by its descriptor: its number may be another's before we look, this can't.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: Option<AsyncFd<OwnedFd>>,
}

impl Child {
    /// The number by which the host and its users know the process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn kill(&self) {
        if let Some(pidfd) = &self.pidfd {
            // An error means that it ended already.
            let _ = pidfd_send_signal(pidfd.get_ref(), Signal::KILL);
        }
    }

    /// # Errors
    /// Where it was waited for already.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let pidfd = self.pidfd.as_ref().ok_or_else(|| io::Error::other("it was waited for already"))?;
        drop(pidfd.readable().await?);
        let status = reap(pidfd.get_ref());
        self.pidfd = None;
        status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        let Some(pidfd) = self.pidfd.take() else { return };
        // Somebody must ask how it ended, or its entry stays for as long as the host runs. That
        // is a moment from now, which nobody here may wait for.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                let _ = pidfd.readable().await;
                let _ = reap(pidfd.get_ref());
            })),
            Err(_) => drop(reap(pidfd.get_ref())),
        }
    }
}

fn reap(pidfd: &OwnedFd) -> io::Result<ExitStatus> {
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?
        .ok_or_else(|| io::Error::other("it has not ended"))?;
    // As wait(2) encodes it.
    let raw = status.exit_status().map_or_else(|| status.terminating_signal().unwrap_or(0), |code| code << 8);
    Ok(ExitStatus::from_raw(raw))
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
    /// Where the thread can't be started, or the executable's path holds a zero byte.
    pub fn start(executable: &Path, runtime: tokio::runtime::Handle) -> io::Result<Self> {
        let image = CString::new(executable.as_os_str().as_bytes())?;
        let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
        // Orders wait for a process start each; a few dozen are a full restart of a big host.
        let (orders, queue) = mpsc::sync_channel::<Order>(64);
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            let _runtime = runtime.enter();
            for order in queue {
                // The one who asked may have given up; then the child dies with its handle.
                let _ = order.answer.send(spawn(&image, &null, order.task));
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

fn spawn(image: &CString, null: &OwnedFd, task: Task) -> io::Result<Spawned> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let (name, files) = match task {
        Task::Worker { code } => (c"__worker", vec![code]),
        Task::Compiler { plugin, output } => (c"__compile", vec![plugin, output]),
        Task::Probe { target } => (c"__probe", vec![target]),
    };
    const { assert!(SOCKET_FD == 3 && CODE_FD == 4 && OUTPUT_FD == 5, "the files follow the socket") };
    let mut given = vec![high(null)?, high(null)?, high(null)?, high(&theirs)?];
    for file in &files {
        given.push(high(file)?);
    }
    drop(theirs);
    let sources: Vec<RawFd> = given.iter().map(AsRawFd::as_raw_fd).collect();
    let (mut errors, failed) = {
        let (errors, failed) = io::pipe()?;
        // The first copy must close here, or its own end would keep the pipe open.
        (errors, high(&failed)?)
    };
    let arguments = [image.as_ptr(), name.as_ptr(), std::ptr::null()];
    let environment: [*const c_char; 1] = [std::ptr::null()];
    let start = |flags: c_int| -> io::Result<(i32, OwnedFd)> {
        // SAFETY: no memory is shared, and the child calls nothing but `become_child`, which
        // allocates nothing, takes no lock and doesn't return.
        unsafe {
            match fork(flags)? {
                Some(started) => Ok(started),
                None => become_child(image.as_ptr(), &arguments, &environment, &sources, failed.as_raw_fd()),
            }
        }
    };
    let (started, namespaces) = match start(NAMESPACES) {
        Ok(started) => (started, LayerState::On),
        // Short of something for the moment, it would be no better off without them, and a worker
        // that got through by luck would stand with a wall less for all its life.
        Err(error) if is_shortage(&error) => return Err(error),
        // Containers and hardened kernels deny them to those who aren't root.
        Err(error) => (start(0)?, LayerState::Unavailable(format!("the kernel refuses them: {error}"))),
    };
    let (pid, pidfd) = started;
    drop((given, failed));
    let child = Child {
        pid: u32::try_from(pid).map_err(io::Error::other)?,
        // SAFETY: the AsyncFd owns the descriptor, which stays open until it is dropped.
        pidfd: Some(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?),
    };
    // Ends without a byte when the exec succeeds.
    let mut error = [0; 4];
    match errors.read_exact(&mut error) {
        Ok(()) => return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(error))),
        Err(end) if end.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(error),
    }
    Ok(Spawned { child, socket: UnixStream::from_std(ours)?, namespaces })
}

/// Out of descriptors, processes or memory, rather than refused.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM))
}

/// Leaves a process the time that no other wants. Its thread that computes is its first one; the
/// one that watches its deadline keeps its share.
pub fn run_when_idle(pid: u32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: reads one struct. Where it fails, because the process just ended, nothing is amiss.
    unsafe { libc::sched_setscheduler(pid, libc::SCHED_IDLE, &raw const none) };
}

/// A copy of a descriptor above all that a child is given, so that putting one into its place
/// never overwrites another.
fn high(fd: &impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 16)?)
}

/// No capability over anything of the machine's, no network but a loopback that is down, no
/// process to be seen but its own, no shared memory or queue of others.
const NAMESPACES: c_int = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;

/// fork(2) with flags, and with a descriptor of the child that can't become another's. None in
/// the child.
///
/// # Safety
/// The child may do what a signal handler may: allocate nothing, take no lock.
unsafe fn fork(flags: c_int) -> io::Result<Option<(i32, OwnedFd)>> {
    let mut pidfd: c_int = -1;
    let flags = c_long::from(flags | libc::CLONE_PIDFD | libc::SIGCHLD);
    // Not clone3, which the filters of container runtimes answer with ENOSYS. The first three
    // arguments are the same everywhere; the others are for threads.
    // SAFETY: a null stack and no CLONE_VM make it a fork; the kernel writes one int to `pidfd`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, &raw mut pidfd, 0_usize, 0_usize) };
    match pid {
        0 => Ok(None),
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel just made it, and nobody else knows of it.
        pid => Ok(Some((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))),
    }
}

/// What the child does until it is another program: each line one system call.
///
/// # Safety
/// Only in a forked child. The pointers end with null, and every descriptor is above the places
/// they go to.
unsafe fn become_child(
    image: *const c_char,
    arguments: &[*const c_char; 3],
    environment: &[*const c_char; 1],
    sources: &[RawFd],
    failed: RawFd,
) -> ! {
    // SAFETY: plain system calls with values of this function.
    unsafe {
        'steps: {
            // The host may have died before this line; then its end of the socket is closed,
            // which the child sees as soon as it reads.
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                break 'steps;
            }
            // A huge page for a few kilobytes of heap would triple what a worker has for itself.
            if libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0 {
                break 'steps;
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            if libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) != 0 {
                break 'steps;
            }
            if libc::chdir(c"/".as_ptr()) != 0 {
                break 'steps;
            }
            let mut place = 0;
            for &source in sources {
                if libc::dup2(source, place) != place {
                    break 'steps;
                }
                place += 1;
            }
            // Every descriptor above the given ones closes at exec, whoever opened it.
            if libc::close_range(place.unsigned_abs(), u32::MAX, libc::CLOSE_RANGE_CLOEXEC as c_int) != 0 {
                break 'steps;
            }
            libc::execve(image, arguments.as_ptr(), environment.as_ptr());
        }
        let error = (*libc::__errno_location()).to_ne_bytes();
        libc::write(failed, error.as_ptr().cast(), error.len());
        libc::_exit(127)
    }
}
