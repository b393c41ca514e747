//! `plugin record`: asks the real service once, and writes what it answered into a fixture,
//! without a secret in it. Nothing is stored: the call runs in a home that is gone afterwards.
//!
//! **Invariant:** a secret that the service issued is in the author's file before anything else
//! is made of it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::json;

use super::{shown, trace};
use crate::cli::output::Output;
use crate::cli::{Failure, credential};
use crate::credential::{Jar, Secret, now};
use crate::formats;
use crate::kit::fixture::{self, Given, OUTCOMES, VERDICTS, Which};
use crate::kit::record::{Wanted, recording};
use crate::kit::{Case, Kit, Options, Run, Service, checks};
use crate::registry::manifest;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The plugin: a .wasm file, or a .toml template
    file: PathBuf,
    /// What is asked of it
    #[arg(long, default_value = "validate")]
    call: Call,
    /// Which way to rotate [default: its first]
    #[arg(long)]
    method: Option<String>,
    /// The fixture to write, such as fixtures/alive.toml
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A setting of the provider
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// A host name that may lead to a private address
    #[arg(long = "allow-private", value_name = "HOST")]
    private_hosts: Vec<String>,
    /// The secrets [default: key=value lines on standard input]
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    #[arg(long)]
    format: Option<formats::Format>,
    /// Ask with secrets that were never issued, made up here
    #[arg(long, conflicts_with_all = ["from", "format"])]
    made_up: bool,
    /// What the provider should say of it, where that isn't what it says now
    #[arg(long, value_name = "VERDICT")]
    expect: Option<String>,
    /// One sentence about the fixture
    #[arg(long)]
    about: Option<String>,
    /// Rotate for real: the secret changes at the service
    #[arg(long, requires = "save")]
    yes_rotate: bool,
    /// Where the new secrets go, a file of mode 0600 that `credential import` reads
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Call {
    Validate,
    Rotate,
}

pub async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let arguments = judged(arguments)?;
    if arguments.out.exists() {
        return Err(Failure::BadInput(format!(
            "{} is there already, and nothing was asked; hint: name another, or remove it",
            arguments.out.display()
        )));
    }
    let folder = arguments.out.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(Failure::NotFound(format!(
            "{} is no folder, and nothing was asked; hint: `mkdir -p {}`",
            folder.display(),
            folder.display()
        )));
    }
    let kit = Kit::open(&arguments.file, Options::default()).await?;
    let recorded = record(&kit, &arguments, output).await;
    kit.close().await;
    recorded
}

/// What of the arguments makes no sense together.
fn judged(arguments: Arguments) -> Result<Arguments, Failure> {
    let usage = |text: String| Err(Failure::Usage(text));
    let words: &[&str] = match arguments.call {
        Call::Validate => &VERDICTS,
        Call::Rotate => &OUTCOMES,
    };
    if let Some(expect) = &arguments.expect
        && !words.contains(&expect.as_str())
    {
        return usage(format!(
            "--expect {expect}: allowed: {}{}",
            words.join(", "),
            fixture::did_you_mean(expect, words.iter().copied())
        ));
    }
    match arguments.call {
        Call::Validate if arguments.method.is_some() || arguments.yes_rotate || arguments.save.is_some() => {
            usage("--method, --yes-rotate and --save are for --call rotate".into())
        }
        Call::Rotate if arguments.made_up => usage(
            "--made-up is for --call validate: what a service does with a secret it never issued says nothing of a rotation".into(),
        ),
        Call::Rotate if !arguments.yes_rotate => usage(
            "rotating for real changes the secret at the service, and whoever uses the old one may be locked out; nothing was asked; hint: with --yes-rotate and --save FILE the new one is kept in FILE".into(),
        ),
        _ => Ok(arguments),
    }
}

async fn record(kit: &Kit, arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let settings = credential::settings(&arguments.settings)?;
    let resolved = manifest::resolve(kit.manifest(), &settings, &arguments.private_hosts)
        .map_err(|error| Failure::BadInput(error.to_string()))?;
    let keys = if arguments.made_up {
        resolved.keys.iter().map(|spec| made_up(&spec.name)).collect::<Result<_, _>>()?
    } else {
        let from = arguments.from.as_deref();
        let format = arguments.format.or_else(|| from.is_none().then_some(formats::Format::KeyValue));
        given(credential::sorted_out(&credential::read_secrets(from)?, format, false, &resolved, output)?)
    };
    let at = now();
    let case = Case {
        call: match arguments.call {
            Call::Validate => Which::Validate,
            Call::Rotate => Which::Rotate(arguments.method.clone()),
        },
        settings,
        private_hosts: arguments.private_hosts.clone(),
        keys,
        now: Some(at),
    };
    kit.resolve(&case)?;
    // Made before anything is asked: a place that can't be written must cost nothing.
    let save = arguments.save.as_deref().map(Saved::make).transpose()?;
    // Between the service's answer and the file nobody may end this by the keyboard.
    let _deaf =
        save.as_ref().map(|_| tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()));
    let run = kit.run(&case, Service::Network).await?;
    if let Some(save) = save {
        save.keep(&run, output)?;
    }
    for line in trace::lines(&run) {
        output.say(&line);
    }

    let wanted = Wanted {
        about: arguments.about.clone(),
        expect: arguments.expect.clone(),
        made_up: arguments.made_up,
        now: at,
    };
    let said = run.said.as_ref().map(|said| said.word()).unwrap_or_default();
    let recorded = recording(&case, run, &wanted).map_err(|error| Failure::Other(error.to_string()))?;
    let name = arguments.out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let fixture = fixture::read(&name, &recorded.text)
        .map_err(|error| Failure::Other(format!("what was recorded is no fixture: {error}")))?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&arguments.out)
        .and_then(|mut file| file.write_all(recorded.text.as_bytes()))
        .map_err(Failure::io(format!("{} can't be written", arguments.out.display())))?;

    // A fixture of another host than the author's could have been reached only there.
    let (_, findings) = checks::once(kit, &fixture).await?;
    let told = json!({
        "fixture": arguments.out,
        "says": said,
        "removed": recorded.notes.iter().map(|note| json!({
            "place": note.place, "what": note.what, "count": note.count,
        })).collect::<Vec<_>>(),
        "holds": findings.is_empty(),
        "findings": findings.iter().map(|finding| &finding.text).collect::<Vec<_>>(),
    });
    output.value(&told, || {
        let mut text = format!("recorded {}", shown(&arguments.out));
        for note in &recorded.notes {
            text.push_str(&format!("\n  taken out: {} × {} in {}", note.count, note.what, note.place));
        }
        text.push_str("\n  look through it before you share it: names, ids and addresses of your own service are still there");
        match findings.as_slice() {
            [] => text.push_str("\nplayed again, it holds"),
            findings => {
                text.push_str("\nplayed again, it doesn't hold:");
                for finding in findings {
                    text.push_str(&format!("\n  {}", finding.text));
                }
            }
        }
        text
    });
    if findings.is_empty() { Ok(()) } else { Err(Failure::Unhealthy) }
}

pub fn given(keys: Vec<crate::control::KeyInput>) -> Vec<Given> {
    let of = |key: crate::control::KeyInput| Given {
        name: key.name,
        value: Some(key.value.into_secret()),
        expires: key.expires,
    };
    // A cookie that no key names travels with a credential, and has no place in a fixture.
    keys.into_iter().filter(|key| !key.name.starts_with("cookie:")).map(of).collect()
}

fn made_up(key: &str) -> Result<Given, Failure> {
    let mut bytes = [0_u8; 24];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::Other(format!("the system gives no random bytes: {error}")))?;
    Ok(Given { name: key.to_owned(), value: Some(Secret::new(hex::encode(bytes))), expires: None })
}

/// The file for what a rotation issues.
struct Saved<'p> {
    path: &'p Path,
    file: File,
}

impl<'p> Saved<'p> {
    fn make(path: &'p Path) -> Result<Self, Failure> {
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match opened {
            Ok(file) => Ok(Self { path, file }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Failure::BadInput(format!(
                    "--save {} is there already, and nothing was asked; hint: name another file",
                    path.display()
                )))
            }
            Err(error) => Err(Failure::io(format!("--save {} can't be written", path.display()))(error)),
        }
    }

    /// Puts the keys as they are now into the file; where nothing was issued it goes again.
    fn keep(mut self, run: &Run, output: Output) -> Result<(), Failure> {
        if run.captured.is_empty() {
            // Best effort: an empty file harms nobody.
            let _ = std::fs::remove_file(self.path);
            output.say("no new secret was issued: the one you have is still in force, as far as this shows");
            return Ok(());
        }
        let text = lines(&run.jar);
        let written = self.file.write_all(text.expose()).and_then(|()| self.file.sync_all());
        if let Err(error) = written {
            output.error(&format!(
                "{} can't be written ({error}), so the new secrets follow here: they exist nowhere else",
                self.path.display()
            ));
            return output.secret(&text).map_err(Failure::io("standard output can't be written"));
        }
        output.say(&format!(
            "the new secrets are in {}; hint: `keywheel credential import ID {}` takes them over",
            self.path.display(),
            self.path.display()
        ));
        Ok(())
    }
}

/// `key=value` lines, or JSON where a value has a line end.
fn lines(jar: &Jar) -> Secret {
    let is_line = |bytes: &[u8]| !bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0));
    if !jar.keys.iter().all(|key| is_line(key.secret.expose()))
        && let Ok(json) = formats::export::to_json(jar)
    {
        return json;
    }
    let size = jar.keys.iter().map(|key| key.name.len() + key.secret.expose().len() + 2).sum();
    // Room for all of it at once: a buffer that grows leaves what it held behind.
    let mut text = Vec::with_capacity(size);
    for key in jar.keys.iter().filter(|key| !key.name.starts_with("cookie:")) {
        text.extend_from_slice(key.name.as_bytes());
        text.push(b'=');
        text.extend_from_slice(key.secret.expose());
        text.push(b'\n');
    }
    Secret::new(text)
}
