//! Locks this process down before the first plugin byte runs. The order is that of
//! docs/architecture.md: the parent closed descriptors, emptied the environment and made the
//! namespaces, which is checked here; then rlimits, then (once its own files are open)
//! dumpability and Landlock, then (after every thread exists) seccomp. Nothing here can be undone
//! by the process itself.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::protocol::{Confinement, Kind, Layer, LayerState, NAMESPACES, Require};

/// The ioctl of `/proc/self/pagemap` that wasmtime's pool resets memory with (Linux 6.7).
const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// prctl(2): names a mapping of one's own.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// A process on its way into its sandbox, and the layers it has so far.
#[derive(Debug)]
pub struct Sandbox {
    require: Require,
    layers: Vec<Layer>,
}

impl Sandbox {
    /// The layers that came with the process. `last` is the highest descriptor it was given.
    pub fn enter(confinement: Confinement, last: RawFd) -> Self {
        let mut sandbox = Self { require: confinement.require, layers: Vec::new() };
        sandbox.layer("descriptors", only_descriptors_up_to(last));
        let variables = std::env::vars_os().count();
        let empty = if variables == 0 { Ok(()) } else { Err(format!("{variables} variables")) };
        sandbox.layer("environment", empty);
        sandbox.layers.push(Layer { name: NAMESPACES.into(), state: confinement.namespaces });
        sandbox.layer("no_new_privs", rustix::thread::set_no_new_privs(true));
        sandbox
    }

    /// Bounds what the process may use of the machine.
    pub fn bound(&mut self, address_space: u64, file_bytes: u64, cpu: Option<Duration>) {
        use rustix::process::{Resource, Rlimit, setrlimit};
        let limit = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
        let rlimits = setrlimit(Resource::As, limit(address_space))
            .and_then(|()| setrlimit(Resource::Core, limit(0)))
            .and_then(|()| setrlimit(Resource::Fsize, limit(file_bytes)))
            // The descriptors that exist plus the ones the event loop opens, and no more.
            .and_then(|()| setrlimit(Resource::Nofile, limit(16)))
            // Past it the kernel kills: no other signal ends the first process of a pid namespace.
            .and_then(|()| cpu.map_or(Ok(()), |cpu| setrlimit(Resource::Cpu, limit(cpu.as_secs()))));
        self.layer("rlimits", rlimits);
    }

    /// Keeps other processes of this user from reading its memory, and denies it the whole file
    /// system, TCP, abstract sockets and signals to others. After it opened what it needs: an
    /// undumpable process may not even open its own files in `/proc`. Before any other thread,
    /// for Landlock holds for this one and those it starts later.
    pub fn leave_files(&mut self) {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        self.layer("not dumpable", set_dumpable_behavior(DumpableBehavior::NotDumpable));
        self.layer("landlock", landlock());
    }

    /// Leaves only the system calls that running (or compiling) WebAssembly needs; any other
    /// kills the process. Holds for every thread.
    pub fn filter_calls(&mut self, kind: Kind) {
        let applied = filter(kind).map_err(|error| error.to_string()).and_then(|program| {
            seccompiler::apply_filter_all_threads(&program).map_err(|error| error.to_string())
        });
        self.layer("seccomp", applied);
    }

    /// # Errors
    /// Names the layers that are missing and may not be.
    pub fn finish(self) -> Result<Vec<Layer>, String> {
        let missing = self.require.unmet(&self.layers);
        if missing.is_empty() {
            return Ok(self.layers);
        }
        Err(format!(
            "the sandbox is incomplete ({}); hint: `keywheel doctor` says more, and isolation = \"best-effort\" in config.toml runs plugins with what this kernel has",
            missing.join("; ")
        ))
    }

    fn layer(&mut self, name: &str, result: Result<(), impl std::fmt::Display>) {
        let state = match result {
            Ok(()) => LayerState::On,
            Err(error) => LayerState::Unavailable(error.to_string()),
        };
        self.layers.push(Layer { name: name.to_owned(), state });
    }
}

/// The parent closes all others at exec; whether it did is seen, not believed.
fn only_descriptors_up_to(last: RawFd) -> Result<(), String> {
    let listed = || -> std::io::Result<Vec<String>> {
        use rustix::fs::{Dir, Mode, OFlags};
        let folder = rustix::fs::open("/proc/self/fd", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let own = folder.as_raw_fd();
        let mut others = Vec::new();
        for entry in Dir::new(folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.parse::<RawFd>().is_ok_and(|fd| fd > last && fd != own) {
                others.push(name);
            }
        }
        Ok(others)
    };
    match listed() {
        Ok(others) if others.is_empty() => Ok(()),
        Ok(others) => Err(format!("open beyond the given ones: {}", others.join(", "))),
        Err(error) => Err(format!("can't be listed: {error}")),
    }
}

/// # Errors
/// What this kernel lacks.
fn landlock() -> Result<(), String> {
    let ruleset = || -> Result<RulesetStatus, landlock::RulesetError> {
        let abi = ABI::V6;
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .scope(Scope::from_all(abi))?
            .create()?
            .restrict_self()?;
        Ok(status.ruleset)
    };
    match ruleset() {
        Ok(RulesetStatus::FullyEnforced) => Ok(()),
        Ok(RulesetStatus::PartiallyEnforced) => {
            Err("this kernel enforces only a part: ABI 6 (Linux 6.12) has all".into())
        }
        Ok(RulesetStatus::NotEnforced) => Err("this kernel has no Landlock".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn filter(kind: Kind) -> Result<seccompiler::BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let always = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_sched_yield,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_getrandom,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_close,
    ];
    for call in always {
        rules.insert(call, vec![]);
    }
    match kind {
        Kind::Worker => {
            // The event loop was made before; these only wait on it.
            for call in [libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_epoll_ctl] {
                rules.insert(call, vec![]);
            }
            // Asks the kernel which of its own pages were touched, to wipe those alone.
            let only_scans =
                SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, PAGEMAP_SCAN)
                    .and_then(|condition| SeccompRule::new(vec![condition]))?;
            rules.insert(libc::SYS_ioctl, vec![only_scans]);
            // aarch64 never had it.
            #[cfg(target_arch = "x86_64")]
            rules.insert(libc::SYS_epoll_wait, vec![]);
        }
        Kind::Compiler => {
            for call in [libc::SYS_lseek, libc::SYS_fstat, libc::SYS_statx, libc::SYS_pread64] {
                rules.insert(call, vec![]);
            }
        }
    }
    // The standard library's debug builds ask whether a descriptor is open before closing it.
    let only_asks = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::F_GETFD as u64)
        .and_then(|condition| SeccompRule::new(vec![condition]))?;
    rules.insert(libc::SYS_fcntl, vec![only_asks]);
    // The allocator names its mappings for the person who looks at them, and asks which memory
    // is near; both lazily, so not before this.
    let only_names = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, PR_SET_VMA)
        .and_then(|condition| SeccompRule::new(vec![condition]))?;
    rules.insert(libc::SYS_prctl, vec![only_names]);
    rules.insert(libc::SYS_getcpu, vec![]);
    // Memory may be mapped and re-protected, but never made executable.
    let not_executable = || {
        SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    rules.insert(libc::SYS_mmap, vec![not_executable()?]);
    rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
    let arch = if cfg!(target_arch = "aarch64") { TargetArch::aarch64 } else { TargetArch::x86_64 };
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?.try_into()
}
