//! How results are shown: tables, JSON lines and templates, sizes and ages in Docker's words.

pub(crate) mod human;
mod indent;
mod list;
mod table;
mod template;

pub(crate) use indent::indent;
pub(crate) use list::{Column, Format, List, is_closed_pipe};
pub(crate) use table::Table;
pub(crate) use template::Template;
