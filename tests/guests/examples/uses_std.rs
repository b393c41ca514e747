//! Uses std: what it prints must end in the log, and there is nothing else for it to reach.

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        manifest("uses-std", "0.1.0")
    }

    #[expect(clippy::print_stdout, reason = "printing is what this guest is for")]
    fn validate(cx: &Cx) -> Result<Verdict> {
        println!("printed by a guest with std");
        check(cx)
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        refresh(cx)
    }
}

keywheel_sdk::export!(Guest, std);
