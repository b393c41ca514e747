//! A process that is confined exactly as a worker or a compiler, and then does what native code
//! that escaped WebAssembly would try. It shows what the sandbox is worth on this machine: for
//! `keywheel doctor` and for the tests. It runs no plugin.
//!
//! **Every attempt is harmless where it succeeds**, also for root on a machine without any
//! protection: it signals with 0, touches only what the bait laid out, and names what doesn't
//! exist where the system checks the permission first.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::process::ExitCode;

use libc::{c_char, c_int, c_long, c_ulong, c_void};

use super::{CODE_FD, SOCKET_FD, compile, confine, read_message, write_message};
use crate::limits;
use crate::protocol::{Kind, Layer, PoolShape, ProbeAnswer, ProbeOrder, Targets};

/// One forbidden thing, by a name for the table.
pub struct Attempt {
    pub name: &'static str,
    run: fn(&Reach) -> io::Result<()>,
}

/// The targets in the form that system calls take, made before the process is confined.
struct Reach {
    host: c_int,
    tcp: libc::sockaddr_in,
    udp: libc::sockaddr_in,
    abstract_socket: libc::sockaddr_un,
    abstract_length: libc::socklen_t,
    host_maps: CString,
    new_file: CString,
    new_folder: CString,
    /// Exists.
    folder: CString,
    other_name: CString,
    queue: CString,
    /// Somewhere to read and write.
    page: *mut c_void,
    executable_code: *mut c_void,
}

pub fn run() -> ExitCode {
    // SAFETY: the parent placed the socket here and nothing else in this process owns it.
    let mut socket = unsafe { File::from_raw_fd(SOCKET_FD) };
    match answer(&mut socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer(socket: &mut File) -> io::Result<()> {
    let Some(order) = read_message::<ProbeOrder>(socket)? else {
        return Err(io::Error::other("the host spoke before its order"));
    };
    let reach = Reach::new(&order.targets)?;
    match confined_as(socket, order.kind, &order) {
        Ok(layers) => write_message(socket, &ProbeAnswer::Confined(layers))?,
        Err(why) => return write_message(socket, &ProbeAnswer::Unfit(why)),
    }
    let Some(attempt) = order.attempt.and_then(|number| ATTEMPTS.get(number as usize)) else {
        return Ok(());
    };
    let result = match (attempt.run)(&reach) {
        Ok(()) => None,
        Err(error) => Some(error.raw_os_error().unwrap_or(0)),
    };
    write_message(socket, &ProbeAnswer::Returned(result))
}

fn confined_as(socket: &File, kind: Kind, order: &ProbeOrder) -> Result<Vec<Layer>, String> {
    let confinement = order.confinement.clone();
    match kind {
        Kind::Worker => {
            let shape = Some(PoolShape { memories: 1, tables: 1 });
            let nothing = |_: &wasmtime::Engine| Ok(());
            let ((), runtime, ticker, layers) =
                confine(socket, &limits::CALL, shape, confinement, order.filtered, nothing)?;
            // They live as long as a worker's: to the end of the process.
            std::mem::forget((runtime, ticker));
            Ok(layers)
        }
        Kind::Compiler => {
            let (engine, layers) = compile::confine(confinement, CODE_FD, order.filtered)?;
            std::mem::forget(engine);
            Ok(layers)
        }
    }
}

impl Reach {
    fn new(targets: &Targets) -> io::Result<Self> {
        let text = |text: String| CString::new(text).map_err(io::Error::other);
        let loopback = |port: u16| libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            sin_zero: [0; 8],
        };
        // SAFETY: all zero is a valid sockaddr_un.
        let mut abstract_socket: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        abstract_socket.sun_family = libc::AF_UNIX as u16;
        // A leading zero byte makes the name abstract.
        for (place, byte) in abstract_socket.sun_path[1..].iter_mut().zip(targets.abstract_name.bytes()) {
            *place = byte as c_char;
        }
        let map = |protection| {
            // SAFETY: a new anonymous mapping of one page.
            let page = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0)
            };
            if page == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(page) }
        };
        Ok(Self {
            host: targets.host_pid,
            tcp: loopback(targets.tcp_port),
            udp: loopback(targets.udp_port),
            abstract_socket,
            abstract_length: 2 + 1 + targets.abstract_name.len() as libc::socklen_t,
            host_maps: text(format!("/proc/{}/maps", targets.host_pid))?,
            new_file: text(format!("{}/made-by-an-escaped-guest", targets.folder))?,
            new_folder: text(format!("{}/folder-of-an-escaped-guest", targets.folder))?,
            folder: text(format!("{}/folder-to-move", targets.folder))?,
            other_name: text(format!("{}/moved-by-an-escaped-guest", targets.folder))?,
            queue: text(targets.abstract_name.clone())?,
            page: map(libc::PROT_READ | libc::PROT_WRITE)?,
            executable_code: map(libc::PROT_READ | libc::PROT_EXEC)?,
        })
    }
}

impl Reach {
    const fn part(&self) -> libc::iovec {
        libc::iovec { iov_base: self.page, iov_len: 8 }
    }
}

/// A system call by its number, so that nothing of a library stands between.
macro_rules! call {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: every pointer given is valid for the call, or null where that is allowed.
        answered(unsafe { libc::syscall(libc::$number $(, $argument)*) })
    };
}

fn answered(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The result of an attempt whose success is the call's.
macro_rules! attempt {
    ($name:literal, $number:ident $(, $argument:expr)*) => {
        Attempt { name: $name, run: |_| call!($number $(, $argument)*).map(drop) }
    };
}

const fn address_of<T>(value: &T) -> *const T {
    std::ptr::from_ref(value)
}

/// The result of a call that the system denies before it sees that what was named isn't there:
/// that it isn't there says that it was permitted.
fn permitted(result: io::Result<c_long>, not_there: c_int) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(not_there) => Ok(()),
        other => other.map(drop),
    }
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<c_long> {
    call!(SYS_socket, family, kind, protocol)
}

const NULL: *const c_void = std::ptr::null();
/// Eight bytes at an address where no process has any.
const NOWHERE: libc::iovec = libc::iovec { iov_base: std::ptr::without_provenance_mut(16), iov_len: 8 };
const ANYWHERE: c_int = libc::AT_FDCWD;
const SIZE_OF_IN: usize = size_of::<libc::sockaddr_in>();

/// Programs to run; a minimal system has the first.
const SHELL: *const c_char = c"/bin/sh".as_ptr();
const NO_WORDS: [*const c_char; 1] = [std::ptr::null()];

/// Runs in a child that got away: it must not go on with its parent's work.
fn only_in_parent(pid: c_long) {
    if pid == 0 {
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(0) }
    }
}

/// Everything an escaped guest is tried with. Numbers in orders are places in this list.
pub const ATTEMPTS: &[Attempt] = &[
    // Files.
    attempt!("open a file for reading", SYS_openat, ANYWHERE, c"/etc/passwd".as_ptr(), libc::O_RDONLY),
    Attempt {
        name: "make a file",
        run: |reach| {
            let flags = libc::O_CREAT | libc::O_WRONLY;
            call!(SYS_openat, ANYWHERE, reach.new_file.as_ptr(), flags, 0o600).map(drop)
        },
    },
    Attempt {
        name: "open a file by openat2",
        run: |_| {
            // struct open_how: flags, mode, resolve.
            let how = [libc::O_RDONLY as u64, 0, 0];
            call!(SYS_openat2, ANYWHERE, c"/etc/passwd".as_ptr(), how.as_ptr(), size_of_val(&how)).map(drop)
        },
    },
    attempt!("list a folder", SYS_openat, ANYWHERE, c"/".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY),
    Attempt {
        name: "make a folder",
        run: |reach| call!(SYS_mkdirat, ANYWHERE, reach.new_folder.as_ptr(), 0o700).map(drop),
    },
    Attempt {
        name: "rename a folder",
        run: |reach| {
            let (from, to) = (reach.folder.as_ptr(), reach.other_name.as_ptr());
            call!(SYS_renameat2, ANYWHERE, from, ANYWHERE, to, 0).map(drop)
        },
    },
    Attempt {
        name: "delete a folder",
        run: |reach| call!(SYS_unlinkat, ANYWHERE, reach.folder.as_ptr(), libc::AT_REMOVEDIR).map(drop),
    },
    Attempt {
        name: "make a symbolic link",
        run: |reach| {
            call!(SYS_symlinkat, c"/etc/passwd".as_ptr(), ANYWHERE, reach.new_file.as_ptr()).map(drop)
        },
    },
    attempt!(
        "read where a link leads",
        SYS_readlinkat,
        ANYWHERE,
        c"/proc/self/exe".as_ptr(),
        [0_u8; 64].as_mut_ptr(),
        64
    ),
    attempt!(
        "write to its own memory by /proc",
        SYS_openat,
        ANYWHERE,
        c"/proc/self/mem".as_ptr(),
        libc::O_RDWR
    ),
    attempt!("watch files", SYS_inotify_init1, 0),
    attempt!(
        "open a file by its handle",
        SYS_open_by_handle_at,
        ANYWHERE,
        [8_u32, 1, 2, 0].as_ptr(),
        libc::O_RDONLY
    ),
    // Other processes.
    Attempt {
        name: "look into the host by /proc",
        run: |reach| call!(SYS_openat, ANYWHERE, reach.host_maps.as_ptr(), libc::O_RDONLY).map(drop),
    },
    Attempt {
        name: "read the host's memory",
        run: |reach| {
            let (own, theirs) = (reach.part(), NOWHERE);
            let read =
                call!(SYS_process_vm_readv, reach.host, address_of(&own), 1, address_of(&theirs), 1, 0);
            permitted(read, libc::EFAULT)
        },
    },
    Attempt {
        name: "write to the host's memory",
        run: |reach| {
            let (own, theirs) = (reach.part(), NOWHERE);
            let written =
                call!(SYS_process_vm_writev, reach.host, address_of(&own), 1, address_of(&theirs), 1, 0);
            permitted(written, libc::EFAULT)
        },
    },
    Attempt {
        name: "trace the host",
        run: |reach| call!(SYS_ptrace, libc::PTRACE_SEIZE, reach.host, 0, 0).map(drop),
    },
    attempt!("be traced", SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0),
    Attempt { name: "signal the host", run: |reach| call!(SYS_kill, reach.host, 0).map(drop) },
    Attempt {
        name: "signal a thread of the host",
        run: |reach| call!(SYS_tgkill, reach.host, reach.host, 0).map(drop),
    },
    attempt!("signal everybody", SYS_kill, -1, 0),
    Attempt {
        name: "hold the host by a descriptor",
        run: |reach| call!(SYS_pidfd_open, reach.host, 0).map(drop),
    },
    Attempt {
        name: "take a descriptor of another process",
        run: |reach| {
            let held = call!(SYS_pidfd_open, reach.host, 0)?;
            call!(SYS_pidfd_getfd, held, 0, 0).map(drop)
        },
    },
    Attempt {
        name: "change the host's limits",
        run: |reach| {
            let none = libc::rlimit { rlim_cur: 8, rlim_max: 8 };
            call!(SYS_prlimit64, reach.host, libc::RLIMIT_NOFILE, NULL, address_of(&none)).map(drop)
        },
    },
    Attempt {
        name: "raise its own limits",
        run: |_| {
            let many = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
            call!(SYS_prlimit64, 0, libc::RLIMIT_NOFILE, address_of(&many), NULL).map(drop)
        },
    },
    Attempt {
        name: "fork",
        run: |_| {
            let pid = call!(SYS_clone, libc::SIGCHLD as c_ulong, 0, 0, 0, 0)?;
            only_in_parent(pid);
            Ok(())
        },
    },
    Attempt {
        name: "start a process by clone3",
        run: |_| {
            // struct clone_args, of which only the exit signal is set.
            let mut arguments = [0_u64; 8];
            arguments[4] = libc::SIGCHLD as u64;
            let pid = call!(SYS_clone3, arguments.as_ptr(), size_of_val(&arguments))?;
            only_in_parent(pid);
            Ok(())
        },
    },
    attempt!("run a program", SYS_execve, SHELL, NO_WORDS.as_ptr(), NO_WORDS.as_ptr()),
    attempt!(
        "run a program by execveat",
        SYS_execveat,
        ANYWHERE,
        SHELL,
        NO_WORDS.as_ptr(),
        NO_WORDS.as_ptr(),
        0
    ),
    Attempt {
        name: "run a program from memory",
        run: |_| {
            let file = call!(SYS_memfd_create, c"program".as_ptr(), 0)?;
            let program = b"#!/bin/sh\n";
            call!(SYS_write, file, program.as_ptr(), program.len())?;
            let empty = c"".as_ptr();
            call!(SYS_execveat, file, empty, NO_WORDS.as_ptr(), NO_WORDS.as_ptr(), libc::AT_EMPTY_PATH)
                .map(drop)
        },
    },
    // The network.
    Attempt {
        name: "connect by TCP",
        run: |reach| {
            let own = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
            call!(SYS_connect, own, address_of(&reach.tcp), SIZE_OF_IN).map(drop)
        },
    },
    Attempt {
        name: "send by UDP",
        run: |reach| {
            let own = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
            call!(SYS_sendto, own, b"secret".as_ptr(), 6, 0, address_of(&reach.udp), SIZE_OF_IN).map(drop)
        },
    },
    Attempt {
        name: "listen on TCP",
        run: |_| {
            let own = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
            // SAFETY: all zero is a valid address: any port, any interface.
            let mut any: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            any.sin_family = libc::AF_INET as u16;
            call!(SYS_bind, own, address_of(&any), SIZE_OF_IN)?;
            call!(SYS_listen, own, 1).map(drop)
        },
    },
    Attempt {
        name: "connect to an abstract socket",
        run: |reach| {
            let own = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
            call!(SYS_connect, own, address_of(&reach.abstract_socket), reach.abstract_length).map(drop)
        },
    },
    Attempt {
        name: "open a raw socket",
        run: |_| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).map(drop),
    },
    Attempt { name: "open a packet socket", run: |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map(drop) },
    Attempt {
        name: "configure the network",
        run: |_| {
            let own = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
            // SAFETY: all zero is a valid ifreq: an interface without a name.
            let mut change: libc::ifreq = unsafe { std::mem::zeroed() };
            change.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
            permitted(call!(SYS_ioctl, own, libc::SIOCSIFFLAGS, address_of(&change)), libc::ENODEV)
        },
    },
    Attempt {
        name: "make a pair of sockets",
        run: |_| {
            call!(SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, [0_i32; 2].as_mut_ptr()).map(drop)
        },
    },
    Attempt {
        name: "send a descriptor to the host",
        run: |_| {
            // SAFETY: all zero is a valid, empty message.
            let message: libc::msghdr = unsafe { std::mem::zeroed() };
            call!(SYS_sendmsg, SOCKET_FD, address_of(&message), 0).map(drop)
        },
    },
    // The kernel.
    Attempt {
        name: "use io_uring",
        run: |_| call!(SYS_io_uring_setup, 1, [0_u8; 120].as_mut_ptr()).map(drop),
    },
    attempt!("load a program into the kernel by bpf", SYS_bpf, 0, [0_u8; 128].as_ptr(), 128),
    attempt!("measure others by perf_event_open", SYS_perf_event_open, [0_u8; 128].as_ptr(), -1, 0, -1, 0),
    attempt!("use userfaultfd", SYS_userfaultfd, 0),
    attempt!(
        "add a key to the kernel's keyring",
        SYS_add_key,
        c"user".as_ptr(),
        c"k".as_ptr(),
        b"v".as_ptr(),
        1,
        -2
    ),
    // KEYCTL_GET_KEYRING_ID of the session's keyring.
    attempt!("read the kernel's keyring", SYS_keyctl, 0, -3, 0, 0, 0),
    Attempt {
        name: "mount",
        run: |reach| {
            let (what, kind) = (c"none".as_ptr(), c"no-such-file-system".as_ptr());
            permitted(call!(SYS_mount, what, reach.folder.as_ptr(), kind, 0, NULL), libc::ENODEV)
        },
    },
    attempt!("change its root", SYS_chroot, c"/".as_ptr()),
    attempt!("make a user namespace", SYS_unshare, libc::CLONE_NEWUSER),
    Attempt {
        name: "enter the host's namespaces",
        run: |reach| {
            let held = call!(SYS_pidfd_open, reach.host, 0)?;
            call!(SYS_setns, held, libc::CLONE_NEWNET).map(drop)
        },
    },
    attempt!("become another user", SYS_setresuid, 1, 1, 1),
    attempt!("load a kernel module", SYS_finit_module, 0, c"".as_ptr(), 0),
    attempt!("ask which kernel this is", SYS_uname, [0_u8; 512].as_mut_ptr()),
    Attempt {
        name: "share memory with others",
        run: |_| {
            let shared = call!(SYS_shmget, libc::IPC_PRIVATE, 4096, libc::IPC_CREAT | 0o600)?;
            // It would outlive the process.
            call!(SYS_shmctl, shared, libc::IPC_RMID, NULL).map(drop)
        },
    },
    Attempt {
        name: "make a message queue",
        run: |reach| {
            let name = reach.queue.as_ptr();
            call!(SYS_mq_open, name, libc::O_CREAT | libc::O_RDWR, 0o600, NULL)?;
            call!(SYS_mq_unlink, name).map(drop)
        },
    },
    attempt!("read the kernel's log", SYS_syslog, 3, [0_u8; 64].as_mut_ptr(), 64),
    // Its own confinement.
    Attempt {
        name: "map memory to write and run",
        run: |_| {
            let (all, flags) = (
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            );
            call!(SYS_mmap, NULL, 4096, all, flags, -1, 0).map(drop)
        },
    },
    Attempt {
        name: "make memory executable",
        run: |reach| call!(SYS_mprotect, reach.page, 4096, libc::PROT_READ | libc::PROT_EXEC).map(drop),
    },
    Attempt {
        name: "make memory executable by a key",
        run: |reach| {
            call!(SYS_pkey_mprotect, reach.page, 4096, libc::PROT_READ | libc::PROT_EXEC, -1).map(drop)
        },
    },
    Attempt {
        name: "make code writable and executable",
        run: |reach| {
            let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            call!(SYS_mprotect, reach.executable_code, 4096, all).map(drop)
        },
    },
    attempt!("become dumpable again", SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0),
    attempt!("outlive the host", SYS_prctl, libc::PR_SET_PDEATHSIG, 0, 0, 0, 0),
    attempt!("replace its filter of system calls", SYS_seccomp, 0, 0, NULL),
    attempt!("change its personality", SYS_personality, 0x0040_0000),
    attempt!("multiply a descriptor", SYS_dup, SOCKET_FD),
    attempt!("steer a terminal", SYS_ioctl, 0, libc::TIOCSTI, b"x".as_ptr()),
    #[cfg(target_arch = "x86_64")]
    Attempt {
        name: "make a system call of 32-bit programs",
        run: |_| {
            let result: i64;
            // SAFETY: getpid of the 32-bit table takes nothing and changes no memory.
            unsafe {
                std::arch::asm!("int 0x80", inlateout("rax") 20_i64 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
            }
            answered(result).map(drop)
        },
    },
    #[cfg(target_arch = "x86_64")]
    Attempt {
        name: "make a system call of x32 programs",
        run: |_| {
            // SAFETY: getpid of the x32 table takes nothing.
            answered(unsafe { libc::syscall(0x4000_0000 | libc::SYS_getpid) }).map(drop)
        },
    },
];
