//! `validate` waits for a time that never comes, and computes nothing meanwhile.

use keywheel_sdk::prelude::*;

fn sleeps(_cx: &Cx) -> Result<Verdict> {
    std::thread::sleep(std::time::Duration::from_secs(1 << 40));
    Ok(Verdict::unknown("woke up"))
}

keywheel_guests::guest!("sleeps-forever", validate: sleeps, std);
