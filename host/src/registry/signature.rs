//! Owns what a signature beside a plugin is worth: minisign's format, checked against the keys
//! the operator trusts. Pure. It never says that an unsigned plugin may run, or may not: that is
//! the policy's, and the registry's to carry out.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign_verify::{Error, PublicKey, Signature};

use super::manifest::{inert, shown};
use crate::db::{Signer, TrustedKey};

/// minisign caps a comment at 8 KiB; all else is under 400 bytes.
pub const SIGNATURE_BYTES: u64 = 16 << 10;
/// A public key file is two lines of under 100 bytes.
const KEY_FILE_BYTES: usize = 4 << 10;
/// A name of a signer, or a trusted comment, in a table.
const NAME: usize = 64;
const COMMENT: usize = 120;
/// An algorithm's two letters, the key's id, the key.
const KEY: usize = 2 + 8 + 32;

/// What the signature file beside a plugin came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signed {
    /// There is none.
    No,
    By(Signer),
    /// Of a key that isn't trusted, so nobody can say whether it is genuine.
    Unknown {
        key_id: String,
    },
    /// It is there and is wrong: whoever made these bytes, it was not the key it names.
    Bad(String),
}

/// Why a text is no public key, or may not be trusted under that name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error(
        "{} is no minisign public key: {why}; allowed: the line that begins with RW, or the .pub file with it",
        shown(.found)
    )]
    Key { found: String, why: &'static str },
    #[error("the name {} is not allowed; allowed: 1 to {NAME} characters on one line", shown(.found))]
    Name { found: String },
}

/// Where the signature of a plugin lies, as minisign names it.
pub fn beside(plugin: &Path) -> PathBuf {
    let mut name = plugin.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// Checks a signature against the very bytes that are kept and will run.
///
/// Only prehashed signatures count, the library's default and what minisign has made since
/// 0.10. The older kind signs the file itself, and a key that signs both kinds can be made to
/// vouch for what its owner never saw as a file.
pub fn judge(plugin: &[u8], signature: Option<&[u8]>, trusted: &[TrustedKey]) -> Signed {
    let Some(file) = signature else { return Signed::No };
    if file.len() as u64 > SIGNATURE_BYTES {
        let found = format!("the signature beside it has over {SIGNATURE_BYTES} bytes");
        return Signed::Bad(format!("{found}; hint: sign it again with `minisign -S`"));
    }
    let (Some(signature), Some(key_id)) = (decode(file), key_id_of(file)) else {
        return Signed::Bad(
            "the signature beside it is none of minisign's, or is cut short; hint: sign it again with `minisign -S`".into(),
        );
    };
    let Some(known) = trusted.iter().find(|key| key.key_id == key_id) else {
        return Signed::Unknown { key_id };
    };
    let verified =
        PublicKey::from_base64(&known.public_key).and_then(|key| key.verify(plugin, &signature, false));
    match verified {
        Ok(()) => Signed::By(Signer {
            key_id,
            public_key: known.public_key.clone(),
            name: known.name.clone(),
            comment: Some(inert(signature.trusted_comment(), COMMENT)).filter(|text| !text.is_empty()),
        }),
        Err(Error::UnexpectedAlgorithm) => Signed::Bad(format!(
            "its signature by key {key_id} is of minisign's old kind, which isn't believed; hint: sign it again with `minisign -S -H`"
        )),
        Err(_) => Signed::Bad(format!(
            "its signature names key {}, and does not fit these bytes: one of the two was changed; hint: get both again from whoever signs them",
            named(&key_id, known.name.as_deref())
        )),
    }
}

fn decode(file: &[u8]) -> Option<Signature> {
    Signature::decode(std::str::from_utf8(file).ok()?).ok()
}

/// The library keeps it to itself.
fn key_id_of(file: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(file).ok()?.lines().nth(1)?;
    let bytes = STANDARD.decode(line).ok()?;
    Some(spelled(bytes.get(2..10)?))
}

/// As minisign spells a key's id: the number that its bytes are, lowest first.
fn spelled(id: &[u8]) -> String {
    let mut id = id.to_vec();
    id.reverse();
    hex::encode_upper(id)
}

/// A key with who it belongs to.
pub fn named(key_id: &str, name: Option<&str>) -> String {
    name.map_or_else(|| key_id.to_owned(), |name| format!("{key_id} ({name})"))
}

/// Reads what the operator gave: the key's own line, or the text of a .pub file.
///
/// # Errors
/// Why it is no key.
pub fn read_public_key(text: &str) -> Result<(String, String), KeyError> {
    let refuse = |why| KeyError::Key { found: text.trim().to_owned(), why };
    if text.len() > KEY_FILE_BYTES {
        return Err(refuse("it is too long"));
    }
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = match (lines.next(), lines.next(), lines.next()) {
        (Some(line), None, None) => line,
        (Some(comment), Some(line), None) if comment.starts_with("untrusted comment:") => line,
        _ => return Err(refuse("it is neither one line nor a comment and one")),
    };
    let bytes = STANDARD.decode(line).map_err(|_| refuse("it is not base64"))?;
    if bytes.len() != KEY {
        return Err(refuse("it has another length"));
    }
    PublicKey::from_base64(line).map_err(|_| refuse("it is of another algorithm"))?;
    Ok((spelled(&bytes[2..10]), STANDARD.encode(bytes)))
}

/// # Errors
/// A name that could not be shown in one line as it is.
pub fn check_name(name: &str) -> Result<(), KeyError> {
    let fits = (1..=NAME).contains(&name.chars().count()) && inert(name, NAME) == name;
    if fits { Ok(()) } else { Err(KeyError::Name { found: name.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use minisign::KeyPair;

    use super::*;

    const PLUGIN: &[u8] = b"\0asm and so on";

    fn trusted(pair: &KeyPair, name: &str) -> TrustedKey {
        let (key_id, public_key) = read_public_key(&pair.pk.to_base64()).unwrap();
        TrustedKey { key_id, public_key, name: Some(name.to_owned()), added_at: 0 }
    }

    fn sign(pair: &KeyPair, bytes: &[u8], comment: &str) -> String {
        minisign::sign(None, &pair.sk, Cursor::new(bytes), Some(comment), None).unwrap().into_string()
    }

    fn pair() -> KeyPair {
        KeyPair::generate_unencrypted_keypair().unwrap()
    }

    fn why(signed: Signed) -> String {
        let Signed::Bad(why) = signed else { panic!("{signed:?}") };
        why
    }

    #[test]
    fn a_signature_counts_only_for_the_bytes_and_the_key_it_was_made_with() {
        let (ann, bob) = (pair(), pair());
        let signature = sign(&ann, PLUGIN, "version:1");
        let keys = [trusted(&bob, "bob"), trusted(&ann, "ann")];
        let Signed::By(signer) = judge(PLUGIN, Some(signature.as_bytes()), &keys) else { panic!() };
        assert_eq!((signer.name.as_deref(), signer.comment.as_deref()), (Some("ann"), Some("version:1")));
        assert_eq!(signer.public_key, ann.pk.to_base64());

        assert_eq!(judge(PLUGIN, None, &keys), Signed::No);
        let unknown = judge(PLUGIN, Some(signature.as_bytes()), &keys[..1]);
        assert_eq!(unknown, Signed::Unknown { key_id: signer.key_id.clone() });
        assert!(why(judge(b"other bytes", Some(signature.as_bytes()), &keys)).contains("does not fit"));
        // Every byte of it matters but those of the untrusted comment.
        let first = signature.find('\n').unwrap() + 1;
        for at in first..signature.len() {
            let mut changed = signature.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let verdict = judge(PLUGIN, Some(&changed), &keys);
            assert!(!matches!(verdict, Signed::By(_)), "byte {at}: {verdict:?}");
        }
        for length in 0..signature.trim_end().len() {
            let verdict = judge(PLUGIN, Some(&signature.as_bytes()[..length]), &keys);
            assert!(matches!(verdict, Signed::Bad(_)), "cut at {length}: {verdict:?}");
        }
    }

    #[test]
    fn a_forged_key_id_does_not_pass_for_the_key() {
        let (ann, mallory) = (pair(), pair());
        // Mallory's signature, with the id of ann's key written over their own.
        let signature = sign(&mallory, PLUGIN, "c");
        let mut lines: Vec<String> = signature.lines().map(str::to_owned).collect();
        let mut bytes = STANDARD.decode(&lines[1]).unwrap();
        bytes[2..10].copy_from_slice(ann.pk.keynum());
        lines[1] = STANDARD.encode(bytes);
        let forged = lines.join("\n");
        let verdict = judge(PLUGIN, Some(forged.as_bytes()), &[trusted(&ann, "ann")]);
        assert!(why(verdict).contains("(ann), and does not fit"));
    }

    #[test]
    fn an_old_signature_over_the_file_itself_is_not_believed() {
        let ann = pair();
        let signature = sign(&ann, PLUGIN, "c");
        let mut lines: Vec<String> = signature.lines().map(str::to_owned).collect();
        let mut bytes = STANDARD.decode(&lines[1]).unwrap();
        assert_eq!(&bytes[..2], b"ED", "what minisign makes is prehashed");
        bytes[..2].copy_from_slice(b"Ed");
        lines[1] = STANDARD.encode(bytes);
        let old = lines.join("\n");
        let verdict = judge(PLUGIN, Some(old.as_bytes()), &[trusted(&ann, "ann")]);
        assert!(why(verdict).contains("minisign's old kind"));
    }

    #[test]
    fn a_trusted_comment_is_inert_and_short() {
        let ann = pair();
        let signature = sign(&ann, PLUGIN, &format!("\u{1b}[2J\u{202e}{}", "x".repeat(1_000)));
        let Signed::By(signer) = judge(PLUGIN, Some(signature.as_bytes()), &[trusted(&ann, "ann")]) else {
            panic!()
        };
        let comment = signer.comment.unwrap();
        assert!(comment.starts_with(r"\u{1b}[2J\u{202e}xxx"), "{comment}");
        assert!(comment.chars().count() < 200, "{comment}");
    }

    #[test]
    fn anything_beside_a_plugin_gets_an_answer() {
        let ann = trusted(&pair(), "ann");
        let huge = vec![b'x'; 17 << 10];
        for odd in [&b""[..], b"\n\n\n\n", b"\xff\xfe", b"a\nb\nc\nd", &huge, &[0; 400]] {
            let verdict = judge(PLUGIN, Some(odd), std::slice::from_ref(&ann));
            assert!(matches!(verdict, Signed::Bad(_)), "{odd:?}: {verdict:?}");
        }
    }

    #[test]
    fn a_public_key_is_read_from_its_line_and_from_its_file() {
        let ann = pair();
        let line = ann.pk.to_base64();
        let (id, key) = read_public_key(&line).unwrap();
        assert_eq!(key, line);
        let file = ann.pk.to_box().unwrap().to_string();
        assert!(file.lines().next().unwrap().ends_with(&id), "minisign spells it so as well: {file} {id}");
        assert_eq!(read_public_key(&file).unwrap(), (id, key));
        for bad in ["", "RW", "not a key", "ssh-ed25519 AAAA", &line[4..], &format!("{line}\n{line}")] {
            let error = read_public_key(bad).unwrap_err().to_string();
            assert!(error.contains("allowed: the line that begins with RW"), "{error}");
        }
        assert!(check_name("Ann of Shop").is_ok());
        for bad in ["", "a\u{1b}[2J", "a\nb", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
