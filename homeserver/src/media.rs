//! The parts of the content repository that need to know nothing about users, rooms or the store.
//!
//! | File | What it does |
//! |---|---|
//! | [`files`] | keeps bytes on disk under the hash of their content |
//! | [`thumbnail`] | makes small images out of large ones, without trusting either |
//! | [`disposition`] | the headers under which media may safely be served |
//! | [`outward`] | fetches what a user's URL points at, and refuses to be pointed inward |
//! | [`preview`] | reads a web page into the few words shown under a link |
//!
//! [`library`] puts them together with the store: which media there are, thumbnails, quotas; [`remote`] does so for
//! media of other servers. Who may see them is the API chapter's question.
//!
//! Spec: client-server API, module "Content repository".

pub mod disposition;
pub mod files;
pub mod library;
pub mod outward;
pub mod preview;
pub mod remote;
pub mod thumbnail;
