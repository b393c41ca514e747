//! A SQLite VFS for tests: the system's own, but every fsync of a write-ahead log is counted
//! and can be made to fail. Killing a process can't tell whether a commit was synced; this can.

use std::ffi::{CStr, c_char, c_int};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::ffi;

pub const NAME: &str = "keywheel-sync-probe";
const C_NAME: &CStr = c"keywheel-sync-probe";

static SYNCS: AtomicU32 = AtomicU32::new(0);
static FAILURES_DUE: AtomicU32 = AtomicU32::new(0);
static REGISTER: Once = Once::new();

/// Fsyncs of write-ahead logs since the process began.
pub fn syncs() -> u32 {
    SYNCS.load(Ordering::SeqCst)
}

/// Lets the next so many fsyncs fail.
pub fn fail_next(count: u32) {
    FAILURES_DUE.store(count, Ordering::SeqCst);
}

/// Makes the VFS known to SQLite under `NAME`.
pub fn register() {
    REGISTER.call_once(|| {
        // SAFETY: SQLite's registry is a plain C list behind its own mutex; the default VFS it
        // returns lives as long as the process, and so does the leaked copy handed back to it.
        unsafe {
            let default = ffi::sqlite3_vfs_find(std::ptr::null());
            assert!(!default.is_null());
            let mut probe = *default;
            probe.zName = C_NAME.as_ptr();
            probe.pNext = std::ptr::null_mut();
            probe.xOpen = Some(open);
            assert_eq!(ffi::sqlite3_vfs_register(Box::leak(Box::new(probe)), 0), ffi::SQLITE_OK);
        }
    });
}

unsafe extern "C" fn open(
    _probe: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: the arguments are passed on as SQLite gave them, to the VFS they were meant for
    // (which looks at its own app data, hence its own pointer). After success `pMethods`
    // points to a static table of the system VFS, which is copied, not changed.
    unsafe {
        let system = ffi::sqlite3_vfs_find(std::ptr::null());
        let Some(system_open) = (*system).xOpen else { return ffi::SQLITE_CANTOPEN };
        let result = system_open(system, name, file, flags, out_flags);
        if result == ffi::SQLITE_OK && flags & ffi::SQLITE_OPEN_WAL != 0 {
            let mut methods = *(*file).pMethods;
            methods.xSync = Some(sync);
            // Leaked: a few hundred bytes for each file a test opens.
            (*file).pMethods = Box::leak(Box::new(methods));
        }
        result
    }
}

unsafe extern "C" fn sync(_file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    let due = FAILURES_DUE.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |due| due.checked_sub(1));
    if due.is_ok() {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    // The test asks whether the sync was asked for; the disk under a temporary folder need not
    // really do it.
    SYNCS.fetch_add(1, Ordering::SeqCst);
    ffi::SQLITE_OK
}
