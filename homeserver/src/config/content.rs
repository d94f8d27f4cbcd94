//! Sections `[data]`, `[rooms]` and `[media]`: what the server keeps.

use std::path::PathBuf;

use ruma::RoomVersionId;
use serde::{Deserialize, Serialize};

use super::{
    MB,
    values::{Between, FilePath, HostPattern, Version, list, optional, plain},
};

/// Where the server keeps what it stores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// The directory; made at the first start. Relative paths start at the working directory, here as everywhere.
    /// Default: `./guildhall-data`.
    #[serde(deserialize_with = "plain::<FilePath, _, _>")]
    pub directory: PathBuf,
    /// The storage engine. The data of one cannot be opened by the other. Default: sled.
    pub engine: Engine,
    /// Memory for what was read lately. Default: 24 MB.
    #[serde(deserialize_with = "plain::<Between<8, 1_048_576>, _, _>")]
    pub cache_mb: u64,
}

impl Data {
    /// Memory for what was read lately, in bytes.
    pub fn cache_bytes(&self) -> u64 {
        self.cache_mb * MB
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            directory: "./guildhall-data".into(),
            engine: Engine::Sled,
            cache_mb: 24,
        }
    }
}

/// The storage engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Fast; takes four to five times the data's size on disk.
    Sled,
    /// Takes little disk space.
    Fjall,
}

/// Creating and publishing rooms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rooms {
    /// The version of rooms whose creator does not choose one: "6" to "12". Default: "12".
    #[serde(deserialize_with = "plain::<Version, _, _>")]
    pub default_version: RoomVersionId,
    /// Who may create rooms. Default: anyone with an account.
    pub create: Who,
    /// Who may put rooms into the public list that they have the power to. Default: anyone with an account.
    pub publish: Who,
    /// Whether only someone with an account may read the public list. Default: yes.
    pub public_list_needs_login: bool,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            default_version: RoomVersionId::V12,
            create: Who::Anyone,
            publish: Who::Anyone,
            public_list_needs_login: true,
        }
    }
}

/// Who may do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// Admins of the server.
    Admins,
    /// Everyone with an account here, guests aside.
    Anyone,
}

/// Uploads, thumbnails, URL previews.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Media {
    /// Where the files lie. Default: `media` in the data directory.
    #[serde(deserialize_with = "optional::<FilePath, _, _>")]
    pub directory: Option<PathBuf>,
    /// Announced uploads (`POST /_matrix/media/v1/create`) that a user may have open. Default: 20.
    #[serde(deserialize_with = "plain::<Between<1, 10_000>, _, _>")]
    pub pending_uploads_max: usize,
    /// How long an announced upload may take to arrive. Default: 86,400 s, a day, as the spec recommends.
    #[serde(deserialize_with = "plain::<Between<60, 2_592_000>, _, _>")]
    pub pending_upload_lifetime_seconds: u64,
    /// One file of another server; a larger one is not fetched. Default: 100 MB.
    #[serde(deserialize_with = "plain::<Between<1, 1_048_576>, _, _>")]
    pub remote_file_mb: u64,
    /// All files of other servers that are kept; those that nobody asked for the longest go first. Default: 10,240 MB.
    #[serde(deserialize_with = "plain::<Between<1, 1_073_741_824>, _, _>")]
    pub remote_total_mb: u64,
    /// How long a file of another server is kept after somebody asked for it, to the day. Default: 7,776,000 s, 90 days.
    #[serde(deserialize_with = "plain::<Between<86_400, 3_153_600_000>, _, _>")]
    pub remote_lifetime_seconds: u64,
    /// `[media.thumbnails]`: small versions of images.
    pub thumbnails: Thumbnails,
    /// `[media.url_previews]`: title and image of a linked page.
    pub url_previews: UrlPreviews,
}

impl Media {
    /// One file of another server, in bytes.
    pub fn remote_file_bytes(&self) -> u64 {
        self.remote_file_mb * MB
    }

    /// All files of other servers that are kept, in bytes.
    pub fn remote_total_bytes(&self) -> u64 {
        self.remote_total_mb * MB
    }
}

impl Default for Media {
    fn default() -> Self {
        Self {
            directory: None,
            pending_uploads_max: 20,
            pending_upload_lifetime_seconds: 86_400,
            remote_file_mb: 100,
            remote_total_mb: 10_240,
            remote_lifetime_seconds: 7_776_000,
            thumbnails: Thumbnails::default(),
            url_previews: UrlPreviews::default(),
        }
    }
}

/// Small versions of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thumbnails {
    /// An image with more pixels (width × height) is not opened: it needs 4 bytes of memory for each. Default:
    /// 32,000,000.
    #[serde(deserialize_with = "plain::<Between<1, 1_000_000_000>, _, _>")]
    pub source_pixels_max: u64,
    /// The longer side of the largest thumbnail that is made. Default: 1600 pixels.
    #[serde(deserialize_with = "plain::<Between<32, 10_000>, _, _>")]
    pub edge_pixels_max: u32,
}

impl Default for Thumbnails {
    fn default() -> Self {
        Self {
            source_pixels_max: 32_000_000,
            edge_pixels_max: 1600,
        }
    }
}

/// Title and image of a linked page. The server fetches the page, never from private or loopback addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UrlPreviews {
    /// Whether previews are made. Default: yes.
    pub enabled: bool,
    /// The only hosts fetched from. Default: empty, all hosts.
    #[serde(deserialize_with = "list::<HostPattern, _, _>")]
    pub allow_hosts: Vec<String>,
    /// Hosts never fetched from, also if allowed above. Default: none.
    #[serde(deserialize_with = "list::<HostPattern, _, _>")]
    pub deny_hosts: Vec<String>,
    /// How much of a page or of its image is fetched. Default: 10 MB.
    #[serde(deserialize_with = "plain::<Between<1, 1024>, _, _>")]
    pub download_mb_max: u64,
    /// How long one fetch may take. Default: 10 s.
    #[serde(deserialize_with = "plain::<Between<1, 600>, _, _>")]
    pub timeout_seconds: u64,
}

impl UrlPreviews {
    /// How much of a page or of its image is fetched, in bytes.
    pub fn download_bytes_max(&self) -> u64 {
        self.download_mb_max * MB
    }

    /// Whether pages of `host` may be fetched, by the lists and the switch. Its address is another question.
    pub fn allows(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let matches = |pattern: &String| match pattern.strip_prefix('*') {
            Some(ending) => host.len() > ending.len() && host.ends_with(ending),
            None => host == *pattern,
        };
        let allowed = self.allow_hosts.is_empty() || self.allow_hosts.iter().any(matches);
        self.enabled && allowed && !self.deny_hosts.iter().any(matches)
    }
}

impl Default for UrlPreviews {
    fn default() -> Self {
        Self {
            enabled: true,
            allow_hosts: Vec::new(),
            deny_hosts: Vec::new(),
            download_mb_max: 10,
            timeout_seconds: 10,
        }
    }
}
