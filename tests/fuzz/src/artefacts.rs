//! What lies on disk and was not ours or is no longer as we left it: sealed values that were
//! changed or moved don't open, and native code without this host's tag over exactly these bytes,
//! this plugin and this engine isn't handed to a worker.

use std::cell::RefCell;
use std::fs;
use std::io::Read;

use keywheel::config::Home;
use keywheel::credential::Secret;
use keywheel::registry::cache::Cache;
use keywheel::vault::{Place, Vault};

use crate::{read, write};

/// A secret and its place; where and how the sealed bytes are changed; another place; native
/// code and its tag as found.
type Input = (Vec<u8>, (String, u32, String), (u16, u8), (String, u32, String), Vec<u8>, Vec<u8>);

struct Disk {
    vault: Vault,
    cache: Cache,
    _folder: tempfile::TempDir,
}

thread_local! {
    static DISK: RefCell<Disk> = RefCell::new(disk());
}

fn disk() -> Disk {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::locate(Some(folder.path().to_owned())).expect("a home");
    fs::create_dir_all(home.cache()).expect("a folder");
    Disk { vault: Vault::from_bytes(&[7; 32]).expect("a key"), cache: Cache::new(&home), _folder: folder }
}

pub fn run(input: &[u8]) {
    let Some((secret, at, (index, flip), other, code, tag)) = read::<Input>(input) else { return };
    DISK.with_borrow(|disk| {
        sealed(&disk.vault, &Secret::new(secret), &at, (index, flip), &other);
        native(disk, &code, &tag);
    });
}

fn sealed(
    vault: &Vault,
    secret: &Secret,
    at: &(String, u32, String),
    (index, flip): (u16, u8),
    other: &(String, u32, String),
) {
    let place = |at: &'_ (String, u32, String)| (at.0.clone(), at.1, at.2.clone());
    let (credential, generation, key) = place(at);
    let here = Place { credential: &credential, generation, key: &key };
    let bytes = vault.seal(here, secret).expect("random bytes");
    let opened = vault.open_sealed(Place { credential: &credential, generation, key: &key }, &bytes);
    assert_eq!(opened.expect("its own place").expose(), secret.expose());
    if secret.expose().len() >= 6 {
        assert!(!crate::contains(&bytes, secret.expose()), "sealed in plain");
    }
    if other != at {
        let (credential, generation, key) = place(other);
        let elsewhere = Place { credential: &credential, generation, key: &key };
        assert!(vault.open_sealed(elsewhere, &bytes).is_err(), "{at:?} opens as {other:?}");
    }
    if flip != 0 {
        let mut changed = bytes.clone();
        let index = usize::from(index) % changed.len();
        changed[index] ^= flip;
        let here = Place { credential: &credential, generation, key: &key };
        assert!(vault.open_sealed(here, &changed).is_err(), "changed at {index}");
    }
    let cut = &bytes[..usize::from(index) % bytes.len()];
    let here = Place { credential: &credential, generation, key: &key };
    assert!(vault.open_sealed(here, cut).is_err(), "cut short");
}

fn native(disk: &Disk, code: &[u8], tag: &[u8]) {
    let digest = "ab".repeat(32);
    let path = disk.cache.native(&digest);
    fs::write(&path, code).expect("a file");
    // No one has the key to make a tag but the host; whatever was found beside the code is not one.
    fs::write(path.with_extension("tag"), tag).expect("a file");
    assert!(disk.cache.verified(&digest, &disk.vault).is_none(), "a found tag passed");
    let bound = disk.cache.bound(&digest);
    let genuine = disk.vault.tag(&[bound.as_bytes(), code].concat());
    fs::write(path.with_extension("tag"), genuine).expect("a file");
    let mut file = disk.cache.verified(&digest, &disk.vault).expect("our own tag");
    let mut read = Vec::new();
    file.read_to_end(&mut read).expect("the code");
    assert_eq!(read, code, "what is handed on is what was checked");
    // The same code and tag are nothing under another plugin's digest.
    let other = "cd".repeat(32);
    let elsewhere = disk.cache.native(&other);
    fs::write(&elsewhere, code).expect("a file");
    fs::write(elsewhere.with_extension("tag"), genuine).expect("a file");
    assert!(disk.cache.verified(&other, &disk.vault).is_none(), "another plugin's code passed");
    // A tag of another length, and the genuine one cut short or with something after it.
    for wrong in [&genuine[..31], &[genuine.as_slice(), &[0]].concat(), &[]] {
        fs::write(path.with_extension("tag"), wrong).expect("a file");
        assert!(disk.cache.verified(&digest, &disk.vault).is_none(), "a tag of {} bytes passed", wrong.len());
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let place = |credential: &str, generation, key: &str| (credential.to_owned(), generation, key.to_owned());
    let inputs: Vec<Input> = vec![
        (
            b"a secret".to_vec(),
            place("c", 1, "k"),
            (30, 1),
            place("c", 2, "k"),
            b"code".to_vec(),
            vec![0; 32],
        ),
        (vec![], place("", 0, ""), (0, 0), place("a", 0, ""), vec![], vec![]),
        (
            vec![1; 64],
            place("ab", 1, "c"),
            (3, 0x80),
            place("a", 1, "bc"),
            vec![0x7f, 69, 76, 70],
            vec![1; 64],
        ),
    ];
    inputs.iter().map(write).collect()
}
