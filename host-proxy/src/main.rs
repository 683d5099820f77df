//! Placeholder until its rooms stand.
fn main() {}
