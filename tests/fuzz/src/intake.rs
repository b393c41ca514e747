//! Messages of external workers. Whatever comes, a report is refused with a field and words that
//! hold no value of `cookieKeys`, or taken with none of them left in it; taking it again gives
//! the same, and so does what a client sends who reads its report back.

use keywheel::credential::Secret;
use keywheel::report::{iso8601, parse_iso8601};
use keywheel::web::intake;
use serde_json::Value;

const NOW: u64 = 1_800_000_000_000;
/// No field and no answer of ours holds this by itself.
const SECRET: &str = "c2VjcmV0LXZhbHVl";
const TOKEN: &[u8] = b"kwt_0011223344556677_of-the-fuzzer";

pub fn run(input: &[u8]) {
    let token = Secret::new(TOKEN);
    let print = |value: &Secret| format!("{:016x}", value.expose().len());
    // What a reader that takes anything sees; ours may take less, and nothing else.
    let lenient = serde_json::from_slice::<Value>(input).ok();
    let values: Vec<String> = lenient
        .as_ref()
        .and_then(|message| message.get("cookieKeys")?.as_object())
        .map(|keys| keys.values().filter_map(|value| value.as_str().map(str::to_owned)).collect())
        .unwrap_or_default();
    // Any other may be a date, a status or a word of the answer.
    let secrets = || values.iter().filter(|value| value.contains(SECRET));
    match intake::report(input, "shop", &token, NOW, print) {
        Err(refused) => {
            let words = format!("{} {}", refused.message, refused.field.as_deref().unwrap_or_default());
            assert!(refused.field.is_some() && !refused.message.is_empty(), "{words}");
            assert!(refused.status.is_client_error(), "{words}");
            assert!(secrets().all(|value| !words.contains(value.as_str())), "{words}");
        }
        Ok(arrived) => {
            let report = arrived.report;
            assert!(lenient.is_some(), "it was JSON");
            let kept = serde_json::to_string(&report).expect("it can be written");
            assert!(secrets().all(|value| !kept.contains(value.as_str())), "{kept}");
            assert_eq!(report.service, "shop");
            let (started, finished) = (parse_iso8601(&report.started_at), parse_iso8601(&report.finished_at));
            assert!(started.is_some() && started <= finished, "{kept}");
            assert_eq!(started.map(iso8601).as_ref(), Some(&report.started_at), "{kept}");
            let again = intake::report(input, "shop", &token, NOW, print).expect("it was taken before");
            assert_eq!(again.report, report);
        }
    }
    if let Err(refused) = intake::announcement(input, "shop", &token) {
        assert!(refused.field.is_some() && refused.status.is_client_error(), "{}", refused.message);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        r#"{"cookieId":"c","profileId":null,"service":"shop","validateUrl":"https://a.example/me?s=c2VjcmV0LXZhbHVl","cookieKeys":{"SID":"c2VjcmV0LXZhbHVl","k":"short"},"status":"failed","message":"no c2VjcmV0LXZhbHVl","startedAt":"2026-01-02T03:04:05.678Z","finishedAt":"2026-01-02T04:04:06+01:00","attemptNumber":3,"meta":{"workerId":"w","c2VjcmV0LXZhbHVl":[1.5,null,true,{"a":"c2VjcmV0LXZhbHVl"}]}}"#,
        r#"{"cookieId":"c2VjcmV0LXZhbHVl","service":"shop","validateUrl":"http://a/","cookieKeys":{"SID":"c2VjcmV0LXZhbHVl"},"status":"success","startedAt":"2026-01-02T03:04:05Z","finishedAt":"2026-01-02T03:04:05Z","attemptNumber":1}"#,
        r#"{"cookieId":"c","service":"shop","validateUrl":"http://a/","status":"unreachable","startedAt":"2026-01-02T03:04:05Z","finishedAt":"2026-01-02T03:04:05Z","attemptNumber":4294967295,"meta":{"a":[[[[[[[[]]]]]]]]}}"#,
        r#"{"cookie_id":"c","cookieKeys":{"SID":"c2VjcmV0LXZhbHVl","SID":"c2VjcmV0LXZhbHVl"}}"#,
        r#"{"pid":1,"workerId":"w","service":"shop","version":"1","intervalSeconds":60}"#,
        r#"[{"pid":1}]"#,
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}
