//! A content being read: its length is known, its bytes are streamed.
//!
//! Never more than [`READ_BUFFER_BYTES`] of it are in memory, however large it is. There are no ranges: the
//! spec's download endpoints have none.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt, ReadBuf},
};

/// How much of a content is in memory while it is streamed.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// A content, opened. It can be read to its end even if it is deleted meanwhile.
#[derive(Debug)]
pub struct Reader {
    file: File,
    length: u64,
}

impl Reader {
    pub(super) const fn new(file: File, length: u64) -> Self {
        Self { file, length }
    }

    /// The length in bytes.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// The content as a body, whose length is known beforehand.
    pub fn into_body(mut self) -> FileBody {
        self.file.set_max_buf_size(READ_BUFFER_BYTES);
        FileBody {
            file: self.file,
            remaining: self.length,
            buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
        }
    }

    /// The whole content in memory, for what is small and needed at once.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`] if it is longer than `bytes_max`; nothing is read then.
    pub async fn into_bytes(self, bytes_max: usize) -> io::Result<Bytes> {
        let length = usize::try_from(self.length).unwrap_or(usize::MAX);
        if length > bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = Vec::with_capacity(length);
        self.file.take(self.length).read_to_end(&mut bytes).await?;
        Ok(bytes.into())
    }
}

/// A content as the body of a response.
#[derive(Debug)]
pub struct FileBody {
    file: File,
    remaining: u64,
    buffer: Box<[u8]>,
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if this.remaining == 0 {
            return Poll::Ready(None);
        }
        let mut buffer = ReadBuf::new(&mut this.buffer);
        if let Err(error) = ready!(Pin::new(&mut this.file).poll_read(cx, &mut buffer)) {
            this.remaining = 0;
            return Poll::Ready(Some(Err(error)));
        }
        let filled = buffer.filled();
        if filled.is_empty() {
            // Shorter than it was when it was opened. The client must not take what it got for the whole.
            this.remaining = 0;
            return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
        }
        let wanted = usize::try_from(this.remaining)
            .unwrap_or(usize::MAX)
            .min(filled.len());
        let data = Bytes::copy_from_slice(filled.get(..wanted).unwrap_or(filled));
        this.remaining -= wanted as u64;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}
