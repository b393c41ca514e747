//! What serde can't say: whether a template that has the right shape makes sense. Owns every such
//! rule, and asks for all of them, so that an author mends more than one fault at a time. Pure.

mod requests;
mod rules;

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use keywheel_sdk::manifest::CommitClass;

use crate::fault::{Fault, listed, suggestion};
use crate::notation::{self, Encoding, Piece, Placeholder, placeholders};
use crate::place::{At, Entries, Span};
use crate::predicate::Claim;
use crate::run::{keys_used, plain};
use crate::template::{
    ExpiresTable, Kind, MethodTable, RequestFields, RetryTable, Scalar, SettingTable, Source, Template, Verb,
    duration,
};

/// A name of a service, key, setting or method; the contract says so.
const NAME: usize = 64;
/// One line of a table on an 80-column terminal.
const TITLE: usize = 80;

/// Everything that is wrong with a template.
pub fn check(template: &Template) -> Vec<Fault> {
    let mut check = Check { template, faults: Vec::new(), used: BTreeSet::new() };
    check.head();
    check.settings();
    check.keys();
    check.validate();
    for (name, method) in template.rotate.iter() {
        check.method(name, method);
    }
    if let Some(retry) = &template.retry {
        check.retry(retry);
    }
    // What a fault in a value made unreadable isn't unused.
    if check.faults.is_empty() {
        check.unused();
    }
    check.faults
}

struct Check<'t> {
    template: &'t Template,
    faults: Vec<Fault>,
    /// Settings and keys that something refers to.
    used: BTreeSet<&'t str>,
}

impl<'t> Check<'t> {
    fn fault(&mut self, span: &Span, what: impl Into<String>) {
        self.faults.push(Fault::new(span, what));
    }

    fn head(&mut self) {
        let Template { service, title, version, source, .. } = self.template;
        self.name(service, "service", "a-z, 0-9 and `-`", b"-");
        self.line(title, "the title");
        if title.chars().count() > TITLE {
            self.fault(
                &title.span,
                format!("the title has {} characters; at most {TITLE} are allowed", title.chars().count()),
            );
        }
        let numbers = version.split(['-', '+']).next().unwrap_or_default();
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if numbers.split('.').count() != 3 || !numbers.split('.').all(is_number) {
            self.fault(
                &version.span,
                format!("`{}` is no version; hint: write three numbers, such as \"1.0.0\"", version.value),
            );
        }
        self.link(source);
    }

    fn link(&mut self, link: &'t At<String>) {
        if !link.starts_with("https://") || link.contains(char::is_whitespace) {
            self.fault(
                &link.span,
                "this is no link; hint: write the https URL of the service's documentation",
            );
        }
    }

    fn name(&mut self, name: &At<String>, what: &str, allowed: &str, marks: &[u8]) {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || marks.contains(&byte);
        if !(1..=NAME).contains(&name.len()) || !name.bytes().all(fits) {
            let shown: String = name.chars().take(NAME).collect();
            self.fault(
                &name.span,
                format!("`{shown}` is no name of a {what}; allowed: 1 to {NAME} of {allowed}"),
            );
        }
    }

    fn line(&mut self, text: &At<String>, what: &str) {
        if text.trim().is_empty() {
            self.fault(&text.span, format!("{what} is empty; hint: write one line for people"));
        } else if text.contains(char::is_control) {
            self.fault(
                &text.span,
                format!("{what} has a line break or another control character; hint: write one line"),
            );
        }
    }

    fn settings(&mut self) {
        for (name, setting) in self.template.settings.iter() {
            self.name(name, "setting", "a-z, 0-9 and `_`", b"_");
            if self.template.keys.get(name).is_some() {
                self.fault(
                    &name.span,
                    format!(
                        "`{}` is a key too, and `{{{}}}` would mean both; hint: rename one of them",
                        name.value, name.value
                    ),
                );
            }
            self.choices(name, setting);
            if let Some(default) = &setting.default {
                if setting.required {
                    self.fault(
                        &default.span,
                        format!(
                            "`{}` is required, so its default is never used; hint: keep one of the two",
                            name.value
                        ),
                    );
                }
                self.default(name, setting, default);
            }
        }
    }

    fn choices(&mut self, name: &At<String>, setting: &SettingTable) {
        match (setting.kind, &setting.choices) {
            (Kind::Choice, None) => self.fault(
                &name.span,
                format!("`{}` is a choice without choices; hint: choices = [\"…\", \"…\"]", name.value),
            ),
            (Kind::Choice, Some(choices)) if choices.is_empty() || choices.iter().any(String::is_empty) => {
                self.fault(&choices.span, "an empty choice; hint: name each value the operator may choose");
            }
            (Kind::Choice, Some(_)) | (_, None) => {}
            (_, Some(choices)) => self.fault(
                &choices.span,
                format!("`{}` has choices and isn't one; hint: kind = \"choice\"", name.value),
            ),
        }
    }

    fn default(&mut self, name: &At<String>, setting: &SettingTable, default: &At<Scalar>) {
        let wants = match (setting.kind, &default.value) {
            (Kind::Text, Scalar::Text(_))
            | (Kind::Integer, Scalar::Integer(_))
            | (Kind::Boolean, Scalar::Boolean(_)) => return,
            (Kind::Text, _) => "a text, in quotes",
            (Kind::Integer, _) => "a whole number, without quotes",
            (Kind::Boolean, _) => "true or false, without quotes",
            (Kind::Duration, Scalar::Text(text)) if duration(text).is_some() || text == "0s" => return,
            (Kind::Duration, _) => "a duration such as \"90s\", \"15m\" or \"12h\"",
            (Kind::Url, Scalar::Text(text)) if is_base_url(text) => return,
            (Kind::Url, Scalar::Text(text)) if text.starts_with("http://") => {
                "an https URL, for only the operator may name a plain http one"
            }
            (Kind::Url, _) => "a URL `https://host/path` without user, query or fragment",
            (Kind::Choice, Scalar::Text(text)) => {
                let choices: Vec<&str> =
                    setting.choices.iter().flat_map(|choices| choices.iter().map(String::as_str)).collect();
                if !choices.is_empty() && !choices.contains(&text.as_str()) {
                    self.fault(
                        &default.span,
                        format!("the default `{text}` is no choice; {}", suggestion(text, &choices)),
                    );
                }
                return;
            }
            (Kind::Choice, _) => "one of the choices, in quotes",
        };
        self.fault(
            &default.span,
            format!(
                "the default `{}` of `{}` is of the wrong type; hint: write {wants}",
                plain(default),
                name.value
            ),
        );
    }

    fn keys(&mut self) {
        if self.template.keys.is_empty() {
            self.fault(
                &self.template.service.span.clone(),
                "there is no key; hint: name the secret that is kept alive, [keys.token]",
            );
        }
        for (name, key) in self.template.keys.iter() {
            self.name(name, "key", "a-z, 0-9, `_` and `-`", b"_-");
            for part in key
                .cookie
                .iter()
                .flat_map(|cookie| [Some(&cookie.name), Some(&cookie.domain), cookie.path.as_ref()])
                .flatten()
            {
                for one in placeholders(&self.pieces(part)) {
                    if one.encoding.is_some() {
                        self.fault(
                            &part.span,
                            "a cookie's part can't be encoded; hint: write the setting alone",
                        );
                    }
                    self.setting_only(one, &part.span, "a cookie's name, domain or path");
                }
            }
        }
    }

    /// The pieces of a value; a fault and none where it can't be read.
    fn pieces(&mut self, value: &'t At<String>) -> Vec<Piece<'t>> {
        match notation::read(value) {
            Ok(pieces) => pieces,
            Err(why) => {
                self.fault(&value.span, why);
                Vec::new()
            }
        }
    }

    /// Whether the name is known; notes that it is used.
    fn known(&mut self, one: &Placeholder<'t>, span: &Span) -> bool {
        let Template { settings, keys, .. } = self.template;
        let is_url = settings.get(one.name).is_some_and(|setting| setting.kind == Kind::Url);
        if settings.get(one.name).is_none() && keys.get(one.name).is_none() {
            let names: Vec<&str> = settings.names().chain(keys.names()).collect();
            self.fault(
                span,
                format!("`{{{}}}` is no setting and no key; {}", one.name, suggestion(one.name, &names)),
            );
            return false;
        }
        if let (Some(part), false) = (one.part, is_url) {
            self.fault(span, format!("`{{{}.{part}}}`: only a setting of kind url has parts", one.name));
        }
        self.used.insert(one.name);
        true
    }

    fn setting_only(&mut self, one: &Placeholder<'t>, span: &Span, what: &str) {
        if self.known(one, span) && self.template.settings.get(one.name).is_none() {
            self.fault(
                span,
                format!("`{{{}}}` is a key, and {what} is no secret; hint: use a setting", one.name),
            );
        }
    }

    fn validate(&mut self) {
        let table = &self.template.validate;
        let fields = table.request();
        self.request(&fields, "validate");
        let has_body = fields.method != Verb::Head;
        if let Some(identity) = &table.identity {
            self.source(identity, has_body);
        }
        if let Some(expires) = &table.expires {
            self.expires(expires, has_body);
        }
        if table.valid.is_empty() {
            self.fault(&fields.url.span, "no [[validate.valid]] says which answer shows a live credential");
        }
        for rule in &table.valid {
            self.rule(&rule.conditions(), &rule.span, has_body, Claim::Valid);
            if table.identity.is_none() && !rules::is_positive(&rule.conditions()) {
                self.fault(
                    &rule.span,
                    "this would call an empty answer valid, for it wants nothing positive besides the status; hint: name a value \
                     that only a live credential gets, json = { \"/id\" = { present = true } }, or `identity`",
                );
            }
        }
        self.refusals(&table.needs_human, &table.invalid, &table.valid, has_body);
    }

    fn method(&mut self, name: &'t At<String>, method: &'t MethodTable) {
        self.name(name, "rotation method", "a-z, 0-9 and `-`", b"-");
        self.link(&method.class_source);
        let fields = method.request();
        self.request(&fields, name);
        let has_body = fields.method != Verb::Head;
        if let Some(setting) = &method.class_setting {
            self.class_setting(setting);
        }
        let Template { keys, .. } = self.template;
        let has_cookie = keys.iter().any(|(_, key)| key.cookie.is_some());
        if method.capture.is_empty() && !has_cookie {
            self.fault(&name.span, format!("[rotate.{}] brings nothing: it captures no token, and no key is a cookie; hint: [rotate.{}.capture]", name.value, name.value));
        }
        for (key, capture) in method.capture.iter() {
            match keys.get(key) {
                None => {
                    let names: Vec<&str> = keys.names().collect();
                    self.fault(&key.span, format!("`{}` is no key; {}", key.value, suggestion(key, &names)));
                }
                Some(known) if known.cookie.is_some() => {
                    self.fault(
                        &key.span,
                        format!(
                            "`{}` is a cookie, which Keywheel captures by itself; hint: delete this line",
                            key.value
                        ),
                    );
                }
                Some(_) => {}
            }
            match Source::of(capture.json.clone(), capture.header.clone()) {
                Ok(source) => self.source(&source, has_body),
                Err(why) => self.fault(&key.span, why),
            }
            if let Some(seconds) = &capture.expires_in {
                self.source(seconds, has_body);
            }
        }
        for rule in method.rotated.iter().chain(&method.unchanged) {
            self.rule(&rule.conditions(), &rule.span, has_body, Claim::Other);
        }
        self.refusals(&method.needs_human, &method.invalid, &method.unchanged, has_body);
    }

    fn class_setting(&mut self, setting: &'t At<String>) {
        let Some(known) = self.template.settings.get(setting) else {
            let names: Vec<&str> = self.template.settings.names().collect();
            self.fault(
                &setting.span,
                format!("`{}` is no setting; {}", setting.value, suggestion(setting, &names)),
            );
            return;
        };
        if let Some((name, _)) = self.template.settings.iter().find(|(name, _)| name.value == setting.value) {
            self.used.insert(&name.value);
        }
        if known.kind != Kind::Choice {
            self.fault(
                &setting.span,
                format!(
                    "`{}` is no choice; hint: kind = \"choice\", choices = [{}]",
                    setting.value,
                    listed(&CommitClass::NAMES)
                ),
            );
        }
        for choice in known.choices.iter().flat_map(|choices| choices.iter()) {
            if commit_class(choice).is_none() {
                self.fault(
                    &setting.span,
                    format!(
                        "`{}` offers `{choice}`, which is no commit class; {}",
                        setting.value,
                        suggestion(choice, &CommitClass::NAMES)
                    ),
                );
            }
        }
    }

    fn expires(&mut self, table: &'t ExpiresTable, has_body: bool) {
        match Source::of(table.json.clone(), table.header.clone()) {
            Ok(source) => self.source(&source, has_body),
            Err(why) => self.fault(&self.template.validate.url.span.clone(), format!("`expires`: {why}")),
        }
        match (&table.unit, &table.from) {
            (Some(unit), None) => self.fault(&unit.span, "a number of seconds since when? hint: from = \"now\" or from = \"epoch\""),
            (None, Some(from)) => self.fault(&from.span, "only a number counts from somewhere, and without `unit` the value is a date; hint: unit = \"s\" or unit = \"ms\""),
            _ => {}
        }
    }

    fn retry(&mut self, retry: &'t RetryTable) {
        match &retry.header {
            Some(name) => self.header_name(name),
            None => {
                let spans =
                    [retry.unit.as_ref().map(|unit| &unit.span), retry.from.as_ref().map(|from| &from.span)];
                for span in spans.into_iter().flatten() {
                    self.fault(span, "[retry] counts nothing without `header`; hint: name the header that says when to come back");
                }
                if retry.at_least.is_none() {
                    let span = retry
                        .status
                        .as_ref()
                        .map_or(self.template.service.span.clone(), |status| status.span.clone());
                    self.fault(
                        &span,
                        "[retry] says nothing; hint: give `header` or `at_least`, or delete it",
                    );
                }
            }
        }
    }

    fn unused(&mut self) {
        for (name, _) in self.template.settings.iter() {
            if !self.used.contains(name.value.as_str()) {
                self.fault(
                    &name.span,
                    format!(
                        "the setting `{}` is never used; hint: write `{{{}}}` where it belongs, or delete it",
                        name.value, name.value
                    ),
                );
            }
        }
        let cookies_travel = self.requests().any(|fields| fields.cookies);
        for (name, key) in self.template.keys.iter() {
            let used = match &key.cookie {
                Some(_) => cookies_travel,
                None => self.used.contains(name.value.as_str()),
            };
            if !used {
                let how = match &key.cookie {
                    Some(_) => "cookies = true".to_string(),
                    None => format!("`{{{}}}`", name.value),
                };
                self.fault(
                    &name.span,
                    format!(
                        "the key `{}` is never used; hint: a request that carries it says {how}",
                        name.value
                    ),
                );
            }
        }
    }

    fn requests(&self) -> impl Iterator<Item = RequestFields<'t>> + use<'t> {
        core::iter::once(self.template.validate.request())
            .chain(self.template.rotate.iter().map(|(_, method)| method.request()))
    }

    fn carries_nothing(&self, fields: &RequestFields<'t>) -> bool {
        keys_used(self.template, fields).is_empty()
    }
}

/// A commit class by its name.
pub fn commit_class(name: &str) -> Option<&'static str> {
    CommitClass::NAMES.into_iter().find(|known| *known == name)
}

/// What a default may be: an absolute https URL with a host, a path at the most.
fn is_base_url(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://") else { return false };
    let host = rest.split('/').next().unwrap_or_default();
    !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte))
        && !rest.contains(['?', '#', '@', '{', '}'])
        && !rest.contains(char::is_whitespace)
}

/// An encoding by its name in the notation.
fn encoding_name(encoding: Encoding) -> &'static str {
    Encoding::NAMES[encoding as usize]
}

/// Names for people.
fn names<T>(entries: &Entries<T>) -> String {
    listed(&entries.names().collect::<Vec<_>>())
}
