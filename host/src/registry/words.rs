//! Owns what is said of plugins: to the operator, before and after a decision, and to the audit.
//! Pure: it describes what the registry decided and decides nothing itself.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::manifest::inert;
use super::permissions::{Difference, Permissions, difference};
use super::signature::{Signed, named};
use super::{Candidate, Grants, Unfit, grants_of, is_same, state};
use crate::catalogue::Entry;
use crate::db::queries::{PendingRow, ProviderRow};
use crate::db::{Actor, AuditEntry, Signer, TrustedKey};
use crate::provider::Manifest;

/// A file name has 255 bytes at most.
const FILE_NAME: usize = 255;

/// How much of a reason the audit keeps: a plugin chooses the words of some.
const REASON: usize = 500;

/// The words of the audit's `action`.
pub(super) mod action {
    pub const FIRST_SEEN: &str = "first-seen";
    /// Another version, where there was nothing to harm.
    pub const REPLACED: &str = "replaced";
    /// Another version that asks for no more, where there were credentials.
    pub const SWAPPED: &str = "swapped";
    pub const WAITS: &str = "waits";
    pub const WITHDRAWN: &str = "withdrawn";
    pub const GRANTED: &str = "granted";
    /// The operator approved another plugin than the one that was there.
    pub const NOT_GRANTED: &str = "not-granted";
    pub const REFUSED: &str = "refused";
    pub const SIGNATURE_REFUSED: &str = "signature-refused";
    pub const CONFLICT: &str = "conflict";
    pub const REMOVED: &str = "removed";
    pub const RETURNED: &str = "returned";
    /// The policy ended what ran.
    pub const STOPPED: &str = "stopped";
    /// Bytes that were accepted before turned out to be signed.
    pub const SIGNED: &str = "signed";
    pub const UNPARKED: &str = "unparked";
    pub const TRUSTED: &str = "trusted";
}

/// Where a plugin file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluginState {
    /// It serves its service.
    Active,
    /// It asks for more than was granted; the approved one keeps working.
    PendingApproval,
    /// Another file serves the same service.
    Conflict,
    /// It is no usable plugin; `reason` says why.
    Refused,
    /// Another version came later by another host, or the service was removed there.
    Superseded,
}

impl PluginState {
    pub const ALL: [Self; 5] =
        [Self::Active, Self::PendingApproval, Self::Conflict, Self::Refused, Self::Superseded];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::PendingApproval => "pending-approval",
            Self::Conflict => "conflict",
            Self::Refused => "refused",
            Self::Superseded => "superseded",
        }
    }
}

/// One file of the folder, as `plugin list` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginStatus {
    pub file: String,
    pub state: PluginState,
    pub service: Option<String>,
    pub title: Option<String>,
    pub version: Option<String>,
    pub digest: Option<String>,
    /// None: there is none beside it.
    pub signature: Option<Signature>,
    pub reason: Option<String>,
    /// It came by another host that shares the store; this folder has no file of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub elsewhere: bool,
    /// What it may do, or what a pending one asks for beyond that, a line each.
    pub permissions: Vec<String>,
    /// What serves its service now: this file, or what was accepted before it.
    pub in_use: Option<InUse>,
    /// What it says of itself; only where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Box<Entry>>,
}

/// What is accepted for a service, and held against any newer version once it is pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InUse {
    pub digest: String,
    pub version: String,
    pub signature: Option<Signature>,
    /// The service has a credential: more than this needs the operator.
    pub pinned: bool,
    pub accepted: Permissions,
    /// The keys that the operator lets it see.
    pub revealed: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureState {
    Trusted,
    /// Genuine when it was accepted, by a key that is trusted no longer.
    Distrusted,
    /// Of a key nobody trusts: whether it is genuine can't be said.
    Unknown,
    Bad,
}

/// What is known of who signed a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Signature {
    pub state: SignatureState,
    pub key_id: Option<String>,
    /// Only where the signature was checked against it.
    pub public_key: Option<String>,
    pub name: Option<String>,
    pub comment: Option<String>,
}

impl Signature {
    pub(super) fn of(signed: &Signed, signer: Option<&Signer>, trusted: &[TrustedKey]) -> Option<Self> {
        let unchecked =
            |state, key_id| Some(Self { state, key_id, public_key: None, name: None, comment: None });
        match (signed, signer) {
            (Signed::Bad(_), _) => unchecked(SignatureState::Bad, None),
            (_, Some(signer)) => {
                let key = trusted.iter().find(|key| key.public_key == signer.public_key);
                Some(Self {
                    state: key.map_or(SignatureState::Distrusted, |_| SignatureState::Trusted),
                    key_id: Some(signer.key_id.clone()),
                    public_key: Some(signer.public_key.clone()),
                    // As the operator calls it now.
                    name: key.map_or(signer.name.clone(), |key| key.name.clone()),
                    comment: signer.comment.clone(),
                })
            }
            (Signed::Unknown { key_id }, None) => unchecked(SignatureState::Unknown, Some(key_id.clone())),
            (Signed::No | Signed::By(_), None) => None,
        }
    }

    /// The signer in a few words, for a table.
    pub fn short(&self) -> String {
        let who = named(self.key_id.as_deref().unwrap_or("?"), self.name.as_deref());
        match self.state {
            SignatureState::Trusted => who,
            SignatureState::Distrusted => format!("{who}, distrusted"),
            SignatureState::Unknown => format!("unknown key {who}"),
            SignatureState::Bad => "bad signature".into(),
        }
    }

    pub fn words(&self) -> String {
        let who = named(self.key_id.as_deref().unwrap_or("?"), self.name.as_deref());
        let mut words = match self.state {
            SignatureState::Trusted => format!("signed by {who}"),
            SignatureState::Distrusted => format!("signed by {who}, a key that is trusted no longer"),
            SignatureState::Unknown => {
                format!("unsigned as far as is known: key {who} beside it isn't trusted")
            }
            SignatureState::Bad => "its signature is bad".into(),
        };
        if let Some(comment) = &self.comment {
            words.push_str(": ");
            words.push_str(comment);
        }
        words
    }
}

/// One side of what an approval changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    pub digest: String,
    pub version: String,
    pub title: String,
    pub signature: Option<Signature>,
}

impl Version {
    /// The key that vouches for it.
    pub fn public_key(&self) -> Option<&str> {
        self.signature.as_ref().and_then(|signature| signature.public_key.as_deref())
    }

    pub fn signer(&self) -> String {
        self.signature.as_ref().map_or_else(|| "unsigned".into(), Signature::words)
    }
}

/// What approving a service's plugin grants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wish {
    pub service: String,
    pub file: Option<String>,
    /// False: everything it asks for is granted already.
    pub needs_approval: bool,
    pub granted: bool,
    pub from: Version,
    pub to: Version,
    pub difference: Difference,
    /// The difference in words, what widens first.
    pub lines: Vec<String>,
}

impl Wish {
    pub(super) fn of(
        row: &ProviderRow,
        difference: Difference,
        files: &[PluginStatus],
        trusted: &[TrustedKey],
    ) -> Self {
        let from = Version {
            digest: row.plugin_digest.clone(),
            version: row.version.clone(),
            title: row.title.clone(),
            signature: Signature::of(&Signed::No, row.signer.as_ref(), trusted),
        };
        let to = row.pending.as_ref().map_or_else(
            || from.clone(),
            |pending| Version {
                digest: pending.plugin_digest.clone(),
                version: pending.manifest.version.clone(),
                title: pending.manifest.title.clone(),
                signature: Signature::of(&Signed::No, pending.signer.as_ref(), trusted),
            },
        );
        let file = files.iter().find(|file| {
            file.service.as_ref() == Some(&row.service) && file.digest.as_ref() == Some(&to.digest)
        });
        // A key that isn't trusted is worth showing, and is nobody's word.
        let beside = file.and_then(|file| file.signature.clone());
        let unknown = beside.filter(|signature| signature.state == SignatureState::Unknown);
        let to = Version { signature: to.signature.clone().or(unknown), ..to };
        let resigned = row.pending.is_some() && from.public_key() != to.public_key();
        Self {
            service: row.service.clone(),
            file: file.map(|file| file.file.clone()),
            needs_approval: row.pending.is_some() || !difference.added_reveal.is_empty(),
            granted: false,
            lines: changes(&difference, resigned.then(|| (from.signer(), to.signer()))),
            from,
            to,
            difference,
        }
    }

    pub(super) fn not_what_was_shown(&self, shown: &str) -> String {
        let Self { service, to, .. } = self;
        let found = if to.digest == shown {
            format!("it is {} now", to.signer())
        } else {
            let what = if self.needs_approval { "what asks now" } else { "what is there now" };
            format!(
                "{what} is version {}, digest {}, and {} was shown",
                to.version,
                short(&to.digest),
                short(shown)
            )
        };
        format!(
            "nothing was granted to `{service}`: {found}; hint: look again: `keywheel plugin approve {service}`"
        )
    }

    pub(super) fn note(&self, action: &'static str, shown: Option<&str>) -> AuditEntry {
        let mut detail = json!({
            "version": { "from": self.from.version, "to": self.to.version },
            "from": self.from.digest,
            "changes": self.lines,
            "difference": self.difference,
        });
        if let (Some(shown), Value::Object(detail)) = (shown, &mut detail) {
            detail.insert("shown".into(), inert(shown, 64).into());
        }
        AuditEntry {
            service: Some(self.service.clone()),
            file: self.file.clone(),
            digest: Some(self.to.digest.clone()),
            signer: self
                .to
                .signature
                .as_ref()
                .filter(|signature| signature.public_key.is_some())
                .and_then(|signature| signature.key_id.clone()),
            ..entry(Actor::Operator, action, detail)
        }
    }
}

/// A digest that a person compares by eye.
fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}

/// What changes, a line each; a signer first, for who says so comes before what is said.
fn changes(difference: &Difference, signers: Option<(String, String)>) -> Vec<String> {
    let signer = signers.map(|(was, is)| format!("another signer: was {was}; is {is}"));
    signer.into_iter().chain(difference.lines()).collect()
}

/// A version that must wait.
pub(super) struct Waits<'a> {
    pub row: &'a ProviderRow,
    pub signer: Option<&'a Signer>,
    pub difference: Difference,
    pub resigned: bool,
}

impl<'a> Waits<'a> {
    /// What a version asks for, against what is accepted.
    pub fn of(row: &'a ProviderRow, signer: Option<&'a Signer>, asked: &Permissions) -> Self {
        let resigned = row.signer.is_some() && !is_same(row.signer.as_ref(), signer);
        Self { row, signer, difference: difference(&grants_of(row).accepted, asked), resigned }
    }

    pub fn reason(&self) -> String {
        let why = match (self.difference.is_wider(), self.resigned) {
            (true, true) => "asks for more than was granted, and is not of the same signer",
            (false, true) => "is not of the signer of the version in use",
            (_, false) => "asks for more than was granted",
        };
        format!("{why}; hint: `keywheel plugin approve {}`", self.row.service)
    }

    pub fn lines(&self) -> Vec<String> {
        let who = |signer: Option<&Signer>| {
            signer.map_or_else(
                || "unsigned, or by nobody who is trusted".to_owned(),
                |signer| format!("signed by {}", named(&signer.key_id, signer.name.as_deref())),
            )
        };
        let signers = self.resigned.then(|| (who(self.row.signer.as_ref()), who(self.signer)));
        changes(&self.difference, signers)
    }

    pub fn note(&self, path: &Path, candidate: &Candidate) -> AuditEntry {
        let detail = json!({
            "version": { "from": self.row.version, "to": candidate.manifest.version },
            "from": self.row.plugin_digest,
            "changes": self.lines(),
        });
        about(path, candidate, self.signer, entry(Actor::Host, action::WAITS, detail))
    }
}

/// A version that serves from now on, or goes on serving.
pub(super) struct Accepted<'a> {
    pub row: Option<&'a ProviderRow>,
    pub candidate: &'a Candidate,
    pub signer: Option<&'a Signer>,
    pub path: &'a Path,
    pub pinned: bool,
}

impl Accepted<'_> {
    /// Whether the provider's row says anything else.
    pub fn is_news(&self) -> bool {
        self.row.is_none_or(|row| {
            row.plugin_digest != self.candidate.digest
                || row.pending.is_some()
                || row.state != state::ACTIVE
                || !is_same(row.signer.as_ref(), self.signer)
                || row.file.as_deref() != Some(&name_of(self.path))
        })
    }

    /// None where nothing was decided: a file has another name.
    pub fn note(&self, grants: &Grants) -> Option<AuditEntry> {
        let (action, detail) = match self.row {
            None => (action::FIRST_SEEN, json!({ "asks": grants.accepted })),
            Some(row) if row.plugin_digest != self.candidate.digest => {
                let action = if self.pinned { action::SWAPPED } else { action::REPLACED };
                let changes = difference(&grants_of(row).accepted, &grants.accepted).lines();
                (action, json!({ "from": row.plugin_digest, "changes": changes }))
            }
            Some(row) if row.state != state::ACTIVE => (action::RETURNED, json!({})),
            Some(row) if !is_same(row.signer.as_ref(), self.signer) => (action::SIGNED, json!({})),
            Some(row) if row.pending.is_some() => {
                (action::WITHDRAWN, json!({ "reason": "the accepted version is back" }))
            }
            Some(_) => return None,
        };
        let mut detail = detail;
        detail["version"] = self.candidate.manifest.version.clone().into();
        Some(about(self.path, self.candidate, self.signer, entry(Actor::Host, action, detail)))
    }
}

/// Why a plugin without a signature that counts may not run.
pub(super) fn unsigned(signed: &Signed, accepted: Option<&Signer>) -> String {
    const POLICY: &str = "`plugin_policy` is \"signed-only\"";
    match (signed, accepted) {
        (Signed::Unknown { key_id }, None) => format!(
            "signed by key {key_id}, which isn't trusted, and {POLICY}; hint: `keywheel plugin trust KEY` if you know whose it is"
        ),
        (_, Some(signer)) => format!(
            "signed by key {}, which is trusted no longer, and {POLICY}; hint: have it signed by a key of `keywheel plugin keys`",
            named(&signer.key_id, signer.name.as_deref())
        ),
        _ => format!(
            "unsigned, and {POLICY}; hint: put its signature beside it, named as the file with .minisig, by a key of `keywheel plugin keys`"
        ),
    }
}

/// A file's name as people see it: in one line, and without what a terminal would obey.
pub(super) fn name_of(path: &Path) -> String {
    inert(&path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(), FILE_NAME)
}

pub(super) fn refused(path: &Path, unfit: &Unfit) -> PluginStatus {
    let signed = unfit.signed.as_deref().unwrap_or(&Signed::No);
    PluginStatus {
        file: name_of(path),
        state: PluginState::Refused,
        service: None,
        title: None,
        version: None,
        digest: unfit.digest.clone(),
        signature: Signature::of(signed, None, &[]),
        reason: Some(unfit.why.clone()),
        elsewhere: false,
        permissions: Vec::new(),
        in_use: None,
        provider: None,
    }
}

pub(super) fn described(path: &Path, candidate: &Candidate, signature: Option<Signature>) -> PluginStatus {
    PluginStatus {
        file: name_of(path),
        state: PluginState::Active,
        service: Some(candidate.manifest.service.clone()),
        title: Some(candidate.manifest.title.clone()),
        version: Some(candidate.manifest.version.clone()),
        digest: Some(candidate.digest.clone()),
        signature,
        reason: None,
        elsewhere: false,
        permissions: Vec::new(),
        in_use: None,
        provider: None,
    }
}

/// The accepted version of a service, which another host brought.
pub(super) fn accepted_elsewhere(
    row: &ProviderRow,
    unfit: Option<String>,
    trusted: &[TrustedKey],
) -> PluginStatus {
    PluginStatus {
        state: unfit.as_ref().map_or(PluginState::Active, |_| PluginState::Refused),
        reason: unfit.map(|why| format!("this host can't run it: {why}")),
        ..elsewhere(row, &row.manifest, &row.plugin_digest, row.signer.as_ref(), trusted)
    }
}

/// The version that waits, which another host brought.
pub(super) fn waits_elsewhere(
    row: &ProviderRow,
    pending: &PendingRow,
    trusted: &[TrustedKey],
) -> PluginStatus {
    let PendingRow { plugin_digest, manifest, signer } = pending;
    let waits = Waits::of(row, signer.as_ref(), &Permissions::of(manifest));
    PluginStatus {
        state: PluginState::PendingApproval,
        reason: Some(waits.reason()),
        permissions: waits.lines(),
        ..elsewhere(row, manifest, plugin_digest, signer.as_ref(), trusted)
    }
}

fn elsewhere(
    row: &ProviderRow,
    manifest: &Manifest,
    digest: &str,
    signer: Option<&Signer>,
    trusted: &[TrustedKey],
) -> PluginStatus {
    PluginStatus {
        file: row.file.clone().unwrap_or_else(|| row.service.clone()),
        state: PluginState::Active,
        service: Some(row.service.clone()),
        title: Some(manifest.title.clone()),
        version: Some(manifest.version.clone()),
        digest: Some(digest.to_owned()),
        signature: Signature::of(&Signed::No, signer, trusted),
        reason: None,
        elsewhere: true,
        permissions: Permissions::of(manifest).lines(),
        in_use: None,
        provider: None,
    }
}

/// Why a file that was looked at once isn't what serves.
pub(super) fn superseded(row: &ProviderRow) -> String {
    let ProviderRow { service, version, .. } = row;
    if row.state == state::REMOVED {
        return format!(
            "`{service}` was removed after this file came; hint: `keywheel plugin install` of it brings it back"
        );
    }
    let waits =
        row.pending.as_ref().map(|pending| format!(" and version {} waits", pending.manifest.version));
    format!(
        "another host's version of `{service}` came after this file: version {version} serves{}; hint: `keywheel plugin install` of this file puts it in that one's place",
        waits.unwrap_or_default()
    )
}

// For the audit

pub(super) fn entry(actor: Actor, action: &'static str, detail: Value) -> AuditEntry {
    AuditEntry { actor, action, service: None, file: None, digest: None, signer: None, detail }
}

fn about(path: &Path, candidate: &Candidate, signer: Option<&Signer>, entry: AuditEntry) -> AuditEntry {
    AuditEntry {
        service: Some(candidate.manifest.service.clone()),
        file: Some(name_of(path)),
        digest: Some(candidate.digest.clone()),
        signer: signer.map(|signer| signer.key_id.clone()),
        ..entry
    }
}

/// What the host decided about a provider as a whole.
pub(super) fn of_row(action: &'static str, row: &ProviderRow) -> AuditEntry {
    AuditEntry {
        service: Some(row.service.clone()),
        file: row.file.clone(),
        digest: Some(row.plugin_digest.clone()),
        signer: row.signer.as_ref().map(|signer| signer.key_id.clone()),
        ..entry(Actor::Host, action, json!({ "version": row.version }))
    }
}

/// What was decided about a file that changes nothing else.
pub(super) fn of_file(status: &PluginStatus) -> Option<AuditEntry> {
    let signature = status.signature.as_ref();
    let action = match status.state {
        PluginState::Active | PluginState::PendingApproval | PluginState::Superseded => return None,
        // The host that has the file writes it down.
        _ if status.elsewhere => return None,
        PluginState::Conflict => action::CONFLICT,
        PluginState::Refused if signature.is_some_and(|s| s.state == SignatureState::Bad) => {
            action::SIGNATURE_REFUSED
        }
        PluginState::Refused => action::REFUSED,
    };
    let reason = status.reason.as_deref().map(|reason| inert(reason, REASON));
    Some(AuditEntry {
        service: status.service.clone(),
        file: Some(status.file.clone()),
        digest: status.digest.clone(),
        signer: signature.and_then(|signature| signature.key_id.clone()),
        ..entry(Actor::Host, action, json!({ "reason": reason }))
    })
}
