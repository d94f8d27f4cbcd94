//! Transactions: what one server sends another in one request.
//!
//! Deliberately without signatures and without a network: the body is data, and stays the same for
//! every attempt to send it. Spec: server-server API, "Transactions".

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedTransactionId, ServerName,
    api::federation::transactions::{edu::Edu, send_transaction_message::v1::Request},
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::event::Pdu;

/// How many PDUs a transaction holds. Spec: server-server API, "Transactions".
pub const PDUS_MAX: usize = 50;

/// How many EDUs a transaction holds. Spec: server-server API, "Transactions".
pub const EDUS_MAX: usize = 100;

/// How large a transaction of ours gets, in bytes: what would make it larger waits for the next one.
///
/// Fifty PDUs of the largest size, and half a megabyte of EDUs. A single EDU that is larger goes all the
/// same if it is the first. Spec: none; other servers refuse bodies of about 12 MB.
pub const BODY_BYTES_MAX: usize = PDUS_MAX * crate::event::PDU_BYTES_MAX + (512 << 10);

/// Why a transaction of another server is refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// See [`PDUS_MAX`].
    #[error("the transaction has {0} PDUs, the limit is {PDUS_MAX}")]
    Pdus(usize),
    /// See [`EDUS_MAX`].
    #[error("the transaction has {0} EDUs, the limit is {EDUS_MAX}")]
    Edus(usize),
}

/// That a transaction with so many PDUs and EDUs is within the limits.
///
/// # Errors
/// The limit that it is over.
pub fn check_limits(pdus: usize, edus: usize) -> Result<(), TooMany> {
    if pdus > PDUS_MAX {
        return Err(TooMany::Pdus(pdus));
    }
    if edus > EDUS_MAX {
        return Err(TooMany::Edus(edus));
    }
    Ok(())
}

/// A transaction of this server, for one destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Transaction {
    /// Its ID, which no other transaction for the destination ever has.
    pub txn_id: OwnedTransactionId,
    /// When it was made.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    pdus: Vec<Box<RawValue>>,
    edus: Vec<Box<RawValue>>,
    bytes: usize,
}

impl Transaction {
    /// An empty transaction.
    pub fn new(txn_id: OwnedTransactionId, origin_server_ts: MilliSecondsSinceUnixEpoch) -> Self {
        Self {
            txn_id,
            origin_server_ts,
            pdus: Vec::new(),
            edus: Vec::new(),
            bytes: 0,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.pdus.is_empty() && self.edus.is_empty()
    }

    /// How many PDUs and EDUs it holds.
    pub fn counts(&self) -> (usize, usize) {
        (self.pdus.len(), self.edus.len())
    }

    /// Adds an event, if there is place for it; says whether there was.
    pub fn push_pdu(&mut self, pdu: &Pdu) -> bool {
        let Ok(raw) = RawValue::from_string(pdu.json().to_owned()) else {
            // Canonical JSON is JSON; an event that is not could not be sent anyway.
            return true;
        };
        self.pdus.len() < PDUS_MAX && self.takes(&raw) && {
            self.pdus.push(raw);
            true
        }
    }

    /// Adds an EDU, if there is place for it; says whether there was.
    pub fn push_edu(&mut self, edu: Box<RawValue>) -> bool {
        self.edus.len() < EDUS_MAX && self.takes(&edu) && {
            self.edus.push(edu);
            true
        }
    }

    fn takes(&mut self, raw: &RawValue) -> bool {
        let bytes = raw.get().len();
        if !self.is_empty() && self.bytes + bytes > BODY_BYTES_MAX {
            return false;
        }
        self.bytes += bytes;
        true
    }

    /// The request that sends it; the same every time.
    pub fn request(&self, origin: &ServerName) -> Request {
        let mut request = Request::new(
            self.txn_id.clone(),
            origin.to_owned(),
            self.origin_server_ts,
        );
        request.pdus.clone_from(&self.pdus);
        let edus = self.edus.iter().cloned();
        request.edus = edus.map(Raw::<Edu>::from_json).collect();
        request
    }
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, server_name};

    use super::*;

    fn raw(text: String) -> Box<RawValue> {
        RawValue::from_string(text).unwrap()
    }

    fn empty() -> Transaction {
        Transaction::new("t1".into(), MilliSecondsSinceUnixEpoch(UInt::from(7_u32)))
    }

    #[test]
    fn fifty_pdus_and_a_hundred_edus_pass_and_one_more_does_not() {
        assert_eq!(check_limits(50, 100), Ok(()));
        assert_eq!(check_limits(51, 0), Err(TooMany::Pdus(51)));
        assert_eq!(check_limits(0, 101), Err(TooMany::Edus(101)));
    }

    #[test]
    fn a_transaction_takes_a_hundred_edus() {
        let mut transaction = empty();
        for _ in 0..EDUS_MAX {
            assert!(transaction.push_edu(raw("{}".to_owned())));
        }
        assert!(!transaction.push_edu(raw("{}".to_owned())));
        assert_eq!(transaction.counts(), (0, 100));
    }

    #[test]
    fn what_would_make_it_too_large_waits_unless_it_is_the_first() {
        let mut transaction = empty();
        let large = format!("\"{}\"", "x".repeat(BODY_BYTES_MAX));
        assert!(transaction.push_edu(raw(large)));
        assert!(!transaction.push_edu(raw("{}".to_owned())));
    }

    #[test]
    fn it_is_the_same_request_after_it_was_stored() {
        let mut transaction = empty();
        let edu = r#"{"edu_type":"x","content":{"b":1,"a":2.5}}"#;
        assert!(transaction.push_edu(raw(edu.to_owned())));
        let stored = serde_json::to_vec(&transaction).unwrap();
        let read: Transaction = serde_json::from_slice(&stored).unwrap();
        let [one, other] = [&transaction, &read].map(|transaction| {
            let request = transaction.request(server_name!("hs1"));
            assert_eq!(request.origin, "hs1");
            let edus: Vec<String> = request
                .edus
                .iter()
                .map(|edu| edu.json().get().to_owned())
                .collect();
            (request.transaction_id, request.origin_server_ts, edus)
        });
        assert_eq!(one, other);
        assert_eq!(other.2, [edu]);
    }
}
