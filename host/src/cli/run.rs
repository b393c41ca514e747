//! `run`: a command with secrets, in its environment or in files that end with it. What it is
//! given is what is in force when it starts. No value is ever printed, and nothing is left behind
//! but by a SIGKILL.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use super::credential::jar_in_force;
use super::output::Output;
use crate::config::Home;
use crate::credential::{Form, Jar, Millis, Secret, now};
use crate::formats::export::{ExportError, to_form, variable, variable_value, variables};

/// As `env` and shells say it of a command that isn't there, or can't be run.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keywheel run --credential ann -- ./report.sh
  keywheel run --credential ann --env API_TOKEN=access_token -- ./report.sh
  keywheel run --credential ann --file COOKIES=netscape -- ./crawl.sh

Without --env and --file each key is a variable of its own name, as `credential export --format env` \
shows them; of several credentials each with its id before it. The exit code is the command's, and 128 \
and the number of the signal that ended it.")]
pub struct Arguments {
    /// Whose secrets; may be given again
    #[arg(long = "credential", short, value_name = "ID", required = true)]
    credentials: Vec<String>,
    /// One key as this variable; of several credentials NAME=ID/KEY. May be given again
    #[arg(long, value_name = "NAME=KEY")]
    env: Vec<String>,
    /// A file in this form, whose path is in the variable; of several credentials VAR=ID/FORM. May be given again
    #[arg(long, value_name = "VAR=FORM")]
    file: Vec<String>,
    /// The URL that a cookie header is for
    #[arg(long)]
    url: Option<String>,
    /// What to run, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub async fn run(home: &Home, arguments: Arguments, output: Output) -> Result<(), Failure> {
    let mut jars = BTreeMap::new();
    for id in &arguments.credentials {
        jars.insert(id.clone(), jar_in_force(home, id)?);
    }
    let wanted = Wanted {
        env: &arguments.env,
        files: &arguments.file,
        url: arguments.url.as_deref(),
        now: now(),
        is_set: &|name| std::env::var_os(name).is_some(),
    };
    let given = wanted.of(&jars)?;
    drop(jars);
    // From here on no signal ends this process before the files are gone.
    let mut signals = Signals::watch().map_err(Failure::io("signals can't be watched"))?;
    let folder = match given.files.is_empty() {
        true => None,
        false => Some(private_folder().map_err(Failure::io("no private folder can be made for the files"))?),
    };
    let (program, rest) =
        arguments.command.split_first().ok_or_else(|| Failure::Usage("no command is given".into()))?;
    #[expect(clippy::disallowed_methods, reason = "this is what a person runs, with what he asked for")]
    let mut command = tokio::process::Command::new(program);
    command.args(rest);
    for (name, value) in &given.variables {
        command.env(name, std::ffi::OsStr::from_bytes(value.expose()));
    }
    for (variable, name, text) in &given.files {
        let path = folder.as_ref().map(|folder| folder.path().join(name)).unwrap_or_default();
        write_private(&path, text).map_err(Failure::io(format!("{} can't be written", path.display())))?;
        command.env(variable, &path);
    }
    drop(given);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            output.error(&format!("`{}` can't be started: {error}", program.to_string_lossy()));
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return Err(Failure::Exit(if missing { NOT_FOUND } else { NOT_RUN }));
        }
    };
    // It holds the secrets in its environment, and this process has no use for them any more.
    drop(command);
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            number = signals.next() => pass_on(number, child.id()),
        }
    };
    if let Some(folder) = folder {
        let path = folder.path().to_owned();
        folder.close().map_err(Failure::io(format!("{} can't be removed", path.display())))?;
    }
    let status = status.map_err(Failure::io("the command's end can't be waited for"))?;
    let code = status.code().or_else(|| status.signal().map(|number| 128 + number)).unwrap_or(1);
    match u8::try_from(code).unwrap_or(1) {
        0 => Ok(()),
        code => Err(Failure::Exit(code)),
    }
}

/// What was asked for.
struct Wanted<'a> {
    env: &'a [String],
    files: &'a [String],
    url: Option<&'a str>,
    now: Millis,
    /// Whether a variable is set already.
    is_set: &'a dyn Fn(&str) -> bool,
}

/// What the command is given.
#[derive(Debug, Default)]
struct Given {
    variables: Vec<(String, Secret)>,
    /// Variable, name of the file, what is in it.
    files: Vec<(String, String, Secret)>,
}

impl Wanted<'_> {
    fn of(&self, jars: &BTreeMap<String, Jar>) -> Result<Given, Failure> {
        let mut given = Given::default();
        if self.env.is_empty() && self.files.is_empty() {
            for (id, jar) in jars {
                for (name, value) in variables(jar).map_err(unfit)? {
                    let name = if jars.len() > 1 { format!("{}_{name}", variable(id)) } else { name };
                    self.check_name(&name)?;
                    given.variables.push((name, Secret::new(value)));
                }
            }
        }
        for pair in self.env {
            let (name, id, key) = split(pair, "--env", "NAME=KEY", jars)?;
            let jar = &jars[id];
            let found = jar.get(key).ok_or_else(|| {
                let names: Vec<_> = jar.keys.iter().map(|key| key.name.as_str()).collect();
                Failure::NotFound(format!("`{id}` has no key `{key}`; it has: {}", names.join(", ")))
            })?;
            given.variables.push((name.to_owned(), Secret::new(variable_value(found).map_err(unfit)?)));
        }
        for pair in self.files {
            let (name, id, form) = split(pair, "--file", "VAR=FORM", jars)?;
            let form = <Form as clap::ValueEnum>::from_str(form, false).map_err(|_| {
                Failure::Usage(format!(
                    "--file {pair}: no form `{form}`; allowed: netscape, storage-state, browser-json, header, env, json"
                ))
            })?;
            let text = to_form(&jars[id], form, self.url, self.now).map_err(unfit)?;
            given.files.push((name.to_owned(), format!("{name}.{}", ending(form)), text));
        }
        let mut seen = HashSet::new();
        let names =
            given.variables.iter().map(|(name, _)| name).chain(given.files.iter().map(|(name, ..)| name));
        for name in names {
            if !seen.insert(name) {
                return Err(Failure::BadInput(format!(
                    "two secrets would both be the variable {name}; hint: name each, --env NAME=KEY"
                )));
            }
        }
        Ok(given)
    }

    /// A key's name is its provider's word, and a variable of some names makes programs run what
    /// is in it. Whoever names the variable himself knows what he does.
    fn check_name(&self, name: &str) -> Result<(), Failure> {
        let hint = format!("hint: name it yourself, --env NAME={}", name.to_ascii_lowercase());
        if (self.is_set)(name) {
            return Err(Failure::BadInput(format!(
                "a key would replace the variable {name}, which is set already; {hint}"
            )));
        }
        if steers_programs(name) {
            return Err(Failure::BadInput(format!(
                "a key would be the variable {name}, by which programs are steered; {hint}"
            )));
        }
        Ok(())
    }
}

/// Variables that loaders, shells, interpreters and tools take commands or code from.
fn steers_programs(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "BASH_ENV",
        "BROWSER",
        "CDPATH",
        "EDITOR",
        "ENV",
        "GCONV_PATH",
        "HOME",
        "IFS",
        "LESSOPEN",
        "LESSCLOSE",
        "LOCPATH",
        "MANPAGER",
        "PAGER",
        "PATH",
        "PROMPT_COMMAND",
        "PS4",
        "SHELL",
        "SHELLOPTS",
        "TMPDIR",
        "VISUAL",
    ];
    const BEGINNINGS: &[&str] = &[
        "BASH_FUNC_",
        "CARGO_",
        "CLASSPATH",
        "DYLD_",
        "GIT_",
        "JAVA_",
        "JDK_",
        "KEYWHEEL_",
        "LD_",
        "LUA_",
        "MALLOC_",
        "NODE_",
        "NPM_",
        "OPENSSL_",
        "PERL",
        "PHP",
        "PYTHON",
        "RUBY",
        "RUST",
        "SSH_",
        "SSL_",
        "SUDO_",
        "SYSTEMD_",
        "ZDOTDIR",
        "_JAVA_",
    ];
    NAMES.contains(&name) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// The variable, whose secrets, and what of them.
fn split<'a>(
    pair: &'a str,
    option: &str,
    allowed: &str,
    jars: &'a BTreeMap<String, Jar>,
) -> Result<(&'a str, &'a str, &'a str), Failure> {
    let wrong = |why: &str| Failure::Usage(format!("{option} {pair}: {why}"));
    let (name, what) = pair.split_once('=').ok_or_else(|| wrong(&format!("allowed is {allowed}")))?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(is_name) {
        return Err(wrong("a variable is letters, digits and _, not beginning with a digit"));
    }
    // An id has no slash, a key may have some.
    let named = what.split_once('/').filter(|(id, _)| jars.contains_key(*id));
    match (named, jars.first_key_value()) {
        (Some((id, what)), _) => Ok((name, id, what)),
        (None, Some((id, _))) if jars.len() == 1 => Ok((name, id, what)),
        _ => {
            let ids: Vec<_> = jars.keys().map(String::as_str).collect();
            Err(wrong(&format!("of which credential? allowed: ID/… with one of {}", ids.join(", "))))
        }
    }
}

fn unfit(error: ExportError) -> Failure {
    match error {
        ExportError::NoUrl => Failure::BadInput(format!("{error}; hint: --url https://…")),
        error => Failure::BadInput(error.to_string()),
    }
}

const fn ending(form: Form) -> &'static str {
    match form {
        Form::Netscape | Form::Header => "txt",
        Form::StorageState | Form::BrowserJson | Form::Json => "json",
        Form::Env => "env",
    }
}

/// A folder of mode 0700, in memory where there is such a place: what is never on a disk can't be
/// found on it.
fn private_folder() -> std::io::Result<tempfile::TempDir> {
    let mut new = tempfile::Builder::new();
    new.prefix("keywheel-run-").permissions(std::fs::Permissions::from_mode(0o700));
    let places = [std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Some(PathBuf::from("/dev/shm"))];
    let in_memory = places.into_iter().flatten().filter(|place| is_in_memory(place));
    for place in in_memory {
        if let Ok(folder) = new.tempdir_in(place) {
            return Ok(folder);
        }
    }
    new.tempdir()
}

fn is_in_memory(place: &Path) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    place.is_absolute() && rustix::fs::statfs(place).is_ok_and(|found| [TMPFS, RAMFS].contains(&found.f_type))
}

fn write_private(path: &Path, text: &Secret) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.expose())
}

/// What others may send to end or to move the command.
struct Signals(Vec<(i32, Signal)>);

impl Signals {
    fn watch() -> std::io::Result<Self> {
        let numbers =
            [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];
        let watch = |number| Ok((number, signal(SignalKind::from_raw(number))?));
        Ok(Self(numbers.into_iter().map(watch).collect::<std::io::Result<_>>()?))
    }

    async fn next(&mut self) -> i32 {
        let all = self.0.iter_mut().map(|(number, signal)| {
            Box::pin(async {
                signal.recv().await;
                *number
            })
        });
        futures_util::future::select_all(all).await.0
    }
}

fn pass_on(number: i32, child: Option<u32>) {
    // What is typed at a terminal reaches all of its foreground group, the command too.
    if matches!(number, libc::SIGINT | libc::SIGQUIT) && is_in_foreground() {
        return;
    }
    let pid = child.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    if let (Some(pid), Some(signal)) = (pid, rustix::process::Signal::from_named_raw(number)) {
        // It may have ended a moment ago.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Whether this process is in the foreground group of a terminal.
fn is_in_foreground() -> bool {
    use std::os::fd::AsRawFd;
    let Ok(terminal) = std::fs::File::open("/dev/tty") else { return false };
    // SAFETY: two calls that take numbers and touch no memory of ours; the descriptor is open.
    unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) == libc::getpgrp() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::Key;

    fn jar(keys: &[(&str, &str)]) -> Jar {
        let key = |(name, value): &(&str, &str)| Key {
            name: (*name).to_owned(),
            secret: Secret::new(*value),
            fingerprint: String::new(),
            expires: None,
            cookie: None,
        };
        Jar { keys: keys.iter().map(key).collect() }
    }

    fn given(jars: &[(&str, Jar)], env: &[&str], files: &[&str]) -> Result<Given, String> {
        let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (env, files) = (texts(env), texts(files));
        let jars = jars.iter().map(|(id, jar)| ((*id).to_owned(), jar.clone())).collect();
        let is_set = |name: &str| name == "ALREADY";
        let wanted = Wanted { env: &env, files: &files, url: None, now: 0, is_set: &is_set };
        wanted.of(&jars).map_err(|error| error.to_string())
    }

    fn names(given: &Given) -> Vec<(&str, &[u8])> {
        given.variables.iter().map(|(name, value)| (name.as_str(), value.expose())).collect()
    }

    #[test]
    fn every_key_is_a_variable_unless_some_are_named() {
        let ann = jar(&[("access-token", "a"), ("refresh_token", "r")]);
        let all = given(&[("ann", ann.clone())], &[], &[]).unwrap();
        assert_eq!(names(&all), [("ACCESS_TOKEN", &b"a"[..]), ("REFRESH_TOKEN", b"r")]);
        let one = given(&[("ann", ann.clone())], &["T=access-token"], &[]).unwrap();
        assert_eq!(names(&one), [("T", &b"a"[..])]);
        let file = given(&[("ann", ann.clone())], &[], &["SECRETS=json"]).unwrap();
        assert!(file.variables.is_empty());
        assert_eq!((file.files[0].0.as_str(), file.files[0].1.as_str()), ("SECRETS", "SECRETS.json"));

        let two = [("ann", ann), ("b.b@x", jar(&[("token", "t")]))];
        let all = given(&two, &[], &[]).unwrap();
        let wanted = [("ANN_ACCESS_TOKEN", &b"a"[..]), ("ANN_REFRESH_TOKEN", b"r"), ("B_B_X_TOKEN", b"t")];
        assert_eq!(names(&all), wanted);
        let named = given(&two, &["A=ann/access-token", "B=b.b@x/token"], &["F=b.b@x/env"]).unwrap();
        assert_eq!(names(&named), [("A", &b"a"[..]), ("B", b"t")]);
        assert_eq!(named.files[0].2.expose(), b"TOKEN=t\n");
    }

    #[test]
    fn what_can_not_be_given_is_told_without_a_value() {
        let ann = || ("ann", jar(&[("token", "hunter2"), ("a-b", "x"), ("ALREADY", "y")]));
        let one = |key: &str| [("ann", jar(&[(key, "hunter2")]))];
        for (jars, env, files, wanted) in [
            (vec![ann()], vec!["T"], vec![], "--env T: allowed is NAME=KEY"),
            (vec![ann()], vec!["1T=token"], vec![], "--env 1T=token: a variable is letters"),
            (vec![ann()], vec!["T=other"], vec![], "`ann` has no key `other`; it has: token, a-b, ALREADY"),
            (vec![ann()], vec!["T=token", "T=a-b"], vec![], "two secrets would both be the variable T"),
            (vec![ann()], vec!["T=token"], vec!["T=json"], "two secrets would both be the variable T"),
            (
                vec![ann()],
                vec![],
                vec!["F=xml"],
                "--file F=xml: no form `xml`; allowed: netscape, storage-state",
            ),
            (vec![ann()], vec![], vec!["F=netscape"], "the credential has no cookies"),
            (
                vec![ann()],
                vec![],
                vec!["F=header"],
                "a cookie header needs a url: which cookies are sent depends on it; hint: --url",
            ),
            (
                vec![ann(), ("bob", jar(&[("token", "t")]))],
                vec!["T=token"],
                vec![],
                "--env T=token: of which credential? allowed: ID/… with one of ann, bob",
            ),
            (
                one("already").to_vec(),
                vec![],
                vec![],
                "a key would replace the variable ALREADY, which is set already; hint: name it yourself, --env NAME=already",
            ),
            (
                one("ld_preload").to_vec(),
                vec![],
                vec![],
                "a key would be the variable LD_PRELOAD, by which programs are steered",
            ),
            (
                one("git-ssh-command").to_vec(),
                vec![],
                vec![],
                "the variable GIT_SSH_COMMAND, by which programs",
            ),
            (one("path").to_vec(), vec![], vec![], "the variable PATH, by which programs"),
        ] {
            let said = given(&jars, &env, &files).expect_err(wanted);
            assert!(said.contains(wanted), "{said}\n  lacks {wanted}");
            assert!(!said.contains("hunter2"), "{said}");
        }
        // Whoever names it himself knows what he does.
        given(&one("ld_preload"), &["LD_PRELOAD=ld_preload"], &[]).unwrap();
    }

    #[test]
    fn the_folder_for_files_is_private() {
        let folder = private_folder().unwrap();
        write_private(&folder.path().join("f"), &Secret::new("x")).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(folder.path()), mode(&folder.path().join("f"))), (0o700, 0o600));
    }
}
