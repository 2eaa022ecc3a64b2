//! Files (`file:///mnt/nvme/dir`): objects as files below a directory, read and written past the page cache by
//! io_uring where the system allows both, and by a fall-back that names itself where it does not.

mod disk;
mod lane;
mod store;

pub use lane::{FileLane, FileTarget};
pub use store::{FileConfig, FileStore, Fsync};
