//! The route by which a consumer says that it uses a generation, so that a rotation need not wait
//! for it. It tells nobody anything but the number of the generation in force, and changes nothing
//! but that consumer's word.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::Deserialize;
use serde_json::json;

use super::Shared;
use super::answer::{Refused, answer};
use super::api::{admit, reached, used};
use super::server::Peer;
use super::workers::{is_json, throw_away, whole};
use crate::control::{Operation, Outcome, Refusal, RefusalKind};
use crate::token::Scope;

pub fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/v1/credentials/{id}/ack", post(acknowledge))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Acknowledgement {
    consumer: String,
    generation: u32,
}

async fn acknowledge(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    id: Result<Path<String>, axum::extract::rejection::PathRejection>,
    request: Request,
) -> Response {
    let credential_id = id.map(|Path(id)| id).unwrap_or_default();
    match noted(&shared, &peer, credential_id, request).await {
        Ok((said, current)) => {
            let said = json!({
                "consumer": said.consumer, "acknowledged": said.generation, "current": current,
            });
            answer(StatusCode::OK, said)
        }
        Err(refused) => shared.refuse(refused).into_response(),
    }
}

async fn noted(
    shared: &Shared,
    peer: &Peer,
    credential_id: String,
    request: Request,
) -> Result<(Acknowledgement, u32), Refused> {
    let (parts, body) = request.into_parts();
    let admitted = async {
        let bearer = admit(shared, peer, &parts.headers, Scope::Ack).await?;
        reached(shared, peer, &bearer, &credential_id).await?;
        is_json(&parts.headers)?;
        Ok(bearer)
    };
    let bearer = match admitted.await {
        Ok(bearer) => bearer,
        Err(refused) => {
            throw_away(body, 0).await;
            return Err(refused);
        }
    };
    let said = read(body).await?;
    // As a command does it: the scheduler hears of it, too.
    let operation = Operation::CredentialAck {
        credential_id,
        consumer: said.consumer.clone(),
        generation: said.generation,
    };
    let outcome = (shared.command)(operation).await.map_err(refused)?;
    let Outcome::Acknowledged { current } = outcome else {
        return Err(internal());
    };
    used(shared, &bearer).await;
    Ok((said, current))
}

async fn read(body: Body) -> Result<Acknowledgement, Refused> {
    let body = whole(body).await?;
    // In words of our own: the parser's would quote what was sent.
    serde_json::from_slice(&body).map_err(|_| {
        let message = "allowed is {\"consumer\": NAME, \"generation\": NUMBER}";
        Refused::new(StatusCode::BAD_REQUEST, "malformed", message).at("body")
    })
}

fn refused(refusal: Refusal) -> Refused {
    match refusal.kind {
        RefusalKind::NotFound => {
            let message =
                "the credential has no such consumer; hint: `keywheel credential consumer add` declares one";
            Refused::new(StatusCode::NOT_FOUND, "no-such-consumer", message).at("consumer")
        }
        RefusalKind::BadInput => {
            let message = "the credential never had this generation in force, or has none here";
            Refused::new(StatusCode::CONFLICT, "not-in-force", message).at("generation")
        }
        RefusalKind::Busy | RefusalKind::Unavailable => {
            let message = "the database can't be written now; hint: send the same again later";
            Refused::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message).again_after(5)
        }
        RefusalKind::Internal => {
            tracing::error!(error = refusal.message, "an acknowledgement could not be kept");
            internal()
        }
    }
}

fn internal() -> Refused {
    let message = "it could not be kept; the log says why";
    Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
}
