//! One phone: a client set up as Element X sets it up, its sync service, and the room list as it shows it.
//!
//! It asserts nothing; `conversation` does.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use futures_util::{StreamExt, pin_mut};
use matrix_sdk::{
    Client, Room, ThreadingSupport,
    authentication::matrix::MatrixSession,
    encryption::{BackupDownloadStrategy, EncryptionSettings},
    ruma::{
        RoomId,
        api::client::{account::register, uiaa},
    },
    sliding_sync::VersionBuilder,
};
use matrix_sdk_ui::{
    Timeline,
    eyeball_im::Vector,
    room_list_service::{RoomListItem, filters::new_filter_non_left},
    sync_service::SyncService,
    timeline::{RoomExt, TimelineReadReceiptTracking},
};
use tokio::task::JoinHandle;

/// The password of every account that these tests make.
const PASSWORD: &str = "correct horse battery staple 7!";
/// More rooms than any check makes: the list's window grows by itself, only the view of it is cut to this.
const ROOMS_SHOWN: usize = 200;

/// A running client.
pub struct Phone {
    /// The client.
    pub client: Client,
    /// Its two sliding sync connections.
    pub sync: SyncService,
    rooms: Arc<Mutex<Vector<RoomListItem>>>,
    list_task: JoinHandle<()>,
}

/// Makes an account, without a device.
pub async fn register(base_url: &str, username: &str) -> Result<()> {
    let client = Client::builder().homeserver_url(base_url).build().await?;
    let mut request = register::v3::Request::new();
    request.username = Some(username.to_owned());
    request.password = Some(PASSWORD.to_owned());
    request.auth = Some(uiaa::AuthData::Dummy(uiaa::Dummy::new()));
    request.inhibit_login = true;
    client.matrix_auth().register(request).await?;
    Ok(())
}

/// A client with its stores in `folder`, not logged in. Fails if the server does not offer sliding sync.
pub async fn build(base_url: &str, folder: &Path) -> Result<Client> {
    Client::builder()
        .homeserver_url(base_url)
        .sliding_sync_version_builder(VersionBuilder::DiscoverNative)
        .sqlite_store(folder, None)
        .handle_refresh_tokens()
        .with_threading_support(ThreadingSupport::Enabled {
            with_subscriptions: false,
        })
        .with_encryption_settings(EncryptionSettings {
            auto_enable_cross_signing: true,
            backup_download_strategy: BackupDownloadStrategy::AfterDecryptionFailure,
            auto_enable_backups: true,
        })
        .build()
        .await
        .context("a client that finds sliding sync")
}

impl Phone {
    /// A new device of `username`, with its stores in `folder`.
    pub async fn log_in(base_url: &str, username: &str, folder: &Path) -> Result<Self> {
        let client = build(base_url, folder).await?;
        client
            .matrix_auth()
            .login_username(username, PASSWORD)
            .initial_device_display_name("matrix-sdk test")
            .await?;
        Self::start(client).await
    }

    /// The device of an earlier run, from its stores and its session.
    pub async fn restore(base_url: &str, folder: &Path, session: MatrixSession) -> Result<Self> {
        let client = build(base_url, folder).await?;
        client.restore_session(session).await?;
        Self::start(client).await
    }

    async fn start(client: Client) -> Result<Self> {
        client.event_cache().subscribe()?;
        client
            .encryption()
            .wait_for_e2ee_initialization_tasks()
            .await;
        let sync = SyncService::builder(client.clone()).build().await?;
        let list = sync.room_list_service().all_rooms().await?;
        let rooms = Arc::new(Mutex::new(Vector::new()));
        let shown = Arc::clone(&rooms);
        let list_task = tokio::spawn(async move {
            let (changes, controller) = list.entries_with_dynamic_adapters(ROOMS_SHOWN);
            controller.set_filter(Box::new(new_filter_non_left()));
            pin_mut!(changes);
            while let Some(changes) = changes.next().await {
                let mut rooms = shown.lock().unwrap_or_else(PoisonError::into_inner);
                for change in changes {
                    change.apply(&mut rooms);
                }
            }
        });
        sync.start().await;
        Ok(Self {
            client,
            sync,
            rooms,
            list_task,
        })
    }

    /// The room list as it is shown now, from the top.
    pub fn rooms(&self) -> Vec<RoomListItem> {
        self.rooms
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }

    /// The line of the room list for `room_id`, if there is one.
    pub fn listed(&self, room_id: &RoomId) -> Option<RoomListItem> {
        self.rooms()
            .into_iter()
            .find(|room| room.room_id() == room_id)
    }

    /// The names in the room list, from the top.
    pub fn names(&self) -> Vec<String> {
        self.rooms()
            .iter()
            .map(|room| {
                room.cached_display_name()
                    .map(|name| name.to_string())
                    .unwrap_or_default()
            })
            .collect()
    }

    /// The room, known by sync.
    pub fn room(&self, room_id: &RoomId) -> Result<Room> {
        self.client
            .get_room(room_id)
            .with_context(|| format!("{room_id} is not known"))
    }

    /// Opens a room: subscribes to it and gives its timeline.
    pub async fn open(&self, room_id: &RoomId) -> Result<Timeline> {
        self.sync
            .room_list_service()
            .subscribe_to_rooms(&[room_id])
            .await;
        let builder = self.room(room_id)?.timeline_builder();
        let timeline =
            builder.track_read_marker_and_receipts(TimelineReadReceiptTracking::AllEvents);
        Ok(timeline.build().await?)
    }

    /// Stops the sync, and gives what the next run needs.
    pub async fn stop(self) -> Result<MatrixSession> {
        self.sync.stop().await;
        self.list_task.abort();
        self.client
            .matrix_auth()
            .session()
            .context("the phone is logged in")
    }
}
