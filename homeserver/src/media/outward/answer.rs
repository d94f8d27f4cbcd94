//! An answer whose head is here and whose body is still to come, and the time there is for it.
//!
//! The body is counted as it is unpacked, not as it is announced: a length that lies, and a megabyte that
//! unpacks to a gigabyte, end at the same limit.

use std::{pin::Pin, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use reqwest::{Response, Url};
use tokio::time::{Sleep, sleep, timeout};

use super::FetchError;

/// How much is set aside for a body before any of it has come.
const RESERVED_BYTES_MAX: usize = 64 * 1024;

/// The moment by which a request must be done with.
pub(super) struct Deadline(Pin<Box<Sleep>>);

impl Deadline {
    pub(super) fn after(total: Duration) -> Self {
        Self(Box::pin(sleep(total)))
    }

    /// Waits for `work`, but not beyond the deadline.
    pub(super) async fn within<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, FetchError> {
        tokio::select! {
            biased;
            () = &mut self.0 => Err(FetchError::TimedOut),
            done = work => Ok(done),
        }
    }
}

/// The head of an answer. Its body is read by [`bytes`](Self::bytes) or [`prefix`](Self::prefix), or not at
/// all, by dropping this.
pub struct Answer {
    response: Response,
    deadline: Deadline,
    idle: Duration,
}

impl Answer {
    pub(super) const fn new(response: Response, deadline: Deadline, idle: Duration) -> Self {
        Self {
            response,
            deadline,
            idle,
        }
    }

    /// The URL that gave this answer, after all redirects.
    pub fn url(&self) -> &Url {
        self.response.url()
    }

    /// The status. Also 4xx and 5xx are answers.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The declared type, if it is written in ASCII.
    pub fn content_type(&self) -> Option<&str> {
        self.headers().get(header::CONTENT_TYPE)?.to_str().ok()
    }

    /// The whole body.
    ///
    /// # Errors
    /// [`FetchError::TooLarge`] if it is longer than `bytes_max`; one that announces that is not read.
    pub async fn bytes(mut self, bytes_max: usize) -> Result<Vec<u8>, FetchError> {
        let announced = self.response.content_length().unwrap_or(0);
        if announced > bytes_max as u64 {
            return Err(FetchError::TooLarge { bytes_max });
        }
        let mut bytes = self.reserve();
        while let Some(chunk) = self.chunk().await? {
            if chunk.len() > bytes_max - bytes.len() {
                return Err(FetchError::TooLarge { bytes_max });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// The first `bytes_max` bytes of the body, or all of it if it is shorter: enough of a page to see what
    /// it says about itself.
    pub async fn prefix(mut self, bytes_max: usize) -> Result<Vec<u8>, FetchError> {
        let mut bytes = self.reserve();
        while bytes.len() < bytes_max
            && let Some(chunk) = self.chunk().await?
        {
            bytes.extend(chunk.iter().take(bytes_max - bytes.len()));
        }
        Ok(bytes)
    }

    /// Where this answer sends on to, if it does.
    ///
    /// Spec: RFC 9110, 15.4.
    pub(super) fn redirect(&self) -> Option<Url> {
        if !matches!(self.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return None;
        }
        let location = self.headers().get(header::LOCATION)?.to_str().ok()?;
        self.url().join(location).ok()
    }

    pub(super) fn into_deadline(self) -> Deadline {
        self.deadline
    }

    fn reserve(&self) -> Vec<u8> {
        let announced = self.response.content_length().unwrap_or(0);
        let announced = usize::try_from(announced).unwrap_or(usize::MAX);
        Vec::with_capacity(announced.min(RESERVED_BYTES_MAX))
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let chunk = timeout(self.idle, self.response.chunk());
        Ok(self
            .deadline
            .within(chunk)
            .await?
            .map_err(|_| FetchError::TimedOut)??)
    }
}
