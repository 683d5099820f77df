//! The freeze on real file systems, with everything that can go wrong while they are frozen.
//! Needs root and loop devices.
//!
//! | module | idea |
//! |---|---|
//! | `bench` | arming, freezing and looking, for one test at a time |
//! | `holding` | writers wait, and go on |
//! | `deaths` | processes that are killed or stopped while frozen |
//! | `panics` | a panic while frozen |
//! | `deadline` | the deadline, and a FIFREEZE that does not come back |
//! | `strangers` | somebody else freezes or thaws, and `hostsnap thaw` |

mod bench;
mod deadline;
mod deaths;
mod holding;
mod panics;
mod strangers;
