//! Is shown its token and gives it as the identity of the account.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn revealing(service: &str) -> Manifest {
    let mut manifest = careful(service);
    manifest.keys.clear();
    manifest.key(Key::token("token").reveal().help("The token"))
}

fn confuse(cx: &Cx) -> Result<Verdict> {
    let token = cx.reveal("token")?;
    match me(cx)? {
        Verdict::Valid(found) => {
            Ok(Verdict::Valid(found.identity(String::from_utf8_lossy(&token).into_owned())))
        }
        other => Ok(other),
    }
}

keywheel_guests::careful!("names-its-account-by-a-secret", revealing, confuse, renew);
