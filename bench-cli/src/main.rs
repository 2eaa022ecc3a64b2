//! Will this storage keep these GPUs fed?

fn main() {}
