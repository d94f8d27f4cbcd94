//! Which servers a room here lets take part.

use ruma::ServerName;
use store::keys::RoomNum;

use crate::{error::ApiResult, server::App};

/// Whether the room's server ACL lets a server take part now. A room that is not known keeps nobody out.
///
/// # Errors
/// When the store cannot be read.
pub fn allows(app: &App, room: RoomNum, server: &ServerName) -> ApiResult<bool> {
    let Some(view) = app.store.room(room)? else {
        return Ok(true);
    };
    let acl = view.head.state.get("m.room.server_acl", "");
    let acl = acl.map(|id| app.store.pdu(id)).transpose()?.flatten();
    Ok(federation::room::acl::allows(acl.as_deref(), server))
}
