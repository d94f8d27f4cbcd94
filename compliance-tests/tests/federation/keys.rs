//! Server-server API, "Retrieving server keys".
