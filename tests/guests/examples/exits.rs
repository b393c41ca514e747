//! `validate` ends the whole program, as far as it can.

use keywheel_sdk::prelude::*;

fn exits(_cx: &Cx) -> Result<Verdict> {
    std::process::exit(0)
}

keywheel_guests::guest!("exits", validate: exits, std);
