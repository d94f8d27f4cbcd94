//! Contents on a real disk, in a directory of their own.

use std::{convert::Infallible, path::PathBuf, sync::atomic::AtomicBool, time::Duration};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;

/// The SHA-256 of "abc", as FIPS 180-2 gives it.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn files() -> (TempDir, Files) {
    let directory = tempfile::tempdir().unwrap();
    let files = Files::open(directory.path()).unwrap();
    (directory, files)
}

async fn content(files: &Files, hash: &ContentHash) -> Option<Bytes> {
    Some(
        files
            .read(hash)
            .await
            .unwrap()?
            .into_bytes(usize::MAX)
            .await
            .unwrap(),
    )
}

/// Every file under `directory`, however deep.
fn all_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(all_files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// A body of `pieces` pieces that says nothing about its length and may end in an error.
fn body(
    pieces: Vec<Result<&'static [u8], io::Error>>,
) -> impl Body<Data = Bytes, Error = io::Error> {
    let mut pieces = pieces.into_iter();
    PieceByPiece(move || pieces.next().map(|piece| piece.map(Bytes::from_static)))
}

struct PieceByPiece<F>(F);

impl<F: FnMut() -> Option<io::Result<Bytes>> + Unpin> Body for PieceByPiece<F> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<io::Result<Frame<Bytes>>>> {
        std::task::Poll::Ready((self.0)().map(|piece| piece.map(Frame::data)))
    }
}

fn whole(content: impl Into<Bytes>) -> Full<Bytes> {
    Full::new(content.into())
}

async fn unreferenced() -> Result<bool, FilesError> {
    Ok(false)
}

#[tokio::test]
async fn a_content_lies_under_its_hash_and_is_read_back() {
    let (directory, files) = files();
    let kept = files
        .put(body(vec![Ok(b"a"), Ok(b""), Ok(b"bc")]), 3)
        .await
        .unwrap();

    assert_eq!(kept.hash.to_string(), ABC);
    assert_eq!(kept.hash, ContentHash::of(b"abc"));
    assert_eq!(kept.length, 3);
    assert_eq!(
        all_files(directory.path()),
        [directory
            .path()
            .join("content")
            .join("ba")
            .join("78")
            .join(ABC)]
    );
    assert_eq!(content(&files, &kept.hash).await.unwrap(), "abc");
}

#[tokio::test]
async fn two_uploads_of_the_same_content_share_one_file() {
    let (directory, files) = files();
    let first = files.put(whole("same"), 100).await.unwrap();
    let second = files
        .put(body(vec![Ok(b"sa"), Ok(b"me")]), 100)
        .await
        .unwrap();

    assert_eq!(first.hash, second.hash);
    assert_eq!(all_files(directory.path()).len(), 1);
}

#[tokio::test]
async fn an_empty_content_is_a_content() {
    let (_directory, files) = files();
    let kept = files.put(body(vec![]), 0).await.unwrap();
    assert_eq!(kept.length, 0);
    assert_eq!(content(&files, &kept.hash).await.unwrap(), "");
}

#[tokio::test]
async fn a_content_of_exactly_the_limit_is_kept_and_one_byte_more_is_not() {
    let (directory, files) = files();
    assert!(
        files
            .put(body(vec![Ok(b"12345"), Ok(b"678")]), 8)
            .await
            .is_ok()
    );
    let error = files
        .put(body(vec![Ok(b"12345"), Ok(b"6789")]), 8)
        .await
        .unwrap_err();

    assert!(
        matches!(error, PutError::TooLarge { bytes_max: 8 }),
        "{error:?}"
    );
    assert_eq!(
        all_files(directory.path()).len(),
        1,
        "nothing is left of the refused one"
    );
}

#[tokio::test]
async fn a_body_that_announces_too_much_is_not_read() {
    struct Announced;
    impl Body for Announced {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            panic!("a byte of it was asked for")
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(1 << 30)
        }
    }

    let (_directory, files) = files();
    let error = files.put(Announced, (1 << 30) - 1).await.unwrap_err();
    assert!(matches!(error, PutError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_nothing() {
    let (directory, files) = files();
    let broken = body(vec![Ok(b"begun"), Err(ErrorKind::ConnectionReset.into())]);
    let error = files.put(broken, 100).await.unwrap_err();

    assert!(matches!(error, PutError::Body(_)), "{error:?}");
    assert_eq!(all_files(directory.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let (directory, files) = files();
    let mut incoming = files.receive(100).await.unwrap();
    incoming.write(b"begun").await.unwrap();
    assert_eq!(all_files(directory.path()).len(), 1);

    drop(incoming);
    assert_eq!(all_files(directory.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn what_an_earlier_process_left_half_written_is_gone_after_the_start() {
    let (directory, files) = files();
    let kept = files.put(whole("whole"), 100).await.unwrap();
    for name in ["0", "17"] {
        std::fs::write(directory.path().join("incoming").join(name), "half").unwrap();
    }

    let files = Files::open(directory.path()).unwrap();
    assert_eq!(all_files(directory.path()).len(), 1);
    assert_eq!(content(&files, &kept.hash).await.unwrap(), "whole");
    assert!(
        files.put(whole("new"), 100).await.is_ok(),
        "the names are free again"
    );
}

#[tokio::test]
async fn what_is_not_there_is_not_an_error() {
    let (_directory, files) = files();
    let hash = ContentHash::of(b"never seen");
    assert!(files.read(&hash).await.unwrap().is_none());
    assert!(files.open_blocking(&hash).unwrap().is_none());
    assert_eq!(
        files.delete_unless(&hash, unreferenced).await.unwrap(),
        Deletion::Absent
    );
}

#[tokio::test]
async fn an_unreferenced_content_is_deleted_once_its_pin_is_gone() {
    let (directory, files) = files();
    let Kept { hash, pin, .. } = files.put(whole("short-lived"), 100).await.unwrap();
    let again = files.put(whole("short-lived"), 100).await.unwrap();

    drop(pin);
    assert_eq!(
        files.delete_unless(&hash, unreferenced).await.unwrap(),
        Deletion::InUse
    );
    drop(again);
    assert_eq!(
        files.delete_unless(&hash, unreferenced).await.unwrap(),
        Deletion::Deleted
    );
    assert!(content(&files, &hash).await.is_none());
    assert_eq!(all_files(directory.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_referenced_content_stays() {
    let (_directory, files) = files();
    let hash = files.put(whole("named by a row"), 100).await.unwrap().hash;

    let referenced = async || Ok::<_, FilesError>(true);
    assert_eq!(
        files.delete_unless(&hash, referenced).await.unwrap(),
        Deletion::InUse
    );
    assert_eq!(content(&files, &hash).await.unwrap(), "named by a row");
}

/// The row of a second upload of the same bytes is committed while the first one is being deleted: whichever
/// comes first, the committed row finds its content.
#[tokio::test]
async fn a_content_kept_anew_while_it_is_deleted_survives() {
    let (_directory, files) = files();
    let hash = files.put(whole("contested"), 100).await.unwrap().hash;
    let committed = AtomicBool::new(false);
    let asked = Notify::new();
    let uploaded = Notify::new();

    let deletion = files.delete_unless(&hash, async || {
        let answer = committed.load(Ordering::SeqCst);
        asked.notify_one();
        // Were the upload let through now, it would be done long before this.
        let let_through =
            tokio::time::timeout(Duration::from_millis(500), uploaded.notified()).await;
        assert!(
            let_through.is_err(),
            "nothing is kept between the question and the deletion"
        );
        Ok::<_, FilesError>(answer)
    });
    let upload = async {
        asked.notified().await;
        let kept = files.put(whole("contested"), 100).await.unwrap();
        committed.store(true, Ordering::SeqCst);
        drop(kept.pin);
        uploaded.notify_one();
    };
    let (deletion, ()) = tokio::join!(deletion, upload);

    assert_eq!(deletion.unwrap(), Deletion::Deleted);
    assert_eq!(content(&files, &hash).await.unwrap(), "contested");
}

#[tokio::test]
async fn a_deleted_content_can_still_be_read_by_who_has_it_open() {
    let (_directory, files) = files();
    let hash = files.put(whole("still here"), 100).await.unwrap().hash;
    let reader = files.read(&hash).await.unwrap().unwrap();

    assert_eq!(
        files.delete_unless(&hash, unreferenced).await.unwrap(),
        Deletion::Deleted
    );
    assert_eq!(reader.into_bytes(100).await.unwrap(), "still here");
}

#[tokio::test]
async fn a_large_content_is_streamed_in_pieces_of_bounded_size() {
    const LENGTH: usize = 1_000_003;
    let (_directory, files) = files();
    let bytes: Vec<u8> = (0..LENGTH)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    let kept = files
        .put(whole(bytes.clone()), LENGTH as u64)
        .await
        .unwrap();

    let reader = files.read(&kept.hash).await.unwrap().unwrap();
    assert_eq!(reader.length(), LENGTH as u64);
    let mut body = reader.into_body();
    assert_eq!(body.size_hint().exact(), Some(LENGTH as u64));
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        assert!(data.len() <= 64 * 1024, "a piece of {} bytes", data.len());
        read.extend_from_slice(&data);
    }
    assert!(body.is_end_stream());
    assert!(read == bytes, "what is read is what was written");
}

#[tokio::test]
async fn a_content_cut_short_on_disk_is_an_error_not_a_shorter_content() {
    let (directory, files) = files();
    let kept = files.put(whole("0123456789"), 100).await.unwrap();
    let reader = files.read(&kept.hash).await.unwrap().unwrap();
    let [path] = all_files(directory.path()).try_into().unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(4)
        .unwrap();

    let mut body = reader.into_body();
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "0123"
    );
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_content_too_large_for_memory_is_not_read_into_it() {
    let (_directory, files) = files();
    let hash = files.put(whole("0123456789"), 100).await.unwrap().hash;
    let read = async |bytes_max| {
        files
            .read(&hash)
            .await
            .unwrap()
            .unwrap()
            .into_bytes(bytes_max)
            .await
    };

    assert_eq!(read(10).await.unwrap(), "0123456789");
    assert_eq!(read(9).await.unwrap_err().kind(), ErrorKind::FileTooLarge);
}

#[test]
fn a_hash_is_read_back_from_its_text_and_from_nothing_else() {
    assert_eq!(ABC.parse::<ContentHash>().unwrap(), ContentHash::of(b"abc"));
    let upper = ABC.to_uppercase();
    let longer = format!("{ABC}00");
    let traversal = format!("../{}", ABC.split_at(3).1);
    for wrong in [
        "",
        "ba",
        upper.as_str(),
        longer.as_str(),
        traversal.as_str(),
        ABC.split_at(63).0,
    ] {
        assert!(wrong.parse::<ContentHash>().is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn everything_can_be_awaited_in_a_task_of_its_own() {
    let (_directory, files) = files();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let hash = files.put(whole("moved"), 100).await.unwrap().hash;
        let read = content(&files, &hash).await;
        let deletion = files.delete_unless(&hash, unreferenced).await.unwrap();
        (read, deletion)
    });
    let (read, deletion) = tasks.join_next().await.unwrap().unwrap();
    assert_eq!(read.unwrap(), "moved");
    assert_eq!(deletion, Deletion::Deleted);
}
