//! The tools of a provider's author: compilers and package installers, run in the author's own
//! project, as the author, with the author's environment. The one place of the command line that
//! starts programs which aren't ours. None of them ever gets a secret.

use std::io;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use super::Language;
use crate::cli::Failure;

/// What plugins are compiled for.
pub const TARGET: &str = "wasm32-wasip2";

/// The oldest compiler that the SDK is for.
const RUST: (u32, u32) = (1, 95);

/// How a tool ended.
#[derive(Debug)]
pub struct Ran {
    pub ok: bool,
    /// Its standard output.
    pub data: String,
    /// Its standard error.
    pub talk: String,
}

impl Ran {
    /// Both, for tools that don't keep to one.
    pub fn all(&self) -> String {
        format!("{}{}", self.data, self.talk)
    }
}

/// Runs a tool to its end. Dropped before, it is killed.
///
/// # Errors
/// Where it can't be started.
pub async fn run(program: &str, arguments: &[&str], folder: &Path, more: &[(&str, &str)]) -> io::Result<Ran> {
    #[expect(clippy::disallowed_methods, reason = "an author's tools want the author's environment")]
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).envs(more.iter().copied()).kill_on_drop(true);
    let output = command.stdin(Stdio::null()).output().await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ran { ok: output.status.success(), data: text(&output.stdout), talk: text(&output.stderr) })
}

/// Whether a project of this language could be built here.
///
/// # Errors
/// What is missing, and how to get it.
pub async fn require(language: Language, folder: &Path) -> Result<(), Failure> {
    match language {
        Language::Rust => require_rust(folder).await,
        Language::Js => {
            require_program("node", "https://nodejs.org has it", folder).await?;
            require_program("npm", "it comes with Node.js", folder).await
        }
        Language::Python => {
            require_program("python3", "your system has a package of that name", folder).await
        }
    }
}

async fn require_program(program: &str, whence: &str, folder: &Path) -> Result<(), Failure> {
    version(program, whence, folder).await.map(drop)
}

async fn version(program: &str, whence: &str, folder: &Path) -> Result<String, Failure> {
    match run(program, &["--version"], folder, &[]).await {
        Ok(ran) if ran.ok => Ok(ran.data.trim().to_owned()),
        Ok(ran) => {
            Err(Failure::Other(format!("`{program} --version` fails: {}; hint: {whence}", ran.all().trim())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::NotFound(format!(
            "there is no `{program}` on the PATH, and the provider is built with it; hint: {whence}"
        ))),
        Err(error) => Err(Failure::io(format!("`{program}` can't be started"))(error)),
    }
}

async fn require_rust(folder: &Path) -> Result<(), Failure> {
    const WHENCE: &str = "https://rustup.rs installs it";
    version("cargo", WHENCE, folder).await?;
    let said = version("rustc", WHENCE, folder).await?;
    if parsed(&said).is_some_and(|found| found < RUST) {
        return Err(Failure::Other(format!(
            "{said} is too old; allowed: {}.{} or later; hint: `rustup update`",
            RUST.0, RUST.1
        )));
    }
    let sysroot = run("rustc", &["--print", "sysroot"], folder, &[])
        .await
        .map_err(Failure::io("`rustc` can't be started"))?;
    let libraries = Path::new(sysroot.data.trim()).join("lib/rustlib").join(TARGET);
    if !libraries.exists() {
        return Err(Failure::NotFound(format!(
            "{said} can't compile for {TARGET}, which plugins are; hint: `rustup target add {TARGET}`"
        )));
    }
    Ok(())
}

/// Major and minor of `rustc 1.95.0 (…)`.
fn parsed(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split(' ').nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compilers_version_is_read_and_an_unknown_one_is_let_be() {
        assert_eq!(parsed("rustc 1.95.0 (59807616e 2026-04-14)"), Some((1, 95)));
        assert_eq!(parsed("rustc 2.0.0-nightly"), Some((2, 0)));
        assert_eq!(parsed("something else"), None);
    }

    #[tokio::test]
    async fn a_tool_that_is_not_there_is_named_with_where_to_get_it() {
        let said = require_program("keywheel-no-such-tool", "look there", Path::new("/")).await;
        let said = said.unwrap_err().to_string();
        assert!(said.contains("`keywheel-no-such-tool`") && said.contains("hint: look there"), "{said}");
    }
}
