//! What the tests of all crates share: real file systems on loop devices, real virtual machines.
//!
//! | module | idea |
//! |---|---|
//! | [`loopfs`] | a file system of its own, on a loop device, for one test |
//! | [`wait`] | wait for a state with a limit, never for a time |

pub mod loopfs;
pub mod wait;
