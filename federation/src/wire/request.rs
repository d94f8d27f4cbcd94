//! The signature of a request: the `Authorization: X-Matrix` header.
//!
//! What is signed is the request as it goes over the wire: the target with its percent-encoding and its
//! query untouched, never one that was decoded and encoded again.
//!
//! ruma has the same, but reads the header more strictly than the specification asks for, and refuses a
//! body with a number that canonical JSON does not know. A transaction may carry such a number in an event
//! that is refused alone; it must not sink the rest.
//!
//! Spec: server-server API, "Request Authentication".

use ruma::{
    OwnedServerName, ServerName,
    serde::Base64,
    signatures::{KeyPair as _, VerificationError, verify_canonical_json_bytes},
};
use serde_json::{Map, Value};

use super::lenient_base64;
use crate::event::ServerKey;

/// The longest header that is read, in bytes. Two server names, a key ID and a signature are below 1,000.
pub const HEADER_BYTES_MAX: usize = 4_096;

/// What is signed of a request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method, in upper case.
    pub method: &'a str,
    /// Path and query as sent.
    pub target: &'a str,
    /// The server that sends it, by its name before delegation.
    pub origin: &'a ServerName,
    /// The server it is for, by its name before delegation.
    pub destination: &'a ServerName,
    /// The body; empty if there is none.
    pub body: &'a [u8],
}

impl Request<'_> {
    /// The bytes that are signed: canonical JSON, but for numbers that it does not know.
    ///
    /// # Errors
    /// When the body is not JSON.
    fn signed_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        // Objects of serde_json are sorted by key, which a test below checks.
        let mut object = Map::new();
        let texts = [
            ("method", self.method),
            ("uri", self.target),
            ("origin", self.origin.as_str()),
            ("destination", self.destination.as_str()),
        ];
        for (key, text) in texts {
            object.insert(key.to_owned(), text.into());
        }
        if !self.body.is_empty() {
            let content: Value = serde_json::from_slice(self.body)?;
            object.insert("content".to_owned(), content);
        }
        serde_json::to_vec(&object)
    }

    /// The value of the `Authorization` header that signs this request with `key`.
    ///
    /// # Errors
    /// When the body is not JSON.
    pub fn sign(&self, key: &ServerKey) -> Result<String, serde_json::Error> {
        let signature = key.key_pair().sign(&self.signed_bytes()?);
        let (origin, destination) = (self.origin, self.destination);
        // Server names, key IDs and base64 have neither quotes nor backslashes in them.
        Ok(format!(
            r#"X-Matrix origin="{origin}",destination="{destination}",key="{}",sig="{}""#,
            signature.id(),
            signature.base64(),
        ))
    }
}

/// The header, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XMatrix {
    /// The server that says to have sent the request.
    pub origin: OwnedServerName,
    /// The server it says the request is for; old servers leave it out.
    pub destination: Option<OwnedServerName>,
    /// The ID of the key, with its algorithm.
    pub key_id: String,
    /// The signature.
    pub signature: Vec<u8>,
}

/// Why a header is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Another scheme.
    #[error("the authorization is not of the scheme X-Matrix")]
    Scheme,
    /// Longer than [`HEADER_BYTES_MAX`].
    #[error("the authorization is longer than {HEADER_BYTES_MAX} bytes")]
    TooLong,
    /// Not a list of `name=value`.
    #[error("the parameters of the authorization cannot be read")]
    Syntax,
    /// A parameter that must be there once.
    #[error("the parameter `{0}` of the authorization is missing, doubled or malformed")]
    Parameter(&'static str),
}

impl XMatrix {
    /// Reads the value of a header.
    ///
    /// Names in any case and order, values quoted (with backslashes) or bare (also with colons in them), blanks and
    /// tabs around commas and equals signs, further parameters, a comma at the end.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn parse(header: &str) -> Result<Self, HeaderError> {
        if header.len() > HEADER_BYTES_MAX {
            return Err(HeaderError::TooLong);
        }
        let header = header.trim_matches(BLANKS);
        let (scheme, mut rest) = header.split_once(BLANKS).ok_or(HeaderError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("x-matrix") {
            return Err(HeaderError::Scheme);
        }
        let [mut origin, mut destination, mut key, mut sig] = [const { None }; 4];
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            if rest.is_empty() {
                break;
            }
            let (name, value, behind) = parameter(rest)?;
            rest = behind;
            let (slot, name) = match name.to_ascii_lowercase().as_str() {
                "origin" => (&mut origin, "origin"),
                "destination" => (&mut destination, "destination"),
                "key" => (&mut key, "key"),
                "sig" => (&mut sig, "sig"),
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(HeaderError::Parameter(name));
            }
        }
        let server = |value: String, name| {
            OwnedServerName::try_from(value).map_err(|_| HeaderError::Parameter(name))
        };
        let origin = origin.ok_or(HeaderError::Parameter("origin"))?;
        let key_id = key.filter(|key| !key.is_empty());
        let signature = sig.and_then(|sig| lenient_base64(&sig));
        Ok(Self {
            origin: server(origin, "origin")?,
            destination: destination
                .map(|destination| server(destination, "destination"))
                .transpose()?,
            key_id: key_id.ok_or(HeaderError::Parameter("key"))?,
            signature: signature.ok_or(HeaderError::Parameter("sig"))?,
        })
    }

    /// That this header's signature is by `public_key` and over `request`.
    ///
    /// Whether that key is the origin's, and valid now, is the caller's question.
    ///
    /// # Errors
    /// When it is not, or the body is not JSON.
    pub fn verify(
        &self,
        request: &Request<'_>,
        public_key: &[u8],
    ) -> Result<(), VerificationError> {
        verify_canonical_json_bytes(
            &ruma::signatures::SigningKeyAlgorithm::Ed25519,
            public_key,
            &self.signature,
            &request.signed_bytes()?,
        )
    }
}

const BLANKS: [char; 2] = [' ', '\t'];

/// The first `name=value` of a list, and what is behind it.
fn parameter(text: &str) -> Result<(&str, String, &str), HeaderError> {
    let (name, rest) = text.split_once('=').ok_or(HeaderError::Syntax)?;
    let name = name.trim_matches(BLANKS);
    if name.is_empty() || name.contains([' ', '\t', ',', '"']) {
        return Err(HeaderError::Syntax);
    }
    let rest = rest.trim_start_matches(BLANKS);
    let Some(quoted) = rest.strip_prefix('"') else {
        let (value, behind) = rest.split_once(',').unwrap_or((rest, ""));
        let value = value.trim_matches(BLANKS);
        if value.contains([' ', '\t', '"']) {
            return Err(HeaderError::Syntax);
        }
        return Ok((name, value.to_owned(), behind));
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next().ok_or(HeaderError::Syntax)? {
            '"' => break,
            '\\' => value.push(chars.next().ok_or(HeaderError::Syntax)?),
            char => value.push(char),
        }
    }
    let behind = chars.as_str().trim_start_matches(BLANKS);
    if behind.is_empty() || behind.starts_with(',') {
        return Ok((name, value, behind));
    }
    Err(HeaderError::Syntax)
}

/// The unpadded base64 of a public key, as servers publish it.
pub fn public_key_base64(key: &ServerKey) -> String {
    Base64::<ruma::serde::base64::Standard, _>::new(key.key_pair().public_key()).encode()
}

#[cfg(test)]
mod tests;
