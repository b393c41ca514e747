//! The master key sealed for one host: HPKE (RFC 9180) in its base mode, with X25519, HKDF-SHA256
//! and ChaCha20-Poly1305. Only that host's own key opens it, and only for the installation, the
//! host and the name that it was sealed for. Where sealed keys lie is not known here.

use std::fmt;
use std::path::Path;

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{KEY_BYTES, KeyBytes, Kind, OF_A_CREDENTIAL, OWNER_ALONE, Vault, VaultError};

type Private = <X25519HkdfSha256 as Kem>::PrivateKey;
type Public = <X25519HkdfSha256 as Kem>::PublicKey;
type Encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey;

/// First byte of a sealed master key, so that another construction can follow one day.
const VERSION: u8 = 1;
const ENCAPSULATED_BYTES: usize = 32;

const LABEL: &[u8] = b"keywheel vault v1: master key for a host";
const FINGERPRINT_LABEL: &[u8] = b"keywheel vault v1: fingerprint of a host";

/// 128 bits: nobody makes a key with the fingerprint of another. Eight groups of four digits.
const FINGERPRINT_BYTES: usize = 16;

/// Whom a master key is sealed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipient<'a> {
    /// The installation's marker (`Vault::marker`).
    pub installation: &'a [u8],
    pub host_id: &'a str,
    pub name: &'a str,
    pub public_key: &'a [u8],
}

impl Recipient<'_> {
    /// Lengths come first, so no two encode alike.
    fn encode(&self) -> Vec<u8> {
        let mut out = LABEL.to_vec();
        for part in [self.installation, self.host_id.as_bytes(), self.name.as_bytes(), self.public_key] {
            out.extend_from_slice(&(part.len() as u64).to_le_bytes());
            out.extend_from_slice(part);
        }
        out
    }
}

/// A host's own key. Its file has 32 bytes, as the master key's has.
pub struct HostKey {
    private: Private,
    public: [u8; KEY_BYTES],
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKey").field("public", &fingerprint(&self.public)).finish_non_exhaustive()
    }
}

impl HostKey {
    /// Makes a new key in a file only its owner can read, durably.
    ///
    /// # Errors
    /// `Exists` where there is a file already; `Io` and `Random` from the system.
    pub fn create(path: &Path) -> Result<Self, VaultError> {
        Ok(Self::of(&KeyBytes::create(Kind::Host, path)?))
    }

    /// Opens the key in a file.
    ///
    /// # Errors
    /// As for a master key.
    pub fn open(path: &Path) -> Result<Self, VaultError> {
        Ok(Self::of(&KeyBytes::open(Kind::Host, path, OWNER_ALONE)?))
    }

    /// The same for a credential of systemd's.
    ///
    /// # Errors
    /// As for a master key.
    pub fn open_credential(path: &Path) -> Result<Self, VaultError> {
        Ok(Self::of(&KeyBytes::open(Kind::Host, path, OF_A_CREDENTIAL)?))
    }

    fn of(bytes: &KeyBytes) -> Self {
        let private = Private::from_bytes(&*bytes.0).expect("any 32 bytes are a key of X25519's");
        let public = X25519HkdfSha256::sk_to_pk(&private).to_bytes().into();
        Self { private, public }
    }

    pub const fn public(&self) -> &[u8; KEY_BYTES] {
        &self.public
    }

    /// Opens what was sealed for this host.
    ///
    /// # Errors
    /// `Unwrapped` where it was changed, or sealed for another.
    pub fn unwrap(&self, to: Recipient<'_>, sealed: &[u8]) -> Result<KeyBytes, VaultError> {
        self.try_unwrap(to, sealed).ok_or_else(|| VaultError::Unwrapped { host: to.name.to_owned() })
    }

    fn try_unwrap(&self, to: Recipient<'_>, sealed: &[u8]) -> Option<KeyBytes> {
        let (&version, rest) = sealed.split_first()?;
        let (encapsulated, boxed) = rest.split_at_checked(ENCAPSULATED_BYTES)?;
        if version != VERSION || to.public_key != self.public {
            return None;
        }
        let master = single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &Encapsulated::from_bytes(encapsulated).ok()?,
            &to.encode(),
            boxed,
            &[],
        );
        KeyBytes::of(Kind::Master, &Zeroizing::new(master.ok()?)).ok()
    }
}

impl KeyBytes {
    /// This master key, for one host alone. Twice the same gives two different results.
    ///
    /// # Errors
    /// `Unusable` where the host's public key is none.
    pub fn wrap(&self, to: Recipient<'_>) -> Result<Vec<u8>, VaultError> {
        let unusable = || VaultError::Unusable { host: to.name.to_owned() };
        let public = Public::from_bytes(to.public_key).map_err(|_| unusable())?;
        let (encapsulated, boxed) = single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &public,
            &to.encode(),
            &*self.0,
            &[],
        )
        .map_err(|_| unusable())?;
        Ok([&[VERSION], encapsulated.to_bytes().as_slice(), &boxed].concat())
    }

    /// Whether this is the master key of an installation.
    ///
    /// # Errors
    /// `WrongKey` where another one made its marker.
    pub fn check_marker(&self, marker: &[u8]) -> Result<(), VaultError> {
        Vault::of(self).check_marker(marker)
    }
}

/// A public key as two people compare it.
pub fn fingerprint(public_key: &[u8]) -> String {
    let digest = Sha256::new().chain_update(FINGERPRINT_LABEL).chain_update(public_key).finalize();
    let digits = hex::encode(&digest[..FINGERPRINT_BYTES]);
    let groups: Vec<&str> = (0..digits.len()).step_by(4).map(|at| &digits[at..at + 4]).collect();
    groups.join("-")
}

/// Whether a person's text is that fingerprint: case and what stands between its digits don't count.
pub fn is_fingerprint_of(public_key: &[u8], text: &str) -> bool {
    let digits = |text: &str| -> String {
        let between = |letter: &char| !matches!(letter, '-' | ':' | ' ');
        text.chars().filter(between).map(|letter| letter.to_ascii_lowercase()).collect()
    };
    digits(text) == digits(&fingerprint(public_key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fill: u8) -> HostKey {
        HostKey::of(&bytes(fill))
    }

    fn bytes(fill: u8) -> KeyBytes {
        KeyBytes(Zeroizing::new([fill; KEY_BYTES]))
    }

    fn recipient(key: &HostKey) -> Recipient<'_> {
        Recipient {
            installation: b"marker",
            host_id: "00000000000000a1",
            name: "eu-1",
            public_key: key.public(),
        }
    }

    #[test]
    fn a_sealed_master_key_opens_only_with_the_hosts_own_key_and_in_its_own_row() {
        let (one, other) = (key(1), key(2));
        let sealed = bytes(7).wrap(recipient(&one)).unwrap();
        assert_eq!(*one.unwrap(recipient(&one), &sealed).unwrap().0, [7; KEY_BYTES]);

        assert!(other.unwrap(recipient(&other), &sealed).is_err());
        assert!(other.unwrap(recipient(&one), &sealed).is_err());
        for moved in [
            Recipient { installation: b"another", ..recipient(&one) },
            Recipient { host_id: "00000000000000a2", ..recipient(&one) },
            Recipient { name: "eu-2", ..recipient(&one) },
            Recipient { public_key: other.public(), ..recipient(&one) },
            // The same letters, cut at another place.
            Recipient { host_id: "00000000000000a1e", name: "u-1", ..recipient(&one) },
        ] {
            assert!(one.unwrap(moved, &sealed).is_err(), "{moved:?}");
        }
    }

    #[test]
    fn every_changed_bit_and_every_cut_of_a_sealed_master_key_is_noticed() {
        let host = key(1);
        let sealed = bytes(7).wrap(recipient(&host)).unwrap();
        for index in 0..sealed.len() {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[index] ^= 1 << bit;
                // X25519 takes no notice of the last bit of a point, and HPKE mixes the point in.
                assert!(host.unwrap(recipient(&host), &changed).is_err(), "bit {bit} of byte {index}");
            }
            assert!(host.unwrap(recipient(&host), &sealed[..index]).is_err(), "cut at {index}");
        }
    }

    #[test]
    fn the_same_master_key_is_sealed_differently_each_time_and_never_for_a_key_that_is_none() {
        let host = key(1);
        let sealed = bytes(7).wrap(recipient(&host)).unwrap();
        assert_ne!(sealed, bytes(7).wrap(recipient(&host)).unwrap());
        for none in [&[0; KEY_BYTES][..], &[1; 31], b""] {
            let refused = bytes(7).wrap(Recipient { public_key: none, ..recipient(&host) });
            assert!(matches!(refused, Err(VaultError::Unusable { .. })), "{none:?}");
        }
    }

    #[test]
    fn a_fingerprint_is_eight_groups_and_known_again_however_it_is_written() {
        let (one, other) = (key(1), key(2));
        let print = fingerprint(one.public());
        assert_eq!(print.split('-').map(str::len).collect::<Vec<_>>(), [4; 8]);
        for written in [print.clone(), print.to_uppercase(), print.replace('-', ""), print.replace('-', ": ")]
        {
            assert!(is_fingerprint_of(one.public(), &written), "{written}");
            assert!(!is_fingerprint_of(other.public(), &written), "{written}");
        }
        assert!(!is_fingerprint_of(one.public(), &print[..34]));
        assert!(!is_fingerprint_of(one.public(), ""));
    }

    #[test]
    fn a_host_key_lies_in_a_file_of_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host.key");
        let made = HostKey::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(HostKey::open(&path).unwrap().public(), made.public());
        let again = HostKey::create(&path).unwrap_err().to_string();
        assert!(again.starts_with("host key ") && again.contains("already exists"), "{again}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(HostKey::open(&path).unwrap_err().to_string().contains("hint: chmod 600"));
        HostKey::open_credential(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, [1; 31]).unwrap();
        let short = HostKey::open(&path).unwrap_err().to_string();
        assert_eq!(short, "host key of 31 bytes, exactly 32 are needed; hint: join again from a new home");
    }

    #[test]
    fn nothing_of_a_key_shows_in_debug_or_errors() {
        // Each byte of them is an `A`, 0x41, 65.
        let (host, master) = (key(0x41), bytes(0x41));
        let error = host.unwrap(recipient(&host), b"AAAA").unwrap_err();
        for text in [format!("{host:?}"), format!("{master:?}"), format!("{error:?}"), error.to_string()] {
            for trace in ["AAAA", "4141", "65, 65"] {
                assert!(!text.contains(trace), "{text}");
            }
        }
    }
}
