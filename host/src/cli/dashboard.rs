//! `dashboard`: the way in. The link is printed on standard output alone, works once and for five
//! minutes, and is worth a session: it never goes into a log or into the arguments of a program,
//! which every user of the machine may read. So this starts no browser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::json;

use super::Failure;
use super::connection::daemon_answers;
use super::output::Output;
use super::plugin::unexpected;
use crate::config::{Config, Home};
use crate::control::{self, Operation, Outcome};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The address under which a proxy serves it, such as https://keywheel.example
    #[arg(long, value_name = "URL", conflicts_with = "sign_out_all")]
    url: Option<String>,
    /// End every session and every link instead
    #[arg(long)]
    sign_out_all: bool,
}

const HOW: &str =
    "the dashboard is served on the HTTP port, and config.toml opens none; hint: put these lines into";
const LINES: &str = "[http]\nlisten = \"127.0.0.1:7878\"";

pub async fn run(home: &Home, arguments: &Arguments, output: Output) -> Result<(), Failure> {
    home.require()?;
    let config = Config::load(home)?;
    if config.http.listen.is_none() {
        return Err(Failure::BadInput(format!(
            "{HOW} {}, and restart the daemon:\n{LINES}",
            home.config().display()
        )));
    }
    if !daemon_answers(home).await? {
        return Err(Failure::NotFound("no daemon runs here; hint: `keywheel serve` starts it".into()));
    }
    if arguments.sign_out_all {
        let Outcome::SignedOut(count) = ask(home, &Operation::DashboardSignOut).await? else {
            return Err(unexpected());
        };
        output.value(&json!({ "signedOut": count }), || match count {
            1 => String::from("signed one session out"),
            count => format!("signed {count} sessions out"),
        });
        return Ok(());
    }
    let base = arguments.url.as_deref().map(base).transpose()?;
    let Outcome::DashboardLink(link) = ask(home, &Operation::DashboardLink).await? else {
        return Err(unexpected());
    };
    let token = link.token.into_secret();
    let base = base.unwrap_or_else(|| format!("http://{}", local(link.listening)));
    let url = format!("{base}/dashboard/sign-in/{}", String::from_utf8_lossy(token.expose()));
    output.value(&json!({ "url": url, "seconds": link.seconds }), || url.clone());
    output.say(&format!("it signs one browser in, within {} minutes", link.seconds / 60));
    Ok(())
}

async fn ask(home: &Home, operation: &Operation) -> Result<Outcome, Failure> {
    control::ask(&home.socket(), operation)
        .await
        .map_err(Failure::io("the daemon can't be asked"))?
        .ok_or_else(|| Failure::Other("the daemon ended meanwhile; hint: try again".into()))?
        .map_err(Failure::from)
}

/// Where a browser on this machine reaches it.
fn local(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

/// An origin, as the link begins.
fn base(url: &str) -> Result<String, Failure> {
    let parsed = url::Url::parse(url).ok().filter(|parsed| {
        let is_origin = parsed.path() == "/" && parsed.query().is_none() && parsed.fragment().is_none();
        matches!(parsed.scheme(), "http" | "https")
            && is_origin
            && parsed.username().is_empty()
            && parsed.password().is_none()
    });
    match parsed {
        Some(parsed) => Ok(parsed.origin().ascii_serialization()),
        None => Err(Failure::BadInput(format!(
            "--url is {url:?}; allowed: scheme, host and port alone, such as https://keywheel.example"
        ))),
    }
}
