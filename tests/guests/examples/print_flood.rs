//! `validate` prints as many lines as it can, through standard output and not the log.

use keywheel_sdk::prelude::*;

#[expect(clippy::print_stdout, reason = "printing is what this guest is for")]
fn floods(_cx: &Cx) -> Result<Verdict> {
    loop {
        println!("x");
    }
}

keywheel_guests::guest!("print-flood", validate: floods, std);
