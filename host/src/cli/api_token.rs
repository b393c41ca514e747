//! `api-token`: which programs may read which secrets over HTTP, and what they did. A token is
//! shown once, when it is made, and on standard output alone; what is kept of it recognises it
//! and can't be turned back.

use clap::{Args, Subcommand};
use comfy_table::Cell;
use serde_json::{Value, json};

use super::Failure;
use super::connection::Connection;
use super::credential::seconds;
use super::output::{Output, coloured, relative};
use super::plugin::unexpected;
use crate::config::Home;
use crate::control::{Operation, Outcome};
use crate::credential::now;
use crate::db::queries::Reader;
use crate::report::iso8601;
use crate::token::{Reach, Scope, TokenState, is_token_id};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token, and print it, this once
    #[command(
        after_help = "Examples:\n  keywheel api-token create --name backup --credential ann --expires 30d"
    )]
    Create(Create),
    /// Every token, what it may do, and when it was last used
    #[command(after_help = "Examples:\n  keywheel api-token list --json")]
    List,
    /// End a token for good
    #[command(after_help = "Examples:\n  keywheel api-token revoke 0a1b2c3d4e5f6071")]
    Revoke { token_id: String },
    /// What was read with tokens, and every request that was refused
    #[command(after_help = "Examples:\n  keywheel api-token history --token 0a1b2c3d4e5f6071 --limit 20")]
    History {
        /// One token's alone, by its id
        #[arg(long, value_name = "ID")]
        token: Option<String>,
        /// How many, the newest first
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: u32,
    },
}

#[derive(Debug, Args)]
pub struct Create {
    /// Yours, to know it by
    #[arg(long)]
    name: String,
    /// A credential that it reaches; give it again for more
    #[arg(long, value_name = "ID", conflicts_with_all = ["service", "profile"])]
    credential: Vec<String>,
    /// It reaches every credential of a service, later ones as well
    #[arg(long, conflicts_with = "profile")]
    service: Option<String>,
    /// It reaches every credential of a profile, later ones as well
    #[arg(long)]
    profile: Option<String>,
    /// What it may do; give it again, or separate by commas, for more
    #[arg(long, value_enum, value_delimiter = ',', default_value = "read")]
    scope: Vec<Scope>,
    /// When it ends by itself, such as 12h or 90d, or `never`
    #[arg(long, value_name = "TIME", default_value = "30d")]
    expires: String,
}

pub async fn run(home: &Home, command: Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::Create(new) => create(home, new, output).await,
        Command::List => list(home, output),
        Command::Revoke { token_id } => {
            check_id(&token_id)?;
            Connection::once(home, Operation::ApiTokenRevoke { token_id: token_id.clone() }).await?;
            output.value(&json!({ "revoked": token_id }), || format!("revoked `{token_id}`"));
            Ok(())
        }
        Command::History { token, limit } => history(home, token.as_deref(), limit, output),
    }
}

/// A whole token in its id's place would end in the shell's history, and in an error's text here.
fn check_id(token_id: &str) -> Result<(), Failure> {
    if is_token_id(token_id) {
        return Ok(());
    }
    Err(Failure::BadInput(
        "that is no token's id; allowed: the 16 hexadecimal digits that `keywheel api-token list` shows"
            .into(),
    ))
}

async fn create(home: &Home, new: Create, output: Output) -> Result<(), Failure> {
    let expires_seconds = match new.expires.as_str() {
        "never" => None,
        time => Some(seconds(time)?),
    };
    let reach = match (new.credential.is_empty(), new.service, new.profile) {
        (false, ..) => Reach::Credentials(new.credential),
        (true, Some(service), _) => Reach::Service(service),
        (true, None, Some(profile)) => Reach::Profile(profile),
        (true, None, None) => Reach::Nothing,
    };
    let operation = Operation::ApiTokenCreate {
        name: new.name,
        reach: reach.clone(),
        scopes: new.scope.clone(),
        expires_seconds,
    };
    let Outcome::ApiToken(made) = Connection::once(home, operation).await? else {
        return Err(unexpected());
    };
    let token = made.token.into_secret();
    let expires_at = made.expires_at.map(iso8601);
    if output.json {
        // Asked for as JSON, so that is where it goes.
        output.json_line(
            &json!({
                "tokenId": made.token_id, "reach": reach, "scopes": new.scope, "expiresAt": expires_at,
                "token": String::from_utf8_lossy(token.expose()),
            }),
            true,
        );
        return Ok(());
    }
    let until = expires_at.map_or_else(|| "until it is revoked".into(), |at| format!("until {at}"));
    output.say(&format!("token {} for {}, {until}; it is shown this once:", made.token_id, reach.in_words()));
    output.secret(&token).map_err(Failure::io("standard output can't be written"))?;
    output.line("");
    Ok(())
}

fn list(home: &Home, output: Output) -> Result<(), Failure> {
    home.require()?;
    let rows = Reader::open(home.database())?.api_tokens()?;
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
        &["token", "name", "may", "reaches", "state", "created", "last used", "expires"],
        |(state, row)| {
            let scopes: Vec<_> = row.scopes.iter().map(|scope| scope.as_str()).collect();
            vec![
                Cell::new(&row.token_id),
                Cell::new(&row.name),
                Cell::new(scopes.join(", ")),
                Cell::new(row.reach.in_words()),
                coloured(state.as_str()),
                Cell::new(relative(Some(row.created_at))),
                Cell::new(relative(row.last_used_at)),
                Cell::new(relative(row.expires_at)),
            ]
        },
        "no tokens; hint: `keywheel api-token create --help`",
    );
    Ok(())
}

fn history(home: &Home, token: Option<&str>, limit: u32, output: Output) -> Result<(), Failure> {
    home.require()?;
    if let Some(token) = token {
        check_id(token)?;
    }
    let reader = Reader::open(home.database())?;
    let rows = reader.api_history(token, limit)?;
    output.table(
        &rows,
        &["last", "what", "times", "token", "from", "credential", "generation", "format"],
        |row| {
            let none = || String::from("–");
            vec![
                Cell::new(relative(Some(row.last_at))),
                match row.refused {
                    true => Cell::new(format!("refused: {}", row.what)),
                    false => Cell::new(&row.what),
                },
                Cell::new(row.times),
                Cell::new(row.token_id.clone().unwrap_or_else(none)),
                Cell::new(&row.peer),
                Cell::new(row.credential_id.clone().unwrap_or_else(none)),
                Cell::new(row.generation.map_or_else(none, |generation| generation.to_string())),
                Cell::new(row.form.clone().unwrap_or_else(none)),
            ]
        },
        "nothing was read or refused yet",
    );
    Ok(())
}
