//! The operator's choices about traces. Part of `config`, and a leaf like it.

use serde::Deserialize;
use url::Url;

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Where an OTLP collector listens, without the path; None: nothing is traced.
    pub otlp_endpoint: Option<String>,
    /// The share of attempts that is traced.
    pub sample: f64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample: 0.1 }
    }
}

impl Telemetry {
    /// What is wrong with it, in words.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(self.sample > 0.0 && self.sample <= 1.0) {
            return Err(format!(
                "telemetry.sample is {}; allowed: more than 0, up to 1 for every attempt",
                self.sample
            ));
        }
        let Some(endpoint) = &self.otlp_endpoint else { return Ok(()) };
        if !cfg!(feature = "otel") {
            return Err(String::from(
                "telemetry.otlp_endpoint is set, and this build can't trace; hint: `cargo build --features keywheel/otel` makes one that can, or leave the line out",
            ));
        }
        let is_plain = |url: &Url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        };
        match Url::parse(endpoint).ok().filter(is_plain) {
            Some(_) => Ok(()),
            // It isn't quoted: a password in it is one of the mistakes.
            None => Err(String::from(
                "telemetry.otlp_endpoint is no address of a collector; allowed: http or https, a host and a port, such as http://127.0.0.1:4318, without name, password or query; hint: headers go into OTEL_EXPORTER_OTLP_HEADERS",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_and_a_sample_is_a_share() {
        let of = |endpoint: &str| Telemetry { otlp_endpoint: Some(endpoint.into()), ..Telemetry::default() };
        for (telemetry, expected) in [
            (Telemetry::default(), true),
            (of("http://127.0.0.1:4318"), cfg!(feature = "otel")),
            (of("https://collector.example/prefix"), cfg!(feature = "otel")),
            (of("127.0.0.1:4318"), false),
            (of("http://name:word@127.0.0.1:4318"), false),
            (of("http://127.0.0.1:4318/?key=x"), false),
            (of("file:///tmp/x"), false),
            (Telemetry { sample: 1.0, ..Telemetry::default() }, true),
            (Telemetry { sample: 0.0, ..Telemetry::default() }, false),
            (Telemetry { sample: 1.1, ..Telemetry::default() }, false),
            (Telemetry { sample: f64::NAN, ..Telemetry::default() }, false),
        ] {
            assert_eq!(telemetry.check().is_ok(), expected, "{telemetry:?} {:?}", telemetry.check());
        }
    }
}
