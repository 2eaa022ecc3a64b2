//! The renderers on hand-built reports.

mod fixtures;
mod html;
mod text;
mod verdict;
