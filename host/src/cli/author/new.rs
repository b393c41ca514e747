//! `plugin new`: a project that builds and passes its tests at once, or nothing.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::folder::{require_empty, require_parent, write};
use super::scaffold::{self, Names};
use super::{Language, shown, tools};
use crate::cli::Failure;
use crate::cli::output::Output;
use crate::registry::manifest::check_service_name;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The service it is for: a-z, 0-9 and `-`
    service: String,
    /// What to write it in
    #[arg(long, default_value = "rust")]
    lang: Language,
    /// The project's folder, which must be new or empty [default: the service's name]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// Another SDK for Rust than the one this program carries
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

pub async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let Arguments { service, lang, into, sdk } = arguments;
    check_service_name(&service).map_err(|error| Failure::BadInput(error.to_string()))?;
    let folder = into.unwrap_or_else(|| PathBuf::from(&service));
    let folder = std::path::absolute(&folder)
        .map_err(Failure::io(format!("{} can't be a folder", folder.display())))?;
    require_empty(&folder)?;
    let parent = require_parent(&folder)?;
    let sdk = sdk.map(|sdk| sdk_at(&sdk, lang)).transpose()?;
    tools::require(lang, parent).await?;

    let names = Names::of(&service);
    let files =
        scaffold::project(lang, &names, sdk.as_deref()).map_err(|error| Failure::Other(error.to_string()))?;
    write(&folder, &files).map_err(Failure::io(format!("{} can't be written", folder.display())))?;

    let made = json!({
        "service": service,
        "language": lang.word(),
        "folder": folder,
        "files": files.iter().map(|file| &file.path).collect::<Vec<_>>(),
    });
    output.value(&made, || {
        let next = match lang {
            Language::Rust => format!(
                "cargo test\n  cargo build --release --target {}\n  keywheel plugin test target/{}/release/{}",
                tools::TARGET,
                tools::TARGET,
                names.artefact()
            ),
            Language::Js => format!(
                "npm ci --ignore-scripts\n  npm run build\n  keywheel plugin test dist/{service}.wasm"
            ),
            Language::Python => format!("./build.sh\n  keywheel plugin test dist/{service}.wasm"),
        };
        format!(
            "{} is a provider for `{service}`: a token that is checked and swapped. Make it your service's in {}, and try it:\n  cd {}\n  {next}",
            shown(&folder),
            lang.source(),
            shown(&folder),
        )
    });
    Ok(())
}

/// The SDK that was named, as an absolute path.
fn sdk_at(sdk: &Path, language: Language) -> Result<String, Failure> {
    if language != Language::Rust {
        return Err(Failure::Usage(format!(
            "--sdk names the SDK for Rust; a provider in {} needs only the contract, which is written along",
            language.word()
        )));
    }
    let found = sdk.canonicalize().map_err(Failure::io(format!("{} can't be found", sdk.display())))?;
    let manifest = std::fs::read_to_string(found.join("Cargo.toml")).unwrap_or_default();
    let is_sdk = manifest.parse::<toml::Table>().is_ok_and(|manifest| {
        manifest.get("package").and_then(|package| package.get("name")?.as_str()) == Some("keywheel-sdk")
    });
    if !is_sdk {
        return Err(Failure::BadInput(format!(
            "{} is not the SDK; allowed: a folder whose Cargo.toml names the package `keywheel-sdk`; hint: it is `plugin-sdk` in Keywheel's source, and without --sdk this program writes its own",
            sdk.display()
        )));
    }
    found.into_os_string().into_string().map_err(|_| Failure::BadInput("--sdk: its path is no text".into()))
}
