//! `plugin pack`: what an author hands on, in one folder: the plugin under a name that says what
//! it is, its digest, what it would be allowed in words, and a signature where there is one.
//!
//! It doesn't sign: a key that signs belongs to a program made for that, and to nobody who builds.
//! It says the command, and what was signed before is verified and goes along.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::folder::{File, require_empty, require_parent, write};
use super::shown;
use crate::cli::output::Output;
use crate::cli::{Failure, plugin_test};
use crate::db::TrustedKey;
use crate::kit::{Kit, Options};
use crate::registry::signature::{self, Signed};

/// A signature or a key is a few short lines.
const SHORT_FILE: u64 = 8 << 10;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The plugin: a .wasm file, or a .toml template
    file: PathBuf,
    /// The folder to make, new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where its fixtures are [default: as for `plugin test`]
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    /// Also where `plugin test` finds faults
    #[arg(long)]
    untested: bool,
    /// The public key that the signature beside the plugin must be of, or the file it is in
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

pub async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let Arguments { file, out, fixtures, untested, key } = arguments;
    let out =
        std::path::absolute(&out).map_err(Failure::io(format!("{} can't be a folder", out.display())))?;
    require_empty(&out)?;
    require_parent(&out)?;
    let signature = signature_of(&file, key.as_deref())?;
    if !untested {
        let report = plugin_test::look(&file, fixtures).await?;
        if !report.held() {
            plugin_test::tell(&file, &report, output);
            return Err(Failure::Other(
                "nothing was packed: the plugin has faults; hint: mend them, or pack it with --untested"
                    .into(),
            ));
        }
    }
    let bytes = std::fs::read(&file).map_err(Failure::io(format!("{} can't be read", file.display())))?;
    let kit = Kit::open(&file, Options::default()).await?;
    let (status, manifest) = (kit.status().clone(), kit.manifest().clone());
    kit.close().await;

    let kind = file.extension().and_then(|kind| kind.to_str()).unwrap_or("wasm");
    let name = format!("{}-{}.{kind}", manifest.service, manifest.version);
    let mut permissions = format!(
        "{} {}, service `{}`\n{}\n",
        manifest.title,
        manifest.version,
        manifest.service,
        if untested { "not tested" } else { "passed `keywheel plugin test`" },
    );
    for line in &status.permissions {
        permissions.push_str(&format!("  {line}\n"));
    }
    let mut files =
        vec![(name.clone(), bytes.clone()), ("permissions.txt".to_owned(), permissions.clone().into_bytes())];
    files.extend(signature.map(|signature| (format!("{name}.minisig"), signature)));
    let sums: String = files.iter().map(|(name, bytes)| format!("{}  {name}\n", digest(bytes))).collect();
    files.push(("SHA256SUMS".to_owned(), sums.into_bytes()));
    let is_signed = files.iter().any(|(name, _)| name.ends_with(".minisig"));
    let files: Vec<File> =
        files.into_iter().map(|(path, bytes)| File { path, bytes, executable: false }).collect();
    write(&out, &files).map_err(Failure::io(format!("{} can't be written", out.display())))?;

    let packed = json!({
        "folder": out,
        "file": name,
        "sha256": digest(&bytes),
        "signed": is_signed,
        "tested": !untested,
        "permissions": status.permissions,
    });
    output.value(&packed, || {
        let place = shown(&out);
        let mut text = format!("packed {place}/{name}\n  sha256 {}", digest(&bytes));
        for line in &status.permissions {
            text.push_str(&format!("\n  {line}"));
        }
        text.push_str(&match is_signed {
            true => format!("\nsigned, and verified: {name}.minisig"),
            false => format!(
                "\nnot signed; hint: `minisign -Sm {place}/{name}`, and hand {name}.minisig on with it"
            ),
        });
        text
    });
    Ok(())
}

fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// The signature beside a plugin, which must be of the key that was named.
fn signature_of(file: &Path, key: Option<&str>) -> Result<Option<Vec<u8>>, Failure> {
    let beside = signature::beside(file);
    if !beside.exists() {
        return match key {
            None => Ok(None),
            Some(_) => Err(Failure::NotFound(format!(
                "--key was given, and no signature is at {}; hint: `minisign -Sm {}`",
                beside.display(),
                file.display()
            ))),
        };
    }
    let Some(key) = key else {
        return Err(Failure::Usage(format!(
            "{} is there, and nobody says whose it must be; hint: --key names the public key, or remove the signature",
            beside.display()
        )));
    };
    let path = Path::new(key);
    let text = match path.exists() || path.extension().is_some() {
        true => String::from_utf8_lossy(&short_file(path)?).into_owned(),
        false => key.to_owned(),
    };
    let (key_id, public_key) =
        signature::read_public_key(&text).map_err(|error| Failure::BadInput(error.to_string()))?;
    let trusted = TrustedKey { key_id, public_key, name: None, added_at: 0 };
    let bytes = std::fs::read(file).map_err(Failure::io(format!("{} can't be read", file.display())))?;
    let signed = short_file(&beside)?;
    match signature::judge(&bytes, Some(&signed), std::slice::from_ref(&trusted)) {
        Signed::By(_) => Ok(Some(signed)),
        Signed::Unknown { key_id, .. } => Err(Failure::BadInput(format!(
            "{} is of key {key_id}, --key is {}; hint: sign it with that key's secret",
            beside.display(),
            trusted.key_id
        ))),
        Signed::Bad(why) => Err(Failure::BadInput(format!("{}: {why}", beside.display()))),
        Signed::No => Ok(None),
    }
}

fn short_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(SHORT_FILE).read_to_end(&mut bytes))
        .map_err(Failure::io(format!("{} can't be read", path.display())))?;
    Ok(bytes)
}
