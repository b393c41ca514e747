//! `init`: makes a home, once, and if it is wanted keeps a first credential alive in it. On a
//! terminal it asks; whatever it asks can be said by an option instead.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use dialoguer::{Confirm, Input, Select};
use serde_json::json;

use super::Failure;
use super::browser::{self, Browser};
use super::credential::Add;
use super::first::guess::Site;
use super::first::{self, quoted};
use super::output::Output;
use crate::config::{self, Home};
use crate::{daemon, formats};

/// Where the port is opened unless said otherwise.
const USUAL_PORT: &str = "127.0.0.1:7878";

#[derive(Debug, Default, clap::Args)]
pub struct Arguments {
    /// Open the HTTP port, for the dashboard and for other programs
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = USUAL_PORT)]
    http: Option<SocketAddr>,
    /// Open no port
    #[arg(long, conflicts_with = "http")]
    no_http: bool,
    /// Keep a session of this site alive; the URL of a page that only a signed-in visitor sees
    #[arg(long, value_name = "SITE")]
    domain: Option<String>,
    /// Take its cookies from this browser: firefox, or firefox:PROFILE
    #[arg(long, value_name = "BROWSER", requires = "domain", conflicts_with_all = ["from", "format"])]
    from_browser: Option<Browser>,
    /// Of this container tab of the browser's
    #[arg(long, value_name = "NAME", requires = "from_browser")]
    container: Option<String>,
    /// Take its secrets from this file; `-` is standard input
    #[arg(long, value_name = "FILE", requires = "domain")]
    from: Option<PathBuf>,
    #[arg(long, requires = "from")]
    format: Option<formats::Format>,
    /// What to call the credential [default: the site's name]
    #[arg(long, value_name = "ID", requires = "domain")]
    credential: Option<String>,
    /// The provider [default: found by the site]
    #[arg(long, requires = "domain")]
    service: Option<String>,
    /// A setting of the provider; `plugin check` lists them
    #[arg(long = "set", value_name = "NAME=VALUE", requires = "domain")]
    settings: Vec<String>,
    /// A host name that may lead to a private address
    #[arg(long = "allow-private", value_name = "HOST", requires = "domain")]
    private_hosts: Vec<String>,
    /// Ask nothing, also on a terminal
    #[arg(long)]
    yes: bool,
}

pub async fn run(home: &Home, mut arguments: Arguments, output: Output) -> Result<(), Failure> {
    // Before anything is asked or made.
    if arguments.domain.is_some() && arguments.from_browser.is_none() && arguments.from.is_none() {
        return Err(Failure::Usage(
            "--domain says whose secrets, and nothing says where they are; hint: --from-browser firefox, or --from FILE".into(),
        ));
    }
    if let Some(domain) = &arguments.domain {
        Site::parse(domain).map_err(|why| Failure::BadInput(format!("--domain {why}")))?;
    }
    let asks =
        !arguments.yes && !output.json && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if asks && !home.exists() {
        ask(home, &mut arguments, output)?;
    }
    make(home, &arguments)?;
    let root = home.root().display().to_string();
    let Some(new) = first_credential(&arguments)? else {
        output.value(&json!({ "home": root, "http": arguments.http }), || words(home, &arguments));
        return Ok(());
    };
    output.say(&words(home, &arguments));
    let id = new.id.clone();
    first::keep(home, new, output).await.inspect_err(|_| {
        output.say(&format!(
            "the home is made, and `{id}` is not in it; hint: `keywheel credential add {id}` takes the same options"
        ));
    })
}

fn make(home: &Home, arguments: &Arguments) -> Result<(), Failure> {
    if let Some(listen) = arguments.http.filter(|_| !home.exists()) {
        if !listen.ip().is_loopback() {
            return Err(Failure::BadInput(format!(
                "--http {listen}: other machines reach that, and the port speaks plain HTTP; allowed: a loopback address such as {USUAL_PORT}; hint: http.allow_remote in config.toml"
            )));
        }
        home.make_folders()?;
        if !home.config().exists() {
            let text = with_port(config::TEMPLATE, listen);
            config::write_atomically(&home.config(), text.as_bytes())
                .map_err(Failure::io("config.toml can't be written"))?;
        }
    }
    Ok(daemon::make_home(home)?)
}

/// The configuration that every home begins with, and its port open.
fn with_port(template: &str, listen: SocketAddr) -> String {
    let mut lines: Vec<String> = template.lines().map(str::to_owned).collect();
    if let Some(section) = lines.iter().position(|line| line == "#[http]") {
        lines[section] = "[http]".into();
        let listens = lines.iter().skip(section).position(|line| line.starts_with("#listen = "));
        if let Some(at) = listens {
            lines[section + at] = format!("listen = \"{listen}\"");
        }
    }
    lines.join("\n") + "\n"
}

fn words(home: &Home, arguments: &Arguments) -> String {
    let mut text = format!("Made {}", home.root().display());
    if let Some(listen) = arguments.http {
        text.push_str(&format!("\nThe HTTP port will be {listen}"));
    }
    if arguments.domain.is_none() {
        text.push_str(
            "\n\nNext:\n  keywheel serve\n  keywheel credential add ID --from-browser firefox --domain https://SITE/PAGE\n  keywheel plugin list --available   # for tokens and API keys",
        );
    }
    text.push_str(&format!(
        "\n\nKeep a copy of {} in a safe place: without it no stored secret can be read.",
        home.master_key().display()
    ));
    text
}

fn first_credential(arguments: &Arguments) -> Result<Option<Add>, Failure> {
    let Some(domain) = &arguments.domain else { return Ok(None) };
    let site = Site::parse(domain).map_err(|why| Failure::BadInput(format!("--domain {why}")))?;
    Ok(Some(Add {
        id: arguments.credential.clone().unwrap_or_else(|| site.id()),
        service: arguments.service.clone(),
        domain: Some(domain.clone()),
        from_browser: arguments.from_browser.clone(),
        container: arguments.container.clone(),
        from: arguments.from.clone(),
        format: arguments.format,
        settings: arguments.settings.clone(),
        private_hosts: arguments.private_hosts.clone(),
        ..Add::default()
    }))
}

/// Asks for what no option said, and says how to say it by options.
fn ask(home: &Home, arguments: &mut Arguments, output: Output) -> Result<(), Failure> {
    let ended = |error: dialoguer::Error| {
        let dialoguer::Error::IO(source) = error;
        Failure::Io { what: "the question was not answered, and nothing was made".into(), source }
    };
    output.say(&format!("A home for your secrets, in {}.\n", home.root().display()));
    if arguments.http.is_none() && !arguments.no_http {
        let open = Confirm::new()
            .with_prompt(format!("Open a port on {USUAL_PORT}, for the dashboard and for other programs?"))
            .default(true)
            .interact()
            .map_err(ended)?;
        arguments.http = open.then(|| USUAL_PORT.parse().ok()).flatten();
    }
    if arguments.domain.is_none() {
        let profiles = browser::installed();
        let mut sources = Vec::new();
        if !profiles.is_empty() {
            sources.push("a session that I am signed in to in Firefox");
        }
        sources.extend(["a session whose cookies are in a file", "nothing for now"]);
        let chosen = Select::new()
            .with_prompt("What shall be kept alive first?")
            .items(&sources)
            .default(0)
            .interact()
            .map_err(ended)?;
        match sources[chosen] {
            source if source.ends_with("Firefox") => {
                arguments.from_browser = "firefox".parse().ok();
            }
            source if source.ends_with("file") => {
                let file: String = Input::new()
                    .with_prompt("The file (cookies.txt, storageState or a browser extension's JSON)")
                    .validate_with(|text: &String| match Path::new(text).is_file() {
                        true => Ok(()),
                        false => Err("there is no such file"),
                    })
                    .interact_text()
                    .map_err(ended)?;
                arguments.from = Some(PathBuf::from(file));
            }
            _ => {
                said(arguments, output);
                return Ok(());
            }
        }
        let site: String = Input::new()
            .with_prompt("The URL of a page that only a signed-in visitor sees")
            .validate_with(|text: &String| match Site::parse(text) {
                Ok(Site { page: None, .. }) => Err("a page is missing, such as /account".to_owned()),
                Ok(_) => Ok(()),
                Err(why) => Err(why),
            })
            .interact_text()
            .map_err(ended)?;
        let usual = Site::parse(&site).map(|site| site.id()).unwrap_or_default();
        arguments.domain = Some(site);
        let id: String = Input::new()
            .with_prompt("What to call it")
            .default(usual)
            .validate_with(|text: &String| match crate::credential::is_id(text) {
                true => Ok(()),
                false => Err(crate::credential::ID_RULE),
            })
            .interact_text()
            .map_err(ended)?;
        arguments.credential = Some(id);
    }
    said(arguments, output);
    Ok(())
}

/// The same without questions.
fn said(arguments: &Arguments, output: Output) {
    let mut words: Vec<String> = vec!["keywheel".into(), "init".into(), "--yes".into()];
    words.extend(arguments.http.iter().flat_map(|http| ["--http".into(), http.to_string()]));
    words.extend(
        arguments.from_browser.iter().flat_map(|browser| ["--from-browser".into(), browser.to_string()]),
    );
    words.extend(arguments.from.iter().flat_map(|file| ["--from".into(), file.display().to_string()]));
    words.extend(arguments.domain.iter().flat_map(|domain| ["--domain".into(), domain.clone()]));
    words.extend(arguments.credential.iter().flat_map(|id| ["--credential".into(), id.clone()]));
    let line: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    output.say(&format!("\nThe same without questions: {}\n", line.join(" ")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_configuration_with_a_port_differs_in_that_alone() {
        let listen: SocketAddr = "127.0.0.1:7999".parse().unwrap();
        let text = with_port(config::TEMPLATE, listen);
        let config: Config = toml::from_str(&text).unwrap();
        assert_eq!(config.http.listen, Some(listen));
        let differ = text.lines().zip(config::TEMPLATE.lines()).filter(|(new, old)| new != old).count();
        assert_eq!((differ, text.lines().count()), (2, config::TEMPLATE.lines().count()));
    }
}
