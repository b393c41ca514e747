//! `describe` depends on all there is to depend on: the clock, random numbers, earlier calls. It
//! hopes to be asked again, after it was approved, and to name another host then.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Instant, SystemTime};

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

static CALLS: AtomicU32 = AtomicU32::new(0);

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let start = Instant::now();
        let random = RandomState::new().hash_one(0);
        let calls = CALLS.fetch_add(1, Ordering::Relaxed);
        let paused = start.elapsed().as_nanos();
        tempted("describe-differs").origin(&format!("https://t{time}-r{random}-c{calls}-p{paused}.example"))
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        check(cx)
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        refresh(cx)
    }
}

keywheel_sdk::export!(Guest, std);
