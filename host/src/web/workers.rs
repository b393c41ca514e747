//! The two routes of external workers. Each message is let in by its token, bounded, checked
//! whole by `intake`, and then written by one command or not at all.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::StreamExt;
use serde_json::json;

use super::Shared;
use super::answer::{Refused, answer};
use super::gate::Bearer;
use super::intake;
use super::server::Peer;
use crate::credential::now;
use crate::db::external::{Announcement, ExternalReport};
use crate::limits;

pub fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/v1/worker-announce", post(announce)).route("/v1/worker-reports", post(report))
}

async fn report(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    let kept = async {
        let (bearer, body) = let_in(&shared, peer, request).await?;
        let fingerprint = |value: &_| shared.vault.fingerprint(value);
        let arrived = intake::report(&body, &bearer.service, &bearer.text, now(), fingerprint)?;
        let new = ExternalReport {
            token_id: bearer.token_id,
            report: arrived.report,
            worker_id: arrived.worker_id,
        };
        Ok(shared.writer.accept_report(new).await?)
    };
    match kept.await {
        Ok(accepted) => {
            shared.port.counted(|counted| match accepted.duplicate {
                true => counted.duplicates += 1,
                false => counted.accepted += 1,
            });
            let status = if accepted.duplicate { StatusCode::OK } else { StatusCode::CREATED };
            answer(status, json!({ "id": accepted.id, "duplicate": accepted.duplicate }))
        }
        Err(refused) => shared.refuse(refused).into_response(),
    }
}

async fn announce(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    let known = async {
        let (bearer, body) = let_in(&shared, peer, request).await?;
        let arrived = intake::announcement(&body, &bearer.service, &bearer.text)?;
        let said = json!({
            "workerId": arrived.worker_id,
            "service": arrived.service,
            "intervalSeconds": arrived.interval_seconds,
        });
        let new = Announcement { token_id: bearer.token_id, ..arrived };
        let is_new = shared.writer.announce_worker(new).await?;
        Ok((is_new, said))
    };
    match known.await {
        Ok((is_new, said)) => {
            shared.port.counted(|counted| counted.announced += 1);
            answer(if is_new { StatusCode::CREATED } else { StatusCode::OK }, said)
        }
        Err(refused) => shared.refuse(refused).into_response(),
    }
}

/// What comes before the message itself is looked at: who sends it, how often, what, how much.
async fn let_in(shared: &Shared, peer: Peer, request: Request) -> Result<(Bearer, Bytes), Refused> {
    let (parts, body) = request.into_parts();
    let admitted = async {
        let bearer = shared.gate.token(&parts.headers, peer.address.ip()).await?;
        is_json(&parts.headers)?;
        Ok(bearer)
    };
    match admitted.await {
        Ok(bearer) => Ok((bearer, whole(body).await?)),
        Err(refused) => {
            throw_away(body, 0).await;
            Err(refused)
        }
    }
}

pub fn is_json(headers: &HeaderMap) -> Result<(), Refused> {
    let unsupported =
        |message| Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", message);
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(unsupported("a compressed body is not read; send it as it is").at("Content-Encoding"));
    }
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = text.split(';').map(str::trim);
    let is_json = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
    let is_utf8 = parts.all(|parameter| match parameter.split_once('=') {
        Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
            value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    });
    if is_json && is_utf8 {
        Ok(())
    } else {
        Err(unsupported("allowed is Content-Type: application/json, in UTF-8").at("Content-Type"))
    }
}

/// The body, if it is no longer than allowed and all of it arrives.
pub async fn whole(body: Body) -> Result<Bytes, Refused> {
    let most = limits::EXTERNAL_REPORT_BYTES;
    let too_large = || {
        let message = format!("the body is longer than {most} bytes");
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message).at("body")
    };
    if body.size_hint().lower() > most as u64 {
        throw_away(body, 0).await;
        return Err(too_large());
    }
    let mut taken = Vec::new();
    let mut frames = body.into_data_stream();
    while let Some(frame) = frames.next().await {
        let frame = frame.map_err(|_| {
            let message = "the body ended before it was whole, or is not framed as HTTP says";
            Refused::new(StatusCode::BAD_REQUEST, "cut-short", message).at("body")
        })?;
        if taken.len() + frame.len() > most {
            let seen = taken.len() + frame.len();
            throw_away(Body::from_stream(frames), seen).await;
            return Err(too_large());
        }
        taken.extend_from_slice(&frame);
    }
    Ok(taken.into())
}

/// Reads on a little, for a client that still sends sees no answer. One that says it will send
/// more than that isn't listened to.
pub async fn throw_away(body: Body, mut seen: usize) {
    let most = limits::EXTERNAL_REFUSED_BYTES;
    if body.size_hint().lower() > most as u64 {
        return;
    }
    let mut frames = body.into_data_stream();
    while seen <= most
        && let Some(Ok(frame)) = frames.next().await
    {
        seen += frame.len();
    }
}
