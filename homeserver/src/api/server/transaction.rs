//! What other servers send: events and ephemeral data.
//!
//! Spec: server-server API, "Transactions".

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ruma::{OwnedServerName, api::federation::transactions::send_transaction_message};

use crate::{
    error::{ApiError, ApiResult},
    http::{Origin, Routes},
    peers,
    rooms::receive,
    server::App,
};

/// How many events one transaction has at most.
const PDUS_MAX: usize = 50;

/// How much ephemeral data one transaction has at most.
const EDUS_MAX: usize = 100;

/// Of how many servers the last answer is remembered; the rest is received again, which changes nothing.
const ANSWERS_MAX: usize = 1_024;

type Answer = send_transaction_message::v1::Response;

/// The transactions of each server: one at a time, the last answer remembered.
#[derive(Debug, Default)]
pub struct Transactions(Mutex<BTreeMap<OwnedServerName, Arc<tokio::sync::Mutex<Last>>>>);

#[derive(Debug, Default)]
struct Last {
    txn_id: String,
    answer: Option<Answer>,
}

impl Transactions {
    fn of(&self, origin: &OwnedServerName) -> Arc<tokio::sync::Mutex<Last>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= ANSWERS_MAX && !all.contains_key(origin) {
            all.retain(|_, last| Arc::strong_count(last) > 1);
        }
        all.entry(origin.clone()).or_default().clone()
    }
}

pub(super) fn routes(routes: &mut Routes) {
    routes.add(send);
}

async fn send(
    app: App,
    origin: Origin,
    request: send_transaction_message::v1::Request,
) -> ApiResult<Answer> {
    if request.pdus.len() > PDUS_MAX || request.edus.len() > EDUS_MAX {
        return Err(ApiError::invalid_param(format!(
            "a transaction has at most {PDUS_MAX} PDUs and {EDUS_MAX} EDUs"
        )));
    }
    let last = app.transactions.of(&origin.name);
    let mut last = last.lock().await;
    if last.txn_id == request.transaction_id.as_str()
        && let Some(answer) = &last.answer
    {
        return Ok(answer.clone());
    }
    let results = receive::receive(&app, &origin.name, request.pdus).await;
    for edu in request.edus {
        peers::edus::take(&app, &origin.name, edu).await?;
    }
    let answer = Answer::new(results);
    last.txn_id = request.transaction_id.to_string();
    last.answer = Some(answer.clone());
    Ok(answer)
}
