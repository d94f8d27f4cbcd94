//! Tokens: points in everything that a client can page through.
//!
//! `s{order}` is the point behind the event (and whatever else) at `order`; `s{order}_{moment}` says
//! as well how much of what is only in memory its holder has seen; `s{order}.{seen}` is the start of a
//! timeline, and says up to where its holder had seen the log: what `/members?at=` goes by. One form for `/sync`,
//! `/messages`, `/relations` and all others, so that a client may use any where any is expected.

use std::fmt;

use store::keys::Position;

use crate::{
    ephemeral::Moment,
    error::{ApiError, ApiResult},
    server::App,
};

/// A point in the log, or in a room's backfilled history below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Everything up to here is before the point.
    pub order: i64,
    /// Every change in memory up to here is before the point.
    pub moment: Moment,
    /// How far the holder of the start of a timeline had seen the log; 0 for any other point.
    pub seen: Position,
    /// Messages to the device are told up to here only, if that is not as far as `order`; else 0.
    pub to_device: Position,
}

impl Token {
    /// The point behind a position and a moment.
    pub fn new(position: Position, moment: Moment) -> Self {
        Self {
            order: i64::try_from(position).unwrap_or(i64::MAX),
            moment,
            seen: 0,
            to_device: 0,
        }
    }

    /// The point behind the event at `order` of some timeline.
    pub fn behind(order: i64) -> Self {
        Self {
            order,
            moment: 0,
            seen: 0,
            to_device: 0,
        }
    }

    /// The point before the event at `order` of some timeline.
    pub fn before(order: i64) -> Self {
        Self {
            order: order.saturating_sub(1),
            moment: 0,
            seen: 0,
            to_device: 0,
        }
    }

    /// The start of a timeline whose holder has seen the log up to `seen`.
    #[must_use]
    pub fn seen_up_to(self, seen: Position) -> Self {
        Self { seen, ..self }
    }

    /// The position of the state that the holder of this token knew.
    pub fn known(self) -> Position {
        if self.seen > 0 {
            return self.seen;
        }
        self.position()
    }

    /// The position; 0 for a point in backfilled history.
    pub fn position(self) -> Position {
        u64::try_from(self.order).unwrap_or(0)
    }

    /// Reads a token.
    ///
    /// # Errors
    /// `M_INVALID_PARAM` when it is none of this server's, or of a time that has not come yet.
    pub fn parse(app: &App, text: &str) -> ApiResult<Self> {
        let token = Self::read(text)
            .ok_or_else(|| ApiError::invalid_param("the token is not one of this server"))?;
        if token.position().max(token.seen) > app.store.published() {
            return Err(ApiError::invalid_param(
                "the token is not one of this server",
            ));
        }
        Ok(token)
    }

    fn read(text: &str) -> Option<Self> {
        let rest = text.strip_prefix('s')?;
        // The `pos` of sliding sync is a token with a name behind it.
        let rest = rest.split_once('~').map_or(rest, |(token, _)| token);
        if let Some((order, seen)) = rest.split_once('.') {
            let start = Self::behind(order.parse().ok()?);
            return Some(start.seen_up_to(seen.parse().ok()?));
        }
        let mut parts = rest.split('_');
        let order = parts.next()?.parse().ok()?;
        let moment = parts.next().map_or(Some(0), |part| part.parse().ok())?;
        let to_device = parts.next().map_or(Some(0), |part| part.parse().ok())?;
        parts.next().is_none().then_some(Self {
            order,
            moment,
            to_device,
            seen: 0,
        })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.seen > 0 {
            return write!(f, "s{}.{}", self.order, self.seen);
        }
        match (self.moment, self.to_device) {
            (0, 0) => write!(f, "s{}", self.order),
            (moment, 0) => write!(f, "s{}_{moment}", self.order),
            (moment, to_device) => write!(f, "s{}_{moment}_{to_device}", self.order),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_as_what_was_written() {
        for token in [
            Token::new(0, 0),
            Token::new(17, 1_234),
            Token::behind(-3),
            Token::before(i64::MIN),
            Token::before(5).seen_up_to(9),
        ] {
            assert_eq!(Token::read(&token.to_string()), Some(token));
        }
    }

    #[test]
    fn what_this_server_never_wrote_is_no_token() {
        for text in [
            "",
            "s",
            "17",
            "t17",
            "s17_",
            "s_4",
            "s1_2_3_4",
            "s99999999999999999999",
            "s-",
            "sé",
        ] {
            assert_eq!(Token::read(text), None, "{text}");
        }
    }
}
