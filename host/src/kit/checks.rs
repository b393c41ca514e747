//! What the kit demands of a provider: runs its fixtures, with every answer replaced by every
//! trouble, and says in plain words what it finds. It changes nothing and knows no service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::fixture::{Answer, Exchange, Fixture, Which, did_you_mean};
use super::script::{Progress, Script};
use super::trouble::Trouble;
use super::{Case, Kit, KitError, Made, Run, Said};
use crate::limits;
use crate::provider::{CommitClass, Location, Resolved};
use crate::report::iso8601;

/// Calls at once: fewer than a worker takes, and enough to keep it and the host busy.
const AT_ONCE: usize = 16;

/// What a finding comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    Fault,
    Warning,
    Note,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub weight: Weight,
    /// The fixture that shows it.
    pub fixture: Option<String>,
    /// Which of its exchanges, from 1.
    pub exchange: Option<usize>,
    /// One sentence: what is wrong, and what to do.
    pub text: String,
}

/// One demand, and what was found against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    pub name: &'static str,
    /// What holds where nothing is found.
    pub about: &'static str,
    /// False: it couldn't be looked at, because of what an earlier check found.
    pub made: bool,
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub service: Option<String>,
    pub version: Option<String>,
    pub digest: Option<String>,
    /// Calls that were made.
    pub calls: usize,
    pub fixtures: usize,
    pub checks: Vec<Check>,
}

/// The names of the checks, with what holds where they find nothing, in their order.
pub const CHECKS: [(&str, &str); 11] = [
    ("manifest", "a daemon takes it"),
    ("describe", "it describes itself the same each time"),
    ("permissions", "what it asks for is shown"),
    ("sources", "it says where its claims are documented"),
    ("fixtures", "there is a fixture of all that matters"),
    ("calls", "every fixture goes as it is written"),
    ("made-up", "a secret that was made up isn't valid"),
    ("trouble", "a service in trouble proves nothing"),
    ("lost-answer", "what may be spent is not sent again, and what was issued is not thrown away"),
    ("leaks", "no secret and no fingerprint is in its words"),
    ("limits", "no call comes near a limit"),
];

impl Check {
    pub fn held(&self) -> bool {
        self.made && !self.findings.iter().any(|finding| finding.weight == Weight::Fault)
    }
}

impl Report {
    /// Nothing of it is a fault.
    pub fn held(&self) -> bool {
        self.faults().next().is_none()
    }

    pub fn faults(&self) -> impl Iterator<Item = (&'static str, &Finding)> {
        self.findings(Weight::Fault)
    }

    pub fn findings(&self, weight: Weight) -> impl Iterator<Item = (&'static str, &Finding)> {
        let of = |check: &Check| check.name;
        self.checks.iter().flat_map(move |check| {
            check
                .findings
                .iter()
                .filter(move |found| found.weight == weight)
                .map(move |found| (of(check), found))
        })
    }

    /// Takes every warning for a fault.
    pub fn strictly(&mut self) {
        let all = self.checks.iter_mut().flat_map(|check| &mut check.findings);
        for finding in all.filter(|finding| finding.weight == Weight::Warning) {
            finding.weight = Weight::Fault;
        }
    }

    /// Says where fixtures were looked for in vain, in place of all that can't be there.
    pub fn without_fixtures(&mut self, why: &str) {
        for check in &mut self.checks {
            match check.name {
                "fixtures" => {
                    check.findings = vec![Finding {
                        weight: Weight::Fault,
                        fixture: None,
                        exchange: None,
                        text: format!(
                            "{why}; hint: write one file for each answer that the service documents, \
                             `docs/writing-a-provider.md` has the format, or name their folder with --fixtures"
                        ),
                    }];
                    check.made = true;
                }
                "calls" | "made-up" | "trouble" | "lost-answer" | "leaks" | "limits" => {
                    check.findings.clear();
                    check.made = false;
                }
                _ => {}
            }
        }
    }

    /// Of a file that no daemon takes: the rest can't be looked at.
    pub fn refused(why: &str) -> Self {
        let mut found = Findings::default();
        found.fault("manifest", None, None, why.to_owned());
        let made = |name: &str| name == "manifest";
        Self {
            service: None,
            version: None,
            digest: None,
            calls: 0,
            fixtures: 0,
            checks: found.into_checks(made),
        }
    }
}

/// What was found, by check.
#[derive(Default)]
struct Findings(Vec<(&'static str, Finding)>);

impl Findings {
    fn add(
        &mut self,
        weight: Weight,
        check: &'static str,
        fixture: Option<&str>,
        exchange: Option<usize>,
        text: String,
    ) {
        let finding = Finding { weight, fixture: fixture.map(str::to_owned), exchange, text };
        if !self.0.iter().any(|(name, known)| *name == check && *known == finding) {
            self.0.push((check, finding));
        }
    }

    fn fault(&mut self, check: &'static str, fixture: Option<&str>, exchange: Option<usize>, text: String) {
        self.add(Weight::Fault, check, fixture, exchange, text);
    }

    fn warning(&mut self, check: &'static str, fixture: Option<&str>, text: String) {
        self.add(Weight::Warning, check, fixture, None, text);
    }

    fn note(&mut self, check: &'static str, text: String) {
        self.add(Weight::Note, check, None, None, text);
    }

    fn into_checks(self, made: impl Fn(&str) -> bool) -> Vec<Check> {
        let of = |name: &str| {
            let of = self.0.iter().filter(|(check, _)| *check == name);
            let mut findings: Vec<_> = of.map(|(_, finding)| finding.clone()).collect();
            findings.sort_by_key(|finding| finding.weight);
            findings
        };
        CHECKS.map(|(name, about)| Check { name, about, made: made(name), findings: of(name) }).to_vec()
    }
}

/// A fixture with what it comes to for this provider.
struct Prepared<'f> {
    fixture: &'f Fixture,
    case: Case,
    resolved: Arc<Resolved>,
    exchanges: Arc<Vec<Exchange>>,
}

impl Prepared<'_> {
    fn name(&self) -> Option<&str> {
        Some(&self.fixture.name)
    }

    fn is_rotation(&self) -> bool {
        matches!(self.fixture.call, Which::Rotate(_))
    }

    /// The method that a rotation uses, by name and class.
    fn method(&self) -> Option<(&str, CommitClass)> {
        let Which::Rotate(named) = &self.fixture.call else { return None };
        let method = match named {
            Some(name) => self.resolved.methods.iter().find(|method| method.name == *name),
            None => self.resolved.methods.first(),
        };
        method.map(|method| (method.name.as_str(), method.commit_class))
    }

    fn of_mapping(&self, run: &Run) -> Vec<String> {
        let is_mapped = |key: &str| self.resolved.keys.iter().any(|spec| spec.name == key);
        run.captured.iter().map(|fresh| fresh.key.clone()).filter(|key| is_mapped(key)).collect()
    }
}

/// Looks at a plugin with its fixtures.
///
/// # Errors
/// Where the kit itself can't go on; what is wrong with the plugin is in the report.
pub async fn check(kit: &Kit, fixtures: &[Fixture]) -> Result<Report, KitError> {
    let mut found = Findings::default();
    let mut calls = 0;
    described(kit, &mut found).await;
    permissions(kit, &mut found);
    sources(kit, fixtures, &mut found);

    let mut prepared = Vec::new();
    for fixture in fixtures {
        let case = Case::of(fixture);
        match kit.resolve(&case) {
            Ok(resolved) => {
                let exchanges = Arc::new(fixture.exchanges.clone());
                prepared.push(Prepared { fixture, case, resolved, exchanges });
            }
            Err(error) => {
                found.fault("calls", Some(&fixture.name), None, format!("doesn't fit the provider: {error}"))
            }
        }
    }
    demanded(kit, &prepared, &mut found);

    // As written first: what doesn't go so can't be troubled.
    let mut held = Vec::new();
    for prepared in &prepared {
        let script = Script::new(Arc::clone(&prepared.exchanges));
        let run = kit.run(&prepared.case, script.service()).await?;
        calls += 1;
        let progress = script.progress();
        leaks(prepared, &run, "", &mut found);
        used(prepared, &run, &mut found);
        made_up(prepared, &run, &mut found);
        if as_written(prepared, &run, &progress, &mut found) {
            held.push(prepared);
        }
    }

    let mut troubles = Vec::new();
    for prepared in held {
        for (index, exchange) in prepared.exchanges.iter().enumerate() {
            for trouble in Trouble::ALL {
                if let Some(instead) = trouble.instead_of(&exchange.answer) {
                    troubles.push((prepared, index, trouble, instead));
                }
            }
        }
    }
    calls += troubles.len();
    let runs = stream::iter(troubles).map(|(prepared, index, trouble, instead)| async move {
        let script = Script::with_trouble(Arc::clone(&prepared.exchanges), index, instead);
        let run = kit.run(&prepared.case, script.service()).await?;
        Ok::<_, KitError>((prepared, index, trouble, run, script.progress()))
    });
    let mut runs = runs.buffered(AT_ONCE);
    let mut wrong = Wrong::default();
    while let Some(run) = runs.next().await {
        let (prepared, index, trouble, run, progress) = run?;
        let instead = format!(" where answer {} is {}", index + 1, trouble.words());
        leaks(prepared, &run, &instead, &mut found);
        if progress.troubled {
            wrong.judge(prepared, index, trouble, &run, &progress);
        }
    }
    wrong.tell(&mut found);

    let Kit { provider, .. } = kit;
    Ok(Report {
        service: Some(provider.manifest.service.clone()),
        version: Some(provider.manifest.version.clone()),
        digest: Some(provider.digest.clone()),
        calls,
        fixtures: fixtures.len(),
        checks: found.into_checks(|_| true),
    })
}

/// Runs one fixture as it is written, and says what goes otherwise.
///
/// # Errors
/// Where it doesn't fit the provider.
pub async fn once(kit: &Kit, fixture: &Fixture) -> Result<(Run, Vec<Finding>), KitError> {
    let case = Case::of(fixture);
    let resolved = kit.resolve(&case)?;
    let prepared = Prepared { fixture, case, resolved, exchanges: Arc::new(fixture.exchanges.clone()) };
    let script = Script::new(Arc::clone(&prepared.exchanges));
    let run = kit.run(&prepared.case, script.service()).await?;
    let mut found = Findings::default();
    as_written(&prepared, &run, &script.progress(), &mut found);
    made_up(&prepared, &run, &mut found);
    leaks(&prepared, &run, "", &mut found);
    Ok((run, found.0.into_iter().map(|(_, finding)| finding).collect()))
}

async fn described(kit: &Kit, found: &mut Findings) {
    match kit.describe().await {
        Ok(again) if again == *kit.manifest() => {}
        Ok(again) => {
            let what = differing(kit.manifest(), &again);
            found.fault("describe", None, None, format!(
                "describes itself otherwise when it is asked again ({what}): `describe` may depend on nothing"
            ));
        }
        Err(error) => {
            found.fault("describe", None, None, format!("describes itself once and then fails: {error}"))
        }
    }
}

fn differing(one: &crate::provider::Manifest, other: &crate::provider::Manifest) -> String {
    let parts = [
        ("service", one.service != other.service),
        ("title", one.title != other.title),
        ("version", one.version != other.version),
        ("validate URL", one.validate_url != other.validate_url),
        ("keys", one.keys != other.keys),
        ("origins", one.origins != other.origins),
        ("settings", one.settings != other.settings),
        ("methods", one.methods != other.methods),
        ("cadence", (one.validate_interval, one.max_age) != (other.validate_interval, other.max_age)),
        ("extras", one.extras != other.extras),
    ];
    parts.iter().filter(|(_, differs)| *differs).map(|(what, _)| *what).collect::<Vec<_>>().join(", ")
}

fn permissions(kit: &Kit, found: &mut Findings) {
    for line in &kit.status().permissions {
        found.note("permissions", line.clone());
    }
    let wasi = kit.wasi_imports();
    found.note(
        "permissions",
        match wasi.is_empty() {
            true => "imports nothing but Keywheel's contract".to_owned(),
            false => format!("imports of WASI: {}", wasi.join(", ")),
        },
    );
}

fn sources(kit: &Kit, fixtures: &[Fixture], found: &mut Findings) {
    let manifest = kit.manifest();
    if manifest.source().is_none() {
        found.warning(
            "sources",
            None,
            "the manifest doesn't say where the API is documented; hint: `Manifest::source(url)`".into(),
        );
    }
    for method in &manifest.methods {
        if manifest.class_source(&method.name).is_none() {
            found.warning("sources", None, format!(
                "the manifest doesn't say why method `{}` is of the class {}; hint: `Manifest::class_source(\"{}\", url)`",
                method.name, method.commit_class, method.name
            ));
        }
    }
    for fixture in fixtures.iter().filter(|fixture| fixture.source.is_none()) {
        found.warning(
            "sources",
            Some(&fixture.name),
            "doesn't say where its answers are from; hint: `source = \"https://…\"`, or when it was recorded"
                .into(),
        );
    }
}

/// What there must be a fixture of.
fn demanded(kit: &Kit, prepared: &[Prepared<'_>], found: &mut Findings) {
    let says =
        |prepared: &&Prepared<'_>, words: &[&str]| words.contains(&prepared.fixture.expect.says.as_str());
    let validates = || prepared.iter().filter(|prepared| !prepared.is_rotation());
    if !validates().any(|prepared| says(&prepared, &["valid"])) {
        found.fault(
            "fixtures",
            None,
            None,
            "none shows a credential that lives; hint: a fixture with `verdict = \"valid\"`".into(),
        );
    }
    if !validates().any(|prepared| prepared.fixture.made_up) {
        found.fault("made-up", None, None, "no fixture shows what the service answers to a secret that it never issued; hint: ask it about one you made up, and keep the answer as a fixture with `made_up = true`".into());
    }
    // Many services answer a dead secret and a made-up one alike; then one fixture shows both.
    if !validates().any(|prepared| says(&prepared, &["invalid", "needs-human"])) {
        found.warning(
            "fixtures",
            None,
            "none shows a credential that died; hint: one for each way that the service documents".into(),
        );
    }
    let limited = |prepared: &Prepared<'_>| {
        prepared.exchanges.iter().any(|exchange| {
            matches!(exchange.answer, Answer::Comes { status: 429 | 403 | 503, .. })
                && says(&prepared, &["unknown"])
        })
    };
    if !prepared.iter().any(limited) {
        // Not every service has one, and a 429 of ours is among the troubles anyway.
        found.note("fixtures", "no fixture shows how the service limits its callers; hint: its documented 429, with `verdict = \"unknown\"`, where it has one".into());
    }
    for method in &kit.manifest().methods {
        let of = || {
            prepared.iter().filter(|prepared| prepared.method().is_some_and(|(name, _)| name == method.name))
        };
        // A session that is extended may stay the same one.
        let good: &[&str] = if method.commit_class == CommitClass::Sliding {
            &["rotated", "unchanged"]
        } else {
            &["rotated"]
        };
        if !of().any(|prepared| says(&prepared, good)) {
            found.fault("fixtures", None, None, format!(
                "none shows method `{}` succeed; hint: a fixture with `call = \"rotate\"` and `outcome = \"rotated\"`",
                method.name
            ));
        }
        if !of().any(|prepared| says(&prepared, &["invalid", "needs-human"])) {
            found.warning(
                "fixtures",
                None,
                format!(
                    "none shows method `{}` refused; hint: a fixture with `outcome = \"invalid\"`",
                    method.name
                ),
            );
        }
    }
}

/// Whether a call went as its fixture has it.
fn as_written(prepared: &Prepared<'_>, run: &Run, progress: &Progress, found: &mut Findings) -> bool {
    let Fixture { expect, .. } = prepared.fixture;
    let before = found.0.len();
    let mut wrong = |exchange, text| found.fault("calls", prepared.name(), exchange, text);
    for asked in run.asked.iter().filter(|asked| asked.hops.is_empty()) {
        if let Some(Err(error)) = &asked.heard {
            let request = &asked.made.request;
            wrong(None, format!("the request {} {} doesn't leave: {error}", request.method, request.url));
        }
    }
    for (number, how) in &progress.strayed {
        wrong(Some(*number), how.clone());
    }
    if found.0.len() > before {
        // What it says after an answer that it didn't get is of no interest.
        return false;
    }
    let mut wrong = |text| found.fault("calls", prepared.name(), None, text);
    let said = match &run.said {
        Ok(said) => said,
        Err(error) => {
            wrong(format!("ends without an answer, the fixture has `{}`: {error}", expect.says));
            return false;
        }
    };
    let why = said.message().map_or_else(String::new, |message| format!(" ({message})"));
    if said.word() != expect.says {
        wrong(format!("says `{}`{why}, the fixture has `{}`", said.word(), expect.says));
        return false;
    }
    if let Some(judged) = run.judged.as_ref().filter(|judged| judged.word() != said.word()) {
        let because = judged.message().unwrap_or_default();
        wrong(format!(
            "says `{}`, and the host would make `{}` of it: {because}",
            said.word(),
            judged.word()
        ));
    }
    let captured = prepared.of_mapping(run);
    if said.word() == "rotated" && captured.is_empty() {
        wrong("says `rotated`, and no answer brought a new value of a key; hint: capture it, or say `unchanged`".into());
    }
    if let Some(expected) = &expect.captured {
        let (expected, got): (BTreeSet<_>, BTreeSet<_>) =
            (expected.iter().collect(), captured.iter().collect());
        if expected != got {
            let listed = |keys: &BTreeSet<&String>| match keys.is_empty() {
                true => "none".to_owned(),
                false => keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", "),
            };
            let known = prepared.resolved.keys.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>();
            let unknown = expected.iter().find(|key| !known.contains(&key.as_str()));
            let hint = unknown.map_or_else(String::new, |key| did_you_mean(key, known.iter().copied()));
            wrong(format!(
                "keys with a new value: {}, the fixture has {}{hint}",
                listed(&got),
                listed(&expected)
            ));
        }
    }
    let evidence = said.evidence();
    if let Some(expected) = &expect.identity {
        let got = evidence.and_then(|evidence| evidence.identity.as_deref()).unwrap_or("none");
        if got != expected {
            wrong(format!("the identity is `{got}`, the fixture has `{expected}`"));
        }
    }
    if let Some(expected) = expect.expires {
        let got = evidence.and_then(|evidence| evidence.expires);
        if got != Some(expected) {
            let got = got.map_or_else(|| "none".to_owned(), iso8601);
            wrong(format!("the expiry is {got}, the fixture has {}", iso8601(expected)));
        }
    }
    if let Some(expected) = &expect.message {
        let got = said.message().unwrap_or_default();
        if !got.contains(expected) {
            wrong(format!("the message is `{got}`, the fixture has `{expected}` in it"));
        }
    }
    found.0.len() == before
}

fn made_up(prepared: &Prepared<'_>, run: &Run, found: &mut Findings) {
    if !prepared.fixture.made_up {
        return;
    }
    if prepared.fixture.expect.says == "valid" {
        found.fault(
            "made-up",
            prepared.name(),
            None,
            "expects `valid` of a secret that was made up: ask something that a stranger is refused".into(),
        );
    } else if run.said.as_ref().is_ok_and(|said| said.word() == "valid") {
        found.fault(
            "made-up",
            prepared.name(),
            None,
            "says `valid` of a secret that was made up: a dead one would pass as well".into(),
        );
    }
}

fn leaks(prepared: &Prepared<'_>, run: &Run, instead: &str, found: &mut Findings) {
    for leak in &run.leaks {
        // Once for each fixture is enough, whatever the trouble.
        let known = format!("{} holds {}", leak.place, leak.what);
        let is_known = found.0.iter().any(|(check, finding)| {
            *check == "leaks"
                && finding.fixture.as_deref() == prepared.name()
                && finding.text.starts_with(&known)
        });
        if !is_known {
            found.fault(
                "leaks",
                prepared.name(),
                None,
                format!("{known}{instead}: logs and messages are kept and shown, so leave it out"),
            );
        }
    }
}

fn used(prepared: &Prepared<'_>, run: &Run, found: &mut Findings) {
    let used = &run.used;
    let mut near = |what: &str, used: u64, allowed: u64, unit: &str| {
        if used.saturating_mul(2) > allowed {
            found.warning(
                "limits",
                prepared.name(),
                format!("uses {used} {unit} of {what}, {allowed} are allowed"),
            );
        }
    };
    near("requests", used.requests.into(), limits::REQUESTS_PER_CALL.into(), "requests");
    near("calls to the host", used.host_calls.into(), limits::CALL.host_calls.into(), "calls");
    near("time", used.cpu.as_millis() as u64, limits::CALL.cpu_ms.into(), "ms");
    near("memory", used.memory_bytes, limits::CALL.memory_bytes, "bytes");
    near("log", used.log_bytes as u64, limits::CALL.log_bytes.into(), "bytes");
}

/// What troubled calls did wrong; the same fault of several troubles is told once.
#[derive(Default)]
struct Wrong(BTreeMap<(String, usize, &'static str, String), BTreeSet<Trouble>>);

impl Wrong {
    fn note(
        &mut self,
        prepared: &Prepared<'_>,
        index: usize,
        check: &'static str,
        what: impl Into<String>,
        trouble: Trouble,
    ) {
        let place = (prepared.fixture.name.clone(), index, check, what.into());
        self.0.entry(place).or_default().insert(trouble);
    }

    fn judge(
        &mut self,
        prepared: &Prepared<'_>,
        index: usize,
        trouble: Trouble,
        run: &Run,
        progress: &Progress,
    ) {
        let said = match &run.said {
            Ok(said) => said,
            Err(error) => {
                self.note(
                    prepared,
                    index,
                    "trouble",
                    format!("ends without an answer ({error}); it should say `unknown`"),
                    trouble,
                );
                return;
            }
        };
        let captured = prepared.of_mapping(run);
        let expected = prepared.fixture.expect.says.as_str();
        if !bears(prepared, index, trouble, said, &captured, progress) {
            self.note(
                prepared,
                index,
                "trouble",
                format!("says `{}`; it should say `unknown`", said.word()),
                trouble,
            );
        }
        if let Some((method, class)) = prepared.method()
            && expected == "rotated"
        {
            if matches!(class, CommitClass::BurnOnIssue | CommitClass::Grace) && trouble.loses_the_answer() {
                for key in sent_again(prepared, run, progress, index) {
                    let what = format!(
                        "sends key `{key}` again, which method `{method}` ({class}) may have spent; end the call with `unknown`, and the host looks before it repeats"
                    );
                    self.note(prepared, index, "lost-answer", what, trouble);
                }
            }
            if said.word() == "invalid" && !captured.is_empty() {
                let what = format!(
                    "says `invalid`, though key `{}` was just issued; say `unknown`, and the host validates what came",
                    captured.join("`, `")
                );
                self.note(prepared, index, "lost-answer", what, trouble);
            }
        }
    }

    fn tell(self, found: &mut Findings) {
        for ((fixture, index, check, what), troubles) in self.0 {
            let troubles: Vec<_> = troubles.iter().map(|trouble| trouble.words()).collect();
            let text = format!("where the answer is {}, it {what}", one_of(&troubles));
            found.fault(check, Some(&fixture), Some(index + 1), text);
        }
    }
}

fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// Whether what a call says after a trouble can rest on anything.
fn bears(
    prepared: &Prepared<'_>,
    index: usize,
    trouble: Trouble,
    said: &Said,
    captured: &[String],
    progress: &Progress,
) -> bool {
    let expected = prepared.fixture.expect.says.as_str();
    let word = said.word();
    if word == "unknown" {
        return true;
    }
    // Another request was answered after it: what the fixture has may rest on that.
    if progress.recovered && word == expected {
        return true;
    }
    // 401 is HTTP's own word on credentials, whatever is left of what comes with it.
    let refused = prepared
        .exchanges
        .get(index)
        .is_some_and(|exchange| matches!(exchange.answer, Answer::Comes { status: 401, .. }));
    if trouble == Trouble::Half && refused && word == expected {
        return true;
    }
    // Something new was issued: that is evidence, and the host validates it.
    prepared.is_rotation() && !captured.is_empty() && matches!(word, "rotated" | "needs-human")
}

/// Keys that went to a rotating request once more after its answer was lost, with the same value:
/// those that the request replaces, for a client's secret is sent with each and never spent.
fn sent_again(prepared: &Prepared<'_>, run: &Run, progress: &Progress, index: usize) -> Vec<String> {
    let hops: Vec<_> = run.hops().collect();
    let Some(at) = progress.served.iter().position(|served| *served == Some(index)) else {
        return Vec::new();
    };
    let Some(lost) = hops.get(at).map(|hop| &hop.made) else { return Vec::new() };
    let spec = |key: &String| prepared.resolved.keys.iter().find(|spec| spec.name == *key);
    let replaced = |key: &&String| {
        let is_cookie = spec(key).is_some_and(|spec| matches!(spec.location, Location::Cookie(_)));
        lost.captures.contains(key) || (lost.request.cookies && is_cookie)
    };
    let mut spent: Vec<&String> = lost.keys.iter().filter(replaced).collect();
    if spent.is_empty() {
        // It captures nothing that it sends: what it can't do without is what may be spent.
        spent = lost.keys.iter().filter(|key| spec(key).is_some_and(|spec| spec.required)).collect();
    }
    let fresh = |key: &str| run.captured.iter().any(|fresh| fresh.key == key);
    let place = |url: &str| url.split('?').next().unwrap_or_default().to_owned();
    let rotates = |made: &&Made| {
        let same = made.request.method == lost.request.method
            && place(&made.request.url) == place(&lost.request.url);
        same || made.captures.iter().any(|key| lost.captures.contains(key))
    };
    let again: BTreeSet<_> = hops
        .iter()
        .skip(at + 1)
        .map(|hop| &hop.made)
        .filter(rotates)
        .flat_map(|made| &made.keys)
        .filter(|key| spent.contains(key) && !fresh(key))
        .cloned()
        .collect();
    again.into_iter().collect()
}
