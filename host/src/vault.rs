//! Seals, opens and fingerprints secrets, and authenticates files this installation made. The
//! only place that sees the master key and the keys of hosts. It stores nothing but those keys' own
//! files, and never puts a secret, a key or what either might be into an error or a `Debug` line.

pub mod stream;
pub mod wrapped;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::credential::Secret;

/// Length of the master key and of every key derived from it.
pub const KEY_BYTES: usize = 32;

/// First byte of a sealed value, so that another construction can follow one day.
const SEAL_VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;
const POLY1305_BYTES: usize = 16;

/// 64 bits: two of ten million values share one with odds of 1 in 370,000, and a person can
/// still compare two by eye.
const FINGERPRINT_BYTES: usize = 8;

/// One label per purpose: a key made for one of them says nothing about another.
const SEAL_LABEL: &[u8] = b"keywheel vault v1: seal";
const FINGERPRINT_LABEL: &[u8] = b"keywheel vault v1: fingerprint";
const TAG_LABEL: &[u8] = b"keywheel vault v1: artefact tag";

/// What the marker seals. Not secret: opening it proves that the key is the right one.
const MARKER_TEXT: &[u8] = b"this master key belongs to this installation";
const MARKER_PLACE: Place<'static> = Place { credential: "", generation: 0, key: "vault-check" };

/// Where a sealed value belongs. It is authenticated with the value, so a value that was moved
/// to another credential, generation or key does not open there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    pub credential: &'a str,
    pub generation: u32,
    pub key: &'a str,
}

impl Place<'_> {
    /// Lengths come first, so no two places share an encoding.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(20 + self.credential.len() + self.key.len());
        out.extend_from_slice(&(self.credential.len() as u64).to_le_bytes());
        out.extend_from_slice(self.credential.as_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&(self.key.len() as u64).to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out
    }
}

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("{kind} {} already exists; hint: {}, so it is never overwritten", path.display(), kind.loss())]
    Exists { kind: Kind, path: PathBuf },
    #[error("no {kind} at {}; hint: {}", path.display(), kind.source())]
    Missing { kind: Kind, path: PathBuf },
    #[error("{kind} {} is not a regular file", path.display())]
    NotAFile { kind: Kind, path: PathBuf },
    #[error("{kind} {} has mode {found:04o}, at most 0600 is allowed; hint: chmod 600 {}", path.display(), path.display())]
    Readable { kind: Kind, path: PathBuf, found: u32 },
    #[error("{kind} of {found} bytes, exactly {KEY_BYTES} are needed; hint: {}", kind.remedy())]
    Length { kind: Kind, found: usize },
    #[error("{kind} {} can't be used", path.display())]
    Io {
        kind: Kind,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the system gave no random bytes: {0}")]
    Random(getrandom::Error),
    #[error(
        "secret `{key}` of {credential}, generation {generation}, does not open: it was changed, moved or sealed with another master key"
    )]
    Unopened { credential: String, generation: u32, key: String },
    #[error(
        "this master key is not the one the database was sealed with; hint: put the backup of master.key back, or import the credentials again into a new home"
    )]
    WrongKey,
    #[error(
        "what the store holds for host `{host}` doesn't open with its key: it was changed, moved or sealed for another; hint: on a host that has the master key, `keywheel host revoke {host}`; then join again from a new home"
    )]
    Unwrapped { host: String },
    #[error(
        "the key of host `{host}` is none that anything can be sealed for; hint: join again from a new home"
    )]
    Unusable { host: String },
}

/// What a file of `KEY_BYTES` bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The installation's: opens every secret.
    Master,
    /// One host's own: opens the master key where that is sealed for it.
    Host,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "master key",
            Self::Host => "host key",
        })
    }
}

impl Kind {
    const fn loss(self) -> &'static str {
        match self {
            Self::Master => "a new one would make every stored secret unreadable",
            Self::Host => "a new one would shut this host out",
        }
    }

    const fn source(self) -> &'static str {
        match self {
            Self::Master => {
                "`keywheel init` makes one, put the backup of it back, or name its file in KEYWHEEL_MASTER_KEY"
            }
            Self::Host => {
                "`keywheel host join` makes one; KEYWHEEL_HOST_KEY names its file where that lies elsewhere"
            }
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::Master => "put the backup of it back",
            Self::Host => "join again from a new home",
        }
    }
}

/// A key as it lies in its file: wiped when dropped, and invisible to `Debug`.
pub struct KeyBytes(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyBytes(…)")
    }
}

impl KeyBytes {
    /// Makes a new key in a file only its owner can read, durably.
    fn create(kind: Kind, path: &Path) -> Result<Self, VaultError> {
        let io = |source| VaultError::Io { kind, path: path.to_owned(), source };
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *bytes).map_err(VaultError::Random)?;

        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Written aside and then linked in: a crash leaves no short key behind, and a key
        // that is there already can't be replaced, not even in a race.
        let mut file = tempfile::Builder::new()
            .prefix(".master-key-")
            .permissions(std::fs::Permissions::from_mode(0o600))
            .tempfile_in(folder)
            .map_err(io)?;
        file.write_all(&*bytes).map_err(io)?;
        file.as_file().sync_all().map_err(io)?;
        file.persist_noclobber(path).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => VaultError::Exists { kind, path: path.to_owned() },
            _ => io(error.error),
        })?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        Ok(Self(bytes))
    }

    /// Reads the key in a file, which must have none of the rights `forbidden`.
    fn open(kind: Kind, path: &Path, forbidden: u32) -> Result<Self, VaultError> {
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => VaultError::Missing { kind, path: path.to_owned() },
            _ => VaultError::Io { kind, path: path.to_owned(), source },
        };
        // Without NONBLOCK a named pipe in the key's place would hang the host for ever.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(io)?;
        // Asked of the open file: the path may point elsewhere a moment later.
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(VaultError::NotAFile { kind, path: path.to_owned() });
        }
        let found = metadata.permissions().mode() & 0o7777;
        if found & forbidden != 0 {
            return Err(VaultError::Readable { kind, path: path.to_owned(), found });
        }
        // One byte more than a key has tells "too long" without reading all of it.
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
        file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() > KEY_BYTES {
            let found = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
            return Err(VaultError::Length { kind, found });
        }
        Self::of(kind, &bytes)
    }

    fn of(kind: Kind, bytes: &[u8]) -> Result<Self, VaultError> {
        let key = bytes.try_into().map_err(|_| VaultError::Length { kind, found: bytes.len() })?;
        Ok(Self(Zeroizing::new(key)))
    }

    /// The master key in a file.
    ///
    /// # Errors
    /// A file that others can read, one of the wrong length, none at all, or none that can be read.
    pub fn master(path: &Path) -> Result<Self, VaultError> {
        Self::open(Kind::Master, path, OWNER_ALONE)
    }

    /// The same for a credential of systemd's: its folder is this service's alone, and the rights
    /// of the file's group are where the file system shows what an access list grants it.
    ///
    /// # Errors
    /// Those of `master`.
    pub fn master_credential(path: &Path) -> Result<Self, VaultError> {
        Self::open(Kind::Master, path, OF_A_CREDENTIAL)
    }
}

/// The rights that a key's file must not give.
const OWNER_ALONE: u32 = 0o077;
const OF_A_CREDENTIAL: u32 = 0o037;

/// The keys derived from one master key. Cheap to use from any thread.
pub struct Vault {
    cipher: XChaCha20Poly1305,
    // HMACs with their key already taken in: half the hashing of a short value is saved.
    fingerprints: Hmac<Sha256>,
    tags: Hmac<Sha256>,
    streams: stream::StreamKey,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault(…)")
    }
}

impl Vault {
    /// Makes a new master key in a file only its owner can read, durably, and opens it.
    ///
    /// # Errors
    /// `Exists` where there is a file already; `Io` and `Random` from the system.
    pub fn create(path: &Path) -> Result<Self, VaultError> {
        Ok(Self::of(&KeyBytes::create(Kind::Master, path)?))
    }

    /// Opens the master key in a file.
    ///
    /// # Errors
    /// Those of `KeyBytes::master`.
    pub fn open(path: &Path) -> Result<Self, VaultError> {
        Ok(Self::of(&KeyBytes::master(path)?))
    }

    /// # Errors
    /// `Length` where it isn't exactly `KEY_BYTES` long.
    pub fn from_bytes(master: &[u8]) -> Result<Self, VaultError> {
        Ok(Self::of(&KeyBytes::of(Kind::Master, master)?))
    }

    pub fn of(master: &KeyBytes) -> Self {
        let master = master.0.as_slice();
        Self {
            cipher: XChaCha20Poly1305::new(
                derive(master, SEAL_LABEL)
                    .as_slice()
                    .try_into()
                    .expect("a derived key has the cipher's length"),
            ),
            fingerprints: keyed(&*derive(master, FINGERPRINT_LABEL)),
            tags: keyed(&*derive(master, TAG_LABEL)),
            streams: stream::StreamKey::of(master),
        }
    }

    /// Seals what leaves the home as a whole.
    pub const fn streams(&self) -> &stream::StreamKey {
        &self.streams
    }

    /// Encrypts a secret for one place. Twice the same gives two different results.
    ///
    /// # Errors
    /// `Random` where the system gives no nonce.
    pub fn seal(&self, place: Place<'_>, secret: &Secret) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(VaultError::Random)?;
        let payload = Payload { msg: secret.expose(), aad: &place.encode() };
        let boxed = self
            .cipher
            .encrypt(&XNonce::from(nonce), payload)
            .expect("a value in memory is shorter than the cipher's 256 GiB");
        let mut sealed = Vec::with_capacity(1 + NONCE_BYTES + boxed.len());
        sealed.push(SEAL_VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&boxed);
        Ok(sealed)
    }

    /// # Errors
    /// `Unopened` where it was changed, sealed for another place, or by another key.
    pub fn open_sealed(&self, place: Place<'_>, sealed: &[u8]) -> Result<Secret, VaultError> {
        self.try_open(place, sealed).ok_or_else(|| VaultError::Unopened {
            credential: place.credential.to_owned(),
            generation: place.generation,
            key: place.key.to_owned(),
        })
    }

    fn try_open(&self, place: Place<'_>, sealed: &[u8]) -> Option<Secret> {
        let (&version, rest) = sealed.split_first()?;
        if version != SEAL_VERSION || rest.len() < NONCE_BYTES + POLY1305_BYTES {
            return None;
        }
        let (nonce, boxed) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let payload = Payload { msg: boxed, aad: &place.encode() };
        self.cipher.decrypt(&XNonce::from(*nonce), payload).ok().map(Secret::new)
    }

    /// The only trace of a value outside the vault: equal for equal values, useless without
    /// the master key.
    pub fn fingerprint(&self, secret: &Secret) -> String {
        let mut mac = self.fingerprints.clone();
        mac.update(secret.expose());
        hex::encode(&mac.finalize().into_bytes()[..FINGERPRINT_BYTES])
    }

    /// Authenticates bytes as made by this installation. What they are for must be in them.
    pub fn tag(&self, bytes: &[u8]) -> [u8; 32] {
        let mut mac = self.tags.clone();
        mac.update(bytes);
        mac.finalize().into_bytes().into()
    }

    /// `tag` over everything a reader gives, without holding it in memory.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn tag_reader(&self, mut reader: impl Read) -> io::Result<[u8; 32]> {
        let mut mac = self.tags.clone();
        let mut chunk = vec![0; 64 << 10];
        loop {
            match reader.read(&mut chunk) {
                Ok(0) => return Ok(mac.finalize().into_bytes().into()),
                Ok(length) => mac.update(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a tag is that of these bytes; the time it takes does not tell where they differ.
    pub fn verify_tag(&self, bytes: &[u8], tag: &[u8]) -> bool {
        self.tag(bytes).ct_eq(tag).into()
    }

    /// `verify_tag` over everything a reader gives.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn verify_tag_reader(&self, reader: impl Read, tag: &[u8]) -> io::Result<bool> {
        Ok(self.tag_reader(reader)?.ct_eq(tag).into())
    }

    /// A value to keep in the database: only this master key opens it.
    ///
    /// # Errors
    /// Those of `seal`.
    pub fn marker(&self) -> Result<Vec<u8>, VaultError> {
        self.seal(MARKER_PLACE, &Secret::new(MARKER_TEXT))
    }

    /// Checks a marker that was stored when the installation was made.
    ///
    /// # Errors
    /// `WrongKey` where another master key made it.
    pub fn check_marker(&self, marker: &[u8]) -> Result<(), VaultError> {
        match self.try_open(MARKER_PLACE, marker) {
            Some(text) if text.expose() == MARKER_TEXT => Ok(()),
            _ => Err(VaultError::WrongKey),
        }
    }
}

/// Copies a master key into a new file of its own, private and durably. The copy is checked as if
/// it had always been there.
///
/// # Errors
/// Those of opening either.
pub fn copy_key(from: &Path, to: &Path) -> Result<(), VaultError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| VaultError::Io { kind: Kind::Master, path, source }
    };
    Vault::open(from)?;
    let bytes = Zeroizing::new(std::fs::read(from).map_err(io(from))?);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(io(to))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io(to))?;
    Vault::open(to).map(drop)
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

fn derive(master: &[u8], label: &[u8]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut mac = keyed(master);
    mac.update(label);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn vault(fill: u8) -> Vault {
        Vault::from_bytes(&[fill; KEY_BYTES]).unwrap()
    }

    const PLACE: Place<'static> = Place { credential: "shop-1", generation: 3, key: "session" };

    #[test]
    fn a_sealed_value_opens_only_in_its_place_and_with_its_key() {
        let secret = Secret::new(*b"opaque");
        let sealed = vault(1).seal(PLACE, &secret).unwrap();
        assert_eq!(vault(1).open_sealed(PLACE, &sealed).unwrap(), secret);

        for other in [
            Place { credential: "shop-2", ..PLACE },
            Place { generation: 2, ..PLACE },
            Place { key: "refresh", ..PLACE },
            Place { credential: "shop-1s", key: "ession", ..PLACE },
        ] {
            assert!(vault(1).open_sealed(other, &sealed).is_err(), "{other:?}");
        }
        assert!(vault(2).open_sealed(PLACE, &sealed).is_err());
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_noticed() {
        let sealed = vault(1).seal(PLACE, &Secret::new(*b"opaque")).unwrap();
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert!(vault(1).open_sealed(PLACE, &changed).is_err(), "byte {index}");
            assert!(vault(1).open_sealed(PLACE, &sealed[..index]).is_err(), "cut at {index}");
        }
    }

    #[test]
    fn the_same_value_is_sealed_differently_each_time_and_an_empty_one_is_kept() {
        let empty = Secret::new(Vec::new());
        let first = vault(1).seal(PLACE, &empty).unwrap();
        assert_ne!(first, vault(1).seal(PLACE, &empty).unwrap());
        assert_eq!(vault(1).open_sealed(PLACE, &first).unwrap(), empty);
    }

    #[test]
    fn a_fingerprint_is_stable_short_and_keyed() {
        let secret = Secret::new(*b"opaque");
        let print = vault(1).fingerprint(&secret);
        assert_eq!(print, vault(1).fingerprint(&secret));
        assert_eq!(print.len(), 16);
        assert_ne!(print, vault(2).fingerprint(&secret));
        assert_ne!(print, hex::encode(&vault(1).tag(b"opaque")[..8]), "purposes share no key");
    }

    #[test]
    fn a_tag_is_the_same_for_bytes_and_for_a_reader_of_them() {
        let bytes = vec![7; 200_000];
        let tag = vault(1).tag(&bytes);
        assert_eq!(vault(1).tag_reader(bytes.as_slice()).unwrap(), tag);
        assert!(vault(1).verify_tag(&bytes, &tag));
        assert!(vault(1).verify_tag_reader(bytes.as_slice(), &tag).unwrap());
        assert!(!vault(1).verify_tag(&bytes[1..], &tag));
        assert!(!vault(1).verify_tag(&bytes, &tag[..31]));
        assert!(!vault(2).verify_tag(&bytes, &tag));
    }

    #[test]
    fn a_marker_tells_the_right_master_key_from_another() {
        let marker = vault(1).marker().unwrap();
        vault(1).check_marker(&marker).unwrap();
        assert!(matches!(vault(2).check_marker(&marker), Err(VaultError::WrongKey)));
        assert!(matches!(vault(1).check_marker(b""), Err(VaultError::WrongKey)));
    }

    #[test]
    fn a_new_master_key_is_private_and_never_replaces_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let marker = Vault::create(&path).unwrap().marker().unwrap();
        let before = fs::read(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Vault::create(&path), Err(VaultError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left aside");
        Vault::open(&path).unwrap().check_marker(&marker).unwrap();
    }

    #[test]
    fn a_master_key_file_is_refused_when_others_may_read_it_or_its_length_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        assert!(matches!(Vault::open(&path), Err(VaultError::Missing { .. })));
        assert!(matches!(Vault::open(folder.path()), Err(VaultError::NotAFile { .. })));

        for (length, found) in [(0, 0), (31, 31), (33, 33), (5_000, 5_000)] {
            fs::write(&path, vec![1; length]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            match Vault::open(&path) {
                Err(VaultError::Length { found: seen, .. }) => assert_eq!(seen, found),
                other => panic!("{other:?}"),
            }
        }
        fs::write(&path, [1; KEY_BYTES]).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Vault::open(&path).unwrap_err().to_string();
            assert!(error.contains("hint: chmod 600"), "{error}");
        }
        for (mode, allowed) in [(0o440, true), (0o400, true), (0o444, false), (0o460, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(KeyBytes::master_credential(&path).is_ok(), allowed, "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        Vault::open(&path).unwrap();
    }

    #[test]
    fn nothing_of_the_key_or_the_value_shows_in_debug_or_errors() {
        let vault = vault(0x41);
        let error = vault.open_sealed(PLACE, b"opaque").unwrap_err();
        for text in [format!("{vault:?}"), format!("{error:?}"), error.to_string()] {
            assert!(!text.contains("AAAA") && !text.contains("opaque") && !text.contains("65, 65"), "{text}");
        }
    }
}
