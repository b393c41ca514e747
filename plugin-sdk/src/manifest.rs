//! Builders for what a provider says of itself. Plain values of the contract; nothing is checked
//! here, the host does that (and [`crate::testing`] in your tests).
//!
//! ```
//! use keywheel_sdk::prelude::*;
//! use keywheel_sdk::testing::faults;
//!
//! let manifest = Manifest::new("forum", "The forum", "1.2.0")
//!     .source("https://forum.example/docs/api")
//!     // What the operator says for each credential, and what becomes of it.
//!     .setting(Setting::url("base_url").required().help("The forum, such as https://forum.example"))
//!     .setting(Setting::duration("session_life").default("12h"))
//!     .origin("{base_url.origin}")
//!     .validate_url("{base_url}/api/me")
//!     // The key mapping: what the host attaches by itself, and what templates place.
//!     .key(Key::cookie("session", "forum_session", "{base_url.host}").help("The session cookie"))
//!     .key(Key::token("api_key").optional().help("From the forum's page Settings, API"))
//!     // How to rotate, and what that does to the old secret.
//!     .method(Method::new("renew", CommitClass::Grace).help("Swap the session for a fresh one"))
//!     .class_source("renew", "https://forum.example/docs/api/sessions")
//!     .validate_every(15 * 60)
//!     .idle_limit(30 * 60);
//! assert_eq!(faults(&manifest), [] as [String; 0]);
//! ```

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::bindings::keywheel::provider::types;

pub use types::{
    CommitClass, CookieLocation, KeySpec as Key, Location, Manifest, MethodSpec as Method, SettingKind,
    SettingSpec as Setting,
};

/// Seldom enough for any service, often enough that a dead session is noticed before lunch.
const VALIDATE_EVERY: types::Seconds = 15 * 60;

impl Manifest {
    /// A provider for `service` (`[a-z0-9-]+`), with the version of your crate:
    /// `Manifest::new("example", "Example", env!("CARGO_PKG_VERSION"))`.
    pub fn new(service: &str, title: &str, version: &str) -> Self {
        Self {
            service: service.into(),
            title: title.into(),
            version: version.into(),
            validate_url: String::new(),
            keys: Vec::new(),
            origins: Vec::new(),
            settings: Vec::new(),
            methods: Vec::new(),
            validate_interval: VALIDATE_EVERY,
            max_age: None,
            extras: Vec::new(),
        }
    }

    /// The URL that tells whether a credential lives. May use settings; requests reach it as
    /// `{validate_url}`.
    pub fn validate_url(mut self, url: &str) -> Self {
        self.validate_url = url.into();
        self
    }

    /// An origin the plugin may reach: `https://api.example.com` or `{base_url.origin}`.
    pub fn origin(mut self, origin: &str) -> Self {
        self.origins.push(origin.into());
        self
    }

    pub fn key(mut self, key: Key) -> Self {
        self.keys.push(key);
        self
    }

    pub fn setting(mut self, setting: Setting) -> Self {
        self.settings.push(setting);
        self
    }

    /// A way to rotate; the first is preferred.
    pub fn method(mut self, method: Method) -> Self {
        self.methods.push(method);
        self
    }

    pub fn validate_every(mut self, seconds: types::Seconds) -> Self {
        self.validate_interval = seconds;
        self
    }

    /// Rotate a generation that gets this old, whether or not it says when it expires.
    pub fn max_age(mut self, seconds: types::Seconds) -> Self {
        self.max_age = Some(seconds);
        self
    }

    /// The service ends a session that nobody used for this long, so it is used before.
    pub fn idle_limit(mut self, seconds: types::Seconds) -> Self {
        self.extras.push(("idle-limit-seconds".into(), seconds.to_string()));
        self
    }

    /// The url setting `name` is the address of a host: a value with a path is refused, for it
    /// would be in the way of the provider's own.
    pub fn without_path(mut self, name: &str) -> Self {
        self.extras.push(("without-path".into(), name.into()));
        self
    }

    /// Where the service documents what this provider relies on.
    pub fn source(mut self, url: &str) -> Self {
        self.extras.push(("source".into(), url.into()));
        self
    }

    /// Where the service documents what a method does to the old secret, which is what its commit
    /// class says.
    pub fn class_source(mut self, method: &str, url: &str) -> Self {
        self.extras.push((alloc::format!("class-source:{method}"), url.into()));
        self
    }
}

impl Key {
    /// A key that is the cookie `cookie` of `domain`, path `/`. The host attaches and captures
    /// it. All three may use settings. Required unless [`Key::optional`].
    pub fn cookie(name: &str, cookie: &str, domain: &str) -> Self {
        let cookie = CookieLocation { name: cookie.into(), domain: domain.into(), path: "/".into() };
        Self::at(name, Location::Cookie(cookie))
    }

    /// A key that templates place and request rules capture. Required unless [`Key::optional`].
    pub fn token(name: &str) -> Self {
        Self::at(name, Location::Token)
    }

    /// The cookie's path where it isn't `/`; nothing on a token.
    pub fn path(mut self, path: &str) -> Self {
        if let Location::Cookie(cookie) = &mut self.location {
            cookie.path = path.into();
        }
        self
    }

    pub fn optional(mut self) -> Self {
        self.required = false;
        self
    }

    /// Ask to see the bytes; the operator is asked by name and may say no.
    pub fn reveal(mut self) -> Self {
        self.reveal = true;
        self
    }

    /// One sentence for the person who adds a credential.
    pub fn help(mut self, help: &str) -> Self {
        self.help = help.into();
        self
    }

    fn at(name: &str, location: Location) -> Self {
        Self { name: name.into(), location, required: true, reveal: false, help: String::new() }
    }
}

impl Setting {
    pub fn text(name: &str) -> Self {
        Self::of(name, SettingKind::Text)
    }

    /// Gives `{name}`, `{name.host}` and `{name.origin}`.
    pub fn url(name: &str) -> Self {
        Self::of(name, SettingKind::Url)
    }

    pub fn integer(name: &str) -> Self {
        Self::of(name, SettingKind::Integer)
    }

    pub fn boolean(name: &str) -> Self {
        Self::of(name, SettingKind::Boolean)
    }

    pub fn duration(name: &str) -> Self {
        Self::of(name, SettingKind::Duration)
    }

    pub fn choice<'a>(name: &str, choices: impl IntoIterator<Item = &'a str>) -> Self {
        let choices = choices.into_iter().map(String::from).collect();
        Self { choices, ..Self::of(name, SettingKind::Choice) }
    }

    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }

    pub fn default(mut self, value: &str) -> Self {
        self.default = Some(value.into());
        self
    }

    /// One sentence for the person who adds a credential.
    pub fn help(mut self, help: &str) -> Self {
        self.help = help.into();
        self
    }

    fn of(name: &str, kind: SettingKind) -> Self {
        Self {
            name: name.into(),
            kind,
            required: false,
            default: None,
            choices: Vec::new(),
            help: String::new(),
        }
    }
}

impl Method {
    pub fn new(name: &str, commit_class: CommitClass) -> Self {
        Self { name: name.into(), commit_class, commit_class_setting: None, help: String::new() }
    }

    /// A choice setting with [`CommitClass::NAMES`] by which the operator says how the service
    /// at hand behaves.
    pub fn commit_class_from(mut self, setting: &str) -> Self {
        self.commit_class_setting = Some(setting.into());
        self
    }

    /// One sentence for the operator.
    pub fn help(mut self, help: &str) -> Self {
        self.help = help.into();
        self
    }
}

impl CommitClass {
    /// The contract's names, in its order: the choices of a commit class setting.
    pub const NAMES: [&str; 5] = ["sliding", "additive", "commit-on-use", "grace", "burn-on-issue"];
}
