//! The well-behaved provider's `describe` and `validate`, written for Extism.

use extism_pdk::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Context {
    url: String,
    cookie: String,
}

#[derive(Deserialize, FromBytes)]
#[encoding(Json)]
struct Answer {
    status: u16,
    body: String,
}

#[derive(Serialize)]
struct Verdict {
    valid: bool,
    user: Option<String>,
}

#[derive(Deserialize)]
struct Account {
    user: String,
}

#[host_fn]
extern "ExtismHost" {
    fn get(url: String, cookie: String) -> Answer;
}

#[plugin_fn]
pub fn describe(_: ()) -> FnResult<&'static str> {
    Ok(r#"{"service":"well-behaved","title":"A guest of the tests","version":"0.1.0","keys":["session"]}"#)
}

#[plugin_fn]
pub fn validate(Json(context): Json<Context>) -> FnResult<Json<Verdict>> {
    // SAFETY: the host that loads this plugin defines the function with these types.
    let answer = unsafe { get(context.url, context.cookie)? };
    match answer.status {
        200 => {
            let account: Account = serde_json::from_str(&answer.body)?;
            Ok(Json(Verdict { valid: true, user: Some(account.user) }))
        }
        401 => Ok(Json(Verdict { valid: false, user: None })),
        status => Err(WithReturnCode::new(Error::msg(format!("unexpected status {status}")), 1)),
    }
}
