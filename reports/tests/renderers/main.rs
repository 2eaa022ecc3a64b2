//! The renderers on hand-built reports.

mod fixtures;
mod html;
mod search;
mod text;
mod verdict;
