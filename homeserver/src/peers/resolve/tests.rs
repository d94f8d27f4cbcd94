use super::*;
pub(super) struct Table;
