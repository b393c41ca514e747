//! `worker-token`: who may report without being a plugin. A token is shown once, when it is
//! made, and on standard output alone; what is kept of it recognises it and can't be turned back.

use clap::Subcommand;
use comfy_table::Cell;
use serde_json::{Value, json};

use super::Failure;
use super::connection::Connection;
use super::credential::seconds;
use super::layout::Column;
use super::output::{Output, coloured, relative};
use super::plugin::unexpected;
use crate::config::Home;
use crate::control::{Operation, Outcome};
use crate::credential::now;
use crate::db::queries::Reader;
use crate::report::iso8601;
use crate::token::TokenState;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token for the workers of a service, and print it, this once
    #[command(after_help = "Examples:\n  keywheel worker-token create shop --name browser --expires 90d")]
    Create {
        service: String,
        /// Yours, to know it by
        #[arg(long)]
        name: String,
        /// When it ends by itself, such as 12h or 90d [default: never]
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
    },
    /// Every token, and when it was last used
    #[command(after_help = "Examples:\n  keywheel worker-token list")]
    List,
    /// End a token for good, and forget its workers; their reports stay
    #[command(after_help = "Examples:\n  keywheel worker-token revoke 0123456789abcdef")]
    Revoke { token_id: String },
}

pub async fn run(home: &Home, command: Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::Create { service, name, expires } => create(home, service, name, expires, output).await,
        Command::List => list(home, output),
        Command::Revoke { token_id } => {
            Connection::once(home, Operation::WorkerTokenRevoke { token_id: token_id.clone() }).await?;
            output.value(&json!({ "revoked": token_id }), || format!("revoked `{token_id}`"));
            Ok(())
        }
    }
}

async fn create(
    home: &Home,
    service: String,
    name: String,
    expires: Option<String>,
    output: Output,
) -> Result<(), Failure> {
    let expires_seconds = expires.as_deref().map(seconds).transpose()?;
    let operation = Operation::WorkerTokenCreate { service: service.clone(), name, expires_seconds };
    let Outcome::WorkerToken(made) = Connection::once(home, operation).await? else {
        return Err(unexpected());
    };
    let token = made.token.into_secret();
    if output.json {
        // Asked for as JSON, so that is where it goes.
        let token = String::from_utf8_lossy(token.expose());
        let expires_at = made.expires_at.map(iso8601);
        output.json_line(
            &json!({ "tokenId": made.token_id, "service": service, "token": token, "expiresAt": expires_at }),
            true,
        );
        return Ok(());
    }
    if !made.served {
        output.say(&format!("no plugin serves `{service}`: only external workers will report on it"));
    }
    output.say(&format!("token {} for `{service}`; it is shown this once:", made.token_id));
    output.secret(&token).map_err(Failure::io("standard output can't be written"))?;
    output.line("");
    Ok(())
}

fn list(home: &Home, output: Output) -> Result<(), Failure> {
    home.require()?;
    let rows = Reader::open(home.database())?.worker_tokens()?;
    let now = now();
    let states: Vec<_> =
        rows.into_iter().map(|row| (TokenState::of(row.expires_at, row.revoked_at, now), row)).collect();
    if output.json {
        let objects: Vec<Value> = states
            .iter()
            .map(|(state, row)| {
                let mut object = json!(row);
                object["state"] = json!(state);
                object
            })
            .collect();
        output.json_line(&objects, true);
        return Ok(());
    }
    output.table(
        &states,
        &[
            Column::kept("token"),
            Column::ranked("name", 1),
            Column::ranked("service", 2),
            Column::word("state"),
            Column::ranked("created", 5),
            Column::ranked("last used", 4),
            Column::ranked("expires", 3),
        ],
        |(state, row)| {
            vec![
                Cell::new(&row.token_id),
                Cell::new(&row.name),
                Cell::new(&row.service),
                coloured(state.as_str()),
                Cell::new(relative(Some(row.created_at))),
                Cell::new(relative(row.last_used_at)),
                Cell::new(relative(row.expires_at)),
            ]
        },
        "no tokens; hint: `keywheel worker-token create --help`",
    );
    Ok(())
}
