//! The Rust side of `shim.c`: builds it, and drives the faults of one daemon through its control
//! file. `shim.c` says at its head what each of them does and what an image holds.
//!
//! ```ignore
//! let (home, faults) = (TestHome::new(), ...);
//! let faults = Faults::of(&home);
//! let daemon = home.serve_in(&faults.environment());
//! faults.fail_syncs(libc::EIO, 1, WAL);
//! ```

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::harness::{TestHome, source};

/// Which files a fault strikes; they can be added.
pub const DB: u64 = 1;
pub const WAL: u64 = 2;
pub const SHM: u64 = 4;
pub const SINK: u64 = 16;

/// As many calls as come, until `release`.
pub const FOREVER: u64 = u64::MAX;

/// As in `shim.c`.
const PAGE: usize = 8192;

/// The words of `struct control`, in their order.
#[derive(Clone, Copy)]
enum Word {
    FailWriteErrno,
    FailWriteLeft,
    FailWriteSkip,
    FailWriteFiles,
    FailSyncErrno,
    FailSyncLeft,
    FailSyncSkip,
    FailSyncFiles,
    DelayMs,
    KillAt,
    KillAfter,
    KillFiles,
    Done,
    Images,
    ClockNanos,
    SteadyNanos,
    Writes,
    Syncs,
    FailedWrites,
    FailedSyncs,
    Unnamed,
    /// The first of the home's path.
    Home,
}

/// Where in the life of a write or sync the daemon dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

/// The faults of the daemons that start with `environment`. One at a time: they share the
/// control.
pub struct Faults {
    home: PathBuf,
    control: PathBuf,
    words: NonNull<AtomicU64>,
}

// SAFETY: the words are atomics in a mapping that lives as long as the value.
unsafe impl Send for Faults {}
// SAFETY: as above.
unsafe impl Sync for Faults {}

impl Faults {
    /// With everything off. The control file lies beside the home.
    pub fn of(home: &TestHome) -> Self {
        Self::in_home(&home.path(), home.outside())
    }

    /// For a home that is somewhere else, with the control file in `folder`.
    pub fn in_home(home: &Path, folder: &Path) -> Self {
        let control = folder.join("faults");
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&control)
            .expect("a control file");
        file.set_len(PAGE as u64).expect("a control file");
        // SAFETY: a new mapping of a file that nobody makes shorter.
        let map = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), PAGE, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(map, libc::MAP_FAILED, "the control file can be mapped");
        let words: NonNull<AtomicU64> = NonNull::new(map.cast()).expect("a mapping is nowhere at zero");
        let path = home.as_os_str().as_encoded_bytes();
        assert!(path.len() < 4096, "{} is too long", home.display());
        // SAFETY: the path's place goes to the end of the mapping, and no daemon reads it yet.
        unsafe {
            let place = words.as_ptr().add(Word::Home as usize).cast::<u8>();
            std::ptr::copy_nonoverlapping(path.as_ptr(), place, path.len());
        }
        Self { home: home.to_owned(), control, words }
    }

    /// For the daemon, of which no process of its own inherits it.
    pub fn environment(&self) -> [(&'static str, &str); 2] {
        let text = |path: &'_ Path| path.to_str().map(str::to_owned).expect("paths of tests are UTF-8");
        static LIBRARY: OnceLock<String> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| text(&build()));
        [
            ("LD_PRELOAD", library.as_str()),
            ("KEYWHEEL_FAULTS", self.control.to_str().expect("paths of tests are UTF-8")),
        ]
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        // SAFETY: every word lies in the mapping, which lives as long as `self`.
        unsafe { self.words.add(word as usize).as_ref() }
    }

    fn set(&self, word: Word, value: u64) {
        self.word(word).store(value, Ordering::SeqCst);
    }

    fn get(&self, word: Word) -> u64 {
        self.word(word).load(Ordering::SeqCst)
    }

    /// Lets the next `count` writes of these files fail.
    pub fn fail_writes(&self, errno: i32, count: u64, files: u64) {
        self.fail_writes_after(0, errno, count, files);
    }

    /// As `fail_writes`, once `skip` more have gone well.
    pub fn fail_writes_after(&self, skip: u64, errno: i32, count: u64, files: u64) {
        self.set(Word::FailWriteErrno, u64::from(errno.unsigned_abs()));
        self.set(Word::FailWriteFiles, files);
        self.set(Word::FailWriteSkip, skip);
        self.set(Word::FailWriteLeft, count);
    }

    /// Lets the next `count` syncs of these files fail.
    pub fn fail_syncs(&self, errno: i32, count: u64, files: u64) {
        self.fail_syncs_after(0, errno, count, files);
    }

    /// As `fail_syncs`, once `skip` more have gone well.
    pub fn fail_syncs_after(&self, skip: u64, errno: i32, count: u64, files: u64) {
        self.set(Word::FailSyncErrno, u64::from(errno.unsigned_abs()));
        self.set(Word::FailSyncFiles, files);
        self.set(Word::FailSyncSkip, skip);
        self.set(Word::FailSyncLeft, count);
    }

    /// Ends the failures.
    pub fn release(&self) {
        self.set(Word::FailWriteLeft, 0);
        self.set(Word::FailSyncLeft, 0);
    }

    /// Makes each sync take this much longer.
    pub fn delay_syncs(&self, by: Duration) {
        self.set(Word::DelayMs, u64::try_from(by.as_millis()).expect("a short time"));
    }

    /// Kills the daemon at the `number`-th write or sync of the database or its log from now,
    /// the first being 1. With 0 nothing dies, and `done` says how many there were.
    pub fn kill_at(&self, number: u64, moment: Moment) {
        self.set(Word::KillFiles, 0);
        self.set(Word::KillAfter, u64::from(moment == Moment::After));
        self.set(Word::KillAt, number);
        self.set(Word::Done, 0);
        self.set(Word::KillFiles, DB | WAL);
    }

    /// Writes and syncs since `kill_at`.
    pub fn done(&self) -> u64 {
        self.get(Word::Done)
    }

    /// Keeps what a power cut would leave, for `cut_power`. To be called before the daemon
    /// starts.
    pub fn keep_images(&self) {
        self.set(Word::Images, 1);
    }

    /// Sets the daemon's clock this many seconds ahead of the machine's, or behind.
    pub fn set_clock(&self, seconds: i64) {
        self.set(Word::ClockNanos, (seconds * 1_000_000_000).cast_unsigned());
    }

    /// Makes the stop of a stopped daemon this much longer than it is: all of its clocks go on.
    pub fn lengthen_stop(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).expect("a short time");
        self.word(Word::ClockNanos).fetch_add(nanos, Ordering::SeqCst);
        self.word(Word::SteadyNanos).fetch_add(nanos, Ordering::SeqCst);
    }

    /// Writes of any of the files until now, those that failed included.
    pub fn writes(&self) -> u64 {
        self.get(Word::Writes)
    }

    /// Syncs of any of the files until now, those that failed included.
    pub fn syncs(&self) -> u64 {
        self.get(Word::Syncs)
    }

    pub fn failed_writes(&self) -> u64 {
        self.get(Word::FailedWrites)
    }

    pub fn failed_syncs(&self) -> u64 {
        self.get(Word::FailedSyncs)
    }

    /// Leaves of the database what a power cut would have: what was synced, under the names
    /// that were synced. Everything else is switched off, so that the next daemon may start with
    /// the same control. The daemon must be dead.
    pub fn cut_power(&self) {
        for (kind, name) in [(DB, "keywheel.db"), (WAL, "keywheel.db-wal")] {
            let file = self.home.join(name);
            let image = self.home.join(format!("{name}.synced"));
            if self.get(Word::Unnamed) & kind != 0 || !image.exists() {
                assert_ne!(kind, DB, "there is no image; hint: call keep_images before the daemon starts");
                gone(&file);
            } else {
                fs::copy(&image, &file).expect("an image can be copied");
            }
            // The next daemon begins a new one, for this file as it is.
            gone(&image);
        }
        // Memory of dead processes.
        gone(&self.home.join("keywheel.db-shm"));
        self.release();
        self.set(Word::KillFiles, 0);
        self.set(Word::DelayMs, 0);
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // SAFETY: the mapping of `in_home`, which nobody uses any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), PAGE) };
    }
}

fn gone(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", path.display()),
        _ => {}
    }
}

/// Builds the library. Under a name of this process's own, for another may be loading the last
/// one right now.
#[expect(clippy::disallowed_methods, reason = "the tests start the compiler for the shim")]
fn build() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join("faults-shim.so");
    let mut made = tempfile::NamedTempFile::new_in(folder).expect("a file in the target folder");
    made.flush().expect("an empty file");
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(made.path())
        .arg(source("tests/faults/shim.c"))
        .output()
        .expect("a C compiler, which SQLite is built with too");
    assert!(output.status.success(), "shim.c: {}", String::from_utf8_lossy(&output.stderr));
    made.persist(&library).expect("a rename in one folder");
    library
}
