//! `validate` prints thousands of lines in one go, each a message to the host.

use keywheel_sdk::prelude::*;

#[expect(clippy::print_stdout, reason = "printing is what this guest is for")]
fn prints(_cx: &Cx) -> Result<Verdict> {
    print!("{}", "x\n".repeat(30_000));
    Ok(Verdict::unknown("printed it all"))
}

keywheel_guests::guest!("print-of-many-lines", validate: prints, std);
