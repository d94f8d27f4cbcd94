//! How servers talk: who signs what, whose keys are needed, where a server is found; transactions, what is in
//! them, and when they are sent.
//!
//! Reading order: [`request`] (the signature of a request) → [`keyring`] (the keys of a server) →
//! [`discovery`] (a server's name to an address); [`transaction`] → [`edu`] → [`queue`] (what waits for a destination).

pub mod discovery;
pub mod edu;
pub mod keyring;
pub mod queue;
pub mod request;
pub mod transaction;

use ruma::serde::Base64;

/// Decodes base64 as servers write it: with or without padding, in the standard or the URL-safe alphabet.
///
/// Spec: appendices, "Unpadded Base64"; implementations differ.
pub fn lenient_base64(text: &str) -> Option<Vec<u8>> {
    let standard = text.replace('-', "+").replace('_', "/");
    let bytes: Base64 = Base64::parse(standard).ok()?;
    Some(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::lenient_base64;

    #[test]
    fn base64_is_read_in_both_alphabets_and_with_or_without_padding() {
        for text in ["+/8", "-_8", "+/8=", "-_8="] {
            assert_eq!(lenient_base64(text), Some(vec![0xfb, 0xff]), "{text}");
        }
        for text in ["+", "a b", "ä", "===="] {
            assert_eq!(lenient_base64(text), None, "{text}");
        }
    }
}
