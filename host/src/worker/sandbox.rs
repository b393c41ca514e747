//! Locks this process down before the first plugin byte runs. The order is that of
//! docs/architecture.md: descriptors and environment were closed by the parent, then
//! dumpability and rlimits here, then Landlock, then (after every thread exists) seccomp.
//! Nothing here can be undone by the process itself.

use std::collections::BTreeMap;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::protocol::{Layer, LayerState};

/// The ioctl of `/proc/self/pagemap` that wasmtime's pool resets memory with (Linux 6.7).
const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// prctl(2): names a mapping of one's own.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// What kind of process is locked down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs native code that is mapped already: no executable mapping from here on.
    Worker,
    /// Turns WebAssembly into native code: a file in, a file out.
    Compiler,
}

/// Bounds what the process may use of the machine.
pub fn bound(address_space: u64, file_bytes: u64) -> Vec<Layer> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
    let mut layers = Vec::new();
    layers.push(layer("no_new_privs", rustix::thread::set_no_new_privs(true)));
    let rlimits = setrlimit(Resource::As, limit(address_space))
        .and_then(|()| setrlimit(Resource::Core, limit(0)))
        .and_then(|()| setrlimit(Resource::Fsize, limit(file_bytes)))
        // The descriptors that exist plus the ones the event loop opens, and no more.
        .and_then(|()| setrlimit(Resource::Nofile, limit(16)));
    layers.push(layer("rlimits", rlimits));
    layers
}

/// Keeps other processes of this user from reading its memory. After the code was loaded, for an
/// undumpable process may no longer open its own files in `/proc`.
pub fn undumpable() -> Layer {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    layer("not dumpable", set_dumpable_behavior(DumpableBehavior::NotDumpable))
}

fn layer(name: &str, result: Result<(), impl std::fmt::Display>) -> Layer {
    let state = match result {
        Ok(()) => LayerState::On,
        Err(error) => LayerState::Unavailable(error.to_string()),
    };
    Layer { name: name.to_owned(), state }
}

/// Denies the whole file system, TCP, abstract sockets and signals to others. Holds for this
/// thread and those it starts later, so it comes before any other thread.
pub fn landlock() -> Layer {
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
    let state = match ruleset() {
        Ok(RulesetStatus::FullyEnforced) => LayerState::On,
        Ok(RulesetStatus::PartiallyEnforced) => {
            LayerState::Unavailable("this kernel enforces only a part: ABI 6 (Linux 6.12) has all".into())
        }
        Ok(RulesetStatus::NotEnforced) => LayerState::Unavailable("this kernel has no Landlock".into()),
        Err(error) => LayerState::Unavailable(error.to_string()),
    };
    Layer { name: "landlock".into(), state }
}

/// Leaves only the system calls that running (or compiling) WebAssembly needs; any other kills
/// the process. Holds for every thread.
pub fn seccomp(kind: Kind) -> Layer {
    Layer {
        name: "seccomp".into(),
        state: match filter(kind).map_err(|error| error.to_string()).and_then(|program| {
            seccompiler::apply_filter_all_threads(&program).map_err(|error| error.to_string())
        }) {
            Ok(()) => LayerState::On,
            Err(error) => LayerState::Unavailable(error),
        },
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
