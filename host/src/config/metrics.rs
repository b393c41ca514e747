//! The operator's choices about metrics: who may read them and how fine they are. Part of
//! `config`, and a leaf like it.

use serde::Deserialize;

use super::Http;

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// None: as `access_of` decides.
    pub access: Option<Access>,
    /// Series with the names of credentials, beside those of services.
    pub per_credential: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Whoever reaches the port.
    Open,
    /// Tokens with the scope `metrics`.
    Token,
}

impl Metrics {
    /// Open only where loopback is all that reaches the port and nothing finer than services is
    /// shown: their names are no secret to who has an account on the machine, and might be to
    /// everyone behind a proxy.
    pub fn access_of(&self, http: &Http) -> Access {
        let is_near = !http.allow_remote && http.hosts.is_empty();
        self.access.unwrap_or(if is_near && !self.per_credential { Access::Open } else { Access::Token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_open_to_loopback_alone_unless_it_is_said() {
        let near = Http::default();
        let remote = Http { allow_remote: true, ..Http::default() };
        let proxied = Http { hosts: vec!["keywheel.example".into()], ..Http::default() };
        let of = |access, per_credential| Metrics { access, per_credential };
        for (metrics, http, expected) in [
            (of(None, false), &near, Access::Open),
            (of(None, true), &near, Access::Token),
            (of(None, false), &remote, Access::Token),
            (of(None, false), &proxied, Access::Token),
            (of(Some(Access::Open), true), &remote, Access::Open),
            (of(Some(Access::Token), false), &near, Access::Token),
        ] {
            assert_eq!(metrics.access_of(http), expected, "{metrics:?} {http:?}");
        }
    }
}
